//! Thick images keep their blocks whatever their pod does, thin ones give theirs back, and what a pool has promised to a
//! thick image is there.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "runs the programs that a pod would, and says how far it is"
)]

use std::fs::OpenOptions;
use std::process::Command;

use nix::fcntl::{FallocateFlags, fallocate};
use orlop::csi::proto::volume_capability::AccessType;
use tonic::Code;

use crate::driver::{Driver, no_forks};
use crate::filling::{
    available, blocks, check, fill, fill_with_files, remove_files, rewrite, settle,
};
use crate::life::{Kind, Life, MIB};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

const KINDS: [Kind; 4] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Block];

/// In megabytes, what a pool needs for one volume of the kind.
const fn pool_size(kind: Kind) -> u64 {
    match kind {
        Kind::Xfs => 760,
        Kind::Btrfs => 700,
        Kind::Hostpath | Kind::Ext4 | Kind::Block => 420,
    }
}

fn each(sandbox: &Sandbox, body: impl Fn(&Sandbox, Driver, Kind)) {
    for pool in PoolOn::ALL {
        for kind in KINDS {
            println!("{kind:?} on {pool:?}");
            let part = sandbox.sub(&format!("{pool:?}-{kind:?}"));
            pool.mount(&part, pool_size(kind));
            let driver = Driver::start(&part);
            body(&part, driver, kind);
        }
    }
}

#[test]
fn a_thick_image_is_rewritten_in_place_when_others_have_filled_the_pool() {
    privileged(|sandbox| each(sandbox, on_a_full_pool));
}

fn on_a_full_pool(sandbox: &Sandbox, mut driver: Driver, kind: Kind) {
    let pool = sandbox.path("pool");
    let mut life = Life::new(sandbox, kind, "v").with("allocation", "thick");
    life.born(&mut driver);
    life.up(&mut driver);
    let filler = fill_with_files(&pool);
    // Never written, then written, then written again.
    let written = fill(&life, 1);
    rewrite(&life, 2, written);
    life.down(&mut driver);
    // The driver itself has nothing to write to the pool for that.
    life.up(&mut driver);
    rewrite(&life, 3, written);
    life.down(&mut driver);
    remove_files(&filler);
    life.up(&mut driver);
    let rest = if kind == Kind::Btrfs { written / 2 } else { written };
    check(&life, 3, rest);
    life.down(&mut driver);
    life.gone(&mut driver);
    end(sandbox, driver);
}

/// The staging of a volume with a mount flag.
fn up_with_discard(driver: &mut Driver, life: &Life) {
    let mut capability = life.kind.capability(life.mode);
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.mount_flags.push("discard".to_owned());
    }
    driver.insist("stage", |c| c.stage(&life.id, &life.staging, &capability));
    let paths = (life.staging.as_path(), life.target.as_path());
    driver.insist("publish", |c| c.publish(&life.id, paths, &capability, false));
}

/// Whether a program that hands blocks back says that it did.
fn ran(program: &str, arguments: &[&str], life: &Life) -> bool {
    let output = Command::new(program).args(arguments).arg(&life.target).output().unwrap();
    println!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.status.success()
}

/// Every way in which a pod can give blocks back; whether one of them was accepted.
fn give_back(life: &Life) -> bool {
    if life.kind != Kind::Block {
        std::fs::remove_file(life.target.join("data")).unwrap();
        settle(&life.target);
        return ran("fstrim", &[], life);
    }
    // Zeroes are written, whether by the device or for it, and have blocks.
    assert!(ran("blkdiscard", &["--zeroout"], life));
    let discarded = ran("blkdiscard", &[], life);
    let _quiet = no_forks();
    let device = OpenOptions::new().write(true).open(&life.target).unwrap();
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    discarded | fallocate(&device, how, 0, 4 << 20).is_ok()
}

#[test]
fn a_thick_image_keeps_its_blocks_whatever_its_pod_gives_back() {
    privileged(|sandbox| each(sandbox, gives_nothing_back));
}

fn gives_nothing_back(sandbox: &Sandbox, mut driver: Driver, kind: Kind) {
    let mut life = Life::new(sandbox, kind, "v").with("allocation", "thick");
    life.born(&mut driver);
    let size = std::fs::metadata(life.image()).unwrap().len();
    assert!(blocks(&life) >= size, "at birth");
    for grown in [false, true] {
        up_with_discard(&mut driver, &life);
        let written = fill(&life, 5);
        assert!(written > 0);
        let accepted = give_back(&life);
        settle(&sandbox.path("pool"));
        assert!(!accepted, "the device takes discards");
        let size = std::fs::metadata(life.image()).unwrap().len();
        assert!(blocks(&life) >= size, "{} of {size}, grown: {grown}", blocks(&life));
        life.down(&mut driver);
        if !grown {
            driver.insist("expand", |c| c.expand(&life.id, size + 24 * MIB));
            assert!(blocks(&life) >= size + 24 * MIB, "grown");
        }
    }
    assert_eq!(driver.client.health(&life.id), Vec::<String>::new());
    life.gone(&mut driver);
    end(sandbox, driver);
}

