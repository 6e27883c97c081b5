//! Loop devices of raw block volumes that nobody has any more: detached where an unstage was seen, otherwise left alone.

#![expect(clippy::disallowed_methods, reason = "writes marks as another run could have")]

use std::time::Duration;

use nix::errno::Errno;
use orlop::host::{Host, LoopOptions};
use orlop::volume::{Allocation, DirectIo};
use tonic::Code;

use super::common::Machine;
use super::driver::{BLOCK, Driver, refused};
use super::health::{Used, used};

const OFTEN: Duration = Duration::from_millis(5);

fn attached(driver: &Driver, id: &str) -> usize {
    let loops = driver.machine.host.loops().unwrap();
    loops.iter().filter(|status| status.label == id).count()
}

/// Unpublishes, and has the unstage fail where the device is to be detached.
async fn cut_off(driver: &Driver, volume: &Used) {
    driver.unpublish(&volume.id, &volume.target).await.unwrap();
    driver.machine.host.fail_next("detach", Errno::EIO);
    refused("detach", driver.unstage(&volume.id, &volume.staging).await);
}

async fn until_detached(driver: &Driver, id: &str) {
    for _ in 0..6000 {
        if attached(driver, id) == 0 {
            return;
        }
        tokio::time::sleep(OFTEN).await;
    }
    panic!("the device stays attached");
}

/// Paths of its own, so that there can be two.
async fn staged(driver: &Driver, name: &str) -> Used {
    let id = driver.make(BLOCK, name).await;
    let place = |what: &str| driver.machine.path(format!("{what}-{name}"));
    let (staging, target) = (place("staging"), place("target"));
    driver.stage(&id, &staging, BLOCK.shared()).await.unwrap();
    driver.publish(&id, (&staging, &target), BLOCK.shared(), false).await.unwrap();
    Used { id, staging, target }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_detached_only_when_its_unstage_was_seen() {
    let driver = Driver::start_with(Machine::new(), OFTEN).await;
    // A node is torn down by hand; a pod may have the device open still.
    let unseen = staged(&driver, "unseen").await;
    let host = &driver.machine.host;
    host.unmount(&unseen.target).unwrap();
    host.remove_mount_point(&unseen.target).unwrap();
    host.unmount(&unseen.staging.join("device")).unwrap();
    for round in 0..3 {
        let seen = staged(&driver, &format!("seen-{round}")).await;
        cut_off(&driver, &seen).await;
        until_detached(&driver, &seen.id).await;
        driver.delete(&seen.id).await.unwrap();
    }
    assert_eq!(attached(&driver, &unseen.id), 1, "nobody unstaged it");
    let status = driver.delete(&unseen.id).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("`losetup -d /dev/loop"), "{}", status.message());
    driver.unstage(&unseen.id, &unseen.staging).await.unwrap();
    assert_eq!(attached(&driver, &unseen.id), 0);
    driver.delete(&unseen.id).await.unwrap();
    assert_eq!(driver.engine.unstaged().unwrap(), [], "no mark stays");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_is_staged_again_is_no_orphan() {
    // It looks once at its start, and then not for ten seconds.
    let driver = Driver::start().await;
    let volume = used(&driver, BLOCK).await;
    cut_off(&driver, &volume).await;
    assert_eq!(driver.engine.unstaged().unwrap().len(), 1);
    driver.stage(&volume.id, &volume.staging, BLOCK.shared()).await.unwrap();
    assert_eq!(driver.engine.unstaged().unwrap(), []);
    assert_eq!(attached(&driver, &volume.id), 1);
    // The mark of a device that is shown is no reason to touch it, and goes.
    let mark = driver.machine.path("root/state/unstaged").join(&volume.id);
    let seen = driver.machine.host.loops().unwrap()[0].backing;
    let text = format!("{} {} {}", seen.device.major, seen.device.minor, seen.inode);
    std::fs::write(&mark, text).unwrap();
    driver.engine.detach_orphans(&volume.id.parse().unwrap()).unwrap();
    assert_eq!((attached(&driver, &volume.id), mark.exists()), (1, false));
    // One that was not written to its end tells nothing.
    std::fs::write(&mark, "7 ").unwrap();
    driver.engine.detach_orphans(&volume.id.parse().unwrap()).unwrap();
    assert_eq!((attached(&driver, &volume.id), mark.exists()), (1, false));
    // Nor is one that names another image, as that of another driver's volume of this id.
    driver.machine.host.unmount(&volume.staging.join("device")).unwrap();
    std::fs::write(&mark, format!("1 2 {}", seen.inode)).unwrap();
    driver.engine.detach_orphans(&volume.id.parse().unwrap()).unwrap();
    assert_eq!((attached(&driver, &volume.id), mark.exists()), (1, false));
    driver.unstage(&volume.id, &volume.staging).await.unwrap();
    assert_eq!(driver.engine.unstaged().unwrap(), []);
    driver.delete(&volume.id).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_unstage_left_for_readers_is_no_device_for_a_writer() {
    use orlop::csi::proto::volume_capability::access_mode::Mode;
    let driver = Driver::start().await;
    let id = driver.make(BLOCK, "pvc").await;
    let [staging, target] = ["staging", "target"].map(|name| driver.machine.path(name));
    driver.stage(&id, &staging, BLOCK.capability(Mode::MultiNodeReaderOnly)).await.unwrap();
    driver.machine.host.fail_next("detach", Errno::EIO);
    refused("detach", driver.unstage(&id, &staging).await);
    assert_eq!(attached(&driver, &id), 1);
    driver.stage(&id, &staging, BLOCK.shared()).await.unwrap();
    driver.publish(&id, (&staging, &target), BLOCK.shared(), false).await.unwrap();
    Used { id, staging, target }.end(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_another_one_lies_on_is_left_until_that_has_gone() {
    let driver = Driver::start().await;
    let volume = used(&driver, BLOCK).await;
    let host = &driver.machine.host;
    let below = host.loops().unwrap()[0].number;
    let options = LoopOptions {
        label: "kubelet's own",
        read_only: true,
        autoclear: false,
        direct_io: DirectIo::Off,
        sector: 512,
        allocation: Allocation::Thin,
    };
    let above = host.attach_view(below, options).unwrap();
    driver.unpublish(&volume.id, &volume.target).await.unwrap();
    driver.unstage(&volume.id, &volume.staging).await.unwrap();
    let id = volume.id.parse().unwrap();
    driver.engine.detach_orphans(&id).unwrap();
    assert_eq!((attached(&driver, &volume.id), driver.engine.unstaged().unwrap().len()), (1, 1));
    let number = above.number;
    above.release();
    let seen = host.loop_status(number).unwrap().unwrap();
    host.detach(number, seen.backing).unwrap();
    driver.engine.detach_orphans(&id).unwrap();
    assert_eq!(attached(&driver, &volume.id), 0);
    assert_eq!(driver.engine.unstaged().unwrap(), []);
    driver.delete(&volume.id).await.unwrap();
    driver.stop().await;
}
