//! Snapshots, restores, clones and groups, with real contents on real filesystems.

#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "says which case is at work, and damages records on purpose"
)]

use std::os::unix::fs::FileExt;
use std::path::Path;

use orlop::csi::proto::Snapshot;
use tonic::Code;

use crate::client::Client;
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, device_size, read, write};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged, run};

/// The kinds that are copied; btrfs is large.
const KINDS: [Kind; 5] = [Kind::Hostpath, Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Block];

/// Copies of a volume in use show one instant there.
pub(crate) fn is_instant(pool: PoolOn, kind: Kind) -> bool {
    match kind {
        Kind::Hostpath => pool == PoolOn::Btrfs,
        Kind::Ext4 | Kind::Xfs | Kind::Btrfs | Kind::Block => pool.shares(),
    }
}

/// A volume that is made of something, up.
fn copy_up(
    sandbox: &Sandbox,
    driver: &mut Driver,
    life: &Life,
    name: &str,
    bytes: u64,
    source: &orlop::csi::proto::VolumeContentSource,
) -> Life {
    let mut copy = Life::new(sandbox, life.kind, name);
    copy.create.bytes = bytes;
    let create = copy.create.clone();
    copy.id = driver.insist("restore", |c| c.create_from(&create, source.clone())).volume_id;
    copy.up(driver);
    copy
}

/// Takes a snapshot, of a volume in use where that can be.
fn take(driver: &mut Driver, pool: PoolOn, life: &Life, name: &str) -> Snapshot {
    if is_instant(pool, life.kind) {
        return driver.insist("snapshot", |c| c.snapshot(name, &life.id));
    }
    let refused = driver.client.snapshot(name, &life.id).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{pool:?} {:?}: {refused:?}", life.kind);
    assert!(refused.message().contains("end the pods"), "{refused:?}");
    life.down(driver);
    let snapshot = driver.insist("snapshot", |c| c.snapshot(name, &life.id));
    life.up(driver);
    snapshot
}

#[test]
fn copies_show_what_was_there_and_are_volumes_of_their_own() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            for kind in KINDS {
                one_kind(&sandbox.sub(&format!("{pool:?}-{kind:?}")), pool, kind);
            }
        }
    });
}

fn one_kind(sandbox: &Sandbox, pool: PoolOn, kind: Kind) {
    println!("{kind:?} on {pool:?}");
    pool.mount(sandbox, 2600);
    let mut driver = Driver::start(sandbox);
    let mut life = Life::new(sandbox, kind, "source");
    if kind == Kind::Btrfs {
        life.create.bytes = 256 * MIB;
    }
    life.born(&mut driver);
    life.up(&mut driver);
    write(kind, &life.target, "one");
    let snapshot = take(&mut driver, pool, &life, "snap");
    assert!(
        snapshot.ready_to_use && snapshot.size_bytes >= i64::try_from(life.create.bytes).unwrap()
    );
    write(kind, &life.target, "two");
    let source = from_snapshot(&snapshot.snapshot_id);
    let bytes = life.create.bytes + 24 * MIB;
    let restored = copy_up(sandbox, &mut driver, &life, "restored", bytes, &source);
    assert_eq!(read(kind, &restored.target), "one");
    assert_grown(kind, &restored.target, bytes);
    if !is_instant(pool, kind) {
        life.down(&mut driver);
    }
    let source = from_volume(&life.id);
    let clone = copy_up(sandbox, &mut driver, &life, "clone", life.create.bytes, &source);
    // All beside each other, as only filesystems with UUIDs of their own can be.
    if !is_instant(pool, kind) {
        life.up(&mut driver);
    }
    assert_eq!(read(kind, &clone.target), "two");
    write(kind, &clone.target, "three");
    assert_eq!(read(kind, &life.target), "two");
    // Nothing depends on what it was made of.
    life.down(&mut driver);
    life.gone(&mut driver);
    driver.insist("delete snapshot", |c| c.delete_snapshot(&snapshot.snapshot_id));
    restored.down(&mut driver);
    driver.restart();
    restored.up(&mut driver);
    assert_eq!(read(kind, &restored.target), "one");
    for copy in [restored, clone] {
        copy.down(&mut driver);
        copy.gone(&mut driver);
    }
    end(sandbox, driver);
}

