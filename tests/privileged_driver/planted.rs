//! Links that somebody planted in a pool or a volume never lead outside: nothing there is read as a volume, changed or
//! removed.

#![expect(clippy::disallowed_methods, reason = "plants what a hostile pod or disk could hold")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, poll, privileged, run};

/// A directory outside the pool that looks like a volume, and must stay as it is.
struct Outside {
    place: PathBuf,
    before: String,
}

impl Outside {
    fn new(sandbox: &Sandbox) -> Self {
        let place = sandbox.make_dir("outside");
        for directory in ["data/deep", "volumes", "trash"] {
            std::fs::create_dir_all(place.join(directory)).unwrap();
        }
        for file in ["volume.json", "pool.json", "disk.img", "data/file", "data/deep/file"] {
            std::fs::write(place.join(file), "precious ".repeat(1000)).unwrap();
        }
        let before = Self::look(&place);
        Self { place, before }
    }

    fn look(place: &Path) -> String {
        let listing = ["-printf", "%P %y %s %m %T@ %C@\\n"];
        run("find", &[&[place.to_str().unwrap()], &listing[..]].concat())
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(Self::look(&self.place), self.before);
    }
}

const KEY: &str = "0123456789abcdef0123456789abcdef";

/// The names in a directory.
fn names(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn links_where_a_driver_removes_things_are_not_followed() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        driver.kill();
        let outside = Outside::new(sandbox);
        let pool = sandbox.path("pool");
        for place in [
            format!("incoming/{KEY}"),
            format!("incoming/s-{KEY}"),
            format!("trash/{KEY}.01020304"),
            format!("trash/g-{KEY}.01020304"),
        ] {
            symlink(&outside.place, pool.join(place)).unwrap();
        }
        // In entries that are removed: links in the place of data, image, record and members, and a mount.
        for entry in [format!("trash/{KEY}.0a0b0c0d"), format!("incoming/g-{KEY}")] {
            let entry = pool.join(entry);
            std::fs::create_dir(&entry).unwrap();
            for name in ["data", "disk.img", "volume.json", "group.json", KEY] {
                symlink(outside.place.join("data"), entry.join(name)).unwrap();
            }
            symlink(outside.place.join("data/file"), entry.join("file")).unwrap();
        }
        let mounted = pool.join(format!("trash/{KEY}.0e0e0e0e/data/mounted"));
        std::fs::create_dir_all(&mounted).unwrap();
        run("mount", &["--bind".as_ref(), outside.place.as_os_str(), mounted.as_os_str()]);
        driver.start_again(None);
        let left = format!("{KEY}.0e0e0e0e");
        poll("all but the mount is removed", || {
            names(&pool.join("incoming")).is_empty() && names(&pool.join("trash")) == [&*left]
        });
        outside.is_untouched();
        run("umount", &[&mounted]);
        check_nothing_left(sandbox, &mut driver);
        outside.is_untouched();
    });
}

#[test]
fn links_in_the_place_of_a_volume_s_parts_are_refused() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let outside = Outside::new(sandbox);
        for kind in [Kind::Hostpath, Kind::Ext4, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            let (dir, aside) = (life.dir(), sandbox.path("aside"));
            let part = if kind == Kind::Hostpath { "data" } else { "disk.img" };
            std::fs::rename(dir.join(part), &aside).unwrap();
            // Relative and absolute, inside the pool and outside.
            let to_outside = Path::new("../../../outside").join(part);
            for target in [outside.place.join(part), to_outside, dir.join("volume.json")] {
                symlink(&target, dir.join(part)).unwrap();
                life.try_stage(&driver.client).unwrap_err();
                driver.client.delete(&life.id).unwrap_err();
                assert_eq!(driver.client.health(&life.id), ["DataMissing"]);
                orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
                orlop(sandbox, &["volume", "list", "--count"]).unwrap();
                std::fs::remove_file(dir.join(part)).unwrap();
            }
            std::fs::rename(&aside, dir.join(part)).unwrap();
            life.up(&mut driver);
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        let planted = sandbox.path("pool/volumes").join(KEY);
        symlink(&outside.place, &planted).unwrap();
        driver.restart();
        let told = driver.client.all_health();
        assert!(told.len() == 1 && told[0].0.contains(KEY), "{told:?}");
        let listed = orlop(sandbox, &["volume", "list"]).unwrap();
        assert!(listed.contains("a symbolic link lies there"), "{listed}");
        orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
        driver.client.delete(&told[0].0).unwrap_err();
        std::fs::remove_file(planted).unwrap();
        outside.is_untouched();
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn links_in_the_place_of_a_pool_s_parts_take_it_away() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        driver.kill();
        let outside = Outside::new(sandbox);
        for part in ["volumes", "trash", "incoming", "pool.json"] {
            let place = sandbox.path("pool").join(part);
            let aside = sandbox.path("aside");
            std::fs::rename(&place, &aside).unwrap();
            symlink(outside.place.join(part), &place).unwrap();
            driver.start_again(None);
            assert_eq!(driver.client.storage_health(), ["PoolAway"], "{part}");
            orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
            std::fs::remove_file(&place).unwrap();
            std::fs::rename(&aside, &place).unwrap();
            poll("the pool is here", || driver.client.storage_health().is_empty());
            driver.kill();
            outside.is_untouched();
        }
    });
}

#[test]
fn links_that_a_pod_made_in_its_volume_lead_nobody_out() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let outside = Outside::new(sandbox);
        for on_delete in ["delete", "wipe", "archive"] {
            let mut life =
                Life::new(sandbox, Kind::Hostpath, on_delete).with("onDelete", on_delete);
            life.born(&mut driver);
            life.up(&mut driver);
            write(life.kind, &life.target, "by its pod");
            let deep = life.target.join("a/b");
            std::fs::create_dir_all(&deep).unwrap();
            symlink(&outside.place, deep.join("directory")).unwrap();
            symlink(outside.place.join("data/file"), deep.join("file")).unwrap();
            symlink("../../../../../../outside", deep.join("relative")).unwrap();
            // Kubelet's own name for a device, and ours of a volume's parts.
            symlink(outside.place.join("disk.img"), life.target.join("device")).unwrap();
            symlink(&outside.place, life.target.join("data")).unwrap();
            assert_eq!(read(life.kind, &life.target), "by its pod");
            driver.client.stats(&life.id, &life.target).unwrap();
            orlop(sandbox, &["volume", "list", "--count"]).unwrap();
            life.down(&mut driver);
            life.gone(&mut driver);
            poll("it is removed", || names(&sandbox.path("pool/trash")).is_empty());
            outside.is_untouched();
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
