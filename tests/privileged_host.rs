//! `LinuxHost` against the real kernel. Needs root, and fails without it.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests; clippy knows functions marked as tests only"
)]

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;

use common::{Bench, OPTIONS, allocated, eventually, image_in, own_namespace, privileged, recipe};
use nix::errno::Errno;
use nix::mount::MsFlags;
use orlop::host::{
    AttachedLoop, BindSource, DeviceNumber, FilesystemMount, Host, HostError, LoopOptions,
    MountPoint, NodeKind, PoolFilesystem, loop_path,
};
use orlop::volume::{Allocation, ByteSize, DirectIo, Filesystem, MkfsOption, MountAttributes};

const PLAIN: MountAttributes = MountAttributes {
    read_only: false,
    no_suid: false,
    no_dev: false,
    no_exec: false,
    no_atime: false,
    no_dir_atime: false,
    strict_atime: false,
    no_symlink_follow: false,
};

fn mount_at(
    bench: &Bench,
    attached: &AttachedLoop,
    filesystem: Filesystem,
    target: &Path,
    options: &[&str],
) {
    let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
    let request = FilesystemMount {
        loop_number: attached.number,
        filesystem,
        target,
        attributes: PLAIN,
        options: &options,
    };
    bench.host.mount(&request).unwrap();
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    File::create(path)?.write_all_at(text.as_bytes(), 0)
}

/// Runs a program that only a test needs.
#[expect(clippy::disallowed_methods, reason = "tools that only tests run")]
fn run(program: &str, arguments: &[&str]) -> bool {
    let status = std::process::Command::new(program)
        .args(arguments)
        .stderr(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}

/// Root without `CAP_SYS_RESOURCE` (some sandboxes) cannot grow a mounted ext4: there the test checks the refusal.
fn may_resize() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
    held & (1 << 24) != 0
}

/// Grows a mounted filesystem; `false` when this process may not.
fn grow_twice(bench: &Bench, filesystem: Filesystem, target: &Path, size: ByteSize) -> bool {
    let host = &bench.host;
    if filesystem == Filesystem::Ext4 && !may_resize() {
        let refused = host.grow(filesystem, target, size).unwrap_err();
        assert!(
            refused.to_string().contains("CAP_SYS_RESOURCE"),
            "{refused}"
        );
        return false;
    }
    let before = host.space_at(target).unwrap();
    for _ in 0..2 {
        host.grow(filesystem, target, size).unwrap();
    }
    let gained = host.space_at(target).unwrap().total.bytes() - before.total.bytes();
    assert!(gained > 100 << 20, "gained {gained}");
    true
}

fn lives_and_grows(filesystem: Filesystem, mib: u64) {
    privileged(move |bench| {
        let host = &bench.host;
        let image = bench.image("image", mib, Allocation::Thin);
        bench.format(&image, filesystem);
        let signature = host.probe(image.as_fd()).unwrap().unwrap();
        assert_eq!(signature.filesystem, filesystem);
        assert!(signature.size <= ByteSize::mib(mib) && !signature.has_errors);
        assert_eq!(
            bench.loops_of(&image),
            [],
            "formatting leaves no loop device"
        );

        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        let number = attached.number;
        let target = bench.directory("target");
        mount_at(bench, &attached, filesystem, &target, &["lazytime", "sync"]);
        attached.release();
        let root = std::fs::metadata(&target).unwrap();
        assert_eq!((root.mode(), root.uid(), root.gid()), (0o42771, 1234, 4321));
        assert_eq!(
            std::fs::read_dir(&target).unwrap().count(),
            0,
            "initdb wants it empty"
        );
        let table = host.mounts().unwrap();
        let entry = table.top_at(&target).unwrap();
        assert_eq!(entry.mounted_loop(), Some(number), "{entry:?}");
        assert_eq!(entry.filesystem, filesystem.as_str());

        put(&target.join("file"), "kept").unwrap();
        image.set_len((mib + 128) << 20).unwrap();
        let size = host.refresh_loop_size(number).unwrap();
        assert_eq!(size, ByteSize::mib(mib + 128));
        let grew = grow_twice(bench, filesystem, &target, size);
        assert_eq!(std::fs::read(target.join("file")).unwrap(), b"kept");
        host.unmount(&target).unwrap();
        assert!(
            eventually(|| bench.loops_of(&image).is_empty()),
            "AUTOCLEAR"
        );
        let now = host.probe(image.as_fd()).unwrap().unwrap();
        assert_eq!(now.size, if grew { size } else { signature.size });
    });
}

#[test]
fn ext4_lives_and_grows() {
    lives_and_grows(Filesystem::Ext4, 64);
}

#[test]
fn xfs_lives_and_grows() {
    lives_and_grows(Filesystem::Xfs, 320);
}

