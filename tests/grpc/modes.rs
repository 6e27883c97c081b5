//! Access modes: who may have a second target, and who may write.

use orlop::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use super::driver::{Driver, HOSTPATH, KINDS, Kind, LOOP, refused};

/// A mode, and what becomes of a second target: for writing, and for reading.
const MODES: [(Mode, Option<Code>, Option<Code>); 7] = {
    let no = Some(Code::FailedPrecondition);
    [
        (Mode::SingleNodeWriter, no, no),
        (Mode::SingleNodeSingleWriter, no, no),
        (Mode::SingleNodeReaderOnly, no, no),
        (Mode::SingleNodeMultiWriter, None, None),
        (Mode::MultiNodeReaderOnly, None, None),
        (Mode::MultiNodeSingleWriter, no, None),
        (Mode::MultiNodeMultiWriter, None, None),
    ]
};

fn reads_only(mode: Mode) -> bool {
    matches!(mode, Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly)
}

async fn try_mode(driver: &Driver, kind: Kind, mode: Mode, wanted: [Option<Code>; 2]) {
    let [staging, first, second] = ["staging", "first", "second"].map(|n| driver.machine.path(n));
    let id = driver.make(kind, &format!("{mode:?}")).await;
    let capability = || kind.capability(mode);
    driver.stage(&id, &staging, capability()).await.unwrap();
    driver.publish(&id, (&staging, &first), capability(), false).await.unwrap();
    for (readonly, wanted) in [false, true].into_iter().zip(wanted) {
        // A reader of a device that is staged writable needs a loop device of its own.
        if readonly && kind.block && !reads_only(mode) && wanted.is_none() {
            continue;
        }
        let what = format!("{kind:?} {mode:?} readonly={readonly}");
        let answer = driver.publish(&id, (&staging, &second), capability(), readonly).await;
        match wanted {
            None => {
                answer.expect(&what);
                let read_only = readonly || reads_only(mode);
                if !kind.block {
                    assert_eq!(driver.read_only(&second), Some(read_only), "{what}");
                }
                if !reads_only(mode) {
                    let repeat =
                        driver.publish(&id, (&staging, &second), capability(), !readonly).await;
                    assert_eq!(refused(&what, repeat), Code::AlreadyExists, "{what}");
                }
            }
            Some(code) => {
                assert_eq!(refused(&what, answer), code, "{what}");
                assert_eq!(driver.read_only(&second), None, "{what}");
            }
        }
        driver.unpublish(&id, &second).await.unwrap();
        // The first target is no second one, and was not touched.
        driver.publish(&id, (&staging, &first), capability(), false).await.unwrap();
    }
    driver.unpublish(&id, &first).await.unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.delete(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_matrix_of_modes_and_targets() {
    let driver = Driver::start().await;
    for kind in KINDS {
        for (mode, writer, reader) in MODES {
            try_mode(&driver, kind, mode, [writer, reader]).await;
            driver.assert_clean();
        }
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_beside_a_writer_cannot_write() {
    let driver = Driver::start().await;
    let [staging, first, second, third] =
        ["staging", "first", "second", "third"].map(|n| driver.machine.path(n));
    for kind in [HOSTPATH, LOOP] {
        let id = driver.make(kind, "pvc").await;
        let capability = || kind.capability(Mode::MultiNodeSingleWriter);
        driver.stage(&id, &staging, capability()).await.unwrap();
        driver.publish(&id, (&staging, &first), capability(), true).await.unwrap();
        driver.publish(&id, (&staging, &second), capability(), false).await.unwrap();
        let writer = driver.publish(&id, (&staging, &third), capability(), false).await;
        assert_eq!(refused("a second writer", writer), Code::FailedPrecondition);
        assert_eq!([&first, &second].map(|path| driver.read_only(path)), [Some(true), Some(false)]);
        // The writer's place becomes free with it.
        driver.unpublish(&id, &second).await.unwrap();
        driver.publish(&id, (&staging, &third), capability(), false).await.unwrap();
        for target in [&first, &third] {
            driver.unpublish(&id, target).await.unwrap();
        }
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_staged_for_readers_is_not_published_for_writers() {
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    for kind in KINDS {
        let id = driver.make(kind, "pvc").await;
        let readers = kind.capability(Mode::MultiNodeReaderOnly);
        driver.stage(&id, &staging, readers.clone()).await.unwrap();
        let writer = driver.publish(&id, (&staging, &target), kind.shared(), false).await;
        assert_eq!(refused("a writer", writer), Code::FailedPrecondition, "{kind:?}");
        driver.publish(&id, (&staging, &target), readers, false).await.unwrap();
        if kind.block {
            use orlop::host::Host as _;
            assert!(driver.machine.host.loops().unwrap()[0].read_only);
        } else {
            assert_eq!(driver.read_only(&target), Some(true));
        }
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mount_flags_reach_the_mount() {
    use orlop::csi::proto::volume_capability::{AccessType, MountVolume};
    use orlop::host::Host as _;
    let driver = Driver::start().await;
    let [staging, target] = ["staging", "target"].map(|n| driver.machine.path(n));
    for kind in [HOSTPATH, LOOP] {
        let mut capability = kind.shared();
        let mount_flags = ["noexec", "nosuid"].map(str::to_owned).to_vec();
        let mount = MountVolume { mount_flags, ..MountVolume::default() };
        capability.access_type = Some(AccessType::Mount(mount));
        let id = driver.make(kind, "pvc").await;
        driver.stage(&id, &staging, capability.clone()).await.unwrap();
        driver.publish(&id, (&staging, &target), capability, false).await.unwrap();
        let table = driver.machine.host.mounts().unwrap();
        for path in [&staging, &target] {
            let entry = table.top_at(path).unwrap();
            assert!(entry.has_option("noexec") && entry.has_option("nosuid"), "{entry:?}");
        }
        driver.unpublish(&id, &target).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    driver.stop().await;
}
