//! `create` of a `[[pool]]` in the configuration file: how a managed pool is made.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Failure;
use super::config::check_path;
use crate::engine::{CreatePool, PoolBase, smallest_image};
use crate::volume::{ByteSize, Filesystem};

/// Sizes of images are multiples of this, the sector size of their loop devices, in bytes.
const STEP: u64 = 4096;

/// `{ size = "200GiB", filesystem = "xfs" }` or `{ device = "/dev/sdb", filesystem = "btrfs" }`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateEntry {
    size: Option<String>,
    device: Option<PathBuf>,
    filesystem: String,
    sparse: Option<bool>,
}

/// Reads `10GiB`, `500MiB` or a plain number of bytes.
pub(super) fn size(text: &str) -> Option<ByteSize> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1_u64 << shift).map(ByteSize::new)
}

impl CreateEntry {
    /// What the engine is to make.
    pub(super) fn checked(self, pool: &str) -> Result<CreatePool, Failure> {
        let wrong = |what: String| Failure::from(format!("pool {pool}: create: {what}"));
        let filesystem = match Filesystem::from_word(&self.filesystem) {
            Some(filesystem @ (Filesystem::Xfs | Filesystem::Btrfs)) => filesystem,
            Some(Filesystem::Ext4) | None => {
                return Err(wrong(format!(
                    "filesystem {:?}: a managed pool is xfs or btrfs",
                    self.filesystem
                )));
            }
        };
        let base = match (self.size, self.device) {
            (Some(text), None) => {
                let size = size(&text).and_then(|size| size.round_up(STEP));
                let size = size
                    .filter(|size| *size >= smallest_image(filesystem) && i64::try_from(size.bytes()).is_ok())
                    .ok_or_else(|| {
                        wrong(format!(
                            "size {text:?}: give a size such as 200GiB, at least {} for {filesystem}",
                            smallest_image(filesystem)
                        ))
                    })?;
                PoolBase::Image { size, sparse: self.sparse.unwrap_or(false) }
            }
            (None, Some(device)) => {
                if self.sparse.is_some() {
                    return Err(wrong(
                        "sparse is for images; a device has all its blocks".to_owned(),
                    ));
                }
                check_path(&device).map_err(|_refused| {
                    wrong(format!(
                        "device {}: give an absolute path such as /dev/disk/by-id/…",
                        device.display()
                    ))
                })?;
                if !device.starts_with(Path::new("/dev")) {
                    return Err(wrong(format!("device {} is not below /dev", device.display())));
                }
                PoolBase::Device(device)
            }
            _ => {
                return Err(wrong(
                    "give either size (an image) or device (a blank disk)".to_owned(),
                ));
            }
        };
        Ok(CreatePool { base, filesystem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<CreatePool, String> {
        let entry: CreateEntry = toml::from_str(text).map_err(|e| e.to_string())?;
        entry.checked("p").map_err(|e| e.to_string())
    }

    #[test]
    fn an_image_or_a_device_is_described() {
        let made = read("size = \"200GiB\"\nfilesystem = \"xfs\"").unwrap();
        let base = PoolBase::Image { size: ByteSize::gib(200), sparse: false };
        assert_eq!(made, CreatePool { base, filesystem: Filesystem::Xfs });
        let made = read("device = \"/dev/sdb\"\nfilesystem = \"btrfs\"").unwrap();
        assert_eq!(made.base, PoolBase::Device("/dev/sdb".into()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("filesystem = \"xfs\"", "either size"),
            ("size = \"1GiB\"\ndevice = \"/dev/sdb\"\nfilesystem = \"xfs\"", "either size"),
            ("size = \"1GiB\"\nfilesystem = \"ext4\"", "xfs or btrfs"),
            ("size = \"1GB\"\nfilesystem = \"xfs\"", "200GiB"),
            ("size = \"1MiB\"\nfilesystem = \"xfs\"", "at least 300 MiB"),
            ("size = \"99999999TiB\"\nfilesystem = \"xfs\"", "give a size"),
            ("device = \"sdb\"\nfilesystem = \"xfs\"", "absolute path"),
            ("device = \"/home/x\"\nfilesystem = \"xfs\"", "below /dev"),
            ("device = \"/dev/sdb\"\nsparse = true\nfilesystem = \"xfs\"", "sparse"),
            ("size = \"1GiB\"\nfilesystem = \"xfs\"\nforce = true", "force"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
