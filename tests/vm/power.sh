#!/usr/bin/env bash
# Cuts the power of a virtual machine again and again while the driver works in it, and looks each time whether all that
# was acknowledged is there (tests/power/).
#
#   ORLOP_CUTS=N    so many cuts, 30 by default
#   ORLOP_SEED=N    makes the choices of an earlier run again; what happens at the same time as what stays open
#
# The pools lie on three disks that outlive the guest. Half of the cuts are made by the guest itself at the instant of an
# acknowledgement, the others are a SIGKILL for QEMU at some moment. Either way, what the guest had not yet given to its
# disks is gone; what it had given to them is not: the disks lose nothing.
#
# What the guest printed in its last boot is in target/vm/output.log, what its kernel said in target/vm/console.log. With
# ORLOP_KEEP=1 a run that failed also leaves disks and events in target/vm/power. Nothing else is left.
set -euo pipefail

# A boot that takes longer hangs, in seconds.
limit=180
# A cut that waits for something that does not come is made after so many seconds.
patience=20
cuts=${ORLOP_CUTS:-30}
seed=${ORLOP_SEED:-$RANDOM}

# shellcheck source=tests/vm/host.sh
. "$(dirname "$0")/host.sh"

# A number below N: below N. The answer is in `$chosen`, because a subshell would not go on in the sequence.
chosen=
below() { chosen=$((RANDOM % $1)); }

make_disks() {
    local name
    for name in ext4 xfs btrfs; do
        truncate -s 3G "$work/$name.img"
    done
    mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota "$work/ext4.img"
    mkfs.xfs -q "$work/xfs.img"
    mkfs.btrfs -q "$work/btrfs.img"
}

# The job of a boot: job END
job() {
    local program
    program=$(executable power)
    cat >"$work/job" <<JOB
set -e
"$work/modprobe" -a virtio_console
until port=\$(ls /dev/vport*p1 2>/dev/null); do sleep 0.1; done
export ORLOP_SEED=$((seed * 1000 + boot)) ORLOP_POWER_END=$1
export ORLOP_POWER_HISTORY="$work" ORLOP_POWER_PORT="\$port"
exec "$program" what_was_acknowledged_is_there --ignored --nocapture --color never
JOB
}

boot_guest() {
    local name
    local -a hardware=(
        -device isa-debug-exit,iobase=0xf4,iosize=0x04
        -device "virtio-serial-pci,id=serial"
        -chardev "file,id=events,path=$events"
        -device "virtserialport,bus=serial.0,nr=1,chardev=events"
    )
    for name in ext4 xfs btrfs; do
        hardware+=(-drive "if=virtio,file=$work/$name.img,format=raw,cache=writeback")
    done
    : >"$work/output.log"
    "$here/boot.sh" "$kernel" "$work" "${hardware[@]}" 9>&- &
    guest=$!
}

# Waits until a line with this text is in a file, or the guest has ended: wait_for FILE TEXT
wait_for() {
    local until=$((SECONDS + limit))
    while ! grep -qs "$2" "$1"; do
        kill -0 "$guest" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$until" ] || trouble "the guest hangs: it has not come to $2 within $limit s"
        sleep 0.05
    done
}

# Kills the guest after so many milliseconds, if it is still there: kill_after MILLISECONDS
kill_after() {
    local waited=0
    while [ "$waited" -lt "$1" ] && kill -0 "$guest" 2>/dev/null; do
        sleep 0.05
        waited=$((waited + 50))
    done
    kill -KILL "$guest" 2>/dev/null || true
}

# The guest has found something, or there is something wrong with it.
trouble() {
    cat "$work/output.log" >&2
    echo "ORLOP_SEED=$seed; this was boot $boot" >&2
    if [ -n "${ORLOP_KEEP:-}" ]; then
        kill -KILL "$guest" 2>/dev/null || true
        rm -rf "$cache/power-kept"
        mkdir "$cache/power-kept"
        cp --sparse=always "$work"/*.img "$work"/events.* "$cache/power-kept/"
        echo "kept: $cache/power-kept" >&2
    fi
    fail "$@"
}

# One boot that ends with a cut: cut HOW
cut_once() {
    local status=0
    boot_guest
    case $1 in
    acknowledged)
        if wait_for "$events" '^"working"$'; then
            kill_after $((patience * 1000))
        fi
        ;;
    working)
        below 2500
        if wait_for "$events" '^"working"$'; then
            kill_after "$chosen"
        fi
        ;;
    recovering)
        below 3000
        if wait_for "$work/output.log" '^guest: Linux'; then
            kill_after "$chosen"
        fi
        ;;
    esac
    wait "$guest" 2>/dev/null || status=$?
    # 85 is what isa-debug-exit makes of 42.
    case $status in
    85) at_acknowledgement=$((at_acknowledgement + 1)) ;;
    137) anywhere=$((anywhere + 1)) ;;
    *) trouble "the guest ended by itself (QEMU: $status)" ;;
    esac
    guest=
}

begin power
kernel=$(find_kernel)
cargo test --locked --no-run --test power --message-format=json >"$work/built.json"
printf '%s\n' "$PWD" "$cache" "$(dirname "$(dirname "$(executable power)")")" >"$work/needed"
make_disks
echo "ORLOP_SEED=$seed ORLOP_CUTS=$cuts"
RANDOM=$((seed % 32768))
at_acknowledgement=0
anywhere=0
started=$SECONDS
for ((boot = 1; boot <= cuts + 1; boot++)); do
    events=$work/events.$(printf '%06d' "$boot")
    if [ "$boot" -gt "$cuts" ]; then
        break
    fi
    below 12
    case $chosen in
    [0-5]) job acknowledged && cut_once acknowledged ;;
    [6-9]) job anywhere && cut_once working ;;
    *) job anywhere && cut_once recovering ;;
    esac
    grep -h '^the power is cut when' "$work/output.log" || true
    echo "cut $boot of $cuts, $((SECONDS - started)) s"
done

job orderly
boot_guest
timeout "$limit" tail -n +1 -s 0.2 -f --pid="$guest" "$work/output.log" >/dev/null 9>&- &
viewer=$!
wait "$viewer" || trouble "the guest did not end within $limit s"
viewer=
wait "$guest" || trouble "QEMU ended with status $?"
guest=
[ "$(tail -n 1 "$work/output.log")" = "guest: the job ended with 0" ] || trouble "something was lost"
grep '^power: ' "$work/output.log" || trouble "the guest did not say what it has looked at"
echo "$at_acknowledgement cuts at an acknowledgement, $anywhere anywhere; $((SECONDS - started)) s."
