//! Health: each condition of the table is brought about, told with its reason, and gone when it is mended.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use orlop::csi::proto::*;
use orlop::engine::HEALTH;
use orlop::host::fake::FilesystemTrouble;
use orlop::host::{BindSource, FileIdentity, Host, LoopOptions};
use orlop::volume::{Allocation, DirectIo, MountAttributes};
use tonic::{Code, Status};

use super::driver::{BLOCK, Driver, HOSTPATH, KINDS, Kind, LOOP, refused, text};

/// The reasons of a reply, after a look at its form: every status as the table says it, none twice, each with words.
#[track_caller]
pub(crate) fn reasons(id: &str, health: Option<VolumeHealth>) -> Vec<&'static str> {
    let health = health.expect("health is required");
    assert_eq!(health.volume_id, id);
    let mut told = Vec::new();
    for entry in health.health_statuses {
        let row = HEALTH.iter().find(|row| row.reason == entry.reason).expect("it is in the table");
        assert_eq!(entry.status().as_str_name(), row.volume.as_str(), "{entry:?}");
        assert!(entry.message.len() > row.remedy.len(), "{entry:?}");
        assert!(!told.contains(&row.reason), "{entry:?} is told twice");
        told.push(row.reason);
    }
    told
}

pub(crate) async fn get(driver: &Driver, id: &str) -> Result<Option<VolumeHealth>, Status> {
    let request =
        ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
    let reply = driver.controller().controller_get_volume_health(request).await?;
    Ok(reply.into_inner().volume_health)
}

pub(crate) async fn get_on_node(
    driver: &Driver,
    id: &str,
    staging: &str,
    target: &str,
) -> Result<Option<VolumeHealth>, Status> {
    let request = NodeGetVolumeHealthRequest {
        volume_id: id.to_owned(),
        volume_publish_path: target.to_owned(),
        staging_target_path: staging.to_owned(),
    };
    let reply = driver.node().node_get_volume_health(request).await?;
    Ok(reply.into_inner().volume_health)
}

pub(crate) async fn list(
    driver: &Driver,
    max_entries: i32,
    token: &str,
) -> Result<ControllerListVolumeHealthResponse, Status> {
    let request = ControllerListVolumeHealthRequest {
        max_entries,
        starting_token: token.to_owned(),
        ..Default::default()
    };
    driver
        .controller()
        .controller_list_volume_health(request)
        .await
        .map(tonic::Response::into_inner)
}

/// What all three ways of asking tell of a volume, which must be the same.
pub(crate) async fn told(driver: &Driver, id: &str) -> Vec<&'static str> {
    let told = reasons(id, get(driver, id).await.unwrap());
    assert_eq!(reasons(id, get_on_node(driver, id, "", "").await.unwrap()), told);
    let mut entries = list(driver, 0, "").await.unwrap().entries.into_iter();
    match entries.find(|entry| entry.volume_id == id) {
        Some(entry) => assert_eq!(reasons(id, Some(entry)), told),
        None => assert_eq!(told, Vec::<&str>::new(), "a list does not hide what is wrong"),
    }
    told
}

/// The reasons of the pools, with all messages.
pub(crate) async fn storage(driver: &Driver) -> (Vec<&'static str>, String) {
    let request = NodeGetStorageHealthRequest::default();
    let reply = driver.node().node_get_storage_health(request).await.unwrap().into_inner();
    let (mut told, mut messages) = (Vec::new(), String::new());
    for entry in reply.backend_health {
        let row = HEALTH.iter().find(|row| row.reason == entry.reason).expect("it is in the table");
        assert_eq!(entry.status().as_str_name(), row.storage.unwrap().as_str());
        assert!(!told.contains(&row.reason), "{entry:?} is told twice");
        told.push(row.reason);
        messages.push_str(&entry.message);
    }
    (told, messages)
}

pub(crate) fn volume_of(driver: &Driver, id: &str) -> PathBuf {
    driver.machine.pool("default").join("volumes").join(id.split('-').nth(2).unwrap())
}

#[expect(clippy::disallowed_methods, reason = "a test takes files away as an operator would")]
pub(crate) fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

pub(crate) const NONE: [&str; 0] = [];

/// A volume that is staged and published.
pub(crate) struct Used {
    pub(crate) id: String,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
}

pub(crate) async fn used(driver: &Driver, kind: Kind) -> Used {
    let id = driver.make(kind, "pvc").await;
    let [staging, target] = ["staging", "target"].map(|name| driver.machine.path(name));
    driver.stage(&id, &staging, kind.shared()).await.unwrap();
    driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
    Used { id, staging, target }
}

