//! The engine on the model of the kernel, compared with the reference after every step.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;

use orlop::engine::{
    Engine, EngineError, FoundSnapshot, PublishRequest, SnapshotSpec, StageRequest, chain,
};
use orlop::host::{Host, PoolFilesystem, Space};
use orlop::volume::{
    AccessMode, AccessType, Backend, ByteSize, CapacityRange, CreateSpec, Key, MountFlags,
    Parameters, Source, VolumeCapability, VolumeId,
};

use super::common::Machine;
use super::reference::{Kind, Made, Op, ROOM, Reference, Said, Volume};

const POOL: &str = "default";

fn said<T>(result: Result<T, EngineError>, done: impl FnOnce(T) -> Said) -> Said {
    match result {
        Ok(value) => done(value),
        Err(EngineError::Invalid(_)) => Said::Refused("Invalid"),
        Err(EngineError::NotFound(_)) => Said::Refused("NotFound"),
        Err(EngineError::Conflict(_)) => Said::Refused("Conflict"),
        Err(EngineError::Precondition(_)) => Said::Refused("Precondition"),
        Err(EngineError::Size(_)) => Said::Refused("Size"),
        Err(EngineError::NoSpace(_)) => Said::Refused("NoSpace"),
        Err(EngineError::Away(_)) => Said::Refused("Away"),
        Err(error) => Said::Broken(chain(&error)),
    }
}

fn size(size: ByteSize) -> Said {
    Said::Size(size.bytes() >> 30)
}

const fn range(gib: u64) -> CapacityRange {
    CapacityRange { required: ByteSize::gib(gib), limit: None }
}

/// As ReadWriteOnce arrives from Kubernetes.
fn capability(kind: Kind) -> VolumeCapability {
    let access = if kind == Kind::Device {
        AccessType::Block
    } else {
        AccessType::Mount { filesystem: String::new(), flags: MountFlags::default() }
    };
    VolumeCapability { access, mode: AccessMode::SingleNodeMultiWriter }
}

fn spec(name: usize, kind: Kind, gib: u64, source: Option<Source>) -> CreateSpec {
    let name = format!("pvc-{name}");
    let backend = if kind == Kind::Directory { Backend::Hostpath } else { Backend::Loop };
    let parameters = Parameters {
        backend,
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        ..Parameters::default()
    };
    CreateSpec {
        source,
        key: Key::of_name(&name),
        name,
        capacity: range(gib),
        capabilities: vec![capability(kind)],
        parameters,
        requisite: Vec::new(),
        pod: None,
        claim: None,
    }
}

#[derive(Debug)]
pub(crate) struct World {
    machine: Machine,
    engine: Option<Arc<Engine>>,
    reference: Reference,
}

