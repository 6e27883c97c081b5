//! What a pool has promised to requests that have not ended.
//!
//! Invariant: every byte is counted once at every instant. A promise is made, given back, and turned into an entry under
//! the lock of the index, so nobody ever sees something twice, or not at all.

use super::charge::Charge;
use super::index::Index;
use super::pool::Pool;
use crate::volume::ByteSize;

/// Space that is promised to a request which has not ended; given back when dropped.
#[derive(Debug)]
pub struct Promise<'a> {
    pool: &'a Pool,
    charge: Charge,
}

impl Pool {
    /// Promises space, if `room` says that there is so much beside all that is promised by then. `room` is asked under
    /// the lock of the index: it only calculates.
    ///
    /// # Errors
    /// What there is room for.
    pub fn promise(
        &self,
        charge: Charge,
        room: impl FnOnce(Charge) -> ByteSize,
    ) -> Result<Promise<'_>, ByteSize> {
        let mut index = self.index();
        let room = room(index.charges().promised());
        if charge.total() > room {
            return Err(room);
        }
        index.begin_promise(charge);
        drop(index);
        Ok(Promise { pool: self, charge })
    }

    /// A promise of nothing, to be added to.
    #[must_use]
    pub const fn no_promise(&self) -> Promise<'_> {
        Promise { pool: self, charge: Charge::NONE }
    }
}

impl<'a> Promise<'a> {
    /// Promises what is freed under the same lock.
    pub(super) fn begin(pool: &'a Pool, index: &mut Index, charge: Charge) -> Self {
        index.begin_promise(charge);
        Self { pool, charge }
    }

    /// How much is promised.
    #[must_use]
    pub const fn charge(&self) -> Charge {
        self.charge
    }

    /// Makes another promise of the same pool a part of this one.
    pub fn add(&mut self, mut other: Self) {
        self.charge = self.charge.plus(std::mem::take(&mut other.charge));
    }

    /// Ends it under the lock under which what it was for is put into the index.
    pub(super) fn settle(&mut self, index: &mut Index) {
        index.end_promise(std::mem::take(&mut self.charge));
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        if self.charge != Charge::NONE {
            self.pool.index().end_promise(self.charge);
        }
    }
}
