//! One volume of the demonstration: what is known of it, and where it is mounted.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::content;
use super::kind::Kind;
use crate::cli::Failure;

/// How the pool holds a directory to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// It does not, or nobody has looked yet.
    None,
    /// It does, and was not asked to.
    Offered,
    /// It is asked to (`quota: required`).
    Required,
}

/// A volume, and the directories that kubelet would use for it.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) kind: Kind,
    /// Empty until it is created.
    pub(super) id: String,
    /// How it is held to its size when it is a directory.
    pub(super) hold: Hold,
    /// The size of its filesystem or device before it grew.
    pub(super) before: u64,
    /// How much more could be written before it grew, as the driver told.
    pub(super) available: u64,
    /// How much it took when it was filled; zero when it was not.
    pub(super) taken: u64,
    /// The node has to grow it, as the controller said.
    pub(super) node_expansion: bool,
    /// How many pieces of content were written.
    pub(super) pieces: u64,
    /// How often all of them were written again.
    edition: u64,
    /// Its snapshot; empty when there is none.
    pub(super) snapshot: String,
    /// What was restored from its snapshot.
    pub(super) copy: Option<Box<Self>>,
    dir: PathBuf,
    session: String,
}

impl Volume {
    pub(super) fn new(kind: Kind, kubelet: &Path, session: &str) -> Self {
        Self {
            kind,
            id: String::new(),
            hold: Hold::None,
            before: 0,
            available: 0,
            taken: 0,
            node_expansion: false,
            pieces: 0,
            edition: 0,
            snapshot: String::new(),
            copy: None,
            dir: kubelet.join(kind.to_string()),
            session: session.to_owned(),
        }
    }

    /// What a restore of its snapshot will be, with the content that it has now.
    pub(super) fn copied(&self) -> Self {
        let mut dir = self.dir.clone();
        dir.as_mut_os_string().push("-restored");
        Self {
            kind: self.kind,
            id: String::new(),
            hold: self.hold,
            before: self.before,
            available: 0,
            taken: 0,
            node_expansion: false,
            pieces: self.pieces,
            edition: self.edition,
            snapshot: String::new(),
            copy: None,
            dir,
            session: format!("{}-restored", self.session),
        }
    }

    /// The name that a provisioner would make up: no other volume on the machine has it.
    pub(super) fn name(&self) -> String {
        format!("pvc-{}-{}", self.session, self.kind)
    }

    /// The parameters of its StorageClass.
    pub(super) fn parameters(&self) -> HashMap<String, String> {
        let backend = if self.kind == Kind::Hostpath { "hostpath" } else { "loop" };
        let mut parameters = HashMap::from([("backend".to_owned(), backend.to_owned())]);
        if self.kind == Kind::Hostpath && self.hold == Hold::Required {
            parameters.insert("quota".to_owned(), "required".to_owned());
        }
        parameters
    }

    /// Its directory below kubelet's.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.dir.join("globalmount")
    }

    /// Where the pod sees it.
    pub(super) fn target(&self) -> PathBuf {
        self.dir.join("pod")
    }

    /// Where a second pod sees it, that only reads.
    pub(super) fn reader(&self) -> PathBuf {
        self.dir.join("reader")
    }

    /// Where a staged volume is mounted: a raw block device is bound beneath the staging path.
    pub(super) fn staged_at(&self) -> PathBuf {
        if self.kind == Kind::Block { self.staging().join("device") } else { self.staging() }
    }

    /// Where a piece of content is: a file of its own, or a place on the device. The second piece of a device begins
    /// where the device ended before it grew.
    fn place(&self, target: &Path, piece: u64) -> (PathBuf, u64) {
        if self.kind != Kind::Block {
            return (target.join(format!("data-{piece}")), 0);
        }
        let old_end = u64::try_from(self.kind.sizes().0).unwrap_or_default();
        (target.to_owned(), piece * old_end)
    }

    /// Where more is written until it is full: a file of its own, or the device behind all that was written.
    pub(super) fn filler(&self) -> (PathBuf, u64) {
        if self.kind == Kind::Block {
            return (self.target(), self.written());
        }
        (self.target().join("filler"), 0)
    }

    /// How much was written, in pieces.
    pub(super) const fn written(&self) -> u64 {
        self.pieces * content::LENGTH
    }

    fn seed(&self, piece: u64) -> u64 {
        // Different for each volume, so that two that were mixed up would show.
        self.kind.sizes().0.unsigned_abs() + (self.kind as u64) * 100 + self.edition * 10 + piece
    }

    /// Writes one more piece.
    pub(super) fn write(&mut self) -> Result<(), Failure> {
        let (path, offset) = self.place(&self.target(), self.pieces);
        content::write(&path, offset, self.seed(self.pieces), self.kind != Kind::Block)?;
        self.pieces += 1;
        Ok(())
    }

    /// Writes all pieces again, with other content.
    pub(super) fn rewrite(&mut self) -> Result<(), Failure> {
        self.edition += 1;
        for piece in 0..self.pieces {
            let (path, offset) = self.place(&self.target(), piece);
            content::write(&path, offset, self.seed(piece), false)?;
        }
        Ok(())
    }

    /// Reads all pieces and compares them with what was written.
    pub(super) fn check(&self, target: &Path) -> Result<(), Failure> {
        for piece in 0..self.pieces {
            let (path, offset) = self.place(target, piece);
            content::check(&path, offset, self.seed(piece))?;
        }
        Ok(())
    }
}
