//! Loop devices, by ioctl. A device is found by its backing file, never by a remembered number.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::sys::{self, LoopInfo};
use crate::fault;
use crate::host::{
    AttachedLoop, DeviceNumber, FileIdentity, HostError, LoopOptions, LoopStatus, loop_path,
};
use crate::volume::{Allocation, ByteSize, DirectIo};

const CONTROL: &str = "/dev/loop-control";
const SYSFS: &str = "/sys/block";
/// Somebody else may take the free device between the two ioctls; more often than this is not bad luck.
const ATTEMPTS: usize = 64;

/// The kernel's device numbers as LOOP_GET_STATUS64 has them (`huge_encode_dev`).
fn decode(encoded: u64) -> DeviceNumber {
    let low = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    DeviceNumber {
        major: low((encoded >> 8) & 0xfff),
        minor: low((encoded & 0xff) | ((encoded >> 12) & 0xf_ff00)),
    }
}

fn label(info: &LoopInfo) -> String {
    let bytes = info.file_name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

fn describe(number: u32, info: &LoopInfo) -> LoopStatus {
    LoopStatus {
        number,
        backing: FileIdentity { device: decode(info.device), inode: info.inode },
        backing_device: (info.rdevice != 0).then(|| decode(info.rdevice)),
        read_only: info.flags & sys::LO_FLAGS_READ_ONLY != 0,
        autoclear: info.flags & sys::LO_FLAGS_AUTOCLEAR != 0,
        direct_io: info.flags & sys::LO_FLAGS_DIRECT_IO != 0,
        partial: info.offset != 0 || info.size_limit != 0,
        label: label(info),
    }
}

fn open(number: u32, write: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
        .open(loop_path(number))
}

/// N of every loop device that has a backing file.
fn bound_numbers() -> Result<Vec<u32>, HostError> {
    let entries = std::fs::read_dir(SYSFS).map_err(|e| HostError::call("list", SYSFS, e))?;
    let mut numbers = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| HostError::call("list", SYSFS, e))?;
        let number =
            entry.file_name().to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        // The directory `loop` is there only while the device has a backing file.
        if let Some(number) = number.filter(|_| entry.path().join("loop").exists()) {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

pub(super) fn all() -> Result<Vec<LoopStatus>, HostError> {
    let mut loops = Vec::new();
    for number in bound_numbers()? {
        loops.extend(status(number)?);
    }
    loops.sort_by_key(|status| status.number);
    Ok(loops)
}

pub(super) fn status(number: u32) -> Result<Option<LoopStatus>, HostError> {
    let path = loop_path(number);
    let device = match open(number, false) {
        Ok(device) => device,
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_bound(number) => {
            return Err(HostError::Unsupported {
                what: format!("{} is in use but its node is not here: {error}", path.display()),
                remedy: "mount the host's /dev into the driver's container",
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(HostError::call("open", path, error)),
    };
    match sys::loop_status(device.as_fd()) {
        Ok(info) => Ok(Some(describe(number, &info))),
        // Detached since it was listed.
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(HostError::call("ask the status of", path, errno)),
    }
}

fn is_bound(number: u32) -> bool {
    Path::new(SYSFS).join(format!("loop{number}/loop")).exists()
}

/// A free device, opened. Its node may appear a moment after its number.
fn free_device(control: &File, write: bool) -> Result<(u32, File), HostError> {
    let number = sys::loop_get_free(control.as_fd())
        .map_err(|e| HostError::call("get a free loop device from", CONTROL, e))?;
    let failed = |e| HostError::call("open", loop_path(number), e);
    for _ in 0..100 {
        match open(number, write) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => pause(),
            opened => return Ok((number, opened.map_err(failed)?)),
        }
    }
    Err(HostError::Unsupported {
        what: format!("{} did not appear", loop_path(number).display()),
        remedy: "mount the host's /dev into the driver's container",
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "bounded waits for the kernel, which has nothing to wait on"
)]
fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(5));
}

fn info(options: &LoopOptions<'_>, direct_io: bool) -> LoopInfo {
    let mut info = LoopInfo::EMPTY;
    for (wanted, flag) in [
        (options.read_only, sys::LO_FLAGS_READ_ONLY),
        (options.autoclear, sys::LO_FLAGS_AUTOCLEAR),
        (direct_io, sys::LO_FLAGS_DIRECT_IO),
    ] {
        info.flags |= if wanted { flag } else { 0 };
    }
    // The last byte stays NUL.
    for (place, byte) in info.file_name.iter_mut().take(63).zip(options.label.bytes()) {
        *place = byte;
    }
    info
}

pub(super) fn attach(
    image: BorrowedFd<'_>,
    options: LoopOptions<'_>,
) -> Result<AttachedLoop, HostError> {
    let control = OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|e| {
        HostError::Unsupported {
            what: format!("cannot open {CONTROL}: {e}"),
            remedy: "load the loop module and mount the host's /dev into the driver's container",
        }
    })?;
    let mode =
        fcntl(image, FcntlArg::F_GETFL).map_err(|e| HostError::call("look at", "the image", e))?;
    let writable = OFlag::from_bits_truncate(mode) & OFlag::O_ACCMODE == OFlag::O_RDWR;
    let options = LoopOptions { read_only: options.read_only || !writable, ..options };
    let (number, device) = configure(&control, image, &options)?;
    if let Err(error) = settle(number, &device, &options) {
        // Nobody else knows the device yet; when this fails as well, AUTOCLEAR or the next unstage detaches it.
        if let Err(errno) = sys::loop_clear(device.as_fd()) {
            tracing::warn!(number, %errno, "cannot detach a loop device that was not set up as asked");
        }
        return Err(error);
    }
    tracing::debug!(number, label = options.label, "loop device attached");
    Ok(AttachedLoop::new(number, Box::new(device)))
}

/// Gives a free device its image. Direct I/O is tried first where it may be, then without.
fn configure(
    control: &File,
    image: BorrowedFd<'_>,
    options: &LoopOptions<'_>,
) -> Result<(u32, File), HostError> {
    let mut direct_io = options.direct_io != DirectIo::Off;
    for _ in 0..ATTEMPTS {
        let (number, device) = free_device(control, !options.read_only)?;
        match sys::loop_configure(device.as_fd(), image, options.sector, info(options, direct_io)) {
            Ok(()) => return Ok((number, device)),
            // Taken by somebody else since it was free.
            Err(Errno::EBUSY) => pause(),
            Err(Errno::EINVAL) if direct_io && options.direct_io == DirectIo::Auto => {
                direct_io = false;
            }
            Err(Errno::ENOTTY) => {
                return Err(HostError::Unsupported {
                    what: "this kernel has no LOOP_CONFIGURE".to_owned(),
                    remedy: "loop volumes need Linux 5.8 or later",
                });
            }
            Err(errno) => return Err(HostError::call("set up", loop_path(number), errno)),
        }
    }
    Err(HostError::call("set up a loop device with", CONTROL, Errno::EBUSY))
}

/// Checks that the device is what was asked for, before anybody uses it.
fn settle(number: u32, device: &File, options: &LoopOptions<'_>) -> Result<(), HostError> {
    let path = loop_path(number);
    fault::point!("host.attach.configured").map_err(|e| HostError::call("set up", &path, e))?;
    let info = sys::loop_status(device.as_fd())
        .map_err(|e| HostError::call("ask the status of", &path, e))?;
    if options.direct_io == DirectIo::On && !describe(number, &info).direct_io {
        return Err(HostError::Unsupported {
            what: "the pool's filesystem has no direct I/O for this image".to_owned(),
            remedy: "use directIO=auto or directIO=off in the StorageClass",
        });
    }
    if options.allocation == Allocation::Thick && !options.read_only {
        refuse_discards(number)?;
    }
    Ok(())
}

/// A discard punches a hole into the image: its blocks would be free for others. The limit of the queue forbids them
/// before anybody can mount the device.
fn refuse_discards(number: u32) -> Result<(), HostError> {
    let limit = Path::new(SYSFS).join(format!("loop{number}/queue/discard_max_bytes"));
    let unsupported = |what: String| HostError::Unsupported {
        what: format!("cannot turn discards off for a thick volume: {what}"),
        remedy: "mount the host's /sys writable into the driver's container",
    };
    let mut file =
        OpenOptions::new().write(true).open(&limit).map_err(|e| unsupported(e.to_string()))?;
    io::Write::write_all(&mut file, b"0\n").map_err(|e| unsupported(e.to_string()))?;
    let now = std::fs::read_to_string(&limit).map_err(|e| unsupported(e.to_string()))?;
    if now.trim() == "0" {
        Ok(())
    } else {
        Err(unsupported(format!("{} says {}", limit.display(), now.trim())))
    }
}

pub(super) fn hold(number: u32) -> Result<AttachedLoop, HostError> {
    let device = open(number, false).map_err(|e| HostError::call("open", loop_path(number), e))?;
    Ok(AttachedLoop::new(number, Box::new(device)))
}

pub(super) fn detach(number: u32) -> Result<(), HostError> {
    let path = loop_path(number);
    let device = match open(number, false) {
        Ok(device) => device,
        Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(HostError::call("open", path, error)),
    };
    match sys::loop_clear(device.as_fd()) {
        Ok(()) | Err(Errno::ENXIO) => {}
        Err(errno) => return Err(HostError::call("detach", path, errno)),
    }
    // While it is open anywhere else, the kernel detaches it when the last user closes it.
    drop(device);
    fault::point!("host.detach.done").map_err(|e| HostError::call("detach", path, e))
}

/// Waits until a device with AUTOCLEAR is gone; the kernel may do it a moment after the last close.
pub(super) fn wait_until_gone(number: u32, image: FileIdentity) -> Result<(), HostError> {
    for _ in 0..200 {
        if status(number)?.is_none_or(|status| status.backing != image) {
            return Ok(());
        }
        pause();
    }
    Err(HostError::call("wait until the kernel lets go of", loop_path(number), Errno::EBUSY))
}

pub(super) fn refresh_size(number: u32) -> Result<ByteSize, HostError> {
    let path = loop_path(number);
    let device = open(number, false).map_err(|e| HostError::call("open", &path, e))?;
    sys::loop_set_capacity(device.as_fd())
        .map_err(|e| HostError::call("refresh the size of", &path, e))?;
    let size = sys::device_size(device.as_fd())
        .map_err(|e| HostError::call("ask the size of", &path, e))?;
    Ok(ByteSize::new(size))
}

/// With /dev/loop-control the kernel makes as many devices as minor numbers allow; without it those that exist are all.
pub(super) fn limit() -> Option<u32> {
    if Path::new(CONTROL).exists() {
        return None;
    }
    let entries = std::fs::read_dir(SYSFS).ok()?;
    let loops = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("loop"));
    Some(u32::try_from(loops.count()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_decoded_as_the_kernel_encodes_them() {
        for (encoded, major, minor) in
            [(0x0700_u64, 7, 0), (0x0703, 7, 3), (0x10_0703, 7, 0x103), (0xfe00, 254, 0)]
        {
            assert_eq!(decode(encoded), DeviceNumber { major, minor });
        }
    }
}