impl World {
    pub(crate) fn new(filesystem: PoolFilesystem) -> Self {
        let machine = Machine::new();
        // What snapshots are charged here is a few KiB each, which the reference does not count.
        let all = ByteSize::gib(ROOM).saturating_add(ByteSize::mib(64));
        machine.host.set_space(Space {
            filesystem,
            total: all,
            free: all,
            available: all,
            inodes: 1000,
            inodes_free: 1000,
        });
        let engine = Some(machine.engine(&[POOL]));
        let shares = filesystem == PoolFilesystem::Xfs;
        Self { machine, engine, reference: Reference { shares, ..Reference::default() } }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Where kubelet has volumes of that name. A device goes on files, and what a reboot left of a directory
    /// is none.
    fn place(&self, name: usize, at: usize) -> PathBuf {
        let device = self.kind(name) == Kind::Device;
        self.machine.path(format!("{}-{name}-{at}", if device { "device" } else { "place" }))
    }

    fn reopen(&mut self) {
        self.engine = None;
        self.engine = Some(self.machine.engine(&[POOL]));
    }

    /// The kind that requests for a name speak of: a CO knows what it asked for.
    fn kind(&self, name: usize) -> Kind {
        self.reference.volumes.get(&name).map_or(Kind::Directory, |volume| volume.kind)
    }

    /// A step as it makes sense: a reader of a device has a loop device of its own, which is tested elsewhere.
    fn sensible(&self, op: &Op) -> Op {
        if let Op::Publish(name, at, _) = *op
            && self.kind(name) == Kind::Device
        {
            return Op::Publish(name, at, false);
        }
        op.clone()
    }

    /// Carries out a step and compares.
    pub(crate) fn step(&mut self, op: &Op) {
        match op {
            Op::Crash => self.reopen(),
            Op::Reboot => {
                self.machine.host.reboot();
                self.reference.reboot();
                self.reopen();
            }
            Op::Faulty(_, op) if matches!(**op, Op::Crash | Op::Reboot) => self.step(op),
            Op::Faulty(verbs, op) => {
                let op = self.sensible(op);
                for verb in verbs {
                    self.machine.host.fail_next(verb, nix::errno::Errno::EIO);
                }
                let (said, made) = self.ask(&op);
                self.machine.host.clear_faults();
                if !matches!(said, Said::Broken(_)) {
                    assert_eq!(said, self.reference.apply(&op, &made), "{op:?}, {verbs:?}");
                }
                self.compare(&op);
            }
            Op::Create(..)
            | Op::Delete(..)
            | Op::Expand(..)
            | Op::Stage(_)
            | Op::Publish(..)
            | Op::Unpublish(..)
            | Op::Unstage(_)
            | Op::Stats(..)
            | Op::Snapshot(..)
            | Op::DeleteSnapshot(_)
            | Op::Restore(..)
            | Op::NodeExpand(..) => self.compare(&self.sensible(op)),
        }
        self.check(op);
    }

    fn compare(&mut self, op: &Op) {
        let (said, made) = self.ask(op);
        assert_eq!(said, self.reference.apply(op, &made), "{op:?}");
        match (op, made) {
            (Op::Create(name, ..) | Op::Restore(_, name, _), Made::Volume(id)) => {
                assert_eq!(self.reference.volumes[name].id, id, "{op:?}");
                assert_ne!(self.reference.past.get(name), Some(&id), "an id is used again");
            }
            (Op::Snapshot(_, name), Made::Snapshot(id)) => {
                assert_eq!(self.reference.snapshots[name].id, id, "{op:?}");
                let past = self.reference.past_snapshots.get(name);
                assert!(past.is_none_or(|past| past.id != id), "an id is used again");
            }
            (_, Made::Nothing | Made::Volume(_) | Made::Snapshot(_)) => {}
        }
    }

    fn create(&self, spec: &CreateSpec) -> (Said, Made) {
        let mut made = Made::Nothing;
        let answer = said(self.engine().create(spec), |created| {
            made = Made::Volume(created.id);
            Said::Done
        });
        (answer, made)
    }

    fn snapshot(&self, name: usize, source: &VolumeId) -> (Said, Made) {
        let name = format!("snapshot-{name}");
        let (key, source) = (Key::of_name(&name), source.clone());
        let spec = SnapshotSpec { name, key, source, requisite: Vec::new() };
        let mut made = Made::Nothing;
        let answer = said(self.engine().create_snapshot(&spec), |taken| {
            made = Made::Snapshot(taken.id());
            Said::Done
        });
        (answer, made)
    }

    /// What the engine says, and the id of what it made or found.
    fn ask(&self, op: &Op) -> (Said, Made) {
        match *op {
            Op::Create(name, kind, gib) => return self.create(&spec(name, kind, gib, None)),
            Op::Restore(from, name, gib) => {
                return match self.reference.snapshot(from) {
                    None => (Said::Refused("NotFound"), Made::Nothing),
                    Some(snapshot) => {
                        let source = Some(Source::Snapshot(snapshot.id.clone()));
                        self.create(&spec(name, snapshot.kind, gib, source))
                    }
                };
            }
            Op::DeleteSnapshot(name) => {
                let snapshot = self.reference.snapshot(name);
                let answer = snapshot.map_or(Said::Done, |snapshot| {
                    said(self.engine().delete_snapshot(&snapshot.id), |()| Said::Done)
                });
                return (answer, Made::Nothing);
            }
            Op::Delete(..)
            | Op::Expand(..)
            | Op::Stage(_)
            | Op::Publish(..)
            | Op::Unpublish(..)
            | Op::Unstage(_)
            | Op::Stats(..)
            | Op::NodeExpand(..)
            | Op::Snapshot(..)
            | Op::Faulty(..)
            | Op::Crash
            | Op::Reboot => {}
        }
        let answer = match (self.reference.id(op), op) {
            (Some(id), Op::Snapshot(_, name)) => return self.snapshot(*name, id),
            (Some(id), _) => self.ask_about(op, id),
            // The name never had a volume, so there is nothing to ask about.
            (None, Op::Delete(..) | Op::Unpublish(..) | Op::Unstage(_)) => Said::Done,
            (None, _) => Said::Refused("NotFound"),
        };
        (answer, Made::Nothing)
    }

    fn ask_about(&self, op: &Op, id: &VolumeId) -> Said {
        let engine = self.engine();
        let done = |()| Said::Done;
        match *op {
            Op::Delete(..) => said(engine.delete(id), done),
            Op::Expand(_, gib) => said(engine.expand(id, range(gib)), |e| size(e.size)),
            Op::Stage(name) => {
                let (staging, capability) = (self.place(name, 0), capability(self.kind(name)));
                let request = StageRequest { id: id.clone(), staging, capability };
                said(engine.stage(&request), done)
            }
            Op::Publish(name, at, read_only) => {
                let request = PublishRequest {
                    id: id.clone(),
                    staging: self.place(name, 0),
                    target: self.place(name, at),
                    capability: capability(self.kind(name)),
                    read_only,
                };
                said(engine.publish(&request), done)
            }
            Op::Unpublish(name, at) => said(engine.unpublish(&self.place(name, at)), done),
            Op::Unstage(name) => said(engine.unstage(&id.to_string(), &self.place(name, 0)), done),
            Op::Stats(name, at) => said(engine.stats(id, &self.place(name, at)), |_| Said::Done),
            Op::NodeExpand(name, at) => {
                let path = self.place(name, at);
                said(engine.node_expand(id, &path, CapacityRange::default()), size)
            }
            Op::Create(..)
            | Op::Snapshot(..)
            | Op::DeleteSnapshot(_)
            | Op::Restore(..)
            | Op::Faulty(..)
            | Op::Crash
            | Op::Reboot => Said::Done,
        }
    }

    /// The disk, the kernel and the sums are as the reference says.
    fn check(&self, op: &Op) {
        self.engine().drain_trash();
        let volumes = &self.reference.volumes;
        let (listed, _) = self.engine().list(None, 100);
        let listed: BTreeSet<_> =
            listed.into_iter().map(|volume| (volume.id, volume.size.bytes() >> 30)).collect();
        let wanted = volumes.values().map(|v| (v.id.clone(), v.size)).collect();
        assert_eq!(listed, wanted, "{op:?}");
        let mut keys: Vec<_> = volumes.values().map(|v| v.id.key.to_string()).collect();
        keys.sort();
        assert_eq!(self.machine.names(POOL, "volumes"), keys, "{op:?}");
        for empty in ["incoming", "trash", "archive", "retained"] {
            assert_eq!(self.machine.names(POOL, empty), Vec::<String>::new(), "{op:?}: {empty}");
        }
        let report = self.engine().pool_reports().remove(0);
        let promised = volumes.values().map(|v| v.size).sum();
        let charges = report.charges.unwrap();
        assert_eq!(charges.volumes, ByteSize::gib(promised), "{op:?}");
        assert_eq!(charges.graves, ByteSize::ZERO, "{op:?}");
        self.check_snapshots(op, charges.snapshots);
        self.check_kernel(op);
        for volume in volumes.values().filter(|v| v.kind != Kind::Directory) {
            self.check_image(op, volume);
        }
    }

    fn check_snapshots(&self, op: &Op, charged: ByteSize) {
        let (listed, _) = self.engine().list_snapshots(None, None, 100).unwrap();
        let sum: u64 = listed.iter().map(|found| found.snapshot.charge.bytes()).sum();
        assert_eq!(charged.bytes(), sum, "{op:?}");
        let shown = |found: &FoundSnapshot| (found.id(), found.source(), found.snapshot.size);
        let listed: Vec<_> = listed.iter().map(shown).collect();
        let wanted = self.reference.snapshots.values();
        let mut wanted: Vec<_> =
            wanted.map(|s| (s.id.clone(), s.of.clone(), ByteSize::gib(s.size))).collect();
        wanted.sort();
        assert_eq!(listed, wanted, "{op:?}");
        let mut keys: Vec<_> = wanted.iter().map(|(id, ..)| id.key.to_string()).collect();
        keys.sort();
        assert_eq!(self.machine.names(POOL, "snapshots"), keys, "{op:?}");
        assert_eq!(self.machine.host.frozen(), Vec::<u32>::new(), "{op:?}");
    }

    fn check_kernel(&self, op: &Op) {
        let host = &self.machine.host;
        let (mut points, mut loops) = (BTreeSet::new(), BTreeSet::new());
        for (name, volume) in &self.reference.volumes {
            for (at, place) in volume.places.iter().enumerate() {
                let inside = volume.kind == Kind::Device && at == 0;
                let path = self.place(*name, at);
                let path = if inside { path.join("device") } else { path };
                if let Some(read_only) = place {
                    let table = host.mounts().unwrap();
                    assert_eq!(table.top_at(&path).unwrap().is_read_only(), *read_only);
                    points.insert(path);
                }
            }
            if volume.kind != Kind::Directory && volume.is_used() {
                loops.insert(volume.id.to_string());
            }
        }
        let mounted: BTreeSet<_> = host.mount_points().into_iter().collect();
        assert_eq!((mounted.len(), &mounted), (host.mount_points().len(), &points), "{op:?}");
        let attached = host.loops().unwrap();
        assert_eq!(attached.len(), loops.len(), "{op:?}: {attached:?}");
        assert_eq!(attached.into_iter().map(|l| l.label).collect::<BTreeSet<_>>(), loops);
        assert!(host.max_loops_per_image() <= 1, "{op:?}: two loop devices on one image");
    }

    fn check_image(&self, op: &Op, volume: &Volume) {
        let path = self.machine.pool(POOL).join("volumes").join(volume.id.key.as_str());
        let image = std::fs::File::open(path.join("disk.img")).unwrap();
        let length = image.metadata().unwrap().len();
        assert_eq!(length, volume.size << 30, "{op:?}");
        let found = self.machine.host.probe(image.as_fd()).unwrap();
        assert_eq!(found.is_some(), volume.kind == Kind::Filesystem, "{op:?}");
        let staged = matches!(op, Op::Stage(name) if self.reference.volumes.get(name).is_some_and(|v| v.id == volume.id));
        if let (true, Some(found)) = (staged, found) {
            assert_eq!(found.size.bytes(), length, "the filesystem has what its image has");
        }
    }
}