/// What was asked for is there at the first mount, but for what the filesystem takes of it.
fn assert_grown(kind: Kind, target: &Path, bytes: u64) {
    let seen = match kind {
        Kind::Hostpath => return,
        Kind::Block => device_size(target),
        Kind::Ext4 | Kind::Xfs | Kind::Btrfs => {
            let seen = nix::sys::statvfs::statvfs(target).unwrap();
            seen.blocks() * seen.fragment_size()
        }
    };
    assert!(seen <= bytes && seen + bytes / 8 + 70 * MIB > bytes, "{kind:?}: {seen} of {bytes}");
    if kind == Kind::Block {
        assert_eq!(seen, bytes);
    }
}

#[test]
fn a_frozen_volume_is_thawed_after_a_kill() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 1000);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "before");
        driver.kill();
        driver.start_again(Some("engine.freeze.frozen:abort"));
        let snapshot = driver.insist("snapshot", |c| c.snapshot("s", &life.id));
        assert_eq!(driver.deaths, 1, "it died while the volume was frozen");
        assert!(driver.log().contains("writers were still held up"), "{}", driver.log());
        // Would hang for ever if it were still frozen.
        write(life.kind, &life.target, "after");
        let marks = std::fs::read_dir(sandbox.path("root/state/frozen")).unwrap().count();
        assert_eq!(marks, 0);
        let source = from_snapshot(&snapshot.snapshot_id);
        let copy = copy_up(sandbox, &mut driver, &life, "copy", life.create.bytes, &source);
        assert_eq!(read(copy.kind, &copy.target), "before");
        for life in [&life, &copy] {
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        driver.insist("delete snapshot", |c| c.delete_snapshot(&snapshot.snapshot_id));
        end(sandbox, driver);
    });
}

#[test]
fn a_group_is_whole_or_not_at_all() {
    privileged(|sandbox| {
        PoolOn::Xfs.mount(sandbox, 2000);
        let mut driver = Driver::start(sandbox);
        let mut lives = Vec::new();
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "together");
            lives.push(life);
        }
        let ids: Vec<&str> = lives.iter().map(|life| life.id.as_str()).collect();
        // A device cannot be held up.
        let refused = driver.client.group("g", &ids).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert_eq!(driver.client.snapshots().len(), 0, "no residue");
        lives[2].down(&mut driver);
        let group = driver.client.group("g", &ids).unwrap();
        assert_eq!(driver.client.group("g", &ids).unwrap(), group);
        assert_eq!(driver.client.snapshots().len(), 3);
        let member = &group.snapshots[0];
        let refused = driver.client.delete_snapshot(&member.snapshot_id).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let conflict = driver.client.group("g", &ids[..2]).unwrap_err();
        assert_eq!(conflict.code(), Code::AlreadyExists);
        driver.restart();
        assert_eq!(driver.client.group("g", &ids).unwrap(), group, "it survives a restart");
        for (life, member) in lives.iter().zip(group_order(&group.snapshots, &ids)) {
            let source = from_snapshot(&member.snapshot_id);
            let name = format!("copy-{:?}", life.kind);
            let copy = copy_up(sandbox, &mut driver, life, &name, life.create.bytes, &source);
            assert_eq!(read(copy.kind, &copy.target), "together");
            copy.down(&mut driver);
            copy.gone(&mut driver);
        }
        driver.client.delete_group(&group).unwrap();
        driver.client.delete_group(&group).unwrap();
        assert_eq!(driver.client.snapshots().len(), 0);
        lives[2].up(&mut driver);
        for life in &lives {
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        end(sandbox, driver);
    });
}

/// The members in the order of their volumes.
fn group_order<'a>(members: &'a [Snapshot], volumes: &[&str]) -> Vec<&'a Snapshot> {
    let of = |id: &&str| members.iter().find(|member| member.source_volume_id == **id).unwrap();
    volumes.iter().map(of).collect()
}

#[test]
fn what_a_pod_nests_in_its_subvolume_is_not_lost_in_silence() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 500);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Hostpath, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        let inner = life.target.join("inner");
        run("btrfs", &["subvolume", "create", inner.to_str().unwrap()]);
        let refused = driver.client.snapshot("s", &life.id).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("subvolume"), "{refused:?}");
        let names = std::fs::read_dir(sandbox.path("pool/incoming")).unwrap().count();
        assert_eq!(names, 0, "no residue");
        run("btrfs", &["subvolume", "delete", inner.to_str().unwrap()]);
        let snapshot = driver.client.snapshot("s", &life.id).unwrap();
        driver.client.delete_snapshot(&snapshot.snapshot_id).unwrap();
        life.down(&mut driver);
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

