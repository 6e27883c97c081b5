#!/usr/bin/env bash
# Becomes a virtual machine: boot.sh KERNEL WORK
#
# KERNEL is an unpacked kernel package. WORK is a directory of this run, which the guest sees under the same path, as it
# sees all of this machine's files, and can write to none of them. There must be
#
#   job           the script that the guest runs
#   scratch.img   the disk that it gets, as /dev/vda
#
# and there will be console.log, what the kernel says, and output.log, what the job prints and at its end the line that
# guest.sh describes. The process is the guest: to kill it is to cut its power. It dies with its parent.
set -euo pipefail

PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
here=$(cd "$(dirname "$0")" && pwd)
kernel=$1
work=$2
release=$(basename "$kernel"/lib/modules/*)

# An initramfs with what it takes to reach this machine's files; all else is read from there.
root=$work/initramfs
mkdir -p "$root"/{bin,dev,modules,proc,root,sys}
cp "$(command -v busybox)" "$root/bin/"
for name in cat insmod mount sh switch_root; do
    ln -s busybox "$root/bin/$name"
done
cp "$here/init" "$root/"
number=100
for module in virtio_pci 9pnet_virtio 9p; do
    modprobe -d "$kernel" -S "$release" --show-depends "$module"
done | sed -nE 's/^insmod (.*\.ko(\.xz)?).*/\1/p' | awk '!seen[$0]++' | while read -r file; do
    number=$((number + 1))
    case $file in
    *.xz) xz -dc "$file" >"$root/modules/$number.ko" ;;
    *) cp "$file" "$root/modules/$number.ko" ;;
    esac
done
(cd "$root" && find . | busybox cpio -o -H newc 2>/dev/null) >"$work/initramfs.cpio"
rm -r "$root"

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
    # A panic ends the guest, and so does an oops.
    -no-reboot -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initramfs.cpio"
    -append "console=ttyS0 quiet panic=-1 oops=panic -- \"$here/guest.sh\" \"$work\""
    -serial "file:$work/console.log" -serial "file:$work/output.log"
    # Files of several filesystems have different inode numbers in the guest as well.
    -fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
    -device "virtio-9p-pci,fsdev=root,mount_tag=root"
    # What the guest has flushed survives its end, not the end of this machine: nobody needs that.
    -drive "if=virtio,file=$work/scratch.img,format=raw,cache=unsafe,discard=unmap"
)
exec setpriv --pdeathsig KILL qemu-system-x86_64 "${guest[@]}" </dev/null
