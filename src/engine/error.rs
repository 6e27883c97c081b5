//! What a use case answers when it does not succeed, named by what the caller can do.
//!
//! `csi/status.rs` has the one table from these to gRPC codes.

use nix::errno::Errno;

use crate::backend::BackendError;
use crate::host::{CommandError, HostError};
use crate::store::StoreError;
use crate::volume::VolumeId;

/// A use case did not succeed. Messages say what, where and what to do next; sources are printed by the caller.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The request can never succeed as it is.
    #[error("{0}")]
    Invalid(String),
    /// There is no such volume, or the path is not one of its mounts.
    #[error("{0}")]
    NotFound(String),
    /// Something that exists under this name or path is not what was asked for.
    #[error("{0}")]
    Conflict(String),
    /// The state of the volume forbids it for now: it is in use, or was prepared otherwise.
    #[error("{0}")]
    Precondition(String),
    /// The size cannot be.
    #[error("{0}")]
    Size(String),
    /// There is no room, or not here.
    #[error("{0}")]
    NoSpace(String),
    /// The pool is away for now.
    #[error("{0}")]
    Away(String),
    /// The record of a volume, snapshot or group cannot be read.
    #[error("{what}")]
    Damaged {
        /// What, with its id.
        what: String,
        /// What is wrong with its record.
        source: StoreError,
    },
    /// The kernel or a program refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A pool's directory refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A step failed, and so did taking back the steps before it. The cause decides what the caller is told.
    #[error("{cause}; taking back what was done failed as well: {undo}")]
    Undo {
        /// Why the request failed.
        #[source]
        cause: Box<EngineError>,
        /// Why the undo failed.
        undo: String,
    },
}

impl EngineError {
    /// There is no volume of that id.
    pub(super) fn no_volume(id: &VolumeId) -> Self {
        Self::NotFound(format!("volume {id} does not exist"))
    }

    /// A full disk is not a broken one: replaces the error when the kernel said that there is no room.
    pub(super) fn when_full(self, full: impl FnOnce(String) -> Self) -> Self {
        if self.is_no_space() { full(chain(&self)) } else { self }
    }

    fn is_no_space(&self) -> bool {
        match self {
            Self::Store(error) => error.is_no_space(),
            Self::Host(HostError::Command(CommandError::Failed { stderr, .. })) => {
                stderr.contains("No space left on device")
            }
            Self::Host(error) => matches!(error.errno(), Some(Errno::ENOSPC | Errno::EDQUOT)),
            Self::Invalid(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Precondition(_)
            | Self::Size(_)
            | Self::NoSpace(_)
            | Self::Away(_)
            | Self::Damaged { .. }
            | Self::Undo { .. } => false,
        }
    }

    /// Adds the failure of an undo to its cause, if there is one.
    pub(super) fn with_undo(self, undo: Result<(), impl std::error::Error + 'static>) -> Self {
        match undo {
            Ok(()) => self,
            Err(undo) => Self::Undo { cause: Box::new(self), undo: chain(&undo) },
        }
    }
}

impl From<BackendError> for EngineError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Host(error) => Self::Host(error),
            BackendError::Store(error) => Self::Store(error),
            BackendError::Interrupted => Self::Precondition(
                "the source came into use while it was copied; end the pods that use it, then repeat"
                    .to_owned(),
            ),
            BackendError::Inner => Self::Precondition(
                "another subvolume or filesystem lies in the source, and would be missing in the copy; remove it first"
                    .to_owned(),
            ),
        }
    }
}

/// An error with all its sources, for people.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let next = inner.to_string();
        // Transparent variants repeat their source's text.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = inner.source();
    }
    text
}