#[test]
fn what_is_modified_is_modified_and_nothing_else() {
    privileged(|sandbox| {
        PoolOn::Xfs.mount(sandbox, 1000);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        driver.client.modify(&life.id, "onDelete", "wipe").unwrap();
        let refused = driver.client.snapshot("s", &life.id).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        for (name, value) in [("onDelete", "burn"), ("backend", "hostpath"), ("mode", "0700")] {
            let refused = driver.client.modify(&life.id, name, value).unwrap_err();
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
        driver.restart();
        driver.client.modify(&life.id, "onDelete", "archive").unwrap();
        let snapshot = driver.client.snapshot("s", &life.id).unwrap();
        // Shared blocks are not overwritten.
        let refused = driver.client.modify(&life.id, "onDelete", "wipe").unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        driver.client.delete_snapshot(&snapshot.snapshot_id).unwrap();
        life.gone(&mut driver);
        let kept = std::fs::read_dir(sandbox.path("pool/archive")).unwrap().count();
        assert_eq!(kept, 1);
        end(sandbox, driver);
    });
}

/// Dies while the volume is frozen; then it is unmounted by hand, which the kernel allows.
#[test]
fn a_frozen_volume_that_was_unmounted_is_thawed_as_well() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 1500);
        let mut driver = Driver::start(sandbox);
        for kind in [Kind::Ext4, Kind::Xfs] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "before");
            driver.kill();
            driver.start_again(Some("engine.freeze.frozen:abort"));
            driver.client.snapshot("s", &life.id).unwrap_err();
            poll("it has died", || driver.is_dead());
            for path in [&life.target, &life.staging] {
                run("umount", &[path]);
            }
            driver.start_again(None);
            // Would hang for ever if it were still frozen.
            life.up(&mut driver);
            write(kind, &life.target, "after");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        end(sandbox, driver);
    });
}

/// An unstage does not wait for a copy, and what is frozen is never what lies below.
#[test]
fn a_volume_that_is_unstaged_during_its_snapshot_freezes_nothing_else() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 1500);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.create.bytes = 256 * MIB;
        life.born(&mut driver);
        for round in 0..10 {
            life.up(&mut driver);
            write(life.kind, &life.target, &format!("round {round}"));
            let big = std::fs::File::create(life.target.join("big")).unwrap();
            big.write_all_at(&vec![7; 64 << 20], 0).unwrap();
            drop(big);
            std::thread::scope(|scope| {
                let client = Client::new(sandbox.path("csi.sock"));
                let (id, name) = (life.id.clone(), format!("s{round}"));
                let taken = scope.spawn(move || client.snapshot(&name, &id));
                driver.client.unpublish(&life.id, &life.target).unwrap();
                driver.client.unstage(&life.id, &life.staging).unwrap();
                match taken.join().unwrap() {
                    Ok(snapshot) => driver.client.delete_snapshot(&snapshot.snapshot_id).unwrap(),
                    Err(status) => {
                        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
                    }
                }
            });
            // The filesystem below the staging path takes writes.
            std::fs::write(sandbox.path("kubelet/probe"), "x").unwrap();
        }
        life.gone(&mut driver);
        std::fs::remove_file(sandbox.path("kubelet/probe")).unwrap();
        end(sandbox, driver);
    });
}

#[test]
fn a_panicking_filesystem_of_a_pod_is_tamed_in_its_copy() {
    privileged(|sandbox| {
        PoolOn::Xfs.mount(sandbox, 1000);
        let mut driver = Driver::start(sandbox);
        let mut raw = Life::new(sandbox, Kind::Block, "raw");
        raw.create.bytes = 64 * MIB;
        raw.born(&mut driver);
        raw.up(&mut driver);
        run("mkfs.ext4", &["-q", "-F", raw.target.to_str().unwrap()]);
        run("tune2fs", &["-e", "panic", raw.target.to_str().unwrap()]);
        let snapshot = driver.client.snapshot("s", &raw.id).unwrap().snapshot_id;
        let mut copy = Life::new(sandbox, Kind::Ext4, "copy");
        copy.create.bytes = 64 * MIB;
        copy.id =
            driver.client.create_from(&copy.create, from_snapshot(&snapshot)).unwrap().volume_id;
        let told = run("tune2fs", &["-l", copy.image().to_str().unwrap()]);
        assert!(told.contains("Errors behavior:          Remount read-only"), "{told}");
        copy.up(&mut driver);
        copy.down(&mut driver);
        copy.gone(&mut driver);
        raw.down(&mut driver);
        raw.gone(&mut driver);
        driver.client.delete_snapshot(&snapshot).unwrap();
        end(sandbox, driver);
    });
}

