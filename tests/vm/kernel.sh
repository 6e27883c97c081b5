#!/usr/bin/env bash
# Prints the directory of Debian's kernel and its modules, for virtual machines: kernel.sh CACHE
#
# The package is not installed, which would make an initrd and a boot entry of this machine; it is unpacked in CACHE,
# under its version. What an older version left there is removed.
set -euo pipefail

cache=$1
unfinished=
trap 'rm -rf "$unfinished"' EXIT
trap 'exit 1' HUP INT TERM

give_up() {
    printf '%s\n' "$@" >&2
    exit 1
}

# The package that Debian's linux-image-amd64 stands for, as name=version; nothing where there is none.
newest() {
    apt-cache show --no-all-versions linux-image-amd64 2>/dev/null |
        sed -nE 's/^Depends: (.*, )?(linux-image-[^ ,]+-amd64) \(= ([^)]+)\).*/\2=\3/p'
}

fetch() {
    # Root's downloads would otherwise be made by a user that may not write here, and say so.
    (cd "$unfinished" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2)
}

package=
if command -v apt-get >/dev/null; then
    package=$(newest)
    if [ -z "$package" ] && [ "$(id -u)" -eq 0 ]; then
        apt-get update -q >&2
        package=$(newest)
    fi
fi
if [ -z "$package" ]; then
    give_up "Debian's package linux-image-amd64 is not offered here: run apt-get update on Debian (amd64)." \
        "Elsewhere, unpack Debian's linux-image-<version>-amd64 (dpkg-deb -x) and name the directory in ORLOP_VM_KERNEL"
fi

kernel=$cache/kernel-${package#*=}
if [ ! -e "$kernel" ]; then
    mkdir -p "$cache"
    unfinished=$(mktemp -d "$cache/unfinished.XXXXXX")
    if ! fetch; then
        # The lists may be older than what the mirror still has.
        [ "$(id -u)" -eq 0 ] || give_up "$package cannot be fetched; try: sudo apt-get update"
        apt-get update -q >&2
        package=$(newest)
        kernel=$cache/kernel-${package#*=}
        fetch
    fi
    dpkg-deb -x "$unfinished"/*.deb "$unfinished/kernel"
    for modules in "$unfinished"/kernel/lib/modules/*; do
        depmod -b "$unfinished/kernel" "${modules##*/}"
    done
    rm -rf "$cache"/kernel-*
    mv "$unfinished/kernel" "$kernel"
fi
printf '%s\n' "$kernel"
