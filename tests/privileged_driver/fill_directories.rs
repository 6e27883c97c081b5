//! Hostpath volumes filled to the brim: each is held to its size, nobody else notices, and what is full goes on working.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "runs programs as a pod does, and says what was measured"
)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::client_snapshots::{from_snapshot, from_volume};
use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, trash_is_empty};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

/// Whose the pods are: on ext4 a process with CAP_SYS_RESOURCE is not held.
const USER: u32 = 12345;
const SIZE: u64 = 256 * MIB;

/// How a program of a pod ended: what it complained of, if anything.
fn as_pod(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap_or_else(|e| panic!("cannot run {program}: {e}"));
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Writes so many MiB to the beginning of a file, and flushes it.
fn overwrite(file: &Path, mebibytes: u64) -> Result<(), String> {
    let (target, count) = (format!("of={}", file.display()), format!("count={mebibytes}"));
    as_pod("dd", &["if=/dev/urandom", &target, &count, "bs=1M", "conv=fsync,notrunc"])
}

/// A volume of that size, up, with a root directory for everybody.
fn up(sandbox: &Sandbox, driver: &mut Driver, name: &str, size: u64) -> Life {
    let mut life = Life::new(sandbox, Kind::Hostpath, name).with("quota", "required");
    life.create.bytes = size;
    life.born(driver);
    life.up(driver);
    life
}

fn start(sandbox: &Sandbox, pool: PoolOn, size: u64) -> Driver {
    pool.mount_with_limits(sandbox, size);
    let driver = Driver::start(sandbox);
    // The pods are nobody in particular and have to get there.
    for dir in [sandbox.dir().to_owned(), sandbox.path("kubelet")] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o711)).unwrap();
    }
    driver
}

fn available(path: &Path) -> u64 {
    let seen = nix::sys::statvfs::statvfs(path).unwrap();
    seen.blocks_available() * seen.fragment_size()
}

/// Makes a file longer until the volume is full, and answers how long it is.
fn brim(life: &Life, size: u64) -> u64 {
    let file = life.target.join("fill");
    let target = format!("of={}", file.display());
    let append = ["if=/dev/zero", &target, "bs=64K", "oflag=append", "conv=fsync,notrunc"];
    let complaint = as_pod("dd", &append).unwrap_err();
    assert!(
        complaint.contains("Disk quota exceeded") || complaint.contains("No space left"),
        "{complaint}"
    );
    let length = std::fs::metadata(file).unwrap().len();
    println!(
        "{length} of {size} bytes: {} ppm short",
        (size.saturating_sub(length)) * 1_000_000 / size
    );
    assert!(length <= size && length >= size - size / 100, "{length} of {size}");
    length
}

/// Used and total bytes as NodeGetVolumeStats tells them.
fn stats(driver: &Driver, life: &Life) -> (u64, u64) {
    let usage = driver.client.stats(&life.id, &life.target).unwrap();
    let bytes = |number: i64| u64::try_from(number).unwrap();
    (bytes(usage[0].used), bytes(usage[0].total))
}

fn filled(sandbox: &Sandbox, pool: PoolOn) {
    let mut driver = start(sandbox, pool, 1400);
    let before = available(&sandbox.path("pool"));
    let full = up(sandbox, &mut driver, "full", SIZE);
    let neighbour = up(sandbox, &mut driver, "neighbour", SIZE);
    brim(&full, SIZE);
    overwrite(&neighbour.target.join("fill"), SIZE / MIB / 2).unwrap();
    poll("the figures are those of the volume", || {
        let (used, total) = stats(&driver, &full);
        total == SIZE && (SIZE - SIZE / 100..=SIZE).contains(&used)
    });
    assert!(available(&sandbox.path("pool")) > before - 2 * SIZE, "the pool fills");
    // What is full can be emptied and filled again.
    as_pod("rm", &[full.target.join("fill").to_str().unwrap()]).unwrap();
    brim(&full, SIZE);
    let grown = SIZE + 64 * MIB;
    driver.client.expand(&full.id, grown).unwrap();
    driver.client.node_expand(&full.id, &full.target, grown).unwrap();
    brim(&full, grown);
    driver.restart();
    brim(&full, grown);
    for life in [full, neighbour] {
        life.down(&mut driver);
        life.gone(&mut driver);
    }
    end(sandbox, driver);
}

