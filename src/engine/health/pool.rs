//! What can be seen of a pool: whether it can be written, what the kernel has counted, how much is left.

use super::Round;
use super::condition::{Condition, Findings};
use crate::engine::open_pool::OpenPool;
use crate::engine::room::least_available;
use crate::engine::{Engine, chain};
use crate::host::MountEntry;
use crate::volume::ByteSize;

fn describe(mount: &MountEntry) -> String {
    format!("{} on {}", mount.filesystem, mount.source.display())
}

impl Engine {
    /// What is wrong with a pool that is here.
    pub(super) fn pool_findings(&self, pool: &OpenPool, round: &Round) -> Findings {
        let mut findings = Findings::default();
        let who = format!("pool {} ({})", pool.name, pool.store.path().display());
        let Some(_visit) = pool.answers.enter() else {
            findings.add(Condition::PoolHung, &format!("{who} does not answer"));
            return findings;
        };
        let place = pool.store.path().canonicalize();
        match place.as_ref().map(|place| round.table.containing(place)) {
            Ok(Some(mount)) => self.judge_mount(&who, mount, &mut findings),
            // A process has a root, so there is always a mount.
            Ok(None) => {}
            Err(error) => findings.add(Condition::PoolReadOnly, &format!("{who}: {error}")),
        }
        if pool.foundation.as_ref().is_some_and(|foundation| foundation.is_sparse) {
            findings.add(Condition::PoolSparse, &format!("{who}: its image is sparse"));
        }
        match self.host.space(pool.store.directory()) {
            Ok(space) => {
                let to_come = self.to_come(pool);
                let least = least_available(&space, pool.reserve.of(space.total), to_come);
                if space.available < least {
                    let detail = format!(
                        "{who}: {} of {} are available, which is less than {least}",
                        space.available, space.total
                    );
                    findings.add(Condition::PoolNearlyFull, &detail);
                }
            }
            Err(error) => {
                findings.add(Condition::PoolReadOnly, &format!("{who}: {}", chain(&error)));
            }
        }
        findings
    }

    /// What thin volumes may still write; nothing when it cannot be told.
    fn to_come(&self, pool: &OpenPool) -> ByteSize {
        let terms = pool.terms(&*self.host, false);
        let written = terms.map(|terms| terms.written);
        let thin = pool.store.charges().promised().thin;
        written.map_or(ByteSize::ZERO, |written| thin.saturating_sub(written))
    }

    fn judge_mount(&self, who: &str, mount: &MountEntry, findings: &mut Findings) {
        let filesystem = describe(mount);
        if mount.filesystem_stopped {
            let detail = format!("{who}: the kernel has stopped its filesystem ({filesystem})");
            findings.add(Condition::PoolReadOnly, &detail);
        } else if mount.is_read_only() {
            let detail = format!("{who}: its filesystem ({filesystem}) is read-only");
            findings.add(Condition::PoolReadOnly, &detail);
        }
        let errors = self.host.filesystem_errors(mount);
        if errors > 0 {
            let detail = format!(
                "{who}: the kernel has counted {errors} errors on its filesystem ({filesystem})"
            );
            findings.add(Condition::PoolFilesystemErrors, &detail);
        }
    }
}
