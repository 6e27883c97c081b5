//! Binds, mount points, unmounts.

#![expect(
    clippy::disallowed_methods,
    reason = "makes the mount namespaces and obstacles that the code under test meets"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orlop::host::linux::LinuxHost;
use orlop::host::{BindSource, Host, HostError, MountEntry, MountPoint};
use orlop::volume::MountAttributes;

use crate::privileged::{Sandbox, mounts_below, privileged};

const READ_ONLY: MountAttributes = MountAttributes {
    read_only: true,
    no_suid: false,
    no_dev: false,
    no_exec: false,
    no_atime: false,
    no_dir_atime: false,
    strict_atime: false,
    no_symlink_follow: false,
};

fn plain_mount(source: Option<&Path>, target: &Path, flags: MsFlags) {
    mount(source, target, None::<&str>, flags, None::<&str>).unwrap();
}

/// A directory whose mounts other mount namespaces see, with a source and two targets in it.
fn shared_directory(sandbox: &Sandbox) -> std::path::PathBuf {
    let shared = sandbox.make_dir("shared");
    plain_mount(Some(&shared), &shared, MsFlags::MS_BIND);
    plain_mount(None, &shared, MsFlags::MS_SHARED);
    for name in ["source", "remounted", "detached"] {
        sandbox.make_dir(format!("shared/{name}"));
    }
    shared
}

/// Runs something in a mount namespace of its own, as a container with Bidirectional propagation has it.
fn in_child_namespace(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            run();
        });
        child.join().unwrap();
    });
}

fn errno_of_write(dir: &Path) -> Option<Errno> {
    let written = std::fs::write(dir.join("file"), "x");
    written.err().map(|error| Errno::from_raw(error.raw_os_error().unwrap()))
}

#[test]
fn a_read_only_bind_made_in_a_container_is_read_only_on_the_host() {
    privileged(|sandbox| {
        let shared = shared_directory(sandbox);
        let [source, remounted, detached] =
            ["source", "remounted", "detached"].map(|name| shared.join(name));
        in_child_namespace(|| {
            // The control: what one would do at first does not hold outside.
            plain_mount(Some(&source), &remounted, MsFlags::MS_BIND);
            let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            plain_mount(None, &remounted, read_only);
            let source = File::open(&source).unwrap();
            LinuxHost::new().bind(BindSource::Fd(source.as_fd()), &detached, READ_ONLY).unwrap();
            for target in [&remounted, &detached] {
                assert_eq!(errno_of_write(target), Some(Errno::EROFS), "in the container");
            }
        });
        assert_eq!(errno_of_write(&remounted), None, "the test can tell the difference");
        assert_eq!(errno_of_write(&detached), Some(Errno::EROFS), "on the host");
        let host = LinuxHost::new();
        assert!(entry(&host, &detached).is_read_only());
        assert!(!entry(&host, &remounted).is_read_only());
        for mounted in [&detached, &remounted, &shared] {
            host.unmount(mounted).unwrap();
        }
    });
}

fn entry(host: &LinuxHost, path: &Path) -> MountEntry {
    host.mounts().unwrap().top_at(path).unwrap().clone()
}

#[test]
fn attributes_of_a_bind_show_in_the_mount_table() {
    privileged(|sandbox| {
        let (source, target) = (sandbox.make_dir("source"), sandbox.make_dir("target"));
        let host = LinuxHost::new();
        let all = MountAttributes {
            no_suid: true,
            no_dev: true,
            no_exec: true,
            no_atime: true,
            no_symlink_follow: true,
            ..READ_ONLY
        };
        let names = ["ro", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"];
        for (attributes, expected) in [(all, true), (MountAttributes::default(), false)] {
            host.bind(BindSource::Path(&source), &target, attributes).unwrap();
            let entry = entry(&host, &target);
            for name in names {
                // What the source's own mount has, a bind of it has.
                let inherited = host.mounts().unwrap().containing(&source).unwrap().clone();
                let expected = expected || inherited.has_option(name);
                assert_eq!(entry.has_option(name), expected, "{name}");
            }
            host.unmount(&target).unwrap();
        }
    });
}

#[test]
fn a_bind_from_a_descriptor_follows_the_directory() {
    privileged(|sandbox| {
        let (source, target) = (sandbox.make_dir("pool/data"), sandbox.make_dir("target"));
        std::fs::write(source.join("file"), "mine").unwrap();
        let open = File::open(&source).unwrap();
        std::fs::rename(sandbox.path("pool"), sandbox.path("moved")).unwrap();
        sandbox.make_dir("pool/data");
        std::fs::write(sandbox.path("pool/data/file"), "somebody else's").unwrap();
        let host = LinuxHost::new();
        host.bind(BindSource::Fd(open.as_fd()), &target, MountAttributes::default()).unwrap();
        assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "mine");
        std::fs::write(target.join("new"), "written").unwrap();
        assert!(sandbox.path("moved/data/new").exists());
        host.unmount(&target).unwrap();
    });
}

