//! The steps with a snapshot: take it, make a larger volume of it, read that, delete both.

use std::time::Instant;

use super::client::done;
use super::step::{Outcome, Tools, delete, ensure, publish, sizes, stage, unstage};
use super::volume::Volume;

/// So much larger than its source is what is restored.
pub(super) const MORE: i64 = 8 << 20;

/// Takes a snapshot. The volume is not in use, so that every pool can.
pub(super) async fn snapshot(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let start = Instant::now();
    volume.snapshot = tools.client()?.snapshot(volume).await?;
    let time = start.elapsed();
    volume.copy = Some(Box::new(volume.copied()));
    Ok(Some(time))
}

/// Makes a volume of the snapshot.
pub(super) async fn restore(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let copy = volume.copy.as_mut().ok_or("there is no snapshot")?;
    let bytes = volume.kind.sizes().1 + MORE;
    let start = Instant::now();
    let created = tools.client()?.create(copy, bytes, Some(&volume.snapshot)).await?;
    let time = start.elapsed();
    copy.id = created.volume_id;
    ensure(created.capacity_bytes == bytes, || {
        format!("{bytes} bytes were asked for, it has {}", created.capacity_bytes)
    })?;
    Ok(Some(time))
}

/// Uses what was restored, beside its source.
pub(super) async fn read(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let copy = volume.copy.as_ref().ok_or("nothing was restored")?;
    let times = [stage(tools, copy).await?, publish(tools, copy, &copy.target(), false).await?];
    copy.check(&copy.target())?;
    sizes(tools, copy, volume.kind.sizes().1 + MORE).await?;
    Ok(Some(times.into_iter().flatten().sum()))
}

/// Deletes the snapshot first: what was made of it does not need it.
pub(super) async fn end(tools: Tools<'_>, volume: &mut Volume) -> Outcome {
    let start = Instant::now();
    done(tools.client()?.delete_snapshot(&volume.snapshot).await)?;
    let copy = volume.copy.as_ref().ok_or("nothing was restored")?;
    copy.check(&copy.target())?;
    done(tools.client()?.unpublish(copy, &copy.target()).await)?;
    unstage(tools, copy).await?;
    delete(tools, copy).await?;
    let time = start.elapsed();
    (volume.copy, volume.snapshot) = (None, String::new());
    Ok(Some(time))
}
