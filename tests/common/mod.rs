//! What the tests that need root share: a mount namespace of their own, a temporary directory, and the check that
//! nothing is left behind. Other programs use loop devices at the same time, so every check looks at files of this
//! test only.
#![expect(
    clippy::expect_used,
    reason = "helpers of tests; clippy knows functions marked as tests only"
)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::sched::{CloneFlags, unshare};
use orlop::host::linux::LinuxHost;
use orlop::host::{FormatRecipe, Host, LoopOptions, LoopStatus, RootOwner};
use orlop::volume::{Allocation, DirectIo, Filesystem};

/// A test's machine.
pub(crate) struct Bench {
    pub(crate) host: LinuxHost,
    pub(crate) home: PathBuf,
}

/// What most images are attached with.
pub(crate) const OPTIONS: LoopOptions<'static> = LoopOptions {
    label: "v-test",
    read_only: false,
    autoclear: true,
    direct_io: DirectIo::Auto,
    sector: 4096,
    allocation: Allocation::Thin,
};

/// Runs a test in a mount namespace of its own, and fails when it leaves a mount or a loop device behind.
pub(crate) fn privileged(test: impl FnOnce(&Bench) + Send + 'static) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test needs root: run it as `sudo -E cargo test --test privileged_host`"
    );
    let home = tempfile::tempdir().expect("a temporary directory");
    let path = home.path().canonicalize().expect("its path");
    // unshare(2) moves only the calling thread, so the namespace ends with it, and with it every mount.
    let thread = std::thread::spawn(move || {
        own_namespace();
        let bench = Bench { host: LinuxHost::new(), home: path };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&bench)));
        (outcome, bench.clean_up())
    });
    let (outcome, left) = thread.join().expect("the test's thread");
    drop(home);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Leaves the mount namespace of the thread's creator; nothing mounted from here on is seen there.
#[expect(clippy::disallowed_methods, reason = "sets the test's namespace up")]
pub(crate) fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private");
}

impl Bench {
    /// A new image file, all zeroes.
    pub(crate) fn image(&self, name: &str, mib: u64, allocation: Allocation) -> File {
        image_in(&self.home, name, mib, allocation)
    }

    /// A new empty directory.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.home.join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    }

    /// Formats with an unusual root directory.
    pub(crate) fn format(&self, image: &File, filesystem: Filesystem) {
        let recipe = recipe(filesystem);
        self.host.format(image.as_fd(), &recipe).expect("a filesystem");
    }

    /// The loop devices of a file.
    pub(crate) fn loops_of(&self, image: &File) -> Vec<LoopStatus> {
        let wanted = image.metadata().expect("the image").ino();
        let here = self.host.node(&self.home).expect("home").expect("home");
        let all = self.host.loops().expect("loops");
        let of_image = |status: &LoopStatus| {
            status.backing.inode == wanted && status.backing.device == here.identity.device
        };
        all.into_iter().filter(of_image).collect()
    }

    /// Unmounts and detaches what the test left, and names it.
    #[expect(clippy::disallowed_methods, reason = "cleans up after a failed test")]
    fn clean_up(&self) -> Vec<String> {
        let mut left = Vec::new();
        let table = self.host.mounts().expect("mounts");
        for mount in table.iter().rev() {
            if mount.mount_point.starts_with(&self.home) {
                left.push(mount.mount_point.display().to_string());
                let lazily = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
                nix::mount::umount2(&mount.mount_point, lazily).ok();
            }
        }
        let attached = || loops_below(&self.home);
        eventually(|| attached().is_empty());
        for (number, file) in attached() {
            left.push(format!("loop {number} on {file}"));
            self.host.detach(number).ok();
        }
        left
    }
}

/// Loop devices by the path of their file, as sysfs tells it.
fn loops_below(home: &Path) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").expect("sysfs").flatten() {
        let Ok(file) = std::fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(Ok(number)) = name.strip_prefix("loop").map(str::parse)
            && file.starts_with(&home.display().to_string())
        {
            found.push((number, file.trim().to_owned()));
        }
    }
    found
}

/// A root directory as no mkfs makes it.
pub(crate) fn recipe(filesystem: Filesystem) -> FormatRecipe<'static> {
    FormatRecipe {
        filesystem,
        sector: 4096,
        options: &[],
        root: RootOwner { mode: 0o2771, uid: 1234, gid: 4321 },
    }
}

/// A new image file anywhere.
pub(crate) fn image_in(directory: &Path, name: &str, mib: u64, allocation: Allocation) -> File {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = options.open(directory.join(name)).expect("an image");
    file.set_len(mib << 20).expect("its size");
    if allocation == Allocation::Thick {
        let length = i64::try_from(mib << 20).expect("a length");
        let mode = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&file, mode, 0, length).expect("its blocks");
    }
    file
}

/// The kernel finishes some things a moment later.
#[expect(clippy::disallowed_methods, reason = "a bounded wait")]
pub(crate) fn eventually(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// How many bytes of a file have blocks.
pub(crate) fn allocated(file: &File) -> u64 {
    file.sync_all().expect("fsync");
    file.metadata().expect("metadata").blocks() * 512
}
