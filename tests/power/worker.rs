//! One client of the driver: what it does, told before it begins and when it is acknowledged.

#![expect(clippy::disallowed_methods, reason = "an operator removes by hand what a deletion kept")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orlop::csi::proto::{Volume as Created, VolumeContentSource};
use tonic::Status;

use crate::choice::Wanted;
use crate::client::Client;
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::content;
use crate::ledger::{Event, Line, Op, Pool, Source, Spec, Told};
use crate::life::{Kind, Life};
use crate::node::{Node, names};
use crate::privileged::poll;
use crate::world::{Volume, World};

/// Cut the power when this client has been told of the end of such an operation.
#[derive(Debug, Clone)]
pub(crate) struct Trap {
    pub(crate) client: String,
    pub(crate) wanted: Wanted,
    /// After so many others at least.
    pub(crate) after: usize,
}

/// What has happened, for all clients.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) world: World,
    pub(crate) trap: Option<Trap>,
    line: Line,
}

impl Ledger {
    pub(crate) const fn new(world: World, line: Line) -> Self {
        Self { world, trap: None, line }
    }

    /// Nothing goes on before the host knows it.
    pub(crate) fn tell(&mut self, event: &Event) {
        self.line.tell(event);
        self.world.hear(event);
    }

    /// What a client looks for, that is in the trap.
    pub(crate) fn wanted(&self, client: &str) -> Option<Wanted> {
        let trap = self.trap.as_ref().filter(|trap| trap.client == client && trap.after == 0);
        trap.map(|trap| trap.wanted)
    }

    /// An operation was acknowledged: `is_wanted` says whether the trap waits for such ones.
    fn spring(&mut self, client: &str, is_wanted: bool) {
        let Some(trap) = self.trap.as_mut().filter(|trap| trap.client == client) else { return };
        if trap.after == 0 && is_wanted {
            cut();
        }
        trap.after = trap.after.saturating_sub(1);
    }
}

/// QEMU ends at this instant: the port is that of its isa-debug-exit.
fn cut() -> ! {
    File::options().write(true).open("/dev/port").unwrap().write_all_at(&[42], 0xf4).unwrap();
    panic!("the power was not cut");
}

/// How often a copy is repeated that a busy machine held up.
const PATIENCE: usize = 20;

