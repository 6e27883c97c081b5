//! Loop devices.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;

use orlop::host::{AttachedLoop, Host, HostError, LoopOptions, loop_path};
use orlop::volume::{Allocation, ByteSize, DirectIo, Filesystem};

use crate::common::{Bench, OPTIONS, allocated, eventually, image_in, privileged};
use crate::{mount_at, run};

#[test]
fn a_loop_device_is_known_by_its_file() {
    privileged(|bench| {
        let host = &bench.host;
        let image = bench.image("image", 8, Allocation::Thin);
        let pattern = vec![0xa5_u8; 8 << 20];
        image.write_all_at(&pattern, 0).unwrap();
        let identity = host.node(&bench.home.join("image")).unwrap().unwrap().identity;
        for direct_io in [DirectIo::Auto, DirectIo::Off] {
            let options = LoopOptions { direct_io, ..OPTIONS };
            let attached = host.attach(image.as_fd(), options).unwrap();
            let status = host.loop_status(attached.number).unwrap().unwrap();
            assert_eq!(status.backing, identity);
            assert!(status.autoclear && !status.partial && !status.read_only);
            assert_eq!((status.backing_device, status.label.as_str()), (None, OPTIONS.label));
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
        let options = LoopOptions { autoclear: false, read_only: true, sector: 512, ..OPTIONS };
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
        assert!(matches!(refused, Err(HostError::Unexpected { .. })), "{refused:?}");
        assert!(eventually(|| bench.loops_of(&image).is_empty()));
    });
}

#[test]
fn sixteen_threads_get_sixteen_devices() {
    privileged(|bench| {
        let images: Vec<File> =
            (0..16).map(|n| bench.image(&format!("image{n}"), 1, Allocation::Thin)).collect();
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

/// Fills an image's filesystem and empties it again; answers the image's blocks before and after the trim.
fn fill_and_trim(bench: &Bench, pool: &Path, allocation: Allocation) -> (u64, u64) {
    let image = image_in(pool, allocation.as_str(), 64, allocation);
    bench.format(&image, Filesystem::Ext4);
    let options = LoopOptions { allocation, ..OPTIONS };
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
        run("fallocate", &["-p", "-o", "0", "-l", "1048576", node.to_str().unwrap()]);
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
