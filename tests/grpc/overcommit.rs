//! A pool that promises more than it has: what happens when its volumes are written.

use std::os::unix::fs::FileExt;

use orlop::csi::proto::CreateVolumeRequest;
use orlop::host::PoolFilesystem;
use orlop::volume::ByteSize;
use tonic::Code;

use super::driver::{BLOCK, Driver, MIB, map, range, refused};
use super::health::{NONE, storage, told};
use super::snapshots::sharing;

fn thin(name: &str, mib: i64) -> CreateVolumeRequest {
    CreateVolumeRequest { capacity_range: Some(range(mib * MIB, 0)), ..BLOCK.create(name) }
}

fn thick(name: &str, mib: i64) -> CreateVolumeRequest {
    let mut request = thin(name, mib);
    request.parameters.extend(map(&[("allocation", "thick")]));
    request
}

/// A pod writes so much of the volume.
fn write(driver: &Driver, id: &str, mib: u64) {
    let key = id.split('-').nth(2).unwrap();
    let image = driver.machine.pool("default").join("volumes").join(key).join("disk.img");
    let image = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    for at in 0..mib {
        image.write_all_at(&vec![1; 1 << 20], at << 20).unwrap();
    }
    image.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promises_stop_and_are_told_of_before_writers_fail() {
    let mut machine = sharing(PoolFilesystem::Ext, ByteSize::mib(100));
    machine.host.meter_images();
    machine.overcommit = 3.0;
    machine.reserve = ByteSize::mib(5);
    let driver = Driver::start_on(machine, &["default"], true).await;
    // 95 MiB of real room, three times.
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(driver.create(thin(name, 90)).await.unwrap().volume_id);
    }
    let more = driver.create(thin("more", 16)).await;
    assert_eq!(refused("more than three times", more), Code::ResourceExhausted);
    // A third of each thin byte is spoken for: 5 MiB are not.
    let large = driver.create(thick("large", 6)).await;
    assert_eq!(refused("thick ones are real", large), Code::ResourceExhausted);
    let id = driver.create(thick("small", 5)).await.unwrap().volume_id;
    driver.delete(&id).await.unwrap();
    driver.engine.drain_trash();
    write(&driver, &ids[0], 84);
    assert_eq!(storage(&driver).await.0, NONE, "16 of 100 MiB are available");
    write(&driver, &ids[1], 7);
    // Nine: writers have room still, and the reserve is not touched.
    assert_eq!(storage(&driver).await.0, ["PoolNearlyFull"]);
    assert_eq!(told(&driver, &ids[2]).await, ["PoolNearlyFull"]);
    let within = driver.create(thin("within", 5)).await;
    assert_eq!(refused("beyond the reserve", within), Code::ResourceExhausted);
    let growth = driver.expand(&ids[2], range(95 * MIB, 0)).await;
    assert_eq!(refused("beyond the reserve", growth), Code::OutOfRange);
    driver.delete(&ids[0]).await.unwrap();
    driver.engine.drain_trash();
    assert_eq!(storage(&driver).await.0, NONE);
    driver.create(thin("within", 5)).await.unwrap();
    driver.stop().await;
}
