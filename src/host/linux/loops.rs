//! Loop devices, by ioctl.
//!
//! Invariants: a device is known by its backing file's (device, inode); one that could not be set up exactly as
//! asked is detached again; a thick image's device takes no discards before anybody can use it; a hold is open for
//! reading only, because a kernel may refuse to mount what somebody has open for writing.
//!
//! Must not: remember a device, or detach one that it did not set up without being told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::{layout, sys};
use crate::fault;
use crate::host::{
    AttachedLoop, DeviceNumber, FileIdentity, HostError, LoopOptions, LoopStatus, loop_path,
};
use crate::volume::{Allocation, ByteSize, DirectIo};

const CONTROL: &str = "/dev/loop-control";
const MOUNT_DEV: &str = "mount the host's /dev into the driver (hostPath /dev)";
/// Other programs take free devices as well; so many lost races in a row are no accident.
const ATTEMPTS: u32 = 32;
/// How long somebody else may keep a device open that is to go; then it goes with them.
const DETACH_WAIT: Duration = Duration::from_secs(1);
/// How long devtmpfs may take to show a new device.
const NODE_WAIT: Duration = Duration::from_secs(2);

/// Gives out loop devices.
#[derive(Debug, Default)]
pub(super) struct Loops {
    /// Between "which one is free" and "take it" this process does not compete with itself.
    gate: Mutex<()>,
}

/// Asks again every few milliseconds until the answer is yes or the time is up.
#[expect(
    clippy::disallowed_methods,
    reason = "a bounded wait for what the kernel finishes on its own"
)]
pub(super) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

fn sysfs(number: u32, tail: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/loop{number}/{tail}"))
}

/// Opens the device node, and makes sure that it is the loop device of that number.
fn open_node(number: u32, mode: OFlag) -> Result<File, HostError> {
    let path = loop_path(number);
    let flags = mode | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let node = match open(&path, flags, Mode::empty()) {
        Ok(node) => node,
        Err(Errno::ENOENT) if sysfs(number, "").exists() => {
            return Err(HostError::Unsupported {
                what: format!("loop device {number} exists, but {} does not", path.display()),
                remedy: MOUNT_DEV,
            });
        }
        Err(e) => return Err(HostError::call("open", path, e)),
    };
    let stat = fstat(&node).map_err(|e| HostError::call("stat", &path, e))?;
    if DeviceNumber::of_stat(stat.st_rdev) != DeviceNumber::of_loop(number) {
        return Err(HostError::Unsupported {
            what: format!(
                "{} has the device number {} instead of {}",
                path.display(),
                DeviceNumber::of_stat(stat.st_rdev),
                DeviceNumber::of_loop(number)
            ),
            remedy: "load the kernel module loop without max_part",
        });
    }
    Ok(node.into())
}

/// Opens a loop device for reading.
pub(super) fn open_to_read(number: u32) -> Result<File, HostError> {
    open_node(number, OFlag::O_RDONLY)
}

