//! Inline volumes: made and mounted by one call of kubelet, gone with another one, or with their pod.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "does what kubelet does to its directory, and says how many cases there were"
)]

use std::path::{Path, PathBuf};

use orlop::csi::proto::NodePublishVolumeRequest;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, MIB, check_nothing_left, read, try_write, write};
use crate::privileged::{Sandbox, loops_below, mounts_below, poll, privileged, run};

const KINDS: [Kind; 2] = [Kind::Hostpath, Kind::Ext4];

/// A pod with one inline volume, as kubelet keeps it.
#[derive(Debug)]
pub(crate) struct Pod {
    kind: Kind,
    directory: PathBuf,
    request: NodePublishVolumeRequest,
}

impl Pod {
    pub(crate) fn new(sandbox: &Sandbox, kind: Kind, number: u32) -> Self {
        let uid = format!("0000-{number}");
        let directory = sandbox.make_dir(Path::new("kubelet/pods").join(&uid));
        let volume = directory.join("volumes/kubernetes.io~csi/scratch");
        std::fs::create_dir_all(&volume).unwrap();
        let backend = if kind == Kind::Hostpath { "hostpath" } else { "loop" };
        let context = [
            ("backend", backend),
            ("size", "32Mi"),
            ("mode", "0750"),
            ("uid", "1234"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.name", "web"),
            ("csi.storage.k8s.io/pod.namespace", "shop"),
            ("csi.storage.k8s.io/pod.uid", &uid),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ];
        let request = NodePublishVolumeRequest {
            volume_id: format!("csi-{number:064x}"),
            target_path: volume.join("mount").to_str().unwrap().to_owned(),
            volume_capability: Some(kind.capability(Mode::SingleNodeWriter)),
            volume_context: context.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..NodePublishVolumeRequest::default()
        };
        Self { kind, directory, request }
    }

    pub(crate) fn target(&self) -> &Path {
        Path::new(&self.request.target_path)
    }

    pub(crate) fn up(&self, driver: &mut Driver) {
        driver.insist("publish", |c| c.publish_inline(&self.request));
        assert_eq!(mounts_below(&self.directory), [self.target()]);
    }

    pub(crate) fn down(&self, driver: &mut Driver) {
        driver.insist("unpublish", |c| c.unpublish(&self.request.volume_id, self.target()));
        assert!(!self.target().exists(), "unpublish removes the target path");
    }

    pub(crate) fn remove_directory(&self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn volumes(sandbox: &Sandbox) -> usize {
    std::fs::read_dir(sandbox.path("pool/volumes")).unwrap().count()
}

#[test]
fn an_inline_volume_holds_data_as_long_as_its_pod_has_it() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for (number, kind) in (0..).zip([Kind::Hostpath, Kind::Ext4, Kind::Xfs]) {
            let mut pod = Pod::new(sandbox, kind, number);
            pod.up(&mut driver);
            assert_eq!(run("stat", &["-c%a %u", &pod.request.target_path]).trim(), "750 1234");
            write(kind, pod.target(), "of the pod");
            let config = sandbox.path("orlop.toml");
            let list = ["volume", "list", "--config", config.to_str().unwrap()];
            let listed = run(env!("CARGO_BIN_EXE_orlop"), &list);
            assert!(listed.contains("inline volume of pod shop/web"), "{listed}");
            driver.restart();
            pod.up(&mut driver);
            assert_eq!(read(kind, pod.target()), "of the pod");
            let id = pod.request.volume_id.clone();
            let stats = driver.client.stats(&id, pod.target()).unwrap();
            let total = u64::try_from(stats[0].total).unwrap();
            assert!(kind == Kind::Hostpath || total <= 300 * MIB, "{kind:?}: {total}");
            pod.down(&mut driver);
            pod.down(&mut driver);
            assert_eq!(volumes(sandbox), 0);
            // The next one is empty, and for reading.
            pod.request.readonly = true;
            pod.up(&mut driver);
            assert!(!pod.target().join("file").exists());
            try_write(kind, pod.target(), "x").unwrap_err();
            pod.down(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

/// One life in a driver with a fault armed.
fn live(sandbox: &Sandbox, kind: Kind, fault: &str) -> Driver {
    let mut driver = Driver::start_armed(sandbox, Some(fault));
    driver.patient = true;
    let pod = Pod::new(sandbox, kind, 1);
    pod.up(&mut driver);
    write(kind, pod.target(), "of the pod");
    pod.up(&mut driver);
    assert!(loops_below(sandbox.dir()).len() <= 1, "two loop devices on one image");
    assert_eq!(read(kind, pod.target()), "of the pod");
    pod.down(&mut driver);
    driver
}

#[test]
fn a_driver_that_dies_anywhere_finishes_after_its_restart() {
    privileged(|sandbox| {
        let mut hit = Vec::new();
        // `steps` has the others, one by one.
        let named = |point: &&str| !point.starts_with("step.");
        for point in orlop::fault::all().into_iter().filter(named) {
            for kind in KINDS {
                let sandbox = sandbox.sub(&format!("{kind:?}/{point}"));
                let mut driver = live(&sandbox, kind, &format!("{point}:abort"));
                check_nothing_left(&sandbox, &mut driver);
                if driver.deaths > 0 {
                    hit.push(point);
                }
            }
        }
        println!("{} deaths: {hit:?}", hit.len());
        for point in ["engine.inline.made", "engine.inline.unpublished", "host.mount.done"] {
            assert!(hit.contains(&point), "{point} was never hit");
        }
    });
}

#[test]
fn a_step_that_fails_is_taken_back_and_can_be_repeated() {
    privileged(|sandbox| {
        for (kind, point) in [
            (Kind::Hostpath, "engine.inline.made"),
            (Kind::Hostpath, "host.bind.moved"),
            (Kind::Ext4, "host.mount.start"),
            (Kind::Ext4, "host.mount.done"),
            (Kind::Ext4, "store.commit.renamed"),
        ] {
            let sandbox = sandbox.sub(&format!("{kind:?}/{point}"));
            let mut driver = Driver::start(&sandbox);
            driver.kill();
            driver.start_again(Some(&format!("{point}:EIO")));
            let pod = Pod::new(&sandbox, kind, 1);
            let failed = driver.client.publish_inline(&pod.request).unwrap_err();
            assert_eq!(failed.code(), Code::Internal, "{point}: {failed:?}");
            assert_eq!(volumes(&sandbox), 0, "{point}");
            assert!(!pod.target().exists(), "{point}");
            driver.restart();
            pod.up(&mut driver);
            pod.down(&mut driver);
            check_nothing_left(&sandbox, &mut driver);
        }
    });
}

#[test]
fn a_volume_that_cannot_be_removed_does_not_hold_up_its_pod_and_is_swept() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let points = ["engine.inline.unpublished", "store.bury.start", "store.bury.renamed"];
        for (number, point) in (1..).zip(points) {
            driver.kill();
            driver.start_again(Some(&format!("{point}:EIO")));
            let pod = Pod::new(sandbox, Kind::Ext4, number);
            driver.client.publish_inline(&pod.request).unwrap();
            driver.client.unpublish(&pod.request.volume_id, pod.target()).unwrap();
            assert_eq!(mounts_below(sandbox.dir()), Vec::<PathBuf>::new());
            pod.remove_directory();
        }
        assert!(volumes(sandbox) > 0, "the last one at least is still there");
        driver.restart();
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn after_a_reboot_what_has_no_pod_is_swept_and_the_rest_is_mounted_again() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let pods: Vec<_> = (0..)
            .zip([Kind::Hostpath, Kind::Ext4, Kind::Hostpath, Kind::Ext4])
            .map(|(number, kind)| Pod::new(sandbox, kind, number))
            .collect();
        for pod in &pods {
            pod.up(&mut driver);
            write(pod.kind, pod.target(), "of the pod");
        }
        driver.kill();
        sandbox.clear();
        poll("the loop devices are gone", || loops_below(sandbox.dir()).is_empty());
        // Two pods were removed while the node was down; kubelet cleans up before it starts the driver's own pod.
        let (gone, there) = pods.split_at(2);
        gone.iter().for_each(Pod::remove_directory);
        driver.start_again(None);
        poll("those without a pod are swept", || volumes(sandbox) == there.len());
        for pod in there {
            pod.up(&mut driver);
            assert_eq!(read(pod.kind, pod.target()), "of the pod");
            pod.down(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
