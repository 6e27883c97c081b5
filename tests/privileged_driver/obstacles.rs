//! What other programs, operators and half-done runs put in the way.

#![expect(clippy::disallowed_methods, reason = "moves pools and records away as an operator could")]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use orlop::host::linux::LinuxHost;
use orlop::host::{Host, LoopOptions};
use orlop::volume::{Allocation, DirectIo};
use tonic::{Code, Status};

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, check_nothing_left, read, write};
use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

fn is_refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) {
    assert_eq!(result.unwrap_err().code(), code);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn mount_tmpfs(at: &Path) {
    run("mount", &["-t", "tmpfs", "somebody-elses", text(at)]);
    std::fs::write(at.join("precious"), "precious").unwrap();
}

fn unmount_intact_tmpfs(at: &Path) {
    assert_eq!(std::fs::read_to_string(at.join("precious")).unwrap(), "precious");
    run("umount", &[at]);
    std::fs::remove_dir(at).unwrap();
}

#[test]
fn what_is_mounted_by_somebody_else_is_refused_and_left_alone() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Hostpath, Kind::Ext4] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            std::fs::create_dir(&life.staging).unwrap();
            mount_tmpfs(&life.staging);
            is_refused(life.try_stage(&driver.client), Code::AlreadyExists);
            is_refused(life.try_publish(&driver.client, &life.target), Code::FailedPrecondition);
            unmount_intact_tmpfs(&life.staging);
            life.up(&mut driver);
            let other = life.other_target("other");
            std::fs::create_dir(&other).unwrap();
            mount_tmpfs(&other);
            is_refused(life.try_publish(&driver.client, &other), Code::AlreadyExists);
            unmount_intact_tmpfs(&other);
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_target_that_holds_files_is_refused_and_left_alone() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            driver.insist("stage", |c| life.try_stage(c));
            std::fs::create_dir(&life.target).unwrap();
            std::fs::write(life.target.join("precious"), "precious").unwrap();
            life.try_publish(&driver.client, &life.target).unwrap_err();
            driver.client.unpublish(&life.id, &life.target).unwrap_err();
            assert_eq!(std::fs::read_to_string(life.target.join("precious")).unwrap(), "precious");
            std::fs::remove_dir_all(&life.target).unwrap();
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

/// A loop device as a stage that was killed half-way leaves it for a raw block volume.
fn attach_half(life: &Life) -> u32 {
    let image = File::options().read(true).write(true).open(life.image()).unwrap();
    let options = LoopOptions {
        label: &life.id,
        read_only: false,
        autoclear: false,
        direct_io: DirectIo::Auto,
        sector: 512,
        allocation: Allocation::Thin,
    };
    let device = LinuxHost::new().attach(image.as_fd(), options).unwrap();
    let number = device.number;
    device.release();
    number
}

fn losetup(image: &Path) -> String {
    run("losetup", &["--find", "--show", text(image)]).trim().to_owned()
}

#[test]
fn a_half_made_loop_device_is_taken_over() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "half");
        life.born(&mut driver);
        let half = attach_half(&life);
        life.up(&mut driver);
        let loops = loops_below(sandbox.dir());
        assert_eq!(loops.iter().map(|found| found.number).collect::<Vec<_>>(), [half]);
        life.down(&mut driver);
        poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
        // One that was made and never staged is found by its label.
        attach_half(&life);
        is_refused(driver.client.delete(&life.id), Code::FailedPrecondition);
        driver.insist("unstage", |c| c.unstage(&life.id, &life.staging));
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn two_loop_devices_on_one_image_are_refused() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Ext4, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            let devices = [losetup(&life.image()), losetup(&life.image())];
            let before = loops_below(sandbox.dir());
            is_refused(life.try_stage(&driver.client), Code::FailedPrecondition);
            is_refused(driver.client.delete(&life.id), Code::FailedPrecondition);
            assert_eq!(loops_below(sandbox.dir()), before, "{kind:?}");
            run("losetup", &["-d", &devices[0]]);
            life.up(&mut driver);
            life.down(&mut driver);
            sandbox.clear();
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn teardown_needs_no_record() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            let (record, away) = (life.dir().join("volume.json"), sandbox.path("record"));
            std::fs::rename(&record, &away).unwrap();
            driver.restart();
            life.down(&mut driver);
            poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
            // A volume whose record is gone is never deleted.
            is_refused(driver.client.delete(&life.id), Code::Internal);
            std::fs::rename(&away, &record).unwrap();
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn teardown_needs_no_pool() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for (kind, restart) in Kind::ALL.into_iter().zip([false, true, false, true]) {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "written before");
            let (pool, away) = (sandbox.path("pool"), sandbox.path("pool.away"));
            std::fs::rename(&pool, &away).unwrap();
            if restart {
                driver.restart();
            }
            is_refused(driver.client.delete(&life.id), Code::Unavailable);
            is_refused(life.try_stage(&driver.client), Code::Unavailable);
            life.down(&mut driver);
            poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
            assert!(!pool.exists(), "a known pool is not made anew");
            std::fs::rename(&away, &pool).unwrap();
            life.up(&mut driver);
            assert_eq!(read(kind, &life.target), "written before");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

/// Takes the staged loop device away and gives its number to another image. `None` when another program was faster.
fn hand_over(sandbox: &Sandbox, life: &Life) -> Option<u32> {
    let number = loops_below(&life.dir())[0].number;
    let device = format!("/dev/loop{number}");
    run("losetup", &["-d", &device]);
    let foreign = sandbox.path("foreign.img");
    File::create(&foreign).unwrap().set_len(4 * MIB).unwrap();
    let attached = std::process::Command::new("losetup").arg(&device).arg(&foreign).status();
    attached.unwrap().success().then_some(number)
}

/// The same, with another device when the number was taken meanwhile: loop devices are everybody's.
pub(crate) fn hand_over_in_the_end(sandbox: &Sandbox, driver: &mut Driver, life: &Life) -> u32 {
    let number = (0..20).find_map(|_| {
        let number = hand_over(sandbox, life);
        if number.is_none() {
            life.down(driver);
            life.up(driver);
        }
        number
    });
    number.expect("a loop device stays free for a moment")
}

#[test]
fn a_loop_number_that_was_handed_to_somebody_else_is_left_alone() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        let number = hand_over_in_the_end(sandbox, &mut driver, &life);
        let foreign = || {
            let loops = loops_below(&sandbox.path("foreign.img"));
            loops.first().map(|found| found.number)
        };
        assert_eq!(foreign(), Some(number));
        let client = &driver.client;
        is_refused(life.try_stage(client), Code::AlreadyExists);
        is_refused(life.try_publish(client, &life.other_target("o")), Code::FailedPrecondition);
        is_refused(life.try_publish(client, &life.target), Code::FailedPrecondition);
        is_refused(client.stats(&life.id, &life.target), Code::NotFound);
        is_refused(client.node_expand(&life.id, &life.target, 16 * MIB), Code::NotFound);
        life.down(&mut driver);
        assert_eq!(foreign(), Some(number), "the foreign image keeps its loop device");
        run("losetup", &["-d", &format!("/dev/loop{number}")]);
        life.up(&mut driver);
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}
