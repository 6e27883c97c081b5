//! Mounts and mount points.
//!
//! A bind is built detached: cloned, given its attributes, and only then put in its place, so that it is never visible
//! without them, in whatever mount namespace. (Binding first and remounting read-only afterwards stays writable on the
//! host when it is done in a container.)

#![expect(clippy::disallowed_methods, reason = "the one place that mounts and unmounts")]

use std::fs::{DirBuilder, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use sys_mount::{Mount, MountFlags};

use super::sys::{self, MountAttr};
use crate::fault;
use crate::host::{
    BindSource, DeviceNumber, FileIdentity, FilesystemMount, HostError, MountPoint, MountTable,
    Node, NodeKind, loop_path,
};
use crate::volume::MountAttributes;

const MOUNTINFO: &str = "/proc/self/mountinfo";

pub(super) fn table() -> Result<MountTable, HostError> {
    let text = std::fs::read(MOUNTINFO).map_err(|e| HostError::call("read", MOUNTINFO, e))?;
    MountTable::parse(&text)
        .map_err(|e| HostError::Unexpected { what: e.to_string(), path: MOUNTINFO.into() })
}

pub(super) fn canonical(path: &Path) -> Result<Option<PathBuf>, HostError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        let what = "a path that ends in \"..\" or is the root is no mount point".to_owned();
        return Err(HostError::Unexpected { what, path: path.to_owned() });
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(Some(parent.join(name))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(HostError::call("resolve", parent, error)),
    }
}

pub(super) fn node(path: &Path) -> Result<Option<Node>, HostError> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(HostError::call("look at", path, error)),
    };
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => NodeKind::Directory,
        kind if kind.is_file() => NodeKind::File,
        kind if kind.is_block_device() => {
            NodeKind::BlockDevice(DeviceNumber::of_stat(metadata.rdev()))
        }
        _ => NodeKind::Other,
    };
    let identity =
        FileIdentity { device: DeviceNumber::of_stat(metadata.dev()), inode: metadata.ino() };
    Ok(Some(Node { identity, kind }))
}

pub(super) fn make_mount_point(path: &Path, kind: MountPoint) -> Result<(), HostError> {
    let made = match kind {
        MountPoint::Directory => DirBuilder::new().mode(0o750).create(path),
        MountPoint::File => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop)
        }
    };
    match made {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => check_mount_point(path, kind),
        Err(error) => Err(HostError::call("make the mount point", path, error)),
    }
}

/// What is there may be mounted on without hiding anybody's files.
fn check_mount_point(path: &Path, kind: MountPoint) -> Result<(), HostError> {
    let look = |e| HostError::call("look at", path, e);
    let metadata = std::fs::symlink_metadata(path).map_err(look)?;
    let refuse =
        |what: &str| Err(HostError::Unexpected { what: what.to_owned(), path: path.to_owned() });
    match kind {
        MountPoint::Directory if !metadata.is_dir() => {
            refuse("something that is not a directory lies")
        }
        MountPoint::Directory if std::fs::read_dir(path).map_err(look)?.next().is_some() => {
            refuse("files that are not the volume's lie (move them away)")
        }
        MountPoint::File if !metadata.is_file() || metadata.len() > 0 => {
            refuse("something that is not an empty file lies")
        }
        MountPoint::Directory | MountPoint::File => Ok(()),
    }
}

