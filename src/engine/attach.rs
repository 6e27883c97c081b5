//! ControllerPublishVolume and ControllerUnpublishVolume: which nodes may use a volume, kept in its record.
//!
//! Invariant: never more volumes are attached to this node than [`Engine::volume_limit`]. A place is promised from
//! memory, under a lock that no I/O is done under, before the record is written.

use std::sync::{MutexGuard, PoisonError};

use super::stage::check_capability;
use super::{Engine, EngineError, Located};
use crate::store::Attachment;
use crate::volume::{VolumeCapability, VolumeId};

/// What ControllerPublishVolume asks for.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// Which volume.
    pub id: VolumeId,
    /// To which node.
    pub node: String,
    /// How it will be used.
    pub capability: VolumeCapability,
    /// The node may not write.
    pub read_only: bool,
}

/// A place on this node that is kept until the record says so, or until this is dropped.
struct Promise<'a> {
    located: &'a Located,
    node: &'a str,
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let Located { pool, record } = self.located;
        pool.store.take_back_attachment(&record.volume.key, self.node);
    }
}

impl Engine {
    /// Volumes must be attached before they are used.
    #[must_use]
    pub const fn attaches(&self) -> bool {
        self.attach
    }

    /// Lets a node use a volume.
    ///
    /// # Errors
    /// No such volume or node, attached otherwise or elsewhere, or as many as the node can have.
    pub fn attach(&self, request: &AttachRequest) -> Result<(), EngineError> {
        let AttachRequest { id, node, capability, read_only } = request;
        let located = self.locate(id)?;
        if *node != self.node_id {
            return Err(EngineError::NotFound(format!(
                "node {node:?} does not exist for this driver; the disks of volume {id} are on node {:?}",
                self.node_id
            )));
        }
        // At this point of a volume's life an unsuitable capability is a field that is not supported.
        check_capability(located.volume(), capability)
            .map_err(|error| EngineError::Invalid(error.to_string()))?;
        let wanted =
            Attachment { node: node.clone(), read_only: *read_only, mode: capability.mode };
        if is_attached_so(&located, &wanted)? {
            return Ok(());
        }
        let promise = self.promise(&located, node)?;
        let mut record = located.record.clone();
        record.volume.attachments.push(wanted);
        let written = located.pool.store.update(&record);
        drop(promise);
        written.map_err(|error| no_room(error.into(), id))
    }

    fn promise<'a>(&self, located: &'a Located, node: &'a str) -> Result<Promise<'a>, EngineError> {
        let limit = usize::try_from(self.volume_limit()).unwrap_or(usize::MAX);
        let _turn = self.attaching();
        let attached: usize =
            self.pools.open_ones().iter().map(|pool| pool.store.attached(node)).sum();
        if attached >= limit {
            return Err(EngineError::NoSpace(format!(
                "{attached} volumes are attached to node {node:?}, which is as many as it can have (max_volumes_per_node); detach one first"
            )));
        }
        located.pool.store.promise_attachment(&located.volume().key, node);
        Ok(Promise { located, node })
    }

    fn attaching(&self) -> MutexGuard<'_, ()> {
        // It guards nothing that a panic could leave broken.
        self.attaching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a volume from a node, or from all of them. One that does not exist, or is not attached there, is fine.
    ///
    /// # Errors
    /// Its record is damaged, or its pool is away (and it was not given up).
    pub fn detach(&self, id: &VolumeId, node: Option<&str>) -> Result<(), EngineError> {
        let Some(Located { pool, mut record }) = self.find_unless_forgotten(id)? else {
            return Ok(());
        };
        let attachments = &mut record.volume.attachments;
        let before = attachments.len();
        attachments.retain(|attachment| node.is_some_and(|node| attachment.node != node));
        if attachments.len() == before {
            return Ok(());
        }
        pool.store.update(&record).map_err(|error| no_room(error.into(), id))
    }

    /// What is attached must not be deleted; without `--attach` what is left in records does not count.
    pub(super) fn refuse_attached(&self, located: &Located) -> Result<(), EngineError> {
        match located.volume().attachments.first() {
            Some(attachment) if self.attach => Err(EngineError::Precondition(format!(
                "volume {} is attached to node {:?}; call ControllerUnpublishVolume first",
                located.id(),
                attachment.node
            ))),
            Some(_) | None => Ok(()),
        }
    }

    /// This node may use the volume, and only read it if this answers `true`. The pod of an inline volume may always:
    /// no controller knows of it.
    pub(super) fn is_attached_read_only(&self, located: &Located) -> Result<bool, EngineError> {
        let volume = located.volume();
        if !self.attach || volume.pod.is_some() {
            return Ok(false);
        }
        let here = volume.attachments.iter().find(|attachment| attachment.node == self.node_id);
        here.map(|attachment| attachment.read_only).ok_or_else(|| {
            EngineError::Precondition(format!(
                "volume {} is not attached to node {:?}; call ControllerPublishVolume first (in Kubernetes: a CSIDriver with attachRequired: true), or serve without --attach",
                located.id(),
                self.node_id
            ))
        })
    }
}

/// The volume is attached exactly so; `false` when it may be.
fn is_attached_so(located: &Located, wanted: &Attachment) -> Result<bool, EngineError> {
    let id = located.id();
    let attachments = &located.volume().attachments;
    if let Some(has) = attachments.iter().find(|has| has.node == wanted.node) {
        return if has == wanted {
            Ok(true)
        } else {
            Err(EngineError::Conflict(format!(
                "volume {id} is attached to node {:?} as {}, not as {}; call ControllerUnpublishVolume first",
                has.node,
                describe(has),
                describe(wanted)
            )))
        };
    }
    let both = |has: &Attachment| has.mode.is_multi_node() && wanted.mode.is_multi_node();
    match attachments.iter().find(|has| !both(has)) {
        None => Ok(false),
        Some(has) => Err(EngineError::Precondition(format!(
            "volume {id} is attached to node {:?} as {}; call ControllerUnpublishVolume for that node first",
            has.node,
            describe(has)
        ))),
    }
}

fn describe(attachment: &Attachment) -> String {
    let read_only = if attachment.read_only { ", read-only" } else { "" };
    format!("{}{read_only}", attachment.mode)
}

fn no_room(error: EngineError, id: &VolumeId) -> EngineError {
    error.when_full(|cause| {
        EngineError::NoSpace(format!(
            "the pool's filesystem has no room to write the record of volume {id} ({cause}); free some"
        ))
    })
}
