//! Snapshots, restores, clones and deletions, on a managed pool (XFS, which shares blocks), by size of the image and by the
//! pieces that it lies in.

#![expect(clippy::disallowed_methods, reason = "writes the configuration")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use orlop::csi::proto::volume_content_source::{SnapshotSource, Type, VolumeSource};
use orlop::csi::proto::{CreateSnapshotRequest, DeleteSnapshotRequest, VolumeContentSource};

use crate::calls::{BLOCK, Caller, Kind};
use crate::driver::Driver;
use crate::privileged::{Sandbox, run};
use crate::report::{Figure, Report, Samples};

/// What is copied: MiB, and every how many blocks of 4 KiB one is written; 1 is all of them.
const IMAGES: [(i64, usize); 3] = [(256, 1), (1024, 1), (256, 8)];
const ROUNDS: usize = 10;
const BLOCK_SIZE: usize = 4096;

pub(crate) async fn all(sandbox: &Sandbox, binary: &Path, report: &mut Report) {
    let sandbox = sandbox.sub("copies");
    let pool = sandbox.path("pool");
    let text = format!(
        "[[pool]]\nname = \"m\"\npath = {pool:?}\nreserve = \"0\"\ncreate = {{ size = \"6GiB\", filesystem = \"xfs\" }}\n"
    );
    std::fs::write(sandbox.path("orlop.toml"), text).unwrap();
    let driver = Driver::start(&sandbox, binary).await;
    for (mebibytes, every) in IMAGES {
        of_one(&sandbox, BLOCK.of_size(mebibytes), every, report).await;
    }
    driver.stop();
    run(
        binary.to_str().unwrap(),
        &[
            "pool".as_ref(),
            "unmount".as_ref(),
            "m".as_ref(),
            "--root-dir".as_ref(),
            sandbox.path("root").as_os_str(),
            "--config".as_ref(),
            sandbox.path("orlop.toml").as_os_str(),
        ],
    );
}

/// Writes every so many blocks of a raw block volume.
async fn fill(caller: &mut Caller, kind: Kind, id: &str, every: usize) {
    let target = caller.up(kind, id).await;
    let device = File::options().write(true).open(target).unwrap();
    let blocks = usize::try_from(kind.mebibytes).unwrap() * (1 << 20) / BLOCK_SIZE;
    let content = [1; BLOCK_SIZE];
    for block in (0..blocks).step_by(every) {
        let at = u64::try_from(block * BLOCK_SIZE).unwrap();
        device.write_all_at(&content, at).unwrap();
    }
    device.sync_all().unwrap();
    drop(device);
    caller.down(id).await;
}

async fn of_one(sandbox: &Sandbox, kind: Kind, every: usize, report: &mut Report) {
    let mut caller = Caller::new(sandbox);
    let name = format!("{} MiB, 1 block of {every} written", kind.mebibytes);
    let source = caller.create(kind, &name, None).await;
    fill(&mut caller, kind, &source, every).await;
    let floor = reflink(sandbox, &source);
    caller.calls.clear();
    let (mut taken, mut dropped) = (Samples::default(), Samples::default());
    let (mut restored, mut cloned) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let start = Instant::now();
        let request = CreateSnapshotRequest {
            name: format!("{name} {round}"),
            source_volume_id: source.clone(),
            ..Default::default()
        };
        let reply = caller.controller.create_snapshot(request).await.unwrap();
        taken.add(start.elapsed());
        let snapshot_id = reply.into_inner().snapshot.unwrap().snapshot_id;
        let from_snapshot = Type::Snapshot(SnapshotSource { snapshot_id: snapshot_id.clone() });
        let from_volume = Type::Volume(VolumeSource { volume_id: source.clone() });
        for (what, from, samples) in
            [("r", from_snapshot, &mut restored), ("c", from_volume, &mut cloned)]
        {
            let from = VolumeContentSource { r#type: Some(from) };
            let start = Instant::now();
            let id = caller.create(kind, &format!("{what} {name} {round}"), Some(from)).await;
            samples.add(start.elapsed());
            caller.delete(id).await;
        }
        let start = Instant::now();
        let request = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
        caller.controller.delete_snapshot(request).await.unwrap();
        dropped.add(start.elapsed());
    }
    caller.delete(source).await;
    for (what, samples) in [
        ("snapshot", taken),
        ("restore", restored),
        ("clone", cloned),
        ("delete snapshot", dropped),
    ] {
        report
            .add(format!("{what} of {name}"), Figure::Calls(samples, "reflink".to_owned(), floor));
    }
}

/// FICLONE of the same image alone, and its fsync.
fn reflink(sandbox: &Sandbox, id: &str) -> std::time::Duration {
    let key = id.split('-').nth(2).unwrap();
    let image = sandbox.path("pool/volumes").join(key).join("disk.img");
    let copy = sandbox.path("pool/incoming/floor");
    let mut samples = Samples::default();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        run("cp", &["--reflink=always".as_ref(), image.as_os_str(), copy.as_os_str()]);
        File::open(&copy).unwrap().sync_all().unwrap();
        samples.add(start.elapsed());
        std::fs::remove_file(&copy).unwrap();
    }
    samples.median()
}