/// One client.
#[derive(Debug)]
pub(crate) struct Worker<'a> {
    pub(crate) node: &'a Node,
    pub(crate) ledger: &'a Mutex<Ledger>,
    pub(crate) name: String,
    client: Client,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(node: &'a Node, ledger: &'a Mutex<Ledger>, name: &str) -> Self {
        Self { node, ledger, name: name.to_owned(), client: node.client() }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing goes on after a panic: see `guest`.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn volume(&self, name: &str) -> Volume {
        self.ledger().world.volumes[name].clone()
    }

    pub(crate) fn life(&self, name: &str) -> (Life, Volume) {
        let volume = self.volume(name);
        (self.node.life(&volume.spec, name, &volume.id), volume)
    }

    /// Begins something and carries it to its end.
    pub(crate) fn go(&self, op: &Op) {
        let begun = Event::Begin { client: self.name.clone(), op: op.clone() };
        self.ledger().tell(&begun);
        self.finish(op);
    }

    /// Carries to its end what was begun, here or before a cut.
    pub(crate) fn finish(&self, op: &Op) {
        let told = self.insist(op);
        let mut ledger = self.ledger();
        let wanted = ledger.wanted(&self.name);
        let is_wanted = wanted.is_some_and(|wanted| wanted.is(op, &ledger.world));
        ledger.tell(&Event::Done { client: self.name.clone(), told });
        ledger.spring(&self.name, is_wanted);
    }

    /// Repeats a copy whose source could not be held up at first: a busy machine may take longer than the two seconds that
    /// its writers are made to wait.
    fn insist(&self, op: &Op) -> Told {
        let mut told = self.perform(op);
        for _ in 0..PATIENCE {
            match &told {
                Err(status) if status.message().contains("could not be held up") => {
                    told = self.perform(op);
                }
                _ => break,
            }
        }
        told.unwrap_or_else(|status| panic!("{op:?}: {status:?}"))
    }

    fn perform(&self, op: &Op) -> Result<Told, Status> {
        match op {
            Op::Create { volume, spec, source } => {
                let created = self.create(volume, spec, source.as_ref())?;
                let bytes = created.capacity_bytes.unsigned_abs();
                assert_eq!(bytes, spec.bytes, "{volume}");
                return Ok(Told { id: created.volume_id, bytes });
            }
            Op::Snapshot { snapshot, volume } => {
                let taken = self.client.snapshot(snapshot, &self.volume(volume).id)?;
                let bytes = taken.size_bytes.unsigned_abs();
                return Ok(Told { id: taken.snapshot_id, bytes });
            }
            Op::Up { volume } => self.up(volume)?,
            Op::Down { volume } => {
                let (life, _) = self.life(volume);
                self.client.unpublish(&life.id, &life.target)?;
                self.client.unstage(&life.id, &life.staging)?;
            }
            Op::Write { volume, slot, seed } => {
                // A power cut has unmounted it.
                self.up(volume)?;
                let (life, _) = self.life(volume);
                content::write(life.kind, &life.target, *slot, *seed);
            }
            Op::Expand { volume, bytes } => self.expand(volume, *bytes)?,
            Op::Modify { volume, keep } => {
                self.client.modify(&self.volume(volume).id, "onDelete", keep.word())?;
            }
            Op::Delete { volume } => self.client.delete(&self.volume(volume).id)?,
            Op::Forget { snapshot } => {
                let id = self.ledger().world.snapshots[snapshot].id.clone();
                self.client.delete_snapshot(&id)?;
            }
            Op::Purge { volume } => self.purge(volume),
        }
        Ok(Told::default())
    }

    /// CreateVolume, as it was asked for at first.
    pub(crate) fn create(
        &self,
        name: &str,
        spec: &Spec,
        source: Option<&Source>,
    ) -> Result<Created, Status> {
        let create = self.node.life(spec, name, "").create;
        match source.map(|source| self.source(source)) {
            None => self.client.create(&create),
            Some(source) => self.client.create_from(&create, source),
        }
    }

    fn source(&self, source: &Source) -> VolumeContentSource {
        let world = &self.ledger().world;
        match source {
            Source::Snapshot(name) => from_snapshot(&world.snapshots[name].id),
            Source::Volume(name) => from_volume(&world.volumes[name].id),
        }
    }

    fn up(&self, name: &str) -> Result<(), Status> {
        let (life, _) = self.life(name);
        life.try_stage(&self.client)?;
        life.try_publish(&self.client, &life.target)
    }

    fn expand(&self, name: &str, bytes: u64) -> Result<(), Status> {
        let (life, volume) = self.life(name);
        self.client.expand(&life.id, bytes)?;
        if volume.up && life.kind != Kind::Hostpath {
            self.client.node_expand(&life.id, &life.target, bytes)?;
        }
        Ok(())
    }

    fn purge(&self, name: &str) {
        let kept = self.ledger().world.kept[name].clone();
        let (directory, place) = kept.place;
        let directory = self.node.pool(kept.volume.spec.pool).join(directory);
        if directory.join(&place).exists() {
            std::fs::remove_dir_all(directory.join(place)).unwrap();
        }
        File::open(directory).unwrap().sync_all().unwrap();
    }

    /// A volume that was acknowledged is the same for who asks again, can be used, and has what was written.
    pub(crate) fn look_at(&self, name: &str) {
        let volume = self.volume(name);
        let again = self.create_again(name, &volume);
        assert_eq!(again.volume_id, volume.id, "{name} is another volume");
        assert_eq!(again.capacity_bytes.unsigned_abs(), volume.bytes, "{name}");
        if !volume.up {
            self.go(&Op::Up { volume: name.to_owned() });
        }
        let (life, _) = self.life(name);
        let faults = content::faults(life.kind, &life.target, &volume.slots);
        assert!(faults.is_empty(), "{name} ({:?}) has lost data: {faults:?}", volume.spec);
    }

    /// The sources of a volume may be gone, and are not looked at when the volume exists.
    fn create_again(&self, name: &str, volume: &Volume) -> Created {
        let there = |source: &&Source| match source {
            Source::Snapshot(name) => self.ledger().world.snapshots.contains_key(name),
            Source::Volume(name) => self.ledger().world.volumes.contains_key(name),
        };
        let source = volume.source.as_ref();
        if !source.as_ref().is_none_or(there) {
            let id = volume.id.clone();
            let capacity_bytes = i64::try_from(volume.bytes).unwrap();
            return Created { volume_id: id, capacity_bytes, ..Default::default() };
        }
        self.create(name, &volume.spec, source).unwrap_or_else(|e| panic!("{name}: {e:?}"))
    }

    /// What a snapshot shows is what a volume has that is made of it.
    pub(crate) fn look_at_snapshot(&self, name: &str) {
        let (snapshot, volume) = {
            let world = &self.ledger().world;
            (world.snapshots[name].clone(), world.next_name(&self.name))
        };
        let spec = Spec { bytes: snapshot.bytes, ..snapshot.spec };
        let source = Some(Source::Snapshot(name.to_owned()));
        self.go(&Op::Create { volume: volume.clone(), spec, source });
        self.look_at(&volume);
        self.go(&Op::Down { volume: volume.clone() });
        self.go(&Op::Delete { volume });
    }
}

/// Nothing is left of births and deaths that the cut has interrupted.
pub(crate) fn wait_until_swept(node: &Node, pools: &[Pool], directories: &[&str]) {
    poll(&format!("{directories:?} are empty"), || {
        let is_empty = |pool: &Pool| {
            let pool = node.pool(*pool);
            directories.iter().all(|name| names(&pool.join(name)).is_empty())
        };
        pools.iter().all(is_empty)
    });
}
