//! Inline volumes: made for one pod at NodePublishVolume, gone with NodeUnpublishVolume.
//!
//! Kubelet makes their ids and calls nothing but publish, unpublish and what looks at a volume. Where an unpublish never
//! comes (the pod was removed while the driver or the machine was down), a sweep finds the volume.
//!
//! Invariants:
//! - An inline volume has a key that no CO's name has, and its record names its pod.
//! - A sweep removes a volume only when its pod's directory, and with it its target path, was absent in two scans, and
//!   nobody uses it. Where kubelet's directory cannot be seen it does nothing.
//!
//! Must not: remove a volume outside the lock of its key, which the caller holds, or touch one that has no pod.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::stage::{check_capability, flags, no_parent};
use super::{Engine, EngineError, Located, VolumeUsage, chain, read};
use crate::fault;
use crate::host::{HostError, NodeKind};
use crate::store::Entry;
use crate::telemetry::{self, Reason};
use crate::volume::{CreateSpec, Key, Pod, PoolTag, VolumeCapability, VolumeId};

/// What NodePublishVolume asks for when the volume is an inline one.
#[derive(Debug, Clone)]
pub struct InlineRequest {
    /// What to make; its name is kubelet's id.
    pub spec: CreateSpec,
    /// Where the pod will see it.
    pub target: PathBuf,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// The pod may not write.
    pub read_only: bool,
}

impl Engine {
    /// Makes an inline volume, or finds the one that an earlier call made, and shows it at the target path.
    ///
    /// # Errors
    /// See [`EngineError`]; a volume that was made by this call is gone again.
    pub fn publish_inline(&self, request: &InlineRequest) -> Result<(), EngineError> {
        let capability = &request.capability;
        if capability.access.is_block() {
            return Err(EngineError::Invalid(
                "an inline volume has a filesystem; for a raw block device use a claim".to_owned(),
            ));
        }
        let target = self.mount_path(&request.target)?.ok_or_else(|| no_parent(&request.target))?;
        let below = request.spec.pod.as_ref().map(|pod| self.pod_directory(pod));
        if let Some(below) = below.filter(|below| !request.target.starts_with(below)) {
            let target = request.target.display();
            tracing::warn!(volume = request.spec.name, %target, below = %below.display(), "the target is not below the pod's directory, so the volume cannot be swept; give the driver kubelet's directory as --kubelet-dir");
        }
        let created = self.create(&request.spec)?;
        let shown = fault::point!("engine.inline.made")
            .map_err(|e| HostError::call("publish", &request.target, e).into())
            .and_then(|()| self.locate_inline(&request.spec.name))
            .and_then(|located| {
                check_capability(located.volume(), capability)?;
                let read_only = request.read_only || capability.mode.reads_only();
                self.show(&located, target, &flags(capability), read_only)
            });
        match shown {
            // Nobody has seen it, and kubelet calls no unpublish for what it could not publish.
            Err(error) if !created.existed => Err(error.with_undo(self.delete(&created.id))),
            shown => shown,
        }
    }

    /// Undoes a publish, and ends the volume. The teardown itself is that of any other volume and needs nothing; a volume
    /// that cannot be removed now must not hold up the end of its pod and is left to [`Engine::sweep`].
    ///
    /// # Errors
    /// As [`Engine::unpublish`].
    pub fn unpublish_inline(&self, id: &str, target: &Path) -> Result<(), EngineError> {
        self.unpublish(target)?;
        let removed = fault::point!("engine.inline.unpublished")
            .map_err(|e| HostError::call("remove after the unpublish of", target, e).into())
            .and_then(|()| self.find_inline(id))
            .and_then(|found| match found {
                Some(located) => self.end(&located, target),
                None => Ok(()),
            });
        if let Err(error) = removed {
            let error = chain(&error);
            tracing::warn!(volume = id, error, "unpublished, but not removed; it is swept later");
        }
        Ok(())
    }

    /// Ends a volume that was unpublished at its pod's target path.
    fn end(&self, located: &Located, target: &Path) -> Result<(), EngineError> {
        match &located.volume().pod {
            Some(pod) if pod.target() != target => Err(EngineError::Precondition(format!(
                "its pod has it at {}, not at {}",
                pod.target().display(),
                target.display()
            ))),
            Some(_) | None => self.delete(&located.id()),
        }
    }

