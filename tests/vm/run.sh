#!/usr/bin/env bash
# Runs the tests that are ignored because this machine's kernel lacks something, and some others, in a virtual machine
# with Debian's kernel:
#
#   tests/vm/run.sh              all of these
#   tests/vm/run.sh FILTER...    only tests with this in their names, whether ignored or not
#
# ORLOP_VM_KERNEL names the directory of an unpacked kernel package that is to be used instead of what kernel.sh fetches.
# Succeeds only when every test that is meant has run there and passed. What they printed is in target/vm/output.log, what the
# kernel said in target/vm/console.log. Nothing else is left, and nothing is changed outside of target/.
set -euo pipefail

# A guest that takes longer hangs.
limit=900

# What the guest runs: what is ignored elsewhere, what a kernel of another age may do differently, and what takes another
# way where no capability is missing.
selection() {
    plan privileged_host --ignored
    plan privileged_driver --ignored
    plan privileged_host filesystems:: loops:: mounts::
}

# shellcheck source=tests/vm/host.sh
. "$(dirname "$0")/host.sh"

# count TARGET ARGUMENT...
count() {
    local program
    program=$(executable "$1")
    shift
    "$program" "$@" --list --format terse | grep -c ': test$' || true
}

# Adds tests to the guest's job, and their number to what is expected: plan TARGET ARGUMENT...
expected=0
plan() {
    local program added
    added=$(count "$@")
    [ "$added" -gt 0 ] || fail "no test is meant by: $*"
    expected=$((expected + added))
    program=$(executable "$1")
    shift
    printf '%q ' "$program" "$@" --color never >>"$work/job"
    echo '|| status=1' >>"$work/job"
}

# The number of tests that the guest reports. Those that it left out of the selection are the ignored ones.
reported() {
    awk '/^test result: ok\. [0-9]+ passed; 0 failed; [0-9]+ ignored;/ { sum += $4 + $8 } END { print sum + 0 }' \
        "$work/output.log"
}

begin run
kernel=$(find_kernel)
cargo test --locked --no-run --test privileged_host --test privileged_driver --message-format=json >"$work/built.json"
echo 'status=0' >"$work/job"
if [ $# -eq 0 ]; then
    selection
else
    for target in privileged_host privileged_driver; do
        if [ "$(count "$target" "$@")" -gt 0 ]; then
            plan "$target" --include-ignored "$@"
        fi
    done
    [ "$expected" -gt 0 ] || fail "no test is meant by: $*"
fi
# shellcheck disable=SC2016 # The guest has it.
echo 'exit "$status"' >>"$work/job"
# The tests are in deps/, the driver is beside that.
printf '%s\n' "$PWD" "$cache" "$(dirname "$(dirname "$(executable privileged_host)")")" >"$work/needed"

# What the tests write goes to a filesystem of its own, made here, where that takes no time.
truncate -s 16G "$work/scratch.img"
mke2fs -q -t ext4 -T largefile -E lazy_itable_init=0 "$work/scratch.img"

started=$SECONDS
: >"$work/output.log"
"$here/boot.sh" "$kernel" "$work" 9>&- &
guest=$!
children+=("$guest")
timeout "$limit" tail -n +1 -s 0.2 -f --pid="$guest" "$work/output.log" 9>&- &
viewer=$!
children+=("$viewer")
wait "$viewer" || fail "the guest did not end within $limit s"
wait "$guest" || fail "QEMU ended with status $?"
children=()

[ "$(tail -n 1 "$work/output.log")" = "guest: the job ended with 0" ] || fail "the tests did not pass in the guest"
[ "$(reported)" -eq "$expected" ] || fail "the guest ran $(reported) of $expected tests"
echo "All $expected tests passed in the guest, $((SECONDS - started)) s after its start."
