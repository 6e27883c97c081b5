//! Ten thousand volumes, of which fifty are damaged.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "makes records as a driver would have, and says how long things take"
)]

use std::time::Instant;

use orlop::volume::Key;
use serde_json::Value;

use crate::damage::listed;
use crate::driver::Driver;
use crate::life::{Kind, Life, read, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, privileged};

const VOLUMES: usize = 10_000;
/// One of so many is damaged.
const EACH: usize = 200;

/// Makes volumes after the model of one, on the disk alone; some of them torn.
fn multiply(sandbox: &Sandbox, model: &Life) {
    let text = std::fs::read(model.dir().join("volume.json")).unwrap();
    let mut record: Value = serde_json::from_slice(&text).unwrap();
    for number in 0..VOLUMES {
        let name = format!("volume {number}");
        let key = Key::of_name(&name);
        record["name"] = name.into();
        record["key"] = key.as_str().into();
        let place = sandbox.path("pool/volumes").join(key.as_str());
        std::fs::create_dir_all(place.join("data")).unwrap();
        let text = serde_json::to_vec_pretty(&record).unwrap();
        let whole = if number % EACH == 0 { text.len() / 2 } else { text.len() };
        std::fs::write(place.join("volume.json"), &text[..whole]).unwrap();
    }
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {} ms", start.elapsed().as_millis());
    done
}

#[test]
fn ten_thousand_volumes_with_fifty_damaged_are_listed_and_used() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Hostpath, "in use");
        // Small, so that all of them are promised.
        life.create.bytes = 1 << 20;
        life.born(&mut driver);
        life.up(&mut driver);
        driver.kill();
        timed("made", || multiply(sandbox, &life));
        timed("ready", || driver.start_again(None));
        let ids = timed("listed", || listed(&driver));
        assert_eq!(ids.len(), VOLUMES - VOLUMES / EACH + 1);
        let ill = timed("health of all", || driver.client.all_health());
        assert_eq!(ill.len(), VOLUMES / EACH);
        assert!(ill.iter().all(|(id, told)| told == &["RecordDamaged"] && !ids.contains(id)));
        let found = timed("checked", || orlop(sandbox, &["pool", "check"])).unwrap_err();
        assert!(found.contains(&format!("{} findings", VOLUMES / EACH)), "{found}");
        write(life.kind, &life.target, "among many");
        assert_eq!(read(life.kind, &life.target), "among many");
        timed("deleted", || driver.insist("delete", |c| c.delete(&ids[0])));
        life.down(&mut driver);
        life.gone(&mut driver);
        assert_eq!(listed(&driver).len(), ids.len() - 2);
        driver.kill();
    });
}
