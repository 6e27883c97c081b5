//! Names on disk and over CSI: keys, generations, pool UUIDs, volume ids.
//!
//! A CO's name may hold `/`, `..`, newlines or any Unicode, so a name is never a path: its SHA-256 is. An id
//! names its pool, so that it routes itself and survives a renamed node, and carries a generation, so that a
//! late delete of an old id cannot hit the volume that has the same name now.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// Why a text is not an id of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct IdError {
    text: String,
    expected: &'static str,
}

impl IdError {
    pub(super) fn new(text: &str, expected: &'static str) -> Self {
        // An id from outside may be of any length; the message keeps what a reader needs.
        Self { text: text.chars().take(128).collect(), expected }
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Lower-case hexadecimal digits of `bytes`.
fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

macro_rules! hex_type {
    ($(#[$doc:meta])* $name:ident, $digits:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_hex(text, $digits) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::new(text, $expected))
                }
            }
        }
    };
}

hex_type! {
    /// 32 hexadecimal digits of the SHA-256 of the CO's name: the directory name of a volume.
    Key, 32, "a key (32 lower-case hexadecimal digits)"
}
hex_type! {
    /// 8 hexadecimal digits, random at birth.
    Generation, 8, "a generation (8 lower-case hexadecimal digits)"
}
hex_type! {
    /// The first 8 hexadecimal digits of a pool's UUID, as they stand in ids.
    PoolTag, 8, "a pool tag (8 lower-case hexadecimal digits)"
}

impl Key {
    /// The key of a CO's name.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let mut digits = hex(&digest);
        digits.truncate(32);
        Self(digits)
    }

    /// The key of an inline volume, whose id kubelet makes. No CO's name has a NUL, so no name has this key.
    #[must_use]
    pub fn of_inline(id: &str) -> Self {
        Self::of_name(&format!("inline\0{id}"))
    }
}

impl Key {
    /// The key of a member of a group: that of no name, because a CO's names have no NUL.
    #[must_use]
    pub fn of_member(group: &str, member: &Self) -> Self {
        Self::of_name(&format!("{group}\0{member}"))
    }
}

impl Generation {
    /// A generation from random bits.
    #[must_use]
    pub fn from_bits(bits: [u8; 4]) -> Self {
        Self(hex(&bits))
    }
}

/// A pool's UUID (RFC 9562, version 4), lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolUuid(String);

impl PoolUuid {
    /// A version 4 UUID from random bits.
    #[must_use]
    pub fn from_bits(mut bits: [u8; 16]) -> Self {
        let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bits;
        *version = (*version & 0x0f) | 0x40;
        *variant = (*variant & 0x3f) | 0x80;
        let digits = hex(&bits);
        let mut text = String::with_capacity(36);
        for (index, digit) in digits.chars().enumerate() {
            if matches!(index, 8 | 12 | 16 | 20) {
                text.push('-');
            }
            text.push(digit);
        }
        Self(text)
    }

    /// The part of the UUID that stands in ids.
    #[must_use]
    pub fn tag(&self) -> PoolTag {
        PoolTag(self.0.chars().take(8).collect())
    }

    /// The UUID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PoolUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PoolUuid {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let lengths = [8, 4, 4, 4, 12];
        let parts: Vec<&str> = text.split('-').collect();
        let whole = parts.len() == lengths.len()
            && parts.iter().zip(lengths).all(|(part, length)| is_hex(part, length));
        if whole { Ok(Self(text.to_owned())) } else { Err(IdError::new(text, "a lower-case UUID")) }
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $letter:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// Where it lives.
            pub pool: PoolTag,
            /// Its directory.
            pub key: Key,
            /// Which of those that ever had this name.
            pub generation: Generation,
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}-{}-{}-{}", $letter, self.pool, self.key, self.generation)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let (pool, key, generation) =
                    parts($letter, text).ok_or_else(|| IdError::new(text, $expected))?;
                Ok(Self { pool, key, generation })
            }
        }
    };
}

id_type! {
    /// The id of a volume: `v-<pool tag>-<key>-<generation>`, 51 bytes.
    VolumeId, "v", "a volume id (v-<pool>-<key>-<generation>)"
}
id_type! {
    /// The id of a snapshot: `s-<pool tag>-<key>-<generation>`, 51 bytes.
    SnapshotId, "s", "a snapshot id (s-<pool>-<key>-<generation>)"
}
id_type! {
    /// The id of a group of snapshots: `g-<pool tag>-<key>-<generation>`, 51 bytes.
    GroupId, "g", "a group snapshot id (g-<pool>-<key>-<generation>)"
}

/// The parts of an id that begins with that letter.
fn parts(letter: &str, text: &str) -> Option<(PoolTag, Key, Generation)> {
    let mut parts = text.split('-');
    let (first, pool, key, generation, end) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next());
    if first != letter || end.is_some() {
        return None;
    }
    Some((pool.parse().ok()?, key.parse().ok()?, generation.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn any_name_makes_a_key_that_is_a_plain_file_name() {
        for name in ["../../etc", "", "a\nb", "\u{1f980}", "/", &"x".repeat(128)] {
            let key = Key::of_name(name);
            assert!(is_hex(key.as_str(), 32), "{name:?} → {key}");
        }
        assert_ne!(Key::of_name("a"), Key::of_name("b"));
        assert_ne!(Key::of_name("a"), Key::of_inline("a"));
        // SHA-256 of "abc", from FIPS 180-4.
        assert_eq!(Key::of_name("abc").as_str(), "ba7816bf8f01cfea414140de5dae2223");
    }

    #[test]
    fn a_uuid_has_its_version_and_variant() {
        let uuid = PoolUuid::from_bits([0xff; 16]);
        assert_eq!(uuid.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(uuid.tag().as_str(), "ffffffff");
        assert_eq!(uuid.as_str().parse(), Ok(uuid));
        for bad in ["", "ffffffff", "FFFFFFFF-ffff-4fff-bfff-ffffffffffff"] {
            assert!(bad.parse::<PoolUuid>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn ids_survive_their_text(pool in "[0-9a-f]{8}", key in "[0-9a-f]{32}", generation in "[0-9a-f]{8}") {
            let text = format!("v-{pool}-{key}-{generation}");
            let id: VolumeId = text.parse().unwrap();
            prop_assert_eq!(id.to_string(), text.clone());
            prop_assert!(text.len() <= 128);
            // An id of one kind is none of another.
            prop_assert!(text.parse::<SnapshotId>().is_err() && text.parse::<GroupId>().is_err());
        }

        #[test]
        fn foreign_ids_are_refused_and_never_panic(text in "\\PC{0,200}") {
            prop_assert!(text.parse::<VolumeId>().is_err());
            prop_assert!(text.parse::<SnapshotId>().is_err());
        }
    }
}