#[test]
fn a_thin_image_gives_blocks_back_to_its_pool() {
    privileged(|sandbox| each(sandbox, gives_back));
}

fn gives_back(sandbox: &Sandbox, mut driver: Driver, kind: Kind) {
    let pool = sandbox.path("pool");
    let mut life = Life::new(sandbox, kind, "v");
    life.born(&mut driver);
    // With the mount flag by itself, without it when somebody trims.
    for by_itself in [true, false] {
        if by_itself {
            up_with_discard(&mut driver, &life);
        } else {
            life.up(&mut driver);
        }
        let written = fill(&life, 6);
        settle(&pool);
        let (full, left) = (blocks(&life), available(&pool));
        assert!(full >= written, "{full} blocks for {written}");
        if kind == Kind::Block || !by_itself {
            assert!(give_back(&life), "the device takes no discards");
        } else {
            std::fs::remove_file(life.target.join("data")).unwrap();
            settle(&life.target);
        }
        let most = written / 10 * 8;
        poll("the image has given back what it does not need", || {
            settle(&life.staging.canonicalize().unwrap());
            full - blocks(&life) >= most
        });
        poll("the pool has it", || {
            settle(&pool);
            available(&pool) >= left + most
        });
        life.down(&mut driver);
    }
    life.gone(&mut driver);
    end(sandbox, driver);
}

/// Punches a hole into the middle of an image, as a program does that does not know what it is for.
fn punch(life: &Life) {
    let image = OpenOptions::new().write(true).open(life.image()).unwrap();
    let how = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&image, how, 4 << 20, 2 << 20).unwrap();
    image.sync_all().unwrap();
}

#[test]
fn a_thick_image_with_holes_gets_its_blocks_again_or_is_refused() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            println!("on {pool:?}");
            let part = sandbox.sub(&format!("{pool:?}"));
            pool.mount(&part, 420);
            let driver = Driver::start(&part);
            with_holes(&part, driver);
        }
    });
}

fn with_holes(sandbox: &Sandbox, mut driver: Driver) {
    const NONE: Vec<String> = Vec::new();
    let mut life = Life::new(sandbox, Kind::Block, "v").with("allocation", "thick");
    life.born(&mut driver);
    life.up(&mut driver);
    let written = fill(&life, 8);
    life.down(&mut driver);
    punch(&life);
    assert!(blocks(&life) < written);
    assert_eq!(driver.client.health(&life.id), ["BlocksMissing"]);
    life.up(&mut driver);
    assert!(blocks(&life) >= written, "they are there again");
    assert_eq!(driver.client.health(&life.id), NONE);
    rewrite(&life, 9, written);
    life.down(&mut driver);
    // Nobody has room for them.
    punch(&life);
    let filler = fill_with_files(&sandbox.path("pool"));
    let refused = life.try_stage(&driver.client).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("free some space"), "{refused}");
    remove_files(&filler);
    settle(&sandbox.path("pool"));
    life.up(&mut driver);
    assert!(blocks(&life) >= written);
    rewrite(&life, 10, written);
    check(&life, 10, written);
    life.down(&mut driver);
    life.gone(&mut driver);
    end(sandbox, driver);
}

#[test]
fn a_stage_that_dies_or_fails_where_blocks_are_reserved_again_can_be_repeated() {
    privileged(|sandbox| {
        for (how, code) in [
            ("abort", None),
            ("ENOSPC", Some(Code::FailedPrecondition)),
            ("EIO", Some(Code::Internal)),
        ] {
            let part = sandbox.sub(how);
            PoolOn::Xfs.mount(&part, 420);
            let mut driver = Driver::start(&part);
            let mut life = Life::new(&part, Kind::Ext4, "v").with("allocation", "thick");
            life.born(&mut driver);
            punch(&life);
            driver.kill();
            driver.start_again(Some(&format!("backend.image.reserving:{how}")));
            life.up(&mut driver);
            let codes: Vec<_> = driver.injected.iter().map(|(_, status)| status.code()).collect();
            assert_eq!(codes, Vec::from_iter(code), "{how}");
            assert_eq!(driver.deaths, usize::from(code.is_none()), "{how}");
            assert!(blocks(&life) >= Kind::Ext4.size(), "{how}: they are there again");
            life.down(&mut driver);
            life.gone(&mut driver);
            end(&part, driver);
        }
    });
}
