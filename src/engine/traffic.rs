//! Node calls and copies of the same volume: which are under way, so that a copy that needs quiet notices when it ends.
//!
//! A copy that is not of one instant is good only when nobody wrote meanwhile. Node calls are never delayed for it: one
//! that comes in interrupts the copy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::Progress;
use crate::volume::Key;

/// What is under way, by volume.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    volumes: Mutex<HashMap<Key, Volume>>,
}

#[derive(Debug, Default)]
struct Volume {
    calls: usize,
    copies: Vec<Arc<Progress>>,
}

impl Volume {
    fn is_quiet(&self) -> bool {
        self.calls == 0 && self.copies.is_empty()
    }
}

/// A Node call that may let somebody write; over when dropped.
#[derive(Debug)]
pub(super) struct Call<'a> {
    traffic: &'a Traffic,
    key: Key,
}

/// A copy that needs quiet; over when dropped.
#[derive(Debug)]
pub(super) struct QuietCopy<'a> {
    traffic: &'a Traffic,
    key: Key,
    progress: Arc<Progress>,
}

impl Traffic {
    fn volumes(&self) -> MutexGuard<'_, HashMap<Key, Volume>> {
        // Each change is one call that leaves it whole.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a Node call, before it makes anything that can be written through.
    pub(super) fn enter(&self, key: &Key) -> Call<'_> {
        let mut volumes = self.volumes();
        let volume = volumes.entry(key.clone()).or_default();
        volume.calls += 1;
        for copy in &volume.copies {
            copy.interrupt();
        }
        drop(volumes);
        Call { traffic: self, key: key.clone() }
    }

    /// Begins a copy, before it looks who uses the volume; `None` while a Node call is under way.
    pub(super) fn begin_copy(&self, key: &Key, progress: &Arc<Progress>) -> Option<QuietCopy<'_>> {
        let mut volumes = self.volumes();
        let volume = volumes.entry(key.clone()).or_default();
        if volume.calls > 0 {
            return None;
        }
        volume.copies.push(Arc::clone(progress));
        drop(volumes);
        Some(QuietCopy { traffic: self, key: key.clone(), progress: Arc::clone(progress) })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut volumes = self.traffic.volumes();
        if let Some(volume) = volumes.get_mut(&self.key) {
            volume.calls -= 1;
            if volume.is_quiet() {
                volumes.remove(&self.key);
            }
        }
    }
}

impl Drop for QuietCopy<'_> {
    fn drop(&mut self) {
        let mut volumes = self.traffic.volumes();
        if let Some(volume) = volumes.get_mut(&self.key) {
            volume.copies.retain(|copy| !Arc::ptr_eq(copy, &self.progress));
            if volume.is_quiet() {
                volumes.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_call_interrupts_copies_and_keeps_new_ones_from_beginning() {
        let traffic = Traffic::default();
        let (one, other) = (Key::of_name("one"), Key::of_name("other"));
        let progress = Arc::new(Progress::default());
        let copy = traffic.begin_copy(&one, &progress).unwrap();
        let elsewhere = traffic.enter(&other);
        assert!(!progress.is_interrupted());
        let call = traffic.enter(&one);
        assert!(progress.is_interrupted());
        let fresh = Arc::new(Progress::default());
        assert!(traffic.begin_copy(&one, &fresh).is_none());
        drop(call);
        assert!(traffic.begin_copy(&one, &fresh).is_some());
        drop((copy, elsewhere));
        assert!(traffic.volumes().is_empty());
    }
}
