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
# When something was lost, what the guest printed in its last boot is in target/vm/output.log, what its kernel said in
# target/vm/console.log, and with ORLOP_KEEP=1 its disks and what it had acknowledged in target/vm/power-kept. Nothing else
# is left.
set -euo pipefail

# A boot that takes longer hangs, in seconds.
limit=240
# A cut that waits for something that does not come is made after so many seconds.
patience=20
cuts=${ORLOP_CUTS:-30}
seed=${ORLOP_SEED:-$RANDOM}
# As many guests as processors, each with one of its own and with disks of its own: an emulated second processor costs
# more than it does.
lanes=$(nproc)
[ "$lanes" -le "$cuts" ] || lanes=$cuts
lane=

# shellcheck source=tests/vm/host.sh
. "$(dirname "$0")/host.sh"

# A number below N, in `$chosen`: a subshell would not go on in the sequence.
chosen=
below() { chosen=$((RANDOM % $1)); }

make_disks() {
    local name
    for name in ext4 xfs btrfs; do
        truncate -s 3G "$lane/$name.img"
    done
    mke2fs -q -t ext4 -O quota,project -E quotatype=prjquota "$lane/ext4.img"
    mkfs.xfs -q "$lane/xfs.img"
    mkfs.btrfs -q "$lane/btrfs.img" >/dev/null
}

# What the guest does in this boot: job END
job() {
    cat >"$lane/job" <<JOB
set -e
"$lane/modprobe" -a virtio_console
until port=\$(ls /dev/vport*p1 2>/dev/null); do sleep 0.1; done
export ORLOP_SEED=$(((seed * 100 + number) * 10000 + boot)) ORLOP_POWER_END=$1
export ORLOP_POWER_HISTORY="$lane" ORLOP_POWER_PORT="\$port"
exec "$program" what_was_acknowledged_is_there --ignored --nocapture --color never
JOB
}

start_guest() {
    local name
    local -a hardware=(
        -smp 1 -m 1024
        -device "isa-debug-exit,iobase=0xf4,iosize=0x04"
        -device "virtio-serial-pci,id=serial"
        -chardev "file,id=events,path=$events"
        -device "virtserialport,bus=serial.0,nr=1,chardev=events"
    )
    for name in ext4 xfs btrfs; do
        hardware+=(-drive "if=virtio,file=$lane/$name.img,format=raw,cache=writeback")
    done
    : >"$lane/output.log"
    "$here/boot.sh" "$kernel" "$lane" "${hardware[@]}" 9>&- &
    guest=$!
    deadline=$((SECONDS + limit))
}

# Something was lost, or there is something wrong with the guest. The others of this run are ended by the main program.
trouble() {
    cat "$lane/output.log" >&2
    echo "ORLOP_SEED=$seed, lane $number, boot $boot" >&2
    kill -KILL "$guest" 2>/dev/null || true
    cp "$lane"/{output,console}.log "$work/"
    if [ -n "${ORLOP_KEEP:-}" ]; then
        rm -rf "$cache/power-kept"
        cp -r --sparse=always "$lane" "$cache/power-kept"
        echo "kept: $cache/power-kept" >&2
    fi
    (fail "$@") || true
    # The main program may be waiting for another lane.
    kill -TERM $$
    exit 1
}

# Waits until a file has a line with this text, or the guest has ended: wait_for FILE TEXT
wait_for() {
    until grep -qs "$2" "$1"; do
        kill -0 "$guest" 2>/dev/null || return 0
        [ "$SECONDS" -lt "$deadline" ] || trouble "the guest hangs: no \"$2\" within $limit s"
        sleep 0.05
    done
}

# Kills the guest after so many milliseconds, unless it has ended: kill_after MILLISECONDS
kill_after() {
    local left=$1
    while [ "$left" -gt 0 ] && kill -0 "$guest" 2>/dev/null; do
        sleep 0.05
        left=$((left - 50))
    done
    kill -KILL "$guest" 2>/dev/null || true
}

# A boot that ends with a cut: cut HOW
cut_once() {
    local status=0
    start_guest
    case $1 in
    acknowledged)
        wait_for "$events" '^"working"$'
        kill_after $((patience * 1000))
        ;;
    working)
        wait_for "$events" '^"working"$'
        below 2500
        kill_after "$chosen"
        ;;
    recovering)
        # Before its disks are mounted.
        wait_for "$events" '^"boot"$'
        below 4000
        kill_after "$chosen"
        ;;
    esac
    wait "$guest" 2>/dev/null || status=$?
    # 85 is what isa-debug-exit makes of 42.
    case $status in
    85) echo acknowledged >>"$lane/cuts" ;;
    137) echo anywhere >>"$lane/cuts" ;;
    *) trouble "the guest ended by itself (QEMU: $status)" ;;
    esac
}

# The last boot, which looks at everything and stops in good order.
orderly_end() {
    start_guest
    wait_for "$lane/output.log" '^guest: the job ended'
    wait "$guest" || trouble "QEMU ended with status $?"
    [ "$(tail -n 1 "$lane/output.log")" = "guest: the job ended with 0" ] || trouble "something was lost"
    grep '^power: ' "$lane/output.log" >"$lane/summary" || trouble "the guest did not say what it has seen"
}

# The life of one set of disks, in a process of its own: live NUMBER CUTS
live() {
    number=$1
    lane=$work/lane-$number
    RANDOM=$(((seed + 7919 * number) % 32768))
    mkdir "$lane"
    cp "$work/needed" "$lane/"
    make_disks
    for ((boot = 1; boot <= $2; boot++)); do
        events=$lane/events.$(printf '%06d' "$boot")
        below 12
        case $chosen in
        [0-5]) job acknowledged && cut_once acknowledged ;;
        [6-9]) job anywhere && cut_once working ;;
        *) job anywhere && cut_once recovering ;;
        esac
        echo "lane $number: cut $boot of $2, $((SECONDS - started)) s"
    done
    events=$lane/events.$(printf '%06d' "$boot")
    job orderly
    orderly_end
}

begin power
kernel=$(find_kernel)
cargo test --locked --no-run --test power --message-format=json >"$work/built.json"
program=$(executable power)
printf '%s\n' "$PWD" "$cache" "$kernel" "$(dirname "$(dirname "$program")")" >"$work/needed"
echo "ORLOP_SEED=$seed ORLOP_CUTS=$cuts"
started=$SECONDS
for ((n = 1; n <= lanes; n++)); do
    live "$n" $((cuts / lanes + (n <= cuts % lanes))) 9>&- &
    children+=("$!")
done
for child in "${children[@]}"; do
    wait "$child" || exit 1
done
children=()

count() { cat "$work"/lane-*/cuts | grep -c "$1" || true; }
# Of each lane: power: N cuts, N acknowledged, N in-flight
awk -v seconds=$((SECONDS - started)) -v at="$(count acknowledged)" -v anywhere="$(count anywhere)" '
    { cuts += $2; acknowledged += $4; in_flight += $6 }
    END {
        printf "%d power cuts, each of three filesystems and a managed pool (%d cuts of filesystems): ", cuts, 4 * cuts
        printf "%d at the instant of an acknowledgement, %d at any moment.\n", at, anywhere
        printf "%d acknowledged operations were looked at, %d were in flight at a cut. ", acknowledged, in_flight
        printf "Nothing was lost, in %d s.\n", seconds
    }' "$work"/lane-*/summary
