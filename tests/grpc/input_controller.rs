//! Wrong input to the Controller, row by row (CSI 1.13, the error tables of each RPC).

use orlop::csi::proto::volume_capability::{AccessMode, AccessType, MountVolume};
use orlop::csi::proto::volume_content_source::{SnapshotSource, Type as Source};
use orlop::csi::proto::{
    ControllerExpandVolumeRequest, ControllerGetVolumeRequest, CreateVolumeRequest,
    DeleteVolumeRequest, GetCapacityRequest, ListVolumesRequest, ValidateVolumeCapabilitiesRequest,
    VolumeCapability, VolumeContentSource,
};
use tonic::Code::{self, Aborted, InvalidArgument, NotFound, OutOfRange, ResourceExhausted};

use super::driver::{BLOCK, Driver, HOSTPATH, LOOP, map, range, refused};

/// What is done to something good.
pub(crate) type Spoil<T> = fn(&mut T);
/// What is done to a good request, and the code that it then gets.
pub(crate) type Wrong<T> = (&'static str, Code, Spoil<T>);

/// What is done to a good capability; all of it is INVALID_ARGUMENT wherever it appears.
pub(crate) const WRONG_CAPABILITIES: [(&str, Spoil<VolumeCapability>); 15] = [
    ("no access type", |c| c.access_type = None),
    ("no access mode", |c| c.access_mode = None),
    ("access mode UNKNOWN", |c| c.access_mode = Some(AccessMode { mode: 0 })),
    ("access mode 99", |c| c.access_mode = Some(AccessMode { mode: 99 })),
    ("access mode -1", |c| c.access_mode = Some(AccessMode { mode: -1 })),
    ("a mount group", |c| {
        mount(c).volume_mount_group = "1000".to_owned();
    }),
    ("an endless fs_type", |c| mount(c).fs_type = "x".repeat(129)),
    ("flag remount", |c| flags(c, &["remount"])),
    ("flag bind", |c| flags(c, &["bind"])),
    ("flag loop=/dev/sda", |c| flags(c, &["loop=/dev/sda"])),
    ("flag journal_path", |c| flags(c, &["journal_path=/etc/passwd"])),
    ("two flags in one", |c| flags(c, &["noatime,suid"])),
    ("a flag with ;", |c| flags(c, &["ro;reboot"])),
    ("an empty flag", |c| flags(c, &[""])),
    ("endless flags", |c| flags(c, &["x".repeat(5000).as_str()])),
];

/// The mount half of a capability, made so if it is not.
fn mount(capability: &mut VolumeCapability) -> &mut MountVolume {
    capability.access_type = Some(AccessType::Mount(MountVolume::default()));
    match &mut capability.access_type {
        Some(AccessType::Mount(mount)) => mount,
        _ => unreachable!(),
    }
}

fn flags(capability: &mut VolumeCapability, flags: &[&str]) {
    mount(capability).mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
}

/// Calls with each wrong request.
macro_rules! check {
    ($call:expr, $good:expr, $rows:expr) => {
        for (what, code, spoil) in $rows {
            let mut request = $good.clone();
            spoil(&mut request);
            assert_eq!(refused(what, $call(request).await), code, "{what}");
        }
    };
}
pub(crate) use check;

fn parameter(request: &mut CreateVolumeRequest, name: &str, value: &str) {
    request.parameters.insert(name.to_owned(), value.to_owned());
}

fn fs_type(request: &mut CreateVolumeRequest, name: &str) {
    mount(&mut request.volume_capabilities[0]).fs_type = name.to_owned();
}

const CREATE: [Wrong<CreateVolumeRequest>; 26] = [
    ("no name", InvalidArgument, |r| r.name.clear()),
    ("a name of 129 bytes", InvalidArgument, |r| r.name = "x".repeat(129)),
    ("33 emoji", InvalidArgument, |r| r.name = "\u{1f980}".repeat(33)),
    ("NUL in the name", InvalidArgument, |r| r.name = "a\0b".to_owned()),
    ("a bell in the name", InvalidArgument, |r| r.name = "a\u{7}b".to_owned()),
    ("vertical tab", InvalidArgument, |r| r.name = "a\u{b}b".to_owned()),
    ("escape in the name", InvalidArgument, |r| r.name = "a\u{1b}[2Jb".to_owned()),
    ("DEL in the name", InvalidArgument, |r| r.name = "a\u{7f}b".to_owned()),
    ("U+009F in the name", InvalidArgument, |r| r.name = "a\u{9f}b".to_owned()),
    ("no capabilities", InvalidArgument, |r| r.volume_capabilities.clear()),
    ("mount and block", InvalidArgument, |r| r.volume_capabilities.push(BLOCK.shared())),
    ("required_bytes below zero", InvalidArgument, |r| r.capacity_range = Some(range(-1, 0))),
    ("limit_bytes below zero", InvalidArgument, |r| r.capacity_range = Some(range(0, -1))),
    ("limit below required", OutOfRange, |r| r.capacity_range = Some(range(2 << 30, 1 << 30))),
    ("no size fits", OutOfRange, |r| r.capacity_range = Some(range(1, 4096))),
    ("more than there is", ResourceExhausted, |r| r.capacity_range = Some(range(1 << 50, 0))),
    ("a parameter that is not mutable", InvalidArgument, |r| {
        r.mutable_parameters = map(&[("onDelete", "retain"), ("backend", "loop")]);
    }),
    ("a mutable parameter with another value", InvalidArgument, |r| {
        r.mutable_parameters = map(&[("onDelete", "burn")]);
    }),
    ("an empty source", InvalidArgument, |r| {
        r.volume_content_source = Some(VolumeContentSource { r#type: None });
    }),
    ("a snapshot of another driver", NotFound, |r| {
        let snapshot = SnapshotSource { snapshot_id: "s".to_owned() };
        r.volume_content_source =
            Some(VolumeContentSource { r#type: Some(Source::Snapshot(snapshot)) });
    }),
    ("block of a directory", InvalidArgument, |r| {
        r.volume_capabilities = vec![BLOCK.shared()];
        parameter(r, "backend", "hostpath");
    }),
    ("an unknown filesystem", InvalidArgument, |r| fs_type(r, "ntfs")),
    ("a filesystem that is a path", InvalidArgument, |r| fs_type(r, "../../bin/sh")),
    ("two filesystems", InvalidArgument, |r| {
        fs_type(r, "ext4");
        parameter(r, "csi.storage.k8s.io/fstype", "xfs");
    }),
    ("a flag of another filesystem", InvalidArgument, |r| {
        flags(&mut r.volume_capabilities[0], &["allocsize=64k"]);
    }),
    ("endless parameters", InvalidArgument, |r| {
        parameter(r, "csi.storage.k8s.io/pv/name", &"x".repeat(5000));
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_volume() {
    let driver = Driver::start().await;
    let good = LOOP.create("pvc");
    check!(|request| driver.create(request), good, CREATE);
    for (what, spoil) in WRONG_CAPABILITIES {
        for kind in [LOOP, HOSTPATH] {
            let mut request = kind.create("pvc");
            spoil(&mut request.volume_capabilities[0]);
            let answer = driver.create(request).await;
            // hostpath ignores whatever the filesystem is, but not how long its name is.
            assert_eq!(refused(what, answer), InvalidArgument, "{what}");
        }
    }
    assert_eq!(driver.machine.names("default", "volumes"), Vec::<String>::new());
    driver.create(good).await.unwrap();
    driver.stop().await;
}

/// Wrong parameters, and what the message must hold besides the parameter's name.
const PARAMETERS: [(&str, &str, &str); 27] = [
    ("bakend", "loop", "backend, pool, quota"),
    ("", "loop", "backend, pool, quota"),
    ("onDelete\n", "delete", "backend, pool, quota"),
    ("backend", "zfs", "hostpath, loop"),
    ("backend", "", "hostpath, loop"),
    ("backend", "LOOP", "hostpath, loop"),
    ("pool", "nowhere", "default"),
    ("pool", "../default", "default"),
    ("quota", "required", "quota"),
    ("quota", "hard", "auto, required, off"),
    ("allocation", "sparse", "thin, thick"),
    ("directIO", "maybe", "auto, on, off"),
    ("mode", "rwx", "octal"),
    ("mode", "0999", "octal"),
    ("mode", "10000", "octal"),
    ("uid", "-1", "user id"),
    ("uid", "root", "user id"),
    ("gid", "4294967295", "group id"),
    ("onDelete", "keep", "delete, retain, archive, wipe"),
    ("csi.storage.k8s.io/fstype", "zfs", "ext4, xfs, btrfs"),
    ("mkfsOptions", "-F", "-i"),
    ("mkfsOptions", "-m 0 /dev/sda", "-i"),
    ("mkfsOptions", "-J device=/dev/sda", "-J size"),
    ("mkfsOptions", "-m 0;reboot", "-m"),
    ("mkfsOptions", "-m $(id)", "-m"),
    ("mkfsOptions", "-d /etc", "-i"),
    ("mkfsOptions", "-E root_owner=0:0", "-E stride"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_checked_and_the_message_lists_what_is_allowed() {
    let driver = Driver::start().await;
    for (name, value, hint) in PARAMETERS {
        let mut request = LOOP.create("pvc");
        parameter(&mut request, name, value);
        let status = driver.create(request).await.unwrap_err();
        assert_eq!(status.code(), InvalidArgument, "{name}={value}: {status}");
        let message = status.message();
        let named = message.contains(name.trim()) || message.contains(&format!("{name:?}"));
        assert!(named && message.contains(hint), "{name}={value}: {message}");
        // GetCapacity gets the same class; there what this node's pools are and can do only makes the figure.
        if name != "pool" && (name, value) != ("quota", "required") {
            let parameters = map(&[("backend", "loop"), (name, value)]);
            let query = GetCapacityRequest { parameters, ..GetCapacityRequest::default() };
            assert_eq!(refused(name, driver.capacity(query).await), InvalidArgument);
        }
    }
    for (name, value) in [
        ("allocation", "thick"),
        ("directIO", "on"),
        ("mkfsOptions", "-m 0"),
        ("quota", "required"),
    ] {
        let mut request = HOSTPATH.create("pvc");
        parameter(&mut request, name, value);
        let status = driver.create(request).await.unwrap_err();
        assert_eq!(status.code(), InvalidArgument, "{name}={value}");
        assert!(status.message().contains("backend=loop"), "{status}");
    }
    assert_eq!(driver.machine.names("default", "volumes"), Vec::<String>::new());
    driver.stop().await;
}

/// A well-formed id of this driver's pool that no volume has.
fn nobody(id: &str) -> String {
    let (start, _generation) = id.rsplit_once('-').unwrap();
    format!("{start}-00000000")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volume_ids() {
    let driver = Driver::start().await;
    let id = driver.make(LOOP, "pvc").await;
    assert_eq!(refused("no id", driver.delete("").await), InvalidArgument);
    assert_eq!(refused("too long", driver.delete(&"x".repeat(129)).await), InvalidArgument);
    let mut controller = driver.controller();
    for (what, wrong, code) in [
        ("no id", String::new(), InvalidArgument),
        ("too long", "x".repeat(129), InvalidArgument),
        ("not ours", "csi-0123".to_owned(), NotFound),
        ("a path", "../../etc/passwd".to_owned(), NotFound),
        ("another generation", nobody(&id), NotFound),
        ("capital letters", id.to_uppercase(), NotFound),
    ] {
        let volume_id = || wrong.clone();
        let get = ControllerGetVolumeRequest { volume_id: volume_id() };
        let expand = ControllerExpandVolumeRequest {
            volume_id: volume_id(),
            capacity_range: Some(range(2 << 30, 0)),
            ..ControllerExpandVolumeRequest::default()
        };
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id(),
            volume_capabilities: vec![LOOP.shared()],
            ..ValidateVolumeCapabilitiesRequest::default()
        };
        let get = controller.controller_get_volume(get).await;
        let expand = controller.controller_expand_volume(expand).await;
        let validate = controller.validate_volume_capabilities(validate).await;
        assert_eq!(refused(what, get), code, "ControllerGetVolume: {what}");
        assert_eq!(refused(what, expand), code, "ControllerExpandVolume: {what}");
        assert_eq!(refused(what, validate), code, "ValidateVolumeCapabilities: {what}");
        if code == NotFound {
            let request = DeleteVolumeRequest { volume_id: wrong, ..Default::default() };
            controller.delete_volume(request).await.expect(what);
        }
    }
    driver.get(&id).await.unwrap();
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_fields() {
    let driver = Driver::start().await;
    let id = driver.make(LOOP, "pvc").await;
    let expand = ControllerExpandVolumeRequest {
        volume_id: id.clone(),
        capacity_range: Some(range(2 << 30, 0)),
        ..ControllerExpandVolumeRequest::default()
    };
    let rows: [Wrong<ControllerExpandVolumeRequest>; 4] = [
        ("no capacity_range", InvalidArgument, |r| r.capacity_range = None),
        ("required_bytes below zero", InvalidArgument, |r| r.capacity_range = Some(range(-1, 0))),
        ("limit_bytes below zero", InvalidArgument, |r| r.capacity_range = Some(range(0, -1))),
        ("limit below required", OutOfRange, |r| r.capacity_range = Some(range(2, 1))),
    ];
    check!(
        |request| async {
            let request: ControllerExpandVolumeRequest = request;
            driver.controller().controller_expand_volume(request).await
        },
        expand,
        rows
    );
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: id,
        volume_capabilities: vec![LOOP.shared()],
        ..ValidateVolumeCapabilitiesRequest::default()
    };
    let rows: [Wrong<ValidateVolumeCapabilitiesRequest>; 2] = [
        ("no capabilities", InvalidArgument, |r| r.volume_capabilities.clear()),
        ("mount and block", InvalidArgument, |r| r.volume_capabilities.push(BLOCK.shared())),
    ];
    let call = |request: ValidateVolumeCapabilitiesRequest| async {
        driver.controller().validate_volume_capabilities(request).await
    };
    check!(call, validate, rows);
    for (what, spoil) in WRONG_CAPABILITIES {
        let mut request = validate.clone();
        spoil(&mut request.volume_capabilities[0]);
        assert_eq!(refused(what, call(request).await), InvalidArgument, "{what}");
        let mut query =
            GetCapacityRequest { volume_capabilities: vec![LOOP.shared()], ..Default::default() };
        spoil(&mut query.volume_capabilities[0]);
        assert_eq!(refused(what, driver.capacity(query).await), InvalidArgument, "{what}");
    }
    driver.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_volumes() {
    let driver = Driver::start().await;
    let list = ListVolumesRequest::default();
    let rows: [Wrong<ListVolumesRequest>; 5] = [
        ("max_entries below zero", InvalidArgument, |r| r.max_entries = -1),
        ("the smallest max_entries", InvalidArgument, |r| r.max_entries = i32::MIN),
        ("a token of rubbish", Aborted, |r| r.starting_token = "rubbish".to_owned()),
        ("a token that is a number", Aborted, |r| r.starting_token = "1".to_owned()),
        ("an endless token", Aborted, |r| r.starting_token = "x".repeat(10_000)),
    ];
    let call = |r: ListVolumesRequest| async { driver.controller().list_volumes(r).await };
    check!(call, list, rows);
    driver.stop().await;
}
