//! Whether a volume's directory is held to its size.

use std::os::fd::BorrowedFd;

use super::condition::{Condition, Findings};
use crate::engine::limits::requires_limit;
use crate::engine::{Engine, Located, chain};
use crate::host::{Host, HostError};
use crate::volume::{ByteSize, Limit};

impl Engine {
    /// What is wrong with the limit of a hostpath volume, from what the filesystem says of it and what the last look at its
    /// files has found.
    pub(super) fn limit_findings(
        &self,
        located: &Located,
        data: BorrowedFd<'_>,
        findings: &mut Findings,
    ) {
        let volume = located.volume();
        let Some(limit) = volume.limit else {
            if requires_limit(volume) {
                let detail = "it was made with quota: required and has no limit";
                findings.add(Condition::QuotaNotInForce, detail);
            }
            return;
        };
        let pool = located.pool.store.directory();
        match not_in_force(&*self.host, (pool, data), limit, volume.size) {
            Ok(None) => {}
            Ok(Some(detail)) => findings.add(Condition::QuotaNotInForce, &detail),
            Err(error) => findings.add(Condition::QuotaNotInForce, &chain(&error)),
        }
        if let Some(strays) = located.pool.counts.strays.of(&volume.itself()) {
            findings.add(Condition::QuotaEscaped, &strays.to_string());
        }
    }
}

/// Why a directory is not held to its size; `None` when it is.
///
/// # Errors
/// The filesystem cannot be asked.
pub(in crate::engine) fn not_in_force(
    host: &dyn Host,
    (pool, data): (BorrowedFd<'_>, BorrowedFd<'_>),
    limit: Limit,
    size: ByteSize,
) -> Result<Option<String>, HostError> {
    // Quotas that only count know the limit as well.
    if host.limit_kind(pool)? != Some(limit.kind) {
        return Ok(Some(format!("the pool's filesystem does not hold anything to {limit}")));
    }
    let Some(state) = host.limit_state(pool, limit)? else {
        return Ok(Some(format!("the pool's filesystem does not know {limit}")));
    };
    let Some(bounds) = state.bounds else {
        return Ok(Some(format!("{limit} has no bound")));
    };
    // What others have of what it wrote is added where bytes belong to who wrote them first.
    let may_be_more = limit.kind.charges_first_writer();
    if bounds.bytes < size || (bounds.bytes > size && !may_be_more) {
        return Ok(Some(format!("{limit} is bounded to {}, not {size}", bounds.bytes)));
    }
    Ok(match host.limit_of(data)? {
        Some(found) if found == limit => None,
        Some(found) => Some(format!("the directory is under {found}, not {limit}")),
        None => Some(format!("the directory is not under {limit}")),
    })
}
