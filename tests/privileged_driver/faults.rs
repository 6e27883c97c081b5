//! Every fault point, for every kind of volume: the driver dies there, or the step fails there. `snapshots` has the lives of
//! volumes that are copied.

#![expect(clippy::print_stdout, reason = "says how many cases there were")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use tonic::{Code, Status};

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, trash_is_empty};
use crate::privileged::{Sandbox, poll, privileged};

/// What became of the cases of one test.
#[derive(Debug)]
pub(crate) struct Cases {
    points: Vec<&'static str>,
    kinds: usize,
    hit: Vec<(&'static str, Kind)>,
    failed: Vec<(&'static str, Kind)>,
}

/// The beginnings of the points that other tests have: those of `inline`, `snapshots`, `managed`, `limit_faults`,
/// `import_faults` and `steps`.
const ELSEWHERE: [&str; 14] = [
    "step.",
    "host.command.",
    "engine.inline.",
    "engine.freeze.",
    "backend.copy.",
    "host.renew.",
    "managed.",
    "backend.limit.",
    "host.limit.",
    "host.project.",
    "host.quota.",
    "backend.image.reserving",
    "store.import.",
    "engine.import.",
];

/// The points of this driver in the life of a volume that begins empty and has a claim.
fn points() -> Vec<&'static str> {
    let here = |point: &&str| !ELSEWHERE.iter().any(|elsewhere| point.starts_with(elsewhere));
    orlop::fault::all().into_iter().filter(here).collect()
}

/// Runs every point with every kind, the kinds at once, each case in a directory of its own. A case answers whether its
/// point was hit; one that panics does not hold up the others.
pub(crate) fn for_each_case(
    sandbox: &Sandbox,
    points: Vec<&'static str>,
    kinds: &[Kind],
    run: impl Fn(&Sandbox, Kind, &str) -> bool + Sync,
) -> Cases {
    let one_kind = |kind: Kind| {
        let (mut hit, mut failed) = (Vec::new(), Vec::new());
        for point in &points {
            let sandbox = sandbox.sub(&format!("{kind:?}/{point}"));
            match catch_unwind(AssertUnwindSafe(|| run(&sandbox, kind, point))) {
                Ok(true) => hit.push((*point, kind)),
                Ok(false) => {}
                Err(_printed) => failed.push((*point, kind)),
            }
            // What a failed case leaves must not fail the leak check instead.
            sandbox.clear();
        }
        (hit, failed)
    };
    let (mut hit, mut failed) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let one_kind = &one_kind;
        let threads: Vec<_> =
            kinds.iter().map(|kind| scope.spawn(move || one_kind(*kind))).collect();
        for thread in threads {
            let (more_hit, more_failed) = thread.join().unwrap();
            hit.extend(more_hit);
            failed.extend(more_failed);
        }
    });
    Cases { points, kinds: kinds.len(), hit, failed }
}

impl Cases {
    /// No case failed, and every point was hit by some kind.
    pub(crate) fn check(&self, what: &str) {
        let Self { points, kinds, hit, failed } = self;
        println!("{what}: hit {} cases of {} points x {kinds} kinds", hit.len(), points.len());
        assert!(failed.is_empty(), "failed: {failed:?}");
        let is_hit = |point: &&&str| hit.iter().any(|(hit, _)| hit == *point);
        let missed: Vec<_> = points.iter().filter(|point| !is_hit(point)).collect();
        assert!(!points.is_empty() && missed.is_empty(), "never hit: {missed:?}");
    }
}

#[test]
fn a_driver_that_dies_anywhere_finishes_after_its_restart() {
    privileged(|sandbox| {
        for_each_case(sandbox, points(), &Kind::ALL, life_with_death).check("abort");
    });
}

/// One life in a driver that dies at a point; whether it died. The pool is new, so that its birth is part of it.
fn life_with_death(sandbox: &Sandbox, kind: Kind, point: &str) -> bool {
    let mut driver = Driver::start_armed(sandbox, Some(&format!("{point}:abort")));
    let mut life = Life::new(sandbox, kind, "v");
    life.whole(&mut driver);
    check_nothing_left(sandbox, &mut driver);
    driver.deaths > 0
}

#[test]
fn a_step_without_space_fails_with_the_right_code_and_can_be_repeated() {
    let code = |step: &str| match step {
        "create" => Code::ResourceExhausted,
        "expand" => Code::OutOfRange,
        _ => Code::Internal,
    };
    privileged(|sandbox| every_step_fails(sandbox, "ENOSPC", code));
}

#[test]
fn a_step_with_an_io_error_fails_with_the_right_code_and_can_be_repeated() {
    privileged(|sandbox| every_step_fails(sandbox, "EIO", |_step| Code::Internal));
}

fn every_step_fails(sandbox: &Sandbox, errno: &str, code: fn(&str) -> Code) {
    let run = |sandbox: &Sandbox, kind, point: &str| {
        life_with_error(sandbox, kind, &format!("{point}:{errno}"), code)
    };
    let mut points = points();
    points.retain(|point| *point != POOL_BIRTH);
    for_each_case(sandbox, points, &Kind::ALL, run).check(errno);
    pool_birth_with_error(&sandbox.sub("birth"), errno);
}

/// One life in a driver where a step fails; whether it did. The pool exists before.
fn life_with_error(sandbox: &Sandbox, kind: Kind, fault: &str, code: fn(&str) -> Code) -> bool {
    let mut driver = Driver::start(sandbox);
    driver.kill();
    driver.start_again(Some(fault));
    let mut life = Life::new(sandbox, kind, "v");
    life.whole(&mut driver);
    // The trash is emptied behind the scenes: a failure there is nobody's answer, and is tried again.
    let quiet = "cannot remove from the trash";
    poll("the trash was looked at", || {
        !driver.injected.is_empty() || driver.log().contains(quiet) || trash_is_empty(sandbox)
    });
    let hit = !driver.injected.is_empty() || driver.log().contains(quiet);
    for (step, status) in &driver.injected {
        assert_eq!(status.code(), code(step), "{fault} at {step} of {kind:?}: {status:?}");
        assert!(!status.message().is_empty());
    }
    driver.restart();
    check_nothing_left(sandbox, &mut driver);
    hit
}

/// The point in the birth of a pool, which is no volume's step.
const POOL_BIRTH: &str = "store.init.directories";

/// A pool that cannot be made is away, harms nobody, and is made by the next start.
fn pool_birth_with_error(sandbox: &Sandbox, errno: &str) {
    let mut driver = Driver::start_armed(sandbox, Some(&format!("{POOL_BIRTH}:{errno}")));
    let mut life = Life::new(sandbox, Kind::Hostpath, "v");
    let refused: Status = driver.client.create(&life.create).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    driver.restart();
    life.whole(&mut driver);
    check_nothing_left(sandbox, &mut driver);
}
