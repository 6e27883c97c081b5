//! Sizes in bytes, and the capacity range of a request.

use std::fmt;

/// A number of bytes. Never negative; CSI's `int64` is the largest that a request can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

/// Why a size or a capacity range cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// A field of the range is below zero.
    #[error("{field} is {value}; sizes are not negative")]
    Negative {
        /// The field of `capacity_range`.
        field: &'static str,
        /// What the request said.
        value: i64,
    },
    /// `required_bytes` is greater than `limit_bytes`.
    #[error("required_bytes {required} is greater than limit_bytes {limit}")]
    Inverted {
        /// The lower bound, in bytes.
        required: u64,
        /// The upper bound, in bytes.
        limit: u64,
    },
    /// No size that this kind of volume can have lies within the range.
    #[error(
        "no possible size lies between required_bytes {required} and limit_bytes {limit}: \
         this kind of volume is at least {minimum} bytes and a multiple of {step} bytes"
    )]
    NoneFits {
        /// The lower bound, in bytes.
        required: u64,
        /// The upper bound, in bytes.
        limit: u64,
        /// The smallest size of this kind of volume, in bytes.
        minimum: u64,
        /// Sizes are multiples of this, in bytes.
        step: u64,
    },
}

impl ByteSize {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// A number of bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A number of mebibytes (2^20 bytes).
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// A number of gibibytes (2^30 bytes).
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as CSI's `int64`; what does not fit is the largest `int64`.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// The smallest multiple of `step` that is not below this size; `None` when it does not fit 64 bits.
    #[must_use]
    pub fn round_up(self, step: u64) -> Option<Self> {
        self.0.checked_next_multiple_of(step.max(1)).map(Self)
    }

    /// The largest multiple of `step` that is not above this size.
    #[must_use]
    pub fn round_down(self, step: u64) -> Self {
        Self(self.0 - self.0 % step.max(1))
    }

    /// The sum; the largest number when it does not fit.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference; zero when `other` is greater.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for ByteSize {
    /// Binary units with up to two digits behind the point, rounded down.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in UNITS {
            let one = 1_u64 << shift;
            if self.0 >= one {
                let hundredths = (u128::from(self.0) * 100) >> shift;
                let (whole, part) = (hundredths / 100, hundredths % 100);
                return match (part, part % 10) {
                    (0, _) => write!(f, "{whole} {unit}"),
                    (_, 0) => write!(f, "{whole}.{} {unit}", part / 10),
                    _ => write!(f, "{whole}.{part:02} {unit}"),
                };
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// The range of sizes that a request accepts, both ends included, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapacityRange {
    /// At least this much; zero when the request does not say.
    pub required: ByteSize,
    /// At most this much; `None` when the request does not say.
    pub limit: Option<ByteSize>,
}

impl fmt::Display for CapacityRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at least {} bytes", self.required.bytes())?;
        match self.limit {
            Some(limit) => write!(f, " and at most {}", limit.bytes()),
            None => Ok(()),
        }
    }
}

impl CapacityRange {
    /// What a request without a capacity range gets.
    pub const DEFAULT_SIZE: ByteSize = ByteSize::gib(1);

    /// Reads the two fields of CSI's `CapacityRange`; zero means "not said".
    ///
    /// # Errors
    /// A negative field, or `required_bytes` above `limit_bytes`.
    pub fn parse(required: i64, limit: i64) -> Result<Self, SizeError> {
        let positive = |field, value: i64| {
            u64::try_from(value).map_err(|_below_zero| SizeError::Negative { field, value })
        };
        let required_bytes = positive("required_bytes", required)?;
        let limit_bytes = positive("limit_bytes", limit)?;
        if limit_bytes != 0 && required_bytes > limit_bytes {
            return Err(SizeError::Inverted { required: required_bytes, limit: limit_bytes });
        }
        Ok(Self {
            required: ByteSize(required_bytes),
            limit: (limit_bytes != 0).then_some(ByteSize(limit_bytes)),
        })
    }

    /// Whether a volume of this size is what the range asks for.
    #[must_use]
    pub fn contains(&self, size: ByteSize) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }

    /// The size to make: the smallest possible one in the range that is a multiple of `step` and not below
    /// `minimum`. Without `required_bytes` it is [`Self::DEFAULT_SIZE`], or the limit when that is smaller.
    ///
    /// # Errors
    /// [`SizeError::NoneFits`] when the range holds no such size.
    pub fn choose(&self, minimum: ByteSize, step: u64) -> Result<ByteSize, SizeError> {
        let wanted = if self.required == ByteSize::ZERO {
            let default = Self::DEFAULT_SIZE.max(minimum);
            self.limit.map_or(default, |limit| limit.round_down(step).min(default))
        } else {
            self.required
        };
        let none_fits = || SizeError::NoneFits {
            required: self.required.bytes(),
            limit: self.limit.unwrap_or_default().bytes(),
            minimum: minimum.bytes(),
            step,
        };
        let size = wanted.max(minimum).round_up(step).ok_or_else(none_fits)?;
        if self.contains(size) && i64::try_from(size.bytes()).is_ok() {
            Ok(size)
        } else {
            Err(none_fits())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (1120 << 20, "1.09 GiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(ByteSize::new(bytes).to_string(), text);
        }
    }

    #[test]
    fn a_range_is_read_or_refused() {
        assert_eq!(CapacityRange::parse(0, 0), Ok(CapacityRange::default()));
        assert!(CapacityRange::parse(5, 5).is_ok());
        assert!(matches!(
            CapacityRange::parse(-1, 0),
            Err(SizeError::Negative { field: "required_bytes", .. })
        ));
        assert!(matches!(
            CapacityRange::parse(0, -1),
            Err(SizeError::Negative { field: "limit_bytes", .. })
        ));
        assert!(matches!(CapacityRange::parse(2, 1), Err(SizeError::Inverted { .. })));
    }

    #[test]
    fn the_size_is_the_smallest_possible_in_the_range() {
        let range = |required, limit| CapacityRange::parse(required, limit).unwrap();
        let mib = ByteSize::mib(1);
        for (range, minimum, step, size) in [
            (range(0, 0), ByteSize::ZERO, 1, Some(ByteSize::gib(1))),
            (range(0, 4096), ByteSize::ZERO, 1, Some(ByteSize::new(4096))),
            (range(0, 5000), ByteSize::ZERO, 4096, Some(ByteSize::new(4096))),
            (range(5, 0), ByteSize::ZERO, 1, Some(ByteSize::new(5))),
            (range(5, 0), mib, 4096, Some(mib)),
            (range(5, 6), mib, 4096, None),
            (range(5000, 5001), ByteSize::ZERO, 4096, None),
            (range(5000, 8192), ByteSize::ZERO, 4096, Some(ByteSize::new(8192))),
            (range(i64::MAX, 0), ByteSize::ZERO, 4096, None),
            (range(0, 1), mib, 4096, None),
        ] {
            assert_eq!(range.choose(minimum, step).ok(), size, "{range:?}");
        }
    }
}