    /// What an inline volume takes, seen at its mount.
    ///
    /// # Errors
    /// The path is not its mount.
    pub fn stats_inline(&self, id: &str, path: &Path) -> Result<VolumeUsage, EngineError> {
        self.usage(&self.locate_inline(id)?, path)
    }

    /// The pool of an inline volume, from memory; `None` when none that is open has it.
    #[must_use]
    pub fn inline_pool(&self, id: &str) -> Option<PoolTag> {
        Some(self.inline_id(id)?.pool)
    }

    /// The inline volumes of a pool whose pods were absent in this scan and the one before.
    #[must_use]
    pub fn sweep(&self, pool: &str) -> Vec<VolumeId> {
        let open = self.pools.open_ones().into_iter().find(|open| open.name == pool);
        let Some(pool) = open.and_then(|open| self.pools.by_tag(&open.tag()).ok()) else {
            return Vec::new();
        };
        let mut absent = BTreeSet::new();
        for key in pool.store.inline() {
            let Some(id) = id_of(&pool.tag(), &key, pool.store.entry(&key)) else { continue };
            let orphan = read(Arc::clone(&pool), &id).and_then(|found| match found {
                Some(located) => self.is_orphan(&located),
                None => Ok(false),
            });
            match orphan {
                Ok(true) => {
                    absent.insert(id);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(volume = %id, error = chain(&error), "cannot tell whether its pod has gone");
                }
            }
        }
        let mut before = pool.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let twice = absent.intersection(&before).cloned().collect();
        *before = absent;
        twice
    }

    /// Removes an inline volume that [`Engine::sweep`] named, if its pod is still absent.
    ///
    /// # Errors
    /// As [`Engine::delete`].
    pub fn remove_orphan(&self, id: &VolumeId) -> Result<(), EngineError> {
        let Some(located) = self.find(id)? else { return Ok(()) };
        if self.is_orphan(&located)? {
            self.delete(id)?;
            let volume = located.volume();
            let pod = volume.pod.as_ref().map(Pod::name);
            tracing::info!(volume = %id, name = volume.name, pod, "inline volume removed: its pod has gone");
            telemetry::cleanup(Reason::InlineVolume);
        }
        Ok(())
    }

    /// An inline volume that nobody uses and whose pod's directory is absent. The target path is below that directory.
    fn is_orphan(&self, located: &Located) -> Result<bool, EngineError> {
        let Some(pod) = &located.volume().pod else { return Ok(false) };
        let (pods, directory) = (self.kubelet_dir.join("pods"), self.pod_directory(pod));
        if !pod.target().starts_with(&directory) {
            return Ok(false);
        }
        let visible = self.host.node(&pods)?.is_some_and(|node| node.kind == NodeKind::Directory);
        Ok(visible && self.host.node(&directory)?.is_none() && self.user_of(located)?.is_none())
    }

    /// Kubelet's directory of a pod.
    fn pod_directory(&self, pod: &Pod) -> PathBuf {
        self.kubelet_dir.join("pods").join(pod.uid())
    }

    /// The volume of kubelet's id.
    fn locate_inline(&self, id: &str) -> Result<Located, EngineError> {
        let absent = || EngineError::NotFound(format!("inline volume {id} does not exist"));
        self.find_inline(id)?.ok_or_else(absent)
    }

    fn find_inline(&self, id: &str) -> Result<Option<Located>, EngineError> {
        match self.inline_id(id) {
            Some(id) => read(self.pools.by_tag(&id.pool)?, &id),
            None => Ok(None),
        }
    }

    /// Our own id of an inline volume, from memory.
    pub(super) fn inline_id(&self, id: &str) -> Option<VolumeId> {
        let key = Key::of_inline(id);
        let mut pools = self.pools.open_ones().into_iter();
        pools.find_map(|pool| id_of(&pool.tag(), &key, pool.store.entry(&key)))
    }
}

fn id_of(pool: &PoolTag, key: &Key, entry: Option<Entry>) -> Option<VolumeId> {
    match entry {
        Some(Entry::Whole { generation, inline: true, .. }) => {
            Some(VolumeId { pool: pool.clone(), key: key.clone(), generation })
        }
        Some(Entry::Whole { .. } | Entry::Damaged { .. }) | None => None,
    }
}
