//! `<root>/state/<name>.managed.json`: which filesystem a managed pool is on, and whether it is made.
//!
//! The UUID is chosen and written here before anything is made, so that a later run can tell what it may go on with.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::record::unknown;
use super::snapshot::{readable, typed};
use super::{StateDir, StoreError, dir};
use crate::volume::{Filesystem, FilesystemUuid, IdError};

/// How far a managed pool's filesystem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    /// It is being made; nobody has used it.
    Begun,
    /// It was made here.
    Made,
    /// It was found, with the label of one: made by an earlier installation.
    Adopted,
}

/// What a managed pool is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ManagedRecord {
    /// The filesystem.
    pub filesystem: Filesystem,
    /// Its UUID.
    pub uuid: FilesystemUuid,
    /// On a device of its own, not in an image.
    pub on_device: bool,
    /// How far it is.
    pub making: Making,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManagedFile {
    format: u32,
    min_reader: u32,
    filesystem: String,
    uuid: String,
    on: String,
    making: String,
}

const fn word(making: Making) -> &'static str {
    match making {
        Making::Begun => "begun",
        Making::Made => "made",
        Making::Adopted => "adopted",
    }
}

fn file_name(pool: &str) -> String {
    format!("{pool}.managed.json")
}

impl StateDir {
    /// What is known of the filesystem of a managed pool.
    ///
    /// # Errors
    /// The file cannot be read or is damaged.
    pub fn managed(&self, pool: &str) -> Result<Option<ManagedRecord>, StoreError> {
        let name = file_name(pool);
        let Some(content) = dir::read_file(self.directory(), &name)? else {
            return Ok(None);
        };
        let path = self.path().join(&name);
        parse(&path, &content).map(Some)
    }

    /// Remembers what a managed pool is on.
    ///
    /// # Errors
    /// A system call failed.
    pub fn remember_managed(&self, pool: &str, record: &ManagedRecord) -> Result<(), StoreError> {
        let name = file_name(pool);
        let file = ManagedFile {
            format: 1,
            min_reader: 1,
            filesystem: record.filesystem.to_string(),
            uuid: record.uuid.to_string(),
            on: if record.on_device { "device" } else { "image" }.to_owned(),
            making: word(record.making).to_owned(),
        };
        let mut text = serde_json::to_vec_pretty(&file)
            .map_err(|e| StoreError::io("write", &name, std::io::Error::from(e)))?;
        text.push(b'\n');
        dir::write_file(self.directory(), &name, &text)
    }
}

/// Reads the text of a record.
pub(super) fn parse(path: &Path, content: &[u8]) -> Result<ManagedRecord, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let file: ManagedFile = typed(readable(path, content)?).map_err(damaged)?;
    let all = [Making::Begun, Making::Made, Making::Adopted];
    let making = all.into_iter().find(|making| word(*making) == file.making);
    Ok(ManagedRecord {
        filesystem: Filesystem::from_word(&file.filesystem)
            .ok_or_else(|| damaged(unknown("filesystem", &file.filesystem)))?,
        uuid: file.uuid.parse().map_err(|e: IdError| damaged(format!("uuid: {e}")))?,
        on_device: match file.on.as_str() {
            "device" => true,
            "image" => false,
            other => return Err(damaged(unknown("on", other))),
        },
        making: making.ok_or_else(|| damaged(unknown("making", &file.making)))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let home = tempfile::tempdir().unwrap();
        let state = StateDir::open(home.path()).unwrap();
        assert_eq!(state.managed("p").unwrap(), None);
        let uuid = FilesystemUuid::from_bytes([3; 16]);
        for (making, on_device) in
            [(Making::Begun, true), (Making::Made, false), (Making::Adopted, true)]
        {
            let record = ManagedRecord { filesystem: Filesystem::Xfs, uuid, on_device, making };
            state.remember_managed("p", &record).unwrap();
            assert_eq!(state.managed("p").unwrap(), Some(record));
        }
        std::fs::File::create(home.path().join("state/p.managed.json")).unwrap();
        assert!(state.managed("p").is_err());
    }
}
