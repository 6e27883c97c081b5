//! Making, mounting, growing and repairing filesystems; btrfs subvolumes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use orlop::host::{FilesystemMount, Host, HostError, PoolFilesystem};
use orlop::volume::{Allocation, ByteSize, Filesystem, MkfsOption};

use crate::common::{Bench, OPTIONS, eventually, image_in, privileged, recipe};
use crate::{PLAIN, mount_at, put, run};

/// Grows a mounted filesystem; `false` when this process may not.
fn grow_twice(bench: &Bench, filesystem: Filesystem, target: &Path, size: ByteSize) -> bool {
    let host = &bench.host;
    // Root without CAP_SYS_RESOURCE (some sandboxes) cannot grow a mounted ext4: there the refusal is checked.
    if !host.can_grow_mounted(filesystem) {
        let refused = host.grow(filesystem, target, size).unwrap_err();
        assert!(refused.to_string().contains("CAP_SYS_RESOURCE"), "{refused}");
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
        assert_eq!(bench.loops_of(&image), [], "formatting leaves no loop device");

        let attached = host.attach(image.as_fd(), OPTIONS).unwrap();
        let number = attached.number;
        let target = bench.directory("target");
        mount_at(bench, &attached, filesystem, &target, &["lazytime", "sync"]);
        attached.release();
        let root = std::fs::metadata(&target).unwrap();
        assert_eq!((root.mode(), root.uid(), root.gid()), (0o42771, 1234, 4321));
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "initdb wants it empty");
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
        assert!(eventually(|| bench.loops_of(&image).is_empty()), "AUTOCLEAR");
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
fn ext4_grows_while_it_is_not_mounted() {
    privileged(|bench| {
        let image = bench.image("image", 64, Allocation::Thin);
        bench.format(&image, Filesystem::Ext4);
        image.set_len(128 << 20).unwrap();
        let attached = bench.host.attach(image.as_fd(), OPTIONS).unwrap();
        for _ in 0..2 {
            bench.host.grow_unmounted(attached.number, Filesystem::Ext4).unwrap();
        }
        attached.release();
        assert!(eventually(|| bench.loops_of(&image).is_empty()));
        let signature = bench.host.probe(image.as_fd()).unwrap().unwrap();
        assert_eq!(signature.size, ByteSize::mib(128));
    });
}

#[test]
fn options_of_the_class_reach_mkfs() {
    privileged(|bench| {
        let options = [("-I", "", "512"), ("-E", "stride", "4"), ("-L", "", "name")];
        let options =
            options.map(|(flag, key, value)| MkfsOption { flag, key, value: value.to_owned() });
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
        assert!(matches!(refused, Err(HostError::Unexpected { .. })), "{refused:?}");
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
        let HostError::Command(cause) = &error else { unreachable!("{error:?}") };
        assert!(cause.to_string().contains("mkfs.xfs failed"), "{cause}");
        assert_eq!(bench.loops_of(&image), []);
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
        assert_eq!(host.space(open.as_fd()).unwrap().filesystem, PoolFilesystem::Btrfs);
        host.make_subvolume(open.as_fd(), "sub").unwrap();
        put(&pool.join("sub/file"), "text").unwrap();
        let sub = pool.join("sub");
        assert!(run("btrfs", &["property", "set", sub.to_str().unwrap(), "ro", "true"]));
        std::fs::create_dir(pool.join("plain")).unwrap();
        for (name, removed) in [("plain", false), ("absent", false), ("sub", true), ("sub", false)]
        {
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
        assert!(matches!(refused, Err(HostError::Unsupported { .. })), "{refused:?}");
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
            &["-w", "-R", "ssv state 2", bench.home.join("image").to_str().unwrap()],
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
