#!/usr/bin/env bash
# The guest's first program on the host's files, which are read-only: guest.sh WORK
#
# Mounts what a job needs to be written to, runs WORK/job, and prints as the last line of the output
#
#   guest: the job ended with <status>
#
# A guest that does not print it has failed, whatever it printed before.
set -euo pipefail

work=$1
# Plain output, without carriage returns.
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C

ended() {
    echo "guest: the job ended with $?"
    # The last to close the line waits until all is sent.
    exec >/dev/console 2>&1
    busybox poweroff -nf
}
trap ended EXIT

echo "guest: Linux $(uname -r) after $(cut -d ' ' -f 1 /proc/uptime) s"
echo "$work/modprobe" >/proc/sys/kernel/modprobe
"$work/modprobe" -a virtio_blk loop
mkdir /dev/shm /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run

# The disk, or memory, becomes /tmp. Where that hides the project itself, it is shown there again.
scratch=/run/scratch
mkdir "$scratch"
if [ -e "$work/scratch.img" ]; then
    mount -t ext4 -o noatime /dev/vda "$scratch"
else
    mount -t tmpfs tmpfs "$scratch"
fi
chmod 1777 "$scratch"
while read -r needed; do
    case $needed in
    /tmp/*)
        mkdir -p "$scratch${needed#/tmp}"
        mount --bind "$needed" "$scratch${needed#/tmp}"
        ;;
    esac
done <"$work/needed"
mount --move "$scratch" /tmp
bash "$work/job"
