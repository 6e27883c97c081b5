//! How the pools are, in words and from memory: nobody's disk is asked.

use super::{Pools, Slot, State};

/// All that a pool can be.
pub(in crate::engine) const STATES: [&str; 4] = ["ready", "waiting", "away", "hung"];

impl Pools {
    /// Each pool's name, and which of [`STATES`] it is in.
    pub(in crate::engine) fn states(&self) -> Vec<(String, &'static str)> {
        let word = |slot: &Slot| match slot.state() {
            State::Ready(pool) if self.twins(&pool.tag()).is_some() => "away",
            State::Ready(pool) if pool.answers.is_hung() => "hung",
            State::Ready(_) => "ready",
            State::Waiting(_) => "waiting",
            State::Away(_) if slot.answers.is_hung() => "hung",
            State::Away(_) => "away",
        };
        self.slots.iter().map(|slot| (slot.config.name.clone(), word(slot))).collect()
    }
}
