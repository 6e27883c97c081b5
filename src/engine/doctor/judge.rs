//! From what was seen to verdicts. Pure.

use jiff::{SignedDuration, Timestamp};

use super::pools::{self, PoolSight, PoolState};
use super::sight::{Place, Sight, SocketSight};
use super::{Diagnosis, Verdict};
use crate::host::linux::machine::{Machine, Support, Tool};
use crate::volume::Filesystem;

/// mount_setattr came with it.
const OLDEST: (u32, u32) = (5, 12);
/// The bits of capabilities (capabilities(7)).
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
/// No clock that is right shows a time before the driver was written (2026-01-01T00:00:00Z).
const EPOCH: i64 = 1_767_225_600;
/// So much may a record be ahead of the clock.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// All verdicts, in the order of the checklist.
pub(super) fn judge(sight: &Sight) -> Vec<Diagnosis> {
    let mut said = vec![kernel(&sight.machine), privileges(&sight.machine), loops(&sight.machine)];
    said.extend(sight.machine.filesystems.iter().map(|(fs, support)| filesystem(*fs, *support)));
    said.push(ext4_quota(sight.machine.ext4_quota));
    for package in ["e2fsprogs", "xfsprogs", "btrfs-progs"] {
        said.push(tools(package, sight));
    }
    for pool in &sight.pools {
        pools::judge(pool, &mut said);
    }
    said.push(idle_loops(sight));
    said.push(kubelet(&sight.kubelet));
    said.extend(root(sight));
    said.push(frozen(sight));
    said.extend(sight.socket.as_ref().map(socket));
    said.push(clock(sight));
    said
}

/// Major and minor of `6.1.0-13-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(machine: &Machine) -> Diagnosis {
    let what = format!("Linux {}", machine.release);
    match version(&machine.release) {
        Some(version) if version >= OLDEST => Diagnosis::pass("kernel", what),
        Some(_) => Diagnosis::fail("kernel", what, "run Linux 5.12 or later"),
        None => Diagnosis::warn(
            "kernel",
            format!("{what}: no version that is known"),
            "run Linux 5.12 or later",
        ),
    }
}

fn privileges(machine: &Machine) -> Diagnosis {
    let has = |bit: u32| machine.capabilities >> bit & 1 == 1;
    let check = "privileges";
    if !has(CAP_SYS_ADMIN) {
        return Diagnosis::fail(
            check,
            "no CAP_SYS_ADMIN: nothing can be mounted, attached or frozen",
            "run as root, or in a privileged container",
        );
    }
    if !has(CAP_SYS_RESOURCE) {
        return Diagnosis::warn(
            check,
            "no CAP_SYS_RESOURCE: a mounted ext4 grows at its next stage only",
            "give the container CAP_SYS_RESOURCE",
        );
    }
    Diagnosis::pass(check, "mounts, loop devices and freezes are allowed")
}

fn loops(machine: &Machine) -> Diagnosis {
    if !machine.has_loop_control {
        return Diagnosis::fail(
            "loop devices",
            "/dev/loop-control is not there",
            "load the module (modprobe loop); in a container, mount the host's /dev",
        );
    }
    let most = machine.max_loop.map_or_else(String::new, |most| format!(" (max_loop={most})"));
    Diagnosis::pass("loop devices", format!("made as they are needed{most}"))
}

fn filesystem(filesystem: Filesystem, support: Support) -> Diagnosis {
    let check = format!("{filesystem} in the kernel");
    match support {
        Support::Here => Diagnosis::pass(check, "can be mounted"),
        Support::Module => Diagnosis::pass(check, "its module is loaded by the first mount"),
        Support::Absent => Diagnosis::warn(
            check,
            format!("cannot be mounted: no volumes and pools with {filesystem}"),
            format!("run a kernel with {filesystem}"),
        ),
        Support::Unknown => Diagnosis::warn(
            check,
            "not loaded, and the kernel's modules cannot be seen from here",
            format!("modprobe {filesystem} on the host"),
        ),
    }
}

fn ext4_quota(support: Support) -> Diagnosis {
    let check = "ext4 project quotas";
    match support {
        Support::Here | Support::Module => Diagnosis::pass(check, "the kernel has quota_v2"),
        Support::Absent => Diagnosis::warn(
            check,
            "the kernel has no quota_v2: directories on ext4 have no limits",
            "use XFS or btrfs for pools with hostpath volumes",
        ),
        Support::Unknown => Diagnosis::warn(
            check,
            "quota_v2 is not loaded, and the kernel's modules cannot be seen from here",
            "where pools are on ext4: modprobe quota_v2 on the host",
        ),
    }
}

fn filesystem_of(package: &str) -> Filesystem {
    match package {
        "xfsprogs" => Filesystem::Xfs,
        "btrfs-progs" => Filesystem::Btrfs,
        _ => Filesystem::Ext4,
    }
}

fn tools(package: &'static str, sight: &Sight) -> Diagnosis {
    let tools = sight.machine.tools.iter().filter(|tool| tool.package == package);
    let (here, missing): (Vec<&Tool>, Vec<&Tool>) = tools.partition(|tool| tool.path.is_some());
    let names = |tools: &[&Tool]| tools.iter().map(|tool| tool.name).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        let version = here.iter().find_map(|tool| tool.version);
        let version =
            version.map_or_else(String::new, |(major, minor)| format!("{major}.{minor}: "));
        return Diagnosis::pass(package, format!("{version}{}", names(&here)));
    }
    let filesystem = filesystem_of(package);
    let what = format!(
        "{} not installed: no volumes and pools with {filesystem} can be made",
        names(&missing)
    );
    let remedy = format!("install the package {package}");
    // ext4 is what volumes get that do not ask for anything.
    let needed = filesystem == Filesystem::Ext4
        || sight.pools.iter().any(|pool| pool.makes == Some(filesystem));
    Diagnosis::new(if needed { Verdict::Fail } else { Verdict::Warn }, package, what, remedy)
}

