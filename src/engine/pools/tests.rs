//! The life of a pool: made once, known, away, copied, waited for.

use super::*;
use crate::engine::offline;
use crate::host::fake::FakeHost;
use crate::volume::Topology;

fn pools(home: &Path, names: &[&str], init: bool) -> Pools {
    let config = |name: &&str| PoolConfig {
        name: (*name).to_owned(),
        path: home.join(name),
        reserve: None,
        overcommit: 1.0,
        create: None,
    };
    let config = EngineConfig {
        root_dir: home.join("root"),
        pools: names.iter().map(config).collect(),
        init_pools: init,
        kubelet_dir: home.join("kubelet"),
        topology: Topology::new(),
        node_id: "n1".to_owned(),
        attach: false,
        max_volumes: None,
    };
    let state = Arc::new(StateDir::open(&config.root_dir).unwrap());
    let pools = Pools::new(&config, Arc::new(FakeHost::new()), state);
    for name in names {
        pools.retry(name);
    }
    pools
}

/// Closes pools; the thread that empties their trash may hold them a moment longer.
fn close(pools: Pools, home: &Path) {
    drop(pools);
    let state = StateDir::open(&home.join("root")).unwrap();
    let start = std::time::Instant::now();
    while ["p", "a", "b"].iter().any(|name| state.lock(name).is_err()) {
        assert!(start.elapsed().as_secs() < 60, "a closed pool is still locked");
        std::thread::yield_now();
    }
}

fn uuid(pools: &Pools, name: &str) -> Option<PoolUuid> {
    let report = pools.reports().into_iter().find(|report| report.name == name)?;
    match report.status {
        PoolStatus::Ready { uuid } => Some(uuid),
        PoolStatus::Waiting(_) | PoolStatus::Away(_) => None,
    }
}

#[test]
fn a_pool_that_was_known_is_never_made_anew() {
    let home = tempfile::tempdir().unwrap();
    let pool = pools(home.path(), &["p"], true);
    let first = uuid(&pool, "p").unwrap();
    close(pool, home.path());
    let (here, elsewhere) = (home.path().join("p"), home.path().join("elsewhere"));
    #[expect(clippy::disallowed_methods, reason = "the disk is unmounted")]
    std::fs::rename(&here, &elsewhere).unwrap();
    std::fs::create_dir(&here).unwrap();
    assert_eq!(uuid(&pools(home.path(), &["p"], true), "p"), None);
    assert_eq!(std::fs::read_dir(&here).unwrap().count(), 0, "nothing is made there");
    std::fs::remove_dir(&here).unwrap();
    #[expect(clippy::disallowed_methods, reason = "the disk is mounted again")]
    std::fs::rename(&elsewhere, &here).unwrap();
    assert_eq!(uuid(&pools(home.path(), &["p"], false), "p"), Some(first));
}

#[test]
fn only_an_explicit_act_makes_a_pool() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(uuid(&pools(home.path(), &["p"], false), "p"), None);
    assert!(!home.path().join("p").exists());
    std::fs::create_dir(home.path().join("p")).unwrap();
    std::fs::File::create(home.path().join("p/somebody-elses")).unwrap();
    assert_eq!(uuid(&pools(home.path(), &["p"], true), "p"), None);
    assert_eq!(std::fs::read_dir(home.path().join("p")).unwrap().count(), 1);
}

#[test]
fn of_two_copies_neither_is_served_until_one_has_a_new_identity() {
    let home = tempfile::tempdir().unwrap();
    let pool = pools(home.path(), &["a"], true);
    let first = uuid(&pool, "a").unwrap();
    close(pool, home.path());
    std::fs::create_dir(home.path().join("b")).unwrap();
    std::fs::copy(home.path().join("a/pool.json"), home.path().join("b/pool.json")).unwrap();
    let both = pools(home.path(), &["a", "b"], false);
    assert!(both.by_tag(&first.tag()).is_err());
    assert!(both.here().is_empty());
    assert!(both.first_away().is_some(), "a volume may be in either");
    close(both, home.path());
    let (old, new) = offline::new_uuid(&home.path().join("b")).unwrap();
    assert_eq!(old, first);
    let both = pools(home.path(), &["a", "b"], false);
    assert_eq!(uuid(&both, "b"), Some(new.clone()));
    assert!(both.by_tag(&first.tag()).is_ok() && both.by_tag(&new.tag()).is_ok());
    assert!(both.first_away().is_none());
}

#[test]
fn a_second_daemon_waits() {
    let home = tempfile::tempdir().unwrap();
    let first = pools(home.path(), &["p"], true);
    let second = pools(home.path(), &["p"], true);
    assert!(first.is_ready() && !second.is_ready());
    close(first, home.path());
    second.retry("p");
    assert!(second.is_ready() && uuid(&second, "p").is_some());
}
