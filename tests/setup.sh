#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks (Debian or Ubuntu, as root); otherwise says exactly
# what to install. Silent when nothing is missing.
#
#   tests/setup.sh          all of it
#   tests/setup.sh build    what `make build` and `make lint` need
#   tests/setup.sh try      what `make try` needs: the above, and filesystems
#   tests/setup.sh e2e      what `make e2e` needs: the first, and what runs containers and builds images
#   tests/setup.sh deploy   what `make manifests` needs
#   tests/setup.sh image    what `make image` needs
#   tests/setup.sh vm       what `make vm` and `make power` need: the first, filesystems, and what boots a virtual machine
set -euo pipefail

cd "$(dirname "$0")/.."
# Where tools are that are installed by hand, and where ordinary users do not look.
PATH="$PATH:$HOME/.cargo/bin:/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin"
export PATH

level=${1:-test}
case $level in
build | try | test | e2e | vm | deploy | image) ;;
*)
    echo "usage: tests/setup.sh [build|try|test|e2e|vm|deploy|image]" >&2
    exit 2
    ;;
esac

problems=()
packages=()
apt_updated=no

is_root() { [ "$(id -u)" -eq 0 ]; }
has() { command -v "$1" >/dev/null 2>&1; }
# at_least WANTED HAVE
at_least() { printf '%s\n%s\n' "$1" "$2" | sort -V -C; }
# The value of a key in a TOML file: value FILE KEY
value() { sed -n "s/^$2 *= *\"\([^\"]*\)\".*/\1/p" "$1" | head -n 1; }

# need PROGRAM PACKAGE
need() {
    if ! has "$1" && [[ " ${packages[*]} " != *" $2 "* ]]; then
        packages+=("$2")
    fi
}

apt_update() {
    if [ "$apt_updated" = no ]; then
        apt-get update -q
        apt_updated=yes
    fi
}

# The version of a package that could be installed, or nothing.
candidate() {
    has apt-cache || return 0
    apt-cache policy "$1" 2>/dev/null | sed -nE 's/^ *Candidate: *([0-9]+:)?([0-9].*)$/\2/p'
}

install_packages() {
    [ ${#packages[@]} -gt 0 ] || return 0
    if is_root && has apt-get; then
        apt_update
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${packages[@]}"
    elif has apt-get; then
        problems+=("packages are missing: sudo apt-get update && sudo apt-get install -y ${packages[*]}")
    else
        problems+=("programs are missing; install what this system has for the Debian packages: ${packages[*]}")
    fi
}

check_rust() {
    local channel minimum version
    channel=$(value rust-toolchain.toml channel)
    minimum=$(value Cargo.toml rust-version)
    if ! has cargo && ! has rustup && is_root && has apt-get; then
        apt_update
        if [ -n "$(candidate rustup)" ]; then
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends rustup
        fi
    fi
    if has rustup; then
        # Both components answer only when they are there.
        if ! rustup run "$channel" cargo-clippy --version >/dev/null 2>&1 ||
            ! rustup run "$channel" rustfmt --version >/dev/null 2>&1; then
            rustup toolchain install "$channel" --profile minimal --component clippy --component rustfmt ||
                problems+=("Rust $channel cannot be fetched: rustup toolchain install $channel --component clippy,rustfmt")
        fi
        return
    fi
    local remedy="install rustup (https://rustup.rs): apt-get install -y curl ca-certificates; curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y"
    if ! has cargo; then
        problems+=("Rust is missing; $remedy")
        return
    fi
    version=$(cargo --version | cut -d ' ' -f 2)
    if ! at_least "$minimum" "$version"; then
        problems+=("cargo is $version, at least $minimum is needed; $remedy")
    elif ! has cargo-clippy || ! has rustfmt; then
        problems+=("cargo has no clippy or rustfmt; $remedy")
    fi
}

# The Go release that csi-sanity would be built with. Go 1.21 and later fetch the one that go.mod asks for.
go_version() { (cd csi-sanity && go env GOVERSION 2>/dev/null) | sed 's/^go//'; }

check_go() {
    local wanted have offered
    wanted=$(sed -n 's/^go \([0-9.]*\).*/\1/p' csi-sanity/go.mod)
    if ! has go && is_root && has apt-get; then
        apt_update
        offered=$(candidate golang-go)
        if [ -n "$offered" ] && at_least 1.21 "$offered"; then
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends golang-go
        fi
    fi
    local remedy="install Go $wanted or later from https://go.dev/dl/ into /usr/local/go"
    if ! has go; then
        problems+=("Go is missing (csi-sanity and the tests of deploy/ need it); $remedy")
        return
    fi
    have=$(go_version) || have=
    if [ -z "$have" ] || ! at_least "$wanted" "$have"; then
        have=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null || go version)
        problems+=("Go is ${have#go}, csi-sanity needs $wanted, and it cannot be fetched (GOTOOLCHAIN is $(GOTOOLCHAIN='' go env GOTOOLCHAIN 2>/dev/null || echo unknown)); $remedy")
    fi
}

check_loop() {
    [ -e /dev/loop-control ] && return
    if is_root && has modprobe && modprobe loop 2>/dev/null && [ -e /dev/loop-control ]; then
        return
    fi
    problems+=("/dev/loop-control is not there, so there are no loop devices: sudo modprobe loop (in a container: run it privileged, with the host's /dev)")
}

# Says what is missing and could not be installed.
report() {
    [ ${#problems[@]} -gt 0 ] || return 0
    echo "This machine is not ready:" >&2
    printf '  %s\n' "${problems[@]}" >&2
    exit 1
}

if [ "$level" = deploy ]; then
    check_go
    report
    exit
fi
need cc build-essential
if [ "$level" = image ] || [ "$level" = e2e ]; then
    need mmdebstrap mmdebstrap
    need buildah buildah
    need unshare util-linux
    # The keys of Debian's packages, on Ubuntu.
    [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || packages+=(debian-archive-keyring)
elif [ "$level" != build ]; then
    need mke2fs e2fsprogs
    need e2fsck e2fsprogs
    need resize2fs e2fsprogs
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
    need mount mount
    need losetup mount
    need unshare util-linux
fi
if [ "$level" = vm ]; then
    need qemu-system-x86_64 qemu-system-x86
    need modprobe kmod
    need setpriv util-linux
    need xz xz-utils
    # The guest has no libraries when it runs it.
    if ! has busybox || ldd "$(command -v busybox)" >/dev/null 2>&1; then
        packages+=(busybox-static)
    fi
fi
if [ "$level" = e2e ]; then
    need containerd containerd
    need runc runc
    need /usr/lib/cni/bridge containernetworking-plugins
    need ip iproute2
    need nsenter util-linux
    need losetup mount
    need chattr e2fsprogs
    need pgrep procps
    # Images have no libraries.
    if ! [ -x /bin/busybox ] || ldd /bin/busybox >/dev/null 2>&1; then
        packages+=(busybox-static)
    fi
fi
# rustup and Go fetch over TLS.
if has apt-get && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then
    packages+=(ca-certificates)
fi
install_packages
check_rust
# The guest has loop devices of its own.
if [ "$level" = try ] || [ "$level" = test ] || [ "$level" = e2e ]; then
    check_loop
fi
if [ "$level" = test ] || [ "$level" = e2e ]; then
    check_go
fi

report
