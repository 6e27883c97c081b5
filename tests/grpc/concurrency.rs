//! Many callers at once, and callers that go away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orlop::csi::proto::CreateVolumeRequest;
use tonic::{Code, Request};

use super::driver::{Driver, KINDS, LOOP, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_creates_of_one_name_make_one_volume() {
    let driver = Arc::new(Driver::start().await);
    for (index, kind) in KINDS.into_iter().enumerate() {
        let name = format!("pvc-{index}");
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let (driver, request) = (Arc::clone(&driver), kind.create(&name));
                tokio::spawn(async move { driver.create(request).await })
            })
            .collect();
        let mut ids = BTreeSet::new();
        for call in calls {
            match call.await.unwrap() {
                Ok(volume) => drop(ids.insert(volume.volume_id)),
                busy => assert_eq!(refused("busy", busy), Code::Aborted),
            }
        }
        assert_eq!(ids.len(), 1, "{ids:?}");
        assert_eq!(driver.machine.names("default", "volumes").len(), index + 1);
    }
    Arc::into_inner(driver).unwrap().stop().await;
}

/// Asks until no earlier job is in the way.
async fn when_free(driver: &Driver, request: CreateVolumeRequest) -> String {
    loop {
        match driver.create(request.clone()).await {
            Ok(volume) => return volume.volume_id,
            Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_goes_on_when_its_caller_has_gone() {
    let driver = Driver::start().await;
    let slow = Arc::new(driver.machine.host.block_next("format"));
    let mut request = Request::new(LOOP.create("pvc"));
    request.set_timeout(Duration::from_secs(1));
    let mut client = driver.controller();
    let call = tokio::spawn(async move { client.create_volume(request).await });
    let reached = Arc::clone(&slow);
    tokio::task::spawn_blocking(move || reached.wait()).await.unwrap();
    let code = refused("the deadline", call.await.unwrap());
    assert!(matches!(code, Code::Cancelled | Code::DeadlineExceeded), "{code:?}");
    // The job still runs: nobody else may touch that name, everybody else may work.
    for _ in 0..3 {
        let busy = driver.create(LOOP.create("pvc")).await;
        assert_eq!(refused("the job runs", busy), Code::Aborted);
    }
    driver.make(LOOP, "another").await;
    Arc::into_inner(slow).unwrap().release();
    let id = when_free(&driver, LOOP.create("pvc")).await;
    assert_eq!(driver.get(&id).await.unwrap().volume_id, id);
    assert_eq!(driver.list(0, "").await.unwrap().entries.len(), 2);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_call_makes_others_on_its_volume_wait_outside() {
    let driver = Arc::new(Driver::start().await);
    let id = driver.make(LOOP, "pvc").await;
    let [staging, other] = ["staging", "other"].map(|n| driver.machine.path(n));
    let slow = Arc::new(driver.machine.host.block_next("mount"));
    let stage = {
        let (driver, id, staging) = (Arc::clone(&driver), id.clone(), staging.clone());
        tokio::spawn(async move { driver.stage(&id, &staging, LOOP.shared()).await })
    };
    let reached = Arc::clone(&slow);
    tokio::task::spawn_blocking(move || reached.wait()).await.unwrap();
    for busy in [
        driver.stage(&id, &staging, LOOP.shared()).await,
        driver.unstage(&id, &staging).await,
        driver.unpublish(&id, &other).await,
        driver.delete(&id).await,
        driver.publish(&id, (&staging, &other), LOOP.shared(), false).await,
    ] {
        assert_eq!(refused("busy", busy), Code::Aborted);
    }
    // Looking is free.
    driver.get(&id).await.unwrap();
    driver.list(0, "").await.unwrap();
    Arc::into_inner(slow).unwrap().release();
    stage.await.unwrap().unwrap();
    driver.unstage(&id, &staging).await.unwrap();
    driver.assert_clean();
    Arc::into_inner(driver).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whole_lives_beside_each_other() {
    let driver = Arc::new(Driver::start().await);
    let lives = (0..16).map(|index| {
        let (driver, kind) = (Arc::clone(&driver), KINDS[index % 3]);
        tokio::spawn(async move {
            let [staging, target] = ["s", "t"].map(|n| driver.machine.path(format!("{n}-{index}")));
            for round in 0..5 {
                let id = driver.make(kind, &format!("pvc-{index}-{round}")).await;
                driver.stage(&id, &staging, kind.shared()).await.unwrap();
                driver.publish(&id, (&staging, &target), kind.shared(), false).await.unwrap();
                driver.unpublish(&id, &target).await.unwrap();
                driver.unstage(&id, &staging).await.unwrap();
                driver.delete(&id).await.unwrap();
            }
        })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.unwrap();
    }
    driver.assert_clean();
    assert_eq!(driver.list(0, "").await.unwrap().entries, []);
    Arc::into_inner(driver).unwrap().stop().await;
}
