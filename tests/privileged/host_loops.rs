//! Loop devices.

#![expect(clippy::disallowed_methods, reason = "moves an image as an operator could")]

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Barrier;

use nix::errno::Errno;
use orlop::host::linux::LinuxHost;
use orlop::host::{
    BindSource, DeviceNumber, FileIdentity, Host, LoopOptions, MountPoint, NodeKind, loop_path,
};
use orlop::volume::{Allocation, DirectIo, MountAttributes};

use crate::privileged::{detach_all, loops_below, poll, privileged, run};

const SIZE: u64 = 1 << 20;

const fn options(label: &str) -> LoopOptions<'_> {
    LoopOptions {
        label,
        read_only: false,
        autoclear: false,
        direct_io: DirectIo::Auto,
        sector: 512,
        allocation: Allocation::Thin,
    }
}

fn image(path: &Path) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    file.set_len(SIZE).unwrap();
    file
}

fn identity(file: &File) -> FileIdentity {
    let metadata = file.metadata().unwrap();
    FileIdentity { device: DeviceNumber::of_stat(metadata.dev()), inode: metadata.ino() }
}

/// Detaches a device of this test, whatever it is on.
fn detach(host: &LinuxHost, number: u32) {
    let seen = host.loop_status(number).unwrap();
    host.detach(number, seen.unwrap().backing).unwrap();
}

#[test]
fn autoclear_frees_a_device_with_its_last_user() {
    privileged(|sandbox| {
        let (host, file) = (LinuxHost::new(), image(&sandbox.path("disk.img")));
        let cleared = LoopOptions { autoclear: true, ..options("auto") };
        let first = host.attach(file.as_fd(), cleared).unwrap();
        let number = first.number;
        let backing = host.loop_status(number).unwrap().unwrap().backing;
        let other = FileIdentity { inode: backing.inode + 1, ..backing };
        let taken = host.hold(number, other, Allocation::Thin);
        assert!(taken.is_err(), "a number that changed hands is not taken");
        let second = host.hold(number, backing, Allocation::Thin).unwrap();
        first.release();
        assert!(loops_below(sandbox.dir())[0].autoclear, "somebody holds it still");
        second.release();
        poll("the device is gone", || loops_below(sandbox.dir()).is_empty());
        // Without AUTOCLEAR it stays until it is detached, and detaching twice is fine.
        let stays = host.attach(file.as_fd(), options("stays")).unwrap();
        let number = stays.number;
        stays.release();
        assert_eq!(host.loop_status(number).unwrap().unwrap().label, "stays");
        host.detach(number, other).unwrap();
        assert_eq!(
            loops_below(sandbox.dir()).len(),
            1,
            "a number that changed hands is left alone"
        );
        detach(&host, number);
        poll("the device is gone", || loops_below(sandbox.dir()).is_empty());
        host.detach(number, backing).unwrap();
    });
}

#[test]
fn a_device_is_known_by_its_file_whatever_that_is_called() {
    privileged(|sandbox| {
        let (host, path) = (LinuxHost::new(), sandbox.path("disk.img"));
        let file = image(&path);
        let device = host.attach(file.as_fd(), options("label")).unwrap();
        std::fs::rename(&path, sandbox.path("moved.img")).unwrap();
        image(&path);
        let found: Vec<_> = host
            .loops()
            .unwrap()
            .into_iter()
            .filter(|status| status.backing == identity(&file))
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, found[0].label.as_str()), (device.number, "label"));
        assert_eq!(found[0].backing_device, None);
        let newcomer = identity(&File::open(&path).unwrap());
        assert!(host.loops().unwrap().iter().all(|status| status.backing != newcomer));
        device.release();
        detach_all(sandbox.dir());
    });
}

#[test]
fn a_part_of_a_file_is_told_from_the_whole() {
    privileged(|sandbox| {
        let (host, path) = (LinuxHost::new(), sandbox.path("disk.img"));
        let file = image(&path);
        run("losetup", &["--find", "--offset", "4096", path.to_str().unwrap()]);
        let found = host.loops().unwrap().into_iter().find(|l| l.backing == identity(&file));
        assert!(found.unwrap().partial);
        detach_all(sandbox.dir());
    });
}

#[test]
fn a_device_node_is_bound_and_its_device_detached() {
    privileged(|sandbox| {
        let (host, file) = (LinuxHost::new(), image(&sandbox.path("disk.img")));
        let device = host.attach(file.as_fd(), options("raw")).unwrap();
        let (number, target) = (device.number, sandbox.path("device"));
        device.release();
        host.make_mount_point(&target, MountPoint::File).unwrap();
        let source = loop_path(number);
        host.bind(BindSource::Path(&source), &target, MountAttributes::default()).unwrap();
        let table = host.mounts().unwrap();
        let entry = table.top_at(&target).unwrap();
        assert_eq!((table.bound_loop_node(entry), entry.mounted_loop()), (Some(number), None));
        let kind = host.node(&target).unwrap().unwrap().kind;
        assert_eq!(kind, NodeKind::BlockDevice(DeviceNumber::of_loop(number)));
        let raw = File::options().write(true).open(&target).unwrap();
        raw.write_all_at(b"through the node", 512).unwrap();
        raw.sync_all().unwrap();
        drop(raw);
        let mut content = [0; 16];
        file.read_exact_at(&mut content, 512).unwrap();
        assert_eq!(&content, b"through the node");
        host.unmount(&target).unwrap();
        host.remove_mount_point(&target).unwrap();
        detach(&host, number);
        assert!(!target.exists());
        poll("the device is gone", || loops_below(sandbox.dir()).is_empty());
    });
}

