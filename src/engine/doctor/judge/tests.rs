//! Three nodes, and what is said of each, word for word.

use super::*;
use crate::engine::doctor::pools::Here;
use crate::engine::doctor::sight::SocketFile;
use crate::engine::offline::PoolLine;
use crate::host::{PoolFilesystem, Space};
use crate::volume::{ByteSize, LimitKind, PoolUuid};

fn machine() -> Machine {
    let tool = |name, package, version| Tool {
        name,
        package,
        path: Some(format!("/usr/sbin/{name}").into()),
        version: Some(version),
    };
    Machine {
        release: "6.18.5-amd64".to_owned(),
        has_loop_control: true,
        max_loop: Some(0),
        filesystems: vec![
            (Filesystem::Ext4, Support::Here),
            (Filesystem::Xfs, Support::Module),
            (Filesystem::Btrfs, Support::Module),
        ],
        ext4_quota: Support::Module,
        tools: vec![
            tool("mke2fs", "e2fsprogs", (1, 47)),
            tool("e2fsck", "e2fsprogs", (1, 47)),
            tool("mkfs.xfs", "xfsprogs", (6, 1)),
            tool("mkfs.btrfs", "btrfs-progs", (6, 2)),
            tool("btrfstune", "btrfs-progs", (6, 2)),
        ],
        capabilities: u64::MAX,
    }
}

fn here() -> Here {
    let line = PoolLine {
        name: "default".to_owned(),
        path: "/srv/pool".into(),
        uuid: Some(PoolUuid::from_bits([7; 16])),
        state: "ready".to_owned(),
        volumes: 3,
        damaged: 0,
        snapshots: 1,
        shares_blocks: Some(true),
        has_subvolumes: false,
        kind: "directory".to_owned(),
        promised: ByteSize::gib(3),
        total: Some(ByteSize::gib(100)),
        available: Some(ByteSize::gib(90)),
        reserve: Some(ByteSize::gib(5)),
        room: Some(ByteSize::gib(82)),
    };
    let space = Space {
        filesystem: PoolFilesystem::Xfs,
        total: ByteSize::gib(100),
        free: ByteSize::gib(90),
        available: ByteSize::gib(90),
        inodes: 1000,
        inodes_free: 900,
    };
    Here {
        line,
        space: Some(space),
        limit: Ok(Some(LimitKind::Project)),
        in_use: true,
        unborn: 0,
        dead: 0,
        foreign: Vec::new(),
        newest: Some("2026-03-01T00:00:00Z".parse().unwrap()),
    }
}

fn pool(state: PoolState) -> PoolSight {
    PoolSight { name: "default".to_owned(), path: "/srv/pool".to_owned(), makes: None, state }
}

fn healthy() -> Sight {
    let place =
        |path: &str| Place { path: path.into(), exists: true, is_mount: true, shared: true };
    Sight {
        machine: machine(),
        pools: vec![pool(PoolState::Here(Box::new(here())))],
        idle_loops: Ok(Vec::new()),
        kubelet: place("/var/lib/kubelet"),
        root: place("/var/lib/orlop"),
        passing: Vec::new(),
        frozen: Ok(Vec::new()),
        socket: Some(SocketSight {
            path: "/csi/csi.sock".into(),
            file: Some(SocketFile { is_socket: true, mode: 0o600, uid: 0, answers: true }),
        }),
        now: "2026-03-02T10:00:00Z".parse().unwrap(),
    }
}

/// What is not as it should be, as it is printed.
fn complaints(sight: &Sight) -> Vec<String> {
    let said = judge(sight).into_iter().filter(|line| line.verdict != Verdict::Pass);
    let text = |line: Diagnosis| {
        let remedy = line.remedy.expect("what is wrong has a remedy");
        format!("{} {}: {}; {remedy}", line.verdict.as_str(), line.check, line.what)
    };
    said.map(text).collect()
}

