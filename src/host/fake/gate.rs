//! Holds up one call of the model until a test lets it go on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    reached: bool,
    open: bool,
}

/// Where a call waits.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        done: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_while(state, |state| !done(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a call is here, and waits for the gate to be opened.
    pub(super) fn pass(&self) {
        let mut state = self.state();
        state.reached = true;
        self.changed.notify_all();
        drop(self.wait(state, |state| state.open));
    }
}

/// A call that waits; it goes on when this is released or dropped.
#[derive(Debug)]
#[must_use = "the call goes on when this is dropped"]
pub struct Blocked(Arc<Gate>);

impl Blocked {
    pub(super) fn new() -> (Self, Arc<Gate>) {
        let gate = Arc::new(Gate::default());
        (Self(Arc::clone(&gate)), gate)
    }

    /// Blocks until a call waits here.
    pub fn wait(&self) {
        drop(self.0.wait(self.0.state(), |state| state.reached));
    }

    /// Lets the call go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        self.0.state().open = true;
        self.0.changed.notify_all();
    }
}