pub(super) fn remove_mount_point(path: &Path) -> Result<(), HostError> {
    let removed = match std::fs::symlink_metadata(path) {
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir(path),
        Ok(metadata) if metadata.is_file() && metadata.len() == 0 => std::fs::remove_file(path),
        Ok(_) => {
            let what = "something that this driver did not make lies".to_owned();
            return Err(HostError::Unexpected { what, path: path.to_owned() });
        }
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => Err(HostError::Unexpected {
            what: "files that are not the volume's lie (move them away)".to_owned(),
            path: path.to_owned(),
        }),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(HostError::call("remove the mount point", path, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn attr(attributes: MountAttributes) -> MountAttr {
    let mut attr = MountAttr::default();
    for (wanted, bit) in [
        (attributes.read_only, sys::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, sys::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, sys::MOUNT_ATTR_NODEV),
        (attributes.no_exec, sys::MOUNT_ATTR_NOEXEC),
        (attributes.no_dir_atime, sys::MOUNT_ATTR_NODIRATIME),
        (attributes.no_symlink_follow, sys::MOUNT_ATTR_NOSYMFOLLOW),
    ] {
        attr.set |= if wanted { bit } else { 0 };
    }
    if attributes.no_atime || attributes.strict_atime {
        // The three ways of keeping access times are one field: it has to be cleared before it is set.
        attr.clear |= sys::MOUNT_ATTR_ATIME;
        attr.set |=
            if attributes.no_atime { sys::MOUNT_ATTR_NOATIME } else { sys::MOUNT_ATTR_STRICTATIME };
    }
    attr
}

pub(super) fn bind(
    source: BindSource<'_>,
    target: &Path,
    attributes: MountAttributes,
) -> Result<(), HostError> {
    let failed =
        |operation: &'static str| move |e: nix::errno::Errno| HostError::call(operation, target, e);
    fault::point!("host.bind.start").map_err(|e| HostError::call("bind", target, e))?;
    let tree = match source {
        BindSource::Fd(file) => sys::clone_tree_of(file),
        BindSource::Path(path) => sys::clone_tree_at(path),
    }
    .map_err(failed("clone the tree to be bound at"))?;
    let attr = attr(attributes);
    if attr.set != 0 || attr.clear != 0 {
        sys::set_attributes(tree.as_fd(), &attr)
            .map_err(failed("set the attributes of the mount at"))?;
    }
    sys::move_mount(tree.as_fd(), target).map_err(failed("bind at"))?;
    fault::point!("host.bind.done").map_err(|e| HostError::call("bind", target, e))
}

pub(super) fn mount(request: &FilesystemMount<'_>) -> Result<(), HostError> {
    let MountAttributes {
        read_only,
        no_suid,
        no_dev,
        no_exec,
        no_atime,
        no_dir_atime,
        strict_atime,
        no_symlink_follow,
    } = request.attributes;
    let mut flags = MountFlags::empty();
    for (wanted, flag) in [
        (read_only, MountFlags::RDONLY),
        (no_suid, MountFlags::NOSUID),
        (no_dev, MountFlags::NODEV),
        (no_exec, MountFlags::NOEXEC),
        (no_atime, MountFlags::NOATIME),
        (no_dir_atime, MountFlags::NODIRATIME),
        (strict_atime, MountFlags::STRICTATIME),
        // MS_NOSYMFOLLOW (Linux 5.10), for which sys-mount has no name.
        (no_symlink_follow, MountFlags::from_bits_retain(0x100)),
    ] {
        flags.set(flag, wanted);
    }
    let mut data = Vec::new();
    for option in request.options {
        match option.as_str() {
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            "lazytime" => flags |= MountFlags::from_bits_retain(1 << 25),
            other => data.push(other),
        }
    }
    let device = loop_path(request.loop_number);
    let failed = |e: std::io::Error| HostError::call("mount the filesystem at", request.target, e);
    fault::point!("host.mount.start").map_err(failed)?;
    Mount::builder()
        .fstype(request.filesystem.as_str())
        .flags(flags)
        .data(&data.join(","))
        .mount(&device, request.target)
        .map_err(failed)?;
    fault::point!("host.mount.done").map_err(failed)
}

pub(super) fn unmount(target: &Path) -> Result<(), HostError> {
    let failed = |e: std::io::Error| HostError::call("unmount", target, e);
    fault::point!("host.unmount.start").map_err(failed)?;
    umount2(target, MntFlags::UMOUNT_NOFOLLOW).map_err(|e| failed(e.into()))?;
    fault::point!("host.unmount.done").map_err(failed)
}
