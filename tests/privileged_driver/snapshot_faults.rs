//! Every fault point on the way of snapshots, copies and groups: the driver dies there, or the step fails there.

use tonic::Code;

use crate::client_snapshots::from_snapshot;
use crate::driver::Driver;
use crate::faults::for_each_case;
use crate::life::{Kind, Life, read, trash_is_empty, write};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

/// hostpath is on btrfs, so that it is a subvolume snapshot; the others are where each gets its own code.
const KINDS: [Kind; 3] = [Kind::Hostpath, Kind::Ext4, Kind::Xfs];

const fn pool_of(kind: Kind) -> PoolOn {
    match kind {
        Kind::Hostpath | Kind::Ext4 => PoolOn::Btrfs,
        Kind::Xfs | Kind::Btrfs | Kind::Block => PoolOn::Xfs,
    }
}

/// The points that a copy or its deletion passes. Which of them need no copy is the business of `faults`.
fn points() -> Vec<&'static str> {
    let ours = [
        "engine.freeze.",
        "backend.copy.",
        "host.renew.",
        "store.begin.",
        "store.commit.",
        "store.bury.",
        "store.remove.",
        "store.write.",
    ];
    let mut points = orlop::fault::all();
    points.retain(|point| ours.iter().any(|beginning| point.starts_with(beginning)));
    // What is copied file by file is never on btrfs: the next test has it.
    points.retain(|point| *point != "backend.copy.walked");
    points
}

#[test]
fn a_driver_that_dies_anywhere_in_a_copy_finishes_after_its_restart() {
    privileged(|sandbox| {
        let run = |sandbox: &Sandbox, kind, point: &str| {
            life(sandbox, pool_of(kind), kind, &format!("{point}:abort"), None)
        };
        for_each_case(sandbox, points(), &KINDS, run).check("abort in copies");
    });
}

#[test]
fn a_step_of_a_copy_that_fails_is_taken_back_and_can_be_repeated() {
    privileged(|sandbox| {
        let run = |sandbox: &Sandbox, kind, point: &str| {
            life(sandbox, pool_of(kind), kind, &format!("{point}:ENOSPC"), Some(no_space))
        };
        for_each_case(sandbox, points(), &KINDS, run).check("ENOSPC in copies");
    });
}

#[test]
fn a_copy_file_by_file_begins_again() {
    privileged(|sandbox| {
        for fault in ["backend.copy.walked:abort", "backend.copy.walked:ENOSPC"] {
            let code = (!fault.ends_with("abort")).then_some(no_space as fn(&str) -> Code);
            let sandbox = sandbox.sub(fault);
            assert!(life(&sandbox, PoolOn::Ext4, Kind::Hostpath, fault, code), "{fault}");
        }
    });
}

/// What a step answers when the disk is full.
fn no_space(step: &str) -> Code {
    match step {
        "snapshot" | "group" | "restore" => Code::ResourceExhausted,
        _ => Code::Internal,
    }
}

/// Copies of a volume in use, in a driver with a fault; whether it struck.
fn life(
    sandbox: &Sandbox,
    pool: PoolOn,
    kind: Kind,
    fault: &str,
    code: Option<fn(&str) -> Code>,
) -> bool {
    pool.mount(sandbox, 1300);
    let mut driver = Driver::start(sandbox);
    let mut source = Life::new(sandbox, kind, "source");
    source.born(&mut driver);
    source.up(&mut driver);
    write(kind, &source.target, "one");
    if pool == PoolOn::Ext4 {
        source.down(&mut driver);
    }
    driver.kill();
    driver.start_again(Some(fault));
    let snapshot = driver.insist("snapshot", |c| c.snapshot("s", &source.id)).snapshot_id;
    let group = driver.insist("group", |c| c.group("g", &[&source.id]));
    let mut copy = Life::new(sandbox, kind, "copy");
    let create = copy.create.clone();
    let from = from_snapshot(&snapshot);
    copy.id = driver.insist("restore", |c| c.create_from(&create, from.clone())).volume_id;
    assert_eq!(driver.client.snapshots().len(), 2);
    copy.up(&mut driver);
    assert_eq!(read(kind, &copy.target), "one");
    write(kind, &copy.target, "copy");
    copy.down(&mut driver);
    driver.insist("delete snapshot", |c| c.delete_snapshot(&snapshot));
    driver.insist("delete group", |c| c.delete_group(&group));
    copy.gone(&mut driver);
    if pool != PoolOn::Ext4 {
        source.down(&mut driver);
    }
    source.gone(&mut driver);
    let quiet = "cannot remove from the trash";
    poll("the trash was looked at", || {
        let trash = trash_is_empty(sandbox);
        !driver.injected.is_empty() || driver.is_dead() || driver.log().contains(quiet) || trash
    });
    for (step, status) in &driver.injected {
        let wanted = code.map_or(Code::Internal, |code| code(step));
        assert_eq!(status.code(), wanted, "{fault} at {step} of {kind:?}: {status:?}");
    }
    let dead = driver.is_dead();
    let struck =
        dead || driver.deaths > 0 || !driver.injected.is_empty() || driver.log().contains(quiet);
    driver.restart();
    end(sandbox, driver);
    struck
}
