//! Managed pools whose driver dies anywhere, on images and disks, in mount namespaces of any kind; and disks with data.

#![expect(clippy::disallowed_methods, reason = "starts drivers in namespaces of their own")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, read, write};
use crate::managed::{
    SIZE, check_once, configure, end, image, is_away, on_image, orlop, place, pool_loops,
    pool_mounts,
};
use crate::privileged::{Sandbox, loops_below, poll, privileged, run};

/// The points of making, mounting and growing a pool. Those of disks are hit on disks only.
fn points() -> Vec<&'static str> {
    let ours =
        ["managed.", "step.pool.", "host.attach.", "host.mount.", "host.grow.", "host.quota."];
    let all = orlop::fault::all().into_iter();
    all.filter(|point| ours.iter().any(|beginning| point.starts_with(beginning))).collect()
}

/// Starts a driver that dies at a point, then others, until one has the pool; whether the point was hit.
fn born_with(sandbox: &Sandbox, fault: &str) -> (Driver, bool) {
    let mut driver = Driver::start_configured(sandbox, Some(fault));
    let mut hit = false;
    // Ready means that the socket answers; the pool is opened beside it.
    poll("the pool is open, or its driver dead", || {
        if driver.is_dead() {
            driver.deaths += 1;
            driver.restart();
        }
        let log = driver.log();
        if log.contains("pool is away") && !fault.ends_with("abort") && !hit {
            hit = true;
            driver.restart();
        }
        log.contains("pool is open") && orlop(sandbox, &["pool", "list"]).unwrap().contains("ready")
    });
    hit |= driver.deaths > 0;
    (driver, hit)
}

/// The images of a whole matrix would fill a disk.
fn end_for_good(sandbox: &Sandbox, driver: Driver) {
    end(sandbox, driver);
    std::fs::remove_file(image(sandbox)).unwrap();
}

fn every_point_hit(what: &str, hit: &[&str], unhit: &[&str]) {
    let missed: Vec<_> = points()
        .into_iter()
        .filter(|point| !hit.contains(point) && !unhit.iter().any(|other| point.starts_with(other)))
        .collect();
    assert!(missed.is_empty(), "{what}: never hit: {missed:?}");
}

#[test]
fn a_driver_that_dies_anywhere_while_it_makes_or_grows_a_pool_finishes_after_its_restart() {
    privileged(|sandbox| {
        let mut hit = Vec::new();
        for point in points() {
            let sandbox = sandbox.sub(point);
            // Half as large and with all its blocks, then sparse again and larger: every step of both kinds.
            let size = SIZE / 2;
            configure(&sandbox, &format!("size = \"{size}MiB\", filesystem = \"btrfs\""));
            let (mut driver, born) = born_with(&sandbox, &format!("{point}:abort"));
            check_once(&sandbox);
            assert!(!sandbox.path("root/images/p.img.new").exists());
            let mut life = Life::new(&sandbox, Kind::Block, "v");
            life.born(&mut driver);
            life.up(&mut driver);
            driver.kill();
            configure(&sandbox, &format!("size = \"{SIZE}MiB\", filesystem = \"btrfs\""));
            driver.deaths = 0;
            driver.start_again(Some(&format!("{point}:abort")));
            poll("the pool has grown", || {
                if driver.is_dead() {
                    driver.deaths += 1;
                    driver.restart();
                }
                let total = run(
                    "stat",
                    &["--file-system", "--format=%b", place(&sandbox).to_str().unwrap()],
                );
                total.trim().parse::<u64>().unwrap() * 4096 > (SIZE - 10) * MIB
            });
            check_once(&sandbox);
            if born || driver.deaths > 0 {
                hit.push(point);
            }
            life.down(&mut driver);
            life.gone(&mut driver);
            end_for_good(&sandbox, driver);
        }
        every_point_hit(
            "image",
            &hit,
            &[
                "managed.disk.",
                "managed.make.claimed",
                "managed.image.holes",
                // Of XFS.
                "managed.settle.",
                "step.pool.claim_disk",
                "step.pool.make_on_disk",
            ],
        );
    });
}

