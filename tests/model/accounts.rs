//! What is promised, after random histories of creations, copies, growth, deletions, failures, crashes and bursts: never
//! more than the formula of `engine/room.rs` allows, and always the sum over the records.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::errno::Errno;
use orlop::engine::{Engine, FoundSnapshot, Listed, SnapshotSpec};
use orlop::host::{PoolFilesystem, Space};
use orlop::store::Charges;
use orlop::volume::{
    AccessMode, AccessType, Allocation, Backend, ByteSize, CapacityRange, CreateSpec, Key,
    MountFlags, Parameters, Source, VolumeCapability,
};
use proptest::prelude::*;

use super::common::Machine;

const POOL: &str = "default";
/// The size of the pool's filesystem, in MiB.
const TOTAL: u64 = 64;
/// The calls of the host that may fail on the way.
const VERBS: [&str; 7] = [
    "space",
    "disable_copy_on_write",
    "share_file",
    "renew",
    "shares_blocks",
    "allocated",
    "probe",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    Thin,
    Thick,
}

/// A step. Names are small numbers, sizes are MiB.
#[derive(Debug, Clone)]
enum Op {
    Create(usize, Kind, u64),
    Clone(usize, usize),
    Restore(usize, usize, u64),
    Expand(usize, u64),
    Snapshot(usize, usize),
    Delete(usize),
    DeleteSnapshot(usize),
    /// A pod writes all of an image.
    Fill(usize),
    /// Creations at the same time.
    Together(Kind, u64),
    Faulty(&'static str, Errno, Box<Op>),
    Crash,
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Directory), Just(Kind::Thin), Just(Kind::Thick)]
}