#[test]
fn a_view_refuses_writes_and_shows_what_lies_below() {
    privileged(|sandbox| {
        let (host, file) = (LinuxHost::new(), image(&sandbox.path("disk.img")));
        let lower = host.attach(file.as_fd(), options("lower")).unwrap();
        let below = File::options().read(true).write(true).open(loop_path(lower.number)).unwrap();
        below.write_all_at(b"below", 0).unwrap();
        let read_only =
            LoopOptions { read_only: true, direct_io: DirectIo::Off, ..options("view") };
        let view = host.attach(below.as_fd(), read_only).unwrap();
        let status = host.loop_status(view.number).unwrap().unwrap();
        assert_eq!(status.backing_device, Some(DeviceNumber::of_loop(lower.number)));
        assert!(status.read_only && !host.loop_status(lower.number).unwrap().unwrap().read_only);
        let mut content = [0; 5];
        File::open(loop_path(view.number)).unwrap().read_exact_at(&mut content, 0).unwrap();
        assert_eq!(&content, b"below");
        let writable = File::options().write(true).open(loop_path(view.number));
        let refused = writable.and_then(|f| f.write_all_at(b"above", 0).and(f.sync_all()));
        let errno = refused.unwrap_err().raw_os_error().map(Errno::from_raw);
        assert!(matches!(errno, Some(Errno::EPERM | Errno::EACCES | Errno::EROFS)), "{errno:?}");
        below.write_all_at(b"again", 0).unwrap();
        let (upper, under) = (view.number, lower.number);
        view.release();
        detach(&host, upper);
        drop(below);
        lower.release();
        detach(&host, under);
        poll("both are gone", || loops_below(sandbox.dir()).is_empty());
    });
}

#[test]
fn many_threads_attach_at_once_and_each_gets_its_own_device() {
    privileged(|sandbox| {
        const THREADS: usize = 12;
        let start = Barrier::new(THREADS);
        let attach = |index: usize| {
            let (host, path) = (LinuxHost::new(), sandbox.path(format!("{index}.img")));
            let file = image(&path);
            file.set_len(SIZE * (index as u64 + 1)).unwrap();
            start.wait();
            let label = format!("volume {index}");
            let device = host.attach(file.as_fd(), options(&label)).unwrap();
            let status = host.loop_status(device.number).unwrap().unwrap();
            assert_eq!((status.backing, status.label), (identity(&file), label));
            let mut node = File::open(loop_path(device.number)).unwrap();
            assert_eq!(node.seek(SeekFrom::End(0)).unwrap(), file.metadata().unwrap().len());
            let number = device.number;
            device.release();
            number
        };
        let mut numbers = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|index| scope.spawn(move || attach(index))).collect();
            numbers.extend(threads.into_iter().map(|thread| thread.join().unwrap()));
        });
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), THREADS);
        let host = LinuxHost::new();
        for number in numbers {
            detach(&host, number);
        }
        poll("all are gone", || loops_below(sandbox.dir()).is_empty());
    });
}

#[test]
fn a_device_that_somebody_looks_at_is_gone_when_its_detaching_has_ended() {
    privileged(|sandbox| {
        let (host, file) = (LinuxHost::new(), image(&sandbox.path("disk.img")));
        let device = host.attach(file.as_fd(), options("x")).unwrap();
        let number = device.number;
        device.release();
        let looking = File::open(loop_path(number)).unwrap();
        let is_asked_to_go = move || {
            let flag = format!("/sys/block/loop{number}/loop/autoclear");
            std::fs::read_to_string(flag).is_ok_and(|flag| flag.trim() == "1")
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                poll("it is asked to go", is_asked_to_go);
                drop(looking);
            });
            detach(&host, number);
        });
        assert_eq!(loops_below(sandbox.dir()).len(), 0);
    });
}

fn discard_limit(number: u32) -> u64 {
    let path = format!("/sys/block/loop{number}/queue/discard_max_bytes");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// A limit that is set on a loop device outlives its file.
#[test]
fn a_thin_image_takes_discards_also_on_a_number_that_a_thick_one_had() {
    privileged(|sandbox| {
        let (host, file) = (LinuxHost::new(), image(&sandbox.path("disk.img")));
        let attach = |allocation| {
            let device = host.attach(file.as_fd(), LoopOptions { allocation, ..options("x") });
            let device = device.unwrap();
            let seen = (device.number, discard_limit(device.number));
            device.release();
            detach(&host, seen.0);
            poll("the device is gone", || loops_below(sandbox.dir()).is_empty());
            seen
        };
        // Other programs may take the number in between.
        let reused = (0..50).any(|_| {
            let (thick, thick_limit) = attach(Allocation::Thick);
            assert_eq!(thick_limit, 0);
            let (thin, thin_limit) = attach(Allocation::Thin);
            assert!(thin_limit > 0, "a thin image on /dev/loop{thin} takes no discards");
            thick == thin
        });
        assert!(reused, "no number was used twice");
    });
}
