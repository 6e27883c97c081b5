//! A disk that hangs beside one that works. A frozen filesystem is such a disk: whoever writes to it waits, without an
//! error and without an end.

use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use tonic::Code;

use crate::client::Client;
use crate::damage_pool::{end_both, in_pool, lives, mount_both, small, tag};
use crate::driver::Driver;
use crate::life::{read, write};
use crate::managed::orlop;
use crate::privileged::{poll, privileged, run};

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

#[test]
fn a_pool_that_hangs_holds_up_nobody_else() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
        let mut driver = Driver::start_configured(sandbox, None);
        let mut stuck = in_pool(sandbox, "p", "stuck");
        stuck.born(&mut driver);
        stuck.up(&mut driver);
        write(stuck.kind, &stuck.target, "written before");
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
            assert_ne!(tag(&id), tag(&stuck.id));
            driver.insist("delete", |c| c.delete(&id));
            poll("all but some of those with a choice are served", || {
                any.iter().filter(|made| made.is_finished()).count() > MANY / 2
            });
            assert!(!named.iter().any(ScopedJoinHandle::is_finished));
            drop(frozen);
            named.into_iter().chain(any).map(|made| made.join().unwrap()).collect()
        });
        poll("it is well again", || driver.client.health(&stuck.id).is_empty());
        assert_eq!(driver.client.storage_health(), [""; 0]);
        let here = ids.iter().filter(|id| tag(id) == tag(&stuck.id)).count();
        assert!((MANY..MANY + MANY / 2).contains(&here), "{here} went to the pool that hung");
        for id in &ids {
            driver.insist("delete", |c| c.delete(id));
        }
        assert_eq!(read(stuck.kind, &stuck.target), "written before");
        write(stuck.kind, &stuck.target, "written after");
        stuck.down(&mut driver);
        stuck.gone(&mut driver);
        end_both(sandbox, driver);
    });
}

#[test]
fn a_driver_starts_beside_a_pool_that_hangs() {
    privileged(|sandbox| {
        mount_both(sandbox, "ext4");
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
        end_both(sandbox, driver);
    });
}
