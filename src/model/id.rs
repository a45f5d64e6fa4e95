//! Identifiers that name bytes: git's SHA-1 object ids and the SHA-256 of large objects.
//!
//! Both are fixed-size byte arrays, printed and parsed as lower-case hex of full length; an
//! abbreviated id is never accepted from another program.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {expected} hex digits")]
pub struct BadId {
    text: String,
    expected: usize,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// The identifier with these raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = BadId;

            fn try_from(bytes: &[u8]) -> Result<Self, BadId> {
                bytes.try_into().map(Self).map_err(|_| BadId {
                    text: format!("{} bytes", bytes.len()),
                    expected: 2 * $len,
                })
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let mut bytes = [0; $len];
                if parse_hex(text.as_bytes(), &mut bytes) {
                    Ok(Self(bytes))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(BadId { text, expected: 2 * $len })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_id! {
    /// A git object id (SHA-1): of a commit, a tree or a blob.
    Oid, 20
}

hex_id! {
    /// The SHA-256 of a large artifact's content: the name of an *object*.
    ObjectId, 32
}

impl Oid {
    /// The first ten hex digits: for people, never for a program.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(10);
        text
    }
}

fn parse_hex(text: &[u8], into: &mut [u8]) -> bool {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    text.len() == 2 * into.len()
        && text.chunks_exact(2).zip(into).all(|(pair, byte)| {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) => {
                    *byte = high << 4 | low;
                    true
                }
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_lower_case_hex_is_an_id() {
        let text = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(text.parse::<Oid>().unwrap().to_string(), text);
        for bad in ["", "0123", &text.to_uppercase(), &format!("{text}00"), &text.replace('0', "g")]
        {
            assert!(bad.parse::<Oid>().is_err(), "{bad}");
        }
    }
}