impl Used {
    pub(crate) async fn seen_at_its_paths(&self, driver: &Driver) -> Vec<&'static str> {
        let (staging, target) = (text(&self.staging), text(&self.target));
        let health = get_on_node(driver, &self.id, &staging, &target).await.unwrap();
        reasons(&self.id, health)
    }

    pub(crate) async fn end(self, driver: &Driver) {
        driver.unpublish(&self.id, &self.target).await.unwrap();
        driver.unstage(&self.id, &self.staging).await.unwrap();
        driver.delete(&self.id).await.unwrap();
        driver.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_well_has_no_condition() {
    let driver = Driver::start().await;
    for kind in KINDS {
        let id = driver.make(kind, "new").await;
        assert_eq!(told(&driver, &id).await, NONE, "never staged");
        driver.delete(&id).await.unwrap();
        let used = used(&driver, kind).await;
        assert_eq!(told(&driver, &used.id).await, NONE);
        assert_eq!(used.seen_at_its_paths(&driver).await, NONE);
        used.end(&driver).await;
    }
    assert_eq!(storage(&driver).await, (Vec::new(), String::new()));
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_checked() {
    let driver = Driver::start().await;
    let id = driver.make(HOSTPATH, "pvc").await;
    let mut gone = id.clone();
    gone.replace_range(id.len() - 1.., if id.ends_with('0') { "1" } else { "0" });
    let unknown = "v-00000000-00000000000000000000000000000000-00000000";
    for (id, code) in [
        ("", Code::InvalidArgument),
        ("somebody-elses", Code::NotFound),
        (&gone, Code::NotFound),
        (unknown, Code::Unavailable),
    ] {
        assert_eq!(refused(id, get(&driver, id).await), code, "{id:?}");
        assert_eq!(refused(id, get_on_node(&driver, id, "", "").await), code, "{id:?}");
    }
    let relative = get_on_node(&driver, &id, "", "some/path").await;
    assert_eq!(refused("a relative path", relative), Code::InvalidArgument);
    assert_eq!(refused("negative", list(&driver, -1, "").await), Code::InvalidArgument);
    assert_eq!(refused("a bad token", list(&driver, 0, "bad").await), Code::Aborted);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_cannot_be_read_are_told_and_listed() {
    let mut driver = Driver::start().await;
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let record = volume_of(&driver, &id).join("volume.json");
        let good = std::fs::read(&record).unwrap();
        let newer = String::from_utf8(good.clone()).unwrap();
        let newer = newer.replace("\"minReader\": 1", "\"minReader\": 99");
        let write = |content: &[u8]| {
            std::io::Write::write_all(&mut File::create(&record).unwrap(), content).unwrap();
        };
        // The end is lost; the generation is in the first half.
        let torn = &good[..good.len() - 20];
        for (content, reason) in [(torn, "RecordDamaged"), (newer.as_bytes(), "RecordTooNew")] {
            write(content);
            assert_eq!(told(&driver, &id).await, [reason]);
            driver = driver.restart().await;
            assert_eq!(told(&driver, &id).await, [reason], "a start has read the record");
        }
        // Nothing can be made out: the list has a name for it that can be asked for.
        write(b"{ torn");
        driver = driver.restart().await;
        let listed = list(&driver, 0, "").await.unwrap().entries.remove(0).volume_id;
        assert_eq!(listed, format!("{}-00000000", id.rsplit_once('-').unwrap().0));
        assert_eq!(told(&driver, &listed).await, ["RecordDamaged"]);
        std::fs::remove_file(&record).unwrap();
        assert_eq!(told(&driver, &listed).await, ["RecordDamaged"]);
        write(&good);
        assert_eq!(refused("the name is gone", get(&driver, &listed).await), Code::NotFound);
        driver.delete(&listed).await.unwrap();
        assert_eq!(told(&driver, &id).await, NONE, "an id of nobody has deleted nothing");
        assert_eq!(
            driver.list(0, "").await.unwrap().entries.len(),
            1,
            "it is back without a start"
        );
        driver = driver.restart().await;
        assert_eq!(told(&driver, &id).await, NONE);
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_lost_is_told() {
    let driver = Driver::start().await;
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let name = if kind.parameters.is_empty() { "data" } else { "disk.img" };
        let (data, aside) = (volume_of(&driver, &id).join(name), driver.machine.path("aside"));
        rename(&data, &aside);
        assert_eq!(told(&driver, &id).await, ["DataMissing"]);
        File::create(&data).unwrap();
        std::fs::remove_file(&data).unwrap();
        std::fs::create_dir(&data).unwrap();
        let instead = told(&driver, &id).await;
        std::fs::remove_dir(&data).unwrap();
        rename(&aside, &data);
        assert_eq!(told(&driver, &id).await, NONE);
        if kind.parameters.is_empty() {
            driver.delete(&id).await.unwrap();
            continue;
        }
        assert_eq!(instead, ["DataMissing"], "a directory is no image");
        let image = File::options().write(true).open(&data).unwrap();
        image.set_len((1 << 30) - 4096).unwrap();
        assert_eq!(told(&driver, &id).await, ["ImageTruncated"]);
        image.set_len(1 << 30).unwrap();
        assert_eq!(told(&driver, &id).await, NONE);
        image.write_all_at(&[0; 0x2000], 0).unwrap();
        let lost: &[&str] = if kind.block { &[] } else { &["FilesystemMissing"] };
        assert_eq!(told(&driver, &id).await, lost);
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filesystem_in_trouble_is_told() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    let id = driver.make(LOOP, "new").await;
    let image = File::options().write(true).open(volume_of(&driver, &id).join("disk.img")).unwrap();
    // s_state: errors
    image.write_all_at(&[3, 0], 0x43a).unwrap();
    assert_eq!(told(&driver, &id).await, ["FilesystemErrors"]);
    image.write_all_at(&[1, 0], 0x43a).unwrap();
    assert_eq!(told(&driver, &id).await, NONE);
    driver.delete(&id).await.unwrap();
    let used = used(&driver, LOOP).await;
    let well = FilesystemTrouble::default();
    for (trouble, expected) in [
        (FilesystemTrouble { errors: 3, ..well }, &["FilesystemErrors"][..]),
        (FilesystemTrouble { read_only: true, ..well }, &["FilesystemReadOnly"]),
        (
            FilesystemTrouble { errors: 1, stopped: true, ..well },
            &["FilesystemErrors", "FilesystemStopped"],
        ),
        (well, &[]),
    ] {
        host.set_trouble("/dev/loop0", trouble);
        assert_eq!(told(&driver, &used.id).await, expected, "{trouble:?}");
        let at_paths = used.seen_at_its_paths(&driver).await;
        assert_eq!(at_paths, expected, "{trouble:?}");
    }
    // One that is shut down answers nothing at all. Each reply is from two looks.
    host.fail_next("node", Errno::EIO);
    host.fail_next("node", Errno::EIO);
    let stopped = reasons(&used.id, get(&driver, &used.id).await.unwrap());
    assert_eq!(stopped, ["FilesystemStopped"]);
    // What only one look saw was a volume on the move.
    host.fail_next("node", Errno::EIO);
    assert_eq!(reasons(&used.id, get(&driver, &used.id).await.unwrap()), NONE);
    used.end(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_for_readers_is_well_when_it_is_read_only() {
    use orlop::csi::proto::volume_capability::access_mode::Mode;
    let driver = Driver::start().await;
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let [staging, target] = ["staging", "target"].map(|name| driver.machine.path(name));
        let capability = kind.capability(Mode::MultiNodeReaderOnly);
        driver.stage(&id, &staging, capability.clone()).await.unwrap();
        driver.publish(&id, (&staging, &target), capability, true).await.unwrap();
        let used = Used { id, staging, target };
        assert_eq!(used.seen_at_its_paths(&driver).await, NONE);
        used.end(&driver).await;
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loop_devices_in_disorder_are_told() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    for kind in [LOOP, BLOCK] {
        let used = used(&driver, kind).await;
        let path = volume_of(&driver, &used.id).join("disk.img");
        let image = File::options().read(true).write(true).open(&path).unwrap();
        let options = LoopOptions {
            label: "by-hand",
            read_only: false,
            autoclear: false,
            direct_io: DirectIo::Off,
            sector: 512,
            allocation: Allocation::Thin,
        };
        let second = host.attach(image.as_fd(), options).unwrap();
        let number = second.number;
        second.release();
        assert_eq!(told(&driver, &used.id).await, ["LoopConflict"]);
        host.detach(number, FileIdentity::of(&image.metadata().unwrap())).unwrap();
        assert_eq!(told(&driver, &used.id).await, NONE);
        // Somebody restores the image from a copy under the feet of the pods.
        let aside = driver.machine.path("aside");
        let copy = File::create(&aside).unwrap();
        copy.set_len(1 << 30).unwrap();
        let mut beginning = vec![0; 1 << 17];
        image.read_exact_at(&mut beginning, 0).unwrap();
        copy.write_all_at(&beginning, 0).unwrap();
        rename(&aside, &path);
        assert_eq!(told(&driver, &used.id).await, ["ImageReplaced"]);
        assert_eq!(used.seen_at_its_paths(&driver).await, ["ImageReplaced", "MountReplaced"]);
        driver.unpublish(&used.id, &used.target).await.unwrap();
        driver.unstage(&used.id, &used.staging).await.unwrap();
        assert_eq!(told(&driver, &used.id).await, NONE);
        driver.delete(&used.id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_that_are_gone_or_others_are_told_by_the_node() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    let other = driver.machine.path("other");
    std::fs::create_dir(&other).unwrap();
    for kind in KINDS {
        let used = used(&driver, kind).await;
        host.unmount(&used.target).unwrap();
        assert_eq!(used.seen_at_its_paths(&driver).await, ["MountMissing"]);
        assert_eq!(told(&driver, &used.id).await, NONE, "the volume itself is well");
        if !kind.block {
            let source = BindSource::Path(&other);
            host.bind(source, &used.target, MountAttributes::default()).unwrap();
            assert_eq!(used.seen_at_its_paths(&driver).await, ["MountReplaced"]);
            host.unmount(&used.target).unwrap();
        }
        let absent = text(&driver.machine.path("no/such/place"));
        let health = get_on_node(&driver, &used.id, "", &absent).await.unwrap();
        assert_eq!(reasons(&used.id, health), ["MountMissing"]);
        used.end(&driver).await;
    }
    driver.stop().await;
}
