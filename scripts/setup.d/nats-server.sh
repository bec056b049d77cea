# shellcheck shell=bash
# nats-server: the current one (for everything) and an older one (for tests of a level whose parent lags behind).
# Sourced by scripts/setup.

server_version=2.14.5
# Before this a plaintext client could name a certificate user with an empty password, and leaves passed permissions.
server_floor=2.14.4
server_module=github.com/nats-io/nats-server/v2@v$server_version
# What the module's go.mod asks for; only for machines that have no Go, or one before 1.21 that cannot fetch it itself.
go_toolchain=1.25.12

need_server() {
    local path
    if [ -n "${LUCENT_NATS_SERVER:-}" ] && [ ! -x "$LUCENT_NATS_SERVER" ]; then
        die "LUCENT_NATS_SERVER=$LUCENT_NATS_SERVER is not an executable file: correct or unset it"
    fi
    if old_server >/dev/null && ! current_server >/dev/null && missing_since_today nats-server; then
        say "no nats-server $server_version: $(why_missing nats-server) (scripts/setup --retry nats tries again)"
    elif ! current_server >/dev/null; then
        open_cache
        # Another set-up may have brought it while this one waited.
        current_server >/dev/null || build_server || old_server >/dev/null || unpack_debian_server || true
    fi
    path=$(any_server) || die "no nats-server: install Go 1.21 or newer (https://go.dev/dl), or put nats-server" \
        "$server_floor or newer on PATH, then run this again"
    is_current "$path" || say "warning: $(too_old "$path")"
}

want_old_server() {
    if old_server >/dev/null || missing_since_today nats-server-old; then return; fi
    open_cache
    old_server >/dev/null || unpack_debian_server || true
}

# --- which one ---------------------------------------------------------------------------------------------------

built_server() { echo "$cache/tools/nats-server-$server_version/nats-server"; }
debian_server() { echo "$cache/tools/nats-server-debian/nats-server"; }
servers_on_path() { type -aP nats-server || true; }

any_server() { current_server || old_server; }

current_server() {
    local path
    if [ -x "${LUCENT_NATS_SERVER:-}" ]; then
        echo "$LUCENT_NATS_SERVER"
        return
    fi
    while read -r path; do
        if [ -x "$path" ] && is_current "$path"; then
            echo "$path"
            return
        fi
    done < <(servers_on_path && built_server)
    return 1
}

old_server() {
    local path
    while read -r path; do
        if [ -x "$path" ] && ! is_current "$path"; then
            echo "$path"
            return
        fi
    done < <(echo "${LUCENT_NATS_SERVER_OLD:-}" && servers_on_path && debian_server)
    return 1
}

is_current() {
    local version
    version=$(version_of "$1") && at_least "$version" "$server_floor"
}
too_old() { echo "nats-server $(version_of "$1") is older than $server_floor: good for 'agent dev' on loopback only"; }

# "nats-server: v2.14.5-beta" -> "2.14.5"
version_of() {
    local answer
    answer=$("$1" --version 2>/dev/null) && [[ $answer =~ ([0-9]+\.[0-9]+\.[0-9]+) ]] && echo "${BASH_REMATCH[1]}"
}

# at_least 2.14.5 2.14.4: compares number by number.
at_least() {
    local have want i
    IFS=. read -ra have <<<"$1"
    IFS=. read -ra want <<<"$2"
    for i in 0 1 2; do
        if ((${have[i]:-0} != ${want[i]:-0})); then
            ((${have[i]:-0} > ${want[i]:-0}))
            return
        fi
    done
}

# --- getting one -------------------------------------------------------------------------------------------------