fn is_of_pools(point: &&'static str) -> bool {
    point.starts_with("managed.") || point.starts_with("step.pool.")
}

#[test]
fn a_step_that_fails_while_a_pool_is_made_is_repeated() {
    privileged(|sandbox| {
        for errno in ["EIO", "ENOSPC"] {
            for point in points().into_iter().filter(is_of_pools) {
                let sandbox = sandbox.sub(&format!("{point}{errno}"));
                configure(&sandbox, &on_image("btrfs", SIZE));
                let (driver, _) = born_with(&sandbox, &format!("{point}:{errno}"));
                check_once(&sandbox);
                end_for_good(&sandbox, driver);
            }
        }
    });
}

/// A loop device that plays a disk; its number cannot be mistaken for that of an image.
fn disk(sandbox: &Sandbox) -> (String, File) {
    let path = sandbox.path("disk");
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    file.set_len(SIZE * MIB).unwrap();
    (run("losetup", &["--find", "--show", path.to_str().unwrap()]).trim().to_owned(), file)
}

fn on_disk(sandbox: &Sandbox, device: &str, filesystem: &str) {
    configure(sandbox, &format!("device = \"{device}\", filesystem = \"{filesystem}\""));
}

#[test]
fn a_driver_that_dies_anywhere_while_it_makes_a_pool_on_a_disk_finishes_after_its_restart() {
    privileged(|sandbox| {
        let mut hit = Vec::new();
        for (index, point) in points().into_iter().enumerate() {
            let sandbox = sandbox.sub(point);
            // Quotas of XFS are a mount option.
            let is_btrfs = index % 2 == 1 || point.starts_with("host.quota.");
            let filesystem = if is_btrfs { "btrfs" } else { "xfs" };
            let (device, file) = disk(&sandbox);
            on_disk(&sandbox, &device, filesystem);
            let (mut driver, died) = born_with(&sandbox, &format!("{point}:abort"));
            if died {
                hit.push(point);
            }
            assert_eq!(pool_mounts(&sandbox), 1);
            let mut life = Life::new(&sandbox, Kind::Hostpath, "v");
            life.born(&mut driver);
            // The disk gets larger, as one in a cloud does.
            driver.kill();
            file.set_len((SIZE + 300) * MIB).unwrap();
            run("losetup", &["--set-capacity", &device]);
            driver.start_again(None);
            life.gone(&mut driver);
            assert!(driver.log().contains("managed pool has grown"), "{}", driver.log());
            drop(driver);
            orlop(&sandbox, &["pool", "unmount", "p"]).unwrap();
            run("losetup", &["-d", &device]);
        }
        let images = [
            "managed.image.",
            "step.pool.make_in_image",
            "managed.attach.",
            "managed.grow.loop",
            "managed.grow.start",
            "managed.grow",
            "managed.settle.",
            "host.attach.",
            "host.grow.",
        ];
        every_point_hit("disk", &hit, &images);
    });
}

