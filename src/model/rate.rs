//! Sizes and rates as people write them: `512KiB`, `10MB/s`.
//!
//! `kB`, `MB`, `GB`, `TB` are powers of 1,000, `KiB`, `MiB`, `GiB`, `TiB` of 1,024, `B` is a byte. A
//! rate is never zero: what is not limited has no rate at all.

use std::{fmt, num::NonZeroU64, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a size or a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {what}: {reason}")]
pub struct BadQuantity {
    text: String,
    what: &'static str,
    reason: &'static str,
}

/// A number of bytes, written as `512KiB`, `2GB` or plain bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(u64);

/// Bytes in a second, written as `10MB/s`; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate(NonZeroU64);

/// Largest first within a kind, so that printing finds the shortest exact form.
const UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// This many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        ByteSize(bytes)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Rate {
    /// This many bytes in a second; none for zero.
    #[must_use]
    pub fn new(bytes_per_sec: u64) -> Option<Self> {
        NonZeroU64::new(bytes_per_sec).map(Rate)
    }

    /// In bytes per second.
    #[must_use]
    pub const fn bytes_per_sec(self) -> u64 {
        self.0.get()
    }
}

/// The bytes that a number with a unit means.
fn parse_bytes(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start());
    if text.starts_with(['-', '+']) || number.is_empty() {
        return Err("it does not begin with a positive number");
    }
    let scale = match UNITS.iter().find(|(name, _)| *name == unit) {
        Some((_, scale)) => *scale,
        None if unit.is_empty() => 1,
        None => return Err("its unit is none of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| "its number cannot be read")?;
    if fraction.is_empty() || fraction.len() > 6 || fraction.contains('.') {
        return Err("its number has one to six decimals, or none");
    }
    let decimals = 10_u128.pow(u32::try_from(fraction.len()).expect("at most six"));
    let fraction: u128 = fraction.parse().map_err(|_| "its number cannot be read")?;
    let part = u64::try_from(fraction * u128::from(scale) / decimals).expect("less than one unit");
    let bytes = whole.checked_mul(scale).and_then(|bytes| bytes.checked_add(part));
    bytes.ok_or("it is over what 64 bits hold")
}

fn write_bytes(bytes: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let fits = |&&(_, scale): &&(&str, u64)| bytes >= scale && bytes.is_multiple_of(scale);
    let shortest = UNITS.iter().filter(fits).min_by_key(|(_, scale)| bytes / scale);
    let (unit, scale) = shortest.copied().unwrap_or(("B", 1));
    write!(f, "{}{unit}", bytes / scale)
}

impl FromStr for ByteSize {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        parse_bytes(text).map(ByteSize).map_err(|reason| bad(text, "size", reason))
    }
}

impl FromStr for Rate {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let bad = |reason| bad(text, "rate", reason);
        let size =
            text.trim().strip_suffix("/s").ok_or_else(|| bad("it does not end in \"/s\""))?;
        let bytes = parse_bytes(size).map_err(bad)?;
        Rate::new(bytes).ok_or_else(|| bad("it is zero; leave the limit out where there is none"))
    }
}

fn bad(text: &str, what: &'static str, reason: &'static str) -> BadQuantity {
    BadQuantity { text: text.chars().take(80).collect(), what, reason }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bytes(self.0, f)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_bytes(self.0.get(), f)?;
        f.write_str("/s")
    }
}

macro_rules! text_form {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = BadQuantity;

            fn try_from(text: String) -> Result<Self, BadQuantity> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}
text_form!(ByteSize);
text_form!(Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_a_power_of_1000_or_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("7B", 7),
            ("1kB", 1000),
            ("512KiB", 524_288),
            ("2 GB", 2_000_000_000),
            ("1.5MB", 1_500_000),
            ("0.25MiB", 262_144),
            ("1TiB", 1 << 40),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        assert_eq!("10MB/s".parse::<Rate>().unwrap().bytes_per_sec(), 10_000_000);
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for bad in
            ["", "MB", "-1MB", "1mb", "1 Mbit", "1e6", "1.MB", "1..2MB", "99999999TB", ".5MB"]
        {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["10MB", "0/s", "0MB/s", "-5MB/s", "10Mb/s", "10MB/m", "0.0000001kB/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_printed_form_reads_back() {
        for bytes in [1, 999, 1000, 1024, 1_500_000, 1 << 20, 3 << 30, 1_000_001] {
            let size = ByteSize::new(bytes);
            assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size, "{size}");
        }
        assert_eq!(ByteSize::new(524_288).to_string(), "512KiB");
        assert_eq!(Rate::new(10_000_000).unwrap().to_string(), "10MB/s");
    }
}
