//! What exists becomes a volume: by the command alone, through a running driver, and never while somebody uses it.

#![expect(clippy::disallowed_methods, reason = "runs the program, and makes what it imports")]

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB, check_nothing_left, read};
use crate::pools::{PoolOn, end};
use crate::privileged::{Sandbox, poll, privileged, run};

/// Runs `orlop volume …` on the test's pool, with a fault point armed as `NAME:abort`.
pub(crate) fn orlop(sandbox: &Sandbox, fault: Option<&str>, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    if arguments.starts_with(&["volume", "import"]) {
        // A test has a PID namespace of its own.
        command.arg("volume").arg("import").arg("--unused").args(&arguments[2..]);
    } else {
        command.args(arguments);
    }
    command
        .args(["--config".as_ref(), sandbox.path("orlop.toml").as_os_str()])
        .args(["--root-dir".as_ref(), sandbox.path("root").as_os_str()])
        .args(["--node", "n1"])
        .env_remove("CSI_ENDPOINT")
        .env_remove("ORLOP_ENDPOINT")
        .env_remove("ORLOP_FAULT")
        .stdin(Stdio::null());
    if let Some(fault) = fault {
        command.env("ORLOP_FAULT", fault);
    }
    command.output().unwrap()
}

/// The id in what a command printed, which must have succeeded.
pub(crate) fn id(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", complaint(output));
    let handle = told.split("volumeHandle: \"").nth(1).unwrap_or_else(|| panic!("{told}"));
    handle.split('"').next().unwrap().to_owned()
}

pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Makes a pool that no driver serves.
pub(crate) fn make_pool(sandbox: &Sandbox, place: &str) {
    let pool = sandbox.path(place);
    let config = format!("[[pool]]\nname = \"p\"\npath = {pool:?}\nreserve = \"0\"\n");
    std::fs::write(sandbox.path("orlop.toml"), config).unwrap();
    run(env!("CARGO_BIN_EXE_orlop"), &["pool", "init", "--name", "p", pool.to_str().unwrap()]);
}

/// A directory with something of every kind in it.
pub(crate) fn make_tree(root: &Path) {
    std::fs::create_dir_all(root.join("sub/deeper")).unwrap();
    std::fs::write(root.join("file"), "in the tree").unwrap();
    std::fs::write(root.join("sub/deeper/large"), vec![7; 300_000]).unwrap();
    std::fs::hard_link(root.join("file"), root.join("sub/linked")).unwrap();
    std::os::unix::fs::symlink("../file", root.join("sub/link")).unwrap();
    std::fs::set_permissions(root.join("sub/deeper/large"), PermissionsExt::from_mode(0o4750))
        .unwrap();
    std::os::unix::fs::chown(root.join("sub"), Some(1000), Some(1001)).unwrap();
}

/// It is what [`make_tree`] made.
pub(crate) fn check_tree(root: &Path) {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(root), ["file", "sub"]);
    assert_eq!(names(&root.join("sub")), ["deeper", "link", "linked"]);
    assert_eq!(std::fs::read(root.join("file")).unwrap(), b"in the tree");
    assert_eq!(std::fs::read(root.join("sub/deeper/large")).unwrap(), vec![7; 300_000]);
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(meta("file").ino(), meta("sub/linked").ino());
    assert_eq!(std::fs::read_link(root.join("sub/link")).unwrap(), Path::new("../file"));
    assert_eq!(meta("sub/deeper/large").mode() & 0o7777, 0o4750);
    assert_eq!((meta("sub").uid(), meta("sub").gid()), (1000, 1001));
}

/// An image with an ext4 that has a file in it.
pub(crate) fn make_ext4(sandbox: &Sandbox, image: &Path, size: u64) {
    let content = sandbox.make_dir("content");
    std::fs::write(content.join("file"), "in the image").unwrap();
    File::create(image).unwrap().set_len(size).unwrap();
    run("mkfs.ext4", &["-qF", "-d", content.to_str().unwrap(), image.to_str().unwrap()]);
}

/// What `debugfs` shows of a file in an image.
pub(crate) fn in_image(image: &Path) -> String {
    run("debugfs", &["-R", "cat /file", image.to_str().unwrap()])
}

/// Shows an imported volume as kubelet would, and takes it down again.
fn up_and_down(driver: &mut Driver, life: &Life, content: &str) {
    life.up(driver);
    assert_eq!(read(life.kind, &life.target), content);
    life.down(driver);
}

fn imported(sandbox: &Sandbox, kind: Kind, name: &str, id: String) -> Life {
    let mut life = Life::new(sandbox, kind, name);
    life.id = id;
    life
}

