//! The one formula of what a pool can still promise.
//!
//! ```text
//! usable   C   what the filesystem has for this pool: what is available + what the pool's own data takes
//! reserve  R   what volumes may never take
//! thick    K   Σ charges with real blocks behind them: thick images, their snapshots, those in flight
//! thin     N   Σ all other charges: thin images, directories, snapshots, trash, archive, retained, in flight
//! written  W   what of N has been written
//! f            overcommit, and g = max(f, 1)
//!
//! left       = f × C − g × R − g × K − N
//! thin room  = min(left,     C − R − K − W, available − R)
//! thick room = min(left / g, C − R − K − W, available − R)
//! ```
//!
//! So each real byte beyond the reserve is either one thick byte or `f` thin ones. Thick promises never exceed what is
//! real, whatever was overcommitted before: they are bounded by what is left of it after all that is written
//! (C − R − K − W), and a thin byte promised counts 1/f of a real one. With f = 1 this is C − R − K − N. Therefore
//! K + N ≤ f × C − R always holds for what was promised (a pool whose filesystem is filled by others can have promised
//! more before).
//!
//! Must not: do I/O, or know pools.

use crate::host::Space;
use crate::store::Charge;
use crate::volume::{Allocation, ByteSize};

/// Parts of a million: the factor is the operator's estimate, but 1 must be exactly 1.
const WHOLE: i128 = 1_000_000;

/// What a pool is given and has promised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Terms {
    /// What its filesystem has for it.
    pub(super) usable: ByteSize,
    /// What of the thin promises has been written.
    pub(super) written: ByteSize,
    /// What is available now.
    pub(super) available: ByteSize,
    /// What volumes may never take.
    pub(super) reserve: ByteSize,
    /// Bytes promised for each real one.
    pub(super) overcommit: f64,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the configuration allows 0 to 1000; `as` saturates"
)]
fn parts(factor: f64) -> i128 {
    (factor * 1e6).round() as i128
}

fn signed(size: ByteSize) -> i128 {
    i128::from(size.bytes())
}

fn size(bytes: i128) -> ByteSize {
    ByteSize::new(u64::try_from(bytes.max(0)).unwrap_or(u64::MAX))
}

impl Terms {
    /// What can still be promised beside all that is.
    pub(super) fn room(&self, promised: Charge, allocation: Allocation) -> ByteSize {
        let factor = parts(self.overcommit);
        let own = factor.max(WHOLE);
        let (usable, reserve) = (signed(self.usable), signed(self.reserve));
        let (thick, thin) = (signed(promised.thick), signed(promised.thin));
        let left = factor * usable - own * (reserve + thick) - WHOLE * thin;
        let left = match allocation {
            Allocation::Thin => left.div_euclid(WHOLE),
            Allocation::Thick => left.div_euclid(own),
        };
        let real = usable - reserve - thick - signed(self.written);
        size(left.min(real).min(signed(self.available) - reserve))
    }
}

/// What is usable lies between these: known data counts as it is, all else as nothing or as all that it is charged.
pub(super) fn bounds(
    space: &Space,
    known: ByteSize,
    unknown_charges: ByteSize,
) -> (ByteSize, ByteSize) {
    let low = space.available.saturating_add(known);
    (low.min(space.total), low.saturating_add(unknown_charges).min(space.total))
}

/// Less than so much available is too little: the reserve, but at least 1 % and at most 5 % of the filesystem. A reserve of
/// 20 % keeps room for kubelet, and to reach into it is no trouble of the volumes yet. Where more may come than there is
/// room for, it is at least 10 %: then writers will fail, and somebody has to act before.
pub(super) fn least_available(space: &Space, reserve: ByteSize, to_come: ByteSize) -> ByteSize {
    let percent = |share: u64| ByteSize::new(space.total.bytes() / 100 * share);
    let least = reserve.clamp(percent(1), percent(5));
    if to_come > space.available { least.max(percent(10)) } else { least }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mib(count: u64) -> ByteSize {
        ByteSize::mib(count)
    }

    fn terms(usable: u64, written: u64, overcommit: f64) -> Terms {
        let available = mib(usable - written);
        Terms {
            usable: mib(usable),
            written: mib(written),
            available,
            reserve: mib(100),
            overcommit,
        }
    }

    #[test]
    fn thick_and_thin_share_what_is_real() {
        let thin = |promised| Charge { thin: mib(promised), ..Charge::NONE };
        let both = |thin, thick| Charge { thin: mib(thin), thick: mib(thick) };
        let rows = [
            // (terms, promised, thin room, thick room)
            (terms(1100, 0, 1.0), Charge::NONE, 1000, 1000),
            (terms(1100, 0, 1.0), both(300, 400), 300, 300),
            // What is promised and what is written is not counted twice.
            (terms(1100, 300, 1.0), thin(300), 700, 700),
            (terms(1100, 0, 3.0), Charge::NONE, 1000, 1000),
            // Two thirds of what is real are spoken for.
            (terms(1100, 0, 3.0), thin(2000), 1000, 333),
            // Written to the end: what thin volumes have, thick ones cannot get.
            (terms(1100, 900, 3.0), thin(2000), 100, 100),
            // What is thick is thick, however high the factor.
            (terms(1100, 0, 3.0), both(0, 1000), 0, 0),
            (terms(1100, 0, 3.0), both(0, 900), 100, 100),
            (terms(1100, 0, 3.0), both(1500, 400), 300, 100),
            (terms(1100, 0, 0.5), Charge::NONE, 450, 450),
        ];
        for (terms, promised, thin, thick) in rows {
            let room = |allocation| terms.room(promised, allocation).bytes() >> 20;
            let found = (room(Allocation::Thin), room(Allocation::Thick));
            assert_eq!(found, (thin, thick), "{terms:?} {promised:?}");
        }
    }

    #[test]
    fn what_others_took_is_not_promised() {
        // 100 MiB are left of it, as somebody filled the filesystem since it was measured.
        let taken = Terms { available: mib(200), ..terms(1100, 0, 1.0) };
        assert_eq!(taken.room(Charge::NONE, Allocation::Thin), mib(100));
        let full = Terms { available: mib(50), ..taken };
        assert_eq!(full.room(Charge::NONE, Allocation::Thick), ByteSize::ZERO);
    }

    proptest! {
        /// Whatever is accepted, promises keep within what was configured, and thick ones within what is real.
        #[test]
        fn promises_keep_within_the_formula(
            usable in 0_u64..1 << 45,
            reserve in 0_u64..1 << 44,
            hundredths in 0_u32..500,
            wishes in proptest::collection::vec((0_u64..1 << 43, any::<bool>()), 0..40),
        ) {
            let usable = ByteSize::new(usable);
            let reserve = ByteSize::new(reserve);
            let overcommit = f64::from(hundredths) / 100.0;
            let terms = Terms { usable, written: ByteSize::ZERO, available: usable, reserve, overcommit };
            let mut promised = Charge::NONE;
            for (size, thick) in wishes {
                let allocation = if thick { Allocation::Thick } else { Allocation::Thin };
                if ByteSize::new(size) <= terms.room(promised, allocation) {
                    promised = promised.plus(Charge::of(ByteSize::new(size), allocation));
                }
            }
            let most = i128::from(usable.bytes()) * i128::from(hundredths) / 100;
            let total = i128::from(promised.total().bytes());
            prop_assert!(total == 0 || total <= most - i128::from(reserve.bytes()));
            prop_assert!(promised.thick.saturating_add(reserve) <= usable || promised.thick == ByteSize::ZERO);
        }
    }
}