#[test]
fn a_pool_that_grew_on_xfs_is_never_left_frozen_and_its_superblock_is_written() {
    privileged(|sandbox| {
        let settle = points().into_iter().filter(|point| point.starts_with("managed.settle."));
        let faults = settle.flat_map(|point| ["abort", "EIO"].map(|how| format!("{point}:{how}")));
        let grown = ["managed.grow.filesystem:abort", "managed.grow.done:abort"];
        for fault in faults.chain(grown.map(str::to_owned)) {
            let sandbox = sandbox.sub(&fault);
            configure(&sandbox, &on_image("xfs", SIZE));
            let mut driver = Driver::start_configured(&sandbox, None);
            let mut life = Life::new(&sandbox, Kind::Hostpath, "v");
            life.born(&mut driver);
            life.up(&mut driver);
            driver.kill();
            configure(&sandbox, &on_image("xfs", SIZE + 200));
            driver.start_again(Some(&fault));
            let mark = sandbox.path("root/state/p.growing");
            poll("the pool has grown, and that was settled", || {
                if driver.is_dead() {
                    driver.restart();
                }
                let log = driver.log();
                // Where it failed, the next start settles it.
                let failed = log.contains("does not grow") || log.contains("pool is away");
                if failed && mark.exists() {
                    driver.restart();
                }
                log.lines().last().is_some_and(|line| line.contains("pool is open"))
                    && !mark.exists()
            });
            // Whoever wrote to a frozen one could not even be killed.
            let place = place(&sandbox);
            let thaw = Command::new("fsfreeze").arg("--unfreeze").arg(&place).output().unwrap();
            assert!(!thaw.status.success(), "{fault}: it was frozen");
            // sb_dblocks of the superblock on the disk, big-endian.
            let mut written = [0; 8];
            File::open(image(&sandbox)).unwrap().read_exact_at(&mut written, 8).unwrap();
            assert!(u64::from_be_bytes(written) * 4096 > (SIZE + 100) * MIB, "{fault}");
            write(life.kind, &life.target, "after");
            assert_eq!(read(life.kind, &life.target), "after");
            let blocks = run("stat", &["--file-system", "--format=%b", place.to_str().unwrap()]);
            assert!(blocks.trim().parse::<u64>().unwrap() * 4096 > (SIZE + 100) * MIB, "{fault}");
            life.down(&mut driver);
            life.gone(&mut driver);
            end_for_good(&sandbox, driver);
        }
    });
}

#[test]
fn a_pool_that_was_unmounted_while_a_dead_driver_had_it_frozen_is_thawed() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("xfs", SIZE));
        let mut driver = Driver::start_configured(sandbox, None);
        driver.kill();
        let (place, mark) = (place(sandbox), sandbox.path("root/state/p.growing"));
        // As one that is killed behind its freeze leaves it. The filesystem stays frozen, and its loop device with it.
        for unmounted in [false, true] {
            std::fs::write(&mark, "").unwrap();
            run("fsfreeze", &["--freeze".as_ref(), place.as_os_str()]);
            if unmounted {
                run("umount", &[&place]);
            }
            driver.start_again(None);
            poll("that was settled", || !mark.exists());
            let thaw = Command::new("fsfreeze").arg("--unfreeze").arg(&place).output().unwrap();
            assert!(!thaw.status.success(), "it was frozen");
            let mut life = Life::new(sandbox, Kind::Hostpath, "v");
            life.born(&mut driver);
            life.gone(&mut driver);
            driver.kill();
        }
        // Nobody configures it any more.
        std::fs::write(&mark, "").unwrap();
        run("fsfreeze", &["--freeze".as_ref(), place.as_os_str()]);
        let other = sandbox.make_dir("other");
        let text = format!("[[pool]]\nname = \"q\"\npath = {other:?}\n");
        std::fs::write(sandbox.path("orlop.toml"), text).unwrap();
        driver.start_again(None);
        let thaw = Command::new("fsfreeze").arg("--unfreeze").arg(&place).output().unwrap();
        assert!(!thaw.status.success(), "it was frozen");
        drop(driver);
        configure(sandbox, &on_image("xfs", SIZE));
        orlop(sandbox, &["pool", "unmount", "p"]).unwrap();
    });
}

