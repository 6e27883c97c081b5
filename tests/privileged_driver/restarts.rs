//! Orderly and disorderly ends of the driver and of the machine, with volumes in use.

use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, write};
use crate::privileged::kernel::LoopOnFile;
use crate::privileged::{Sandbox, loops_below, mounts_below, poll, privileged};

/// Kills the driver, starts it again, and compares the loop devices before and after.
fn restart_changes_nothing(sandbox: &Sandbox, driver: &mut Driver) -> Vec<LoopOnFile> {
    let before = (loops_below(sandbox.dir()), mounts_below(sandbox.dir()));
    driver.restart();
    let after = (loops_below(sandbox.dir()), mounts_below(sandbox.dir()));
    assert_eq!(before, after);
    after.0
}

#[test]
fn a_restart_between_any_two_calls_leaves_loops_and_mounts_as_they_are() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            assert_eq!(restart_changes_nothing(sandbox, &mut driver), Vec::new());
            driver.insist("stage", |c| life.try_stage(c));
            let staged = restart_changes_nothing(sandbox, &mut driver);
            check_autoclear(kind, &staged);
            driver.insist("publish", |c| life.try_publish(c, &life.target));
            let published = restart_changes_nothing(sandbox, &mut driver);
            assert_eq!(staged, published, "publishing needs no loop device of its own");
            driver.insist("expand", |c| c.expand(&life.id, kind.grown()));
            restart_changes_nothing(sandbox, &mut driver);
            driver.insist("unpublish", |c| c.unpublish(&life.id, &life.target));
            assert_eq!(restart_changes_nothing(sandbox, &mut driver), staged);
            driver.insist("unstage", |c| c.unstage(&life.id, &life.staging));
            poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
            restart_changes_nothing(sandbox, &mut driver);
            life.gone(&mut driver);
            check_nothing_left(sandbox, &mut driver);
        }
    });
}

/// A mounted filesystem holds its loop device, so that one goes with the mount. A bound device node does not.
fn check_autoclear(kind: Kind, loops: &[LoopOnFile]) {
    let expected = match kind {
        Kind::Hostpath => vec![],
        Kind::Ext4 | Kind::Xfs | Kind::Btrfs => vec![true],
        Kind::Block => vec![false],
    };
    let autoclear: Vec<_> = loops.iter().map(|found| found.autoclear).collect();
    assert_eq!(autoclear, expected, "{kind:?}");
}

#[test]
fn a_stopped_driver_leaves_volumes_mounted_and_its_successor_goes_on() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            let before = (loops_below(sandbox.dir()), mounts_below(sandbox.dir()));
            assert_eq!(driver.terminate().code(), Some(0), "{}", driver.log());
            assert!(!sandbox.path("csi.sock").exists(), "a stop removes the socket");
            assert_eq!(before, (loops_below(sandbox.dir()), mounts_below(sandbox.dir())));
            write(kind, &life.target, "written without a driver");
            driver.start_again(None);
            life.up(&mut driver);
            assert_eq!(before, (loops_below(sandbox.dir()), mounts_below(sandbox.dir())));
            assert_eq!(read(kind, &life.target), "written without a driver");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_stop_does_not_wait_for_a_client_that_says_nothing() {
    privileged(|sandbox| {
        let driver = Driver::start(sandbox);
        let silent = std::os::unix::net::UnixStream::connect(sandbox.path("csi.sock")).unwrap();
        assert_eq!(driver.terminate().code(), Some(0), "{}", driver.log());
        drop(silent);
    });
}

#[test]
fn after_a_reboot_volumes_are_staged_and_published_again_with_their_data() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut lives: Vec<_> =
            Kind::ALL.iter().map(|kind| Life::new(sandbox, *kind, &format!("{kind:?}"))).collect();
        for life in &mut lives {
            life.born(&mut driver);
            life.up(&mut driver);
            write(life.kind, &life.target, "written before the reboot");
        }
        driver.kill();
        sandbox.clear();
        poll("the loop devices are gone", || loops_below(sandbox.dir()).is_empty());
        driver.start_again(None);
        // Kubelet comes back in any order; the files and directories that were mounted on are still there.
        for life in lives.iter().rev() {
            let early = life.try_publish(&driver.client, &life.target).unwrap_err();
            assert_eq!(early.code(), Code::FailedPrecondition, "{early:?}");
        }
        for life in lives.iter().rev() {
            life.up(&mut driver);
            assert_eq!(read(life.kind, &life.target), "written before the reboot");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn after_a_reboot_volumes_can_be_taken_down_at_once() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            driver.kill();
            sandbox.clear();
            driver.start_again(None);
            life.down(&mut driver);
            life.down(&mut driver);
            life.gone(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
