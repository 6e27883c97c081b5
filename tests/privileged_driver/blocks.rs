//! Changed blocks: what is told rebuilds the images, byte for byte.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tonic::Code;

use crate::driver::{Driver, no_forks};
use crate::life::{Kind, Life, MIB};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, privileged, run};

/// The image of a snapshot in the pool.
fn image(sandbox: &Sandbox, id: &str) -> PathBuf {
    let key = id.split('-').nth(2).unwrap();
    sandbox.path("pool/snapshots").join(key).join("disk.img")
}

fn content(sandbox: &Sandbox, id: &str) -> Vec<u8> {
    std::fs::read(image(sandbox, id)).unwrap()
}

/// Copies the ranges from one content to another.
fn apply(ranges: &[(u64, u64)], from: &[u8], to: &mut [u8]) {
    for (start, end) in ranges {
        let range = usize::try_from(*start).unwrap()..usize::try_from(*end).unwrap();
        to[range.clone()].copy_from_slice(&from[range]);
    }
}

/// Writes bytes that are nowhere else, in pieces of 4 KiB.
fn scribble(life: &Life, at: u64, blocks: u64, seed: u64) {
    let _quiet = no_forks();
    let device = File::options().write(true).open(&life.target).unwrap();
    for block in 0..blocks {
        let place = at + block * 4096;
        let mut piece = vec![0_u8; 4096];
        for (index, bytes) in piece.chunks_mut(8).enumerate() {
            let index = u64::try_from(index).unwrap();
            let value = (seed << 40) ^ (place << 3) ^ index;
            bytes.copy_from_slice(&value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        device.write_all_at(&piece, place).unwrap();
    }
    device.sync_all().unwrap();
}

#[test]
fn what_is_told_rebuilds_the_images() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            rebuild(&sandbox.sub(&format!("{pool:?}")), pool);
        }
    });
}

/// Takes a snapshot, with the volume down where it must be.
fn take(driver: &mut Driver, pool: PoolOn, life: &Life, name: &str) -> String {
    if !pool.shares() {
        life.down(driver);
    }
    let id = driver.insist("snapshot", |c| c.snapshot(name, &life.id)).snapshot_id;
    if !pool.shares() {
        life.up(driver);
    }
    id
}

fn rebuild(sandbox: &Sandbox, pool: PoolOn) {
    pool.mount(sandbox, 1200);
    let mut driver = Driver::start(sandbox);
    let mut life = Life::new(sandbox, Kind::Block, "v");
    life.create.bytes = 64 * MIB;
    life.born(&mut driver);
    life.up(&mut driver);
    let mut ids = vec![take(&mut driver, pool, &life, "empty")];
    scribble(&life, 0, 3, 1);
    scribble(&life, 20 * MIB, 300, 2);
    ids.push(take(&mut driver, pool, &life, "sparse"));
    scribble(&life, 20 * MIB + 40960, 5, 3);
    run("blkdiscard", &["-o", "21000192", "-l", "409600", life.target.to_str().unwrap()]);
    ids.push(take(&mut driver, pool, &life, "rewritten"));
    driver.insist("expand", |c| c.expand(&life.id, 80 * MIB));
    driver.insist("node expand", |c| c.node_expand(&life.id, &life.target, 80 * MIB));
    scribble(&life, 70 * MIB, 10, 4);
    ids.push(take(&mut driver, pool, &life, "expanded"));
    scribble(&life, 0, 80 * MIB / 4096, 5);
    ids.push(take(&mut driver, pool, &life, "full"));
    check_all(sandbox, &driver, &ids);
    check_errors(&driver, &ids);
    if pool == PoolOn::Btrfs {
        run(
            "btrfs",
            &["balance", "start", "--full-balance", sandbox.path("pool").to_str().unwrap()],
        );
        check_all(sandbox, &driver, &ids);
    }
    if pool.shares() {
        let told = driver.client.delta((&ids[1], &ids[2]), 0, 0).unwrap();
        let bytes: u64 = told.ranges.iter().map(|(start, end)| end - start).sum();
        assert!(bytes < MIB, "{pool:?}: what is shared is not told: {bytes}");
    }
    let told = driver.client.delta((&ids[2], &ids[2]), 0, 0).unwrap();
    assert_eq!(told.ranges, [], "{pool:?}");
    for id in &ids {
        driver.client.delete_snapshot(id).unwrap();
    }
    life.down(&mut driver);
    life.gone(&mut driver);
    end(sandbox, driver);
}

