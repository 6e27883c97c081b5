//! What the machine asks for the things that cannot be done without, on the same disk and in the same run.

#![expect(clippy::disallowed_methods, reason = "does by itself what the driver's layers do")]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop::host::linux::LinuxHost;
use orlop::host::{BindSource, FilesystemMount, Host, LoopOptions, MountPoint};
use orlop::volume::{Allocation, DirectIo, Filesystem, MountAttributes};

use crate::privileged::{Sandbox, run};
use crate::report::Samples;

/// Parts of a floor, by name.
#[derive(Debug)]
pub(crate) struct Floor(BTreeMap<&'static str, Duration>);

impl Floor {
    /// The sum of some parts, with its name.
    pub(crate) fn of(&self, parts: &[&str]) -> (String, Duration) {
        let sum = parts.iter().map(|part| self.0[part]).sum();
        (parts.join(" + "), sum)
    }

    pub(crate) fn set(&mut self, part: &'static str, took: Duration) {
        self.0.insert(part, took);
    }

    pub(crate) fn measure(sandbox: &Sandbox) -> Self {
        let place = sandbox.make_dir("floor");
        let mut parts = BTreeMap::new();
        parts.insert("fsync", fsync(&place));
        parts.insert("birth", birth(&place));
        parts.insert("burial", burial(&place));
        let (bind, unmount) = bind(&place);
        parts.insert("bind", bind);
        parts.insert("unmount", unmount);
        let (attach, mount, detach) = attach(&place);
        parts.insert("attach", attach);
        parts.insert("mount", mount);
        parts.insert("detach", detach);
        parts.insert("mkfs.ext4", mkfs(&place, "mkfs.ext4", &["-q", "-F"], 64));
        parts.insert("mkfs.xfs", mkfs(&place, "mkfs.xfs", &["-q", "-f"], 320));
        std::fs::remove_dir_all(place).unwrap();
        Self(parts)
    }
}

fn median(count: usize, mut call: impl FnMut(usize) -> Duration) -> Duration {
    let mut samples = Samples::default();
    for number in 0..count {
        samples.add(call(number));
    }
    samples.median()
}

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

/// 4 KiB that are written and flushed.
fn fsync(place: &Path) -> Duration {
    let file = File::create(place.join("file")).unwrap();
    let block = [1; 4096];
    median(200, |_| {
        timed(|| {
            file.write_all_at(&block, 0).unwrap();
            file.sync_all().unwrap();
        })
    })
}

fn sync_dir(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

/// A directory with a record and data that appears under its name at once, for good.
fn birth(place: &Path) -> Duration {
    let [incoming, volumes] = ["incoming", "volumes"].map(|name| place.join(name));
    std::fs::create_dir(&incoming).unwrap();
    std::fs::create_dir(&volumes).unwrap();
    median(200, |number| {
        timed(|| {
            let new = incoming.join(number.to_string());
            std::fs::create_dir(&new).unwrap();
            std::fs::create_dir(new.join("data")).unwrap();
            let record = File::create(new.join("volume.json")).unwrap();
            record.write_all_at(&[1; 1024], 0).unwrap();
            record.sync_all().unwrap();
            sync_dir(&new);
            std::fs::rename(&new, volumes.join(number.to_string())).unwrap();
            sync_dir(&volumes);
            sync_dir(&incoming);
        })
    })
}

/// The same on its way out.
fn burial(place: &Path) -> Duration {
    let [volumes, trash] = ["volumes", "trash"].map(|name| place.join(name));
    std::fs::create_dir(&trash).unwrap();
    median(200, |number| {
        timed(|| {
            let name = number.to_string();
            std::fs::rename(volumes.join(&name), trash.join(&name)).unwrap();
            sync_dir(&trash);
            sync_dir(&volumes);
        })
    })
}

fn bind(place: &Path) -> (Duration, Duration) {
    let host = LinuxHost::new();
    let [source, target] = ["source", "target"].map(|name| place.join(name));
    std::fs::create_dir(&source).unwrap();
    host.make_mount_point(&target, MountPoint::Directory).unwrap();
    let (mut bound, mut unbound) = (Samples::default(), Samples::default());
    for _ in 0..200 {
        let from = BindSource::Path(&source);
        bound.add(timed(|| host.bind(from, &target, MountAttributes::default()).unwrap()));
        unbound.add(timed(|| host.unmount(&target).unwrap()));
    }
    (bound.median(), unbound.median())
}

/// LOOP_CONFIGURE, the mount of an ext4, and the end of both.
fn attach(place: &Path) -> (Duration, Duration, Duration) {
    let host = LinuxHost::new();
    let target = place.join("mounted");
    std::fs::create_dir(&target).unwrap();
    let path = place.join("image");
    let image = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    image.set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), path.as_os_str()]);
    let options = LoopOptions {
        label: "bench",
        read_only: false,
        autoclear: false,
        direct_io: DirectIo::Auto,
        sector: 512,
        allocation: Allocation::Thin,
    };
    let [mut attached, mut mounted, mut detached] = [(); 3].map(|()| Samples::default());
    for _ in 0..50 {
        let start = Instant::now();
        let device = host.attach(image.as_fd(), options).unwrap();
        attached.add(start.elapsed());
        let number = device.number;
        let mount = FilesystemMount {
            loop_number: number,
            filesystem: Filesystem::Ext4,
            target: &target,
            attributes: MountAttributes::default(),
            options: &[],
        };
        mounted.add(timed(|| host.mount(&mount).unwrap()));
        host.unmount(&target).unwrap();
        device.release();
        let seen = host.loop_status(number).unwrap().unwrap();
        detached.add(timed(|| host.detach(number, seen.backing).unwrap()));
    }
    (attached.median(), mounted.median(), detached.median())
}

/// A program alone, on a sparse file of that many MiB.
fn mkfs(place: &Path, program: &str, flags: &[&str], size: u64) -> Duration {
    let path = place.join(program);
    median(20, |_| {
        File::create(&path).unwrap().set_len(size << 20).unwrap();
        let arguments = flags.iter().copied().chain([path.to_str().unwrap()]);
        timed(|| drop(run(program, &arguments.collect::<Vec<_>>())))
    })
}
