//! What a token lets its holder do: roles, what a request needs, and for which feed and regions.
//!
//! A role is a set of needs; nothing is granted that is not named here. A token made for one feed
//! opens nothing else, and one that names no region may mirror, but no client is ever led to it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{FeedName, RegionName};

/// What the holder of a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A compute host or a person who looks: reads files, history and state.
    Reader,
    /// A region: reads, and takes packs, objects and announcements.
    Mirror,
    /// A build server: reads, uploads and removes files.
    Writer,
    /// An operator: everything.
    Admin,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// Nothing: health, and pages without data.
    Nothing,
    /// Files, history, state.
    Read,
    /// Packs, objects, announcements.
    Mirror,
    /// Changing files.
    Write,
    /// Everything else.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 4] = [Role::Reader, Role::Mirror, Role::Writer, Role::Admin];

    /// Whether this role is enough.
    #[must_use]
    pub fn allows(self, need: Need) -> bool {
        match need {
            Need::Nothing | Need::Read => true,
            Need::Mirror => matches!(self, Role::Mirror | Role::Admin),
            Need::Write => matches!(self, Role::Writer | Role::Admin),
            Need::Admin => self == Role::Admin,
        }
    }

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Reader => "reader",
            Role::Mirror => "mirror",
            Role::Writer => "writer",
            Role::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = || format!("\"{text}\" is not a role; it is reader, mirror, writer or admin");
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(fault)
    }
}

/// Names of regions, where each `*` stands for any characters: `edge-*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionPattern(String);

impl RegionPattern {
    /// Whether a region's name fits.
    #[must_use]
    pub fn matches(&self, region: &RegionName) -> bool {
        fits(self.0.as_bytes(), region.as_str().as_bytes())
    }
}

/// Goes back to the last `*` only, so it is linear in pattern times text.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

impl TryFrom<String> for RegionPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // With each star for one letter it is the name of a region, or none fits.
        match text.replace('*', "x").parse::<RegionName>() {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(format!(
                "\"{}\" names no region: write a region's name, with * for any characters, as in edge-*",
                text.chars().take(80).collect::<String>()
            )),
        }
    }
}

impl FromStr for RegionPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.to_owned().try_into()
    }
}

impl From<RegionPattern> for String {
    fn from(pattern: RegionPattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for RegionPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scope {
    /// What its holder is.
    pub role: Role,
    /// The only feed that it opens; none: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedName>,
    /// The regions that its holder may stand for; none: no region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionPattern>,
}

impl Scope {
    /// Whether it opens what needs `need` and lies in `feed` (none: it is about the whole node).
    #[must_use]
    pub fn opens(&self, need: Need, feed: Option<&str>) -> bool {
        let in_feed = self.feed.as_ref().is_none_or(|only| feed == Some(only.as_str()));
        need == Need::Nothing || (in_feed && self.role.allows(need))
    }

    /// Whether clients of a region may be led to its holder.
    #[must_use]
    pub fn may_serve(&self, region: &RegionName) -> bool {
        self.role.allows(Need::Mirror)
            && self.region.as_ref().is_some_and(|pattern| pattern.matches(region))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_role_allows_what_it_is_for_and_no_more() {
        let needs = [Need::Nothing, Need::Read, Need::Mirror, Need::Write, Need::Admin];
        for (role, allowed) in [
            (Role::Reader, [true, true, false, false, false]),
            (Role::Mirror, [true, true, true, false, false]),
            (Role::Writer, [true, true, false, true, false]),
            (Role::Admin, [true, true, true, true, true]),
        ] {
            assert_eq!(needs.map(|need| role.allows(need)), allowed, "{role}");
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!("root".parse::<Role>().is_err() && "Reader".parse::<Role>().is_err());
    }

    #[test]
    fn a_token_for_one_feed_opens_that_feed_alone() {
        let feed = Some("apps".parse().unwrap());
        let scope = Scope { role: Role::Admin, feed, region: None };
        assert!(scope.opens(Need::Admin, Some("apps")) && scope.opens(Need::Nothing, None));
        assert!(!scope.opens(Need::Read, Some("other")) && !scope.opens(Need::Read, None));
        let whole = Scope { role: Role::Reader, feed: None, region: None };
        assert!(whole.opens(Need::Read, None) && whole.opens(Need::Read, Some("apps")));
    }

    #[test]
    fn a_region_is_stood_for_only_by_whom_it_was_given_to() {
        let region = |name: &str| name.parse().unwrap();
        for (role, pattern, name, expected) in [
            (Role::Mirror, Some("eu-west"), "eu-west", true),
            (Role::Mirror, Some("eu-west"), "eu-east", false),
            (Role::Mirror, Some("edge-*"), "edge-7", true),
            (Role::Mirror, Some("edge-*"), "hedge-7", false),
            (Role::Mirror, Some("*"), "any", true),
            (Role::Mirror, None, "any", false),
            (Role::Reader, Some("*"), "any", false),
        ] {
            let pattern = pattern.map(|pattern| pattern.parse().unwrap());
            let scope = Scope { role, feed: None, region: pattern };
            assert_eq!(scope.may_serve(&region(name)), expected, "{scope:?} {name}");
        }
        for bad in ["", "a b", "../x", "-*", "é*"] {
            assert!(bad.parse::<RegionPattern>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn patterns_fit_as_the_naive_rule_says(pattern in "[ab*]{0,8}", text in "[ab]{0,8}") {
            fn naive(pattern: &[u8], text: &[u8]) -> bool {
                match pattern.split_first() {
                    None => text.is_empty(),
                    Some((b'*', rest)) => (0..=text.len()).any(|at| naive(rest, &text[at..])),
                    Some((c, rest)) => text.split_first().is_some_and(|(t, tail)| t == c && naive(rest, tail)),
                }
            }
            prop_assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), naive(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