#[test]
fn btrfs_lives_and_grows() {
    lives_and_grows(Filesystem::Btrfs, 128);
}

#[test]
fn options_of_the_class_reach_mkfs() {
    privileged(|bench| {
        let options = [("-I", "", "512"), ("-E", "stride", "4"), ("-L", "", "name")];
        let options = options.map(|(flag, key, value)| MkfsOption {
            flag,
            key,
            value: value.to_owned(),
        });
        let image = bench.image("image", 64, Allocation::Thin);
        let mut recipe = recipe(Filesystem::Ext4);
        recipe.options = &options;
        bench.host.format(image.as_fd(), &recipe).unwrap();
        let mut field = [0_u8; 6];
        // s_inode_size, then s_volume_name
        image.read_exact_at(&mut field[..2], 0x458).unwrap();
        assert_eq!(u16::from_le_bytes([field[0], field[1]]), 512);
        image.read_exact_at(&mut field[..4], 0x478).unwrap();
        assert_eq!(&field[..4], b"name");
    });
}

#[test]
fn an_image_that_has_something_is_not_formatted() {
    privileged(|bench| {
        let image = bench.image("image", 64, Allocation::Thin);
        bench.format(&image, Filesystem::Ext4);
        let mut before = vec![0_u8; 1 << 20];
        image.read_exact_at(&mut before, 0).unwrap();
        let refused = bench.host.format(image.as_fd(), &recipe(Filesystem::Btrfs));
        assert!(
            matches!(refused, Err(HostError::Unexpected { .. })),
            "{refused:?}"
        );
        let mut after = vec![0_u8; 1 << 20];
        image.read_exact_at(&mut after, 0).unwrap();
        assert!(before == after);
    });
}

#[test]
fn a_failed_mkfs_says_why_and_leaves_nothing() {
    privileged(|bench| {
        let image = bench.image("image", 16, Allocation::Thin);
        let refused = bench.host.format(image.as_fd(), &recipe(Filesystem::Xfs));
        let error = refused.unwrap_err();
        let HostError::Command(cause) = &error else {
            unreachable!("{error:?}")
        };
        assert!(cause.to_string().contains("mkfs.xfs failed"), "{cause}");
        assert_eq!(bench.loops_of(&image), []);
    });
}

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
                let bind = bench
                    .host
                    .bind(BindSource::Fd(source.as_fd()), &inside, read_only);
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
        host.bind(
            BindSource::Path(&data),
            &staging,
            attributes.or_read_only(true),
        )
        .unwrap();
        host.bind(BindSource::Path(&staging), &one, PLAIN).unwrap();
        host.bind(BindSource::Path(&data), &two, PLAIN).unwrap();
        let table = host.mounts().unwrap();
        let (first, second) = (table.top_at(&one).unwrap(), table.top_at(&two).unwrap());
        for option in ["ro", "nosuid", "noexec", "noatime", "nosymfollow"] {
            assert!(first.has_option(option), "{option}: {first:?}");
        }
        assert!(
            !second.is_read_only() && second.has_option("relatime"),
            "{second:?}"
        );
        assert_eq!(
            first.device,
            host.node(&data).unwrap().unwrap().identity.device
        );
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
        assert!(
            matches!(from_link, Err(HostError::Unexpected { .. })),
            "{from_link:?}"
        );
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
fn a_loop_device_is_known_by_its_file() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 8, Allocation::Thin);
        let pattern = vec![0xa5_u8; 8 << 20];
        image.write_all_at(&pattern, 0).unwrap();
        let identity = host
            .node(&bench.home.join("image"))
            .unwrap()
            .unwrap()
            .identity;
        for direct_io in [DirectIo::Auto, DirectIo::Off] {
            let options = LoopOptions {
                direct_io,
                ..OPTIONS
            };
            let attached = host.attach(image.as_fd(), options).unwrap();
            let status = host.loop_status(attached.number).unwrap().unwrap();
            assert_eq!(status.backing, identity);
            assert!(status.autoclear && !status.partial && !status.read_only);
            assert_eq!(status.backing_device, None);
            assert!(direct_io == DirectIo::Auto || !status.direct_io);
            let held = host.hold(attached.number).unwrap();
            attached.release();
            assert_eq!(bench.loops_of(&image), [status]);
            held.release();
            assert!(eventually(|| bench.loops_of(&image).is_empty()));
        }
        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a rename behind the host's back")]
        std::fs::rename(bench.home.join("image"), bench.home.join("other")).unwrap();
        assert_eq!(bench.loops_of(&image)[0].backing, identity);
        attached.release();
        assert!(eventually(|| bench.loops_of(&image).is_empty()));
        let mut after = vec![0_u8; 8 << 20];
        image.read_exact_at(&mut after, 0).unwrap();
        assert!(after == pattern, "attaching changes nothing");
    });
}

