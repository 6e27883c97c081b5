//! Listing and single look-ups.

use std::collections::BTreeMap;

use super::{Engine, EngineError};
use crate::store::{Entry, Volume};
use crate::volume::{ByteSize, VolumeCapability, VolumeId};

/// A volume in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: VolumeId,
    /// Its size.
    pub size: ByteSize,
    /// The nodes that it is attached to.
    pub nodes: Vec<String>,
}

impl Engine {
    /// At most `count` volumes behind `after`, in the order of pool tags and keys, and whether there are more.
    ///
    /// Volumes whose record is damaged have no id that could be told, and those of a pool that is away cannot be seen;
    /// both are in the log and in `orlop volume list`. Inline volumes are their pods', not the CO's, and left out.
    #[must_use]
    pub fn list(&self, after: Option<&VolumeId>, count: usize) -> (Vec<Listed>, bool) {
        let mut pools = self.pools.here();
        pools.sort_by_key(|pool| pool.tag());
        let mut listed = Vec::new();
        for pool in pools {
            let tag = pool.tag();
            let mut behind = match after {
                Some(after) if after.pool > tag => continue,
                Some(after) if after.pool == tag => Some(after.key.clone()),
                Some(_) | None => None,
            };
            // One more than asked tells whether there is another page.
            while listed.len() <= count {
                let page = pool
                    .store
                    .entries_after(behind.as_ref(), (count - listed.len()).saturating_add(1));
                let Some((last, _)) = page.last() else { break };
                behind = Some(last.clone());
                for (key, entry) in page {
                    if let Entry::Whole { generation, size, inline: false, nodes } = entry {
                        let id = VolumeId { pool: tag.clone(), key, generation };
                        listed.push(Listed { id, size, nodes });
                    }
                }
            }
        }
        let more = listed.len() > count;
        listed.truncate(count);
        (listed, more)
    }

    /// The volume of an id.
    ///
    /// # Errors
    /// It does not exist, is damaged, or its pool is away.
    pub fn get(&self, id: &VolumeId) -> Result<Volume, EngineError> {
        self.locate(id).map(|located| located.record.volume)
    }

    /// `None` when a volume can be used in all these ways and was made with these parameters; otherwise why not.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn validate(
        &self,
        id: &VolumeId,
        capabilities: &[VolumeCapability],
        parameters: &BTreeMap<String, String>,
    ) -> Result<Option<String>, EngineError> {
        let volume = self.get(id)?;
        let made_with = &volume.request.parameters;
        let other = parameters.iter().find(|(name, asked)| made_with.get(*name) != Some(asked));
        if let Some((name, asked)) = other {
            return Ok(Some(format!("parameter {name}: the volume was not made with {asked}")));
        }
        let refusal = capabilities
            .iter()
            .find_map(|capability| super::stage::check_capability(&volume, capability).err());
        Ok(refusal.map(|error| error.to_string()))
    }
}
