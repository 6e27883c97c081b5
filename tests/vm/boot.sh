#!/usr/bin/env bash
# Becomes a virtual machine: boot.sh KERNEL WORK [QEMU-ARGUMENT...]
#
# KERNEL is an unpacked kernel package. WORK is a directory of this run, which the guest sees under the same path, as it
# sees all of this machine's files, and can write to none of them. There must be
#
#   job           the script that the guest runs
#   scratch.img   the disk that becomes its /tmp, as /dev/vda; without it, /tmp is in memory
#
# and there will be console.log, what the kernel says, and output.log, what the job prints and at its end the line that
# guest.sh describes. The process is the guest: to kill it is to cut its power. It dies with its parent. What is made here
# for a boot stays in WORK, and the next boot from there uses it again.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
here=$(cd "$(dirname "$0")" && pwd)
kernel=$1
work=$2
shift 2
release=$(basename "$kernel"/lib/modules/*)

# An initramfs with what it takes to reach this machine's files; all else is read from there.
make_initramfs() {
    local root=$work/initramfs number=100 name module file
    mkdir -p "$root"/{bin,dev,modules,proc,root,sys}
    cp "$(command -v busybox)" "$root/bin/"
    for name in cat insmod mount sh switch_root; do
        ln -s busybox "$root/bin/$name"
    done
    cp "$here/init" "$root/"
    for module in virtio_pci 9pnet_virtio 9p; do
        modprobe -d "$kernel" -S "$release" --show-depends "$module"
    done | sed -nE 's/^insmod (.*\.ko(\.xz)?).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
        number=$((number + 1))
        case $file in
        *.xz) xz -dc "$file" >"$root/modules/$number.ko" ;;
        *) cp "$file" "$root/modules/$number.ko" ;;
        esac
    done
    (cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs.new"
    rm -r "$root"
    mv "$work/initramfs.new" "$work/initramfs.cpio"
}

# The kernel, unpacked: an emulated processor takes longer for that than for all the rest of a boot. One that is not packed
# with xz is left to unpack itself.
unpack_kernel() {
    local packed=$kernel/boot/vmlinuz-$release at
    at=$(LC_ALL=C grep -abo -m 1 -P '\xFD7zXZ\x00' "$packed" | head -n 1 | cut -d : -f 1) || true
    if [ -n "$at" ]; then
        # It complains of what lies behind.
        tail -c "+$((at + 1))" "$packed" | xz -dcq >"$work/vmlinux.new" 2>/dev/null || true
    fi
    if [ "$(head -c 4 "$work/vmlinux.new" 2>/dev/null)" != $'\x7fELF' ]; then
        cp "$packed" "$work/vmlinux.new"
    fi
    mv "$work/vmlinux.new" "$work/vmlinux"
}

[ -e "$work/initramfs.cpio" ] || make_initramfs
[ -e "$work/vmlinux" ] || unpack_kernel

# The kernel asks for modules by this program.
printf '#!/bin/sh\nexec modprobe -d "%s" "$@"\n' "$kernel" >"$work/modprobe"
chmod +x "$work/modprobe"

# A /dev/kvm on a processor without these is not one that Debian's kernel starts on.
accelerator=tcg
if [ -w /dev/kvm ] && grep -qwE 'vmx|svm' /proc/cpuinfo; then
    accelerator=kvm
fi

guest=(
    -machine pc -accel "$accelerator" -cpu max -smp 2 -m 2048
    -nodefaults -no-user-config -display none
    # A panic ends the guest, and so does an oops. The kernel would panic when a busy host holds up its first timer.
    -no-reboot -kernel "$work/vmlinux" -initrd "$work/initramfs.cpio"
    -append "console=ttyS0 quiet no_timer_check panic=-1 oops=panic -- \"$here/guest.sh\" \"$work\""
    -serial "file:$work/console.log" -serial "file:$work/output.log"
    # Files of several filesystems have different inode numbers in the guest as well.
    -fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
    -device "virtio-9p-pci,fsdev=root,mount_tag=root"
    "$@"
)
if [ -e "$work/scratch.img" ]; then
    # What the guest has flushed survives its end, not the end of this machine: nobody needs that.
    guest+=(-drive "if=virtio,file=$work/scratch.img,format=raw,cache=unsafe,discard=unmap")
fi
exec setpriv --pdeathsig KILL qemu-system-x86_64 "${guest[@]}" </dev/null