#[test]
fn a_disk_with_anything_on_it_and_one_that_was_exchanged_are_left_alone() {
    privileged(|sandbox| {
        let (device, file) = disk(sandbox);
        on_disk(sandbox, &device, "btrfs");
        for what in ["ext4", "xfs", "table", "text"] {
            file.set_len(0).unwrap();
            file.set_len(SIZE * MIB).unwrap();
            run("blockdev", &["--flushbufs", &device]);
            let node = File::options().write(true).open(&device).unwrap();
            match what {
                "table" => node.write_all_at(&[0x55, 0xaa], 510).unwrap(),
                "text" => node.write_all_at(b"somebody's", (SIZE - 1) * MIB).unwrap(),
                filesystem => drop(run(&format!("mkfs.{filesystem}"), &["-q", &device])),
            }
            node.sync_all().unwrap();
            drop(node);
            let before = run("cksum", &[sandbox.path("disk")]);
            is_away(sandbox, "blank disk only");
            assert_eq!(run("cksum", &[sandbox.path("disk")]), before, "{what} is untouched");
        }
        file.set_len(0).unwrap();
        file.set_len(SIZE * MIB).unwrap();
        run("blockdev", &["--flushbufs", &device]);
        let mut driver = Driver::start_configured(sandbox, None);
        let mut life = Life::new(sandbox, Kind::Hostpath, "v");
        life.born(&mut driver);
        drop(driver);
        let said = orlop(sandbox, &["pool", "unmount", "p"]).unwrap();
        assert!(said.contains("unmounted"), "{said}");
        // Another disk under the same name, blank at that.
        run("losetup", &["-d", &device]);
        std::fs::rename(sandbox.path("disk"), sandbox.path("right")).unwrap();
        let other = disk(sandbox).0;
        on_disk(sandbox, &other, "btrfs");
        is_away(sandbox, "nothing is made anew");
        run("losetup", &["-d", &other]);
        // Not under that number, which may be another program's by now.
        on_disk(sandbox, "/dev/orlop-no-such-disk", "btrfs");
        is_away(sandbox, "its disk is not at");
        // The right one, under another name.
        let right = run("losetup", &["--find", "--show", sandbox.path("right").to_str().unwrap()]);
        on_disk(sandbox, right.trim(), "btrfs");
        let mut driver = Driver::start_configured(sandbox, None);
        life.gone(&mut driver);
        drop(driver);
        orlop(sandbox, &["pool", "unmount", "p"]).unwrap();
        run("losetup", &["-d", right.trim()]);
        poll("no loop device is left", || loops_below(sandbox.dir()).is_empty());
    });
}

/// A driver in a mount namespace of its own, whose root directory is a mount of its own as in a container.
fn in_namespace(sandbox: &Sandbox, propagation: &str, lasting: bool) -> Child {
    // The root directory is bound at itself, as a hostPath volume is.
    let bind =
        if lasting { "true" } else { "mount --bind \"$1\" \"$1\" && mount --make-private \"$1\"" };
    let script = format!(
        "{bind} && exec \"$0\" serve --node-id n1 --endpoint unix://$1/csi.sock --root-dir $1/root --config $1/orlop.toml --kubelet-dir $1/kubelet"
    );
    Command::new("unshare")
        .args(["--mount", "--propagation", propagation, "sh", "-c", &script])
        .args([Path::new(env!("CARGO_BIN_EXE_orlop")), sandbox.dir()])
        .env("ORLOP_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(sandbox.path("driver.log")).unwrap())
        .spawn()
        .unwrap()
}

fn wait_for_log(sandbox: &Sandbox, text: &str) {
    poll(text, || {
        std::fs::read_to_string(sandbox.path("driver.log")).unwrap_or_default().contains(text)
    });
    std::fs::write(sandbox.path("driver.log"), "").unwrap();
}

#[test]
fn ten_killed_drivers_leave_one_loop_device_and_one_mount_in_namespaces_of_either_kind() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("btrfs", SIZE));
        // A mount that a node has shared: what is mounted in a driver's container appears here.
        let dir = sandbox.dir().to_str().unwrap();
        run("mount", &["--bind", dir, dir]);
        run("mount", &["--make-shared", dir]);
        sandbox.make_dir("kubelet");
        let mut child = in_namespace(sandbox, "unchanged", true);
        wait_for_log(sandbox, "pool is open");
        child.kill().unwrap();
        child.wait().unwrap();
        check_once(sandbox);
        let mut driver = Driver::start_configured(sandbox, None);
        let mut life = Life::new(sandbox, Kind::Ext4, "v");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "kept");
        drop(driver);
        for round in 0..10 {
            let propagation = if round % 2 == 0 { "unchanged" } else { "private" };
            std::fs::write(sandbox.path("driver.log"), "").unwrap();
            let mut child = in_namespace(sandbox, propagation, true);
            wait_for_log(sandbox, "pool is open");
            child.kill().unwrap();
            child.wait().unwrap();
            check_once(sandbox);
            assert_eq!(read(life.kind, &life.target), "kept", "round {round}");
        }
        let mut driver = Driver::start_configured(sandbox, None);
        life.down(&mut driver);
        life.gone(&mut driver);
        end_shared(sandbox, driver);
    });
}

