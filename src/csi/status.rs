//! The one table from errors to gRPC codes.
//!
//! The codes drive Kubernetes' state machines, so each row says what the caller does with it. A finished failure of
//! CreateVolume is never ABORTED, CANCELLED or DEADLINE_EXCEEDED: the provisioner would take it as still running.

use tonic::{Code, Status};

use crate::engine::{EngineError, chain};

/// A row of the table, for the documents.
#[derive(Debug, Clone, Copy)]
pub struct CodeHelp {
    /// The error of the engine.
    pub error: &'static str,
    /// Its code; `None` where it is that of the cause.
    pub code: Option<Code>,
    /// When it is answered, and what Kubernetes does then.
    pub meaning: &'static str,
}

/// The table as it is printed in SEMANTICS.md.
pub const CODES: [CodeHelp; 11] = [
    CodeHelp {
        error: "Invalid",
        code: Some(Code::InvalidArgument),
        meaning: "the request can never succeed; the sidecars give up until it changes",
    },
    CodeHelp {
        error: "NotFound",
        code: Some(Code::NotFound),
        meaning: "no such volume, or the path is not one of its mounts",
    },
    CodeHelp {
        error: "Conflict",
        code: Some(Code::AlreadyExists),
        meaning: "the name or path holds something else",
    },
    CodeHelp {
        error: "Precondition",
        code: Some(Code::FailedPrecondition),
        meaning: "the volume is in use or not prepared; retried after that has changed",
    },
    CodeHelp {
        error: "Size",
        code: Some(Code::OutOfRange),
        meaning: "the size cannot be; a claim's request can be lowered again",
    },
    CodeHelp {
        error: "NoSpace",
        code: Some(Code::ResourceExhausted),
        meaning: "no room on this node; the scheduler tries another one",
    },
    CodeHelp {
        error: "Away",
        code: Some(Code::Unavailable),
        meaning: "the pool is not here now; retried, and nothing is taken as deleted",
    },
    CodeHelp {
        error: "Damaged",
        code: Some(Code::Internal),
        meaning: "the record cannot be read; nothing is done to the volume",
    },
    CodeHelp {
        error: "Host",
        code: Some(Code::Internal),
        meaning: "the kernel or a program refused",
    },
    CodeHelp {
        error: "Store",
        code: Some(Code::Internal),
        meaning: "the pool's filesystem refused",
    },
    CodeHelp { error: "Undo", code: None, meaning: "the failed undo is told beside the cause" },
];

/// The code of an error.
#[must_use]
pub fn code_of(error: &EngineError) -> Code {
    match error {
        EngineError::Invalid(_) => Code::InvalidArgument,
        EngineError::NotFound(_) => Code::NotFound,
        EngineError::Conflict(_) => Code::AlreadyExists,
        EngineError::Precondition(_) => Code::FailedPrecondition,
        EngineError::Size(_) => Code::OutOfRange,
        EngineError::NoSpace(_) => Code::ResourceExhausted,
        EngineError::Away(_) => Code::Unavailable,
        EngineError::Damaged { .. } | EngineError::Host(_) | EngineError::Store(_) => {
            Code::Internal
        }
        EngineError::Undo { cause, .. } => code_of(cause),
    }
}

/// The reply for an error: its code, and the whole chain of causes as text (the contract wants a text and no details).
pub(super) fn status(error: &EngineError) -> Status {
    Status::new(code_of(error), chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostError;
    use crate::store::StoreError;

    fn samples() -> Vec<(&'static str, EngineError)> {
        let text = || "text".to_owned();
        let store = || StoreError::Locked { path: "x".into() };
        vec![
            ("Invalid", EngineError::Invalid(text())),
            ("NotFound", EngineError::NotFound(text())),
            ("Conflict", EngineError::Conflict(text())),
            ("Precondition", EngineError::Precondition(text())),
            ("Size", EngineError::Size(text())),
            ("NoSpace", EngineError::NoSpace(text())),
            ("Away", EngineError::Away(text())),
            ("Damaged", EngineError::Damaged { what: text(), source: store() }),
            ("Host", HostError::call("open", "x", nix::errno::Errno::EIO).into()),
            ("Store", store().into()),
            (
                "Undo",
                EngineError::Undo { cause: Box::new(EngineError::Store(store())), undo: text() },
            ),
        ]
    }

    #[test]
    fn the_printed_table_is_the_one_that_is_used() {
        let samples = samples();
        assert_eq!(samples.len(), CODES.len());
        for ((name, error), row) in samples.iter().zip(CODES) {
            assert_eq!(*name, row.error);
            assert_eq!(code_of(error), row.code.unwrap_or(Code::Internal), "{name}");
            assert!(!status(error).message().is_empty(), "{name}");
        }
    }

    #[test]
    fn a_failed_undo_keeps_the_code_of_its_cause() {
        let cause = Box::new(EngineError::NoSpace("full".to_owned()));
        let error = EngineError::Undo { cause, undo: "unmount /x: busy".to_owned() };
        let status = status(&error);
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("full") && status.message().contains("busy"));
    }

    #[test]
    fn no_finished_failure_looks_like_one_that_still_runs() {
        for row in CODES {
            assert!(!matches!(
                row.code,
                Some(Code::Aborted | Code::Cancelled | Code::DeadlineExceeded)
            ));
        }
    }
}
