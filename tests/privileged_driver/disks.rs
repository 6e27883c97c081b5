//! Disks of pools that are not there after a reboot, come late, and move to another node.

use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, read, write};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged, run};

const KINDS: [Kind; 3] = [Kind::Hostpath, Kind::Ext4, Kind::Block];

/// Mounts the disk of a pool again, where it was or elsewhere.
fn mount(disk_of: &Sandbox, at: &Sandbox) {
    let (image, pool) = (disk_of.path("pool.img"), at.make_dir("pool"));
    run("mount", &["-o", "loop", image.to_str().unwrap(), pool.to_str().unwrap()]);
}

fn unmount(sandbox: &Sandbox) {
    run("umount", &[sandbox.path("pool")]);
}

/// Volumes with data, that nobody uses.
fn with_data(sandbox: &Sandbox, driver: &mut Driver) -> Vec<Life> {
    let mut lives: Vec<_> =
        KINDS.iter().map(|kind| Life::new(sandbox, *kind, &format!("{kind:?}"))).collect();
    for life in &mut lives {
        life.born(driver);
        life.up(driver);
        write(life.kind, &life.target, "on the disk");
        life.down(driver);
    }
    lives
}

fn entries(sandbox: &Sandbox) -> usize {
    std::fs::read_dir(sandbox.path("pool")).unwrap().count()
}

#[test]
fn a_disk_that_comes_late_is_missed_and_not_replaced() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            late(&sandbox.sub(&format!("{pool:?}")), pool);
        }
    });
}

fn late(sandbox: &Sandbox, pool: PoolOn) {
    pool.mount(sandbox, 600);
    let mut driver = Driver::start(sandbox);
    let lives = with_data(sandbox, &mut driver);
    driver.kill();
    unmount(sandbox);
    // With --init-pools: an empty directory that never was a pool would become one.
    driver.start_again(None);
    for life in &lives {
        let refused = life.try_stage(&driver.client).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        let refused = driver.client.create(&life.create).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "the volume may be on the disk: {refused:?}");
        let refused = driver.client.delete(&life.id).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    let other = Life::new(sandbox, Kind::Hostpath, "other");
    let refused = driver.client.create(&other.create).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert_eq!(entries(sandbox), 0, "nothing was made on the disk below");
    mount(sandbox, sandbox);
    poll("the pool is back", || lives[0].try_stage(&driver.client).is_ok());
    for life in &lives {
        let again = driver.insist("create", |c| c.create(&life.create));
        assert_eq!(again.volume_id, life.id, "it is the one from before");
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "on the disk");
        life.down(&mut driver);
        life.gone(&mut driver);
    }
    end(sandbox, driver);
}

#[test]
fn a_disk_that_moves_to_another_node_brings_its_volumes() {
    privileged(|sandbox| {
        let (old, new) = (sandbox.sub("old"), sandbox.sub("new"));
        PoolOn::Xfs.mount(&old, 600);
        let mut driver = Driver::start(&old);
        let lives = with_data(&old, &mut driver);
        let snapshot = driver.client.snapshot("s", &lives[2].id).unwrap().snapshot_id;
        drop(driver);
        unmount(&old);
        mount(&old, &new);
        let mut driver = Driver::start(&new);
        let mut listed = driver.client.volumes();
        listed.sort();
        let mut ids: Vec<_> = lives.iter().map(|life| life.id.clone()).collect();
        ids.sort();
        assert_eq!(listed, ids);
        assert_eq!(driver.client.snapshots()[0].snapshot_id, snapshot);
        for life in &lives {
            let mut here = Life::new(&new, life.kind, &format!("{:?}", life.kind));
            here.id.clone_from(&life.id);
            here.up(&mut driver);
            assert_eq!(read(here.kind, &here.target), "on the disk");
            here.down(&mut driver);
            // A repeated creation finds it there as well.
            let again = driver.insist("create", |c| c.create(&here.create));
            assert_eq!(again.volume_id, life.id);
            here.gone(&mut driver);
        }
        driver.client.delete_snapshot(&snapshot).unwrap();
        end(&new, driver);
    });
}