fn end_shared(sandbox: &Sandbox, driver: Driver) {
    drop(driver);
    orlop(sandbox, &["pool", "unmount", "p"]).unwrap();
    poll("the loop device is gone", || pool_loops(sandbox) == 0);
    run("umount", &[sandbox.dir()]);
}

#[test]
fn a_pool_is_not_mounted_where_its_mount_would_end_with_the_driver() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("btrfs", SIZE));
        for dir in ["kubelet", "pool"] {
            sandbox.make_dir(dir);
        }
        let mut child = in_namespace(sandbox, "private", false);
        wait_for_log(sandbox, "Bidirectional");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((pool_loops(sandbox), pool_mounts(sandbox)), (0, 0));
        assert!(!image(sandbox).exists(), "nothing is made either");
    });
}

#[test]
fn a_pool_is_checked_mended_and_not_unmounted_under_its_volumes() {
    privileged(|sandbox| {
        let create = format!("size = \"{SIZE}MiB\", filesystem = \"btrfs\"");
        configure(sandbox, &create);
        let mut driver = Driver::start_configured(sandbox, None);
        let mut lives = [Kind::Hostpath, Kind::Block]
            .map(|kind| Life::new(sandbox, kind, &format!("{kind:?}")));
        for life in &mut lives {
            life.born(&mut driver);
            life.up(&mut driver);
        }
        let clean = orlop(sandbox, &["pool", "check", "p"]).unwrap();
        assert!(!clean.contains("WRONG"), "{clean}");
        let refused = orlop(sandbox, &["pool", "unmount", "p"]).unwrap_err();
        assert!(refused.contains("stop it first"), "{refused}");
        driver.kill();
        let refused = orlop(sandbox, &["pool", "unmount", "p"]).unwrap_err();
        for life in &lives {
            assert!(refused.contains(&life.id), "{refused}");
        }
        check_once(sandbox);
        // Blocks that leak away, discards that were switched on, and an image that was never finished.
        let file = image(sandbox);
        run(
            "fallocate",
            &["--punch-hole", "--offset", "600MiB", "--length", "1MiB", file.to_str().unwrap()],
        );
        File::create(sandbox.path("root/images/p.img.new")).unwrap();
        let found = orlop(sandbox, &["pool", "check", "p"]).unwrap_err();
        assert!(found.contains("has holes") && found.contains("left unfinished"), "{found}");
        let mended = orlop(sandbox, &["pool", "check", "p", "--repair"]).unwrap();
        assert!(mended.contains("mended"), "{mended}");
        let clean = orlop(sandbox, &["pool", "check"]).unwrap();
        assert!(!clean.contains("mended"), "{clean}");
        driver.start_again(None);
        for life in &mut lives {
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        let listed = orlop(sandbox, &["pool", "list"]).unwrap();
        assert!(listed.contains("btrfs image of 700 MiB"), "{listed}");
        end(sandbox, driver);
    });
}
