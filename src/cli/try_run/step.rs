//! The steps of a volume's life: each makes one call, or does what a pod does, and checks what came of it.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::client::{Client, done};
use super::content;
use super::copies;
use super::kind::Kind;
use super::limit;
use super::volume::{Hold, Volume};
use crate::cli::Failure;
use crate::csi::proto::volume_usage::Unit;
use crate::host::Host;
use crate::volume::Filesystem;

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Stage,
    Publish,
    Write,
    Stats,
    Fill,
    ControllerExpand,
    NodeExpand,
    WriteMore,
    WriteAfter,
    ReadWithoutDriver,
    Repeat,
    Snapshot,
    Restore,
    ReadRestored,
    EndCopies,
    StageAgain,
    PublishAgain,
    ReadBack,
    PublishReader,
    RefuseWrites,
    Unpublish,
    Unstage,
    Delete,
}

/// What a step works with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tools<'a> {
    /// `None` while the driver is down.
    pub(super) client: Option<&'a Client>,
    pub(super) host: &'a dyn Host,
    /// Where the pool is.
    pub(super) pool: &'a Path,
}

impl Tools<'_> {
    pub(super) fn client(&self) -> Result<&Client, Failure> {
        self.client.ok_or_else(|| "the driver is down".into())
    }
}

/// How long the step took, without the checks; `None` when it does not apply to this kind of volume.
pub(super) type Outcome = Result<Option<Duration>, Failure>;

impl Step {
    /// Its name in the table.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Create => "CreateVolume",
            Self::Stage => "NodeStageVolume",
            Self::Publish => "NodePublishVolume",
            Self::Write => "write 4 MiB and fsync",
            Self::Stats => "NodeGetVolumeStats",
            Self::Fill => "write until no more is taken",
            Self::ControllerExpand => "ControllerExpandVolume",
            Self::NodeExpand => "NodeExpandVolume",
            Self::WriteMore => "write 4 MiB more and fsync",
            Self::WriteAfter => "overwrite, after the snapshot",
            Self::ReadWithoutDriver => "driver killed: read back",
            Self::Repeat => "driver back: stage, publish again",
            Self::Snapshot => "all unmounted: CreateSnapshot",
            Self::Restore => "CreateVolume from it, 8 MiB larger",
            Self::ReadRestored => "stage, publish and read it",
            Self::EndCopies => "delete both",
            Self::StageAgain => "all unmounted: NodeStageVolume",
            Self::PublishAgain => "all unmounted: NodePublishVolume",
            Self::ReadBack => "all unmounted: read back",
            Self::PublishReader => "NodePublishVolume read-only",
            Self::RefuseWrites => "read there; writes are refused",
            Self::Unpublish => "NodeUnpublishVolume, both",
            Self::Unstage => "NodeUnstageVolume",
            Self::Delete => "DeleteVolume",
        }
    }

    /// Does it.
    pub(super) async fn perform(self, tools: Tools<'_>, volume: &mut Volume) -> Outcome {
        match self {
            Self::Create => create(tools, volume).await,
            Self::Stage | Self::StageAgain => stage(tools, volume).await,
            Self::Publish | Self::PublishAgain => {
                publish(tools, volume, &volume.target(), false).await
            }
            Self::Repeat => repeat(tools, volume).await,
            Self::Snapshot => copies::snapshot(tools, volume).await,
            Self::Restore => copies::restore(tools, volume).await,
            Self::ReadRestored => copies::read(tools, volume).await,
            Self::EndCopies => copies::end(tools, volume).await,
            Self::Write | Self::WriteMore => timed(|| volume.write()),
            Self::WriteAfter => timed(|| volume.rewrite()),
            Self::Stats => stats(tools, volume).await,
            Self::Fill => limit::fill(volume),
            Self::ControllerExpand => controller_expand(tools, volume).await,
            Self::NodeExpand => node_expand(tools, volume).await,
            Self::ReadWithoutDriver | Self::ReadBack => timed(|| volume.check(&volume.target())),
            Self::PublishReader => publish(tools, volume, &volume.reader(), true).await,
            Self::RefuseWrites => timed(|| refuse_writes(volume)),
            Self::Unpublish => unpublish(tools, volume).await,
            Self::Unstage => unstage(tools, volume).await,
            Self::Delete => delete(tools, volume).await,
        }
    }
}

/// What a pod does.
fn timed(work: impl FnOnce() -> Result<(), Failure>) -> Outcome {
    let start = Instant::now();
    work()?;
    Ok(Some(start.elapsed()))
}

