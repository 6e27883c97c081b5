//! Listing and single look-ups.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::open_pool::OpenPool;
use super::{Engine, EngineError};
use crate::store::{Entry, Volume};
use crate::volume::{ByteSize, Key, VolumeCapability, VolumeId};

/// So many volumes are taken from the index at once.
const STRETCH: usize = 256;

/// A volume on a walk through the pools.
pub(super) type Walked = (Arc<OpenPool>, Key, Entry);

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
        let whole = |(pool, key, entry): Walked| match entry {
            Entry::Whole { generation, size, inline: false, nodes, .. } => {
                Some(Listed { id: VolumeId { pool: pool.tag(), key, generation }, size, nodes })
            }
            Entry::Whole { inline: true, .. } | Entry::Damaged { .. } => None,
        };
        let mut behind = self.walk(after).filter_map(whole);
        let listed = behind.by_ref().take(count).collect();
        (listed, behind.next().is_some())
    }

    /// What there is in the pools that are here behind a volume, in the order of pool tags and keys. It is read in
    /// stretches, so that nobody waits for a long list.
    pub(super) fn walk(&self, after: Option<&VolumeId>) -> impl Iterator<Item = Walked> + use<> {
        let mut pools = self.pools.here();
        pools.sort_by_key(|pool| pool.tag());
        let after = after.cloned();
        pools.into_iter().flat_map(move |pool| {
            let (tag, mut behind) = (pool.tag(), None);
            let mut ended = false;
            if let Some(after) = &after {
                ended = after.pool > tag;
                behind = (after.pool == tag).then(|| after.key.clone());
            }
            let stretch = move || {
                let page = if ended {
                    Vec::new()
                } else {
                    pool.store.entries_after(behind.as_ref(), STRETCH)
                };
                behind = Some(page.last()?.0.clone());
                let pool = Arc::clone(&pool);
                Some(page.into_iter().map(move |(key, entry)| (Arc::clone(&pool), key, entry)))
            };
            std::iter::from_fn(stretch).flatten()
        })
    }

    /// The volume of an id.
    ///
    /// # Errors
    /// It does not exist, is damaged, or its pool is away.
    pub fn get(&self, id: &VolumeId) -> Result<Volume, EngineError> {
        self.locate_any(id).map(|located| located.record.volume)
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
