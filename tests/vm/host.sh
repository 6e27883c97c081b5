# What the programs share that run virtual machines here: where things are, and an end that leaves nothing behind. To be
# sourced, by a program that then says `begin NAME`.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
cd "$here/../.."
PATH="$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin"
mkdir -p "${CARGO_TARGET_DIR:-target}/vm"
cache=$(cd "${CARGO_TARGET_DIR:-target}/vm" && pwd -P)
# What runs for this program and ends with it.
children=()

# Guests die with the process that started them.
finish() {
    local child
    # Without what bash says of processes that were killed.
    exec 2>/dev/null
    for child in "${children[@]}"; do
        kill -KILL "$child" || true
    done
    wait
    for log in console output; do
        [ ! -e "$work/$log.log" ] || mv "$work/$log.log" "$cache/"
    done
    rm -rf "$work"
}

fail() {
    printf 'tests/vm: %s\n' "$@" >&2
    if [ -s "$work/console.log" ]; then
        echo "The last that the guest's kernel said:" >&2
        tail -n 25 "$work/console.log" >&2
    fi
    exit 1
}

# Makes an empty directory for this run, `$work`, which goes with it: begin NAME
begin() {
    work=$cache/$1
    exec 9>"$cache/lock"
    flock -n 9 || fail "another run is going on in $cache"
    trap finish EXIT
    # Bash ends its `wait` at once for these, and so never leaves the guest behind.
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    rm -rf "$work"
    mkdir "$work"
}

# The directory of the kernel that guests have.
find_kernel() {
    printf '%s\n' "${ORLOP_VM_KERNEL:-$("$here/kernel.sh" "$cache")}"
}

# The executable of a test target, as cargo has told it in `$work/built.json`.
executable() {
    sed -nE "s/.*\"kind\":\[\"test\"\].*\"name\":\"$1\".*\"executable\":\"([^\"]+)\".*/\1/p" "$work/built.json"
}