/// Imports through the driver that is running.
fn through(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    let endpoint = format!("unix://{}", sandbox.path("csi.sock").display());
    orlop(sandbox, None, &[&["volume", "import"], arguments, &["--endpoint", &endpoint]].concat())
}

#[test]
fn a_running_driver_imports_and_serves_what_was_imported() {
    privileged(|sandbox| {
        PoolOn::Xfs.mount(sandbox, 400);
        let mut driver = Driver::start(sandbox);
        // The pool is all of its filesystem, so nothing beside it can be moved into it.
        let source = sandbox.make_dir("tree");
        make_tree(&source);
        let refused = through(sandbox, &[source.to_str().unwrap(), "--name", "tree"]);
        assert!(complaint(&refused).contains("--copy"), "{}", complaint(&refused));
        let copied = through(sandbox, &[source.to_str().unwrap(), "--name", "tree", "--copy"]);
        check_tree(&source);
        let tree = imported(sandbox, Kind::Hostpath, "tree", id(&copied));
        assert!(String::from_utf8_lossy(&copied.stdout).contains("- \"n1\""));
        check_tree(&tree.dir().join("data"));
        up_and_down(&mut driver, &tree, "in the tree");
        let image = sandbox.path("disk.img");
        make_ext4(sandbox, &image, 32 * MIB + 1);
        let arguments = [image.to_str().unwrap(), "--name", "image"];
        let odd = through(sandbox, &arguments);
        assert!(complaint(&odd).contains("multiple of 4096"), "{}", complaint(&odd));
        let copied = through(sandbox, &[&arguments[..], &["--copy", "--size", "48MiB"]].concat());
        let life = imported(sandbox, Kind::Ext4, "image", id(&copied));
        assert_eq!(life.image().metadata().unwrap().len(), 48 * MIB);
        up_and_down(&mut driver, &life, "in the image");
        assert_eq!(image.metadata().unwrap().len(), 32 * MIB + 1, "the source is as it was");
        for life in [tree, life] {
            driver.client.delete(&life.id).unwrap();
        }
        // What is deleted is kept, because nothing else was asked for; and comes back as it was, while the driver runs.
        let kept = names(&sandbox.path("pool/retained"));
        assert_eq!(kept.len(), 2);
        for kept in kept {
            let back = id(&through(sandbox, &[kept.to_str().unwrap(), "--on-delete", "delete"]));
            let again = id(&through(sandbox, &[kept.to_str().unwrap()]));
            assert_eq!(back, again, "a repeat is answered as done");
            let is_image = sandbox.path("pool/volumes").join(key(&back)).join("disk.img").exists();
            let (kind, content) = if is_image {
                (Kind::Ext4, "in the image")
            } else {
                (Kind::Hostpath, "in the tree")
            };
            let life = imported(sandbox, kind, "back", back);
            up_and_down(&mut driver, &life, content);
            driver.client.delete(&life.id).unwrap();
        }
        end(sandbox, driver);
    });
}

pub(crate) fn key(id: &str) -> &str {
    id.split('-').nth(2).unwrap()
}

