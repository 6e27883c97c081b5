//! Sizes as Kubernetes writes them: `1Gi`, `500M`, `1.5G`, `2e9`. For the attribute `size` of an inline volume.
//!
//! The grammar is that of Kubernetes' quantities: a decimal number with a binary suffix (Ki to Ei), a decimal one (n, u, m,
//! k to E), a decimal exponent, or nothing. Parts of a byte are rounded up, as Kubernetes does.

use super::ByteSize;

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It is not a quantity.
    #[error("{0:?} is not a size; write a number and a unit, such as 1Gi, 500Mi or 2G")]
    Syntax(String),
    /// It is not more than nothing.
    #[error("{0:?} is not a size above zero")]
    NotPositive(String),
    /// It does not fit.
    #[error("{0:?} is more than 8Ei, the largest size that CSI knows")]
    TooLarge(String),
}

/// What a number is multiplied with.
#[derive(Debug, Clone, Copy)]
enum Factor {
    /// 2 to that power.
    Binary(u32),
    /// 10 to that power.
    Decimal(i32),
}

fn factor(suffix: &str) -> Option<Factor> {
    Some(match suffix {
        "Ki" => Factor::Binary(10),
        "Mi" => Factor::Binary(20),
        "Gi" => Factor::Binary(30),
        "Ti" => Factor::Binary(40),
        "Pi" => Factor::Binary(50),
        "Ei" => Factor::Binary(60),
        "n" => Factor::Decimal(-9),
        "u" => Factor::Decimal(-6),
        "m" => Factor::Decimal(-3),
        "" => Factor::Decimal(0),
        "k" => Factor::Decimal(3),
        "M" => Factor::Decimal(6),
        "G" => Factor::Decimal(9),
        "T" => Factor::Decimal(12),
        "P" => Factor::Decimal(15),
        "E" => Factor::Decimal(18),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let plain = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            let good = !plain.is_empty() && plain.bytes().all(|b| b.is_ascii_digit());
            Factor::Decimal(good.then(|| digits.parse().ok()).flatten()?)
        }
    })
}

/// Reads a size.
///
/// # Errors
/// It is no quantity, not above zero, or too large.
pub fn parse(text: &str) -> Result<ByteSize, QuantityError> {
    let shown = || text.chars().take(80).collect::<String>();
    let syntax = || QuantityError::Syntax(shown());
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let factor = factor(suffix).ok_or_else(syntax)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{part}");
    if digits.is_empty() || part.contains('.') {
        return Err(syntax());
    }
    let digits = digits.trim_start_matches('0');
    if negative || digits.is_empty() {
        return Err(QuantityError::NotPositive(shown()));
    }
    let bytes = bytes(digits, part.len(), factor);
    let bytes = bytes.filter(|bytes| i64::try_from(*bytes).is_ok());
    bytes.map(ByteSize::new).ok_or_else(|| QuantityError::TooLarge(shown()))
}

/// Digits of which the last `parts` stand behind the point, times the factor, rounded up; `None` when it does not fit.
fn bytes(digits: &str, parts: usize, factor: Factor) -> Option<u64> {
    let (power, shift) = match factor {
        Factor::Binary(shift) => (0, shift),
        Factor::Decimal(power) => (i64::from(power), 0),
    };
    let power = power - i64::try_from(parts).ok()?;
    let number = digits.parse::<u128>().ok()?.checked_mul(1_u128 << shift)?;
    let scale = 10_u128.checked_pow(u32::try_from(power.unsigned_abs()).ok()?);
    let scaled = if power < 0 {
        // More digits than a number can have leave less than one byte.
        number.div_ceil(scale.unwrap_or(u128::MAX))
    } else {
        number.checked_mul(scale?)?
    };
    u64::try_from(scaled).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, bytes) in [
            ("1", 1),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("128974848000m", 128_974_848),
            ("123Mi", 123 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("+.5Ki", 512),
            ("1.", 1),
            ("0.1", 1),
            ("1n", 1),
            ("1500m", 2),
            ("2E9", 2_000_000_000),
            ("1e-3", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("7Ei", 7 << 60),
            ("500M", 500_000_000),
            ("2k", 2000),
            ("0.000000000000000000000000000001Ei", 1),
        ] {
            assert_eq!(parse(text), Ok(ByteSize::new(bytes)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_and_says_why() {
        for text in ["", " ", "Gi", "1 Gi", "1gi", "1K", "1GiB", "1GB", "1..2", "1.2.3", "0x10"] {
            assert!(matches!(parse(text), Err(QuantityError::Syntax(_))), "{text:?}");
        }
        for text in ["1e", "1e+", "1e1.5", "1e++1", "--1", "+-1", "1e99999999999", "\u{661}"] {
            assert!(matches!(parse(text), Err(QuantityError::Syntax(_))), "{text:?}");
        }
        for text in ["0", "0Gi", "0.0", "-1", "-1Gi"] {
            assert!(matches!(parse(text), Err(QuantityError::NotPositive(_))), "{text:?}");
        }
        let many = "9".repeat(60);
        for text in ["8Ei", "9223372036854775808", "10E", "1e30", "1e400", many.as_str()] {
            assert!(matches!(parse(text), Err(QuantityError::TooLarge(_))), "{text:?}");
        }
        assert!(parse("1 Gi").unwrap_err().to_string().contains("500Mi"));
    }

    proptest! {
        #[test]
        fn whole_bytes_are_themselves(bytes in 1..i64::MAX.unsigned_abs()) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(ByteSize::new(bytes)));
        }

        #[test]
        fn no_text_is_a_panic(text in "[-+.0-9a-zA-Z]{0,50}") {
            let _any = parse(&text);
        }
    }
}
