//! What a pod does in its own volume, meant well or not, reaches neither the driver's files nor another volume.

#![expect(clippy::disallowed_methods, reason = "writes into volumes as a pod does")]

use std::path::Path;

use tonic::Code;

use crate::client::mount;
use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, check_nothing_left, read, trash_is_empty, write};
use crate::privileged::{mounts_below, poll, privileged, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_file_of_the_driver_s_own_name_in_a_volume_is_the_user_s() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for (kind, content) in
            [(Kind::Hostpath, ""), (Kind::Hostpath, "full"), (Kind::Ext4, ""), (Kind::Xfs, "full")]
        {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}{content}"));
            life.born(&mut driver);
            life.up(&mut driver);
            std::fs::write(life.target.join("device"), content).unwrap();
            life.down(&mut driver);
            life.up(&mut driver);
            let kept = std::fs::read_to_string(life.target.join("device")).unwrap();
            assert_eq!(kept, content, "{kind:?}");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn directories_and_files_that_look_like_another_volume_block_nobody() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut victim = Life::new(sandbox, Kind::Hostpath, "victim");
        victim.born(&mut driver);
        let mut tenant = Life::new(sandbox, Kind::Hostpath, "tenant");
        tenant.born(&mut driver);
        tenant.up(&mut driver);
        let key = victim.id.split('-').nth(2).unwrap().to_owned();
        let imitation = tenant.target.join("volumes").join(key).join("data");
        std::fs::create_dir_all(&imitation).unwrap();
        // What kubelet does for a subPath.
        let sub_path = sandbox.make_dir("sub-path");
        run("mount", &["--bind", text(&imitation), text(&sub_path)]);
        victim.gone(&mut driver);
        // Its own use of a part of its volume does count.
        let refused = driver.client.delete(&tenant.id).unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        run("umount", &[&sub_path]);
        tenant.down(&mut driver);
        tenant.gone(&mut driver);
        std::fs::remove_dir(sub_path).unwrap();
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn immutable_files_and_full_directories_are_removed() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Hostpath, "stubborn");
        life.born(&mut driver);
        life.up(&mut driver);
        let many = life.target.join("many");
        std::fs::create_dir(&many).unwrap();
        for index in 0..5000 {
            std::fs::File::create(many.join(index.to_string())).unwrap();
        }
        let sealed = life.target.join("sealed");
        std::fs::create_dir(&sealed).unwrap();
        std::fs::write(sealed.join("file"), "stays?").unwrap();
        run("chattr", &["+i", text(&sealed.join("file")), text(&sealed)]);
        life.down(&mut driver);
        life.gone(&mut driver);
        poll("the trash is empty", || trash_is_empty(sandbox));
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_volume_that_one_pod_only_reads_grows_for_all() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Xfs, "grows");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "before");
        let reader = life.other_target("reader");
        life.try_publish_readonly(&driver.client, &reader).unwrap();
        let larger = life.create.bytes + 200 * MIB;
        driver.client.expand(&life.id, larger).unwrap();
        driver.client.node_expand(&life.id, &reader, larger).unwrap();
        let stats = driver.client.stats(&life.id, &life.target).unwrap();
        let total = u64::try_from(stats[0].total).unwrap();
        // XFS keeps 64 MiB and more for its log.
        assert!(total > life.create.bytes, "{total} of {larger}");
        assert_eq!(read(life.kind, &reader), "before");
        driver.client.unpublish(&life.id, &reader).unwrap();
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
#[ignore = "needs CAP_SYS_RESOURCE: make vm"]
fn an_ext4_grows_under_its_pods() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "grows");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "before");
        let (before, mounts) = (life.seen_size(), mounts_below(sandbox.dir()));
        let open = std::fs::File::open(life.target.join("file")).unwrap();
        let larger = life.kind.grown();
        driver.client.expand(&life.id, larger).unwrap();
        driver.client.node_expand(&life.id, &life.target, larger).unwrap();
        life.check_growth(before);
        drop(open);
        assert_eq!(mounts_below(sandbox.dir()), mounts);
        assert_eq!(read(life.kind, &life.target), "before");
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn mkfs_options_are_for_the_filesystem_of_the_capability() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Xfs, "options").with("mkfsOptions", "-i size=1024");
        // As external-provisioner sends it: the type in the capability, not in the parameters.
        life.create.capability = mount("xfs", life.mode);
        life.create.parameters.retain(|(name, _)| !name.starts_with("csi.storage.k8s.io/"));
        life.born(&mut driver);
        life.up(&mut driver);
        let geometry = run("xfs_info", &[&life.target]);
        assert!(geometry.contains("isize=1024"), "{geometry}");
        life.down(&mut driver);
        life.gone(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_filesystem_that_is_mounted_elsewhere_is_never_grown_beneath_its_mount() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut life = Life::new(sandbox, Kind::Ext4, "twice");
        life.born(&mut driver);
        life.up(&mut driver);
        write(life.kind, &life.target, "kept");
        let second = sandbox.make_dir("second-stage");
        let capability = life.kind.capability(life.mode);
        driver.client.stage(&life.id, &second, &capability).unwrap();
        driver.client.expand(&life.id, life.kind.grown()).unwrap();
        life.down(&mut driver);
        // Where a mounted ext4 may not grow, this one waits until it is staged nowhere.
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "kept");
        life.down(&mut driver);
        driver.client.unstage(&life.id, &second).unwrap();
        life.up(&mut driver);
        assert_eq!(read(life.kind, &life.target), "kept");
        let stats = driver.client.stats(&life.id, &life.target).unwrap();
        assert!(u64::try_from(stats[0].total).unwrap() > life.create.bytes);
        life.down(&mut driver);
        life.gone(&mut driver);
        std::fs::remove_dir(second).unwrap();
        check_nothing_left(sandbox, &mut driver);
    });
}
