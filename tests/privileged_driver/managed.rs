//! Managed pools: made, mounted, used, grown, found again; and what is refused.

#![expect(clippy::disallowed_methods, reason = "writes the configuration of the driver")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, check_nothing_left, read, write};
use crate::privileged::{Sandbox, loops_below, mounts_below, poll, privileged, run};

/// The size of an image, in MiB.
pub(crate) const SIZE: u64 = 700;

/// The image of the pool.
pub(crate) fn image(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("root/images/p.img")
}

/// Where the pool is mounted.
pub(crate) fn place(sandbox: &Sandbox) -> PathBuf {
    sandbox.path("pool")
}

/// Tells the driver to make a pool of its own.
pub(crate) fn configure(sandbox: &Sandbox, create: &str) {
    let path = place(sandbox);
    let text = format!(
        "[[pool]]\nname = \"p\"\npath = {path:?}\nreserve = \"0\"\ncreate = {{ {create} }}\n"
    );
    std::fs::write(sandbox.path("orlop.toml"), text).unwrap();
}

pub(crate) fn on_image(filesystem: &str, size: u64) -> String {
    // Sparse where blocks are not what is tested: a disk that is rather full must not decide about a test.
    format!("size = \"{size}MiB\", filesystem = \"{filesystem}\", sparse = true")
}

/// The loop devices that are on the pool's image itself, told by its inode: the path of one that a dead namespace set up
/// leads nowhere.
pub(crate) fn pool_loops(sandbox: &Sandbox) -> usize {
    let image = image(sandbox);
    if !image.exists() {
        return 0;
    }
    let arguments = ["--noheadings", "--output", "NAME", "--associated", image.to_str().unwrap()];
    run("losetup", &arguments).lines().count()
}

/// How often the pool's filesystem is mounted as a whole here.
pub(crate) fn pool_mounts(sandbox: &Sandbox) -> usize {
    let place = place(sandbox);
    mounts_below(sandbox.dir()).iter().filter(|point| **point == place).count()
}

/// The pool is mounted once, from one loop device.
pub(crate) fn check_once(sandbox: &Sandbox) {
    assert_eq!((pool_loops(sandbox), pool_mounts(sandbox)), (1, 1));
}

/// Ends the driver and unmounts the pool, as its operator would.
pub(crate) fn end(sandbox: &Sandbox, driver: Driver) {
    drop(driver);
    orlop(sandbox, &["pool", "unmount", "p"]).unwrap();
    poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
    assert_eq!(mounts_below(sandbox.dir()), Vec::<PathBuf>::new());
}

/// Runs a command on the driver's configuration; what it printed, or its complaint.
pub(crate) fn orlop(sandbox: &Sandbox, arguments: &[&str]) -> Result<String, String> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(arguments)
        .args(["--root-dir".as_ref(), sandbox.path("root").as_os_str()])
        .args(["--config".as_ref(), sandbox.path("orlop.toml").as_os_str()])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stdout) + &text(&output.stderr))
    }
}

#[test]
fn a_pool_is_made_used_found_again_and_grown_under_its_volumes() {
    privileged(|sandbox| {
        for filesystem in ["xfs", "btrfs"] {
            let sandbox = sandbox.sub(filesystem);
            let create = |size: u64| format!("size = \"{size}MiB\", filesystem = \"{filesystem}\"");
            configure(&sandbox, &create(SIZE));
            let mut driver = Driver::start_configured(&sandbox, None);
            let mut lives = [Kind::Hostpath, Kind::Ext4, Kind::Block]
                .map(|kind| Life::new(&sandbox, kind, &format!("{kind:?}")));
            for life in &mut lives {
                life.born(&mut driver);
                life.up(&mut driver);
                write(life.kind, &life.target, "before");
            }
            check_once(&sandbox);
            let blocks =
                std::os::unix::fs::MetadataExt::blocks(&image(&sandbox).metadata().unwrap());
            assert!(blocks * 512 >= SIZE * MIB, "all its blocks are reserved");
            driver.restart();
            check_once(&sandbox);
            let before = total(&place(&sandbox));
            driver.kill();
            configure(&sandbox, &create(SIZE + 200));
            driver.start_again(None);
            check_once(&sandbox);
            assert!(total(&place(&sandbox)) > before + 150 * MIB, "it has grown");
            for life in &mut lives {
                assert_eq!(read(life.kind, &life.target), "before");
                // All is as it should be: nothing is mounted twice.
                life.up(&mut driver);
            }
            // A smaller size is told, and changes nothing.
            driver.kill();
            configure(&sandbox, &create(SIZE));
            driver.start_again(None);
            assert!(driver.log().contains("never shrunk"), "{}", driver.log());
            assert_eq!(image(&sandbox).metadata().unwrap().len(), (SIZE + 200) * MIB);
            // A reboot.
            driver.kill();
            sandbox.clear();
            poll("the loop devices are gone", || loops_below(sandbox.dir()).is_empty());
            driver.start_again(None);
            check_once(&sandbox);
            for life in &mut lives {
                life.up(&mut driver);
                assert_eq!(read(life.kind, &life.target), "before");
                life.down(&mut driver);
                life.gone(&mut driver);
            }
            check_nothing_left(&sandbox, &mut driver);
            end(&sandbox, driver);
        }
    });
}

