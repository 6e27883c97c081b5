//! The UUID of a filesystem, as its superblock has it.

use std::fmt;
use std::str::FromStr;

use super::IdError;

/// The UUID of a filesystem. Unlike a pool's UUID it is whatever 16 bytes the superblock has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilesystemUuid([u8; 16]);

impl FilesystemUuid {
    /// The bytes of a superblock.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A version 4 UUID (RFC 9562) from random bits.
    #[must_use]
    pub fn from_bits(mut bits: [u8; 16]) -> Self {
        let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bits;
        *version = (*version & 0x0f) | 0x40;
        *variant = (*variant & 0x3f) | 0x80;
        Self(bits)
    }

    /// The bytes, in the order of the text.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for FilesystemUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for FilesystemUuid {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new(text, "a UUID");
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        let mut bytes = [0_u8; 16];
        if digits.len() != 32 {
            return Err(wrong());
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let value = pair.iter().fold(0, |sum, digit| sum * 16 + digit);
            *byte = u8::try_from(value).map_err(|_overflow| wrong())?;
        }
        let uuid = Self(bytes);
        // What is not written as this is written is not read either.
        if uuid.to_string() == text.to_ascii_lowercase() { Ok(uuid) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_survives_its_text() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        let uuid: FilesystemUuid = text.parse().unwrap();
        assert_eq!(uuid.to_string(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(uuid));
        assert_eq!(FilesystemUuid::from_bits([0; 16]).bytes()[6..9], [0x40, 0, 0x80]);
        let long = format!("{text}0");
        for bad in ["", "0123", "0123456789abcdef0123456789abcdef", long.as_str()] {
            assert!(bad.parse::<FilesystemUuid>().is_err(), "{bad}");
        }
    }
}
