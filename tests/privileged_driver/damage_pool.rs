//! A pool in trouble beside one that is well: its filesystem is read-only, full, stopped or broken in places, its marker is
//! damaged, or others put their files there.

#![expect(clippy::disallowed_methods, reason = "breaks pools as disks and people could")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{GetCapacityRequest, Topology, TopologyRequirement};
use tonic::Code;

use crate::client::Create;
use crate::damage::listed;
use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, read, try_write, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, mounts_below, poll, privileged, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Mounts the disk of a pool again.
fn mount(sandbox: &Sandbox, name: &str, directory: &str) {
    let (image, place) = (sandbox.path(format!("{name}.img")), sandbox.make_dir(directory));
    run("mount", &["-o", "loop", text(&image), text(&place)]);
}

/// The pools p, where there is more room, and q, each on a disk of its own; q is always on ext4.
pub(crate) fn mount_both(sandbox: &Sandbox, filesystem: &str) {
    let mut config = Vec::new();
    for (name, directory, kind, size) in
        [("p", "pool", filesystem, 512), ("q", "other", "ext4", 256)]
    {
        let image = sandbox.path(format!("{name}.img"));
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        run(&format!("mkfs.{kind}"), &["-q", text(&image)]);
        mount(sandbox, name, directory);
        let place = sandbox.path(directory);
        config.push(format!("[[pool]]\nname = {name:?}\npath = {place:?}\nreserve = \"0\"\n"));
    }
    std::fs::write(sandbox.path("orlop.toml"), config.concat()).unwrap();
}

/// Nothing is left in either pool, and both are unmounted.
pub(crate) fn end_both(sandbox: &Sandbox, driver: Driver) {
    for directory in ["pool", "other"] {
        for name in ["incoming", "volumes", "trash"] {
            let place = sandbox.path(directory).join(name);
            poll("nothing is left", || std::fs::read_dir(&place).unwrap().next().is_none());
        }
    }
    drop(driver);
    run("umount", &[sandbox.path("pool"), sandbox.path("other")]);
    assert_eq!(mounts_below(sandbox.dir()), Vec::<PathBuf>::new());
}

pub(crate) fn in_pool(sandbox: &Sandbox, pool: &'static str, name: &str) -> Life {
    Life::new(sandbox, Kind::Hostpath, name).with("pool", pool)
}

/// A small directory; without a pool's name in any of them.
pub(crate) fn small(name: &str, pool: Option<&'static str>) -> Create {
    let parameters = pool.into_iter().map(|pool| ("pool", pool)).collect();
    let capability = Kind::Hostpath.capability(Mode::SingleNodeMultiWriter);
    Create { name: name.to_owned(), bytes: MIB, capability, parameters }
}

/// The part of an id that names its pool.
pub(crate) fn tag(id: &str) -> &str {
    id.split('-').nth(1).unwrap()
}

/// A whole life in a pool that is well.
pub(crate) fn lives(driver: &mut Driver, mut life: Life) {
    life.born(driver);
    life.up(driver);
    write(life.kind, &life.target, "beside a pool in trouble");
    assert_eq!(read(life.kind, &life.target), "beside a pool in trouble");
    assert_eq!(driver.client.node_health(&life.id, &life.staging, &life.target), [""; 0]);
    driver.client.stats(&life.id, &life.target).unwrap();
    driver.insist("expand", |c| c.expand(&life.id, 2 * life.kind.size()));
    life.down(driver);
    life.gone(driver);
}

/// A volume in p with something in it, published.
fn precious(sandbox: &Sandbox, driver: &mut Driver) -> Life {
    let mut life = in_pool(sandbox, "p", "precious");
    life.born(driver);
    life.up(driver);
    write(life.kind, &life.target, "precious");
    life
}

fn capacity(driver: &Driver, pool: &str) -> i64 {
    let request = GetCapacityRequest {
        parameters: [("pool".to_owned(), pool.to_owned())].into(),
        ..Default::default()
    };
    let mut controller = driver.client.controller();
    let reply = driver.client.runtime.block_on(controller.get_capacity(request));
    reply.unwrap().into_inner().available_capacity
}

