//! A new image becomes a filesystem: mkfs straight into the file, then one mount that nobody sees, to give the root
//! directory its owner and mode and to prove that this kernel can mount it.
//!
//! Invariants: nothing is formatted that has a signature; defaults are pinned to what Linux 5.4 mounts, so that a disk
//! can move to an older node; mkfs never discards, or thick images would lose their blocks.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, syncfs, unlinkat};

use super::command::Programs;
use super::{filesystem, loops, sys};
use crate::fault;
use crate::host::{
    DeviceNumber, FileIdentity, FormatRecipe, HostError, LoopOptions, RootOwner, loop_path,
};
use crate::volume::{Allocation, DirectIo, Filesystem, MkfsOption};

/// What the image is called in errors.
const IMAGE: &str = "the new image";

/// Settings by flag and key; a key is empty where the flag has one value.
type Settings<'a> = BTreeMap<(&'a str, &'a str), String>;

pub(super) fn make(
    programs: &Programs,
    image: BorrowedFd<'_>,
    recipe: &FormatRecipe<'_>,
) -> Result<(), HostError> {
    if let Some(found) = filesystem::probe(image)? {
        return Err(HostError::Unexpected {
            what: format!("{} is on the image already; nothing was formatted", found.filesystem),
            path: IMAGE.into(),
        });
    }
    // The very inode, whatever path leads to it by now.
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let (program, fixed) = match recipe.filesystem {
        Filesystem::Ext4 => (&programs.mke2fs, vec!["-q", "-t", "ext4"]),
        Filesystem::Xfs => (&programs.mkfs_xfs, vec!["-q", "-K"]),
        Filesystem::Btrfs => (&programs.mkfs_btrfs, vec!["-q", "-K"]),
    };
    let version = program.version().unwrap_or((0, 0));
    let mut arguments: Vec<String> = fixed.into_iter().map(str::to_owned).collect();
    arguments.extend(flags(pinned(recipe, version), recipe.options));
    arguments.push(path);
    program.run(&arguments, &[0])?;
    fault::point!("host.format.made").map_err(|e| HostError::call("format", IMAGE, e))?;
    prepare_root(image, recipe)?;
    fault::point!("host.format.prepared").map_err(|e| HostError::call("format", IMAGE, e))?;
    fsync(image).map_err(|e| HostError::call("flush", IMAGE, e))
}

/// What is set unless the StorageClass says otherwise. Options that a program does not know yet are left out.
fn pinned<'a>(recipe: &FormatRecipe<'_>, version: (u32, u32)) -> Settings<'a> {
    let sector = recipe.sector.to_string();
    let rows: Vec<(&str, &str, &str, (u32, u32))> = match recipe.filesystem {
        Filesystem::Ext4 => vec![
            ("-b", "", "4096", (0, 0)),
            ("-I", "", "256", (0, 0)),
            ("-m", "", "0", (0, 0)),
            ("-E", "", "nodiscard", (0, 0)),
            (
                "-O",
                "",
                "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
                (0, 0),
            ),
        ],
        Filesystem::Xfs => vec![
            ("-b", "size", "4096", (0, 0)),
            ("-s", "size", &sector, (0, 0)),
            ("-m", "crc", "1", (0, 0)),
            ("-m", "finobt", "1", (0, 0)),
            ("-m", "reflink", "1", (0, 0)),
            ("-m", "rmapbt", "0", (0, 0)),
            ("-i", "sparse", "1", (0, 0)),
            ("-m", "bigtime", "0", (5, 10)),
            ("-m", "inobtcount", "0", (5, 10)),
            ("-i", "nrext64", "0", (5, 19)),
            ("-i", "exchange", "0", (6, 10)),
            ("-n", "parent", "0", (6, 10)),
        ],
        Filesystem::Btrfs => {
            vec![("-s", "", "4096", (0, 0)), ("-O", "", "^block-group-tree", (6, 12))]
        }
    };
    rows.into_iter()
        .filter(|(_, _, _, since)| version >= *since)
        .map(|(flag, key, value, _)| ((flag, key), value.to_owned()))
        .collect()
}

