#!/usr/bin/env bash
# Puts together the root of the driver's image: the driver, the programs that it runs (src/host/linux/command.rs), and what
# of a Debian system these load. No shell, no package manager; the licences stay, and what scanners ask dpkg for.
#
#   collect.sh BINARY FROM TO    FROM: the root of a Debian system with e2fsprogs, xfsprogs and btrfs-progs
#
# Nothing of FROM is run, so it may be of another architecture.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
binary=$1 from=${2%/} to=${3%/}
programs=(mke2fs e2fsck resize2fs tune2fs mkfs.xfs xfs_db mkfs.btrfs btrfstune)

fail() { echo "collect.sh: $*" >&2; exit 1; }
command -v readelf >/dev/null || fail "readelf is missing: apt-get install -y binutils"
[ -x "$binary" ] || fail "$binary is not there, or no program"
[ ! -e "$to" ] || [ -z "$(ls -A "$to")" ] || fail "$to is not empty"

mkdir -p "$to"/usr/{bin,sbin,lib,lib64} "$to"/{dev,etc,proc,sys,tmp,run,var/lib/dpkg/status.d}
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$to/$directory"; done

taken=() # paths in FROM
# find_in NAME DIRECTORY…: the first that there is, whichever of / and /usr its package puts it under.
find_in() {
    local name=$1 directory
    shift
    for directory in "$@"; do
        if [ -e "$from$directory/$name" ]; then
            echo "$directory/$name"
            return
        fi
    done
    return 1
}
# take PATH: into the same place below /usr, its links followed.
take() {
    local target=$to/usr/${1#/}
    target=${target/"/usr/usr/"//usr/}
    taken+=("$1")
    mkdir -p "$(dirname "$target")"
    cp -L --preserve=mode,timestamps "$from$1" "$target"
    load "$target"
}
# load FILE: takes the libraries and the loader that it names.
load() {
    local name path
    for name in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
        [ -z "${libraries[$name]:-}" ] || continue
        path=$(find_in "$name" "${places[@]}") || fail "$1 needs $name, which is not in $from"
        libraries[$name]=$path
        take "$path"
    done
    name=$(readelf -l "$1" | sed -n 's/.*program interpreter: \(.*\)\]/\1/p')
    # By its whole path: libraries name the loader too, and find it in another place.
    if [ -n "$name" ] && [ -z "${libraries[$name]:-}" ]; then
        [ -e "$from$name" ] || fail "$1 needs $name, which is not in $from: is it for another architecture?"
        libraries[$name]=$name
        take "$name"
    fi
}

declare -A libraries=()
places=()
for place in "$from"/lib/*-linux-gnu* "$from"/usr/lib/*-linux-gnu*; do
    [ ! -d "$place" ] || places+=("${place#"$from"}")
done
install -m 0755 "$binary" "$to/usr/bin/orlop"
load "$to/usr/bin/orlop"
for program in "${programs[@]}"; do
    path=$(find_in "$program" /usr/sbin /usr/bin /sbin /bin) || fail "$program is not in $from"
    take "$path"
done
cp -L "$from/etc/mke2fs.conf" "$to/etc/"
# Where e2fsprogs looks whether something is mounted.
ln -s ../proc/self/mounts "$to/etc/mtab"
cp -L "$(ls "$from"/usr/lib/os-release "$from"/etc/os-release 2>/dev/null | head -n 1)" "$to/etc/os-release"

# The packages that these are of: their licences, and their entries for scanners.
lists=$from/var/lib/dpkg/info
for path in "${taken[@]}" /etc/mke2fs.conf; do
    # A package may name the path with or without /usr, and the file behind a link.
    real=$(readlink -f "$from$path"); real=${real#"$from"}
    grep -lxF -e "$path" -e "/usr$path" -e "${path#/usr}" -e "$real" -e "${real#/usr}" "$lists"/*.list || fail "no package has $path"
done | sed 's|.*/||; s|\.list$||; s|:.*||' | sort -u | while read -r package; do
    mkdir -p "$to/usr/share/doc/$package"
    # Some packages share the directory of another one.
    cp -L "$from/usr/share/doc/$package/copyright" "$to/usr/share/doc/$package/"
    awk -v RS= -v ORS='\n' -v package="$package" '$0 ~ "(^|\n)Package: " package "(\n|$)"' "$from/var/lib/dpkg/status" \
        >"$to/var/lib/dpkg/status.d/$package"
done
chmod -R go-w "$to"
chmod 1777 "$to/tmp"