#[test]
fn a_bind_shows_nothing_that_is_mounted_inside() {
    privileged(|sandbox| {
        let (source, target) = (sandbox.make_dir("source"), sandbox.make_dir("target"));
        let inner = sandbox.make_dir("source/inner");
        mount(Some("none"), &inner, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::write(inner.join("hidden"), "x").unwrap();
        let host = LinuxHost::new();
        host.bind(BindSource::Path(&source), &target, MountAttributes::default()).unwrap();
        assert!(target.join("inner").exists() && !target.join("inner/hidden").exists());
        host.unmount(&target).unwrap();
        host.unmount(&inner).unwrap();
    });
}

#[test]
fn unmounting_takes_exactly_one_mount_at_exactly_that_path() {
    privileged(|sandbox| {
        let host = LinuxHost::new();
        let (source, target) = (sandbox.make_dir("source"), sandbox.make_dir("target"));
        assert_eq!(host.unmount(&target).unwrap_err().errno(), Some(Errno::EINVAL));
        assert_eq!(host.unmount(&sandbox.path("absent")).unwrap_err().errno(), Some(Errno::ENOENT));
        for _ in 0..2 {
            host.bind(BindSource::Path(&source), &target, MountAttributes::default()).unwrap();
        }
        let link = sandbox.path("link");
        symlink(&target, &link).unwrap();
        host.unmount(&link).unwrap_err();
        assert_eq!(mounts_below(&target).len(), 2, "a link is not followed");
        host.unmount(&target).unwrap();
        assert_eq!(mounts_below(&target).len(), 1);
        let busy = File::open(&target).unwrap();
        assert_eq!(host.unmount(&target).unwrap_err().errno(), Some(Errno::EBUSY));
        drop(busy);
        host.unmount(&target).unwrap();
    });
}

#[test]
fn mount_points_are_made_where_nothing_is() {
    privileged(|sandbox| {
        let host = LinuxHost::new();
        let (dir, file) = (sandbox.path("dir"), sandbox.path("file"));
        for _again in 0..2 {
            host.make_mount_point(&dir, MountPoint::Directory).unwrap();
            host.make_mount_point(&file, MountPoint::File).unwrap();
        }
        assert!(dir.is_dir() && file.is_file());
        for _again in 0..2 {
            host.remove_mount_point(&dir).unwrap();
            host.remove_mount_point(&file).unwrap();
        }
        assert!(!dir.exists() && !file.exists());
        let orphan = sandbox.path("absent/dir");
        host.make_mount_point(&orphan, MountPoint::Directory).unwrap_err();
        assert!(!sandbox.path("absent").exists(), "the CO makes the parent");
    });
}

#[test]
fn somebody_elses_files_are_neither_hidden_nor_removed() {
    privileged(|sandbox| {
        let host = LinuxHost::new();
        let (full, file) = (sandbox.make_dir("full"), sandbox.path("full/precious"));
        std::fs::write(&file, "precious").unwrap();
        let link = sandbox.path("link");
        symlink(sandbox.make_dir("elsewhere"), &link).unwrap();
        for (path, kind) in [
            (&full, MountPoint::Directory),
            (&full, MountPoint::File),
            (&file, MountPoint::File),
            (&file, MountPoint::Directory),
            (&link, MountPoint::Directory),
            (&link, MountPoint::File),
        ] {
            let refused = host.make_mount_point(path, kind).unwrap_err();
            assert!(matches!(refused, HostError::Unexpected { .. }), "{refused:?}");
            host.remove_mount_point(path).unwrap_err();
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        assert!(link.is_symlink() && sandbox.path("elsewhere").is_dir());
        let source = sandbox.make_dir("source");
        host.bind(BindSource::Path(&source), &link, READ_ONLY).unwrap_err();
        assert!(mounts_below(sandbox.dir()).is_empty(), "a link is not followed");
        // Nor is a link that is the source.
        let target = sandbox.make_dir("target");
        let _bound = host.bind(BindSource::Path(&link), &target, READ_ONLY);
        assert!(!host.mounts().unwrap().iter().any(|e| e.root.ends_with("elsewhere")));
        if !mounts_below(&target).is_empty() {
            host.unmount(&target).unwrap();
        }
    });
}
