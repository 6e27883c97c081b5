//! What volumes take: from a limit, from a filesystem of their own, counted in the background.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use orlop::csi::proto::{VolumeUsage, volume_usage::Unit};
use orlop::host::{Bounds, Limits, PoolFilesystem, Space};
use orlop::volume::{ByteSize, Limit, LimitKind};

use super::driver::{Driver, GIB, HOSTPATH, KINDS, MIB};
use super::health::{self, Used, used, volume_of};

/// Total, used and available of a unit.
pub(crate) fn figures(usage: &[VolumeUsage], unit: Unit) -> Option<(i64, i64, i64)> {
    let found = usage.iter().find(|usage| usage.unit == i32::from(unit))?;
    Some((found.total, found.used, found.available))
}

async fn told(driver: &Driver, used: &Used) -> [Option<(i64, i64, i64)>; 2] {
    told_at(driver, used, &used.target).await
}

async fn told_at(driver: &Driver, used: &Used, path: &Path) -> [Option<(i64, i64, i64)>; 2] {
    let usage = driver.stats(&used.id, path).await.unwrap();
    [Unit::Bytes, Unit::Inodes].map(|unit| figures(&usage, unit))
}

/// Holds a volume of 1 GiB to its size.
pub(crate) fn hold(driver: &Driver, id: &str, kind: LimitKind, inodes: Option<u64>) -> Limit {
    let host = &driver.machine.host;
    let (directory, record) = (volume_of(driver, id), volume_of(driver, id).join("volume.json"));
    let data = File::open(directory.join("data")).unwrap();
    host.set_limit_kind(Some(kind));
    let limit = host.begin_limit(data.as_fd(), kind).unwrap();
    let bounds = Bounds { bytes: ByteSize::gib(1), inodes };
    host.set_bounds(data.as_fd(), limit, Some(bounds)).unwrap();
    let mut written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    written["limit"] = serde_json::json!({ "kind": kind.as_str(), "number": limit.number });
    std::io::Write::write_all(&mut File::create(&record).unwrap(), written.to_string().as_bytes())
        .unwrap();
    limit
}

