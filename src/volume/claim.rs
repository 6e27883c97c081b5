//! The claim that a volume was made for: told by external-provisioner (`--extra-create-metadata`), kept for people.
//!
//! Must not: decide anything. It names no object for certain, because a claim may be gone while its volume stays.

use std::collections::BTreeMap;

const NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";
const NAME: &str = "csi.storage.k8s.io/pvc/name";

/// A PersistentVolumeClaim, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Claim {
    /// The claim that the parameters of a request name; `None` when they do not.
    #[must_use]
    pub fn of_parameters(parameters: &BTreeMap<String, String>) -> Option<Self> {
        let word = |key| parameters.get(key).filter(|word| !word.is_empty()).cloned();
        Some(Self { namespace: word(NAMESPACE)?, name: word(NAME)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_a_namespace_and_a_name() {
        let of = |words: &[(&str, &str)]| {
            let words = words.iter().map(|(key, word)| ((*key).to_owned(), (*word).to_owned()));
            Claim::of_parameters(&words.collect())
        };
        let claim = Claim { namespace: "shop".to_owned(), name: "data-db-0".to_owned() };
        assert_eq!(of(&[(NAMESPACE, "shop"), (NAME, "data-db-0")]), Some(claim));
        for words in
            [vec![], vec![(NAME, "a")], vec![(NAMESPACE, "a")], vec![(NAMESPACE, ""), (NAME, "a")]]
        {
            assert_eq!(of(&words), None, "{words:?}");
        }
    }
}
