//! Every step of every request, one by one: the driver dies just before it or just after it, or it fails.
//!
//! A case is a request with what comes before and after. It is repeated with the first point armed that the driver passes
//! in it, then with the second, until nothing is struck any more. So no list says where it can break: what the driver does
//! is what is tried. Each time the request must end well when it is repeated, and the contents must be right.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "writes the plan and says how many cases there were"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use tonic::Code;

use crate::driver::Driver;
use crate::life::{Life, check_nothing_left, trash_is_empty};
use crate::pools::end;
use crate::privileged::{Sandbox, can_grow_mounted_ext4, poll, privileged};
use crate::step_cases::{CASES, Case};

/// Requests that never end would go on for ever.
const MOST: usize = 400;
/// At once: most of the time is the disk's.
const WORKERS: usize = 3;

/// A program that was started is killed here.
const HELPER: &str = "host.command.started";

/// Points that no request passes here, and why.
const ELSEWHERE: [(&str, &str); 4] = [
    ("step.host.join_limit", "imports into pools with project quotas only"),
    ("step.host.enable_quota", "managed pools only"),
    ("step.pool.", "managed pools only"),
    ("step.store.progress", "copies that take longer than a second"),
];

/// One time through a case.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) driver: Driver,
    pub(crate) life: Life,
    /// Another volume that comes of it.
    pub(crate) copy: Life,
    /// The ids of what comes of it beside volumes.
    pub(crate) snapshot: String,
    pub(crate) group: Option<orlop::csi::proto::VolumeGroupSnapshot>,
    pub(crate) number: usize,
    /// What the volume showed before it grew.
    pub(crate) before: u64,
}

impl World {
    fn next(sandbox: &Sandbox, driver: Driver, case: &Case, number: usize) -> Self {
        let life = |name: &str| {
            let life = Life::new(sandbox, case.kind, &format!("{name}-{number}"));
            case.with.iter().fold(life, |life, (name, value)| life.with(name, value))
        };
        Self {
            sandbox: sandbox.clone(),
            driver,
            life: life("v"),
            copy: life("copy"),
            snapshot: String::new(),
            group: None,
            number,
            before: 0,
        }
    }
}

/// Where it struck, if it did.
fn once(world: &mut World, case: &Case, action: &str) -> Option<String> {
    (case.before)(world);
    let (plan, struck) = (world.driver.plan(), world.driver.struck());
    std::fs::write(&plan, format!("{}:{action}", world.number)).unwrap();
    (case.request)(world);
    // What goes on behind the scenes belongs to it.
    poll("the trash is empty, or what empties it was struck", || {
        trash_is_empty(&world.sandbox) || !plan.exists()
    });
    let point = match std::fs::remove_file(&plan) {
        Ok(()) => None,
        Err(_taken) => {
            poll("the point that struck is named", || struck.exists());
            Some(std::fs::read_to_string(&struck).unwrap())
        }
    };
    if point.is_some() {
        std::fs::remove_file(&struck).unwrap();
    }
    let told = std::mem::take(&mut world.driver.injected);
    for (step, status) in &told {
        let is_final = !matches!(
            status.code(),
            Code::Aborted | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown
        );
        assert!(is_final && !status.message().is_empty(), "{step}: {status:?}");
    }
    // A failure behind the scenes is tried again by and by, and by the next start at once.
    let is_unheard = point.is_some() && told.is_empty();
    if world.driver.is_dead() || is_unheard || !trash_is_empty(&world.sandbox) {
        world.driver.restart();
    }
    (case.after)(world);
    check_nothing_left(&world.sandbox, &mut world.driver);
    point
}

/// All points of a case, in order.
fn all_of(sandbox: &Sandbox, case: &Case, action: &str) -> Vec<String> {
    if case.limits {
        case.pool.mount_with_limits(sandbox, case.size);
    } else {
        case.pool.mount(sandbox, case.size);
    }
    let mut driver = Driver::start_with_flags(sandbox, case.flags);
    driver.patient = true;
    let mut points = Vec::new();
    for number in 1..=MOST {
        let mut world = World::next(sandbox, driver, case, number);
        let outcome = catch_unwind(AssertUnwindSafe(|| once(&mut world, case, action)));
        let point = outcome.unwrap_or_else(|panic| {
            println!(
                "FAILED {}: {action} at point {number}, behind {:?}",
                case.name,
                points.last()
            );
            resume_unwind(panic)
        });
        driver = world.driver;
        let Some(point) = point else {
            end(sandbox, driver);
            return points;
        };
        points.push(point);
    }
    panic!("{}: it does not end", case.name);
}

/// Every case with every point, some cases at once; the points that were struck, by case.
fn every_case(sandbox: &Sandbox, action: &str) -> BTreeMap<&'static str, Vec<String>> {
    let only = std::env::var("ORLOP_CASE").unwrap_or_default();
    let waiting = Mutex::new(CASES.iter().filter(|case| case.name.contains(&only)));
    let (done, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let Some(case) = waiting.lock().unwrap().next() else { return };
            let part = sandbox.sub(case.name);
            let run = catch_unwind(AssertUnwindSafe(|| all_of(&part, case, action)));
            match run {
                Ok(points) => {
                    println!("{}: {} points", case.name, points.len());
                    done.lock().unwrap().insert(case.name, points);
                }
                Err(_printed) => {
                    failed.lock().unwrap().push(case.name);
                    // What a failed case leaves must not fail the leak check instead.
                    part.clear();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(work);
        }
    });
    assert_eq!(failed.into_inner().unwrap(), Vec::<&str>::new());
    done.into_inner().unwrap()
}

fn report(what: &str, done: &BTreeMap<&str, Vec<String>>) {
    let points: Vec<&String> = done.values().flatten().collect();
    let names: BTreeSet<&str> = points.iter().map(|point| point.as_str()).collect();
    println!(
        "{what}: {} cases of {} requests at {} points; nothing was lost",
        points.len(),
        done.len(),
        names.len()
    );
    if std::env::var_os("ORLOP_CASE").is_some() {
        return;
    }
    let grows_mounted = can_grow_mounted_ext4();
    let missed = orlop::fault::all().into_iter().filter(|point| {
        if grows_mounted && *point == "step.host.grow_unmounted" {
            return false;
        }
        (point.starts_with("step.") || *point == HELPER)
            && !names.contains(point)
            && !ELSEWHERE.iter().any(|(beginning, _)| point.starts_with(beginning))
    });
    assert_eq!(missed.collect::<Vec<_>>(), Vec::<&str>::new(), "never struck");
}

#[test]
fn a_driver_that_dies_before_or_after_any_step_finishes_after_its_restart() {
    privileged(|sandbox| report("abort", &every_case(sandbox, "abort")));
}

/// Every step fails once with that, is taken back, and the request is repeated.
fn failing_with(sandbox: &Sandbox, errno: &str) {
    report(errno, &every_case(sandbox, errno));
}

#[test]
fn a_step_that_finds_the_disk_full_is_taken_back_and_can_be_repeated() {
    privileged(|sandbox| failing_with(sandbox, "ENOSPC"));
}

#[test]
fn a_step_that_finds_the_disk_broken_is_taken_back_and_can_be_repeated() {
    privileged(|sandbox| failing_with(sandbox, "EIO"));
}

#[test]
fn a_step_that_finds_the_quota_spent_is_taken_back_and_can_be_repeated() {
    privileged(|sandbox| failing_with(sandbox, "EDQUOT"));
}
