//! Calls that can never succeed: each has its code, and changes nothing.

use std::path::{Path, PathBuf};

use orlop::csi::proto::{
    CreateVolumeRequest, ListSnapshotsRequest, ListVolumesRequest, VolumeCapability,
};
use tonic::{Code, Status};

use crate::client::{Client, block, range};
use crate::client_snapshots::{from_snapshot, from_volume};
use crate::life::{Kind, MIB};
use crate::soak_client::{Actor, MODE};
use crate::soak_model::Want;

type Bad = (&'static str, Code, Box<dyn Fn(&Client) -> Result<(), Status>>);

/// A request for a volume of a name that nothing ever has.
fn request() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: "never".to_owned(),
        capacity_range: Some(range(8 * MIB)),
        volume_capabilities: vec![Kind::Ext4.capability(MODE)],
        ..Default::default()
    }
}

fn with(parameters: &[(&str, &str)]) -> CreateVolumeRequest {
    let parameters = parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    CreateVolumeRequest { parameters: parameters.collect(), ..request() }
}

fn create(what: &'static str, code: Code, request: CreateVolumeRequest) -> Bad {
    let call = move |c: &Client| {
        c.runtime.block_on(c.controller().create_volume(request.clone())).map(drop)
    };
    (what, code, Box::new(call))
}

fn named(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { name: name.to_owned(), ..request() }
}

fn sized(required: i64, limit: i64) -> CreateVolumeRequest {
    let range = orlop::csi::proto::CapacityRange { required_bytes: required, limit_bytes: limit };
    CreateVolumeRequest { capacity_range: Some(range), ..request() }
}

fn as_what(capabilities: Vec<VolumeCapability>) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_capabilities: capabilities, ..request() }
}

/// An id of this driver's kind, in a pool that it never had.
const ELSEWHERE: &str = "v-00000000-00000000000000000000000000000000-00000000";

fn creations() -> Vec<Bad> {
    let bad = Code::InvalidArgument;
    let long = "x".repeat(200_000);
    let terabyte = 1_i64 << 50;
    let from = |source| CreateVolumeRequest { volume_content_source: Some(source), ..request() };
    vec![
        create("no name", bad, named("")),
        create("a name of 200 kB", bad, named(&long)),
        create("a name with a NUL", bad, named("a\0b")),
        create("an unknown parameter", bad, with(&[("colour", "blue")])),
        create("an unknown value", bad, with(&[("backend", "tape")])),
        create("parameters of 200 kB", bad, with(&[("backend", &long)])),
        create("an unknown pool", bad, with(&[("pool", "../../etc")])),
        create("a path for mkfs", bad, with(&[("backend", "loop"), ("mkfsOptions", "-d /etc")])),
        create("a mode that is none", bad, with(&[("mode", "99999")])),
        create("a negative size", bad, sized(-1, 0)),
        create("a limit below the size", Code::OutOfRange, sized(1 << 30, 1 << 20)),
        create("more than there is", Code::ResourceExhausted, sized(terabyte, 0)),
        create("no capability", bad, as_what(Vec::new())),
        create("a directory as a device", bad, as_what(vec![block(MODE)])),
        create("both kinds", bad, as_what(vec![block(MODE), Kind::Ext4.capability(MODE)])),
        create("a source that is none", Code::NotFound, from(from_snapshot("../../etc/passwd"))),
        create("a source that never was", Code::NotFound, from(from_volume("v-x"))),
        create("a source without a name", bad, from(from_snapshot(""))),
    ]
}

fn call(
    what: &'static str,
    code: Code,
    call: impl Fn(&Client) -> Result<(), Status> + 'static,
) -> Bad {
    (what, code, Box::new(call))
}

fn others(dir: &Path) -> Vec<Bad> {
    let bad = Code::InvalidArgument;
    let (gone, done, precondition) = (Code::NotFound, Code::Ok, Code::FailedPrecondition);
    let capability = || Kind::Ext4.capability(MODE);
    let long = "x".repeat(200_000);
    let deep = dir.join("no/such/parent");
    let full = dir.join("full");
    vec![
        call("delete nothing", bad, |c| c.delete("")),
        call("delete what never was", done, |c| c.delete("../../etc")),
        call("delete 200 kB", bad, {
            let long = long.clone();
            move |c| c.delete(&long)
        }),
        call("expand what never was", gone, |c| c.expand("v-x", MIB)),
        call("modify what never was", gone, |c| c.modify("v-x", "onDelete", "wipe")),
        call("modify what cannot be", bad, |c| c.modify(ELSEWHERE, "backend", "loop")),
        call("snapshot what never was", gone, |c| c.snapshot("never", "v-x").map(drop)),
        call("snapshot without a name", bad, |c| c.snapshot("", ELSEWHERE).map(drop)),
        call("delete a snapshot that never was", done, |c| c.delete_snapshot("s-x")),
        call("group of nothing", bad, |c| c.group("never", &[]).map(drop)),
        call("group of one twice", bad, |c| c.group("never", &[ELSEWHERE; 2]).map(drop)),
        call("stage what never was", gone, {
            let deep = deep.clone();
            move |c| c.stage("v-x", &deep, &capability())
        }),
        call("stage nowhere", bad, move |c| c.stage(ELSEWHERE, Path::new(""), &capability())),
        call("stage at 200 kB", bad, {
            let long = PathBuf::from(long);
            move |c| c.stage(ELSEWHERE, &long, &capability())
        }),
        call("publish without a stage", precondition, {
            let deep = deep.clone();
            move |c| c.publish(ELSEWHERE, (Path::new(""), &deep), &capability(), false)
        }),
        call("unpublish from nowhere", done, move |c| c.unpublish("v-x", &deep)),
        call("unpublish what is somebody's", precondition, move |c| c.unpublish(ELSEWHERE, &full)),
        call("statistics of what never was", gone, |c| c.stats("v-x", Path::new("/")).map(drop)),
        call("page of -1", bad, |c| {
            let request = ListVolumesRequest { max_entries: -1, ..Default::default() };
            c.runtime.block_on(c.controller().list_volumes(request)).map(drop)
        }),
        call("page of -1 snapshots", bad, |c| {
            let request = ListSnapshotsRequest { max_entries: -1, ..Default::default() };
            c.runtime.block_on(c.controller().list_snapshots(request)).map(drop)
        }),
    ]
}

impl Actor {
    pub(crate) fn invalid(&mut self) {
        // Somebody's file, which no teardown may touch.
        let dir = self.world.sandbox.make_dir(format!("kubelet/others-{}", self.number));
        std::fs::create_dir_all(dir.join("full")).unwrap();
        let file = dir.join("full/file");
        drop(std::fs::File::create(&file).unwrap());
        let mut cases = creations();
        cases.extend(others(&dir));
        let (what, code, call) = cases.swap_remove(self.random.index(cases.len()));
        let want = if code == Code::Ok { Want::Done } else { Want::Refused(code) };
        self.expect(("invalid", what.to_owned()), want, |c| call(c));
        self.claim(file.exists(), "what is somebody's is left alone");
    }
}
