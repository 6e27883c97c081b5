//! Many requests at once on real filesystems, against room for few.

#![expect(clippy::print_stdout, reason = "says how far it is")]

use orlop::csi::proto::volume_capability::access_mode::Mode;
use orlop::csi::proto::{GetCapacityRequest, VolumeContentSource};
use tonic::Code;

use crate::client::{Client, Create, block};
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::driver::Driver;
use crate::filling::{available, settle};
use crate::life::MIB;
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged};

const THICK: [(&str, &str); 2] = [("backend", "loop"), ("allocation", "thick")];

impl Client {
    /// What can still be promised to raw block volumes of a class, in whole blocks.
    pub(crate) fn room(&self, parameters: &[(&str, &str)]) -> u64 {
        let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let request = GetCapacityRequest {
            parameters: parameters.collect(),
            volume_capabilities: vec![block(Mode::SingleNodeWriter)],
            ..Default::default()
        };
        let reply = self.runtime.block_on(self.controller().get_capacity(request)).unwrap();
        let reply = reply.into_inner();
        assert_eq!(reply.maximum_volume_size, Some(reply.available_capacity), "there is one pool");
        u64::try_from(reply.available_capacity).unwrap()
    }
}

fn thick(name: String, bytes: u64) -> Create {
    let capability = block(Mode::SingleNodeWriter);
    Create { name, bytes, capability, parameters: THICK.to_vec() }
}

/// The ids of the volumes that were made; the others were told that there is no room.
fn all(driver: &Driver, wishes: Vec<(Create, Option<VolumeContentSource>)>) -> Vec<String> {
    let client = &driver.client;
    let call = |(create, source): (Create, Option<VolumeContentSource>)| match source {
        None => client.create(&create),
        Some(source) => client.create_from(&create, source),
    };
    std::thread::scope(|scope| {
        let calls = wishes.into_iter().map(|wish| scope.spawn(move || call(wish)));
        let calls: Vec<_> = calls.collect();
        let mut ids = Vec::new();
        for answer in calls {
            match answer.join().unwrap() {
                Ok(volume) => ids.push(volume.volume_id),
                Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
            }
        }
        ids
    })
}

#[test]
fn two_hundred_at_once_against_room_for_a_hundred() {
    privileged(|sandbox| {
        for pool in PoolOn::ALL {
            println!("on {pool:?}");
            let part = sandbox.sub(&format!("{pool:?}"));
            pool.mount(&part, 1300);
            // XFS shares no blocks that were never written, so there the snapshot is charged nothing.
            let most = if pool == PoolOn::Xfs { 99 } else { 98 };
            two_hundred(&part, most);
        }
    });
}

fn two_hundred(sandbox: &Sandbox, most: usize) {
    let pool = sandbox.path("pool");
    let mut driver = Driver::start(sandbox);
    let (before, empty) = (driver.client.room(&THICK), available(&pool));
    // Room for a hundred and a half; the half is for what the filesystem needs to know them.
    let size = before * 2 / 201 / 4096 * 4096;
    let source = driver.client.create(&thick("source".to_owned(), size)).unwrap().volume_id;
    let snapshot = driver.client.snapshot("snapshot", &source).unwrap().snapshot_id;
    let mut wishes = Vec::new();
    for n in 0..50 {
        wishes.push((thick(format!("a-{n}"), size), None));
        wishes.push((thick(format!("b-{n}"), size), None));
        wishes.push((thick(format!("clone-{n}"), size), Some(from_volume(&source))));
        wishes.push((thick(format!("restore-{n}"), size), Some(from_snapshot(&snapshot))));
    }
    let ids = all(&driver, wishes);
    assert_eq!(ids.len(), most, "beside a volume and a snapshot");
    assert!(driver.client.room(&THICK) < size);
    // They are thick, so the pool is as good as full; btrfs guesses.
    assert!(available(&pool) < empty / 20);
    for id in ids.iter().chain([&source]) {
        driver.insist("delete", |c| c.delete(id));
    }
    driver.insist("delete the snapshot", |c| c.delete_snapshot(&snapshot));
    poll("the trash is empty", || std::fs::read_dir(pool.join("trash")).unwrap().next().is_none());
    poll("all that was promised is back", || driver.client.room(&THICK) == before);
    // What is left are the directories' own blocks.
    poll("the space is back", || {
        settle(&pool);
        available(&pool) + MIB >= empty
    });
    // Another driver measures anew.
    driver.restart();
    let after = driver.client.room(&THICK);
    assert!(after <= before && after + MIB >= before, "{after} of {before}");
    end(sandbox, driver);
}
