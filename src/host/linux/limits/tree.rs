//! Items of the trees of a btrfs, as BTRFS_IOC_TREE_SEARCH shows them (`include/uapi/linux/btrfs_tree.h`).
//!
//! The kernel shows them as they are now, also what no commit has written yet.
//!
//! Must not: change anything.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use crate::host::linux::layout::TreeSearch;
use crate::host::linux::sys;

/// `BTRFS_ROOT_TREE_OBJECTID`
pub(super) const ROOT_TREE: u64 = 1;
/// `BTRFS_QUOTA_TREE_OBJECTID`
pub(super) const QUOTA_TREE: u64 = 8;

/// One item of an object and kind that are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    /// The last part of its key.
    pub(super) offset: u64,
    bytes: Vec<u8>,
}

impl Item {
    /// The number of 64 bits at that place, counted in such numbers; what is not there is zero.
    pub(super) fn number(&self, place: usize) -> u64 {
        number(&self.bytes, place * 8)
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The items that one search found: behind a header of 32 bytes (transaction, object, offset, kind, length) each.
fn parse(search: &TreeSearch) -> Vec<Item> {
    let (mut items, mut rest) = (Vec::new(), search.found.as_slice());
    for _ in 0..search.items {
        let Some((header, behind)) = rest.split_at_checked(32) else { break };
        // Kind and length are of 32 bits, in the machine's order like all numbers of the header.
        let length = header.get(28..).and_then(|rest| rest.first_chunk::<4>());
        let length = length.map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some((bytes, behind)) = behind.split_at_checked(length) else { break };
        let offset = header.get(16..).and_then(|rest| rest.first_chunk::<8>());
        let offset = offset.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        items.push(Item { offset, bytes: bytes.to_vec() });
        rest = behind;
    }
    items
}

/// All items of an object and kind, by their offsets. A tree that does not exist is ENOENT.
pub(super) fn items(
    directory: BorrowedFd<'_>,
    tree: u64,
    object: u64,
    kind: u32,
) -> nix::Result<Vec<Item>> {
    let (mut items, mut from) = (Vec::new(), 0);
    loop {
        let found =
            parse(&*sys::quota::btrfs_search(directory, tree, object, kind, (from, u64::MAX))?);
        let next = found.last().and_then(|item| item.offset.checked_add(1));
        items.extend(found);
        match next {
            Some(next) => from = next,
            None => return Ok(items),
        }
    }
}

/// The item with exactly that key.
pub(super) fn item(
    directory: BorrowedFd<'_>,
    tree: u64,
    object: u64,
    kind: u32,
    offset: u64,
) -> nix::Result<Option<Item>> {
    match sys::quota::btrfs_search(directory, tree, object, kind, (offset, offset)) {
        Ok(search) => Ok(parse(&search).into_iter().next()),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(found: &[(u64, &[u8])]) -> TreeSearch {
        let mut bytes = Vec::new();
        for (offset, content) in found {
            bytes.extend([0; 16]);
            bytes.extend(offset.to_ne_bytes());
            bytes.extend(242_u32.to_ne_bytes());
            bytes.extend(u32::try_from(content.len()).unwrap().to_ne_bytes());
            bytes.extend(*content);
        }
        let mut page = [0; 3992];
        page[..bytes.len()].copy_from_slice(&bytes);
        TreeSearch {
            tree: 8,
            least_object: 0,
            greatest_object: 0,
            least_offset: 0,
            greatest_offset: 0,
            least_transaction: 0,
            greatest_transaction: 0,
            least_kind: 242,
            greatest_kind: 242,
            items: u32::try_from(found.len()).unwrap(),
            unused: 0,
            unused_too: [0; 4],
            found: page,
        }
    }

    #[test]
    fn items_are_found_behind_their_headers() {
        let second = [7_u64.to_le_bytes(), 9_u64.to_le_bytes()].concat();
        let items = parse(&search(&[(1, b""), (u64::MAX, &second)]));
        assert_eq!(items.iter().map(|item| item.offset).collect::<Vec<_>>(), [1, u64::MAX]);
        assert_eq!((items[1].number(0), items[1].number(1), items[1].number(2)), (7, 9, 0));
        assert_eq!(items[0].number(0), 0);
    }

    #[test]
    fn what_does_not_fit_is_no_item() {
        let mut torn = search(&[(1, b"")]);
        torn.items = u32::MAX;
        torn.found[28..32].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&torn), []);
    }
}
