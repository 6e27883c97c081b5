//! `current.attachments` of a record: the nodes that ControllerPublishVolume has given the volume to.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::volume::{AccessMode, Key};

/// A node that may use the volume, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The node's id.
    pub node: String,
    /// It may not write.
    pub read_only: bool,
    /// The access mode that was asked for.
    pub mode: AccessMode,
}

/// The same on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AttachmentFile {
    pub(super) node: String,
    read_only: bool,
    access_mode: String,
}

impl AttachmentFile {
    pub(super) fn of(attachment: &Attachment) -> Self {
        Self {
            node: attachment.node.clone(),
            read_only: attachment.read_only,
            access_mode: attachment.mode.to_string(),
        }
    }

    pub(super) fn read(self) -> Result<Attachment, String> {
        let mode = AccessMode::from_word(&self.access_mode).ok_or_else(|| {
            super::record::unknown("current.attachments.accessMode", &self.access_mode)
        })?;
        Ok(Attachment { node: self.node, read_only: self.read_only, mode })
    }
}

/// How many volumes are attached to each node, with those whose record is just being written. A volume is counted once:
/// its promise ends in the same step in which the entry with the attachment comes in.
#[derive(Debug, Default)]
pub(super) struct AttachmentCount {
    volumes: BTreeMap<String, usize>,
    promised: BTreeSet<(String, Key)>,
}

impl AttachmentCount {
    pub(super) fn of(&self, node: &str) -> usize {
        let promised = self.promised.iter().filter(|(to, _)| to == node).count();
        self.volumes.get(node).copied().unwrap_or(0).saturating_add(promised)
    }

    pub(super) fn promise(&mut self, key: &Key, node: &str) {
        self.promised.insert((node.to_owned(), key.clone()));
    }

    pub(super) fn take_back(&mut self, key: &Key, node: &str) {
        self.promised.remove(&(node.to_owned(), key.clone()));
    }

    pub(super) fn add(&mut self, key: &Key, node: &str) {
        self.take_back(key, node);
        *self.volumes.entry(node.to_owned()).or_default() += 1;
    }

    pub(super) fn remove(&mut self, node: &str) {
        if let Some(count) = self.volumes.get_mut(node) {
            *count -= 1;
            if *count == 0 {
                self.volumes.remove(node);
            }
        }
    }
}