#[test]
fn a_group_that_is_damaged_is_kept_and_said() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 500);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        let group = driver.client.group("g", &[&life.id]).unwrap();
        let key = group.group_snapshot_id.split('-').nth(2).unwrap().to_owned();
        let record = sandbox.path("pool/groups").join(key).join("group.json");
        let text = std::fs::read(&record).unwrap();
        std::fs::write(&record, "{").unwrap();
        driver.restart();
        assert_eq!(driver.client.delete_group(&group).unwrap_err().code(), Code::Internal);
        let again = driver.client.group("g", &[&life.id]).unwrap_err();
        assert_eq!(again.code(), Code::Internal, "{again:?}");
        assert!(again.message().contains("damaged"), "{again:?}");
        std::fs::write(&record, text).unwrap();
        driver.restart();
        driver.client.delete_group(&group).unwrap();
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

/// A copy of what has lost data would be taken for a good one.
#[test]
fn what_has_lost_data_is_not_copied() {
    privileged(|sandbox| {
        PoolOn::Xfs.mount(sandbox, 1000);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        let image = std::fs::File::options().write(true).open(life.image()).unwrap();
        image.set_len(MIB).unwrap();
        let refused = driver.client.snapshot("s", &life.id).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        assert!(refused.message().contains("ImageTruncated"), "{refused:?}");
        let copy = Life::new(sandbox, Kind::Ext4, "copy").create;
        let refused = driver.client.create_from(&copy, from_volume(&life.id)).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
        image.set_len(0).unwrap();
        image.set_len(life.create.bytes).unwrap();
        drop(image);
        let refused = driver.client.snapshot("s", &life.id).unwrap_err();
        assert!(refused.message().contains("FilesystemMissing"), "{refused:?}");
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

#[test]
fn a_damaged_snapshot_is_kept_until_it_is_mended() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 500);
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        let snapshot = driver.client.snapshot("s", &life.id).unwrap().snapshot_id;
        let key = snapshot.split('-').nth(2).unwrap();
        let record = sandbox.path("pool/snapshots").join(key).join("snapshot.json");
        let text = std::fs::read(&record).unwrap();
        std::fs::write(&record, "{").unwrap();
        // Read before it was damaged, and after a start that found it so.
        for restart in [false, true] {
            if restart {
                driver.restart();
                assert!(driver.log().contains("damaged; left as it is"), "{}", driver.log());
            }
            let refused = driver.client.delete_snapshot(&snapshot).unwrap_err();
            assert_eq!(refused.code(), Code::Internal, "{refused:?}");
            assert!(
                refused.message().starts_with(&format!("snapshot {snapshot}: ")),
                "{refused:?}"
            );
        }
        std::fs::write(&record, text).unwrap();
        driver.client.delete_snapshot(&snapshot).unwrap();
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

/// Mount options in the superblock are followed like those of the mount.
#[test]
fn mount_options_that_a_pod_left_in_its_filesystem_are_dropped() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount(sandbox, 500);
        let mut driver = Driver::start(sandbox);
        let mut raw = Life::new(sandbox, Kind::Block, "raw");
        raw.create.bytes = 64 * MIB;
        raw.born(&mut driver);
        raw.up(&mut driver);
        run("mkfs.ext4", &["-q", "-F", raw.target.to_str().unwrap()]);
        run("tune2fs", &["-E", "mount_opts=errors=panic", raw.target.to_str().unwrap()]);
        let mut copy = Life::new(sandbox, Kind::Ext4, "copy");
        copy.create.bytes = 64 * MIB;
        let made = driver.client.create_from(&copy.create, from_volume(&raw.id)).unwrap();
        copy.id = made.volume_id;
        copy.up(&mut driver);
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains("errors=panic"), "{mounts}");
        for life in [&copy, &raw] {
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        end(sandbox, driver);
    });
}