#[test]
fn loops_without_autoclear_stay_until_they_are_detached() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 8, Allocation::Thin);
        let options = LoopOptions {
            autoclear: false,
            read_only: true,
            sector: 512,
            ..OPTIONS
        };
        let attached = host.attach(image.as_fd(), options).unwrap();
        let number = attached.number;
        attached.release();
        assert!(host.loop_status(number).unwrap().unwrap().read_only);
        image.set_len(16 << 20).unwrap();
        assert_eq!(host.refresh_loop_size(number).unwrap(), ByteSize::mib(16));
        for _ in 0..2 {
            // Once it is free, the number may be anybody's: only the first time is it surely ours.
            if !bench.loops_of(&image).is_empty() {
                host.detach(number).unwrap();
            }
            assert!(eventually(|| bench.loops_of(&image).is_empty()));
        }
        host.detach(900_000).unwrap();
        assert_eq!(host.loop_status(900_000).unwrap(), None);
        assert!(host.hold(900_000).is_err());
        assert_eq!(host.loop_limit(), None);
    });
}

#[test]
fn a_file_opened_for_reading_only_makes_no_writable_device() {
    privileged(|bench| {
        let image = bench.image("image", 8, Allocation::Thin);
        let reader = File::open(bench.home.join("image")).unwrap();
        let refused = bench.host.attach(reader.as_fd(), OPTIONS);
        assert!(
            matches!(refused, Err(HostError::Unexpected { .. })),
            "{refused:?}"
        );
        assert!(eventually(|| bench.loops_of(&image).is_empty()));
    });
}

#[test]
fn sixteen_threads_get_sixteen_devices() {
    privileged(|bench| {
        let images: Vec<File> = (0..16)
            .map(|n| bench.image(&format!("image{n}"), 1, Allocation::Thin))
            .collect();
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            for image in &images {
                let send = send.clone();
                scope.spawn(move || {
                    let attached = bench.host.attach(image.as_fd(), OPTIONS);
                    send.send(attached.unwrap()).unwrap();
                });
            }
        });
        let attached: Vec<AttachedLoop> = receive.try_iter().collect();
        let mut numbers: Vec<u32> = attached.iter().map(|device| device.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 16);
        drop(attached);
        let all_gone = || images.iter().all(|image| bench.loops_of(image).is_empty());
        assert!(eventually(all_gone));
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

/// Fills an image's filesystem and empties it again; answers the image's blocks before and after the trim.
fn fill_and_trim(bench: &Bench, pool: &Path, allocation: Allocation) -> (u64, u64) {
    let image = image_in(pool, allocation.as_str(), 64, allocation);
    bench.format(&image, Filesystem::Ext4);
    let options = LoopOptions {
        allocation,
        ..OPTIONS
    };
    let attached = bench.host.attach(image.as_fd(), options).unwrap();
    let target = bench.directory(&format!("mounted-{allocation}"));
    mount_at(bench, &attached, Filesystem::Ext4, &target, &[]);
    let filler = File::create(target.join("filler")).unwrap();
    filler.write_all_at(&vec![7_u8; 32 << 20], 0).unwrap();
    filler.sync_all().unwrap();
    drop(filler);
    let full = allocated(&image);
    std::fs::remove_file(target.join("filler")).unwrap();
    nix::unistd::sync();
    let trimmed = run("fstrim", &[target.to_str().unwrap()]);
    assert_eq!(trimmed, allocation == Allocation::Thin, "{allocation}");
    bench.host.unmount(&target).unwrap();
    if allocation == Allocation::Thick {
        // What a pod with a raw device can do: zeroing with the wish to free the blocks.
        let node = loop_path(attached.number);
        run("blkdiscard", &["-f", node.to_str().unwrap()]);
        run(
            "fallocate",
            &["-p", "-o", "0", "-l", "1048576", node.to_str().unwrap()],
        );
    }
    attached.release();
    assert!(eventually(|| bench.loops_of(&image).is_empty()));
    (full, allocated(&image))
}

#[test]
fn thick_keeps_its_blocks_and_thin_gives_them_back() {
    privileged(|bench| {
        let (full, trimmed) = fill_and_trim(bench, &bench.home, Allocation::Thick);
        assert!(full >= 64 << 20 && trimmed >= 64 << 20, "{full} {trimmed}");
        // Probably the same number: the setting must not stick to it.
        let (full, trimmed) = fill_and_trim(bench, &bench.home, Allocation::Thin);
        assert!(full >= 32 << 20 && trimmed < 32 << 20, "{full} {trimmed}");
    });
}

#[test]
fn a_btrfs_pool_has_subvolumes_and_files_without_copy_on_write() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 256, Allocation::Thin);
        bench.format(&image, Filesystem::Btrfs);
        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        let pool = bench.directory("pool");
        mount_at(bench, &attached, Filesystem::Btrfs, &pool, &[]);
        attached.release();
        let open = File::open(&pool).unwrap();
        assert_eq!(
            host.space(open.as_fd()).unwrap().filesystem,
            PoolFilesystem::Btrfs
        );
        host.make_subvolume(open.as_fd(), "sub").unwrap();
        put(&pool.join("sub/file"), "text").unwrap();
        let sub = pool.join("sub");
        assert!(run(
            "btrfs",
            &["property", "set", sub.to_str().unwrap(), "ro", "true"]
        ));
        std::fs::create_dir(pool.join("plain")).unwrap();
        for (name, removed) in [
            ("plain", false),
            ("absent", false),
            ("sub", true),
            ("sub", false),
        ] {
            let result = host.remove_subvolume(open.as_fd(), name.as_ref());
            assert_eq!(result.unwrap(), removed, "{name}");
        }
        assert!(host.remove_subvolume(open.as_fd(), "..".as_ref()).is_err());
        inner_image(bench, &pool);
        drop(open);
        host.unmount(&pool).unwrap();
    });
}

