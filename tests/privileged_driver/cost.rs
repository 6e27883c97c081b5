//! What a snapshot, a restore and a clone cost where blocks are shared. Times are printed and decide nothing; space does.

#![expect(clippy::print_stdout, reason = "a measurement says what it measured")]

use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::client_snapshots::{from_snapshot, from_volume};
use crate::driver::{Driver, no_forks};
use crate::life::{Kind, Life, MIB};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, privileged, run};

/// The size of the volume, and of what is written to it, in MiB.
const SIZE: u64 = 1024;
const DATA: usize = 100;

/// What may come on top of shared blocks: records, and the journal of a filesystem that gets a UUID of its own.
const OVERHEAD: u64 = 16 * MIB;

#[test]
fn a_copy_with_shared_blocks_takes_no_space() {
    privileged(|sandbox| {
        for pool in [PoolOn::Btrfs, PoolOn::Xfs] {
            for kind in [Kind::Ext4, Kind::Block] {
                measure(&sandbox.sub(&format!("{pool:?}-{kind:?}")), pool, kind);
            }
        }
    });
}

fn used(sandbox: &Sandbox) -> u64 {
    run("sync", &["-f", sandbox.path("pool").to_str().unwrap()]);
    let seen = nix::sys::statvfs::statvfs(&sandbox.path("pool")).unwrap();
    (seen.blocks() - seen.blocks_free()) * seen.fragment_size()
}

/// Does it, and prints what it took.
fn timed<T>(sandbox: &Sandbox, what: &str, work: impl FnOnce() -> T) -> T {
    let (before, start) = (used(sandbox), Instant::now());
    let done = work();
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let extra = used(sandbox).saturating_sub(before);
    println!("{what}: {milliseconds:.1} ms, {} KiB more", extra / 1024);
    assert!(extra < OVERHEAD, "{what} takes {extra} bytes although blocks are shared");
    done
}

fn measure(sandbox: &Sandbox, pool: PoolOn, kind: Kind) {
    pool.mount(sandbox, 5 * SIZE);
    let mut driver = Driver::start(sandbox);
    let mut life = Life::new(sandbox, kind, "v");
    life.create.bytes = SIZE * MIB;
    life.born(&mut driver);
    life.up(&mut driver);
    {
        let _quiet = no_forks();
        let place =
            if kind == Kind::Block { life.target.clone() } else { life.target.join("data") };
        let create = kind != Kind::Block;
        let file = std::fs::File::options().write(true).create(create).open(place).unwrap();
        let mut piece = vec![0_u8; 1 << 20];
        for index in 0..DATA {
            getrandom::fill(&mut piece).unwrap();
            file.write_all_at(&piece, u64::try_from(index << 20).unwrap()).unwrap();
        }
        file.sync_all().unwrap();
    }
    println!("{SIZE} MiB with {DATA} MiB of data, mounted, {kind:?} on {pool:?}");
    let client = &driver.client;
    let taken = timed(sandbox, "  snapshot", || client.snapshot("s", &life.id).unwrap());
    let mut copy = life.create.clone();
    "restored".clone_into(&mut copy.name);
    let source = from_snapshot(&taken.snapshot_id);
    let restored = timed(sandbox, "  restore", || client.create_from(&copy, source).unwrap());
    "cloned".clone_into(&mut copy.name);
    let source = from_volume(&life.id);
    let cloned = timed(sandbox, "  clone", || client.create_from(&copy, source).unwrap());
    for volume in [restored, cloned] {
        client.delete(&volume.volume_id).unwrap();
    }
    client.delete_snapshot(&taken.snapshot_id).unwrap();
    life.down(&mut driver);
    life.gone(&mut driver);
    end(sandbox, driver);
}
