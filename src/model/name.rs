//! Names that people and other nodes give: feeds, regions, nodes.
//!
//! A feed's and a region's name is safe as a file name, in a URL and in a log line, by construction.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {what} name: {rule}")]
pub struct BadName {
    what: &'static str,
    text: String,
    rule: &'static str,
}

const RULE: &str = "1 to 64 letters, digits, '-', '_' and '.', beginning with a letter or a digit";

fn plain(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

fn printable(text: &str) -> bool {
    (1..=128).contains(&text.len()) && !text.chars().any(char::is_control)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $check:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                if $check(&text) {
                    return Ok(Self(text));
                }
                let text = text.chars().take(80).collect();
                Err(BadName { what: $what, text, rule: $rule })
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A feed's name on one node.
    FeedName, "feed", plain, RULE
}
name! {
    /// A region's name, as `region.xml` and `[region] name` have it.
    RegionName, "region", plain, RULE
}
name! {
    /// A node's random identity, made at its first start.
    NodeId, "node", plain, RULE
}
name! {
    /// What people call a node.
    Label, "node", printable, "1 to 128 bytes without control characters"
}

impl Default for FeedName {
    /// The feed that a command means when none is named.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_file_names() {
        for good in ["default", "apps", "eu-west", "a.b_c", "7"] {
            assert!(good.parse::<FeedName>().is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "-x", &long] {
            assert!(bad.parse::<FeedName>().is_err(), "{bad}");
        }
    }
}