/// An image on btrfs: identity by an anonymous device number, and real direct I/O without copy-on-write.
fn inner_image(bench: &Bench, pool: &Path) {
    let host = &bench.host;
    let image = image_in(pool, "inner", 0, Allocation::Thin);
    host.disable_copy_on_write(image.as_fd()).unwrap();
    image.set_len(8 << 20).unwrap();
    image.write_all_at(&[1_u8; 4096], 0).unwrap();
    let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
    let status = host.loop_status(attached.number).unwrap().unwrap();
    let node = host.node(&pool.join("inner")).unwrap().unwrap();
    assert_eq!(status.backing, node.identity);
    attached.release();
    let filled = image_in(pool, "filled", 0, Allocation::Thin);
    filled.write_all_at(&[1_u8; 4096], 0).unwrap();
    assert!(host.disable_copy_on_write(filled.as_fd()).is_err());
    let gone = || !host.loops().unwrap().contains(&status);
    assert!(eventually(gone));
}

#[test]
fn subvolumes_elsewhere_are_refused() {
    privileged(|bench| {
        let open = File::open(&bench.home).unwrap();
        let refused = bench.host.make_subvolume(open.as_fd(), "sub");
        assert!(
            matches!(refused, Err(HostError::Unsupported { .. })),
            "{refused:?}"
        );
        std::fs::create_dir(bench.home.join("sub")).unwrap();
        let removed = bench.host.remove_subvolume(open.as_fd(), "sub".as_ref());
        assert!(!removed.unwrap());
        bench.host.disable_copy_on_write(open.as_fd()).unwrap();
    });
}

#[test]
fn a_filesystem_with_errors_is_repaired() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 64, Allocation::Thin);
        bench.format(&image, Filesystem::Ext4);
        let recorded = run(
            "debugfs",
            &[
                "-w",
                "-R",
                "ssv state 2",
                bench.home.join("image").to_str().unwrap(),
            ],
        );
        assert!(recorded && host.probe(image.as_fd()).unwrap().unwrap().has_errors);
        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        host.repair(attached.number, Filesystem::Ext4).unwrap();
        attached.release();
        assert!(!host.probe(image.as_fd()).unwrap().unwrap().has_errors);
        assert!(eventually(|| bench.loops_of(&image).is_empty()));
    });
}

#[test]
fn a_mount_that_fails_leaves_nothing_and_names_its_target() {
    privileged(|bench| {
        let image = bench.image("image", 8, Allocation::Thin);
        let attached = bench.host.attach(image.as_fd(), OPTIONS).unwrap();
        let target = bench.directory("target");
        let request = FilesystemMount {
            loop_number: attached.number,
            filesystem: Filesystem::Ext4,
            target: &target,
            attributes: PLAIN,
            options: &[],
        };
        let refused = bench.host.mount(&request).unwrap_err();
        assert!(refused.to_string().contains("target"), "{refused}");
        assert!(bench.host.mounts().unwrap().top_at(&target).is_none());
        attached.release();
    });
}

#[test]
fn a_namespace_of_its_own_hides_what_the_test_mounts() {
    privileged(|bench| {
        let (data, target) = (bench.directory("data"), bench.directory("target"));
        std::thread::scope(|scope| {
            let inner = scope.spawn(|| {
                own_namespace();
                bench
                    .host
                    .bind(BindSource::Path(&data), &target, PLAIN)
                    .unwrap();
                assert!(bench.host.mounts().unwrap().top_at(&target).is_some());
            });
            inner.join().unwrap();
        });
        assert!(bench.host.mounts().unwrap().top_at(&target).is_none());
    });
}
