//! Access modes and access types, as CSI names them.

use super::MountFlags;
use super::words::word_enum;

word_enum! {
    /// Who may use a volume, and how. The words and their meaning are the CSI specification's.
    AccessMode {
        /// One writer; without the capability `SINGLE_NODE_MULTI_WRITER` this is Kubernetes' `ReadWriteOnce`.
        SingleNodeWriter = "SINGLE_NODE_WRITER",
        /// One reader.
        SingleNodeReaderOnly = "SINGLE_NODE_READER_ONLY",
        /// Kubernetes' `ReadOnlyMany`.
        MultiNodeReaderOnly = "MULTI_NODE_READER_ONLY",
        /// Many readers, one writer.
        MultiNodeSingleWriter = "MULTI_NODE_SINGLE_WRITER",
        /// Kubernetes' `ReadWriteMany`.
        MultiNodeMultiWriter = "MULTI_NODE_MULTI_WRITER",
        /// Kubernetes' `ReadWriteOncePod`.
        SingleNodeSingleWriter = "SINGLE_NODE_SINGLE_WRITER",
        /// Kubernetes' `ReadWriteOnce` with the capability `SINGLE_NODE_MULTI_WRITER`.
        SingleNodeMultiWriter = "SINGLE_NODE_MULTI_WRITER",
    }
}

impl AccessMode {
    /// It may be attached to more than one node.
    #[must_use]
    pub const fn is_multi_node(self) -> bool {
        matches!(
            self,
            Self::MultiNodeReaderOnly | Self::MultiNodeSingleWriter | Self::MultiNodeMultiWriter
        )
    }

    /// Every use is read-only.
    #[must_use]
    pub const fn reads_only(self) -> bool {
        matches!(self, Self::SingleNodeReaderOnly | Self::MultiNodeReaderOnly)
    }

    /// At most one target path on a node (CSI 1.13, `NodePublishVolume`).
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        matches!(
            self,
            Self::SingleNodeWriter | Self::SingleNodeSingleWriter | Self::SingleNodeReaderOnly
        )
    }

    /// At most one of the target paths may be writable.
    #[must_use]
    pub const fn has_one_writer(self) -> bool {
        matches!(
            self,
            Self::SingleNodeWriter | Self::SingleNodeSingleWriter | Self::MultiNodeSingleWriter
        )
    }
}

/// What a pod sees: a mounted directory, or a raw block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessType {
    /// A directory.
    Mount {
        /// The filesystem asked for, as the request says it; empty when that is left open. A hostpath volume ignores
        /// it, whatever it is: the provisioner sends its default to every class.
        filesystem: String,
        /// The mount flags asked for.
        flags: MountFlags,
    },
    /// A block device.
    Block,
}

impl AccessType {
    /// A raw block device.
    #[must_use]
    pub const fn is_block(&self) -> bool {
        matches!(self, Self::Block)
    }
}

/// One way in which a volume is to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeCapability {
    /// Directory or device.
    pub access: AccessType,
    /// Who and how.
    pub mode: AccessMode,
}

#[cfg(test)]
mod tests {
    use super::AccessMode::*;

    #[test]
    fn the_table_of_modes() {
        // mode, reads only, one target, one writer
        for (mode, reads_only, exclusive, one_writer) in [
            (SingleNodeWriter, false, true, true),
            (SingleNodeReaderOnly, true, true, false),
            (MultiNodeReaderOnly, true, false, false),
            (MultiNodeSingleWriter, false, false, true),
            (MultiNodeMultiWriter, false, false, false),
            (SingleNodeSingleWriter, false, true, true),
            (SingleNodeMultiWriter, false, false, false),
        ] {
            assert_eq!(
                (mode.reads_only(), mode.is_exclusive(), mode.has_one_writer()),
                (reads_only, exclusive, one_writer),
                "{mode:?}"
            );
        }
    }
}
