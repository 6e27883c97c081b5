#!/usr/bin/env bash
# Builds the driver's image from Debian's packages, without an image registry (as root), tries what is in it, and writes an
# archive for `ctr images import`, `docker load`, `podman load` or `kind load image-archive`.
#
#   deploy/image/build.sh [ARCHIVE]     target/image/orlop.tar if it is not given
#
#   ORLOP_BIN   the driver; without it `cargo build --release` makes it
#   IMAGE       the image's name; orlop:<version> without it
#   SUITE       the release of Debian to take from (bookworm); one whose libc is not older than this machine's
set -euo pipefail

cd "$(dirname "$0")/../.."
archive=$(realpath -m "${1:-target/image/orlop.tar}")
suite=${SUITE:-bookworm}
version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
image=${IMAGE:-orlop:$version}

binary=${ORLOP_BIN:-}
if [ -z "$binary" ]; then
    cargo build --release --locked
    binary=${CARGO_TARGET_DIR:-target}/release/orlop
fi

[ "$(id -u)" -eq 0 ] || { echo "build.sh: it makes a root of Debian and mounts in it: run it as root" >&2; exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/orlop-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include=e2fsprogs,xfsprogs,btrfs-progs \
    "$suite" "$work/debian"
deploy/image/collect.sh "$binary" "$work/debian" "$work/root"

# What the driver will run there works there. The mounts for it are in a namespace that ends with it.
truncate -s 512M "$work/root/tmp/try.img"
unshare --mount --propagation private bash -euc '
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    while read -r -a command; do
        chroot "$1" "${command[@]}" </dev/null >"$1.out" 2>&1 || {
            echo "build.sh: ${command[*]}: does not work in an image of $2 (see SUITE): $(cat "$1.out")" >&2
            exit 1
        }
    done' try "$work/root" "$suite" <<'END'
/usr/bin/orlop --version
/usr/sbin/mke2fs -q -t ext4 -F /tmp/try.img
/usr/sbin/e2fsck -fp /tmp/try.img
/usr/sbin/tune2fs -U random /tmp/try.img
/usr/sbin/resize2fs /tmp/try.img 600M
/usr/sbin/mkfs.xfs -q -f /tmp/try.img
/usr/sbin/xfs_db -x -c uuid /tmp/try.img
/usr/sbin/mkfs.btrfs -q -f /tmp/try.img
/usr/bin/btrfstune -m /tmp/try.img
END
rm "$work/root/tmp/try.img"

cat >"$work/Containerfile" <<END
FROM scratch
COPY root /
LABEL org.opencontainers.image.title=orlop org.opencontainers.image.version=$version org.opencontainers.image.licenses=Apache-2.0
ENTRYPOINT ["/usr/bin/orlop"]
END
mkdir -p "$(dirname "$archive")"
rm -f "$archive"
store=(--storage-driver vfs --root "$work/store" --runroot "$work/run")
buildah "${store[@]}" build --quiet --isolation chroot --timestamp 0 --tag "$image" "$work" >/dev/null
buildah "${store[@]}" push --quiet "$image" "docker-archive:$archive:$image"
echo "$image: $(du -sh --apparent-size "$work/root" | cut -f 1) in $(find "$work/root" -type f | wc -l) files, archive $archive ($(du -h --apparent-size "$archive" | cut -f 1))"