# From the Go module into the cache. If that does not work it says why not and returns 1.
build_server() {
    local log=$work/go.log
    if ! find_go "$log"; then
        remember_missing nats-server "$(last_line "$log")"
        return 1
    fi
    # Asking for the module first finds out soon whether modules can be reached; building then takes minutes.
    if ! twice run_go 45 list -m "$server_module" >"$log" 2>&1; then
        remember_missing nats-server "Go modules cannot be reached: $(last_line "$log")"
        return 1
    fi
    say "building nats-server $server_version from its Go module (a minute or two, once)"
    if ! twice run_go 1200 install -trimpath -ldflags="-s -w" "$server_module" >"$log" 2>&1; then
        remember_missing nats-server "building $server_version failed: $(last_line "$log")"
        return 1
    fi
    put_server "$work/bin/nats-server" "$(built_server)" && rm -f "$cache/missing/nats-server"
}

# Sets `go` and `go_environment`. From 1.21 on, Go fetches the version it needs by itself. An older one, or the bare command
# out of Debian's package, can still be told to fetch that version, as it is a Go module too.
find_go() {
    local log=$1 version toolchain
    go_environment=()
    # Go's usual folders are used where there are any.
    [ -w "${HOME:-/nowhere}" ] || keep_go_in_work
    if go=$(command -v go); then
        version=$(cd "$work" && "$go" version) || { echo "$go does not run" >"$log"; return 1; }
        if [[ $version =~ go([0-9.]+) ]] && at_least "${BASH_REMATCH[1]}" 1.21; then return; fi
    else
        keep_go_in_work
        borrow_debian_go "$log" || return 1
    fi

    say "fetching Go $go_toolchain to build nats-server with"
    toolchain=golang.org/toolchain@v0.0.1-go$go_toolchain.$(run_go 10 env GOHOSTOS)-$(run_go 10 env GOHOSTARCH)
    if ! twice run_go 300 mod download "$toolchain" >"$log" 2>&1; then
        echo "Go modules cannot be reached: $(last_line "$log")" >>"$log"
        return 1
    fi
    # A module's files carry no modes: nothing is executable, and as all in the module cache nothing is writable.
    cp -R "$(run_go 10 env GOMODCACHE)/$toolchain" "$work/toolchain" &&
        chmod -R u+wx "$work/toolchain/bin" "$work/toolchain/pkg/tool" || return 1
    go=$work/toolchain/bin/go
    go_environment+=(GOROOT="$work/toolchain")
}

# For a machine without Go, or a user without a home: nothing is left behind but the server.
keep_go_in_work() { go_environment=(GOPATH="$work/go" GOMODCACHE="$work/go/pkg/mod" GOCACHE="$work/go/build"); }

run_go() {
    local limit=$1
    shift
    (cd "$work" && GOBIN=$work/bin CGO_ENABLED=0 GOTOOLCHAIN=${GOTOOLCHAIN:-auto} \
        run_for "$limit" env "${go_environment[@]}" "$go" "$@")
}

# A `go` without its standard library: it can fetch modules and build nothing.
borrow_debian_go() {
    local log=$1 package
    package=$(debian_dependency golang-go 'golang-[0-9.]*-go') || {
        echo "there is no Go on this machine, and no Debian package of it" >"$log"
        return 1
    }
    say "there is no Go on this machine: borrowing Debian's $package"
    mkdir -p "$work/borrowed/bin"
    go=$work/borrowed/bin/go
    debian_file "$package" './usr/lib/go-*/bin/go' "$go" "$log" || return 1
    go_environment+=(GOROOT="$work/borrowed")
}

unpack_debian_server() {
    local log=$work/debian.log
    if debian_file nats-server ./usr/sbin/nats-server "$work/nats-server" "$log" &&
        put_server "$work/nats-server" "$(debian_server)"; then
        rm -f "$cache/missing/nats-server-old"
    else
        remember_missing nats-server-old "$(last_line "$log")"
        return 1
    fi
}

# Checks that it runs on this machine, then moves it into its place in one step.
put_server() {
    local folder
    folder=$(dirname "$2")
    if ! version_of "$1" >/dev/null; then
        say "$1 does not run on this machine"
        return 1
    fi
    remove "$folder"
    mkdir "$work/ready" && mv "$1" "$work/ready/nats-server" && mv "$work/ready" "$folder" &&
        say "nats-server $(version_of "$2") is in $folder"
}
