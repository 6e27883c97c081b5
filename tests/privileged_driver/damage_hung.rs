//! A disk that hangs beside one that works. A frozen filesystem is such a disk: whoever writes to it waits, without an
//! error and without an end.

#![expect(
    clippy::disallowed_methods,
    reason = "writes configurations and makes disks as an operator could"
)]

use std::fs::File;
use std::path::{Path, PathBuf};

use tonic::Code;

use crate::client::{Client, Create};
use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, read, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, mounts_below, poll, privileged, run};

/// More calls than the driver works at for one pool, and more than one may have for all of its lanes together.
const MANY: usize = 40;

/// A filesystem that is frozen until this is dropped: a frozen one cannot be unmounted, nor its users killed.
struct Frozen(PathBuf);

impl Frozen {
    fn new(place: &Path) -> Self {
        run("fsfreeze", &["--freeze".as_ref(), place.as_os_str()]);
        Self(place.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["--unfreeze".as_ref(), self.0.as_os_str()]);
    }
}

/// The pools p, where there is more room, and q, each on a disk of its own.
fn mount_both(sandbox: &Sandbox) {
    let mut config = String::new();
    for (name, directory, size) in [("p", "pool", 512), ("q", "other", 256)] {
        let (image, place) = (sandbox.path(format!("{name}.img")), sandbox.make_dir(directory));
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), place.to_str().unwrap()]);
        config += &format!("[[pool]]\nname = {name:?}\npath = {place:?}\nreserve = \"0\"\n");
    }
    std::fs::write(sandbox.path("orlop.toml"), config).unwrap();
}

fn in_pool(sandbox: &Sandbox, pool: &'static str, name: &str) -> Life {
    Life::new(sandbox, Kind::Hostpath, name).with("pool", pool)
}

fn small(name: &str, pool: Option<&'static str>) -> Create {
    let parameters = pool.into_iter().map(|pool| ("pool", pool)).collect();
    let capability = Kind::Hostpath
        .capability(orlop::csi::proto::volume_capability::access_mode::Mode::SingleNodeMultiWriter);
    Create { name: name.to_owned(), bytes: MIB, capability, parameters }
}

/// A whole life in a pool, while something else hangs.
fn lives(driver: &mut Driver, mut life: Life) {
    life.born(driver);
    life.up(driver);
    write(life.kind, &life.target, "beside a disk that hangs");
    assert_eq!(read(life.kind, &life.target), "beside a disk that hangs");
    assert_eq!(driver.client.node_health(&life.id, &life.staging, &life.target), [""; 0]);
    driver.client.stats(&life.id, &life.target).unwrap();
    driver.insist("expand", |c| c.expand(&life.id, 2 * life.kind.size()));
    life.down(driver);
    life.gone(driver);
}

fn end(sandbox: &Sandbox, driver: Driver) {
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

#[test]
fn a_pool_that_hangs_holds_up_nobody_else() {
    privileged(|sandbox| {
        mount_both(sandbox);
        let mut driver = Driver::start_configured(sandbox, None);
        let mut stuck = in_pool(sandbox, "p", "stuck");
        stuck.born(&mut driver);
        stuck.up(&mut driver);
        write(stuck.kind, &stuck.target, "written before");
        let tag = stuck.id.split('-').nth(1).unwrap().to_owned();
        let frozen = Frozen::new(&sandbox.path("pool"));
        // Each of them has a connection of its own, as the sidecars and kubelet have.
        let client = || Client::new(sandbox.path("csi.sock"));
        let ids: Vec<String> = std::thread::scope(|scope| {
            let create = |pool: Option<&'static str>, number: usize| {
                let create = small(&format!("{pool:?}-{number}"), pool);
                scope.spawn(move || client().create(&create).unwrap().volume_id)
            };
            let named: Vec<_> = (0..MANY).map(|number| create(Some("p"), number)).collect();
            let any: Vec<_> = (0..MANY).map(|number| create(None, number)).collect();
            poll("it is told of the volume", || driver.client.health(&stuck.id) == ["PoolHung"]);
            assert_eq!(driver.client.storage_health(), ["PoolHung"]);
            assert_eq!(driver.client.listed_health(&stuck.id).unwrap(), ["PoolHung"]);
            assert!(driver.client.is_ready());
            for number in 0..3 {
                lives(&mut driver, in_pool(sandbox, "q", &format!("free {number}")));
            }
            // Who may have either pool gets the other one, however many wait for the first.
            let id = driver.insist("create", |c| c.create(&small("late", None))).volume_id;
            assert_ne!(id.split('-').nth(1), Some(&*tag));
            driver.insist("delete", |c| c.delete(&id));
            poll("all but some of those with a choice are served", || {
                any.iter().filter(|made| made.is_finished()).count() > MANY / 2
            });
            assert!(!named.iter().any(|made| made.is_finished()));
            drop(frozen);
            named.into_iter().chain(any).map(|made| made.join().unwrap()).collect()
        });
        poll("it is well again", || driver.client.health(&stuck.id).is_empty());
        assert_eq!(driver.client.storage_health(), [""; 0]);
        let here = ids.iter().filter(|id| id.split('-').nth(1) == Some(&*tag)).count();
        assert!(here >= MANY && here < MANY + MANY / 2, "{here} went to the pool that hung");
        for id in &ids {
            driver.insist("delete", |c| c.delete(id));
        }
        assert_eq!(read(stuck.kind, &stuck.target), "written before");
        write(stuck.kind, &stuck.target, "written after");
        stuck.down(&mut driver);
        stuck.gone(&mut driver);
        end(sandbox, driver);
    });
}

#[test]
fn a_driver_starts_beside_a_pool_that_hangs() {
    privileged(|sandbox| {
        mount_both(sandbox);
        let mut driver = Driver::start_configured(sandbox, None);
        let mut stuck = in_pool(sandbox, "p", "stuck");
        stuck.born(&mut driver);
        stuck.up(&mut driver);
        write(stuck.kind, &stuck.target, "written before");
        driver.kill();
        // What a killed birth left has to be removed before the pool is open, and cannot be.
        let unborn = "0123456789abcdef0123456789abcdef";
        std::fs::create_dir_all(sandbox.path("pool/incoming").join(unborn).join("data")).unwrap();
        let frozen = Frozen::new(&sandbox.path("pool"));
        driver.start_again(None);
        lives(&mut driver, in_pool(sandbox, "q", "free"));
        assert_eq!(driver.client.storage_health(), ["PoolAway"]);
        assert_eq!(driver.client.health(&stuck.id), ["PoolAway"]);
        let refused = driver.client.delete(&stuck.id).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert!(refused.message().contains("does not answer"), "{refused:?}");
        // Nobody knows whether it has the volume already.
        let refused = driver.client.create(&small("any", None)).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        // Teardown needs no pool.
        stuck.down(&mut driver);
        let listed = orlop(sandbox, &["volume", "list"]).unwrap();
        assert!(listed.contains(&stuck.id), "{listed}");
        drop(frozen);
        poll("it is open", || driver.client.storage_health().is_empty());
        assert!(!sandbox.path("pool/incoming").join(unborn).exists());
        stuck.up(&mut driver);
        assert_eq!(read(stuck.kind, &stuck.target), "written before");
        stuck.down(&mut driver);
        stuck.gone(&mut driver);
        end(sandbox, driver);
    });
}
