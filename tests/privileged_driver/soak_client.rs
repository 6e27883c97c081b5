//! One client of the long random test: it calls, repeats what was cut off, and compares each answer with the model.

#![expect(clippy::disallowed_methods, reason = "waits before it repeats a call")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use orlop::csi::proto::volume_capability::access_mode::Mode;
use tonic::{Code, Status};

use crate::client::Client;
use crate::driver::{is_hang_up, socket};
use crate::life::Kind;
use crate::random::Random;
use crate::soak_contended::Memory;
use crate::soak_model::{Group, Kept, Slot, Snapshot, Volume, Want};
use crate::soak_world::World;

/// Names of volumes that a client has for itself.
const SLOTS: usize = 4;
/// Names of its snapshots.
pub(crate) const SNAPSHOTS: usize = 3;
/// How often a call is repeated that finds another one running, or no driver.
const REPEATS: usize = 6000;
const PAUSE: Duration = Duration::from_millis(5);
/// The longest time between the beginning of a copy and what may disturb it.
const HEADSTART: u64 = 10_000;

/// All that a client does to a volume that it uses.
pub(crate) const MODE: Mode = Mode::SingleNodeMultiWriter;

/// What became of a call.
#[derive(Debug)]
pub(crate) enum Answer<T> {
    Done(T),
    /// As the model wants it.
    Refused,
    /// It was cut off and is not repeated; the caller does the opposite.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) number: usize,
    pub(crate) world: Arc<World>,
    pub(crate) random: Random,
    client: Client,
    /// For calls beside others of this client.
    second: Client,
    pub(crate) slots: Vec<Slot>,
    pub(crate) snapshots: Vec<Option<Snapshot>>,
    pub(crate) past_snapshots: Vec<String>,
    pub(crate) group: Option<Group>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) memory: Memory,
}

/// A program that a dead driver had started has the device, and ends by itself: kubelet repeats the call.
fn is_at_work(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("repeat the request")
}

type Step = fn(&mut Actor);

/// What a client does, and how often beside the others.
const STEPS: [(u64, Step); 27] = [
    (12, Actor::create),
    (6, Actor::delete),
    (8, Actor::retire),
    (16, Actor::start_pod),
    (6, Actor::stage),
    (8, Actor::publish),
    (7, Actor::unpublish),
    (7, Actor::unstage),
    (12, Actor::write),
    (10, Actor::read),
    (5, Actor::expand),
    (4, Actor::node_expand),
    (4, Actor::stats),
    (7, Actor::snapshot),
    (4, Actor::delete_snapshot),
    (5, Actor::restore),
    (5, Actor::clone_volume),
    (3, Actor::take_group),
    (2, Actor::delete_group),
    (4, Actor::modify),
    (2, Actor::capacity),
    (3, Actor::list),
    (2, Actor::confirm),
    (3, Actor::health),
    (6, Actor::invalid),
    (8, Actor::contend),
    (3, Actor::contend_for_copies),
];

impl Actor {
    pub(crate) fn new(world: &Arc<World>, number: usize, seed: u64) -> Self {
        let slot = |slot: usize| {
            let name = format!("client-{number}-{slot}");
            world.sandbox.make_dir(PathBuf::from("kubelet").join(&name));
            Slot { name, volume: None, past: None }
        };
        Self {
            number,
            world: Arc::clone(world),
            random: Random(seed),
            client: Client::new(socket(&world.sandbox)),
            second: Client::new(socket(&world.sandbox)),
            slots: (0..SLOTS).map(slot).collect(),
            snapshots: vec![None; SNAPSHOTS],
            past_snapshots: Vec::new(),
            group: None,
            kept: Vec::new(),
            memory: Memory::new(&world.sandbox, number),
        }
    }

    /// One random step.
    pub(crate) fn step(&mut self) {
        let total = STEPS.iter().map(|(weight, _)| weight).sum();
        let mut number = self.random.below(total);
        for (weight, step) in STEPS {
            if number < weight {
                return step(self);
            }
            number -= weight;
        }
    }

    pub(crate) fn fail(&self, what: &str, why: &str) -> ! {
        self.world.trace(self.number, format!("{what}: {why}"));
        panic!("client {}: {what}: {why}", self.number);
    }

