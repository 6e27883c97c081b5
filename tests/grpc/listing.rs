//! ListVolumes: pages, a stable order, and change between two pages.

use std::collections::BTreeSet;

use super::common::Machine;
use super::driver::{Driver, HOSTPATH};

/// The ids of one page, and the token of the next.
async fn page(driver: &Driver, most: i32, token: &str) -> (Vec<String>, String) {
    let reply = driver.list(most, token).await.unwrap();
    let ids = reply.entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect();
    (ids, reply.next_token)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_hold_every_volume_once_in_one_order() {
    let driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    assert_eq!(page(&driver, 0, "").await, (Vec::new(), String::new()));
    for index in 0..7 {
        let mut request = HOSTPATH.create(&format!("pvc-{index}"));
        let pool = if index % 3 == 0 { "one" } else { "two" };
        request.parameters.insert("pool".to_owned(), pool.to_owned());
        driver.create(request).await.unwrap();
    }
    let (all, token) = page(&driver, 0, "").await;
    assert_eq!((all.len(), token.as_str()), (7, ""));
    for most in 1..9 {
        let (mut seen, mut token) = page(&driver, most, "").await;
        while !token.is_empty() {
            assert!(token.len() <= 128);
            let (ids, next) = page(&driver, most, &token).await;
            assert!(!ids.is_empty() && ids.len() <= usize::try_from(most).unwrap());
            seen.extend(ids);
            token = next;
        }
        assert_eq!(seen, all, "{most} a page");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_between_pages_neither_doubles_nor_hides_a_volume() {
    let driver = Driver::start().await;
    for index in 0..12 {
        driver.make(HOSTPATH, &format!("pvc-{index}")).await;
    }
    let (all, _) = page(&driver, 0, "").await;
    let (mut seen, mut token) = page(&driver, 2, "").await;
    let mut gone = BTreeSet::new();
    let mut round = 0;
    while !token.is_empty() {
        // The last one told, on which the token may rest, and one that is still to come.
        let mut coming = all.iter().filter(|id| !seen.contains(id) && !gone.contains(*id));
        let victims = [seen.last().cloned(), coming.next_back().cloned()];
        for victim in victims.into_iter().flatten() {
            driver.delete(&victim).await.unwrap();
            gone.insert(victim);
        }
        round += 1;
        driver.make(HOSTPATH, &format!("new-{round}")).await;
        let (ids, next) = page(&driver, 2, &token).await;
        seen.extend(ids);
        token = next;
    }
    let distinct: BTreeSet<_> = seen.iter().cloned().collect();
    assert_eq!(distinct.len(), seen.len(), "a volume was told twice");
    let stayed = all.into_iter().filter(|id| !gone.contains(id));
    let hidden: Vec<_> = stayed.filter(|id| !distinct.contains(id)).collect();
    assert_eq!(hidden, Vec::<String>::new(), "never told");
    assert!(round > 2, "several pages");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claim_is_kept_beside_the_request() {
    let driver = Driver::start().await;
    let mut request = HOSTPATH.create("pvc-1");
    for (key, word) in [("namespace", "shop"), ("name", "data-db-0")] {
        request.parameters.insert(format!("csi.storage.k8s.io/pvc/{key}"), word.to_owned());
    }
    let id = driver.create(request).await.unwrap().volume_id;
    let volume = driver.engine.get(&id.parse().unwrap()).unwrap();
    let claim = volume.claim.clone().unwrap();
    assert_eq!((claim.namespace.as_str(), claim.name.as_str()), ("shop", "data-db-0"));
    assert!(volume.request.parameters.keys().all(|key| !key.contains('/')), "{volume:?}");
    // A provisioner that does not tell it any more asks for the same volume.
    assert_eq!(driver.make(HOSTPATH, "pvc-1").await, id);
    let record = driver.machine.pool("default").join("volumes");
    let record = record.join(&driver.machine.names("default", "volumes")[0]).join("volume.json");
    let record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(record).unwrap()).unwrap();
    assert_eq!(record["claim"], serde_json::json!({ "namespace": "shop", "name": "data-db-0" }));
    driver.stop().await;
}
