//! Bind mounts and unmounts.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::MsFlags;
use orlop::host::{BindSource, DeviceNumber, Host, HostError, MountPoint, NodeKind, loop_path};
use orlop::volume::{Allocation, MountAttributes};

use crate::common::{OPTIONS, own_namespace, privileged};
use crate::{PLAIN, put};

#[test]
fn a_read_only_bind_is_read_only_in_every_namespace() {
    privileged(|bench| {
        let (data, target) = (bench.directory("data"), bench.directory("target"));
        let shared = bench.directory("shared");
        // The driver's view is a child namespace of the host's, with shared propagation, as in a DaemonSet.
        share(&shared);
        std::fs::create_dir(shared.join("inside")).unwrap();
        let inside = shared.join("inside");
        std::fs::remove_dir(&target).unwrap();
        std::thread::scope(|scope| {
            let driver = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
                let read_only = PLAIN.or_read_only(true);
                // Opened here: a descriptor from another namespace cannot be bound.
                let source = File::open(&data).unwrap();
                let bind = bench.host.bind(BindSource::Fd(source.as_fd()), &inside, read_only);
                bind.unwrap();
            });
            driver.join().unwrap();
        });
        let seen = bench.host.mounts().unwrap();
        assert!(seen.top_at(&inside).unwrap().is_read_only());
        let refused = put(&inside.join("file"), "no").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EROFS as i32));
        put(&data.join("file"), "yes").unwrap();
        assert_eq!(std::fs::read(inside.join("file")).unwrap(), b"yes");
        for path in [&inside, &shared] {
            bench.host.unmount(path).unwrap();
        }
    });
}

/// Makes a directory a shared mount of its own.
#[expect(clippy::disallowed_methods, reason = "sets the test's mounts up")]
fn share(path: &Path) {
    let mount = |source: Option<&Path>, flags| {
        nix::mount::mount(source, path, None::<&str>, flags, None::<&str>).unwrap();
    };
    mount(Some(path), MsFlags::MS_BIND);
    mount(None, MsFlags::MS_SHARED);
}

#[test]
fn a_bind_takes_its_attributes_and_its_sources() {
    privileged(|bench| {
        let host = &bench.host;
        let (data, staging) = (bench.directory("data"), bench.directory("staging"));
        let (one, two) = (bench.directory("one"), bench.directory("two"));
        let attributes = MountAttributes {
            no_suid: true,
            no_exec: true,
            no_atime: true,
            no_symlink_follow: true,
            ..PLAIN
        };
        host.bind(BindSource::Path(&data), &staging, attributes.or_read_only(true)).unwrap();
        host.bind(BindSource::Path(&staging), &one, PLAIN).unwrap();
        host.bind(BindSource::Path(&data), &two, PLAIN).unwrap();
        let table = host.mounts().unwrap();
        let (first, second) = (table.top_at(&one).unwrap(), table.top_at(&two).unwrap());
        for option in ["ro", "nosuid", "noexec", "noatime", "nosymfollow"] {
            assert!(first.has_option(option), "{option}: {first:?}");
        }
        assert!(!second.is_read_only() && second.has_option("relatime"), "{second:?}");
        assert_eq!(first.device, host.node(&data).unwrap().unwrap().identity.device);
        assert_eq!(host.node(&one).unwrap(), host.node(&data).unwrap());
        put(&two.join("file"), "text").unwrap();
        assert!(put(&one.join("file"), "no").is_err());
        for path in [&one, &two, &staging] {
            host.unmount(path).unwrap();
            host.remove_mount_point(path).unwrap();
        }
    });
}

#[test]
fn a_bind_follows_no_link() {
    privileged(|bench| {
        let (data, target) = (bench.directory("data"), bench.directory("target"));
        let link = bench.home.join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let from_link = bench.host.bind(BindSource::Path(&link), &data, PLAIN);
        assert!(matches!(from_link, Err(HostError::Unexpected { .. })), "{from_link:?}");
        let source = BindSource::Path(&data);
        assert!(bench.host.bind(source, &link, PLAIN).is_err());
        assert!(bench.host.unmount(&link).is_err());
    });
}

#[test]
fn a_bind_from_a_descriptor_survives_a_rename() {
    privileged(|bench| {
        let (data, target) = (bench.directory("data"), bench.directory("target"));
        put(&data.join("file"), "text").unwrap();
        let open = File::open(&data).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a rename behind the host's back")]
        std::fs::rename(&data, bench.home.join("elsewhere")).unwrap();
        let source = BindSource::Fd(open.as_fd());
        bench.host.bind(source, &target, PLAIN).unwrap();
        assert_eq!(std::fs::read(target.join("file")).unwrap(), b"text");
        bench.host.unmount(&target).unwrap();
    });
}

#[test]
fn unmounting_what_is_not_mounted_is_an_error() {
    privileged(|bench| {
        let target = bench.directory("target");
        let refused = bench.host.unmount(&target).unwrap_err();
        assert_eq!(refused.errno(), Some(Errno::EINVAL));
        let missing = bench.host.unmount(&bench.home.join("no/such")).unwrap_err();
        assert_eq!(missing.errno(), Some(Errno::ENOENT));
    });
}

#[test]
fn a_raw_block_device_is_bound_as_a_file() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 8, Allocation::Thin);
        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        let target = bench.home.join("device");
        host.make_mount_point(&target, MountPoint::File).unwrap();
        let node = loop_path(attached.number);
        host.bind(BindSource::Path(&node), &target, PLAIN).unwrap();
        let seen = host.node(&target).unwrap().unwrap();
        let number = DeviceNumber::of_loop(attached.number);
        assert_eq!(seen.kind, NodeKind::BlockDevice(number));
        let table = host.mounts().unwrap();
        let entry = table.top_at(&target).unwrap();
        assert_eq!(entry.bound_loop_node(), Some(attached.number), "{entry:?}");
        assert!(host.remove_mount_point(&target).is_err());
        host.unmount(&target).unwrap();
        host.remove_mount_point(&target).unwrap();
        host.remove_mount_point(&target).unwrap();
    });
}

#[test]
fn a_namespace_of_its_own_hides_what_the_test_mounts() {
    privileged(|bench| {
        let (data, target) = (bench.directory("data"), bench.directory("target"));
        std::thread::scope(|scope| {
            let inner = scope.spawn(|| {
                own_namespace();
                bench.host.bind(BindSource::Path(&data), &target, PLAIN).unwrap();
                assert!(bench.host.mounts().unwrap().top_at(&target).is_some());
            });
            inner.join().unwrap();
        });
        assert!(bench.host.mounts().unwrap().top_at(&target).is_none());
    });
}