#[test]
fn a_healthy_node_passes_everything() {
    let said = judge(&healthy());
    assert_eq!(complaints(&healthy()), Vec::<String>::new());
    let lines: Vec<_> = said.iter().map(|line| format!("{}: {}", line.check, line.what)).collect();
    let uuid = PoolUuid::from_bits([7; 16]);
    assert_eq!(
        lines,
        [
            "kernel: Linux 6.18.5-amd64",
            "privileges: mounts, loop devices and freezes are allowed",
            "loop devices: made as they are needed (max_loop=0)",
            "ext4 in the kernel: can be mounted",
            "xfs in the kernel: its module is loaded by the first mount",
            "btrfs in the kernel: its module is loaded by the first mount",
            "ext4 project quotas: the kernel has quota_v2",
            "e2fsprogs: 1.47: mke2fs, e2fsck",
            "xfsprogs: 6.1: mkfs.xfs",
            "btrfs-progs: 6.2: mkfs.btrfs, btrfstune",
            &format!("pool default: /srv/pool: pool {uuid}, 3 volumes, 1 snapshots"),
            "pool default space: 90 GiB of 100 GiB available, reserve 5 GiB, room for 82 GiB more",
            "pool default inodes: 900 of 1000 free",
            "pool default limits: hostpath volumes are held to their size (project)",
            "pool default copies: instant for loop volumes: blocks are shared",
            "pool default leftovers: nothing in incoming/ and trash/",
            "idle loop devices: none",
            "kubelet's directory: /var/lib/kubelet is shared: pods see what is mounted",
            "root directory: /var/lib/orlop is there",
            "frozen volumes: none",
            "socket: /csi/csi.sock: a driver answers, mode 0600",
            "clock: 2026-03-02T10:00:00Z",
        ]
    );
}

#[test]
fn without_btrfs_progs_the_rest_works_unless_a_pool_is_made_with_it() {
    let mut node = healthy();
    for tool in node.machine.tools.iter_mut().filter(|tool| tool.package == "btrfs-progs") {
        (tool.path, tool.version) = (None, None);
    }
    let says = "btrfs-progs: mkfs.btrfs, btrfstune not installed: no volumes and pools with btrfs can be made; install the package btrfs-progs";
    assert_eq!(complaints(&node), [format!("warn {says}")]);
    node.pools[0].makes = Some(Filesystem::Btrfs);
    assert_eq!(complaints(&node), [format!("fail {says}")]);
}

#[test]
fn a_pool_whose_disk_is_missing_fails_and_says_where_to_mount_it() {
    let mut node = healthy();
    let uuid = PoolUuid::from_bits([7; 16]);
    node.pools = vec![pool(PoolState::Gone(uuid.clone()))];
    assert_eq!(
        complaints(&node),
        [format!(
            "fail pool default: /srv/pool: the marker pool.json of pool {uuid} is not there; its disk is probably not mounted; mount its disk at /srv/pool"
        )]
    );
    let other = PoolUuid::from_bits([8; 16]);
    node.pools = vec![pool(PoolState::Another { found: other.clone(), known: uuid.clone() })];
    assert_eq!(
        complaints(&node),
        [format!(
            "fail pool default: /srv/pool: pool {other} is there, and {uuid} should be; mount the right disk"
        )]
    );
    node.pools = vec![pool(PoolState::NotMade)];
    assert_eq!(
        complaints(&node),
        [
            "warn pool default: /srv/pool: not a pool yet; run `orlop pool init --name default /srv/pool`, or serve with --init-pools"
        ]
    );
}

