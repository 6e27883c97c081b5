//! The Operator service: what is refused and with which code, one job for each source and name, limits and promises.

use std::path::Path;

use orlop::csi::proto::operator::operator_client::OperatorClient;
use orlop::csi::proto::operator::{ImportVolumeRequest, ImportVolumeResponse};
use orlop::host::PoolFilesystem;
use orlop::volume::{ByteSize, LimitKind};
use tonic::{Code, Status};

use super::common::NODE;
use super::driver::{Driver, GIB, HOSTPATH, MIB, refused, text};
use super::snapshots::sharing;

impl Driver {
    async fn import(&self, request: ImportVolumeRequest) -> Result<ImportVolumeResponse, Status> {
        let mut operator = OperatorClient::new(self.channel.clone());
        Ok(operator.import_volume(request).await?.into_inner())
    }
}

fn request(source: &Path, name: &str) -> ImportVolumeRequest {
    ImportVolumeRequest {
        source: text(source),
        name: name.to_owned(),
        ..ImportVolumeRequest::default()
    }
}

#[expect(clippy::disallowed_methods, reason = "a test makes what it imports")]
fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("sub/file"), "content").unwrap();
}

#[expect(clippy::disallowed_methods, reason = "a test makes what it imports")]
fn make_image(path: &Path, size: i64) {
    std::fs::write(path, vec![0; usize::try_from(size).unwrap()]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_input_has_its_code_and_changes_nothing() {
    let driver = Driver::start().await;
    let tree = driver.machine.path("tree");
    make_tree(&tree);
    driver.make(HOSTPATH, "taken").await;
    let good = request(&tree, "new");
    for (wrong, code) in [
        (ImportVolumeRequest::default(), Code::InvalidArgument),
        (request(Path::new("tree"), "new"), Code::InvalidArgument),
        (request(&tree.join("../tree"), "new"), Code::InvalidArgument),
        (request(Path::new("/"), "new"), Code::InvalidArgument),
        (request(&tree, ""), Code::InvalidArgument),
        (request(&tree, "a\0b"), Code::InvalidArgument),
        (request(&tree, &"x".repeat(129)), Code::InvalidArgument),
        (request(&driver.machine.pool("default"), "new"), Code::InvalidArgument),
        (request(&driver.machine.path("root/state"), "new"), Code::InvalidArgument),
        (request(&driver.machine.path("none"), "new"), Code::NotFound),
        (request(&tree, "taken"), Code::AlreadyExists),
        (ImportVolumeRequest { pool: "other".into(), ..good.clone() }, Code::InvalidArgument),
        (ImportVolumeRequest { size_bytes: -1, ..good.clone() }, Code::InvalidArgument),
        (ImportVolumeRequest { size_bytes: 4096, ..good.clone() }, Code::OutOfRange),
        (ImportVolumeRequest { size_bytes: 1 << 60, ..good.clone() }, Code::ResourceExhausted),
        (ImportVolumeRequest { on_delete: "burn".into(), ..good.clone() }, Code::InvalidArgument),
    ] {
        let what = format!("{wrong:?}");
        assert_eq!(refused(&what, driver.import(wrong).await), code, "{what}");
    }
    // What was kept, and is not.
    let kept = driver.machine.pool("default").join(format!("retained/{}.01234567", "0".repeat(32)));
    assert_eq!(refused("kept", driver.import(request(&kept, "")).await), Code::NotFound);
    assert_eq!(driver.machine.names("default", "volumes").len(), 1);
    let imported = driver.import(good).await.unwrap();
    assert!(!tree.exists());
    assert_eq!(imported.name, "new");
    assert_eq!((imported.block, imported.filesystem.as_str()), (false, ""));
    assert_eq!(imported.driver_name, "orlop.csi.local");
    assert_eq!(imported.topology.values().collect::<Vec<_>>(), [NODE]);
    let found = driver.get(&imported.volume_id).await.unwrap();
    assert_eq!(found.capacity_bytes, imported.size_bytes);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_source_is_imported_by_one_job() {
    let driver = Driver::start().await;
    let tree = driver.machine.path("tree");
    make_tree(&tree);
    let blocked = driver.machine.host.block_next("mounts_in_sight");
    let (first, rest) = tokio::join!(driver.import(request(&tree, "v")), async {
        tokio::task::block_in_place(|| blocked.wait());
        // Another name, the same name for another source, and a call of CSI for the name.
        let mut codes = Vec::new();
        codes.push(refused("source", driver.import(request(&tree, "other")).await));
        codes.push(refused("name", driver.import(request(&tree.join("sub"), "v")).await));
        codes.push(refused("create", driver.create(HOSTPATH.create("v")).await));
        blocked.release();
        codes
    });
    first.unwrap();
    assert_eq!(rest, [Code::Aborted; 3]);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_moved_is_promised_like_what_is_made_but_for_what_it_takes_already() {
    let machine = sharing(PoolFilesystem::Ext, ByteSize::gib(1));
    let driver = Driver::start_on(machine, &["default"], true).await;
    let image = driver.machine.path("image");
    make_image(&image, 16 * MIB);
    let large = ImportVolumeRequest { size_bytes: GIB + 13 * MIB, ..request(&image, "raw") };
    let copy = ImportVolumeRequest { copy: true, ..large.clone() };
    assert_eq!(refused("a copy", driver.import(copy).await), Code::ResourceExhausted);
    let imported = driver.import(large.clone()).await.unwrap();
    assert!(imported.block);
    assert_eq!(imported.size_bytes, GIB + 13 * MIB);
    // The same again is answered as done, and with another wish it is another volume.
    assert_eq!(driver.import(large.clone()).await.unwrap(), imported);
    let other = ImportVolumeRequest { size_bytes: GIB, ..large };
    assert_eq!(refused("another size", driver.import(other).await), Code::AlreadyExists);
    let full = async |driver: &Driver| {
        let more = driver.create(HOSTPATH.create("more")).await;
        assert_eq!(refused("more", more), Code::ResourceExhausted);
    };
    full(&driver).await;
    // What is kept is charged all the time, under whatever name it comes back.
    let mut id = imported.volume_id;
    for name in ["renamed", "", "again"] {
        driver.delete(&id).await.unwrap();
        full(&driver).await;
        let kept = driver.machine.names("default", "retained").remove(0);
        let kept = driver.machine.pool("default").join("retained").join(kept);
        let back = driver.import(request(&kept, name)).await.unwrap();
        assert_eq!(back.size_bytes, GIB + 13 * MIB);
        assert_eq!(back.volume_id == id, name.is_empty(), "{name:?}");
        full(&driver).await;
        id = back.volume_id;
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_share_its_blocks_is_promised_whole_and_never_wiped() {
    let machine = sharing(PoolFilesystem::Xfs, ByteSize::gib(1));
    let driver = Driver::start_on(machine, &["default"], true).await;
    let image = driver.machine.path("image");
    make_image(&image, 16 * MIB);
    let large = ImportVolumeRequest { size_bytes: GIB + 13 * MIB, ..request(&image, "raw") };
    assert_eq!(refused("a move", driver.import(large).await), Code::ResourceExhausted);
    // No overwriting reaches what other files have as well.
    let wipe = ImportVolumeRequest { on_delete: "wipe".to_owned(), ..request(&image, "raw") };
    assert_eq!(refused("wipe", driver.import(wipe).await), Code::InvalidArgument);
    assert_eq!(driver.import(request(&image, "raw")).await.unwrap().size_bytes, 16 * MIB);
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_directory_gets_a_limit_with_all_that_is_in_it() {
    let machine = sharing(PoolFilesystem::Ext, ByteSize::gib(10));
    machine.host.set_limit_kind(Some(LimitKind::Project));
    let driver = Driver::start_on(machine, &["default"], true).await;
    let tree = driver.machine.path("tree");
    make_tree(&tree);
    let imported = driver.import(request(&tree, "v")).await.unwrap();
    assert_eq!(driver.machine.host.limits(), 1);
    let engine = std::sync::Arc::clone(&driver.engine);
    tokio::task::block_in_place(move || engine.look_for_strays());
    let calls = driver.machine.host.take_calls();
    // The directory in it and its file; what was moved itself had its limit from the beginning.
    assert_eq!(calls.iter().filter(|call| **call == "join_limit").count(), 2, "{calls:?}");
    driver.delete(&imported.volume_id).await.unwrap();
    // As kept, it is as it was; under another name it takes its limit along.
    let kept = driver.machine.names("default", "retained").remove(0);
    let kept = driver.machine.pool("default").join("retained").join(kept);
    let renamed = driver.import(request(&kept, "renamed")).await.unwrap();
    assert_eq!(renamed.size_bytes, imported.size_bytes);
    assert_eq!(driver.machine.names("default", "retained"), Vec::<String>::new());
    assert_eq!(driver.machine.host.limits(), 1, "the same limit");
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_btrfs_a_directory_is_only_copied() {
    let machine = sharing(PoolFilesystem::Btrfs, ByteSize::gib(10));
    let driver = Driver::start_on(machine, &["default"], true).await;
    let tree = driver.machine.path("tree");
    make_tree(&tree);
    let code = refused("a move", driver.import(request(&tree, "v")).await);
    assert_eq!(code, Code::FailedPrecondition);
    let copy = ImportVolumeRequest { copy: true, ..request(&tree, "v") };
    driver.import(copy.clone()).await.unwrap();
    assert_eq!(std::fs::read(tree.join("sub/file")).unwrap(), b"content");
    // Who is told that it was copied may remove the source, which may have changed since.
    let again = driver.import(copy).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    assert!(again.message().contains("nothing was copied now"), "{again}");
    driver.stop().await;
}
