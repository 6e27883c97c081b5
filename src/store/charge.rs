//! What volumes, snapshots and graves are charged, and the sums of it.
//!
//! A thick charge has a real block behind each byte, so it is never overcommitted; a thin one takes blocks when they are
//! written.

use super::{Shared, Snapshot};
use crate::volume::{Allocation, Backend, ByteSize};

/// What something is charged, by whether each byte has a real one behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge {
    /// Blocks come when they are written.
    pub thin: ByteSize,
    /// Blocks are there from the beginning.
    pub thick: ByteSize,
}

impl Charge {
    /// Nothing.
    pub const NONE: Self = Self { thin: ByteSize::ZERO, thick: ByteSize::ZERO };

    /// So much of one kind.
    #[must_use]
    pub const fn of(size: ByteSize, allocation: Allocation) -> Self {
        match allocation {
            Allocation::Thin => Self { thin: size, ..Self::NONE },
            Allocation::Thick => Self { thick: size, ..Self::NONE },
        }
    }

    /// Both kinds together.
    #[must_use]
    pub const fn total(self) -> ByteSize {
        self.thin.saturating_add(self.thick)
    }

    /// The sum, kind by kind.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            thin: self.thin.saturating_add(other.thin),
            thick: self.thick.saturating_add(other.thick),
        }
    }

    /// The difference, kind by kind, and nothing where `other` has more.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self {
            thin: self.thin.saturating_sub(other.thin),
            thick: self.thick.saturating_sub(other.thick),
        }
    }
}

/// What something costs its pool for as long as it is there, in its place or in a grave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cost {
    /// What is charged for it alone.
    pub(super) charge: Charge,
    /// What is charged once for it and all others that have it.
    pub(super) shares: Vec<Shared>,
}

impl Cost {
    /// A volume is charged its size.
    pub(super) fn of_volume(charge: Charge, shared: &[Shared]) -> Self {
        Self { charge, shares: shared.to_vec() }
    }

    /// What a snapshot took when it was made is charged as long as it, or anything that began with it, is there.
    pub(super) fn of_snapshot(snapshot: &Snapshot) -> Self {
        if snapshot.resolved.backend() == Backend::Loop {
            // Nothing that begins with it is charged for what they share beside its size.
            return Self { charge: snapshot.charged(), shares: Vec::new() };
        }
        let own = Shared {
            size: snapshot.charge,
            writer: snapshot.source.clone(),
            origin: snapshot.itself.clone(),
        };
        let shares = std::iter::once(own).chain(snapshot.shared.iter().cloned()).collect();
        Self { charge: Charge::NONE, shares }
    }

    /// Both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.charge = self.charge.plus(other.charge);
        self.shares.extend(other.shares);
        self
    }
}

/// What the pool has promised, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charges {
    /// Volumes.
    pub volumes: ByteSize,
    /// Snapshots, those in groups included, and what is left of those that are gone in volumes that began with them.
    pub snapshots: ByteSize,
    /// Archived, retained and not yet removed ones.
    pub graves: ByteSize,
    /// What requests that have not ended will take.
    pub in_flight: ByteSize,
    /// How much of all that has real blocks from the beginning.
    pub thick: ByteSize,
}

impl Charges {
    /// All of it.
    #[must_use]
    pub const fn total(self) -> ByteSize {
        let there = self.volumes.saturating_add(self.snapshots).saturating_add(self.graves);
        there.saturating_add(self.in_flight)
    }

    /// All of it, by whether real blocks are behind it.
    #[must_use]
    pub const fn promised(self) -> Charge {
        Charge { thin: self.total().saturating_sub(self.thick), thick: self.thick }
    }
}

/// One of the sums.
pub(super) type Sum = fn(&mut Charges) -> &mut ByteSize;

pub(super) const VOLUMES: Sum = |charges| &mut charges.volumes;
pub(super) const SNAPSHOTS: Sum = |charges| &mut charges.snapshots;
pub(super) const GRAVES: Sum = |charges| &mut charges.graves;
pub(super) const IN_FLIGHT: Sum = |charges| &mut charges.in_flight;
