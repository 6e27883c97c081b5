//! What volumes take that no limit counts, on real trees.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use orlop::csi::proto::{VolumeUsage, volume_usage::Unit};

use crate::driver::Driver;
use crate::life::{Kind, Life, MIB};
use crate::pools::{PoolOn, end};
use crate::privileged::{poll, privileged, run};

const FILES: usize = 10_000;

fn in_use(usage: &[VolumeUsage], unit: Unit) -> Option<u64> {
    let found = usage.iter().find(|usage| usage.unit == i32::from(unit))?;
    Some(u64::try_from(found.used).unwrap())
}

/// What du says, links and mounts not followed.
fn du(directory: &Path, flags: &[&str]) -> u64 {
    let told = run("du", &[flags, &["-s", "-x", directory.to_str().unwrap()]].concat());
    told.split_whitespace().next().unwrap().parse().unwrap()
}

/// Sparse and linked files, links that lead outside, many files, a deep tree, and a filesystem mounted inside.
fn build(data: &Path, outside: &Path) -> PathBuf {
    File::create(outside).unwrap().write_all_at(&vec![1; 1 << 20], 0).unwrap();
    std::os::unix::fs::symlink(outside, data.join("link")).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    sparse.write_all_at(&vec![1; 1 << 20], 1 << 29).unwrap();
    for number in 0..7 {
        std::fs::hard_link(data.join("sparse"), data.join(format!("sparse-{number}"))).unwrap();
    }
    for number in 0..FILES {
        let directory = data.join(format!("many/{}", number % 100));
        std::fs::create_dir_all(&directory).unwrap();
        let file = File::create(directory.join(number.to_string())).unwrap();
        file.write_all_at(&vec![1; 8192 * (number % 3)], 0).unwrap();
    }
    let deep: PathBuf = std::iter::repeat_n("deep", 300).collect();
    std::fs::create_dir_all(data.join(&deep)).unwrap();
    File::create(data.join(deep).join("leaf")).unwrap();
    let mounted = data.join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    run("mount", &["-t", "tmpfs", "none", mounted.to_str().unwrap()]);
    File::create(mounted.join("big")).unwrap().write_all_at(&vec![1; 1 << 22], 0).unwrap();
    mounted
}

#[test]
fn files_are_counted_as_du_counts_them() {
    privileged(|sandbox| {
        for pool in [PoolOn::Ext4, PoolOn::Btrfs] {
            let sandbox = &sandbox.sub(&format!("{pool:?}"));
            pool.mount(sandbox, 500);
            let mut driver = Driver::start(sandbox);
            let mut life = Life::new(sandbox, Kind::Hostpath, "counted");
            life.create.bytes = 64 * MIB;
            life.born(&mut driver);
            life.up(&mut driver);
            let data = life.dir().join("data");
            let mounted = build(&data, &sandbox.path("outside"));
            run("sync", &["-f", data.to_str().unwrap()]);
            let bytes = du(&data, &["-B1"]);
            let inodes = du(&data, &["--inodes"]);
            let stats = || driver.client.stats(&life.id, &life.target).unwrap();
            let pool_s = in_use(&stats(), Unit::Bytes);
            poll("the files are counted", || in_use(&stats(), Unit::Bytes) != pool_s);
            assert_eq!(in_use(&stats(), Unit::Bytes), Some(bytes), "{pool:?}");
            let told = in_use(&stats(), Unit::Inodes);
            let has_inodes = pool == PoolOn::Ext4;
            assert_eq!(told, has_inodes.then_some(inodes), "{pool:?}");
            run("umount", &[mounted.to_str().unwrap()]);
            life.down(&mut driver);
            life.gone(&mut driver);
            end(sandbox, driver);
        }
    });
}
