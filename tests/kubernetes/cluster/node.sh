# Run by bash -c, with what to do as its first argument.
#
#   init DIR BIN   become the first process of a node: it is started in mount, network and PID namespaces of its own
#   join COMMAND…  run a command among the node's processes: it is started in the node's namespaces by nsenter
#
# What is made here is gone with the namespaces, but for the control groups, which cluster.Sweep removes.
set -euo pipefail

# The directories of the control groups that this process is in, one for each hierarchy.
own_groups() {
    local controllers path
    while IFS=: read -r _ controllers path; do
        if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
            # Below the root: only there may processes and groups be side by side.
            [ -n "$controllers" ] || echo /sys/fs/cgroup
        elif [ -n "$controllers" ]; then
            controllers=/sys/fs/cgroup/${controllers#name=}
            echo "${controllers}${path%/}"
        fi
    done </proc/self/cgroup
}

enter_groups() {
    local parent file
    for parent in $(own_groups); do
        mkdir "$parent/$1"
        echo "$parent/$1" >>"$2"
        # A new group of this hierarchy may use no processor and no memory.
        for file in cpuset.cpus cpuset.mems; do
            if [ -e "$parent/$file" ] && [ ! -e "$parent/cgroup.controllers" ]; then
                cat "$parent/$file" >"$parent/$1/$file"
            fi
        done
        echo 0 >"$parent/$1/cgroup.procs"
    done
}

mount_groups() {
    local controllers path hierarchies=() hierarchy
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mount -t sysfs sysfs /sys
        mount -t cgroup2 cgroup /sys/fs/cgroup
        mkdir /sys/fs/cgroup/init
        echo 0 >/sys/fs/cgroup/init/cgroup.procs
        return
    fi
    while IFS=: read -r _ controllers path; do
        [ -z "$controllers" ] || hierarchies+=("$controllers")
    done </proc/self/cgroup
    mount -t sysfs sysfs /sys
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for hierarchy in "${hierarchies[@]}"; do
        path=/sys/fs/cgroup/${hierarchy#name=}
        mkdir "$path"
        case $hierarchy in
        name=*) mount -t cgroup -o "none,$hierarchy" cgroup "$path" ;;
        *) mount -t cgroup -o "$hierarchy" cgroup "$path" ;;
        esac
    done
}

# kubelet wants these values and would set them for the whole machine; it finds them here instead.
show_tunables() {
    local setting file
    for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
        kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        file=/run/tunables/${setting%=*}
        mkdir -p "$(dirname "$file")"
        echo "${setting#*=}" >"$file"
        mount --bind "$file" "/proc/sys/${setting%=*}"
    done
}

case $1 in
init)
    mount --make-rprivate /
    enter_groups "$(basename "$2")" "$2/cgroups"
    exec unshare --cgroup bash -c "$BASH_EXECUTION_STRING" node.sh inside "$2" "$3"
    ;;
inside)
    # What privileged pods mount must reach kubelet, and nothing but it.
    mount --make-rshared /
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/node /run/bin
    mount --bind "$2" /run/node
    mount --bind "$3" /run/bin
    # Everything of a node that outlives a reboot has its usual path, and is in the run's directory.
    mkdir -p "$2/var/lib" "$2/var/log" "$2/var/tmp"
    ln -sfn /run "$2/var/run"
    mount --bind /run/node/var /var
    mount -t proc proc /proc
    mount_groups
    show_tunables
    ip link set lo up
    ip address add 10.96.0.1/32 dev lo
    # Without an address of its own it takes that of some pod, and has another one when the pod ends: nobody reaches it then.
    ip link add cni0 address 0a:58:0a:58:00:01 type bridge
    ip address add 10.88.0.1/24 dev cni0
    ip link set cni0 up
    touch /run/node/up
    # Nothing is ever written: this ends when whoever holds the other end does. Meanwhile bash reaps orphans.
    read -r _ </run/node/alive || true
    ;;
join)
    shift
    if [ -d /sys/fs/cgroup/init ]; then
        echo 0 >/sys/fs/cgroup/init/cgroup.procs
    else
        for procs in /sys/fs/cgroup/*/cgroup.procs; do
            echo 0 >"$procs"
        done
    fi
    exec "$@"
    ;;
esac
