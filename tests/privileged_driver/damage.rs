//! Volumes that are damaged one way or another in a pool with others: each is told of with what to do, by health, by the
//! lists and by `orlop pool check`; none is touched; its neighbours never notice; and mended it works again.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "damages pools as disks and people could, and says which damage failed"
)]

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use orlop::csi::proto::ListVolumesRequest;
use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, write};
use crate::managed::orlop;
use crate::privileged::{Sandbox, privileged, run};

/// Volumes in use beside what is damaged.
pub(crate) struct Neighbours {
    lives: Vec<Life>,
    rounds: usize,
}

impl Neighbours {
    pub(crate) fn new(sandbox: &Sandbox, driver: &mut Driver) -> Self {
        let life = |kind| Life::new(sandbox, kind, &format!("neighbour {kind:?}"));
        let mut lives = vec![life(Kind::Hostpath), life(Kind::Ext4), life(Kind::Block)];
        for life in &mut lives {
            life.born(driver);
            life.up(driver);
        }
        Self { lives, rounds: 0 }
    }

    /// They are well, readable and writable, and others are made and deleted beside them.
    pub(crate) fn are_well(&mut self, sandbox: &Sandbox, driver: &mut Driver) {
        self.rounds += 1;
        for life in &self.lives {
            let text = format!("round {}", self.rounds);
            write(life.kind, &life.target, &text);
            assert_eq!(read(life.kind, &life.target), text);
            let told = driver.client.node_health(&life.id, &life.staging, &life.target);
            assert_eq!(told, [""; 0], "{:?}", life.kind);
        }
        let ids = listed(driver);
        assert!(self.lives.iter().all(|life| ids.contains(&life.id)), "{ids:?}");
        let mut another = Life::new(sandbox, Kind::Hostpath, "another");
        another.born(driver);
        another.up(driver);
        write(another.kind, &another.target, "another");
        another.down(driver);
        another.gone(driver);
    }

    pub(crate) fn end(self, driver: &mut Driver) {
        for life in self.lives {
            life.down(driver);
            life.gone(driver);
        }
    }
}

/// The ids that ListVolumes tells.
pub(crate) fn listed(driver: &Driver) -> Vec<String> {
    let mut controller = driver.client.controller();
    let request = ListVolumesRequest::default();
    let reply = driver.client.runtime.block_on(controller.list_volumes(request)).unwrap();
    let volumes = reply.into_inner().entries.into_iter().map(|entry| entry.volume.unwrap());
    volumes.map(|volume| volume.volume_id).collect()
}

/// What is done to a volume, and what is told of it then.
struct Damage {
    what: &'static str,
    /// Does it to the volume's directory; a place outside the pool may be used.
    harm: fn(&Path, &Path),
    reason: &'static str,
    /// In the line of `orlop pool check`, beside the key.
    told: &'static str,
    /// In the same line: what to do.
    remedy: &'static str,
}

fn replace(path: &Path, content: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, content).unwrap();
}