/// The same for reading; `None` when there is no such device.
fn open_if_there(number: u32) -> Result<Option<File>, HostError> {
    match open_node(number, OFlag::O_RDONLY) {
        Ok(device) => Ok(Some(device)),
        // A device on its way out answers the last two.
        Err(e) if matches!(e.errno(), Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV)) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn status_of(device: &File, number: u32) -> Result<Option<LoopStatus>, HostError> {
    let info = match sys::loop_status(device.as_fd()) {
        Ok(info) => info,
        Err(Errno::ENXIO) => return Ok(None),
        Err(e) => return Err(HostError::call("ask the status of", loop_path(number), e)),
    };
    let has = |flag| info.flags & flag != 0;
    Ok(Some(LoopStatus {
        number,
        backing: FileIdentity { device: DeviceNumber::of_stat(info.device), inode: info.inode },
        backing_device: (info.rdevice != 0).then(|| DeviceNumber::of_stat(info.rdevice)),
        read_only: has(layout::LO_FLAGS_READ_ONLY),
        autoclear: has(layout::LO_FLAGS_AUTOCLEAR),
        direct_io: has(layout::LO_FLAGS_DIRECT_IO),
        partial: info.offset != 0 || info.size_limit != 0,
        label: label_of(&info),
    }))
}

fn label_of(info: &layout::LoopInfo) -> String {
    let name = info.file_name.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// N of every entry `loopN` of a directory.
fn numbers_in(directory: &str) -> Result<Vec<u32>, HostError> {
    let failed = |e| HostError::call("list", directory, e);
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop"));
        numbers.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Every device with a backing file.
pub(super) fn all() -> Result<Vec<LoopStatus>, HostError> {
    let numbers = match numbers_in("/sys/block") {
        // The kernel has the directory `loop` while a file is attached.
        Ok(numbers) => {
            numbers.into_iter().filter(|&number| sysfs(number, "loop").exists()).collect()
        }
        Err(_no_sysfs) => numbers_in("/dev")?,
    };
    let mut found = Vec::new();
    for number in numbers {
        found.extend(status(number)?);
    }
    Ok(found)
}

pub(super) fn status(number: u32) -> Result<Option<LoopStatus>, HostError> {
    match open_if_there(number)? {
        Some(device) => status_of(&device, number),
        None => Ok(None),
    }
}

pub(super) fn hold(
    number: u32,
    backing: FileIdentity,
    allocation: Allocation,
) -> Result<AttachedLoop, HostError> {
    let changed = || HostError::Unexpected {
        what: "the loop device changed hands meanwhile (repeat the request)".to_owned(),
        path: loop_path(number),
    };
    let device = open_if_there(number)?.ok_or_else(changed)?;
    // Asked through the opened device, which the kernel cannot hand to another file any more.
    if status_of(&device, number)?.is_none_or(|status| status.backing != backing) {
        return Err(changed());
    }
    if allocation == Allocation::Thick {
        settle_discards(number, allocation)?;
    }
    Ok(AttachedLoop::new(number, Box::new(device)))
}

pub(super) fn detach(number: u32, backing: FileIdentity) -> Result<(), HostError> {
    let Some(device) = open_if_there(number)? else {
        return Ok(());
    };
    // Asked through the opened device: the number may have changed hands since somebody saw it.
    if status_of(&device, number)?.is_none_or(|status| status.backing != backing) {
        return Ok(());
    }
    fault::point!("host.detach.start")
        .map_err(|e| HostError::call("detach", loop_path(number), e))?;
    // By its file: the number may be somebody else's at once.
    let file = || std::fs::read(sysfs(number, "loop/backing_file")).ok();
    let shown = file();
    clear(&device, number)?;
    drop(device);
    // Who looks at it just now, be it another job of this driver, puts its end off. A volume whose device is still there
    // could not be deleted.
    if shown.is_some() && !wait_until(DETACH_WAIT, || file() != shown) {
        tracing::warn!(
            number,
            "somebody keeps the loop device open; it is detached when they close it"
        );
    }
    fault::point!("host.detach.done").map_err(|e| HostError::call("detach", loop_path(number), e))
}

fn clear(device: &File, number: u32) -> Result<(), HostError> {
    match sys::loop_clear(device.as_fd()) {
        Ok(()) | Err(Errno::ENXIO) => Ok(()),
        Err(e) => Err(HostError::call("detach", loop_path(number), e)),
    }
}

pub(super) fn refresh_size(number: u32) -> Result<ByteSize, HostError> {
    let device = open_node(number, OFlag::O_RDONLY)?;
    let failed = |e| HostError::call("refresh the size of", loop_path(number), e);
    sys::loop_set_capacity(device.as_fd()).map_err(failed)?;
    let size = sys::device_size(device.as_fd()).map_err(failed)?;
    Ok(ByteSize::new(size))
}

/// With loop-control the kernel makes devices as they are needed, up to 2^20 minor numbers, which is no bound that
/// a node could meet (the parameter `max_loop` only says how many are made in advance). Without it there are those
/// that exist.
pub(super) fn limit() -> Option<u32> {
    if Path::new(CONTROL).exists() {
        return None;
    }
    let existing = numbers_in("/dev").unwrap_or_default().len();
    Some(u32::try_from(existing).unwrap_or(u32::MAX))
}

impl Loops {
    pub(super) fn attach(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions<'_>,
    ) -> Result<AttachedLoop, HostError> {
        let (number, device) = self.configure_any(image, options)?;
        match finish(&device, number, options) {
            Ok(attached) => Ok(attached),
            Err(e) => {
                if let Err(undo) = clear(&device, number) {
                    tracing::warn!(number, error = %undo, "cannot detach a loop device that failed to set up");
                }
                Err(e)
            }
        }
    }

    /// Takes a free device for the image.
    fn configure_any(
        &self,
        image: BorrowedFd<'_>,
        options: LoopOptions<'_>,
    ) -> Result<(u32, File), HostError> {
        let control = open_control()?;
        let _alone = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for attempt in 0..ATTEMPTS {
            let number = sys::loop_get_free(control.as_fd())
                .map_err(|e| HostError::call("find a free loop device with", CONTROL, e))?;
            renew_if_spoilt(&control, number, options.allocation);
            match open_new(number).and_then(|device| take(device, number, image, options)) {
                Ok(device) => return Ok((number, device)),
                // Somebody else was faster, or the device is being taken down or made anew.
                Err(e) if lost_race(&e) => last = Some(e),
                Err(e) => return Err(e),
            }
            let pause = Duration::from_millis(u64::from(attempt));
            let _time_is_up = wait_until(pause, || false);
        }
        Err(last
            .unwrap_or_else(|| HostError::call("set up a loop device with", CONTROL, Errno::EBUSY)))
    }
}

fn open_control() -> Result<File, HostError> {
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open(CONTROL, flags, Mode::empty()) {
        Ok(control) => Ok(control.into()),
        Err(Errno::ENOENT | Errno::ENODEV) => Err(HostError::Unsupported {
            what: format!("there is no {CONTROL}"),
            remedy: "load the kernel module loop on the node and mount the host's /dev into the driver",
        }),
        Err(e) => Err(HostError::call("open", CONTROL, e)),
    }
}

/// Opens a device that may be so new that its node is still to come.
fn open_new(number: u32) -> Result<File, HostError> {
    let path = loop_path(number);
    if !wait_until(NODE_WAIT, || path.exists()) {
        return Err(HostError::Unsupported {
            what: format!("{} does not appear", path.display()),
            remedy: MOUNT_DEV,
        });
    }
    open_node(number, OFlag::O_RDWR)
}

fn loop_info(options: LoopOptions<'_>) -> layout::LoopInfo {
    let mut info = layout::LoopInfo::EMPTY;
    for (wanted, flag) in [
        (options.read_only, layout::LO_FLAGS_READ_ONLY),
        (options.autoclear, layout::LO_FLAGS_AUTOCLEAR),
        (options.direct_io != DirectIo::Off, layout::LO_FLAGS_DIRECT_IO),
    ] {
        info.flags |= if wanted { flag } else { 0 };
    }
    // The last byte stays NUL.
    let places = info.file_name.iter_mut().take(63);
    for (place, byte) in places.zip(options.label.bytes()) {
        *place = byte;
    }
    info
}

fn lost_race(error: &HostError) -> bool {
    matches!(error.errno(), Some(Errno::EBUSY | Errno::ENXIO | Errno::ENODEV | Errno::ENOENT))
}

/// Gives a free device the image.
fn take(
    device: File,
    number: u32,
    image: BorrowedFd<'_>,
    options: LoopOptions<'_>,
) -> Result<File, HostError> {
    let mut info = loop_info(options);
    let mut taken = sys::loop_configure(device.as_fd(), image, options.sector, info);
    if taken == Err(Errno::EINVAL) && options.direct_io == DirectIo::Auto {
        // Some kernels refuse a sector that direct I/O to the file below cannot have, others fall back by themselves.
        info.flags &= !layout::LO_FLAGS_DIRECT_IO;
        taken = sys::loop_configure(device.as_fd(), image, options.sector, info);
    }
    match taken {
        Ok(()) => Ok(device),
        Err(errno @ (Errno::EINVAL | Errno::ENOTTY)) => Err(HostError::Unsupported {
            what: format!("the kernel refuses to set up a loop device ({errno})"),
            remedy: "Linux 5.8 or newer is needed, and a filesystem below that can hold images; try directIO: auto",
        }),
        // ENXIO: a device on its way out, or (each time) a kernel without LOOP_CONFIGURE.
        Err(errno) => Err(HostError::call(
            "set up (LOOP_CONFIGURE, Linux 5.8 or newer)",
            loop_path(number),
            errno,
        )),
    }
}

/// Checks what the kernel made of the request, and settles discards, before anybody learns of the device.
fn finish(device: &File, number: u32, options: LoopOptions<'_>) -> Result<AttachedLoop, HostError> {
    let failed = |e| HostError::call("set up", loop_path(number), e);
    fault::point!("host.attach.configured").map_err(failed)?;
    let status = status_of(device, number)?
        .ok_or_else(|| HostError::call("set up", loop_path(number), Errno::ENXIO))?;
    if options.direct_io == DirectIo::On && !status.direct_io {
        return Err(HostError::Unsupported {
            what: "directIO: on is asked for, and the pool's filesystem cannot do it".to_owned(),
            remedy: "use directIO: auto, or a pool on another filesystem",
        });
    }
    if status.read_only != options.read_only {
        return Err(HostError::Unexpected {
            what: "the loop device is read-only, because its image was opened for reading only"
                .to_owned(),
            path: loop_path(number),
        });
    }
    settle_discards(number, options.allocation)?;
    let attached = hold(number, status.backing, Allocation::Thin)?;
    tracing::debug!(
        number,
        direct_io = status.direct_io,
        sector = options.sector,
        autoclear = status.autoclear,
        "loop device attached"
    );
    fault::point!("host.attach.done").map_err(failed)?;
    Ok(attached)
}

fn read_number(path: &Path) -> Option<u64> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_number(path: &Path, number: u64) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(number.to_string().as_bytes())
}

/// The device takes no discards although it could.
fn refuses_discards(number: u32) -> bool {
    let at = |name| read_number(&sysfs(number, name));
    at("queue/discard_max_bytes") == Some(0)
        && at("queue/discard_max_hw_bytes").is_some_and(|most| most > 0)
}

/// Blocks can be given back.
pub(super) fn takes_discards(number: u32) -> bool {
    read_number(&sysfs(number, "queue/discard_max_bytes")).is_some_and(|most| most > 0)
}

/// Switching discards off outlives the attachment, and the kernel does not switch them on again (with none allowed
/// their granularity is 0, of which nothing else is a multiple). So a thin image gets a device that is made anew.
fn renew_if_spoilt(control: &File, number: u32, allocation: Allocation) {
    if allocation == Allocation::Thin
        && refuses_discards(number)
        && let Err(error) = sys::loop_renew(control.as_fd(), number)
    {
        tracing::debug!(number, %error, "cannot make a free loop device anew");
    }
}

/// A thick image's device must not hand blocks back.
fn settle_discards(number: u32, allocation: Allocation) -> Result<(), HostError> {
    if allocation == Allocation::Thin {
        if refuses_discards(number) {
            tracing::warn!(number, "a thin image will not give blocks back");
        }
        return Ok(());
    }
    let path = sysfs(number, "queue/discard_max_bytes");
    if read_number(&path) == Some(0) {
        return Ok(());
    }
    let written = write_number(&path, 0);
    if read_number(&path) == Some(0) {
        return Ok(());
    }
    let why = written.err().map_or_else(String::new, |e| format!(" ({e})"));
    let device = loop_path(number);
    Err(HostError::Unsupported {
        what: format!("discards of {} cannot be switched off{why}", device.display()),
        remedy: "sysfs is not writable: mount the host's /sys read-write into the driver",
    })
}