/// The size of the filesystem at a path.
fn total(path: &Path) -> u64 {
    let figures = run("stat", &["--file-system", "--format=%b %S", path.to_str().unwrap()]);
    figures.split_whitespace().map(|figure| figure.parse::<u64>().unwrap()).product()
}

#[test]
fn nothing_is_written_below_the_mount_point_and_discards_are_off() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("btrfs", SIZE));
        let driver = Driver::start_configured(sandbox, None);
        let found = loops_below(sandbox.dir());
        let queue = format!("/sys/block/loop{}/queue/discard_max_bytes", found[0].number);
        assert_eq!(std::fs::read_to_string(queue).unwrap().trim(), "0");
        assert!(found[0].autoclear);
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains("/pool ")).unwrap();
        assert!(line.contains("noatime") && !line.contains("discard="), "{line}");
        end(sandbox, driver);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &place(sandbox).metadata().unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o700);
        assert!(File::create(place(sandbox).join("lost")).is_err(), "the mount point is immutable");
    });
}

/// The driver runs, its pool is away for that reason, and nothing was mounted or attached.
pub(crate) fn is_away(sandbox: &Sandbox, reason: &str) {
    let driver = Driver::start_configured(sandbox, None);
    poll("the pool is known to be away", || driver.log().contains("pool is away"));
    let log = driver.log();
    assert!(log.contains(reason), "{reason}: {log}");
    let life = Life::new(sandbox, Kind::Hostpath, "v");
    assert_eq!(driver.client.create(&life.create).unwrap_err().code(), Code::Unavailable);
    drop(driver);
    assert_eq!(pool_mounts(sandbox), 0);
    std::fs::write(sandbox.path("driver.log"), "").unwrap();
}

#[test]
fn an_image_that_is_not_the_pool_s_is_left_alone_and_a_lost_one_is_not_made_anew() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("btrfs", SIZE));
        let images = sandbox.make_dir("root/images");
        let file = image(sandbox);
        for what in ["ext4", "xfs", "text", "zeroes"] {
            let content =
                File::options().write(true).create(true).truncate(true).open(&file).unwrap();
            content.set_len(400 * MIB).unwrap();
            match what {
                "zeroes" => {}
                "text" => content.write_all_at(b"somebody's", 200 * MIB).unwrap(),
                filesystem => {
                    drop(run(&format!("mkfs.{filesystem}"), &["-q", file.to_str().unwrap()]));
                }
            }
            let before = run("cksum", &[&file]);
            is_away(sandbox, "move it away");
            assert_eq!(run("cksum", &[&file]), before, "{what} is untouched");
        }
        std::fs::remove_file(&file).unwrap();

        let mut driver = Driver::start_configured(sandbox, None);
        let mut life = Life::new(sandbox, Kind::Hostpath, "kept");
        life.born(&mut driver);
        end(sandbox, driver);
        std::fs::rename(&file, sandbox.path("elsewhere")).unwrap();
        is_away(sandbox, "not made anew");
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0, "nothing is made");
        let told = orlop(sandbox, &["pool", "check"]).unwrap_err();
        assert!(told.contains("put it back") && !told.contains("pool init"), "{told}");
        // One that never was is nothing to put back.
        let config = std::fs::read_to_string(sandbox.path("orlop.toml")).unwrap();
        let never = config.replace("name = \"p\"", "name = \"never\"");
        std::fs::write(sandbox.path("orlop.toml"), never).unwrap();
        let told = orlop(sandbox, &["pool", "check"]).unwrap_err();
        assert!(told.contains("not made yet") && !told.contains("pool init"), "{told}");
        std::fs::write(sandbox.path("orlop.toml"), config).unwrap();
        std::fs::rename(sandbox.path("elsewhere"), &file).unwrap();
        let mut driver = Driver::start_configured(sandbox, None);
        life.gone(&mut driver);
        end(sandbox, driver);
    });
}

#[test]
fn two_loop_devices_on_an_image_are_refused() {
    privileged(|sandbox| {
        configure(sandbox, &on_image("btrfs", SIZE));
        let driver = Driver::start_configured(sandbox, None);
        end(sandbox, driver);
        let file = image(sandbox);
        let attach = || run("losetup", &["--find", "--show", file.to_str().unwrap()]);
        let (one, two) = (attach(), attach());
        is_away(sandbox, "several loop devices");
        run("losetup", &["-d", two.trim()]);
        poll("one is left", || pool_loops(sandbox) == 1);
        // Whoever set it up: it is the one that is used.
        let driver = Driver::start_configured(sandbox, None);
        check_once(sandbox);
        drop(driver);
        run("umount", &[place(sandbox)]);
        run("losetup", &["-d", one.trim()]);
    });
}
