//! Inline volumes: kubelet publishes and unpublishes an id of its own, and the rest is the driver's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop::csi::proto::NodePublishVolumeRequest;
use orlop::csi::proto::volume_capability::AccessType;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::engine::PoolStatus;
use orlop::host::{Host, MountPoint};
use orlop::volume::VolumeId;
use tonic::Code;

use super::common::Machine;
use super::driver::{BLOCK, Driver, HOSTPATH, Kind, LOOP, map, refused, text};

const MOUNTED: [Kind; 2] = [HOSTPATH, LOOP];

/// What kubelet makes of a pod's uid and the name of one of its volumes.
fn kubelets_id(number: u32) -> String {
    format!("csi-{number:064x}")
}

/// A pod with one inline volume.
#[derive(Debug, Clone)]
struct Pod {
    uid: String,
    directory: PathBuf,
    request: NodePublishVolumeRequest,
}

#[expect(clippy::disallowed_methods, reason = "a test does what kubelet does to its directory")]
impl Pod {
    fn new(machine: &Machine, number: u32, kind: Kind) -> Self {
        let uid = format!("pod-{number}");
        let directory = machine.path("kubelet/pods").join(&uid);
        let volume = directory.join("volumes/kubernetes.io~csi/scratch");
        std::fs::create_dir_all(&volume).unwrap();
        let mut context = kind.create("").parameters;
        context.extend(map(&[
            ("size", "64Mi"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web"),
            ("csi.storage.k8s.io/pod.namespace", "shop"),
            ("csi.storage.k8s.io/pod.uid", &uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ]));
        let request = NodePublishVolumeRequest {
            volume_id: kubelets_id(number),
            target_path: text(&volume.join("mount")),
            volume_capability: Some(kind.capability(Mode::SingleNodeWriter)),
            volume_context: context,
            ..NodePublishVolumeRequest::default()
        };
        Self { uid, directory, request }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.request.volume_context.insert(name.to_owned(), value.to_owned());
        self
    }

    fn id(&self) -> &str {
        &self.request.volume_id
    }

    fn target(&self) -> &Path {
        Path::new(&self.request.target_path)
    }

    /// What kubelet does when all volumes are torn down.
    fn remove_directory(&self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }

    async fn publish(&self, driver: &Driver) -> Result<(), tonic::Status> {
        driver.node().node_publish_volume(self.request.clone()).await.map(drop)
    }

    async fn unpublish(&self, driver: &Driver) -> Result<(), tonic::Status> {
        driver.unpublish(self.id(), self.target()).await
    }
}

/// The driver's own ids of the volumes in its pool, as an operator sees them.
fn own_ids(driver: &Driver) -> Vec<String> {
    let tag = driver.engine.pool_reports().into_iter().find_map(|report| match report.status {
        PoolStatus::Ready { uuid } => Some(uuid.tag()),
        PoolStatus::Waiting(_) | PoolStatus::Away(_) => None,
    });
    let record = |key: &String| {
        let path = driver.machine.pool("default").join("volumes").join(key).join("volume.json");
        let text = std::fs::read_to_string(path).unwrap();
        let generation = text.split("\"generation\": \"").nth(1).unwrap();
        generation.split('"').next().unwrap().to_owned()
    };
    let keys = driver.machine.names("default", "volumes");
    let tag = tag.unwrap();
    keys.iter().map(|key| format!("v-{tag}-{key}-{}", record(key))).collect()
}

#[expect(clippy::disallowed_methods, reason = "a test hides what an operator or a kernel could")]
fn relocate(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

fn volumes(driver: &Driver) -> usize {
    driver.machine.names("default", "volumes").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inline_volume_lives_from_publish_to_unpublish() {
    let mut driver = Driver::start().await;
    for (number, kind) in (0..).zip(MOUNTED) {
        let pod = Pod::new(&driver.machine, number, kind);
        for _ in 0..2 {
            pod.publish(&driver).await.unwrap();
            assert_eq!(driver.machine.host.mount_points(), [pod.target()]);
            assert_eq!(volumes(&driver), 1);
        }
        driver = driver.restart().await;
        pod.publish(&driver).await.unwrap();
        assert_eq!(driver.read_only(pod.target()), Some(false));
        assert_eq!(driver.stats(pod.id(), pod.target()).await.unwrap().len(), 2);
        let elsewhere = driver.stats(pod.id(), &pod.directory).await;
        assert_eq!(refused("not its mount", elsewhere), Code::NotFound);
        for _ in 0..2 {
            pod.unpublish(&driver).await.unwrap();
            assert!(!pod.target().exists());
            assert_eq!(volumes(&driver), 0);
        }
        let gone = driver.stats(pod.id(), pod.target()).await;
        assert_eq!(refused("no such volume", gone), Code::NotFound);
        driver.assert_clean();
    }
    let machine = driver.stop().await;
    for directory in ["incoming", "volumes", "trash"] {
        assert_eq!(machine.names("default", directory), Vec::<String>::new(), "{directory}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_only_reads_cannot_write() {
    let driver = Driver::start().await;
    for (number, kind) in (0..).zip(MOUNTED) {
        let mut pod = Pod::new(&driver.machine, number, kind);
        pod.request.readonly = true;
        pod.publish(&driver).await.unwrap();
        assert_eq!(driver.read_only(pod.target()), Some(true));
        pod.request.readonly = false;
        assert_eq!(refused("otherwise", pod.publish(&driver).await), Code::AlreadyExists);
        pod.unpublish(&driver).await.unwrap();
    }
    driver.assert_clean();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_wish_under_the_same_id_is_refused_and_changes_nothing() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, LOOP);
    pod.publish(&driver).await.unwrap();
    let mut elsewhere = pod.clone();
    elsewhere.request.target_path.push('2');
    let mut of_another_kind = pod.clone();
    of_another_kind.request.volume_context.remove("backend");
    for (what, other) in [
        ("size", pod.clone().with("size", "65Mi")),
        ("parameter", pod.clone().with("allocation", "thick")),
        ("backend", of_another_kind),
        ("pod", pod.clone().with("csi.storage.k8s.io/pod.uid", "another")),
        ("target", elsewhere),
    ] {
        assert_eq!(refused(what, other.publish(&driver).await), Code::AlreadyExists, "{what}");
    }
    assert_eq!(driver.machine.host.mount_points(), [pod.target()]);
    assert_eq!(volumes(&driver), 1);
    // The same size in other words.
    pod.clone().with("size", "65536Ki").publish(&driver).await.unwrap();
    pod.unpublish(&driver).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, LOOP);
    let mut block = pod.clone();
    block.request.volume_capability = Some(BLOCK.capability(Mode::SingleNodeWriter));
    let mut ours = pod.clone();
    ours.request.volume_id = driver.make(HOSTPATH, "pvc").await;
    let mut no_parent = pod.clone();
    no_parent.request.target_path = text(&driver.machine.path("absent/mount"));
    let mut foreign = pod.clone().with("csi.storage.k8s.io/ephemeral", "false");
    foreign.request.staging_target_path = text(&driver.machine.path("staging"));
    let uid = "csi.storage.k8s.io/pod.uid";
    let mut filesystem = pod.clone();
    let mount = filesystem.request.volume_capability.as_mut().unwrap().access_type.as_mut();
    if let Some(AccessType::Mount(mount)) = mount {
        mount.fs_type = "zfs".to_owned();
    }
    for (what, wrong, code) in [
        ("unknown attribute", pod.clone().with("volume", "x"), Code::InvalidArgument),
        ("no size", pod.clone().with("size", "big"), Code::InvalidArgument),
        ("a negative size", pod.clone().with("size", "-1Gi"), Code::InvalidArgument),
        ("kept data", pod.clone().with("onDelete", "retain"), Code::InvalidArgument),
        ("no such pool", pod.clone().with("pool", "fast"), Code::InvalidArgument),
        ("no pod", pod.clone().with(uid, ""), Code::InvalidArgument),
        ("a path for a uid", pod.clone().with(uid, "../.."), Code::InvalidArgument),
        ("raw block", block, Code::InvalidArgument),
        ("an id of ours", ours, Code::InvalidArgument),
        ("no such filesystem", filesystem, Code::InvalidArgument),
        ("no directory", no_parent, Code::FailedPrecondition),
        ("no room", pod.clone().with("size", "2Ti"), Code::ResourceExhausted),
        ("not inline", foreign, Code::NotFound),
    ] {
        assert_eq!(refused(what, wrong.publish(&driver).await), code, "{what}");
    }
    let mut untold = pod.clone();
    untold.request.volume_context.clear();
    let status = untold.publish(&driver).await.unwrap_err();
    assert!(status.message().contains("podInfoOnMount"), "{status:?}");
    assert_eq!(status.code(), Code::NotFound);
    for verb in ["format", "attach", "mount"] {
        driver.machine.host.fail_next(verb, nix::errno::Errno::EIO);
        assert_eq!(refused(verb, pod.publish(&driver).await), Code::Internal, "{verb}");
        assert_eq!(volumes(&driver), 1, "only the claim's: {verb}");
        assert!(!pod.target().exists(), "{verb}");
    }
    driver.assert_clean();
    pod.publish(&driver).await.unwrap();
    pod.unpublish(&driver).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_knows_nothing_of_inline_volumes() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, LOOP);
    pod.publish(&driver).await.unwrap();
    let own = own_ids(&driver).pop().unwrap();
    assert_eq!(driver.list(0, "").await.unwrap().entries, []);
    assert_eq!(refused("get", driver.get(&own).await), Code::NotFound);
    // A claim of that name is another volume.
    let claim = driver.make(LOOP, pod.id()).await;
    assert_ne!(claim, own);
    assert_eq!(driver.list(0, "").await.unwrap().entries.len(), 1);
    let staged = driver.stage(&own, &driver.machine.path("staging"), LOOP.shared()).await;
    assert_eq!(refused("stage", staged), Code::NotFound);
    assert_eq!(refused("in use", driver.delete(&own).await), Code::FailedPrecondition);
    driver.delete(pod.id()).await.unwrap();
    assert_eq!(volumes(&driver), 2, "kubelet's id is nobody's to the controller");
    driver.unpublish(pod.id(), &driver.machine.path("elsewhere")).await.unwrap();
    assert_eq!(volumes(&driver), 2, "its pod has it at another path");
    // An operator's way out.
    driver.machine.host.reboot();
    driver.unpublish(pod.id(), &driver.machine.path("elsewhere")).await.unwrap();
    driver.delete(&own).await.unwrap();
    pod.unpublish(&driver).await.unwrap();
    driver.delete(&claim).await.unwrap();
    assert_eq!(volumes(&driver), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teardown_does_not_wait_for_a_volume_that_cannot_be_removed() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, LOOP);
    // The image cannot be reached: nobody can tell whether it is in use.
    pod.publish(&driver).await.unwrap();
    let key = driver.machine.names("default", "volumes").pop().unwrap();
    let image = driver.machine.pool("default").join("volumes").join(key).join("disk.img");
    let away = driver.machine.path("away.img");
    relocate(&image, &away);
    pod.unpublish(&driver).await.unwrap();
    driver.assert_clean();
    assert_eq!(volumes(&driver), 1);
    relocate(&away, &image);
    pod.unpublish(&driver).await.unwrap();
    assert_eq!(volumes(&driver), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn teardown_works_while_the_pool_is_away() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, HOSTPATH);
    pod.publish(&driver).await.unwrap();
    let (pool, away) = (driver.machine.pool("default"), driver.machine.path("away"));
    relocate(&pool, &away);
    for _ in 0..2 {
        pod.unpublish(&driver).await.unwrap();
    }
    driver.assert_clean();
    assert_eq!(refused("away", pod.publish(&driver).await), Code::Unavailable);
    relocate(&away, &pool);
    assert_eq!(driver.engine.pool_reports().len(), 1, "looked at, and so opened");
    assert_eq!(volumes(&driver), 1);
    pod.unpublish(&driver).await.unwrap();
    assert_eq!(volumes(&driver), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_cut_off_between_birth_and_mount_is_finished_or_removed() {
    let driver = Driver::start().await;
    let host = driver.machine.host.clone();
    for finish in [true, false] {
        let pod = Pod::new(&driver.machine, u32::from(finish), LOOP);
        // Neither the mount nor the undo is done: as if the process had died there.
        pod.publish(&driver).await.unwrap();
        host.reboot();
        host.remove_mount_point(pod.target()).unwrap();
        let before = own_ids(&driver);
        if finish {
            pod.publish(&driver).await.unwrap();
            assert_eq!(own_ids(&driver), before, "the same volume");
        }
        pod.unpublish(&driver).await.unwrap();
        assert_eq!(volumes(&driver), 0);
    }
    driver.assert_clean();
    driver.stop().await;
}

/// The volumes that a scan names.
fn scan(driver: &Driver) -> Vec<VolumeId> {
    driver.engine.sweep("default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_names_what_was_without_a_pod_in_two() {
    let driver = Driver::start().await;
    let host = driver.machine.host.clone();
    let (gone, kept) = (Pod::new(&driver.machine, 1, LOOP), Pod::new(&driver.machine, 2, HOSTPATH));
    let claim = driver.make(HOSTPATH, "pvc").await;
    gone.publish(&driver).await.unwrap();
    let own: VolumeId =
        own_ids(&driver).into_iter().find(|id| *id != claim).unwrap().parse().unwrap();
    kept.publish(&driver).await.unwrap();
    host.reboot();
    host.remove_mount_point(gone.target()).unwrap();
    assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![]], "the pod's directory is there");
    gone.remove_directory();
    assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![own.clone()]]);
    // The pod comes back: that it was absent before counts no more.
    let back = Pod::new(&driver.machine, 1, LOOP);
    assert_eq!(scan(&driver), []);
    driver.engine.remove_orphan(&own).unwrap();
    assert_eq!(volumes(&driver), 3, "a pod that is there keeps its volume");
    back.remove_directory();
    assert_eq!(scan(&driver), []);
    // Kubelet's directory cannot be seen.
    let (pods, away) = (driver.machine.path("kubelet/pods"), driver.machine.path("kubelet/away"));
    relocate(&pods, &away);
    assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![]]);
    driver.engine.remove_orphan(&own).unwrap();
    assert_eq!(volumes(&driver), 3);
    relocate(&away, &pods);
    assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![own.clone()]]);
    driver.engine.remove_orphan(&own).unwrap();
    driver.engine.remove_orphan(&own).unwrap();
    assert_eq!(volumes(&driver), 2);
    assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![]]);
    kept.publish(&driver).await.unwrap();
    kept.unpublish(&driver).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_used_or_belongs_to_another_kubelet_is_not_swept() {
    let driver = Driver::start().await;
    for (number, kind) in (0..).zip(MOUNTED) {
        let used = Pod::new(&driver.machine, number, kind);
        used.publish(&driver).await.unwrap();
        // Mounts are in the model only, so the directory below one can go.
        used.remove_directory();
        assert_eq!([scan(&driver), scan(&driver)], [vec![], vec![]], "{kind:?}");
    }
    let mut other = Pod::new(&driver.machine, 7, HOSTPATH);
    let place = driver.machine.path("other");
    driver.machine.host.make_mount_point(&place, MountPoint::Directory).unwrap();
    other.request.target_path = text(&place.join("mount"));
    other.publish(&driver).await.unwrap();
    driver.machine.host.reboot();
    other.remove_directory();
    let swept = [scan(&driver), scan(&driver)];
    assert_eq!(swept.map(|ids| ids.len()), [0, 2], "those below kubelet's directory");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_sweeps_by_itself() {
    let driver = Driver::start().await;
    let pods = [1, 2].map(|number| Pod::new(&driver.machine, number, HOSTPATH));
    for pod in &pods {
        pod.publish(&driver).await.unwrap();
    }
    let machine = driver.stop().await;
    machine.host.reboot();
    for pod in &pods {
        machine.host.remove_mount_point(pod.target()).unwrap();
    }
    let [gone, there] = pods;
    gone.remove_directory();
    let driver = Driver::start_with(machine, Duration::from_millis(5)).await;
    while volumes(&driver) > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A pod that is there keeps its volume, however often it is looked at.
    assert!(there.directory.exists() && there.uid == "pod-2");
    there.publish(&driver).await.unwrap();
    assert_eq!(volumes(&driver), 1);
    there.unpublish(&driver).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_and_an_unpublish_at_once_never_meet() {
    let driver = Driver::start().await;
    let pod = Pod::new(&driver.machine, 1, HOSTPATH);
    let blocked = driver.machine.host.block_next("bind");
    let (node, request) = (driver.node(), pod.request.clone());
    let publishing = tokio::spawn(async move { node.clone().node_publish_volume(request).await });
    while volumes(&driver) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(refused("busy", pod.unpublish(&driver).await), Code::Aborted);
    assert_eq!(refused("busy", pod.publish(&driver).await), Code::Aborted);
    blocked.release();
    publishing.await.unwrap().unwrap();
    pod.unpublish(&driver).await.unwrap();
    assert_eq!(volumes(&driver), 0);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_size_it_has_a_gibibyte() {
    let driver = Driver::start().await;
    let mut pod = Pod::new(&driver.machine, 1, LOOP);
    pod.request.volume_context.remove("size");
    pod.publish(&driver).await.unwrap();
    let key = driver.machine.names("default", "volumes").pop().unwrap();
    let image = driver.machine.pool("default").join("volumes").join(key).join("disk.img");
    assert_eq!(std::fs::metadata(image).unwrap().len(), 1 << 30);
    pod.unpublish(&driver).await.unwrap();
    driver.stop().await;
}