/// One thing that is wrong with an otherwise healthy node, and how the one complaint begins.
type Trouble = (fn(&mut Sight), &'static str);

fn change(node: &mut Sight, with: impl FnOnce(&mut Here)) {
    if let PoolState::Here(here) = &mut node.pools[0].state {
        with(here);
    }
}

const OF_THE_NODE: [Trouble; 15] = [
    (|n| n.machine.release = "5.4.0".to_owned(), "fail kernel: Linux 5.4.0; run Linux 5.12"),
    (|n| n.machine.capabilities = 0, "fail privileges: no CAP_SYS_ADMIN"),
    (|n| n.machine.capabilities = 1 << 21, "warn privileges: no CAP_SYS_RESOURCE"),
    (|n| n.machine.has_loop_control = false, "fail loop devices: /dev/loop-control is not there"),
    (|n| n.machine.filesystems[1].1 = Support::Absent, "warn xfs in the kernel: cannot be mounted"),
    (|n| n.machine.ext4_quota = Support::Unknown, "warn ext4 project quotas: quota_v2 is not"),
    (|n| n.machine.tools[0].path = None, "fail e2fsprogs: mke2fs not installed"),
    (
        |n| n.idle_loops = Ok(vec![(7, "v-1".to_owned())]),
        "warn idle loop devices: nothing in sight uses /dev/loop7 (v-1)",
    ),
    (|n| n.kubelet.shared = false, "fail kubelet's directory: /var/lib/kubelet is a mount that"),
    (|n| n.kubelet.exists = false, "warn kubelet's directory: /var/lib/kubelet is not there"),
    (|n| n.root.exists = false, "warn root directory: /var/lib/orlop is not there"),
    (
        |n| n.passing = vec![("p".to_owned(), "why".to_owned())],
        "fail root directory for pool p: why",
    ),
    (
        |n| n.now = "1970-01-02T00:00:00Z".parse().unwrap(),
        "fail clock: it shows 1970-01-02T00:00:00Z, which is before",
    ),
    (
        |n| n.now = "2026-02-01T00:00:00Z".parse().unwrap(),
        "warn clock: it shows 2026-02-01T00:00:00Z, and a volume was made at 2026-03-01T00:00:00Z",
    ),
    (|n| n.frozen = Err("EACCES".to_owned()), "warn frozen volumes: cannot be told: EACCES"),
];

const OF_THE_POOL: [Trouble; 8] = [
    (|n| change(n, |h| h.line.damaged = 1), "fail pool default: /srv/pool: pool"),
    (
        |n| change(n, |h| h.line.state = "nearly full".to_owned()),
        "warn pool default space: nearly full: 90 GiB",
    ),
    (
        |n| change(n, |h| h.line.room = Some(ByteSize::ZERO)),
        "warn pool default space: no room for volumes",
    ),
    (
        |n| change(n, |h| h.line.total = None),
        "fail pool default space: its filesystem does not tell",
    ),
    (
        |n| change(n, |h| h.space.as_mut().unwrap().inodes_free = 49),
        "warn pool default inodes: 49 of 1000 free",
    ),
    (|n| change(n, |h| h.limit = Ok(None)), "warn pool default limits: nothing holds hostpath"),
    (
        |n| change(n, |h| h.limit = Ok(Some(LimitKind::Qgroup))),
        "warn pool default limits: hostpath volumes are held to their size, but not hard (qgroup)",
    ),
    (
        |n| change(n, |h| h.foreign = vec!["mine".to_owned()]),
        "warn pool default leftovers: not the driver's: mine; move it",
    ),
];

const OF_THE_SOCKET: [Trouble; 4] = [
    (|n| n.socket.as_mut().unwrap().file = None, "warn socket: /csi/csi.sock is not there"),
    (
        |n| file(n).mode = 0o666,
        "fail socket: /csi/csi.sock has mode 0666 and owner 0: others than root",
    ),
    (|n| file(n).is_socket = false, "fail socket: /csi/csi.sock is not a socket"),
    (|n| file(n).answers = false, "warn socket: /csi/csi.sock: nobody answers"),
];

fn file(node: &mut Sight) -> &mut SocketFile {
    node.socket.as_mut().unwrap().file.as_mut().unwrap()
}

#[test]
fn each_trouble_is_one_complaint() {
    for (trouble, says) in OF_THE_NODE.into_iter().chain(OF_THE_POOL).chain(OF_THE_SOCKET) {
        let mut node = healthy();
        trouble(&mut node);
        let complaints = complaints(&node);
        assert!(
            complaints.len() == 1 && complaints[0].starts_with(says),
            "{says}: {complaints:#?}"
        );
    }
}

#[test]
fn what_a_running_driver_is_at_is_no_trouble() {
    let mut node = healthy();
    let id = format!("v-{}-{}-01020304", "0".repeat(8), "0".repeat(32));
    node.frozen = Ok(vec![id.parse().unwrap()]);
    change(&mut node, |here| (here.unborn, here.dead) = (1, 2));
    assert_eq!(complaints(&node), Vec::<String>::new());
    change(&mut node, |here| here.in_use = false);
    assert_eq!(
        complaints(&node),
        [
            "warn pool default leftovers: 1 half made, 2 not yet removed, and no driver runs; start the driver, which removes them".to_owned(),
            format!("warn frozen volumes: left frozen by a driver that was killed: {id}; start the driver, which thaws them"),
        ]
    );
}
