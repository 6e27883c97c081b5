//! What a disk begins with: ext4, XFS and btrfs superblocks, read without any library.
//!
//! Pure: bytes in, facts out. Field positions are the on-disk formats' (ext4: Documentation/filesystems/ext4,
//! XFS: xfs_dsb, btrfs: struct btrfs_super_block).

use super::Superblock;
use crate::volume::{ByteSize, Filesystem, FilesystemUuid};

/// The label of a filesystem that was made for a managed pool. XFS has room for 12 bytes.
pub const POOL_LABEL: &str = "orlop-pool";

/// A known filesystem, as its superblock tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// Which one.
    pub filesystem: Filesystem,
    /// How much of the device it uses.
    pub size: ByteSize,
    /// It says itself that it found errors (ext4 only; the others have no such mark).
    pub has_errors: bool,
    /// Its log holds what is not in its place yet (ext4, btrfs; XFS does not say).
    pub needs_replay: bool,
}

/// As much of the beginning of a device as [`probe`] wants to see.
pub const PROBE_LENGTH: usize = 0x1_0000 + 0x1000;

const EXT4_AT: usize = 0x400;
const BTRFS_AT: usize = 0x1_0000;

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn le32(head: &[u8], at: usize) -> Option<u64> {
    bytes(head, at).map(|b| u64::from(u32::from_le_bytes(b)))
}

/// Reads the superblocks in the first [`PROBE_LENGTH`] bytes of a device; a shorter one is fine.
#[must_use]
pub fn probe(head: &[u8]) -> Option<Signature> {
    xfs(head).or_else(|| btrfs(head)).or_else(|| ext4(head))
}

fn ext4(head: &[u8]) -> Option<Signature> {
    // s_magic, s_blocks_count_{lo,hi}, s_log_block_size, s_state, s_feature_incompat
    let magic: [u8; 2] = bytes(head, EXT4_AT + 0x38)?;
    if magic != [0x53, 0xef] {
        return None;
    }
    let state = u16::from_le_bytes(bytes(head, EXT4_AT + 0x3a)?);
    let is_64bit = le32(head, EXT4_AT + 0x60)? & 0x80 != 0;
    let high = if is_64bit { le32(head, EXT4_AT + 0x150)? } else { 0 };
    let blocks = le32(head, EXT4_AT + 0x4)? | (high << 32);
    let shift = u32::try_from(le32(head, EXT4_AT + 0x18)?).ok()?.checked_add(10)?;
    let block = 1_u64.checked_shl(shift)?;
    Some(Signature {
        filesystem: Filesystem::Ext4,
        size: ByteSize::new(blocks.checked_mul(block)?),
        // EXT4_ERROR_FS
        has_errors: state & 0x2 != 0,
        // EXT4_FEATURE_INCOMPAT_RECOVER
        needs_replay: le32(head, EXT4_AT + 0x60)? & 0x4 != 0,
    })
}

fn xfs(head: &[u8]) -> Option<Signature> {
    // sb_magicnum, sb_blocksize, sb_dblocks; big-endian
    if bytes(head, 0)? != *b"XFSB" {
        return None;
    }
    let block = u64::from(u32::from_be_bytes(bytes(head, 4)?));
    let blocks = u64::from_be_bytes(bytes(head, 8)?);
    Some(Signature {
        filesystem: Filesystem::Xfs,
        size: ByteSize::new(blocks.checked_mul(block)?),
        has_errors: false,
        needs_replay: false,
    })
}

fn btrfs(head: &[u8]) -> Option<Signature> {
    // magic at 0x40, log_root at 0x60, total_bytes at 0x70
    if bytes(head, BTRFS_AT + 0x40)? != *b"_BHRfS_M" {
        return None;
    }
    Some(Signature {
        filesystem: Filesystem::Btrfs,
        size: ByteSize::new(u64::from_le_bytes(bytes(head, BTRFS_AT + 0x70)?)),
        has_errors: false,
        // log_root
        needs_replay: u64::from_le_bytes(bytes(head, BTRFS_AT + 0x60)?) != 0,
    })
}

/// Reads a superblock that a managed pool can have, with the filesystem's identity.
#[must_use]
pub fn probe_pool(head: &[u8]) -> Option<Superblock> {
    let signature = probe(head)?;
    // XFS: sb_uuid, sb_fname; btrfs: fsid, label.
    let (uuid_at, label_at, label_room) = match signature.filesystem {
        Filesystem::Xfs => (32, 108, 12),
        Filesystem::Btrfs => (BTRFS_AT + 0x20, BTRFS_AT + 0x12b, 256),
        Filesystem::Ext4 => return None,
    };
    let label = head.get(label_at..label_at + label_room)?;
    let label = label.split(|byte| *byte == 0).next()?;
    Some(Superblock {
        signature,
        uuid: FilesystemUuid::from_bytes(bytes(head, uuid_at)?),
        is_ours: label == POOL_LABEL.as_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ext4_superblock_is_read() {
        let mut head = vec![0_u8; 0x800];
        head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        head[0x43a] = 0x3;
        head[0x404..0x408].copy_from_slice(&1000_u32.to_le_bytes());
        head[0x418] = 2;
        let read = probe(&head).unwrap();
        assert_eq!((read.filesystem, read.size.bytes()), (Filesystem::Ext4, 4_096_000));
        assert!(read.has_errors);
    }

    #[test]
    fn xfs_and_btrfs_superblocks_are_read() {
        let mut head = vec![0_u8; PROBE_LENGTH];
        head[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        head[0x1_0070..0x1_0078].copy_from_slice(&(1_u64 << 30).to_le_bytes());
        assert_eq!(probe(&head).unwrap().filesystem, Filesystem::Btrfs);
        head[0..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[8..16].copy_from_slice(&10_u64.to_be_bytes());
        let read = probe(&head).unwrap();
        assert_eq!((read.filesystem, read.size.bytes()), (Filesystem::Xfs, 40_960));
    }

    #[test]
    fn the_identity_of_a_pool_s_filesystem_is_read() {
        let mut head = vec![0_u8; PROBE_LENGTH];
        head[0..4].copy_from_slice(b"XFSB");
        head[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        head[32..48].copy_from_slice(&[7; 16]);
        assert!(!probe_pool(&head).unwrap().is_ours);
        head[108..118].copy_from_slice(POOL_LABEL.as_bytes());
        let read = probe_pool(&head).unwrap();
        assert!(read.is_ours && read.uuid == FilesystemUuid::from_bytes([7; 16]));
        head[118] = b'2';
        assert!(!probe_pool(&head).unwrap().is_ours, "another label that begins so");
    }

    proptest! {
        #[test]
        fn rubbish_is_never_a_panic(head in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _known_or_not = (probe(&head), probe_pool(&head));
        }
    }
}
