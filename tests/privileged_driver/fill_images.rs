//! A loop volume takes its size and no more, on every filesystem and on every pool, and what it was promised is there.
//!
//! What is measured: a raw device takes exactly its size. A filesystem takes at least 99 % (btrfs, which guesses what its
//! trees will need, 90 %) of what it said was available when the writer began; its image never has more blocks than its
//! size (but for a few that say where they are), and so the pool never gives more than it promised.

#![expect(clippy::print_stdout, reason = "says how far it is")]

use orlop::csi::proto::{VolumeUsage, volume_usage::Unit};
use tonic::Code;

use crate::driver::Driver;
use crate::filling::{
    available, blocks, check, fill, fill_with_files, remove_files, rewrite, settle,
};
use crate::life::{Kind, Life, MIB, read, write};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

const KINDS: [Kind; 4] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Block];

/// The size that the driver makes of the one that is asked for, in bytes.
const fn size(kind: Kind) -> u64 {
    match kind {
        Kind::Btrfs => 256 * MIB,
        Kind::Hostpath | Kind::Ext4 | Kind::Xfs | Kind::Block => kind.size(),
    }
}

fn bytes(usage: &[VolumeUsage]) -> (u64, u64) {
    let found = usage.iter().find(|usage| usage.unit == i32::from(Unit::Bytes)).unwrap();
    (u64::try_from(found.total).unwrap(), u64::try_from(found.used).unwrap())
}

#[test]
fn a_writer_is_stopped_at_the_size_of_its_volume() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            for kind in KINDS {
                println!("{kind:?} on {pool:?}");
                let part = sandbox.sub(&format!("{pool:?}-{kind:?}"));
                pool.mount(&part, 640 + 2 * size(kind) / MIB);
                let driver = Driver::start(&part);
                one_writer(&part, driver, kind);
            }
        }
    });
}

fn one_writer(sandbox: &Sandbox, mut driver: Driver, kind: Kind) {
    let pool = sandbox.path("pool");
    let before = available(&pool);
    let mut life = Life::new(sandbox, kind, "full");
    let mut neighbour = Life::new(sandbox, kind, "neighbour");
    let mut directory = Life::new(sandbox, Kind::Hostpath, "directory");
    for life in [&mut life, &mut neighbour, &mut directory] {
        life.born(&mut driver);
        life.up(&mut driver);
    }
    let offered = if kind == Kind::Block { size(kind) } else { available(&life.target) };
    let written = fill(&life, 7);
    match kind {
        Kind::Block => assert_eq!(written, size(kind)),
        Kind::Btrfs => assert!(written >= offered / 100 * 90, "{written} of {offered}"),
        Kind::Hostpath | Kind::Ext4 | Kind::Xfs => {
            assert!(written >= offered / 100 * 99, "{written} of {offered}");
        }
    }
    println!("{written} of {offered} bytes in a volume of {}", size(kind));
    settle(&pool);
    assert_eq!(std::fs::metadata(life.image()).unwrap().len(), size(kind));
    // The pool's filesystem counts its own extent blocks with the image.
    assert!(blocks(&life) <= size(kind) + MIB / 4, "{} bytes of blocks", blocks(&life));
    let stats = driver.client.stats(&life.id, &life.target).unwrap();
    let (total, used) = bytes(&stats);
    assert!(total <= size(kind) && total >= size(kind) / 100 * 75, "{total} of {}", size(kind));
    if kind != Kind::Block {
        let seen = nix::sys::statvfs::statvfs(&life.target).unwrap();
        assert_eq!(total, seen.blocks() * seen.fragment_size(), "df shows the same");
        assert!(used >= written && used <= total, "{used} of {total}");
    }
    // Others have what is theirs.
    for other in [&neighbour, &directory] {
        write(other.kind, &other.target, "still there");
        assert_eq!(read(other.kind, &other.target), "still there");
    }
    let taken = before - available(&pool);
    assert!(taken <= 2 * size(kind) + 16 * MIB, "{taken} bytes of the pool");
    check(&life, 7, written);
    for life in [&life, &neighbour, &directory] {
        life.down(&mut driver);
        life.gone(&mut driver);
    }
    end(sandbox, driver);
}

/// The pool is promised to the last byte and the volume is full; all of it is written anew after a snapshot.
#[test]
fn a_full_volume_is_rewritten_after_its_snapshot() {
    privileged(|sandbox| {
        for pool in [PoolOn::Xfs, PoolOn::Btrfs] {
            for (kind, allocation) in [
                (Kind::Ext4, "thick"),
                (Kind::Block, "thick"),
                (Kind::Xfs, "thin"),
                (Kind::Btrfs, "thin"),
                (Kind::Block, "thin"),
            ] {
                println!("{allocation} {kind:?} on {pool:?}");
                let part = sandbox.sub(&format!("{pool:?}-{kind:?}-{allocation}"));
                pool.mount(&part, 512 + 2 * size(kind) / MIB);
                let driver = Driver::start(&part);
                after_a_snapshot(&part, driver, kind, allocation);
            }
        }
    });
}

fn after_a_snapshot(sandbox: &Sandbox, mut driver: Driver, kind: Kind, allocation: &'static str) {
    let pool = sandbox.path("pool");
    let mut life = Life::new(sandbox, kind, "full").with("allocation", allocation);
    life.born(&mut driver);
    life.up(&mut driver);
    let written = fill(&life, 1);
    let id = life.id.clone();
    let snapshot = driver.insist("snapshot", |c| c.snapshot("s", &id)).snapshot_id;
    // Whatever is not promised yet goes to somebody who takes it at once.
    let mut rest = Life::new(sandbox, Kind::Block, "rest").with("allocation", "thick");
    rest.create.bytes = driver.client.room(&[("backend", "loop"), ("allocation", "thick")]);
    rest.born(&mut driver);
    assert!(blocks(&rest) >= rest.create.bytes);
    let full = driver.client.snapshot("another", &id);
    assert_eq!(full.unwrap_err().code(), Code::ResourceExhausted, "nothing is left to promise");
    rewrite(&life, 2, written);
    rewrite(&life, 3, written);
    driver.insist("delete the snapshot", |c| c.delete_snapshot(&snapshot));
    poll("the snapshot is gone", || {
        std::fs::read_dir(pool.join("trash")).unwrap().next().is_none()
    });
    settle(&pool);
    if allocation == "thick" {
        // Shared with nobody, it is thick again: others may fill the pool.
        let filler = fill_with_files(&pool);
        rewrite(&life, 4, written);
        life.down(&mut driver);
        remove_files(&filler);
        life.up(&mut driver);
        let rest = if kind == Kind::Btrfs { written / 2 } else { written };
        check(&life, 4, rest);
    }
    life.down(&mut driver);
    for life in [&life, &rest] {
        life.gone(&mut driver);
    }
    end(sandbox, driver);
}
