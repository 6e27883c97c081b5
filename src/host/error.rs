//! What can go wrong between this driver and the kernel or a program.

use std::io;
use std::path::{Path, PathBuf};

/// A failed system call or program. `Display` leaves out the source; whoever prints it prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call on a path failed.
    #[error("{operation} {}", path.display())]
    Call {
        /// What was tried, as a verb: "unmount", "open".
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program failed.
    #[error("run a program")]
    Command(#[from] CommandError),
    /// The kernel showed something that cannot be understood or trusted.
    #[error("{what} at {}", path.display())]
    Unexpected {
        /// What was seen, and what to do.
        what: String,
        /// Where.
        path: PathBuf,
    },
    /// The machine lacks something that the request needs.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// A program that could not be run, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not in any of the directories where the system's programs are.
    #[error(
        "{program} is not installed; install the package {package} on the node (in the image of the driver)"
    )]
    Missing {
        /// Its name.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Its name.
        program: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The last lines that it printed to standard error.
        stderr: String,
    },
}

impl HostError {
    /// A failed system call.
    #[must_use]
    pub fn call(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Call { operation, path: path.as_ref().to_owned(), source: source.into() }
    }

    /// The kernel's error number, when a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match self {
            Self::Call { source, .. } => source.raw_os_error().map(nix::errno::Errno::from_raw),
            Self::Command(_) | Self::Unexpected { .. } | Self::Unsupported { .. } => None,
        }
    }
}