/// The pinned settings with the StorageClass's over them, each flag once.
fn flags<'a>(mut settings: Settings<'a>, options: &'a [MkfsOption]) -> Vec<String> {
    for option in options {
        settings.insert((option.flag, option.key), option.value.clone());
    }
    let mut by_flag: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((flag, key), value) in settings {
        let setting = if key.is_empty() { value } else { format!("{key}={value}") };
        by_flag.entry(flag).or_default().push(setting);
    }
    by_flag.into_iter().flat_map(|(flag, settings)| [flag.to_owned(), settings.join(",")]).collect()
}

fn prepare_root(image: BorrowedFd<'_>, recipe: &FormatRecipe<'_>) -> Result<(), HostError> {
    let stat = fstat(image).map_err(|e| HostError::call("look at", IMAGE, e))?;
    let identity = FileIdentity { device: DeviceNumber::of_stat(stat.st_dev), inode: stat.st_ino };
    // AUTOCLEAR and a mount that has no place: whatever happens to this process, nothing stays behind.
    let options = LoopOptions {
        label: "orlop-mkfs",
        read_only: false,
        autoclear: true,
        direct_io: DirectIo::Off,
        sector: recipe.sector,
        allocation: Allocation::Thin,
    };
    let device = loops::attach(image, options)?;
    let number = device.number;
    let prepared = mount_and_prepare(number, recipe);
    device.release();
    prepared?;
    loops::wait_until_gone(number, identity)
}

fn mount_and_prepare(number: u32, recipe: &FormatRecipe<'_>) -> Result<(), HostError> {
    let name: &CStr = match recipe.filesystem {
        Filesystem::Ext4 => c"ext4",
        Filesystem::Xfs => c"xfs",
        Filesystem::Btrfs => c"btrfs",
    };
    let mount = sys::mount_detached(name, &loop_path(number), &[]).map_err(|(errno, message)| {
        HostError::Unsupported {
            what: format!("this kernel cannot mount the {} that mkfs made: {errno} {message}", recipe.filesystem),
            remedy: "use another csi.storage.k8s.io/fstype, or load the filesystem's module on the node",
        }
    })?;
    // The mount's own descriptor has no read or write; the root directory does.
    let root = nix::fcntl::openat(
        mount.as_fd(),
        ".",
        nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    let root: File = root.map_err(|e| HostError::call("open the root of", IMAGE, e))?.into();
    own(&root, recipe.root).map_err(|e| HostError::call("prepare the root of", IMAGE, e))
}

/// An empty root directory with the owner and mode that were asked for, on disk.
fn own(root: &File, owner: RootOwner) -> Result<(), Errno> {
    // initdb and others want an empty directory. e2fsck makes it again should it need it.
    match unlinkat(root, "lost+found", UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => return Err(errno),
    }
    fchown(root, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    // After the owner: chown clears the set-id bits.
    fchmod(root, Mode::from_bits_truncate(owner.mode))?;
    syncfs(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(filesystem: Filesystem) -> FormatRecipe<'static> {
        FormatRecipe {
            filesystem,
            sector: 4096,
            options: &[],
            root: RootOwner { mode: 0o777, uid: 0, gid: 0 },
        }
    }

    #[test]
    fn each_flag_stands_once_and_the_class_wins() {
        let options = [MkfsOption { flag: "-m", key: "bigtime", value: "1".to_owned() }];
        let flags = flags(pinned(&recipe(Filesystem::Xfs), (6, 1)), &options);
        assert_eq!(flags.iter().filter(|flag| *flag == "-m").count(), 1);
        let settings = &flags[flags.iter().position(|flag| flag == "-m").unwrap() + 1];
        assert!(settings.contains("bigtime=1") && !settings.contains("bigtime=0"), "{settings}");
    }

    #[test]
    fn options_that_a_program_does_not_know_are_left_out() {
        let flags = |version| flags(pinned(&recipe(Filesystem::Xfs), version), &[]).join(" ");
        assert!(!flags((5, 0)).contains("bigtime"));
        assert!(flags((6, 1)).contains("nrext64=0") && !flags((6, 1)).contains("exchange"));
        assert!(flags((6, 12)).contains("parent=0"));
    }
}
