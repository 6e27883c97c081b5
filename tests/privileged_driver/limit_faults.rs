//! Every fault point of a directory's limit: the driver dies there, or the step fails there.

use crate::driver::Driver;
use crate::faults::for_each_case;
use crate::life::{Kind, Life, trash_is_empty};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

/// Not always hit: the kernel may have ended a membership by itself, and forgotten a project whose bounds are lifted.
const SOMETIMES: [&str; 2] = ["host.limit.unassign", "host.project.end"];

/// Of directories that were there before: see `import_faults`.
const JOIN: &str = "host.project.join";

fn points(of: &[&str]) -> Vec<&'static str> {
    let ours = |point: &&str| of.iter().any(|start| point.starts_with(start));
    orlop::fault::all()
        .into_iter()
        .filter(ours)
        .filter(|point| !SOMETIMES.contains(point) && *point != JOIN)
        .collect()
}

/// One life with a limit in a driver that dies at a point; whether it died.
fn dies(sandbox: &Sandbox, pool: PoolOn, point: &str) -> bool {
    pool.mount_with_limits(sandbox, 400);
    let mut driver = Driver::start_armed(sandbox, Some(&format!("{point}:abort")));
    let mut life = Life::new(sandbox, Kind::Hostpath, "v").with("quota", "required");
    life.whole(&mut driver);
    poll("the trash is empty, or the driver dead", || driver.is_dead() || trash_is_empty(sandbox));
    let hit = driver.deaths > 0 || driver.is_dead();
    end(sandbox, driver);
    hit
}

/// One life in a driver where a step fails; whether it did.
fn fails(sandbox: &Sandbox, pool: PoolOn, point: &str) -> bool {
    pool.mount_with_limits(sandbox, 400);
    let mut driver = Driver::start(sandbox);
    driver.kill();
    driver.start_again(Some(&format!("{point}:EIO")));
    let mut life = Life::new(sandbox, Kind::Hostpath, "v").with("quota", "required");
    life.whole(&mut driver);
    let told = |driver: &Driver| {
        let log = driver.log();
        ["cannot remove from the trash", "cannot lift its limit"]
            .iter()
            .any(|text| log.contains(text))
    };
    poll("the trash was looked at", || {
        !driver.injected.is_empty() || told(&driver) || trash_is_empty(sandbox)
    });
    let hit = !driver.injected.is_empty() || told(&driver);
    driver.restart();
    end(sandbox, driver);
    hit
}

fn every_point(sandbox: &Sandbox, pool: PoolOn, of: &[&str]) {
    for_each_case(&sandbox.sub("abort"), points(of), &[Kind::Hostpath], |sandbox, _, point| {
        dies(sandbox, pool, point)
    })
    .check("abort");
    for_each_case(&sandbox.sub("eio"), points(of), &[Kind::Hostpath], |sandbox, _, point| {
        fails(sandbox, pool, point)
    })
    .check("EIO");
}

#[test]
fn limits_of_btrfs_survive_a_death_or_a_failure_anywhere() {
    privileged(|sandbox| every_point(sandbox, PoolOn::Btrfs, &["backend.limit.", "host.limit."]));
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn limits_with_a_project_quota_survive_a_death_or_a_failure_anywhere() {
    privileged(|sandbox| every_point(sandbox, PoolOn::Xfs, &["backend.limit.", "host.project."]));
}
