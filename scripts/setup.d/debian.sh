# shellcheck shell=bash
# Single files out of Debian packages, unpacked and not installed: no root needed, no service started.
# Sourced by scripts/setup.

apt_options=(-q -o APT::Sandbox::User=root
    -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20)

# debian_file PACKAGE PATTERN TARGET LOG: the one file in PACKAGE whose path matches PATTERN, as TARGET.
debian_file() {
    local package=$1 pattern=$2 target=$3 log=$4 folder=$work/$1.deb
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        echo "$package comes from Debian, and this system has no apt-get" >"$log"
        return 1
    fi
    mkdir -p "$folder"
    if ! download "$package" "$folder" >"$log" 2>&1 &&
        ! { refresh_lists && download "$package" "$folder"; } >"$log" 2>&1; then
        echo "Debian's package $package cannot be had: $(last_line "$log")" >>"$log"
        return 1
    fi
    dpkg-deb --fsys-tarfile "$folder"/*.deb | tar -x -O --wildcards "$pattern" >"$target" 2>"$log" && chmod +x "$target"
}

download() { (cd "$2" && run_for 300 apt-get "${apt_options[@]}" download "$1"); }

# debian_dependency PACKAGE PATTERN: the name of the first package matching PATTERN that PACKAGE depends on.
debian_dependency() {
    command -v apt-cache >/dev/null || return 1
    dependency "$@" || { refresh_lists >/dev/null 2>&1 && dependency "$@"; }
}
dependency() {
    local found
    found=$(apt-cache "${apt_options[@]}" depends "$1" 2>/dev/null | grep -oE "$2") && echo "${found%%$'\n'*}"
}

# Package lists of our own, for images that have none or old ones, and for users who may not refresh the system's.
refresh_lists() {
    mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial"
    apt_options+=(-o Dir::State::Lists="$work/apt/lists" -o Dir::Cache="$work/apt" -o Dir::Cache::archives=archives)
    run_for 300 apt-get "${apt_options[@]}" update
}