/// The topology of this node, as external-provisioner asks for it.
fn here() -> TopologyRequirement {
    let segments = [("topology.orlop.csi.local/node".to_owned(), "n1".to_owned())].into();
    TopologyRequirement { requisite: vec![Topology { segments }], preferred: Vec::new() }
}

/// A request that may go anywhere goes to q, although there is more room in p.
fn any_goes_to_the_other(driver: &mut Driver, id: &str) {
    let made = driver.client.create(&small("any", None)).unwrap().volume_id;
    assert_ne!(tag(&made), tag(id));
    driver.insist("delete", |c| c.delete(&made));
}

#[test]
fn a_pool_that_is_read_only_is_told_and_passed_by() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        assert!(capacity(&driver, "p") > capacity(&driver, "q"));
        let pool = sandbox.path("pool");
        run("mount", &["-o", "remount,ro", text(&pool)]);
        for restart in [false, true] {
            if restart {
                driver.restart();
            }
            assert_eq!(driver.client.health(&life.id), ["PoolReadOnly"]);
            assert_eq!(driver.client.storage_health(), ["PoolReadOnly"]);
            assert_eq!(capacity(&driver, "p"), 0);
            let refused = driver.client.create(&small("named", Some("p"))).unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            assert!(refused.message().contains("mount it for writing again"), "{refused:?}");
            // Where the claim may go to another node it is told to.
            let mut anywhere = small("named", Some("p")).request();
            anywhere.accessibility_requirements = Some(here());
            let refused = driver.client.create_as(anywhere).unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
            any_goes_to_the_other(&mut driver, &life.id);
            lives(&mut driver, in_pool(sandbox, "q", "other"));
            // What is there can be read, and shown again to who has it.
            assert_eq!(read(life.kind, &life.target), "precious");
            try_write(life.kind, &life.target, "no").unwrap_err();
        }
        life.down(&mut driver);
        driver.client.delete(&life.id).unwrap_err();
        let refused = life.try_stage(&driver.client).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("mount it for writing again"), "{refused:?}");
        let found = orlop(sandbox, &["pool", "check"]).unwrap_err();
        assert!(found.contains("its filesystem is read-only; look at"), "{found}");
        run("mount", &["-o", "remount,rw", text(&pool)]);
        assert_eq!(driver.client.health(&life.id), [""; 0]);
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "precious");
        write(life.kind, &life.target, "written again");
        life.down(&mut driver);
        life.gone(&mut driver);
        end_both(sandbox, driver);
    });
}

#[test]
fn a_pool_that_is_full_to_the_last_block_is_told_and_emptied() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        let filler = sandbox.path("pool/filler");
        let full = std::process::Command::new("dd")
            .args(["if=/dev/zero", "bs=64K", "oflag=append", "conv=notrunc,fsync"])
            .arg(format!("of={}", text(&filler)))
            .output()
            .unwrap();
        assert!(!full.status.success(), "it is full");
        assert_eq!(driver.client.health(&life.id), ["PoolNearlyFull"]);
        assert_eq!(driver.client.storage_health(), ["PoolNearlyFull"]);
        let refused = driver.client.create(&small("named", Some("p"))).unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
        let refused = driver.client.expand(&life.id, life.kind.grown()).unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
        any_goes_to_the_other(&mut driver, &life.id);
        lives(&mut driver, in_pool(sandbox, "q", "other"));
        driver.restart();
        let found = orlop(sandbox, &["pool", "check"]).unwrap_err();
        assert!(found.contains("filler: it is not the driver's"), "{found}");
        life.down(&mut driver);
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "precious");
        life.down(&mut driver);
        life.gone(&mut driver);
        std::fs::remove_file(&filler).unwrap();
        lives(&mut driver, in_pool(sandbox, "p", "again"));
        end_both(sandbox, driver);
    });
}

