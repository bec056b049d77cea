# shellcheck shell=bash
# A Python environment for the tests that speak to the mesh from another language. Sourced by scripts/setup.

python_packages="nats-py==2.16.0 cryptography==50.0.2"

# The mark is written last, so half an environment does not count; it names the packages, so a new pin counts as new.
python_is_ready() {
    local mark
    [ -x "$test_python" ] && read -r mark 2>/dev/null <"$cache/python/.ready" && [ "$mark" = "$python_packages" ]
}

# Tests without it print that they were skipped, so failing here is no failure.
want_python() {
    if python_is_ready || missing_since_today test-python; then return; fi
    open_cache
    if python_is_ready; then return; fi
    local log=$work/python.log
    if ! command -v python3 >/dev/null; then
        remember_missing test-python "there is no python3 on PATH"
        return
    fi
    say "installing $python_packages for the tests"
    remove "$cache/python"
    # Built in its place, as an environment cannot be moved.
    if ! python3 -m venv "$cache/python" >"$log" 2>&1; then
        remember_missing test-python "python3 -m venv does not work (on Debian: apt-get install python3-venv)"
    elif ! install_packages >"$log" 2>&1; then
        remember_missing test-python "the packages cannot be installed: $(last_line "$log")"
    else
        printf '%s\n' "$python_packages" >"$cache/python/.ready"
        rm -f "$cache/missing/test-python"
        return
    fi
    remove "$cache/python"
}

install_packages() {
    local packages
    read -ra packages <<<"$python_packages"
    run_for 300 "$test_python" -m pip install --quiet --disable-pip-version-check --no-input \
        --retries 1 --timeout 30 --only-binary cryptography "${packages[@]}"
}
