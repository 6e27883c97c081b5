//! Inline volumes: what must be known of the pod that one belongs to.

use std::path::{Path, PathBuf};

/// Why a pod cannot be what the request says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pod's uid {0:?} is not a plain name")]
pub struct PodError(String);

/// The pod that an inline volume belongs to, and where the pod has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    uid: String,
    namespace: String,
    name: String,
    target: PathBuf,
}

impl Pod {
    /// A pod. Its uid names a directory of kubelet's, so it is one plain name.
    ///
    /// # Errors
    /// The uid is empty, too long, or would lead elsewhere.
    pub fn new(
        uid: &str,
        namespace: &str,
        name: &str,
        target: impl Into<PathBuf>,
    ) -> Result<Self, PodError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if uid.is_empty() || uid.len() > 128 || !uid.chars().all(plain) {
            return Err(PodError(uid.chars().take(128).collect()));
        }
        Ok(Self {
            uid: uid.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            target: target.into(),
        })
    }

    /// Its uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it has the volume, as kubelet named it.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_leads_nowhere_else() {
        for uid in ["", ".", "..", "a/b", "/", "a\0b", "\u{e4}", &"x".repeat(129)] {
            Pod::new(uid, "ns", "pod", "/t").unwrap_err();
        }
        // Of a pod from the API server, and of one from a file.
        for uid in ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", "0b1c2d3e4f"] {
            assert_eq!(Pod::new(uid, "ns", "pod", "/t").unwrap().uid(), uid);
        }
    }
}
