//! Names that all clients use at once. Less is known of them: one volume at a time, one generation after the other, and
//! whatever a client wrote into one is there as long as that one is.

use std::path::{Path, PathBuf};

use orlop::csi::proto::VolumeContentSource;
use tonic::Code;

use crate::client::{Client, Create};
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::driver::no_forks;
use crate::life::{Kind, MIB};
use crate::privileged::Sandbox;
use crate::soak_client::{Actor, MODE};
use crate::soak_model::{Piece, Want, is_whole, sealed};
use crate::soak_world::PoolIn;

/// What the names have. None is ever frozen: a client could not write then while the driver is dead.
const SHARED: [(&str, Kind, PoolIn); 3] = [
    ("shared-files", Kind::Hostpath, PoolIn::Ext4),
    ("shared-subvolume", Kind::Hostpath, PoolIn::Btrfs),
    ("shared-image", Kind::Ext4, PoolIn::Ext4),
];
const SIZE: u64 = 64 * MIB;
/// What makes a copy take its time, in files of a MiB.
const BALLAST: usize = 12;

/// The names, for whoever looks at the pools.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SHARED.iter().map(|(name, ..)| *name)
}

/// A deletion of a shared volume.
#[derive(Debug)]
struct Deletion {
    id: String,
    begun: u64,
    /// When it was acknowledged.
    ended: Option<u64>,
}

/// What happened to one name, in the order of a clock that counts.
#[derive(Debug, Default)]
struct History {
    /// The last creation that was answered: when, and with what.
    last: Option<(u64, String)>,
    deletions: Vec<Deletion>,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    clock: u64,
    histories: [History; SHARED.len()],
}

impl Events {
    pub(crate) fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A creation was answered; what is impossible about that.
    fn created(&mut self, name: usize, begun: u64, id: &str) -> Option<String> {
        let ended = self.now();
        let history = &mut self.histories[name];
        let is_gone = |d: &Deletion| d.id == id && d.ended.is_some_and(|ended| ended < begun);
        if history.deletions.iter().any(is_gone) {
            return Some(format!("{id} was deleted before, and is answered again"));
        }
        if let Some((at, last)) = &history.last
            && *at < begun
            && last != id
            && !history.deletions.iter().any(|deletion| deletion.id == *last)
        {
            return Some(format!("{last} was there, nobody deleted it, and now there is {id}"));
        }
        history.last = Some((ended, id.to_owned()));
        None
    }

    fn deleting(&mut self, name: usize, id: &str) -> usize {
        let begun = self.now();
        let deletions = &mut self.histories[name].deletions;
        deletions.push(Deletion { id: id.to_owned(), begun, ended: None });
        deletions.len() - 1
    }

    fn deleted(&mut self, name: usize, deletion: usize) {
        let now = self.now();
        let deletion = &mut self.histories[name].deletions[deletion];
        assert!(deletion.begun < now);
        deletion.ended = Some(now);
    }
}

/// What one client knows of the shared names.
#[derive(Debug)]
pub(crate) struct Memory {
    dir: PathBuf,
    /// The volume that it last wrote into, and what.
    wrote: [Option<(String, Piece)>; SHARED.len()],
}

impl Memory {
    pub(crate) fn new(sandbox: &Sandbox, client: usize) -> Self {
        let dir = sandbox.make_dir(format!("kubelet/shared-{client}"));
        Self { dir, wrote: Default::default() }
    }
}

fn wish(name: &str, kind: Kind, pool: PoolIn) -> Create {
    Create {
        name: name.to_owned(),
        bytes: SIZE,
        capability: kind.capability(MODE),
        parameters: vec![("backend", kind.backend()), ("pool", pool.name())],
    }
}

impl Actor {
    fn shared_id(&mut self, shared: usize) -> String {
        let (name, kind, pool) = SHARED[shared];
        let create = wish(name, kind, pool);
        let begun = self.world.events.lock().unwrap().now();
        let step = ("create a shared one", name.to_owned());
        let id = self.insist(step, |c| c.create(&create)).volume_id;
        self.world.is_new(&id);
        let wrong = self.world.events.lock().unwrap().created(shared, begun, &id);
        if let Some(wrong) = wrong {
            self.fail(name, &wrong);
        }
        id
    }

    pub(crate) fn contend(&mut self) {
        let shared = self.random.index(SHARED.len());
        let id = self.shared_id(shared);
        match self.random.below(6) {
            0 => self.delete_shared(shared, &id),
            1 => {
                let bytes = SIZE + self.random.below(8) * 4 * MIB;
                let want = Want::Either(&[Code::NotFound]);
                self.expect(("expand a shared one", id.clone()), want, |c| c.expand(&id, bytes));
            }
            _ => self.use_shared(shared, &id),
        }
    }

    fn delete_shared(&mut self, shared: usize, id: &str) {
        let deletion = self.world.events.lock().unwrap().deleting(shared, id);
        let want = Want::Either(&[Code::FailedPrecondition]);
        let step = ("delete a shared one", id.to_owned());
        if self.expect(step, want, |c| c.delete(id)).is_some() {
            self.world.events.lock().unwrap().deleted(shared, deletion);
        }
    }