    /// Calls until there is an answer, and compares that with what the model wants. `gives_up`: a call that was cut off
    /// need not be repeated.
    pub(crate) fn call<T>(
        &mut self,
        step: (&'static str, String),
        want: Want,
        gives_up: bool,
        call: impl Fn(&Client) -> Result<T, Status>,
    ) -> Answer<T> {
        let (kind, about) = step;
        let what = format!("{kind} {about}");
        self.world.count(kind);
        let gives_up = gives_up && self.random.one_in(3);
        let mut lost = 0;
        for _ in 0..REPEATS {
            assert!(
                !self.world.has_failed(),
                "client {}: ended, because another one failed",
                self.number
            );
            self.world.calls.fetch_add(1, Ordering::SeqCst);
            let status = match call(&self.client) {
                Ok(value) => {
                    self.note(&what, lost, "ok");
                    if let Want::Refused(code) = want {
                        self.fail(&what, &format!("succeeded; the model wants {code:?}"));
                    }
                    return Answer::Done(value);
                }
                Err(status) => status,
            };
            if is_hang_up(&status) {
                if lost == 0 {
                    self.world.count("(cut off)");
                }
                lost += 1;
                if gives_up {
                    self.note(&what, lost, "cut off, and not repeated");
                    return Answer::Lost;
                }
            } else if is_at_work(&status) {
                self.world.count("(a dead driver's program at work)");
            } else if !matches!(status.code(), Code::Aborted | Code::Unavailable) {
                return self.refused(&what, lost, want, &status);
            }
            std::thread::sleep(PAUSE);
        }
        self.fail(&what, "is not answered, however often it is repeated")
    }

    fn refused<T>(&self, what: &str, lost: usize, want: Want, status: &Status) -> Answer<T> {
        self.note(what, lost, &format!("{:?}: {}", status.code(), status.message()));
        let is_wanted = match want {
            Want::Refused(code) => code == status.code(),
            Want::Either(codes) => codes.contains(&status.code()),
            Want::Done => false,
        };
        if is_wanted {
            return Answer::Refused;
        }
        self.fail(what, &format!("{status:?}; the model wants {want:?}"))
    }

    fn note(&self, what: &str, lost: usize, answer: &str) {
        let times = if lost == 0 { String::new() } else { format!(" (cut off {lost} times)") };
        self.world.trace(self.number, format!("{what}: {answer}{times}"));
    }

    /// A call that must succeed.
    pub(crate) fn insist<T>(
        &mut self,
        step: (&'static str, String),
        call: impl Fn(&Client) -> Result<T, Status>,
    ) -> T {
        let what = format!("{} {}", step.0, step.1);
        match self.call(step, Want::Done, false, call) {
            Answer::Done(value) => value,
            Answer::Refused | Answer::Lost => self.fail(&what, "was not done"),
        }
    }

    /// A call that must be answered in that way.
    pub(crate) fn expect<T>(
        &mut self,
        step: (&'static str, String),
        want: Want,
        call: impl Fn(&Client) -> Result<T, Status>,
    ) -> Option<T> {
        match self.call(step, want, false, call) {
            Answer::Done(value) => Some(value),
            Answer::Refused | Answer::Lost => None,
        }
    }

    /// Begins a copy, and does something else to its source meanwhile; whether the copy succeeded. It ends before this
    /// ends, so it has no effect later.
    pub(crate) fn beside<T: Send>(
        &mut self,
        step: &(&'static str, String),
        call: impl Fn(&Client) -> Result<T, Status> + Sync,
        meanwhile: impl FnOnce(&mut Self),
    ) -> bool {
        self.world.count(step.0);
        let headstart = Duration::from_micros(self.random.below(HEADSTART));
        let second = std::mem::replace(&mut self.second, Client::new(socket(&self.world.sandbox)));
        let copied = std::thread::scope(|scope| {
            let copying = scope.spawn(|| call(&second));
            std::thread::sleep(headstart);
            meanwhile(self);
            copying.join().unwrap()
        });
        self.second = second;
        let what = format!("{} {}", step.0, step.1);
        let Err(status) = copied else {
            self.note(&what, 0, "ok, beside another call");
            return true;
        };
        self.note(&what, 0, &format!("{:?}: {}", status.code(), status.message()));
        let is_possible = is_hang_up(&status)
            || matches!(
                status.code(),
                Code::Aborted | Code::Unavailable | Code::NotFound | Code::FailedPrecondition
            );
        if !is_possible {
            self.fail(&what, &format!("{status:?}"));
        }
        false
    }

    /// Something in the model that the driver's answers contradict.
    pub(crate) fn claim(&self, holds: bool, what: &str) {
        if !holds {
            self.fail(what, "does not hold");
        }
    }

    pub(crate) fn any_slot(&mut self) -> usize {
        self.random.index(SLOTS)
    }

    /// A slot for something new, most of the time.
    pub(crate) fn free_slot(&mut self) -> usize {
        let free: Vec<usize> =
            (0..SLOTS).filter(|slot| self.slots[*slot].volume.is_none()).collect();
        if free.is_empty() || self.random.one_in(4) {
            self.any_slot()
        } else {
            self.random.pick(&free)
        }
    }

    /// A slot with a volume for which that holds, any one.
    pub(crate) fn slot_where(&mut self, holds: impl Fn(&Volume) -> bool) -> Option<usize> {
        let fitting = |index: &usize| self.slots[*index].volume.as_ref().is_some_and(&holds);
        let slots: Vec<usize> = (0..SLOTS).filter(fitting).collect();
        (!slots.is_empty()).then(|| self.random.pick(&slots))
    }

    pub(crate) fn staging(&self, slot: usize) -> PathBuf {
        self.world.sandbox.path("kubelet").join(&self.slots[slot].name).join("staging")
    }

    pub(crate) fn target(&self, slot: usize, target: usize) -> PathBuf {
        self.staging(slot).with_file_name(format!("target-{target}"))
    }

    /// What is mounted where this client's volumes are used.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(volume) = &slot.volume else { continue };
            if volume.staged {
                let staging = self.staging(index);
                let is_device = volume.kind() == Kind::Block;
                mounts.push(if is_device { staging.join("device") } else { staging });
            }
            let targets = volume.targets.iter().enumerate();
            let published = targets.filter(|(_, published)| published.is_some());
            mounts.extend(published.map(|(target, _)| self.target(index, target)));
        }
        mounts
    }
}
