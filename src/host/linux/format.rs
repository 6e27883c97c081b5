//! Makes filesystems in new image files.
//!
//! Invariants: nothing is formatted that begins with a filesystem; no program gets a force flag; no blocks of a
//! preallocated image are given back; the root directory is set up through a mount that is in no tree, so that a
//! kill leaves nothing behind; defaults are those that Linux 5.4 mounts.
//!
//! Must not: format a device, or an image that the caller did not just make.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, syncfs, unlinkat};

use super::command::{Program, Programs};
use super::filesystem::probe;
use super::loops::Loops;
use super::mounts::fd_path;
use super::nowhere::Nowhere;
use crate::fault;
use crate::host::{FormatRecipe, HostError, POOL_LABEL, RootOwner};
use crate::volume::{Allocation, Filesystem, FilesystemUuid, MkfsOption};

/// One setting of mkfs: flag, key (may be empty), value (may be empty).
type Setting = (&'static str, &'static str, String);

/// The logical sector size of a managed pool's device, in bytes: direct I/O works on every disk below.
const POOL_SECTOR: u32 = 4096;
/// metadata_csum_seed (Linux 4.4): a copy gets its new UUID without a rewrite of every inode table.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,\
     sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed";

pub(super) fn format(
    programs: &Programs,
    loops: &Loops,
    image: BorrowedFd<'_>,
    recipe: &FormatRecipe<'_>,
) -> Result<(), HostError> {
    let failed = |e: std::io::Error| HostError::call("format", fd_path(image), e);
    let file = File::from(image.try_clone_to_owned().map_err(failed)?);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(refused(image, "not an image file, so it is not formatted"));
    }
    if probe(image)?.is_some() {
        return Err(refused(image, "the image has a filesystem already, so it is not formatted"));
    }
    let reserved = metadata.blocks().saturating_mul(512) >= metadata.len();
    fault::point!("host.format.start").map_err(failed)?;
    let (program, settings) = command_for(programs, recipe);
    // A path to this very inode, wherever it is by now.
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let mut arguments = settings;
    arguments.push(path);
    program.run(&arguments, &[0])?;
    fault::point!("host.format.made").map_err(failed)?;
    prepare_root(loops, image, recipe, reserved)?;
    fault::point!("host.format.rooted").map_err(failed)?;
    if reserved {
        reserve_again(&file, metadata.len()).map_err(|e| failed(e.into()))?;
    }
    file.sync_all().map_err(failed)
}

fn refused(image: BorrowedFd<'_>, what: &str) -> HostError {
    HostError::Unexpected { what: what.to_owned(), path: fd_path(image) }
}

/// mkfs may zero ranges of a file by punching holes; this fills them, and leaves what is written alone.
pub(super) fn reserve_again(file: &File, length: u64) -> nix::Result<()> {
    let length = i64::try_from(length).map_err(|_overflow| Errno::EFBIG)?;
    fallocate(file, FallocateFlags::empty(), 0, length)
}

fn command_for<'a>(
    programs: &'a Programs,
    recipe: &FormatRecipe<'_>,
) -> (&'a Program, Vec<String>) {
    let (program, pinned) = settings_for(programs, recipe);
    (program, arguments(merge(pinned, recipe.options)))
}

/// The program and what is pinned for it.
fn settings_for<'a>(
    programs: &'a Programs,
    recipe: &FormatRecipe<'_>,
) -> (&'a Program, Vec<Setting>) {
    match recipe.filesystem {
        Filesystem::Ext4 => (&programs.mke2fs, ext4_settings()),
        Filesystem::Xfs => {
            let program = &programs.mkfs_xfs;
            // A version that cannot be read gets no setting that it may not know.
            let version = program.version().unwrap_or_default();
            (program, xfs_settings(recipe.sector, version))
        }
        Filesystem::Btrfs => {
            let program = &programs.mkfs_btrfs;
            let has_tree = program.lists_feature("block-group-tree");
            (program, btrfs_settings(has_tree))
        }
    }
}

/// How the filesystem of a managed pool is made; `None` for one that no such pool has.
pub(super) fn pool_command(
    programs: &Programs,
    filesystem: Filesystem,
    uuid: FilesystemUuid,
) -> Option<(&Program, Vec<String>)> {
    let root = RootOwner { mode: 0o700, uid: 0, gid: 0 };
    let recipe = FormatRecipe { filesystem, sector: POOL_SECTOR, options: &[], root };
    let uuid = uuid.to_string();
    let identity = match filesystem {
        Filesystem::Xfs => [("-m", "uuid", uuid.as_str()), ("-L", "", POOL_LABEL)],
        Filesystem::Btrfs => [("-U", "", uuid.as_str()), ("-L", "", POOL_LABEL)],
        Filesystem::Ext4 => return None,
    };
    let (program, settings) = settings_for(programs, &recipe);
    Some((program, arguments(settings.into_iter().chain(pinned(&identity)).collect())))
}

fn pinned(settings: &[(&'static str, &'static str, &str)]) -> Vec<Setting> {
    settings.iter().map(|(flag, key, value)| (*flag, *key, (*value).to_owned())).collect()
}

fn ext4_settings() -> Vec<Setting> {
    pinned(&[
        ("-q", "", ""),
        ("-t", "", "ext4"),
        ("-b", "", "4096"),
        ("-O", "", EXT4_FEATURES),
        ("-I", "", "256"),
        ("-m", "", "0"),
        ("-E", "nodiscard", ""),
    ])
}

