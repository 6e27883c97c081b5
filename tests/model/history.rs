//! Histories: random ones, and one that touches everything.

use orlop::host::PoolFilesystem;
use proptest::prelude::*;

use super::reference::{Kind, Op};
use super::world::World;

/// The calls of the host that may fail.
const VERBS: [&str; 24] = [
    "mounts",
    "canonical",
    "node",
    "make_mount_point",
    "remove_mount_point",
    "bind",
    "mount",
    "unmount",
    "loops",
    "attach",
    "hold",
    "detach",
    "refresh_loop_size",
    "probe",
    "format",
    "grow",
    "space",
    "disable_copy_on_write",
    "shares_blocks",
    "share_file",
    "hold_mount",
    "freeze",
    "sync",
    "renew",
];

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Directory), Just(Kind::Filesystem), Just(Kind::Device)]
}

/// One request, on one of three names and two targets.
fn requests() -> impl Strategy<Value = Op> {
    let name = 0_usize..3;
    let named = || (0_usize..3, 0_usize..3);
    prop_oneof![
        4 => (name.clone(), kinds(), 1_u64..5).prop_map(|(n, k, g)| Op::Create(n, k, g)),
        2 => (name.clone(), any::<bool>()).prop_map(|(n, late)| Op::Delete(n, late)),
        2 => (name.clone(), 1_u64..7).prop_map(|(n, g)| Op::Expand(n, g)),
        4 => name.clone().prop_map(Op::Stage),
        4 => (name.clone(), 1_usize..3, any::<bool>()).prop_map(|(n, t, r)| Op::Publish(n, t, r)),
        2 => (name.clone(), 1_usize..3).prop_map(|(n, t)| Op::Unpublish(n, t)),
        2 => name.prop_map(Op::Unstage),
        3 => named().prop_map(|(n, s)| Op::Snapshot(n, s)),
        3 => (named(), 1_u64..5).prop_map(|((s, n), g)| Op::Restore(s, n, g)),
        1 => (0_usize..3).prop_map(Op::DeleteSnapshot),
        1 => named().prop_map(|(n, at)| Op::Stats(n, at)),
        1 => named().prop_map(|(n, at)| Op::NodeExpand(n, at)),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    let verbs = proptest::collection::vec(proptest::sample::select(&VERBS[..]), 1..3);
    prop_oneof![
        12 => requests(),
        5 => (verbs, requests()).prop_map(|(verbs, op)| Op::Faulty(verbs, Box::new(op))),
        1 => Just(Op::Crash),
        1 => Just(Op::Reboot),
    ]
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 64;
    }
    config
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn the_engine_does_what_the_reference_does(ops in proptest::collection::vec(ops(), 1..60), shares: bool) {
        let mut world = World::new(if shares { PoolFilesystem::Xfs } else { PoolFilesystem::Ext });
        for op in &ops {
            world.step(op);
        }
    }
}

#[test]
fn a_history_that_touches_everything() {
    let mut world = World::new(PoolFilesystem::Xfs);
    let verbs =
        ["attach", "mount", "bind", "detach", "unmount", "remove_mount_point", "freeze", "renew"];
    for kind in [Kind::Directory, Kind::Filesystem, Kind::Device] {
        for op in [
            Op::Create(0, kind, 1),
            Op::Stage(0),
            Op::Publish(0, 1, false),
            Op::Crash,
            Op::Expand(0, 2),
            Op::NodeExpand(0, 1),
            Op::Expand(0, 9),
            Op::Publish(0, 2, false),
            Op::Delete(0, false),
            Op::Snapshot(0, 0),
            Op::Reboot,
            Op::Snapshot(0, 0),
            Op::Restore(0, 1, 3),
            Op::Crash,
            Op::DeleteSnapshot(0),
            Op::Restore(0, 2, 3),
            Op::Delete(1, false),
            Op::Stage(0),
            Op::Publish(0, 1, true),
            Op::Stats(0, 1),
            Op::Unstage(0),
            Op::Unpublish(0, 1),
            Op::Unstage(0),
            Op::Delete(0, true),
            Op::Delete(0, false),
        ] {
            for verb in verbs {
                world.step(&Op::Faulty(vec![verb], Box::new(op.clone())));
            }
            world.step(&op);
        }
    }
}
