//! `orlop pool unmount`: the one way to end the mount of a managed pool. The driver itself never does.

use std::path::Path;

use super::{PoolBase, observe, thaw_left};
use crate::engine::{EngineError, PoolConfig, chain};
use crate::host::{DeviceNumber, Host, MountEntry, MountTable, loop_path};
use crate::store::{Images, PoolImage, PoolView, StateDir, StoreError};
use crate::volume::{FilesystemUuid, Key, VolumeId};

/// Unmounts a managed pool and lets its loop device go; answers what there is to say.
///
/// # Errors
/// It is no managed pool, a driver has it open, or its volumes are in use.
pub fn unmount(
    root_dir: &Path,
    config: &PoolConfig,
    host: &dyn Host,
) -> Result<String, EngineError> {
    let name = &config.name;
    let refused = |what: String| Err(EngineError::Precondition(what));
    let Some(create) = &config.create else {
        return refused(format!(
            "the pool {name} is not a managed one; unmount its disk as it was mounted"
        ));
    };
    if !root_dir.join("state").is_dir() {
        return refused(format!(
            "no driver has used the root directory {}; give the --root-dir of the driver",
            root_dir.display()
        ));
    }
    let state = StateDir::open(root_dir)?;
    let _lock = match state.lock(name) {
        Err(StoreError::Locked { .. }) => {
            return refused(format!(
                "a driver has the pool {name} open and would mount it again; stop it first"
            ));
        }
        lock => lock?,
    };
    let image = match (&create.base, Images::find(root_dir)?) {
        (PoolBase::Image { .. }, Some(images)) => images.image(name)?,
        (PoolBase::Image { .. } | PoolBase::Device(_), _) => None,
    };
    // A frozen one would stay so, and keep its loop device.
    thaw_left(&state, host)?;
    if let Some(path) = host.canonical(&config.path)? {
        let uuid = state.managed(name)?.map(|record| record.uuid);
        end_mount(name, &path, uuid, host)?;
    }
    match image {
        Some(image) => end_loop(name, &image, host),
        None => Ok(format!("pool {name} is unmounted")),
    }
}

fn end_mount(
    name: &str,
    path: &Path,
    uuid: Option<FilesystemUuid>,
    host: &dyn Host,
) -> Result<(), EngineError> {
    let table = host.mounts()?;
    let Some(entry) = table.top_at(path) else { return Ok(()) };
    if uuid.is_none() || host.mounted_uuid(path)? != uuid {
        return Err(EngineError::Precondition(format!(
            "what is mounted at {} ({} on {}) is not the pool {name}",
            path.display(),
            entry.filesystem,
            entry.source.display()
        )));
    }
    let users = users(path, entry, &table, host)?;
    if users.is_empty() {
        return Ok(host.unmount(path)?);
    }
    Err(EngineError::Precondition(format!(
        "volumes of the pool {name} are in use; end their pods first: {}",
        users.join("; ")
    )))
}

fn end_loop(name: &str, image: &PoolImage, host: &dyn Host) -> Result<String, EngineError> {
    let identity = image.identity()?;
    for found in observe::loops_on(host, identity)? {
        // One with AUTOCLEAR goes by itself; another program may have set up this one.
        host.detach(found.number, identity)?;
    }
    let left = observe::loops_on(host, identity)?;
    Ok(match left.first() {
        None => format!("pool {name} is unmounted"),
        Some(found) => format!(
            "pool {name} is unmounted here; {} goes with the last mount namespace that has it mounted still",
            loop_path(found.number).display()
        ),
    })
}

/// The volumes of a pool that are in use, and where, in words.
fn users(
    path: &Path,
    pool: &MountEntry,
    table: &MountTable,
    host: &dyn Host,
) -> Result<Vec<String>, EngineError> {
    // One that cannot be read still has mounts.
    let view = PoolView::open(path)
        .map_err(|error| tracing::debug!(error = chain(&error), "no pool there"));
    let tag = view.as_ref().ok().map(|view| view.uuid().tag());
    let volumes = view.as_ref().ok().and_then(|view| view.volumes().ok()).unwrap_or_default();
    let id_of = |key: &Key| {
        let record = volumes.iter().find(|(known, _)| known == key)?.1.as_ref().ok()?;
        Some(record.id(tag.clone()?).to_string())
    };
    let mut found = Vec::new();
    for entry in table.iter().filter(|e| e.device == pool.device && e.mount_point != path) {
        let name = name_in(&entry.root, &id_of);
        found.push(format!("{name} is mounted at {}", entry.mount_point.display()));
    }
    let mut devices: Vec<DeviceNumber> = vec![pool.device];
    for place in [path.to_owned(), path.join("volumes")] {
        devices.extend(host.node(&place)?.map(|node| node.identity.device));
    }
    for status in host.loops()? {
        if status.backing_device.is_none() && devices.contains(&status.backing.device) {
            let id = status
                .label
                .parse::<VolumeId>()
                .map_or_else(|_| "a file".to_owned(), |id| format!("volume {id}"));
            found.push(format!("{id} is attached to {}", loop_path(status.number).display()));
        }
    }
    Ok(found)
}

/// What lies at a place of the pool, `/volumes/<key>/data`, in words.
fn name_in(root: &Path, id_of: &dyn Fn(&Key) -> Option<String>) -> String {
    let mut parts = root.iter().skip(1).map(std::ffi::OsStr::to_string_lossy);
    let key = match (parts.next().as_deref(), parts.next()) {
        (Some("volumes"), Some(key)) => key.parse::<Key>().ok(),
        _ => None,
    };
    match key {
        Some(key) => match id_of(&key) {
            Some(id) => format!("volume {id}"),
            None => format!("volume with the directory {key}"),
        },
        None => format!("its directory {}", root.display()),
    }
}
