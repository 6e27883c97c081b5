//! Files that leave their volume's limit by another project id, on filesystems that have project quotas.

#![expect(clippy::disallowed_methods, reason = "runs programs as a pod does")]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use orlop::engine::{Engine, EngineConfig, PoolConfig, Reserve};
use orlop::host::linux::LinuxHost;
use orlop::volume::{ByteSize, Topology, VolumeId};

use crate::driver::Driver;
use crate::life::{Kind, Life};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, privileged};

/// Whose the pod is.
const USER: u32 = 12345;

/// A program of the pod.
fn as_pod(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).uid(USER).gid(USER).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// The use cases on the pool of a driver that has ended: the daemon itself looks once a day only.
fn engine(sandbox: &Sandbox) -> Arc<Engine> {
    let pool = PoolConfig {
        name: "p".to_owned(),
        path: sandbox.path("pool"),
        reserve: Some(Reserve::Bytes(ByteSize::ZERO)),
        overcommit: 1.0,
        create: None,
    };
    let config = EngineConfig {
        root_dir: sandbox.path("root"),
        pools: vec![pool],
        init_pools: false,
        kubelet_dir: sandbox.path("kubelet"),
        topology: Topology::new(),
        node_id: "n1".to_owned(),
        attach: false,
        max_volumes: None,
    };
    let engine = Engine::new(config, Arc::new(LinuxHost::new())).unwrap();
    engine.retry_pool("p");
    assert!(engine.is_ready());
    Arc::new(engine)
}

/// The conditions of a volume after a look at its files.
fn after_a_look(sandbox: &Sandbox, id: &str) -> Vec<String> {
    let engine = engine(sandbox);
    engine.look_for_strays();
    let id: VolumeId = id.parse().unwrap();
    let found = engine.volume_health(&id, &[]).unwrap();
    found.iter().map(|finding| finding.condition.help().reason.to_owned()).collect()
}

fn escapes(sandbox: &Sandbox, pool: PoolOn) {
    const NONE: [&str; 0] = [];
    pool.mount_with_limits(sandbox, 400);
    let mut driver = Driver::start(sandbox);
    for dir in [sandbox.dir().to_owned(), sandbox.path("kubelet")] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o711)).unwrap();
    }
    let mut life = Life::new(sandbox, Kind::Hostpath, "v").with("quota", "required");
    life.born(&mut driver);
    life.up(&mut driver);
    let file = life.target.join("file");
    let file = file.to_str().unwrap();
    as_pod("touch", &[file]);
    let project = crate::privileged::run("lsattr", &["-p", file]);
    let project = project.split_whitespace().next().unwrap().to_owned();
    driver.kill();
    assert_eq!(after_a_look(sandbox, &life.id), NONE);
    as_pod("chattr", &["-p", "0", file]);
    assert_eq!(after_a_look(sandbox, &life.id), ["QuotaEscaped"]);
    as_pod("chattr", &["-p", &project, file]);
    assert_eq!(after_a_look(sandbox, &life.id), NONE, "it is back");
    driver.start_again(None);
    life.down(&mut driver);
    life.gone(&mut driver);
    end(sandbox, driver);
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_file_with_another_project_of_ext4_is_told() {
    privileged(|sandbox| escapes(sandbox, PoolOn::Ext4));
}

#[test]
#[ignore = "needs project quotas of ext4 and XFS: make vm"]
fn a_file_with_another_project_of_xfs_is_told() {
    privileged(|sandbox| escapes(sandbox, PoolOn::Xfs));
}