#[test]
fn a_pool_whose_filesystem_has_stopped_is_away_until_it_is_mounted_again() {
    privileged(|sandbox| {
        mount_both(sandbox, "xfs");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        run("sync", &["-f".as_ref(), sandbox.path("pool").as_os_str()]);
        // From here on everything is answered with EIO, as by a disk that has died.
        run("xfs_io", &["-x", "-c", "shutdown -f", text(&sandbox.path("pool"))]);
        for restart in [false, true] {
            if restart {
                driver.restart();
            }
            assert_eq!(driver.client.storage_health(), ["PoolAway"]);
            assert_eq!(driver.client.health(&life.id), ["PoolAway"]);
            for refused in [
                driver.client.create(&small("named", Some("p"))).unwrap_err(),
                driver.client.delete(&life.id).unwrap_err(),
                // A volume of that name may be in the pool that is away.
                driver.client.create(&small("any", None)).unwrap_err(),
            ] {
                assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
                assert!(refused.message().contains("nput/output error"), "{refused:?}");
            }
            lives(&mut driver, in_pool(sandbox, "q", "other"));
        }
        let found = orlop(sandbox, &["pool", "check", "p"]).unwrap_err();
        assert!(found.contains("nput/output error"), "{found}");
        let away = orlop(sandbox, &["volume", "list"]).unwrap_err();
        assert!(away.contains("nput/output error"), "{away}");
        life.down(&mut driver);
        run("umount", &[sandbox.path("pool")]);
        mount(sandbox, "p", "pool");
        poll("the pool is here", || driver.client.storage_health().is_empty());
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "precious");
        life.down(&mut driver);
        life.gone(&mut driver);
        end_both(sandbox, driver);
    });
}

/// The places of the blocks of a directory on an ext4, in bytes.
fn blocks_of(image: &Path, place: &str) -> Vec<u64> {
    let told = run("debugfs", &["-R", &format!("blocks {place}"), text(image)]);
    told.split_whitespace().map(|block| block.parse::<u64>().unwrap() * 4096).collect()
}

/// Everybody tells of a volume whose blocks cannot be read, and nothing is done to it.
fn is_unreadable(sandbox: &Sandbox, driver: &Driver, life: &Life) {
    let key = life.id.split('-').nth(2).unwrap();
    let expected = ["DataUnreadable"];
    assert_eq!(driver.client.health(&life.id), expected);
    assert_eq!(driver.client.storage_health(), ["PoolFilesystemErrors"]);
    let all = driver.client.all_health();
    assert!(all.iter().any(|(id, told)| id.contains(key) && told == &expected), "{all:?}");
    driver.client.delete(&life.id).unwrap_err();
    life.try_stage(&driver.client).unwrap_err();
    driver.client.create(&life.create).unwrap_err();
    let found = orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
    let listed = orlop(sandbox, &["volume", "list"]).unwrap();
    for told in [found, listed] {
        let row = told.lines().find(|row| row.contains(key)).unwrap();
        assert!(row.contains("look at the kernel's log, check the disk"), "{row}");
    }
}

#[test]
fn a_volume_whose_blocks_cannot_be_read_is_told_and_its_neighbours_go_on() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        let mut neighbour = in_pool(sandbox, "p", "neighbour");
        neighbour.born(&mut driver);
        life.down(&mut driver);
        driver.kill();
        run("umount", &[sandbox.path("pool")]);
        // The disk loses the block of its directory.
        let key = life.id.split('-').nth(2).unwrap();
        let image = sandbox.path("p.img");
        let place = blocks_of(&image, &format!("/volumes/{key}"))[0];
        let disk = File::options().read(true).write(true).open(&image).unwrap();
        let mut good = [0; 4096];
        disk.read_exact_at(&mut good, place).unwrap();
        disk.write_all_at(&[0xa5; 4096], place).unwrap();
        disk.sync_all().unwrap();
        mount(sandbox, "p", "pool");
        driver.start_again(None);
        is_unreadable(sandbox, &driver, &life);
        assert_eq!(listed(&driver), [&*neighbour.id]);
        neighbour.up(&mut driver);
        write(neighbour.kind, &neighbour.target, "beside it");
        neighbour.down(&mut driver);
        neighbour.gone(&mut driver);
        lives(&mut driver, in_pool(sandbox, "q", "other"));
        driver.kill();
        run("umount", &[sandbox.path("pool")]);
        disk.write_all_at(&good, place).unwrap();
        disk.sync_all().unwrap();
        run("e2fsck", &["-f", "-p", text(&image)]);
        mount(sandbox, "p", "pool");
        driver.start_again(None);
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "precious");
        life.down(&mut driver);
        life.gone(&mut driver);
        end_both(sandbox, driver);
    });
}

