//! `orlop pool check` on a pool with one of everything, and everything wrong with it.

#![expect(clippy::disallowed_methods, reason = "damages pools as disks and people could")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orlop::host::Limits;
use orlop::host::linux::LinuxHost;
use orlop::volume::{Limit, LimitKind};

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, write};
use crate::managed::orlop;
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What the check finds wrong.
fn wrong(sandbox: &Sandbox, flags: &[&str]) -> Vec<String> {
    let told = match orlop(sandbox, &[&["pool", "check"], flags].concat()) {
        Ok(told) => {
            assert!(!told.contains("WRONG"), "{told}");
            told
        }
        Err(told) => told,
    };
    let lines = told.lines().filter(|line| line.contains("  WRONG "));
    lines.map(|line| line.trim_start_matches("  WRONG ").trim_start().to_owned()).collect()
}

/// One line, which says all of these.
#[track_caller]
fn is_told(lines: &[String], parts: &[&str]) {
    let fits = |line: &&String| parts.iter().all(|part| line.contains(part));
    assert_eq!(lines.iter().filter(fits).count(), 1, "{parts:?} in {lines:#?}");
}

fn key(life: &Life) -> &str {
    life.id.split('-').nth(2).unwrap()
}

/// A directory of the pool whose name is in it, below another one.
fn below(place: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    entries.find(|path| path.is_dir()).unwrap()
}

fn overwrite(path: &Path, at: u64, content: &[u8]) -> Vec<u8> {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut before = vec![0; content.len()];
    file.read_exact_at(&mut before, at).unwrap();
    file.write_all_at(content, at).unwrap();
    before
}

/// Lifts the limit of a volume behind the driver's back.
fn lift_limit(sandbox: &Sandbox, life: &Life) {
    let record = std::fs::read_to_string(life.dir().join("volume.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let number = record["limit"]["number"].as_u64().unwrap();
    let kind = LimitKind::from_word(record["limit"]["kind"].as_str().unwrap()).unwrap();
    let pool = File::open(sandbox.path("pool")).unwrap();
    LinuxHost::new().set_bounds(pool.as_fd(), Limit { kind, number }, None).unwrap();
}

fn all_is_told(found: &[String], [limited, thick, plain]: [&Life; 3]) {
    is_told(found, &[key(limited), "QuotaNotInForce", "has no bound; mount the pool with"]);
    is_told(found, &[key(thick), "its thick image has holes"]);
    is_told(found, &[key(plain), "FilesystemMissing", "restore it from a copy, or repair"]);
    is_told(found, &["snapshot", "it is there twice", "move one of them out of the pool"]);
    is_told(found, &["group", "is not there; restore groups/"]);
    is_told(found, &["whole: it is not the driver's"]);
    is_told(found, &["aside: it is not the driver's"]);
    assert!(found.iter().any(|line| line.contains("ImageTruncated: the image has 1 MiB")));
}

#[test]
fn a_check_finds_what_is_wrong_with_data_limits_and_copies() {
    privileged(|sandbox| {
        PoolOn::Btrfs.mount_with_limits(sandbox, 768);
        let mut driver = Driver::start(sandbox);
        let mut limited = Life::new(sandbox, Kind::Hostpath, "limited").with("quota", "required");
        let mut thick = Life::new(sandbox, Kind::Block, "thick").with("allocation", "thick");
        let mut plain = Life::new(sandbox, Kind::Ext4, "plain");
        for life in [&mut limited, &mut thick, &mut plain] {
            life.born(&mut driver);
        }
        let single = driver.client.snapshot("single", &plain.id).unwrap();
        let group = driver.client.group("group", &[&plain.id]).unwrap();
        assert_eq!(wrong(sandbox, &[]), Vec::<String>::new());

        lift_limit(sandbox, &limited);
        // Blocks that were given back, a superblock and the end of a snapshot that are lost.
        let image = thick.image();
        let hole = ["--punch-hole", "--offset", "1MiB", "--length", "1MiB", text(&image)];
        run("fallocate", &hole);
        let superblock = overwrite(&plain.image(), 1024, &[0; 4096]);
        let copy = below(&sandbox.path("pool/snapshots")).join("disk.img");
        let whole = sandbox.path("pool/whole");
        run("cp", &["--reflink=never", "--sparse=always", text(&copy), text(&whole)]);
        File::options().write(true).open(&copy).unwrap().set_len(MIB).unwrap();
        // A member of a group that is gone, and a snapshot that is there twice.
        let members = below(&sandbox.path("pool/groups"));
        let (member, aside) = (below(&members), sandbox.path("pool/aside"));
        std::fs::rename(&member, &aside).unwrap();
        let twin = members.join(copy.parent().unwrap().file_name().unwrap());
        run("cp", &["-a", text(copy.parent().unwrap()), text(&twin)]);

        let found = wrong(sandbox, &[]);
        all_is_told(&found, [&limited, &thick, &plain]);
        // Only what loses nothing is mended.
        let left = wrong(sandbox, &["--repair"]);
        assert_eq!(left.len(), found.len() - 1, "{left:#?}");
        assert!(!left.iter().any(|line| line.contains("holes")), "{left:#?}");
        assert_eq!(std::fs::metadata(&copy).unwrap().len(), MIB);

        std::fs::remove_dir_all(&twin).unwrap();
        std::fs::rename(&aside, &member).unwrap();
        std::fs::rename(&whole, &copy).unwrap();
        overwrite(&plain.image(), 1024, &superblock);
        // A stage sets the limit again.
        for life in [&limited, &thick, &plain] {
            life.up(&mut driver);
            write(life.kind, &life.target, "well");
            life.down(&mut driver);
        }
        assert_eq!(wrong(sandbox, &[]), Vec::<String>::new());
        driver.client.delete_snapshot(&single.snapshot_id).unwrap();
        driver.client.delete_group(&group).unwrap();
        for life in [&limited, &thick, &plain] {
            life.gone(&mut driver);
        }
        end(sandbox, driver);
    });
}

#[test]
fn what_runs_left_behind_is_told_when_no_driver_runs() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let name = "0123456789abcdef0123456789abcdef";
        let (unborn, dead) = (format!("incoming/s-{name}"), format!("trash/{name}.01020304"));
        let make = || {
            for place in [&unborn, &dead] {
                sandbox.make_dir(Path::new("pool").join(place));
            }
        };
        make();
        let told = |by: &str| {
            let said = orlop(sandbox, &["pool", "check", "--repair"]).unwrap();
            assert!(said.contains(&format!("2 {by}")), "{said}");
        };
        // It may be at work on both; a driver that was killed leaves such things, and the next one removes them.
        told("being made or removed by the driver that runs");
        driver.kill();
        told("half made or deleted; the driver removes them when it starts");
        assert_eq!(wrong(sandbox, &[]), Vec::<String>::new());
        driver.start_again(None);
        poll("nothing is left behind", || {
            [&unborn, &dead].iter().all(|place| !sandbox.path("pool").join(place).exists())
        });
    });
}