pub(super) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

async fn create(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let start = Instant::now();
    let size = volume.kind.sizes().0;
    let created = tools.client()?.create(volume, size, None).await?;
    let time = start.elapsed();
    volume.id = created.volume_id;
    ensure(created.capacity_bytes == size, || {
        format!("{size} bytes were asked for, it has {}", created.capacity_bytes)
    })?;
    Ok(Some(time))
}

pub(super) async fn stage(tools: Tools<'_>, volume: &Volume) -> Outcome {
    // Kubelet makes the staging directory.
    std::fs::create_dir_all(volume.staging())?;
    let start = Instant::now();
    tools.client()?.stage(volume).await?;
    let time = start.elapsed();
    check_mounts(tools, volume, &volume.staged_at())?;
    Ok(Some(time))
}

pub(super) async fn publish(
    tools: Tools<'_>,
    volume: &Volume,
    target: &Path,
    read_only: bool,
) -> Outcome {
    let start = Instant::now();
    tools.client()?.publish(volume, target, read_only).await?;
    let time = start.elapsed();
    check_mounts(tools, volume, target)?;
    Ok(Some(time))
}

/// A restarted kubelet repeats what it does not know to be done; nothing may change by it.
async fn repeat(tools: Tools<'_>, volume: &Volume) -> Outcome {
    let times =
        [stage(tools, volume).await?, publish(tools, volume, &volume.target(), false).await?];
    volume.check(&volume.target())?;
    Ok(Some(times.into_iter().flatten().sum()))
}

/// Exactly one mount is at the path, and it is of the right kind.
fn check_mounts(tools: Tools<'_>, volume: &Volume, path: &Path) -> Result<(), Failure> {
    let table = tools.host.mounts()?;
    let count = table.iter().filter(|e| e.mount_point == path).count();
    ensure(count == 1, || format!("{count} mounts at {}", path.display()))?;
    let entry = table.top_at(path).ok_or("the mount has gone")?;
    let right = match volume.kind.filesystem() {
        Some(filesystem) => entry.filesystem == filesystem && entry.mounted_loop().is_some(),
        None if volume.kind == Kind::Block => table.bound_loop_node(entry).is_some(),
        // A directory of the pool's filesystem, whatever that is on.
        None => {
            let pool = table.containing(tools.pool);
            pool.is_some_and(|pool| pool.device == entry.device)
                && table.bound_loop_node(entry).is_none()
        }
    };
    ensure(right, || {
        format!("{} at {} is not what was asked for", entry.filesystem, path.display())
    })
}

/// The size of a device, as a pod sees it.
fn device_size(path: &Path) -> Result<u64, Failure> {
    let mut file = File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
    Ok(file.seek(SeekFrom::End(0))?)
}

/// The size of the volume's filesystem or device, as a pod sees it.
fn seen_size(host: &dyn Host, volume: &Volume) -> Result<u64, Failure> {
    if volume.kind == Kind::Block {
        return device_size(&volume.target());
    }
    Ok(host.space_at(&volume.target())?.total.bytes())
}

/// The driver and the kernel tell what they should of a volume of that size: the size that a pod sees, and how much is
/// available as the driver told.
pub(super) async fn sizes(
    tools: Tools<'_>,
    volume: &Volume,
    size: i64,
) -> Result<(u64, u64), Failure> {
    let usages = tools.client()?.stats(volume).await?;
    let bytes = usages.iter().find(|usage| usage.unit() == Unit::Bytes);
    let bytes = bytes.ok_or("no bytes reported")?;
    let (total, available) = (u64::try_from(bytes.total)?, u64::try_from(bytes.available)?);
    let (seen, size) = (seen_size(tools.host, volume)?, u64::try_from(size)?);
    if volume.kind == Kind::Hostpath && volume.hold != Hold::None {
        // A pod sees the whole pool; what it may have of it only the driver tells.
        ensure(total == size, || format!("reported are {total} bytes, it was given {size}"))?;
        return Ok((seen, available));
    }
    ensure(total == seen, || format!("reported are {total} bytes, a pod sees {seen}"))?;
    // A filesystem's own structures take some; a directory that is not held shows its pool's filesystem.
    let plausible = volume.kind == Kind::Hostpath || (size / 2..=size).contains(&total);
    ensure(plausible, || format!("{total} bytes in a volume of {size}"))?;
    // Of a device it is not known what is in use.
    let device = size.saturating_sub(volume.written());
    Ok((seen, if volume.kind == Kind::Block { device } else { available }))
}