#[test]
fn a_directory_of_a_btrfs_is_held_to_its_size() {
    privileged(|sandbox| filled(sandbox, PoolOn::Btrfs));
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_directory_with_a_project_quota_of_ext4_is_held_to_its_size() {
    privileged(|sandbox| filled(sandbox, PoolOn::Ext4));
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_directory_with_a_project_quota_of_xfs_is_held_to_its_size() {
    privileged(|sandbox| filled(sandbox, PoolOn::Xfs));
}

/// Many files in many directories until the volume is full, then a copy of the same size.
fn copied(sandbox: &Sandbox, pool: PoolOn) {
    let mut driver = start(sandbox, pool, 700);
    let full = up(sandbox, &mut driver, "full", 32 * MIB);
    let script = "i=0; while mkdir d$i && head -c 5000 /dev/zero >d$i/f && head -c 70000 /dev/zero >d$i/g; do i=$((i+1)); done; sync -f .; exit 0";
    as_pod("sh", &["-c", &format!("cd {} || exit 1; {script}", full.target.display())]).unwrap();
    brim_with_what_is_left(&full);
    full.down(&mut driver);
    let mut clone = Life::new(sandbox, Kind::Hostpath, "clone").with("quota", "required");
    clone.create.bytes = 32 * MIB;
    let create = clone.create.clone();
    clone.id = driver.client.create_from(&create, from_volume(&full.id)).unwrap().volume_id;
    for life in [&full, &clone] {
        life.up(&mut driver);
    }
    let same = ["-r", full.target.to_str().unwrap(), clone.target.to_str().unwrap()];
    crate::privileged::run("diff", &same);
    // What is full is full in the copy as well.
    let more = clone.target.join("more");
    overwrite(&more, 2).unwrap_err();
    for life in [full, clone] {
        life.down(&mut driver);
        life.gone(&mut driver);
    }
    end(sandbox, driver);
}

/// Single blocks until not one more goes in.
fn brim_with_what_is_left(life: &Life) {
    let target = format!("of={}", life.target.join("rest").display());
    let append = ["if=/dev/zero", &target, "bs=4K", "oflag=append", "conv=fsync,notrunc"];
    as_pod("dd", &append).unwrap_err();
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_full_directory_of_ext4_can_be_cloned_at_its_size() {
    privileged(|sandbox| copied(sandbox, PoolOn::Ext4));
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_full_directory_of_xfs_can_be_cloned_at_its_size() {
    privileged(|sandbox| copied(sandbox, PoolOn::Xfs));
}

#[test]
fn a_full_directory_can_be_rewritten_after_a_snapshot() {
    privileged(|sandbox| {
        let mut driver = start(sandbox, PoolOn::Btrfs, 2600);
        let full = up(sandbox, &mut driver, "full", SIZE);
        let length = brim(&full, SIZE);
        let snapshot = driver.client.snapshot("snap", &full.id).unwrap();
        overwrite(&full.target.join("fill"), length / MIB).unwrap();
        // And what was restored from it, which is as full.
        let mut restored = Life::new(sandbox, Kind::Hostpath, "restored").with("quota", "required");
        restored.create.bytes = SIZE;
        let create = restored.create.clone();
        let source = from_snapshot(&snapshot.snapshot_id);
        restored.id = driver.client.create_from(&create, source).unwrap().volume_id;
        restored.up(&mut driver);
        let file = restored.target.join("fill");
        assert_eq!(std::fs::metadata(&file).unwrap().len(), length);
        overwrite(&file, length / MIB).unwrap();
        let mut clone = Life::new(sandbox, Kind::Hostpath, "clone").with("quota", "required");
        clone.create.bytes = SIZE;
        let create = clone.create.clone();
        clone.id = driver.client.create_from(&create, from_volume(&full.id)).unwrap().volume_id;
        clone.up(&mut driver);
        for life in [&full, &clone] {
            overwrite(&life.target.join("fill"), length / MIB).unwrap();
        }
        driver.client.delete_snapshot(&snapshot.snapshot_id).unwrap();
        for life in [restored, clone] {
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        poll("the trash is empty", || trash_is_empty(sandbox));
        // Nothing is shared any more, so the volume has its size again.
        as_pod("rm", &[full.target.join("fill").to_str().unwrap()]).unwrap();
        brim(&full, SIZE);
        full.down(&mut driver);
        full.gone(&mut driver);
        end(sandbox, driver);
    });
}