fn idle_loops(sight: &Sight) -> Diagnosis {
    let check = "idle loop devices";
    match &sight.idle_loops {
        Err(reason) => Diagnosis::warn(
            check,
            format!("cannot be listed: {reason}"),
            "run it as root, on the host",
        ),
        Ok(idle) if idle.is_empty() => Diagnosis::pass(check, "none"),
        Ok(idle) => {
            let list = |(number, label): &(u32, String)| format!("/dev/loop{number} ({label})");
            let list = idle.iter().map(list).collect::<Vec<_>>().join(", ");
            Diagnosis::warn(
                check,
                format!("nothing in sight uses {list}"),
                "when no pod uses the volume: losetup -d",
            )
        }
    }
}

fn kubelet(place: &Place) -> Diagnosis {
    let check = "kubelet's directory";
    let path = place.path.display();
    if !place.exists {
        return Diagnosis::warn(
            check,
            format!("{path} is not there"),
            "give kubelet's directory as --kubelet-dir; in a container, mount it from the host",
        );
    }
    match (place.is_mount, place.shared) {
        (_, true) => Diagnosis::pass(check, format!("{path} is shared: pods see what is mounted")),
        (true, false) => Diagnosis::fail(
            check,
            format!("{path} is a mount that is not shared: pods will not see their volumes"),
            "mount it with mountPropagation: Bidirectional",
        ),
        (false, false) => Diagnosis::warn(
            check,
            format!(
                "{path} lies on a mount that is not shared: a driver in a container cannot mount for pods"
            ),
            "mount --make-rshared / on the host, which systemd does",
        ),
    }
}

fn root(sight: &Sight) -> Vec<Diagnosis> {
    let check = "root directory";
    let path = sight.root.path.display();
    let passing = sight.passing.iter().map(|(pool, reason)| {
        Diagnosis::fail(
            format!("{check} for pool {pool}"),
            reason,
            "see SEMANTICS.md, Managed pools",
        )
    });
    let own = if sight.root.exists {
        Diagnosis::pass(check, format!("{path} is there"))
    } else {
        Diagnosis::warn(
            check,
            format!("{path} is not there: no driver has run with it"),
            "give the driver's --root-dir; the driver makes it when it starts",
        )
    };
    std::iter::once(own).chain(passing).collect()
}

/// A driver holds the pools.
fn driver_runs(sight: &Sight) -> bool {
    let in_use = |state: &PoolState| matches!(state, PoolState::Here(here) if here.in_use);
    sight.pools.iter().any(|pool| in_use(&pool.state))
}

fn frozen(sight: &Sight) -> Diagnosis {
    let check = "frozen volumes";
    match &sight.frozen {
        Err(reason) => {
            Diagnosis::warn(check, format!("cannot be told: {reason}"), "run it as root")
        }
        Ok(frozen) if frozen.is_empty() => Diagnosis::pass(check, "none"),
        Ok(frozen) => {
            let list = frozen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if driver_runs(sight) {
                return Diagnosis::pass(check, format!("just being copied: {list}"));
            }
            Diagnosis::warn(
                check,
                format!("left frozen by a driver that was killed: {list}"),
                "start the driver, which thaws them",
            )
        }
    }
}

fn socket(socket: &SocketSight) -> Diagnosis {
    let check = "socket";
    let path = socket.path.display();
    let Some(file) = &socket.file else {
        return Diagnosis::warn(
            check,
            format!("{path} is not there: no driver runs"),
            "start the driver",
        );
    };
    if !file.is_socket {
        return Diagnosis::fail(check, format!("{path} is not a socket"), "move it elsewhere");
    }
    if file.mode & 0o077 != 0 || file.uid != 0 {
        return Diagnosis::fail(
            check,
            format!(
                "{path} has mode {:04o} and owner {}: others than root can call the driver",
                file.mode, file.uid
            ),
            format!("chmod 0600 {path}; chown root {path}"),
        );
    }
    if !file.answers {
        return Diagnosis::warn(
            check,
            format!("{path}: nobody answers"),
            "start the driver, which replaces it",
        );
    }
    Diagnosis::pass(check, format!("{path}: a driver answers, mode {:04o}", file.mode))
}

fn clock(sight: &Sight) -> Diagnosis {
    let check = "clock";
    let now = sight.now.strftime("%Y-%m-%dT%H:%M:%SZ");
    let set = "set the clock (chronyd, systemd-timesyncd)";
    if sight.now.as_second() < EPOCH {
        return Diagnosis::fail(
            check,
            format!("it shows {now}, which is before this program was written"),
            set,
        );
    }
    let born =
        |pool: &PoolSight| if let PoolState::Here(here) = &pool.state { here.newest } else { None };
    let newest: Option<Timestamp> = sight.pools.iter().filter_map(born).max();
    match newest.filter(|newest| newest.duration_since(sight.now) > AHEAD) {
        Some(newest) => Diagnosis::warn(
            check,
            format!("it shows {now}, and a volume was made at {newest}: it was, or is, wrong"),
            set,
        ),
        None => Diagnosis::pass(check, format!("{now}")),
    }
}

#[cfg(test)]
mod tests;