async fn stats(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let start = Instant::now();
    drop(tools.client()?.stats(volume).await?);
    let time = start.elapsed();
    (volume.before, volume.available) = sizes(tools, volume, volume.kind.sizes().0).await?;
    Ok(Some(time))
}

async fn controller_expand(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let start = Instant::now();
    let expanded = tools.client()?.controller_expand(volume).await?;
    let time = start.elapsed();
    let grown = volume.kind.sizes().1;
    ensure(expanded.capacity_bytes == grown, || {
        format!("{grown} bytes were asked for, it has {}", expanded.capacity_bytes)
    })?;
    volume.node_expansion = expanded.node_expansion_required;
    Ok(Some(time))
}

async fn node_expand(tools: Tools<'_>, volume: &Volume) -> Outcome {
    if !volume.node_expansion {
        return Ok(None);
    }
    let start = Instant::now();
    if !grows_mounted(tools.host, volume.kind) {
        remount(tools, volume).await?;
    }
    let capacity = tools.client()?.node_expand(volume).await?;
    let time = start.elapsed();
    let (size, grown) = volume.kind.sizes();
    ensure(capacity == grown, || {
        format!("{grown} bytes were asked for, the node says {capacity}")
    })?;
    let now = seen_size(tools.host, volume)?;
    let more = now.saturating_sub(volume.before);
    // The filesystem's own structures grow as well.
    let least = (grown - size).unsigned_abs() * 3 / 4;
    ensure(more >= least, || {
        format!("a pod saw {} bytes and sees {now} now, not {least} more", volume.before)
    })?;
    Ok(Some(time))
}

/// The kernel lets this process grow such a volume while it is mounted.
pub(super) fn grows_mounted(host: &dyn Host, kind: Kind) -> bool {
    let filesystem = kind.filesystem().and_then(Filesystem::from_word);
    filesystem.is_none_or(|filesystem| host.can_grow_mounted(filesystem))
}

/// What happens when a pod is ended and started again: the volume grows when it is staged.
async fn remount(tools: Tools<'_>, volume: &Volume) -> Result<(), Failure> {
    let client = tools.client()?;
    done(client.unpublish(volume, &volume.target()).await)?;
    done(client.unstage(volume).await)?;
    client.stage(volume).await?;
    client.publish(volume, &volume.target(), false).await
}

/// A pod with a read-only volume reads all of it and cannot change it.
fn refuse_writes(volume: &Volume) -> Result<(), Failure> {
    let reader = volume.reader();
    volume.check(&reader)?;
    if volume.kind == Kind::Block {
        let errno = Errno::from_raw(content::refused(&reader, false)?);
        // The kernel refuses the open or the write, each with an error of its own.
        return ensure(matches!(errno, Errno::EROFS | Errno::EPERM | Errno::EACCES), || {
            format!("a write to {} failed with {errno}", reader.display())
        });
    }
    for (name, create) in [("new", true), ("data-0", false)] {
        let errno = Errno::from_raw(content::refused(&reader.join(name), create)?);
        ensure(errno == Errno::EROFS, || {
            format!("a write to {name} failed with {errno}, not because the mount is read-only")
        })?;
    }
    // The writer still can.
    volume.check(&volume.target())
}

async fn unpublish(tools: Tools<'_>, volume: &Volume) -> Outcome {
    let start = Instant::now();
    for target in [volume.reader(), volume.target()] {
        done(tools.client()?.unpublish(volume, &target).await)?;
    }
    let time = start.elapsed();
    for target in [volume.reader(), volume.target()] {
        ensure(target.symlink_metadata().is_err(), || {
            format!("{} is still there", target.display())
        })?;
    }
    Ok(Some(time))
}

pub(super) async fn unstage(tools: Tools<'_>, volume: &Volume) -> Outcome {
    let start = Instant::now();
    done(tools.client()?.unstage(volume).await)?;
    let time = start.elapsed();
    // Kubelet removes its directories, which works only when they are empty and nothing is mounted there.
    for directory in [&volume.staging(), volume.dir()] {
        std::fs::remove_dir(directory)
            .map_err(|e| format!("remove {}: {e}", directory.display()))?;
    }
    Ok(Some(time))
}

pub(super) async fn delete(tools: Tools<'_>, volume: &Volume) -> Outcome {
    let client = tools.client()?;
    let start = Instant::now();
    done(client.delete(volume).await)?;
    let time = start.elapsed();
    let left = client.list().await?;
    ensure(!left.contains(&volume.id), || format!("{} is still listed", volume.id))?;
    Ok(Some(time))
}