fn xfs_settings(sector: u32, version: (u32, u32)) -> Vec<Setting> {
    let mut settings = pinned(&[
        ("-q", "", ""),
        ("-K", "", ""),
        ("-b", "size", "4096"),
        ("-s", "size", &sector.to_string()),
        ("-m", "crc", "1"),
        ("-m", "finobt", "1"),
        ("-m", "reflink", "1"),
        ("-m", "rmapbt", "0"),
        ("-i", "sparse", "1"),
    ]);
    // What came after Linux 5.4 is on by default in later versions of mkfs.xfs, and unknown to earlier ones.
    for (since, flag, key) in [
        ((5, 10), "-m", "bigtime"),
        ((5, 10), "-m", "inobtcount"),
        ((5, 19), "-i", "nrext64"),
        ((6, 10), "-i", "exchange"),
        ((6, 10), "-n", "parent"),
    ] {
        if version >= since {
            settings.push((flag, key, "0".to_owned()));
        }
    }
    settings
}

fn btrfs_settings(has_block_group_tree: bool) -> Vec<Setting> {
    let mut settings = pinned(&[("-q", "", ""), ("-K", "", ""), ("-s", "", "4096")]);
    if has_block_group_tree {
        // Linux 6.1 and later only.
        settings.push(("-O", "", "^block-group-tree".to_owned()));
    }
    settings
}

/// What the class asks for replaces what is pinned.
fn merge(mut settings: Vec<Setting>, options: &[MkfsOption]) -> Vec<Setting> {
    for option in options {
        let place =
            settings.iter_mut().find(|(flag, key, _)| (*flag, *key) == (option.flag, option.key));
        match place {
            Some((_, _, value)) => value.clone_from(&option.value),
            None => settings.push((option.flag, option.key, option.value.clone())),
        }
    }
    settings
}

/// The command line: the settings of one flag joined by commas.
fn arguments(settings: Vec<Setting>) -> Vec<String> {
    let mut flags: Vec<(&'static str, Vec<String>)> = Vec::new();
    for (flag, key, value) in settings {
        let text = match (key, value.as_str()) {
            ("", value) => value.to_owned(),
            (key, "") => key.to_owned(),
            (key, value) => format!("{key}={value}"),
        };
        match flags.iter_mut().find(|(known, _)| *known == flag) {
            Some((_, texts)) => texts.push(text),
            None => flags.push((flag, vec![text])),
        }
    }
    let words = flags.into_iter().flat_map(|(flag, texts)| [flag.to_owned(), texts.join(",")]);
    words.filter(|word| !word.is_empty()).collect()
}

/// Sets the root directory's owner and mode and empties it, through a mount that only this process sees. It also
/// shows that this kernel mounts what was made.
fn prepare_root(
    loops: &Loops,
    image: BorrowedFd<'_>,
    recipe: &FormatRecipe<'_>,
    reserved: bool,
) -> Result<(), HostError> {
    let nowhere = Nowhere {
        image,
        filesystem: recipe.filesystem,
        sector: recipe.sector,
        allocation: if reserved { Allocation::Thick } else { Allocation::Thin },
        is_copy: false,
        label: "orlop-mkfs",
        remedy: "load the filesystem's kernel module on the node, or set mkfsOptions that its kernel knows",
    };
    nowhere.with(loops, |directory, _number| {
        set_root(directory, recipe.root)
            .map_err(|e| HostError::call("set up the root directory of", fd_path(image), e))
    })
}

fn set_root(directory: BorrowedFd<'_>, root: RootOwner) -> nix::Result<()> {
    match unlinkat(directory, "lost+found", UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e),
    }
    // Changing the owner clears set-id bits, so the mode comes second.
    fchown(directory, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))?;
    fchmod(directory, Mode::from_bits_truncate(root.mode))?;
    syncfs(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(flag: &'static str, key: &'static str, value: &str) -> MkfsOption {
        MkfsOption { flag, key, value: value.to_owned() }
    }

    #[test]
    fn a_users_option_replaces_the_pinned_one() {
        let options = [option("-m", "rmapbt", "1"), option("-L", "", "name")];
        let words = arguments(merge(xfs_settings(512, (6, 1)), &options));
        assert_eq!(
            words.join(" "),
            "-q -K -b size=4096 -s size=512 \
             -m crc=1,finobt=1,reflink=1,rmapbt=1,bigtime=0,inobtcount=0 -i sparse=1,nrext64=0 -L name"
        );
    }

    #[test]
    fn old_versions_get_nothing_that_they_do_not_know() {
        let words = arguments(xfs_settings(4096, (5, 6))).join(" ");
        assert!(!words.contains("bigtime") && !words.contains("nrext64"), "{words}");
        let words = arguments(xfs_settings(4096, (6, 12))).join(" ");
        assert!(words.ends_with("nrext64=0,exchange=0 -n parent=0"), "{words}");
    }

    #[test]
    fn ext4_joins_extended_options() {
        let options = [option("-E", "stride", "2"), option("-m", "", "5")];
        let words = arguments(merge(ext4_settings(), &options)).join(" ");
        assert!(words.ends_with("-I 256 -m 5 -E nodiscard,stride=2"), "{words}");
    }

    #[test]
    fn nothing_forces() {
        let all = [
            arguments(ext4_settings()),
            arguments(xfs_settings(4096, (9, 9))),
            arguments(btrfs_settings(true)),
        ];
        assert!(all.iter().flatten().all(|word| !matches!(word.as_str(), "-f" | "-F" | "--force")));
    }
}
