//! What nobody comes for: loop devices and mounts that are left by a driver that was killed, or by a node that was torn
//! down by hand.

#![expect(clippy::disallowed_methods, reason = "damages a pool as people could")]

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

/// What the check says of loop devices and mounts.
fn told(sandbox: &Sandbox) -> Vec<String> {
    let told = orlop(sandbox, &["pool", "check"]).unwrap_or_else(|told| told);
    let lines = told.lines().filter(|line| line.contains("WRONG"));
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_device_whose_unstage_was_cut_off_goes_without_another_unstage() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "kept");
        driver.client.unpublish(&life.id, &life.target).unwrap();
        driver.kill();
        driver.start_again(Some("engine.unstage.unmounted:abort"));
        driver.client.unstage(&life.id, &life.staging).unwrap_err();
        poll("the driver has died", || driver.is_dead());
        assert_eq!(loops_below(sandbox.dir()).len(), 1, "it died before it detached the device");
        // Kubelet was replaced as well, and does not come again.
        driver.start_again(None);
        poll("the device is detached", || loops_below(sandbox.dir()).is_empty());
        poll("that is said", || {
            driver.log().contains("its volume was unstaged, and nobody has it")
        });
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "kept");
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn what_was_not_seen_unstaged_is_told_and_left() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Block, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        assert_eq!(told(sandbox), Vec::<String>::new());
        // Somebody resets the node.
        run("umount", &[&life.target, &life.staging.join("device")]);
        driver.restart();
        let told_of = told(sandbox);
        let [told_line] = told_of.as_slice() else { panic!("{told_of:?}") };
        let device = format!("/dev/loop{}", loops_below(sandbox.dir())[0].number);
        for part in [device.as_str(), &life.id, "no mount shows it", "losetup -d"] {
            assert!(told_line.contains(part), "{part} in {told_line}");
        }
        let refused = driver.client.delete(&life.id).unwrap_err();
        assert!(refused.message().contains(&format!("`losetup -d {device}`")), "{refused:?}");
        // What the message says helps.
        run("losetup", &["-d", &device]);
        poll("the device is gone", || loops_below(sandbox.dir()).is_empty());
        assert_eq!(told(sandbox), Vec::<String>::new());
        driver.client.unpublish(&life.id, &life.target).unwrap();
        driver.client.unstage(&life.id, &life.staging).unwrap();
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn mounts_of_what_was_deleted_are_told() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut lives = Vec::new();
        let kinds = [Kind::Hostpath, Kind::Hostpath, Kind::Ext4];
        for (kind, name) in kinds.into_iter().zip(["removed", "deleted", "image"]) {
            let mut life = Life::new(sandbox, kind, name);
            life.born(&mut driver);
            life.up(&mut driver);
            lives.push(life);
        }
        assert_eq!(told(sandbox), Vec::<String>::new());
        driver.terminate();
        for life in &lives {
            // By hand, while a pod has it: deleted, and gone altogether.
            let key = life.id.split('-').nth(2).unwrap();
            let grave = sandbox.path("pool/trash").join(format!("{key}.00000000"));
            std::fs::rename(life.dir(), &grave).unwrap();
            if life.create.name == "removed" {
                std::fs::remove_dir_all(grave).unwrap();
            }
        }
        let told_of = told(sandbox);
        for life in &lives {
            for path in [&life.staging, &life.target] {
                // A filesystem is told of once, with the device.
                let path = format!("{}", path.display());
                let count = told_of.iter().filter(|line| line.contains(&path)).count();
                let expected = usize::from(life.kind == Kind::Hostpath || path.contains("staging"));
                assert_eq!(count, expected, "{path} in {told_of:#?}");
            }
        }
        for life in &lives {
            run("umount", &[&life.target, &life.staging]);
        }
        poll("the device has gone", || loops_below(sandbox.dir()).is_empty());
        assert_eq!(told(sandbox), Vec::<String>::new());
        driver.start_again(None);
        for life in &lives {
            driver.client.unpublish(&life.id, &life.target).unwrap();
            driver.client.unstage(&life.id, &life.staging).unwrap();
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
