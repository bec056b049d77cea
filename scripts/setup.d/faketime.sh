# shellcheck shell=bash
# libfaketime, which shows a program another wall clock: for tests of wrong clocks. Sourced by scripts/setup.

faketime() {
    local path
    for path in "${LUCENT_TEST_FAKETIME:-}" "$cache/tools/libfaketime/libfaketime.so.1" \
        /usr/lib/*/faketime/libfaketime.so.1 /usr/lib*/faketime/libfaketime.so.1; do
        if [ -r "$path" ]; then
            echo "$path"
            return
        fi
    done
    return 1
}

# Tests without it print that they were skipped, so failing here is no failure.
want_faketime() {
    if faketime >/dev/null || missing_since_today faketime; then return; fi
    open_cache
    if faketime >/dev/null; then return; fi
    local log=$work/faketime.log library=$work/libfaketime.so.1
    if ! debian_file libfaketime './usr/lib/*/faketime/libfaketime.so.1' "$library" "$log"; then
        remember_missing faketime "$(last_line "$log")"
    elif ! fools_this_machine "$library"; then
        remember_missing faketime "Debian's libfaketime does not work on this machine"
    else
        mkdir -p "$work/libfaketime" && mv "$library" "$work/libfaketime/" && remove "$cache/tools/libfaketime" &&
            mv "$work/libfaketime" "$cache/tools/libfaketime" && rm -f "$cache/missing/faketime"
    fi
}

fools_this_machine() {
    [ "$(LD_PRELOAD=$1 FAKETIME='@2001-01-01 12:00:00' TZ=UTC date +%Y 2>/dev/null)" = 2001 ]
}
