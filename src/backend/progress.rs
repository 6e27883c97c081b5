//! How far a copy is, shared between the thread that copies and those who ask or interrupt.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::volume::ByteSize;

/// How far a copy is.
#[derive(Debug, Default)]
pub struct Progress {
    total: AtomicU64,
    done: AtomicU64,
    interrupted: AtomicBool,
}

impl Progress {
    /// Says how much there is to copy.
    pub fn expect(&self, total: ByteSize) {
        self.total.store(total.bytes(), Ordering::Relaxed);
    }

    /// Says that so many bytes more are copied.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is copied, and what there is to copy.
    #[must_use]
    pub fn figures(&self) -> (ByteSize, ByteSize) {
        let of = |number: &AtomicU64| ByteSize::new(number.load(Ordering::Relaxed));
        (of(&self.done), of(&self.total))
    }

    /// Makes the copy end soon: what it reads is about to change.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
    }

    /// Somebody interrupted it: what was read since may be no single instant's.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}
