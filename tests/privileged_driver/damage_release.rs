//! Records that the next release wrote: what this one can read it changes without losing what it does not know, and what it
//! cannot read it never writes.

#![expect(clippy::disallowed_methods, reason = "writes records as another release would")]

use std::path::Path;

use serde_json::{Value, json};
use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, write};
use crate::managed::orlop;
use crate::privileged::{loops_below, poll, privileged};

fn record(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Changes a record as another release would.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = record(path);
    change(&mut value);
    std::fs::write(path, serde_json::to_vec_pretty(&value).unwrap()).unwrap();
}

/// What the next release may add without asking for a later reader.
fn add_fields(value: &mut Value) {
    value["format"] = 2.into();
    value["later"] = json!({"deep": [1, {"deeper": null}], "number": 1.5});
    value["request"]["later"] = "kept".into();
    value["request"]["parameters"]["laterParameter"] = "on".into();
    value["current"]["later"] = json!([{"node": "n9"}]);
    if value["resolved"]["image"].is_object() {
        value["resolved"]["image"]["later"] = true.into();
    }
}

/// The record without what this release changes.
fn untouched(mut value: Value) -> Value {
    for name in ["sizeBytes", "onDelete", "attachments"] {
        value["current"].as_object_mut().unwrap().remove(name);
    }
    value
}

#[test]
fn what_the_next_release_added_is_kept_through_every_change() {
    privileged(|sandbox| {
        let mut driver = Driver::start_with_flags(sandbox, &["--attach"]);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            let path = life.dir().join("volume.json");
            rewrite(&path, add_fields);
            let written = record(&path);
            driver.restart();
            assert_eq!(driver.client.health(&life.id), [""; 0]);
            driver.client.attach(&life.id, &kind.capability(life.mode), false).unwrap();
            life.up(&mut driver);
            write(kind, &life.target, "written by this release");
            driver.insist("expand", |c| c.expand(&life.id, kind.grown()));
            driver.client.modify(&life.id, "onDelete", "retain").unwrap();
            assert_eq!(driver.client.create(&life.create).unwrap().volume_id, life.id);
            let now = record(&path);
            assert_eq!(now["current"]["sizeBytes"], kind.grown());
            assert_eq!(now["current"]["onDelete"], "retain");
            assert_eq!(now["current"]["attachments"].as_array().unwrap().len(), 1);
            assert_eq!(untouched(now), untouched(written));
            driver.client.modify(&life.id, "onDelete", "delete").unwrap();
            life.down(&mut driver);
            driver.client.detach(&life.id).unwrap();
            life.gone(&mut driver);
        }
        // The marker keeps them, too.
        let marker = sandbox.path("pool/pool.json");
        rewrite(&marker, |value| value["later"] = "kept".into());
        check_nothing_left(sandbox, &mut driver);
        driver.kill();
        let (before, pool) = (record(&marker), sandbox.path("pool"));
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["pool".as_ref(), "new-uuid".as_ref(), pool.as_os_str()])
            .output();
        assert!(program.unwrap().status.success());
        let after = record(&marker);
        assert_eq!(after["later"], "kept");
        assert_eq!(after["previousUuid"], before["uuid"]);
    });
}

#[test]
fn what_asks_for_the_next_release_is_never_written_and_can_be_taken_down() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for (kind, restart) in Kind::ALL.into_iter().zip([true, false, true, false]) {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "precious");
            let path = life.dir().join("volume.json");
            let good = std::fs::read(&path).unwrap();
            // Nothing that this release knows need be in it.
            rewrite(&path, |value| *value = json!({"format": 9, "minReader": 9, "everything": {}}));
            let later = std::fs::read(&path).unwrap();
            if restart {
                driver.restart();
            }
            assert_eq!(driver.client.health(&life.id), ["RecordTooNew"]);
            let told = driver.client.all_health();
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!(told[0].1, ["RecordTooNew"]);
            let found = orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
            assert!(found.contains("run that release"), "{found}");
            for refused in [
                driver.client.expand(&life.id, kind.grown()),
                driver.client.modify(&life.id, "onDelete", "archive"),
                driver.client.delete(&life.id),
                driver.client.create(&life.create).map(drop),
                life.try_publish(&driver.client, &life.other_target("other")),
            ] {
                let refused = refused.unwrap_err();
                assert_eq!(refused.code(), Code::Internal, "{refused:?}");
                assert!(refused.message().contains("needs a later release"), "{refused:?}");
            }
            assert_eq!(read(kind, &life.target), "precious");
            life.down(&mut driver);
            poll("the loop device is gone", || loops_below(sandbox.dir()).is_empty());
            assert_eq!(std::fs::read(&path).unwrap(), later);
            // And back: the next release has written it as this one reads it.
            std::fs::write(&path, good).unwrap();
            life.up(&mut driver);
            assert_eq!(read(kind, &life.target), "precious");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