/// An image that was brought along by `cp` is copy-on-write, and so may be compressed; its extents say nothing then.
#[test]
fn what_is_compressed_counts_as_changed() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 1000);
        let pool = sandbox.path("pool");
        run("mount", &["-o", "remount,compress-force=zstd", pool.to_str().unwrap()]);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "v");
        life.create.bytes = 32 * MIB;
        life.born(&mut driver);
        let (image, copy) = (life.image(), life.dir().join("copy"));
        File::create(&copy).unwrap().set_len(32 * MIB).unwrap();
        run("mv", &[&copy, &image]);
        life.up(&mut driver);
        let device = File::options().write(true).open(&life.target).unwrap();
        device.write_all_at(&vec![b'a'; 4 << 20], 0).unwrap();
        device.sync_all().unwrap();
        let mut ids = vec![driver.client.snapshot("s0", &life.id).unwrap().snapshot_id];
        let told = run("filefrag", &["-v", image.to_str().unwrap()]);
        assert!(told.contains("encoded"), "nothing is compressed, so nothing is tested: {told}");
        device.write_all_at(&vec![b'b'; 1 << 20], 1 << 20).unwrap();
        device.sync_all().unwrap();
        drop(device);
        ids.push(driver.client.snapshot("s1", &life.id).unwrap().snapshot_id);
        check_all(sandbox, &driver, &ids);
        let told = driver.client.delta((&ids[0], &ids[0]), 0, 0).unwrap();
        assert_eq!(told.ranges, [(0, 4 << 20)], "what cannot be told is changed");
        for id in &ids {
            driver.client.delete_snapshot(id).unwrap();
        }
        life.down(&mut driver);
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

/// Every image from nothing, and from every other one.
fn check_all(sandbox: &Sandbox, driver: &Driver, ids: &[String]) {
    let images: Vec<Vec<u8>> = ids.iter().map(|id| content(sandbox, id)).collect();
    for (id, wanted) in ids.iter().zip(&images) {
        for most in [0, 1, 7] {
            let told = driver.client.allocated(id, 0, most).unwrap();
            let mut built = vec![0; wanted.len()];
            apply(&told.ranges, wanted, &mut built);
            assert!(built == *wanted, "allocated of {id}");
        }
        // From the middle on.
        let start = 20 * MIB + 100;
        let told = driver.client.allocated(id, start, 0).unwrap();
        assert!(told.ranges.first().is_none_or(|(first, end)| *first >= start && *end > start));
        let mut built = wanted[..usize::try_from(start).unwrap()].to_vec();
        built.resize(wanted.len(), 0);
        apply(&told.ranges, wanted, &mut built);
        assert!(built == *wanted, "allocated of {id} from {start}");
    }
    for (base, from) in ids.iter().zip(&images) {
        for (target, wanted) in ids.iter().zip(&images) {
            let told = driver.client.delta((base, target), 0, 3).unwrap();
            let mut built = from.clone();
            built.resize(wanted.len(), 0);
            apply(&told.ranges, wanted, &mut built);
            assert!(built == *wanted, "{base} → {target}: {:?}", told.ranges);
        }
    }
}

fn check_errors(driver: &Driver, ids: &[String]) {
    let code = |result: Result<_, tonic::Status>| {
        result.map(|_: crate::client_snapshots::Told| ()).unwrap_err().code()
    };
    assert_eq!(code(driver.client.allocated(&ids[0], 64 * MIB + 1, 0)), Code::OutOfRange);
    assert_eq!(driver.client.allocated(&ids[0], 64 * MIB, 0).unwrap().ranges, []);
    assert_eq!(code(driver.client.allocated("nothing", 0, 0)), Code::NotFound);
    assert_eq!(code(driver.client.delta((&ids[0], "nothing"), 0, 0)), Code::NotFound);
    assert_eq!(code(driver.client.allocated(&ids[0], 0, -1)), Code::InvalidArgument);
}