fn write(path: &Path, bytes: u64) {
    let length = usize::try_from(bytes).unwrap();
    let file = File::create(path).unwrap();
    file.write_all_at(&vec![1; length], 0).unwrap();
    file.sync_all().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_tells_what_is_under_it() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    let used = used(&driver, HOSTPATH).await;
    let limit = hold(&driver, &used.id, LimitKind::Project, Some(1000));
    host.set_limit_usage(limit, ByteSize::mib(256), Some(10));
    let inodes = Some((1000, 10, 990));
    assert_eq!(told(&driver, &used).await, [Some((GIB, 256 * MIB, 768 * MIB)), inodes]);
    // The pool has less.
    let space = Space {
        filesystem: PoolFilesystem::Xfs,
        total: ByteSize::gib(100),
        free: ByteSize::gib(1),
        available: ByteSize::mib(512),
        inodes: 1 << 20,
        inodes_free: 7,
    };
    host.set_space(space);
    let inodes = Some((1000, 10, 7));
    assert_eq!(told(&driver, &used).await, [Some((GIB, 256 * MIB, 512 * MIB)), inodes]);
    // One that is not in force counts nothing, and so its files are counted.
    host.set_bounds(File::open("/").unwrap().as_fd(), limit, None).unwrap();
    assert_eq!(told(&driver, &used).await[0], Some((100 * GIB, 99 * GIB, 512 * MIB)));
    driver.engine.settle_counts();
    let counted = told(&driver, &used).await[0].unwrap().1;
    assert!(counted < MIB, "{counted}");
    used.end(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_without_a_limit_are_counted_while_nobody_waits() {
    let driver = Driver::start().await;
    let used = used(&driver, HOSTPATH).await;
    let data = volume_of(&driver, &used.id).join("data");
    std::fs::create_dir(data.join("sub")).unwrap();
    write(&data.join("sub/file"), 1 << 20);
    std::fs::hard_link(data.join("sub/file"), data.join("again")).unwrap();
    let (total, inodes) = (100 * GIB, 1 << 20);
    // The counting is held up; who asks is not, and is told of the pool.
    let blocked = driver.machine.host.block_next("yield_disk");
    for _ in 0..3 {
        let pool = [Some((total, 0, total)), Some((inodes, 0, inodes))];
        for path in [&used.staging, &used.target] {
            assert_eq!(told_at(&driver, &used, path).await, pool);
        }
    }
    blocked.wait();
    assert_eq!(told(&driver, &used).await[0], Some((total, 0, total)));
    blocked.release();
    driver.engine.settle_counts();
    let blocks = |name: &str| data.join(name).metadata().unwrap().blocks();
    let bytes = (blocks("") + blocks("sub") + blocks("again")) * 512;
    let counted = Some((total, i64::try_from(bytes).unwrap(), total));
    assert_eq!(told(&driver, &used).await, [counted, Some((inodes, 3, inodes))]);
    // What was counted is told for some minutes.
    write(&data.join("more"), 1 << 20);
    driver.engine.settle_counts();
    assert_eq!(told(&driver, &used).await[0], counted);
    used.end(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_deletion_nor_a_pool_that_goes_waits_for_a_count() {
    let driver = Driver::start().await;
    let one = used(&driver, HOSTPATH).await;
    let id = one.id.clone();
    let blocked = driver.machine.host.block_next("yield_disk");
    told(&driver, &one).await;
    blocked.wait();
    one.end(&driver).await;
    driver.engine.drain_trash();
    assert!(!volume_of(&driver, &id).exists());
    // The next driver takes the pool over while the thread of this one is still there.
    let driver = driver.restart().await;
    let next = used(&driver, HOSTPATH).await;
    told(&driver, &next).await;
    driver.engine.settle_counts();
    assert_eq!(told(&driver, &next).await[1].unwrap().1, 1);
    blocked.release();
    next.end(&driver).await;
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_directories_are_counted() {
    let driver = Driver::start().await;
    for kind in KINDS.into_iter().filter(|kind| !kind.parameters.is_empty()) {
        let used = used(&driver, kind).await;
        let before = driver.stats(&used.id, &used.target).await.unwrap();
        driver.engine.settle_counts();
        assert_eq!(driver.stats(&used.id, &used.target).await.unwrap(), before);
        used.end(&driver).await;
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_does_not_hold_is_told() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    let any = File::open("/").unwrap();
    let bounded = |gib| Some(Bounds { bytes: ByteSize::gib(gib), inodes: None });
    for kind in [LimitKind::Project, LimitKind::SimpleQuota, LimitKind::Qgroup] {
        let id = driver.make(HOSTPATH, "pvc").await;
        let limit = hold(&driver, &id, kind, None);
        assert_eq!(health::told(&driver, &id).await, health::NONE);
        // More is what others share of what it wrote.
        let more: &[&str] = if kind == LimitKind::SimpleQuota { &[] } else { &["QuotaNotInForce"] };
        for (bounds, expected) in
            [(None, &["QuotaNotInForce"][..]), (bounded(2), more), (bounded(1), &[])]
        {
            host.set_bounds(any.as_fd(), limit, bounds).unwrap();
            assert_eq!(health::told(&driver, &id).await, expected, "{kind} {bounds:?}");
        }
        // The filesystem still knows the limit, and holds nobody to it.
        host.set_limit_kind(None);
        assert_eq!(health::told(&driver, &id).await, ["QuotaNotInForce"], "{kind}");
        host.set_limit_kind(Some(kind));
        host.end_limit(any.as_fd(), limit).unwrap();
        assert_eq!(health::told(&driver, &id).await, ["QuotaNotInForce"], "{kind}");
        driver.delete(&id).await.unwrap();
        host.set_limit_kind(None);
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_with_another_project_are_looked_for_and_told() {
    let driver = Driver::start().await;
    let host = &driver.machine.host;
    let id = driver.make(HOSTPATH, "pvc").await;
    let limit = hold(&driver, &id, LimitKind::Project, None);
    let data = volume_of(&driver, &id).join("data");
    std::fs::create_dir(data.join("sub")).unwrap();
    for name in ["one", "sub/two"] {
        write(&data.join(name), 1);
    }
    nix::unistd::mkfifo(&data.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let look = async || {
        driver.engine.look_for_strays();
        health::told(&driver, &id).await
    };
    assert_eq!(look().await, health::NONE);
    host.set_project(&data.join("sub/two"), 0);
    assert_eq!(health::told(&driver, &id).await, health::NONE, "not looked for yet");
    assert_eq!(look().await, ["QuotaEscaped"]);
    host.set_project(&data.join("sub/two"), limit.number);
    host.set_project(&data.join("sub"), limit.number + 1);
    assert_eq!(look().await, ["QuotaEscaped"], "a directory");
    host.set_project(&data.join("sub"), limit.number);
    assert_eq!(look().await, health::NONE);
    driver.delete(&id).await.unwrap();
    driver.stop().await;
}