fn requests() -> impl Strategy<Value = Op> {
    let two = || (0_usize..4, 0_usize..4);
    prop_oneof![
        4 => (0_usize..4, kinds(), 1_u64..40).prop_map(|(n, k, s)| Op::Create(n, k, s)),
        2 => two().prop_map(|(of, n)| Op::Clone(of, n)),
        2 => (two(), 1_u64..40).prop_map(|((s, n), size)| Op::Restore(s, n, size)),
        3 => (0_usize..4, 1_u64..60).prop_map(|(n, s)| Op::Expand(n, s)),
        3 => two().prop_map(|(n, s)| Op::Snapshot(n, s)),
        3 => (0_usize..4).prop_map(Op::Delete),
        1 => (0_usize..4).prop_map(Op::DeleteSnapshot),
        2 => (0_usize..4).prop_map(Op::Fill),
        1 => (kinds(), 1_u64..20).prop_map(|(k, s)| Op::Together(k, s)),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let verb = proptest::sample::select(&VERBS[..]);
    let errno = proptest::sample::select(&[Errno::EIO, Errno::ENOSPC][..]);
    prop_oneof![
        10 => requests(),
        3 => (verb, errno, requests()).prop_map(|(v, e, op)| Op::Faulty(v, e, Box::new(op))),
        1 => Just(Op::Crash),
    ]
}

struct World {
    machine: Machine,
    engine: Option<Arc<Engine>>,
    /// What others have of the filesystem, in MiB.
    foreign: u64,
    /// The driver was started with data in the pool, of which nobody can say what is in it.
    reopened: bool,
}

fn spec(name: &str, kind: Kind, mib: u64, source: Option<Source>) -> CreateSpec {
    let directory = kind == Kind::Directory;
    let access = if directory {
        AccessType::Mount { filesystem: String::new(), flags: MountFlags::default() }
    } else {
        AccessType::Block
    };
    CreateSpec {
        source,
        key: Key::of_name(name),
        name: name.to_owned(),
        capacity: CapacityRange { required: ByteSize::mib(mib), limit: None },
        capabilities: vec![VolumeCapability { access, mode: AccessMode::SingleNodeMultiWriter }],
        parameters: Parameters {
            backend: if directory { Backend::Hostpath } else { Backend::Loop },
            allocation: if kind == Kind::Thick { Allocation::Thick } else { Allocation::Thin },
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            ..Parameters::default()
        },
        requisite: Vec::new(),
        pod: None,
        claim: None,
    }
}

impl World {
    fn new(filesystem: PoolFilesystem, foreign: u64, reserve: u64, overcommit: f64) -> Self {
        let mut machine = Machine::new();
        machine.reserve = ByteSize::mib(reserve);
        machine.overcommit = overcommit;
        machine.host.set_space(Space {
            filesystem,
            total: ByteSize::mib(TOTAL),
            free: ByteSize::mib(TOTAL - foreign),
            available: ByteSize::mib(TOTAL - foreign),
            inodes: 1000,
            inodes_free: 1000,
        });
        machine.host.meter_images();
        let engine = Some(machine.engine(&[POOL]));
        let world = Self { machine, engine, foreign, reopened: false };
        // It is measured for the first time while the pool is empty.
        assert_eq!(world.charges(), Charges::default());
        world
    }

    fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().unwrap()
    }

    fn charges(&self) -> Charges {
        self.engine().drain_trash();
        self.engine().pool_reports().remove(0).charges.unwrap()
    }

    fn volumes(&self) -> Vec<Listed> {
        self.engine().list(None, 1000).0
    }

    fn snapshots(&self) -> Vec<FoundSnapshot> {
        self.engine().list_snapshots(None, None, 1000).unwrap().0
    }

    fn volume(&self, name: usize) -> Option<Listed> {
        let key = Key::of_name(&format!("pvc-{name}"));
        self.volumes().into_iter().find(|volume| volume.id.key == key)
    }

    fn snapshot(&self, name: usize) -> Option<FoundSnapshot> {
        let key = Key::of_name(&format!("snapshot-{name}"));
        self.snapshots().into_iter().find(|found| found.snapshot.itself.key == key)
    }

    fn dir(&self, volume: &Listed) -> std::path::PathBuf {
        self.machine.pool(POOL).join("volumes").join(volume.id.key.as_str())
    }

    /// What a volume is, as its record says.
    fn kind(&self, volume: &Listed) -> Kind {
        let record = std::fs::read_to_string(self.dir(volume).join("volume.json")).unwrap();
        let record: serde_json::Value = serde_json::from_str(&record).unwrap();
        match record["resolved"]["image"]["allocation"].as_str() {
            None => Kind::Directory,
            Some("thick") => Kind::Thick,
            Some(_) => Kind::Thin,
        }
    }

    /// Carries out a request; whether it succeeds does not matter here.
    fn ask(&self, op: &Op) {
        let engine = self.engine();
        let name = |n: &usize| format!("pvc-{n}");
        match op {
            Op::Create(n, kind, mib) => drop(engine.create(&spec(&name(n), *kind, *mib, None))),
            Op::Clone(of, n) => {
                if let Some(source) = self.volume(*of).filter(|_| of != n) {
                    let kind = self.kind(&source);
                    let from = Some(Source::Volume(source.id));
                    drop(engine.create(&spec(&name(n), kind, 1, from)));
                }
            }
            Op::Restore(from, n, mib) => {
                if let Some(found) = self.snapshot(*from) {
                    let kind = match found.snapshot.resolved.backend() {
                        Backend::Hostpath => Kind::Directory,
                        Backend::Loop if mib % 2 == 0 => Kind::Thick,
                        Backend::Loop => Kind::Thin,
                    };
                    let source = Some(Source::Snapshot(found.id()));
                    drop(engine.create(&spec(&name(n), kind, *mib, source)));
                }
            }
            Op::Expand(n, mib) => {
                if let Some(volume) = self.volume(*n) {
                    let range = CapacityRange { required: ByteSize::mib(*mib), limit: None };
                    drop(engine.expand(&volume.id, range));
                }
            }
            Op::Snapshot(n, s) => {
                if let Some(volume) = self.volume(*n) {
                    let name = format!("snapshot-{s}");
                    let (key, source) = (Key::of_name(&name), volume.id);
                    let spec = SnapshotSpec { name, key, source, requisite: Vec::new() };
                    drop(engine.create_snapshot(&spec));
                }
            }
            Op::Delete(n) => {
                if let Some(volume) = self.volume(*n) {
                    engine.delete(&volume.id).unwrap();
                }
            }
            Op::DeleteSnapshot(s) => {
                if let Some(found) = self.snapshot(*s) {
                    engine.delete_snapshot(&found.id()).unwrap();
                }
            }
            Op::Together(kind, mib) => self.together(*kind, *mib),
            Op::Fill(n) => self.fill(*n),
            Op::Faulty(..) | Op::Crash => {}
        }
    }

    fn together(&self, kind: Kind, mib: u64) {
        std::thread::scope(|scope| {
            for n in 0..4 {
                let spec = spec(&format!("pvc-{n}"), kind, mib, None);
                let engine = self.engine();
                scope.spawn(move || drop(engine.create(&spec)));
            }
        });
    }

    /// What lies beyond the filesystem's end cannot be written.
    fn fill(&self, name: usize) {
        let Some(volume) = self.volume(name) else { return };
        let Ok(image) =
            std::fs::OpenOptions::new().write(true).open(self.dir(&volume).join("disk.img"))
        else {
            return;
        };
        let Some(space) = self.engine().pool_reports().remove(0).space else { return };
        let left = space.available.bytes() >> 20;
        let block = vec![1; 1 << 20];
        for mib in 0..(volume.size.bytes() >> 20).min(left) {
            image.write_all_at(&block, mib << 20).unwrap();
        }
        nix::unistd::fsync(&image).unwrap();
    }

    fn step(&mut self, op: &Op) {
        let before = self.charges();
        if let Op::Faulty(verb, errno, op) = op {
            self.machine.host.fail_next(verb, *errno);
            self.ask(op);
            self.machine.host.clear_faults();
        } else if matches!(op, Op::Crash) {
            self.engine = None;
            self.engine = Some(self.machine.engine(&[POOL]));
            self.reopened = true;
        } else {
            self.ask(op);
        }
        let after = self.charges();
        self.check_sums(op, after);
        if after.total() > before.total() {
            self.check_bounds(op, before, after);
        }
        if matches!(op, Op::Crash) {
            assert_eq!(after, before, "a restart counts what was counted");
        }
    }

    /// The sums are those over the records, and nothing is in flight.
    fn check_sums(&self, op: &Op, charges: Charges) {
        let volumes = self.volumes();
        let sum: u64 = volumes.iter().map(|volume| volume.size.bytes()).sum();
        assert_eq!(charges.volumes.bytes(), sum, "{op:?}");
        let snapshots = self.snapshots();
        let sum: u64 = snapshots.iter().map(|found| found.snapshot.charge.bytes()).sum();
        assert_eq!(charges.snapshots.bytes(), sum, "{op:?}");
        assert_eq!(charges.graves, ByteSize::ZERO, "{op:?}");
        assert_eq!(charges.in_flight, ByteSize::ZERO, "{op:?}");
        let thick = volumes.iter().filter(|volume| self.kind(volume) == Kind::Thick);
        let thick: u64 = thick.map(|volume| volume.size.bytes()).sum();
        let kept: u64 = snapshots.iter().map(|found| found.snapshot.charged().thick.bytes()).sum();
        assert_eq!(charges.thick.bytes(), thick + kept, "{op:?}");
    }

    /// What was accepted keeps within what is there.
    fn check_bounds(&self, op: &Op, before: Charges, after: Charges) {
        let mut usable = ByteSize::mib(TOTAL - self.foreign);
        if self.reopened {
            // What of it is used, and by whom, was not known to the new driver.
            usable = usable.saturating_add(before.promised().thin).min(ByteSize::mib(TOTAL));
        }
        let reserve = self.machine.reserve.bytes();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3")]
        let percent = (self.machine.overcommit * 100.0) as u64;
        let most = (usable.bytes() * percent / 100).saturating_sub(reserve);
        assert!(after.total().bytes() <= most, "{op:?}: {after:?} of {most}");
        if after.thick > before.thick {
            let real = usable.bytes().saturating_sub(reserve);
            assert!(after.thick.bytes() <= real, "{op:?}: {after:?} of {real}");
        }
    }
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    config
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn promises_keep_within_the_pool_and_settle_to_the_records(
        ops in proptest::collection::vec(ops(), 1..40),
        shares: bool,
        foreign in 0_u64..20,
        reserve in 0_u64..10,
        overcommit in proptest::sample::select(&[0.5, 1.0, 1.5, 3.0][..]),
    ) {
        let filesystem = if shares { PoolFilesystem::Xfs } else { PoolFilesystem::Ext };
        let mut world = World::new(filesystem, foreign, reserve, overcommit);
        for op in &ops {
            world.step(op);
        }
    }
}
