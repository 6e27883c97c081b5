//! Health of pools, lists of it, and what older clients read.

use orlop::csi::proto::*;
use orlop::csi::{self, Features};
use orlop::host::fake::FilesystemTrouble;
use orlop::host::{PoolFilesystem, Space};
use orlop::volume::ByteSize;
use tonic::Code;

use super::common::Machine;
use super::driver::{DEFAULT, Driver, HOSTPATH, KINDS, LOOP, map, range, refused, text};
use super::health::{
    NONE, Used, get, get_on_node, list, reasons, rename, storage, told, used, volume_of,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_that_are_away_are_told_of_their_volumes_and_of_storage() {
    let mut driver = Driver::start_on(Machine::new(), &["one", "two"], true).await;
    let mut ids = Vec::new();
    for pool in ["one", "two"] {
        let mut request = LOOP.create(pool);
        request.parameters.extend(map(&[("pool", pool)]));
        ids.push(driver.create(request).await.unwrap().volume_id);
    }
    let away = |driver: &Driver, pool: &str| {
        rename(&driver.machine.pool(pool), &driver.machine.path(format!("{pool}-away")));
    };
    away(&driver, "one");
    for _ in 0..2 {
        let health = get(&driver, &ids[0]).await.unwrap();
        assert_eq!(reasons(&ids[0], health), ["PoolAway"]);
        let health = get_on_node(&driver, &ids[0], "", "/some/path").await.unwrap();
        assert_eq!(reasons(&ids[0], health), ["PoolAway"]);
        assert_eq!(told(&driver, &ids[1]).await, NONE);
        let (reasons, messages) = storage(&driver).await;
        assert_eq!(reasons, ["PoolAway"]);
        assert!(messages.contains("pool one") && !messages.contains("pool two"), "{messages}");
        // Known from the root directory, also after a start.
        let machine = driver.stop().await;
        driver = Driver::start_on(machine, &["one", "two"], true).await;
    }
    away(&driver, "two");
    let (reasons, messages) = storage(&driver).await;
    assert_eq!(reasons, ["PoolAway"]);
    assert!(messages.contains("pool one") && messages.contains("pool two"), "{messages}");
    for pool in ["one", "two"] {
        rename(&driver.machine.path(format!("{pool}-away")), &driver.machine.pool(pool));
    }
    for id in &ids {
        assert_eq!(told(&driver, id).await, NONE);
    }
    assert_eq!(storage(&driver).await.0, NONE);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_in_trouble_is_told_of_every_volume() {
    let driver = Driver::start().await;
    let ids = [driver.make(HOSTPATH, "a").await, driver.make(LOOP, "b").await];
    let well = FilesystemTrouble::default();
    for (trouble, expected) in [
        (FilesystemTrouble { read_only: true, ..well }, &["PoolReadOnly"][..]),
        (FilesystemTrouble { stopped: true, ..well }, &["PoolReadOnly"]),
        (FilesystemTrouble { errors: 1, ..well }, &["PoolFilesystemErrors"]),
        (
            FilesystemTrouble { errors: 1, read_only: true, stopped: true },
            &["PoolReadOnly", "PoolFilesystemErrors"],
        ),
        (well, &[]),
    ] {
        driver.machine.host.set_trouble("/dev/sda1", trouble);
        for id in &ids {
            assert_eq!(told(&driver, id).await, expected, "{trouble:?}");
        }
        assert_eq!(storage(&driver).await.0, expected, "{trouble:?}");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_nearly_full_is_told_of_what_still_takes_blocks() {
    let driver = Driver::start().await;
    let mut thick = LOOP.create("thick");
    thick.parameters.extend(map(&[("allocation", "thick")]));
    let thick = driver.create(thick).await.unwrap().volume_id;
    let (thin, directory) = (driver.make(LOOP, "thin").await, driver.make(HOSTPATH, "dir").await);
    // The pools of these tests have no reserve, which counts as 1 %.
    for (available, expected) in [(100, &[][..]), (2, &[]), (0, &["PoolNearlyFull"])] {
        driver.machine.host.set_space(Space {
            filesystem: PoolFilesystem::Ext,
            total: ByteSize::gib(100),
            free: ByteSize::gib(available),
            available: ByteSize::gib(available),
            inodes: 1 << 20,
            inodes_free: 1 << 20,
        });
        for id in [&thin, &directory] {
            assert_eq!(told(&driver, id).await, expected, "{available}");
        }
        assert_eq!(told(&driver, &thick).await, NONE, "its blocks are reserved");
        assert_eq!(storage(&driver).await.0, expected);
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_hold_what_is_wrong_once() {
    let driver = Driver::start().await;
    let mut broken = Vec::new();
    for index in 0..270 {
        let mut request = HOSTPATH.create(&format!("pvc-{index}"));
        request.capacity_range = Some(range(1 << 20, 0));
        let id = driver.create(request).await.unwrap().volume_id;
        if index % 60 == 0 {
            let data = volume_of(&driver, &id).join("data");
            std::fs::remove_dir(data).unwrap();
            broken.push(id);
        }
    }
    broken.sort();
    for most in [1, 2, 100, 0] {
        let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = list(&driver, most, &token).await.unwrap();
            assert!(most == 0 || page.entries.len() <= usize::try_from(most).unwrap());
            seen.extend(page.entries.into_iter().map(|entry| entry.volume_id));
            (token, pages) = (page.next_token, pages + 1);
            assert!(token.len() <= 128 && pages < 20);
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, broken, "{most} a page");
        // However few are broken, a page looks at a part of the volumes only.
        assert_eq!(pages > 1, most != 0, "{most} a page");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_condition_of_csi_1_9_comes_with_the_flag_alone() {
    let node_rpcs = |driver: &Driver| {
        let mut node = driver.node();
        async move {
            let reply = node.node_get_capabilities(NodeGetCapabilitiesRequest {}).await.unwrap();
            let capabilities = reply.into_inner().capabilities.into_iter();
            let number = |capability: NodeServiceCapability| match capability.r#type.unwrap() {
                node_service_capability::Type::Rpc(rpc) => rpc.r#type,
            };
            capabilities.map(number).collect::<Vec<_>>()
        }
    };
    let stats = |driver: &Driver, used: &Used| {
        let (volume_id, volume_path) = (used.id.clone(), text(&used.target));
        let request = NodeGetVolumeStatsRequest { volume_id, volume_path, ..Default::default() };
        let mut node = driver.node();
        async move { node.node_get_volume_stats(request).await.map(tonic::Response::into_inner) }
    };
    let driver = Driver::start().await;
    let volume = used(&driver, LOOP).await;
    assert!(!node_rpcs(&driver).await.contains(&4));
    assert_eq!(stats(&driver, &volume).await.unwrap().volume_condition, None);
    let features = Features { legacy_volume_condition: true, ..DEFAULT };
    let machine = driver.stop().await;
    let driver = Driver::start_as(machine, &["default"], features, csi::RETRY).await;
    assert_eq!(node_rpcs(&driver).await.iter().filter(|number| **number == 4).count(), 1);
    let well = stats(&driver, &volume).await.unwrap();
    assert_eq!(well.volume_condition.map(|condition| condition.abnormal), Some(false));
    driver.machine.host.set_trouble(
        "/dev/loop0",
        FilesystemTrouble { stopped: true, ..FilesystemTrouble::default() },
    );
    let ill = stats(&driver, &volume).await.unwrap();
    assert!(ill.usage[0].total > 0);
    let condition = ill.volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("FilesystemStopped"));
    // Where there are no figures the condition comes all the same.
    let (pool, away) = (driver.machine.pool("default"), driver.machine.path("away"));
    rename(&pool, &away);
    let ill = stats(&driver, &volume).await.unwrap();
    assert_eq!((ill.usage.len(), ill.usage[0].total), (1, 0));
    assert!(ill.volume_condition.unwrap().message.contains("PoolAway"));
    rename(&away, &pool);
    let elsewhere = Used { target: driver.machine.path("elsewhere"), ..volume };
    assert_eq!(refused("not its path", stats(&driver, &elsewhere).await), Code::NotFound);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_grows_or_goes_is_never_told_to_be_ill() {
    let driver = Driver::start().await;
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let asking = {
        let mut controller = driver.controller();
        tokio::spawn(async move {
            let mut asked = 0;
            while !*stopped.borrow_and_update() {
                let request = ControllerListVolumeHealthRequest::default();
                let reply = controller.controller_list_volume_health(request).await.unwrap();
                assert_eq!(reply.into_inner().entries, []);
                asked += 1;
            }
            asked
        })
    };
    for index in 0..30 {
        let kind = KINDS[index % KINDS.len()];
        let id = driver.make(kind, &format!("pvc-{index}")).await;
        let staging = driver.machine.path(format!("staging-{index}"));
        driver.stage(&id, &staging, kind.shared()).await.unwrap();
        driver.expand(&id, range(2 << 30, 0)).await.unwrap();
        driver.unstage(&id, &staging).await.unwrap();
        driver.delete(&id).await.unwrap();
    }
    stop.send(true).unwrap();
    assert!(asking.await.unwrap() > 5);
    driver.stop().await;
}