    /// Shows a volume at this client's place while something is done there; `false` when the volume has gone.
    fn shown(&mut self, kind: Kind, id: &str, during: impl FnOnce(&mut Self, PathBuf)) -> bool {
        let (staging, target) = (self.memory.dir.join("staging"), self.memory.dir.join("target"));
        let capability = kind.capability(MODE);
        let step = ("stage a shared one", id.to_owned());
        let stage = |c: &Client| c.stage(id, &staging, &capability);
        if self.expect(step, Want::Either(&[Code::NotFound]), stage).is_none() {
            return false;
        }
        // From here on it is in use, so nobody can delete it.
        let step = ("publish a shared one", id.to_owned());
        self.insist(step, |c| c.publish(id, (&staging, &target), &capability, false));
        during(self, target.clone());
        let step = ("unpublish a shared one", id.to_owned());
        self.insist(step, |c| c.unpublish(id, &target));
        self.insist(("unstage a shared one", id.to_owned()), |c| c.unstage(id, &staging));
        true
    }

    fn use_shared(&mut self, shared: usize, id: &str) {
        let kind = SHARED[shared].1;
        self.shown(kind, id, |actor, target| {
            actor.check_shared(shared, id, &target);
            let piece = Piece::new(&mut actor.random);
            let _quiet = no_forks();
            let mut names = vec![(format!("client-{}", actor.number), sealed(piece))];
            if !target.join("ballast-0").exists() {
                let ballast = |n| (format!("ballast-{n}"), vec![b'b'; 1 << 20]);
                names.extend((0..BALLAST).map(ballast));
            }
            for (name, bytes) in names {
                std::os::unix::fs::FileExt::write_all_at(
                    &std::fs::File::create(target.join(name)).unwrap(),
                    &bytes,
                    0,
                )
                .unwrap();
            }
            let dir = std::fs::File::open(&target).unwrap();
            nix::unistd::syncfs(dir).unwrap();
            actor.memory.wrote[shared] = Some((id.to_owned(), piece));
        });
    }

    /// What this client wrote into the volume is there, or in a copy of it; in another one it is not.
    fn check_shared(&self, shared: usize, id: &str, target: &Path) {
        let wrote = self.memory.wrote[shared].as_ref();
        let wanted = wrote.filter(|(has, _)| has == id).map(|(_, piece)| sealed(*piece));
        let _quiet = no_forks();
        let found = std::fs::read(target.join(format!("client-{}", self.number))).ok();
        let told = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(Vec::len);
        self.claim(
            found == wanted,
            &format!("{id} has what was written ({:?} of {:?} bytes)", told(&found), told(&wanted)),
        );
    }

    /// Where copies need quiet, every file of a copy is whole, whoever wrote it.
    fn check_whole(&self, id: &str, target: &Path) {
        let _quiet = no_forks();
        let mut ballast = 0;
        for entry in std::fs::read_dir(target).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name == "lost+found" {
                continue;
            }
            let bytes = std::fs::read(entry.path()).unwrap();
            let is_right = if name.starts_with("ballast") {
                ballast += 1;
                bytes == vec![b'b'; 1 << 20]
            } else {
                is_whole(&bytes)
            };
            self.claim(is_right, &format!("{name} is whole in a copy of {id}"));
        }
        let is_right = ballast == 0 || ballast == BALLAST;
        self.claim(is_right, &format!("{ballast} files of {BALLAST} are in a copy of {id}"));
    }

    /// A copy of a volume that others may write to, grow or delete meanwhile: whole, or none.
    pub(crate) fn contend_for_copies(&mut self) {
        let shared = self.random.index(SHARED.len());
        let id = self.shared_id(shared);
        if !self.random.one_in(2) {
            return self.copy_shared(shared, &id, &from_volume(&id));
        }
        let name = format!("shared-snapshot-{}", self.number);
        let want = Want::Either(&[Code::NotFound, Code::FailedPrecondition]);
        let step = ("snapshot a shared one", id.clone());
        let Some(told) = self.expect(step, want, |c| c.snapshot(&name, &id)) else { return };
        self.claim(self.world.is_new(&told.snapshot_id), "a new snapshot has a new id");
        self.copy_shared(shared, &id, &from_snapshot(&told.snapshot_id));
        let step = ("delete a snapshot", told.snapshot_id.clone());
        self.insist(step, |c| c.delete_snapshot(&told.snapshot_id));
    }

    fn copy_shared(&mut self, shared: usize, id: &str, source: &VolumeContentSource) {
        let (_, kind, pool) = SHARED[shared];
        let create = wish(&format!("shared-copy-{}", self.number), kind, pool);
        let want = Want::Either(&[Code::NotFound, Code::FailedPrecondition]);
        let step = ("copy a shared one", id.to_owned());
        let made = self.expect(step, want, |c| c.create_from(&create, source.clone()));
        let Some(copy) = made.map(|volume| volume.volume_id) else { return };
        self.claim(self.world.is_new(&copy), "a new copy has a new id");
        let there = self.shown(kind, &copy, |actor, at| {
            actor.check_shared(shared, id, &at);
            if pool == PoolIn::Ext4 {
                actor.check_whole(id, &at);
            }
        });
        self.claim(there, "a copy is this client's own");
        self.insist(("delete a copy", copy.clone()), |c| c.delete(&copy));
    }
}