fn change_record(volume: &Path, change: impl FnOnce(String) -> String) {
    let path = volume.join("volume.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let changed = change(text.clone());
    assert_ne!(changed, text);
    replace(&path, changed.as_bytes());
}

/// Where the data is: a directory or an image.
fn data(volume: &Path) -> PathBuf {
    let directory = volume.join("data");
    if directory.exists() { directory } else { volume.join("disk.img") }
}

const FROM_COPY: &str = "restore it from a copy";

const RECORDS: &[Damage] = &[
    Damage {
        what: "torn",
        harm: |volume, _| change_record(volume, |text| text[..text.len() / 2].to_owned()),
        reason: "RecordDamaged",
        told: "EOF while parsing",
        remedy: FROM_COPY,
    },
    Damage {
        what: "empty",
        harm: |volume, _| change_record(volume, |_| String::new()),
        reason: "RecordDamaged",
        told: "EOF while parsing",
        remedy: FROM_COPY,
    },
    Damage {
        what: "zeroes, as a power cut may leave it",
        harm: |volume, _| replace(&volume.join("volume.json"), &[0; 4096]),
        reason: "RecordDamaged",
        told: "expected value",
        remedy: FROM_COPY,
    },
    Damage {
        what: "gone",
        harm: |volume, _| std::fs::remove_file(volume.join("volume.json")).unwrap(),
        reason: "RecordDamaged",
        told: "it is missing",
        remedy: FROM_COPY,
    },
    Damage {
        what: "endless",
        harm: |volume, _| replace(&volume.join("volume.json"), &vec![b' '; 3 << 20]),
        reason: "RecordDamaged",
        told: "longer than 1048576 bytes",
        remedy: FROM_COPY,
    },
    Damage {
        what: "nested without an end",
        harm: |volume, _| replace(&volume.join("volume.json"), &vec![b'['; 1 << 19]),
        reason: "RecordDamaged",
        told: "damaged",
        remedy: FROM_COPY,
    },
    Damage {
        what: "of another time",
        harm: |volume, _| {
            change_record(volume, |text| text.replace("\"minReader\": 1", "\"minReader\": 9"));
        },
        reason: "RecordTooNew",
        told: "asks for reader 9",
        remedy: "run that release",
    },
    Damage {
        what: "that of another volume",
        harm: |volume, _| {
            let key = volume.file_name().unwrap().to_str().unwrap().to_owned();
            change_record(volume, |text| text.replace(&key, "0123456789abcdef0123456789abcdef"));
        },
        reason: "RecordDamaged",
        told: "belongs to the key 0123456789abcdef0123456789abcdef",
        remedy: FROM_COPY,
    },
    Damage {
        what: "a link to its copy",
        harm: |volume, outside| {
            std::fs::rename(volume.join("volume.json"), outside).unwrap();
            symlink(outside, volume.join("volume.json")).unwrap();
        },
        reason: "RecordDamaged",
        told: "a symbolic link lies there",
        remedy: FROM_COPY,
    },
    Damage {
        what: "a directory",
        harm: |volume, _| {
            std::fs::remove_file(volume.join("volume.json")).unwrap();
            std::fs::create_dir(volume.join("volume.json")).unwrap();
        },
        reason: "RecordDamaged",
        told: "not a regular file",
        remedy: FROM_COPY,
    },
    Damage {
        what: "a pipe that nobody writes to",
        harm: |volume, _| {
            std::fs::remove_file(volume.join("volume.json")).unwrap();
            run("mkfifo", &[volume.join("volume.json")]);
        },
        reason: "RecordDamaged",
        told: "not a regular file",
        remedy: FROM_COPY,
    },
];

const DATA: &[Damage] = &[
    Damage {
        what: "gone",
        harm: |volume, outside| std::fs::rename(data(volume), outside).unwrap(),
        reason: "DataMissing",
        told: "DataMissing",
        remedy: "restore it from a copy, or move",
    },
    Damage {
        what: "a link to where it lies now",
        harm: |volume, outside| {
            let data = data(volume);
            std::fs::rename(&data, outside).unwrap();
            symlink(outside, data).unwrap();
        },
        reason: "DataMissing",
        told: "a symbolic link lies there",
        remedy: "restore it from a copy, or move",
    },
    Damage {
        what: "a pipe",
        harm: |volume, outside| {
            let data = data(volume);
            std::fs::rename(&data, outside).unwrap();
            run("mkfifo", &[data]);
        },
        reason: "DataMissing",
        told: "DataMissing",
        remedy: "restore it from a copy, or move",
    },
    Damage {
        what: "in a directory that is a link",
        harm: |volume, outside| {
            std::fs::rename(volume, outside).unwrap();
            symlink(outside, volume).unwrap();
        },
        reason: "RecordDamaged",
        told: "a symbolic link lies there",
        remedy: FROM_COPY,
    },
];

/// Everything in a directory: names, and what they lead to.
fn listing(place: &Path) -> String {
    run("find", &[place.as_os_str(), "-printf".as_ref(), "%P %y %s %l %T@\\n".as_ref()])
}

/// Health, the lists and the check tell of it, each once.
fn is_told(sandbox: &Sandbox, driver: &Driver, life: &Life, damage: &Damage) {
    let key = life.id.split('-').nth(2).unwrap();
    let told = driver.client.health(&life.id);
    assert_eq!(told, [damage.reason]);
    // A record that cannot be read may not tell its generation.
    let entries = driver.client.all_health();
    let listed: Vec<_> = entries.iter().filter(|(id, _)| id.contains(key)).collect();
    assert_eq!(listed.len(), 1, "{entries:?}");
    assert_eq!(listed[0].1, [damage.reason]);
    let rows = orlop(sandbox, &["volume", "list"]).unwrap();
    let row = rows.lines().find(|row| row.contains(key)).unwrap();
    assert!(row.contains(damage.told) && row.contains(damage.remedy), "{row}");
    let found = orlop(sandbox, &["pool", "check"]).unwrap_err();
    let row = found.lines().find(|row| row.contains(key) && row.contains("WRONG")).unwrap();
    assert!(row.contains(damage.told) && row.contains(damage.remedy), "{row}");
    assert!(found.contains("1 findings"), "{found}");
    let mended = orlop(sandbox, &["pool", "check", "--repair"]).unwrap_err();
    assert!(mended.contains("1 findings") && !mended.contains("mended"), "{mended}");
}

/// Nothing that needs the volume is done, and no other one is made in its place.
fn is_refused(driver: &Driver, life: &Life, damage: &Damage) {
    life.try_stage(&driver.client).unwrap_err();
    let unreadable = damage.reason.starts_with("Record");
    if unreadable {
        driver.client.expand(&life.id, life.kind.grown()).unwrap_err();
        let made = driver.client.create(&life.create).unwrap_err();
        assert_eq!(made.code(), Code::Internal, "{made:?}");
        assert_eq!(driver.client.delete(&life.id).unwrap_err().code(), Code::Internal);
    } else {
        assert_eq!(driver.client.create(&life.create).unwrap().volume_id, life.id);
    }
}

/// One volume of a kind with some damage, from the harm to the mending.
fn suffers(sandbox: &Sandbox, driver: &mut Driver, kind: Kind, damage: &Damage, restart: bool) {
    println!("{kind:?}: {}", damage.what);
    let mut life = Life::new(sandbox, kind, "victim");
    life.born(driver);
    life.up(driver);
    write(kind, &life.target, "precious");
    life.down(driver);
    let (volume, outside) = (life.dir(), sandbox.path("outside"));
    let whole = sandbox.path("whole");
    run("cp", &["-a".as_ref(), volume.as_os_str(), whole.as_os_str()]);
    (damage.harm)(&volume, &outside);
    let before = (listing(&volume), outside.exists().then(|| listing(&outside)));
    if restart {
        driver.restart();
    }
    is_told(sandbox, driver, &life, damage);
    is_refused(driver, &life, damage);
    // Teardown is never refused.
    driver.client.unpublish(&life.id, &life.target).unwrap();
    driver.client.unstage(&life.id, &life.staging).unwrap();
    assert_eq!(before, (listing(&volume), outside.exists().then(|| listing(&outside))));
    let _link = std::fs::remove_file(&volume);
    if volume.exists() {
        std::fs::remove_dir_all(&volume).unwrap();
    }
    run("mv", &[&whole, &volume]);
    let _none = std::fs::remove_file(&outside).or_else(|_| std::fs::remove_dir_all(&outside));
    assert_eq!(driver.client.health(&life.id), [""; 0]);
    life.up(driver);
    assert_eq!(read(kind, &life.target), "precious");
    life.down(driver);
    life.gone(driver);
}

fn all_suffer(sandbox: &Sandbox, damages: &[Damage]) {
    let mut driver = Driver::start(sandbox);
    let mut neighbours = Neighbours::new(sandbox, &mut driver);
    for (number, damage) in damages.iter().enumerate() {
        for (kind, restart) in [(Kind::Hostpath, number % 2 == 0), (Kind::Ext4, number % 2 == 1)] {
            suffers(sandbox, &mut driver, kind, damage, restart);
            neighbours.are_well(sandbox, &mut driver);
        }
    }
    neighbours.end(&mut driver);
    check_nothing_left(sandbox, &mut driver);
    let clean = orlop(sandbox, &["pool", "check"]).unwrap();
    assert!(!clean.contains("WRONG"), "{clean}");
}

#[test]
fn records_that_are_damaged_are_told_and_harm_nobody() {
    privileged(|sandbox| all_suffer(sandbox, RECORDS));
}

#[test]
fn data_that_is_damaged_is_told_and_harms_nobody() {
    privileged(|sandbox| all_suffer(sandbox, DATA));
}

#[test]
fn a_volume_whose_image_is_cut_under_its_pod_is_told_and_taken_down() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        let mut neighbours = Neighbours::new(sandbox, &mut driver);
        for kind in [Kind::Ext4, Kind::Xfs, Kind::Block] {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "precious");
            let image = life.image();
            run("sync", &["-f".as_ref(), image.as_os_str()]);
            let copy = sandbox.path("copy");
            run("cp", &["--sparse=always".as_ref(), image.as_os_str(), copy.as_os_str()]);
            File::options().write(true).open(&image).unwrap().set_len(kind.size() / 2).unwrap();
            let told = driver.client.health(&life.id);
            assert!(told.contains(&"ImageTruncated".to_owned()), "{kind:?}: {told:?}");
            let found = orlop(sandbox, &["pool", "check"]).unwrap_err();
            assert!(found.contains("do not write to it; restore it from a copy"), "{found}");
            neighbours.are_well(sandbox, &mut driver);
            life.down(&mut driver);
            // To write to it, or to make it longer, would make zeroes of what is lost.
            let refused = life.try_stage(&driver.client).unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
            let refused = driver.client.expand(&life.id, kind.grown()).unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
            // The kernel itself may have written behind the cut when it unmounted.
            assert!(std::fs::metadata(&image).unwrap().len() < kind.size());
            run("cp", &["--sparse=always".as_ref(), copy.as_os_str(), image.as_os_str()]);
            life.up(&mut driver);
            assert_eq!(read(kind, &life.target), "precious");
            life.down(&mut driver);
            life.gone(&mut driver);
            std::fs::remove_file(copy).unwrap();
        }
        neighbours.end(&mut driver);
        check_nothing_left(sandbox, &mut driver);
    });
}
