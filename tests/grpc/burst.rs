//! Many requests at once against room for few: exactly as many succeed as there is room for, and nothing stays promised.

use std::sync::Arc;

use orlop::csi::proto::{CreateVolumeRequest, GetCapacityRequest};
use orlop::host::PoolFilesystem;
use orlop::volume::ByteSize;
use tonic::{Code, Status};

use super::common::Machine;
use super::driver::{BLOCK, Driver, MIB, map, range, refused};
use super::snapshots::{clone, restore, sharing};

/// A class by its parameters.
type Class = [(&'static str, &'static str); 1];
const THICK: Class = [("allocation", "thick")];
const THIN: Class = [("allocation", "thin")];

/// A machine on which images take their blocks, with room for so many MiB and a half.
fn room_for(filesystem: PoolFilesystem, mib: u64) -> Machine {
    let half = ByteSize::new(ByteSize::mib(1).bytes() / 2);
    let machine = sharing(filesystem, ByteSize::mib(mib).saturating_add(half));
    machine.host.meter_images();
    machine
}

/// A raw block volume of a class.
fn block(name: &str, mib: i64, class: Class) -> CreateVolumeRequest {
    let mut request = BLOCK.create(name);
    request.capacity_range = Some(range(mib * MIB, 0));
    request.parameters.extend(map(&class));
    request
}

fn query(class: Class) -> GetCapacityRequest {
    let mut parameters = map(BLOCK.parameters);
    parameters.extend(map(&class));
    GetCapacityRequest {
        parameters,
        volume_capabilities: vec![BLOCK.shared()],
        ..GetCapacityRequest::default()
    }
}

async fn available(driver: &Driver, class: Class) -> i64 {
    driver.capacity(query(class)).await.unwrap().available_capacity
}

/// The ids of those that succeeded; the others were told that there is no room.
async fn all(driver: &Arc<Driver>, requests: Vec<CreateVolumeRequest>) -> Vec<String> {
    let calls = requests.into_iter().map(|request| {
        let driver = Arc::clone(driver);
        tokio::spawn(async move { driver.create(request).await })
    });
    let mut ids = Vec::new();
    for call in calls.collect::<Vec<_>>() {
        match call.await.unwrap() {
            Ok(volume) => ids.push(volume.volume_id),
            full => assert_eq!(refused("no room", full), Code::ResourceExhausted),
        }
    }
    ids
}

fn news(count: usize, class: Class) -> Vec<CreateVolumeRequest> {
    (0..count).map(|n| block(&format!("pvc-{n}"), 1, class)).collect()
}

async fn end(driver: Arc<Driver>, ids: &[String], class: Class, before: i64) {
    for id in ids {
        driver.delete(id).await.unwrap();
    }
    driver.engine.drain_trash();
    assert_eq!(available(&driver, class).await, before, "all of it is back, to the byte");
    Arc::into_inner(driver).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_at_once_against_room_for_a_hundred() {
    for class in [THICK, THIN] {
        let machine = room_for(PoolFilesystem::Ext, 100);
        let driver = Arc::new(Driver::start_on(machine, &["default"], true).await);
        let before = available(&driver, class).await;
        assert_eq!(before, 100 * MIB + MIB / 2);
        let ids = all(&driver, news(200, class)).await;
        assert_eq!(ids.len(), 100, "{class:?}");
        assert_eq!(available(&driver, class).await, MIB / 2);
        assert_eq!(driver.machine.names("default", "incoming"), Vec::<String>::new());
        end(driver, &ids, class, before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pool_that_fills_up_meanwhile_leaves_the_request_to_the_next_one() {
    let machine = room_for(PoolFilesystem::Ext, 25);
    let pools = ["one", "two", "three", "four"];
    let driver = Arc::new(Driver::start_on(machine, &pools, true).await);
    let before = available(&driver, THICK).await;
    let ids = all(&driver, news(200, THICK)).await;
    assert_eq!(ids.len(), 100);
    for pool in pools {
        assert_eq!(driver.machine.names(pool, "volumes").len(), 25, "{pool}");
    }
    end(driver, &ids, THICK, before).await;
}

/// Creations, clones, restores and an expansion at once, for twice the room that there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn copies_and_growth_take_part_in_the_burst() {
    let machine = room_for(PoolFilesystem::Ext, 100);
    let driver = Arc::new(Driver::start_on(machine, &["default"], true).await);
    let before = available(&driver, THICK).await;
    let make = async |name: &str| driver.create(block(name, 1, THICK)).await.unwrap().volume_id;
    let (source, other, growing) =
        (make("source").await, make("other").await, make("growing").await);
    let snapshot = driver.snapshot("snapshot", &other).await.unwrap().snapshot_id;
    // Three volumes, and the snapshot of a thick one.
    assert_eq!(available(&driver, THICK).await, before - 4 * MIB);
    let mut requests = Vec::new();
    for n in 0..48 {
        requests.push(block(&format!("new-{n}"), 1, THICK));
        requests.push(restore(block(&format!("restore-{n}"), 1, THICK), &snapshot));
        requests.push(clone(block(&format!("clone-{n}"), 1, THICK), &source));
        requests.push(block(&format!("more-{n}"), 1, THICK));
    }
    let growth = {
        let (driver, id) = (Arc::clone(&driver), growing.clone());
        tokio::spawn(async move { driver.expand(&id, range(11 * MIB, 0)).await })
    };
    let mut ids = all(&driver, requests).await;
    // It needs ten at once: either it got them, or they went to others.
    let grown: Result<_, Status> = growth.await.unwrap();
    let taken = if grown.is_ok() { 10 } else { 0 };
    if grown.is_err() {
        assert_eq!(refused("no room to grow", grown), Code::OutOfRange);
    }
    assert_eq!(ids.len() + taken, 96);
    assert_eq!(available(&driver, THICK).await, MIB / 2);
    ids.extend([source, other, growing]);
    driver.delete_snapshot(&snapshot).await.unwrap();
    end(driver, &ids, THICK, before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_volume_is_that_of_one_pool() {
    let machine = room_for(PoolFilesystem::Ext, 25);
    let driver = Driver::start_on(machine, &["one", "two"], true).await;
    let told = driver.capacity(query(THIN)).await.unwrap();
    assert_eq!(told.available_capacity, 51 * MIB);
    assert_eq!(told.maximum_volume_size, Some(25 * MIB + MIB / 2));
    let large = driver.create(block("large", 26, THIN)).await;
    assert_eq!(refused("larger than any pool", large), Code::ResourceExhausted);
    driver.create(block("fits", 25, THIN)).await.unwrap();
    driver.stop().await;
}