fn names(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_pool_that_a_driver_has_open_is_refused_with_what_to_do() {
    privileged(|sandbox| {
        let driver = Driver::start(sandbox);
        let source = sandbox.make_dir("tree");
        make_tree(&source);
        let arguments = ["volume", "import", source.to_str().unwrap(), "--name", "tree"];
        let refused = complaint(&orlop(sandbox, None, &arguments));
        assert!(refused.contains("running driver") && refused.contains("--endpoint"), "{refused}");
        check_tree(&source);
        // The pool is on the sandbox's own filesystem here, so that it is moved.
        let id = id(&through(sandbox, &arguments[2..]));
        assert!(!source.exists());
        check_tree(&sandbox.path("pool/volumes").join(key(&id)).join("data"));
        drop(driver);
        let listed = orlop(sandbox, None, &["volume", "manifest", &id]);
        assert!(String::from_utf8_lossy(&listed.stdout).contains("name: \"tree\"\n"));
    });
}

#[test]
fn a_filesystem_that_needs_repair_is_imported_as_it_is() {
    privileged(|sandbox| {
        make_pool(sandbox, "pool");
        let image = sandbox.path("disk.img");
        make_ext4(sandbox, &image, 8 * MIB);
        let text = image.to_str().unwrap();
        let copy =
            |name| orlop(sandbox, None, &["volume", "import", text, "--copy", "--name", name]);
        let is_same = |output: &Output| {
            let volume = sandbox.path("pool/volumes").join(key(&id(output)));
            let [one, other] = [&volume.join("disk.img"), &image].map(std::fs::read);
            one.unwrap() == other.unwrap()
        };
        assert!(!is_same(&copy("well")), "it gets a UUID of its own");
        // EXT4_ERROR_FS
        run("debugfs", &["-w", "-R", "set_super_value state 2", text]);
        assert!(is_same(&copy("ill")));
        assert!(in_image(&image).contains("in the image"));
    });
}

#[test]
fn a_driver_that_dies_in_an_import_is_asked_again() {
    privileged(|sandbox| {
        let mut driver = Driver::start_armed(sandbox, Some("store.import.taken:abort"));
        let source = sandbox.make_dir("tree");
        make_tree(&source);
        let arguments = [source.to_str().unwrap(), "--name", "v", "--on-delete", "delete"];
        let complaint = complaint(&through(sandbox, &arguments));
        assert!(complaint.contains("repeat the command"), "{complaint}");
        poll("the driver is dead", || driver.is_dead());
        assert!(!source.exists(), "it died behind the rename");
        driver.restart();
        let config = sandbox.path("orlop.toml");
        let list = ["volume", "list", "--output", "json", "--config", config.to_str().unwrap()];
        let listed = run(env!("CARGO_BIN_EXE_orlop"), &list);
        assert!(listed.contains("\"importing\"") && listed.contains("/tree\""), "{listed}");
        let life = imported(sandbox, Kind::Hostpath, "v", id(&through(sandbox, &arguments)));
        up_and_down(&mut driver, &life, "in the tree");
        driver.client.delete(&life.id).unwrap();
        check_nothing_left(sandbox, &mut driver);
    });
}

/// Nothing is done, and the complaint has these words in it.
fn refused(sandbox: &Sandbox, arguments: &[&str], words: &str) {
    let output = orlop(sandbox, None, &[&["volume", "import"], arguments].concat());
    let complaint = complaint(&output);
    assert!(!output.status.success() && complaint.contains(words), "{arguments:?}: {complaint}");
    assert_eq!(names(&sandbox.path("pool/volumes")), Vec::<PathBuf>::new(), "{arguments:?}");
}

/// The same for a move and a copy.
fn refused_both_ways(sandbox: &Sandbox, source: &Path, words: &str) {
    let arguments = [source.to_str().unwrap(), "--name", "v"];
    refused(sandbox, &arguments, words);
    refused(sandbox, &[&arguments[..], &["--copy"]].concat(), words);
}

#[test]
fn what_is_no_volume_s_data_is_refused() {
    privileged(|sandbox| {
        make_pool(sandbox, "pool");
        let tree = sandbox.make_dir("tree");
        make_tree(&tree);
        let refuse = |path: &Path, words: &str| refused_both_ways(sandbox, path, words);
        std::os::unix::fs::symlink(&tree, sandbox.path("link")).unwrap();
        refuse(&sandbox.path("link"), "symbolic link");
        refuse(&sandbox.path("link/sub"), "symbolic link");
        refuse(&sandbox.path("pool/volumes"), "overlap");
        refuse(sandbox.dir(), "overlap");
        refuse(Path::new("/dev/null"), "neither a directory nor a regular file");
        refuse(Path::new("tree"), "absolute path");
        // A pool that is not configured here.
        let other = sandbox.make_dir("other");
        let made = ["pool", "init", "--name", "o", other.to_str().unwrap()];
        run(env!("CARGO_BIN_EXE_orlop"), &made);
        refuse(&other.join("volumes"), "overlap");
        File::create(sandbox.path("empty")).unwrap();
        refuse(&sandbox.path("empty"), "empty");
        let image = sandbox.path("disk.img");
        make_ext4(sandbox, &image, 8 * MIB);
        std::fs::hard_link(&image, sandbox.path("second.img")).unwrap();
        let [tree_text, image] = [&tree, &image].map(|path| path.to_str().unwrap());
        refused(sandbox, &[image, "--name", "v"], "hard links");
        std::fs::hard_link(tree.join("sub/deeper/large"), sandbox.path("third")).unwrap();
        refused(sandbox, &[tree_text, "--name", "v"], "hard links");
        std::fs::remove_file(sandbox.path("third")).unwrap();
        refused(sandbox, &[image, "--name", "v", "--copy", "--size", "4MiB"], "too small");
        refused(sandbox, &[tree_text, "--name", "v", "--size", "4096"], "too small");
        refused(sandbox, &[tree_text], "--name");
        refused(sandbox, &[tree_text, "--name", "v", "--to", "q"], "pools are");
        check_tree(&tree);
    });
}

#[test]
fn what_is_in_use_is_refused() {
    privileged(|sandbox| {
        make_pool(sandbox, "pool");
        let (tree, elsewhere) = (sandbox.make_dir("tree"), sandbox.make_dir("elsewhere"));
        make_tree(&tree);
        let refuse = |path: &Path, words: &str| refused_both_ways(sandbox, path, words);
        let image = sandbox.path("disk.img");
        make_ext4(sandbox, &image, 8 * MIB);
        let (tree_text, other) = (tree.to_str().unwrap(), elsewhere.to_str().unwrap());
        run("mount", &["-t", "tmpfs", "none", tree.join("sub/deeper").to_str().unwrap()]);
        refuse(&tree, "something is mounted at");
        refuse(&tree.join("sub/deeper"), "mount point");
        run("umount", &[tree.join("sub/deeper")]);
        run("mount", &["--bind", tree.join("sub").to_str().unwrap(), other]);
        refuse(&tree, "it is mounted at");
        run("umount", &[&elsewhere]);
        in_a_container(tree_text, other, || refuse(&tree, "in a container"));
        let device = run("losetup", &["--show", "-f", image.to_str().unwrap()]);
        refuse(&image, "/dev/loop");
        run("losetup", &["-d", device.trim()]);
        // Nobody uses it any more, and nothing was done to it.
        check_tree(&tree);
        let moved = orlop(sandbox, None, &["volume", "import", tree_text, "--name", "v"]);
        check_tree(&sandbox.path("pool/volumes").join(key(&id(&moved))).join("data"));
        let image_text = image.to_str().unwrap();
        let taken = orlop(sandbox, None, &["volume", "import", image_text, "--name", "v"]);
        assert!(complaint(&taken).contains("a volume of this name exists"));
        assert_eq!(in_image(&image), "in the image");
    });
}

/// Does something while a directory is mounted in the mount namespace of another process only.
fn in_a_container(source: &str, target: &str, check: impl FnOnce()) {
    let script = "mount --bind \"$1\" \"$2\" && echo mounted && read -r _";
    let mut child = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh", source, target])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = [0; 8];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut told).unwrap();
    check();
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_half_imported_volume_is_refused_to_everybody_and_its_deletion_leaves_the_source() {
    privileged(|sandbox| {
        make_pool(sandbox, "pool");
        let source = sandbox.make_dir("tree");
        make_tree(&source);
        let arguments = ["volume", "import", source.to_str().unwrap(), "--name", "v"];
        for (point, is_moved) in [("engine.import.noted", false), ("store.import.taken", true)] {
            orlop(sandbox, Some(&format!("{point}:abort")), &arguments);
            assert_eq!(source.exists(), !is_moved);
            let mut driver = Driver::start(sandbox);
            let volumes = names(&sandbox.path("pool/volumes"));
            let record = std::fs::read_to_string(volumes[0].join("volume.json")).unwrap();
            let record: serde_json::Value = serde_json::from_str(&record).unwrap();
            let pool: serde_json::Value = serde_json::from_str(
                &std::fs::read_to_string(sandbox.path("pool/pool.json")).unwrap(),
            )
            .unwrap();
            let tag = &pool["uuid"].as_str().unwrap()[..8];
            let text = |name: &str| record[name].as_str().unwrap().to_owned();
            let id = format!("v-{tag}-{}-{}", text("key"), text("generation"));
            let life = imported(sandbox, Kind::Hostpath, "v", id.clone());
            let refusal = life.try_stage(&driver.client).unwrap_err();
            assert_eq!(refusal.code(), Code::FailedPrecondition, "{refusal:?}");
            assert!(refusal.message().contains("import"), "{refusal:?}");
            assert_eq!(driver.client.health(&id), ["ImportUnfinished"]);
            let manifest = orlop(sandbox, None, &["volume", "manifest", &id]);
            assert!(complaint(&manifest).contains("import"), "{}", complaint(&manifest));
            let deleted = driver.client.delete(&id);
            if is_moved {
                assert_eq!(deleted.unwrap_err().code(), Code::FailedPrecondition);
                let done = self::id(&through(sandbox, &arguments[2..]));
                assert_eq!(done, id);
                check_tree(&volumes[0].join("data"));
                up_and_down(&mut driver, &life, "in the tree");
                driver.client.delete(&id).unwrap();
                assert_eq!(names(&sandbox.path("pool/retained")).len(), 1);
            } else {
                deleted.unwrap();
                check_tree(&source);
            }
            drop(driver);
        }
    });
}
