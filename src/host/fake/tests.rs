//! The model behaves as the kernel does, where the layers above can tell.

use super::*;
use crate::host::RootOwner;
use crate::volume::{Allocation, DirectIo};

const OPTIONS: LoopOptions<'static> = LoopOptions {
    label: "v-test",
    read_only: false,
    autoclear: true,
    direct_io: DirectIo::Auto,
    sector: 4096,
    allocation: Allocation::Thin,
};

fn image(home: &Path, filesystem: Filesystem, host: &FakeHost) -> std::fs::File {
    let path = home.join(filesystem.as_str());
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).write(true).create_new(true);
    let file = options.open(path).unwrap();
    file.set_len(1 << 30).unwrap();
    let root = RootOwner { mode: 0o777, uid: 0, gid: 0 };
    let recipe = FormatRecipe { filesystem, sector: 4096, options: &[], root };
    host.format(file.as_fd(), &recipe).unwrap();
    assert!(host.format(file.as_fd(), &recipe).is_err());
    file
}

#[test]
fn a_loop_volume_lives_its_life() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let host = FakeHost::new();
    let (staging, target) = (home.join("staging"), home.join("target"));
    for place in [&staging, &target] {
        host.make_mount_point(place, MountPoint::Directory).unwrap();
    }
    for filesystem in Filesystem::ALL.iter().copied() {
        let file = image(&home, filesystem, &host);
        let attached = host.attach(file.as_fd(), OPTIONS).unwrap();
        let request = FilesystemMount {
            loop_number: attached.number,
            filesystem,
            target: &staging,
            attributes: MountAttributes::default(),
            options: &[],
        };
        host.mount(&request).unwrap();
        attached.release();
        let read_only = MountAttributes::default().or_read_only(true);
        host.bind(BindSource::Path(&staging), &target, read_only).unwrap();
        let table = host.mounts().unwrap();
        let top = table.top_at(&target).unwrap();
        assert!(top.is_read_only() && top.mounted_loop() == Some(0), "{top:?}");
        assert_eq!(host.node(&target).unwrap(), host.node(&staging).unwrap());
        assert!(host.remove_mount_point(&target).is_err());

        file.set_len(2 << 30).unwrap();
        assert!(host.grow(filesystem, &staging, ByteSize::gib(2)).is_err());
        let grown = host.refresh_loop_size(0).unwrap();
        host.grow(filesystem, &staging, grown).unwrap();
        let found = host.probe(file.as_fd()).unwrap().unwrap();
        assert_eq!((found.filesystem, found.size), (filesystem, grown));

        host.unmount(&target).unwrap();
        assert_eq!(host.loops().unwrap().len(), 1);
        host.unmount(&staging).unwrap();
        assert_eq!(host.loops().unwrap(), []);
    }
    assert!(host.unmount(&staging).is_err());
}

#[test]
fn a_device_node_does_not_hold_its_loop() {
    let home = tempfile::tempdir().unwrap();
    let host = FakeHost::new();
    let file = image(home.path(), Filesystem::Ext4, &host);
    let attached = host.attach(file.as_fd(), OPTIONS).unwrap();
    let target = home.path().canonicalize().unwrap().join("device");
    host.make_mount_point(&target, MountPoint::File).unwrap();
    let node = loop_path(attached.number);
    host.bind(BindSource::Path(&node), &target, MountAttributes::default()).unwrap();
    let table = host.mounts().unwrap();
    assert_eq!(table.loop_node_at(&target), Some(0));
    attached.release();
    assert_eq!(host.loop_status(0).unwrap(), None);
    assert_eq!(host.mount_points(), std::slice::from_ref(&target));
    host.unmount(&target).unwrap();
    host.remove_mount_point(&target).unwrap();
}

#[test]
fn a_fault_strikes_once_and_a_reboot_forgets() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().canonicalize().unwrap();
    let host = FakeHost::new();
    host.fail_next("bind", Errno::ENOMEM);
    let (from, to) = (home.join("from"), home.join("to"));
    for place in [&from, &to] {
        host.make_mount_point(place, MountPoint::Directory).unwrap();
    }
    let open = std::fs::File::open(&from).unwrap();
    let bind = || host.bind(BindSource::Fd(open.as_fd()), &to, MountAttributes::default());
    assert_eq!(bind().unwrap_err().errno(), Some(Errno::ENOMEM));
    bind().unwrap();
    let table = host.mounts().unwrap();
    let shown = table.top_at(&to).unwrap();
    let identity = host.node(&from).unwrap().unwrap().identity;
    // The model's machine has one filesystem, whatever the test's own has.
    let machine = table.top_at(Path::new("/")).unwrap().device;
    assert_eq!((&shown.root, shown.device), (&from, machine));
    assert_eq!(host.node(&to).unwrap().unwrap().identity, identity);
    assert_eq!(host.take_calls(), ["make_mount_point", "make_mount_point", "bind"]);
    host.reboot();
    assert_eq!(host.mount_points(), Vec::<PathBuf>::new());
}

#[test]
fn a_blocked_call_waits_and_a_second_device_on_an_image_is_seen() {
    let home = tempfile::tempdir().unwrap();
    let host = FakeHost::new();
    let file = image(home.path(), Filesystem::Xfs, &host);
    let blocked = host.block_next("attach");
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| host.attach(file.as_fd(), OPTIONS).unwrap());
        blocked.wait();
        // Only that one call waits, and nothing of it has happened.
        assert_eq!((host.loops().unwrap(), host.max_loops_per_image()), (Vec::new(), 0));
        blocked.release();
        let first = slow.join().unwrap();
        assert_eq!(host.max_loops_per_image(), 1);
        let second = host.attach(file.as_fd(), OPTIONS).unwrap();
        assert_eq!((first.number, second.number, host.max_loops_per_image()), (0, 1, 2));
    });
    assert_eq!(host.loops().unwrap(), []);
}