#[test]
fn a_marker_or_state_that_is_damaged_takes_one_pool_away() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        let (marker, state) = ("pool/pool.json", "root/state/p.pool.json");
        let later = "{\"format\": 2, \"minReader\": 9, \"everything\": \"else\"}";
        for (file, content, told, remedy) in [
            (marker, "", "EOF while parsing", "write it anew with the uuid that state/"),
            (marker, later, "asks for reader 9", "run that release"),
            (state, "{\"format\": 1, \"uuid\"", "EOF while parsing", "remove it"),
        ] {
            let path = sandbox.path(file);
            let good = std::fs::read(&path).unwrap();
            std::fs::write(&path, content).unwrap();
            driver.restart();
            assert_eq!(driver.client.storage_health(), ["PoolAway"]);
            let refused = driver.client.delete(&life.id).unwrap_err();
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            lives(&mut driver, in_pool(sandbox, "q", "other"));
            let found = orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
            assert!(found.contains(told) && found.contains(remedy), "{found}");
            assert!(driver.log().contains(told), "{}", driver.log());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "nothing is made anew");
            assert_eq!(read(life.kind, &life.target), "precious");
            life.down(&mut driver);
            std::fs::write(&path, good).unwrap();
            poll("the pool is here", || driver.client.storage_health().is_empty());
            life.up(&mut driver);
        }
        life.down(&mut driver);
        life.gone(&mut driver);
        end_both(sandbox, driver);
    });
}

#[test]
fn what_others_put_into_a_pool_is_told_and_left_alone() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let life = precious(sandbox, &mut driver);
        let key = life.id.split('-').nth(2).unwrap();
        let foreign = [
            "backup.tar".to_owned(),
            "volumes/notes".to_owned(),
            format!("volumes/{key}/notes"),
            "incoming/notes".to_owned(),
            "trash/notes".to_owned(),
            "snapshots/notes".to_owned(),
            "groups/notes".to_owned(),
        ];
        for place in &foreign {
            std::fs::write(sandbox.path("pool").join(place), "somebody's").unwrap();
        }
        // A disk that was copied volume by volume.
        let copy = sandbox.path("other/volumes").join(key);
        run("cp", &["-a".as_ref(), life.dir().as_os_str(), copy.as_os_str()]);
        driver.restart();
        assert_eq!(driver.client.health(&life.id), [""; 0]);
        assert_eq!(driver.client.create(&life.create).unwrap().volume_id, life.id);
        lives(&mut driver, in_pool(sandbox, "p", "beside"));
        let found = orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
        for place in &foreign {
            assert!(found.contains(&format!("{place}: it is not the driver's")), "{found}");
        }
        let twice = format!("volume {key} is in the pools p (generation ");
        assert!(found.contains(&twice) && found.contains("9 findings"), "{found}");
        life.down(&mut driver);
        life.gone(&mut driver);
        for place in &foreign[..2] {
            let kept = std::fs::read_to_string(sandbox.path("pool").join(place)).unwrap();
            assert_eq!(kept, "somebody's");
        }
        for place in &foreign {
            // What lay in the volume's directory went with it.
            let _gone = std::fs::remove_file(sandbox.path("pool").join(place));
        }
        std::fs::remove_dir_all(copy).unwrap();
        driver.restart();
        end_both(sandbox, driver);
    });
}
