//! What `orlop volume show` tells of volumes that are in use, on real mounts and loop devices.

#![expect(clippy::disallowed_methods, reason = "runs the program that it tests")]

use std::process::Command;

use serde_json::Value;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left};
use crate::privileged::{Sandbox, privileged};

/// What is shown of a volume.
fn show(sandbox: &Sandbox, id: &str) -> Value {
    let path = |name: &str| sandbox.path(name).to_str().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["volume", "show", id, "--output", "json", "--config", &path("orlop.toml")])
        .args(["--endpoint", &path("csi.sock")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The places where it is mounted, with the pod of each.
fn mounts(shown: &Value) -> Vec<(String, Option<String>)> {
    let place = |mount: &Value| {
        let pod = mount["podUid"].as_str().map(str::to_owned);
        (mount["path"].as_str().unwrap().to_owned(), pod)
    };
    shown["mounts"].as_array().unwrap().iter().map(place).collect()
}

#[test]
fn a_volume_in_use_shows_where_and_for_which_pod() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, "v");
            let below = sandbox.make_dir("kubelet/pods/u-1/volumes/kubernetes.io~csi/v");
            life.target = below.join("mount");
            life.born(&mut driver);
            assert_eq!(mounts(&show(sandbox, &life.id)), [], "{kind:?}");
            life.up(&mut driver);
            let shown = show(sandbox, &life.id);
            let mounts = mounts(&shown);
            let target = (life.target.to_str().unwrap().to_owned(), Some("u-1".to_owned()));
            assert!(mounts.contains(&target), "{kind:?}: {mounts:?}");
            let staging = life.staging.to_str().unwrap();
            let staged =
                mounts.iter().filter(|(path, pod)| path.starts_with(staging) && pod.is_none());
            assert_eq!((staged.count(), mounts.len()), (1, 2), "{kind:?}: {mounts:?}");
            let devices = usize::from(kind != Kind::Hostpath);
            assert_eq!(shown["loopDevices"].as_array().unwrap().len(), devices, "{kind:?}");
            assert_eq!(shown["health"], serde_json::json!([]), "{kind:?}");
            life.down(&mut driver);
            assert_eq!(show(sandbox, &life.id)["loopDevices"], serde_json::json!([]), "{kind:?}");
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
