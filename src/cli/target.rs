//! What a command line names: a feed, a path in a feed, a commit.
//!
//! Parsed before anything is asked of anybody, so a path that leaves its feed never travels.

use std::{fmt, str::FromStr};

use clap::Args;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use crate::model::{FeedName, RelPath};

/// Everything but what RFC 3986 leaves as it is, and the slash between components.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The feed that a command is about.
#[derive(Debug, Args)]
pub(super) struct FeedArg {
    /// The feed
    #[arg(long = "feed", value_name = "NAME", default_value_t)]
    pub(super) name: FeedName,
}

impl FeedArg {
    /// The API's path of this feed.
    pub(super) fn api(&self) -> String {
        format!("/v1/feeds/{}", self.name)
    }

    /// The API's path of something about this feed.
    pub(super) fn api_of(&self, what: &str) -> String {
        format!("/v1/feeds/{}/{what}", self.name)
    }
}

/// `FEED/PATH`, as in `apps/webapps/shop.war`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FeedPath {
    pub(super) feed: FeedName,
    pub(super) path: RelPath,
}

impl FeedPath {
    /// `FEED/PATH` as it stands in a URL.
    pub(super) fn in_url(&self, between: &str) -> String {
        format!("{}/{between}{}", self.feed, encoded(&self.path))
    }
}

impl FromStr for FeedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (feed, path) = text
            .split_once('/')
            .ok_or("it names no path: write FEED/PATH, as in default/webapps/shop.war")?;
        let feed = feed.parse().map_err(|error| format!("{error}"))?;
        let path = RelPath::parse(path.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self { feed, path })
    }
}

/// `FEED/PATH`, or `FEED` for all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FeedFolder {
    pub(super) feed: FeedName,
    pub(super) path: RelPath,
}

impl FromStr for FeedFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (feed, path) = text.split_once('/').unwrap_or((text, ""));
        let feed = feed.parse().map_err(|error| format!("{error}"))?;
        Ok(Self { feed, path: rel_path(path)? })
    }
}

impl fmt::Display for FeedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.feed, self.path)
    }
}

/// A path, as it stands in a URL.
pub(super) fn encoded(path: &RelPath) -> String {
    percent_encode(path.as_bytes(), IN_PATH).to_string()
}

/// A path in a feed; a slash at its end is left away, and `.` is the feed's own folder.
pub(super) fn rel_path(text: &str) -> Result<RelPath, String> {
    match text.trim_end_matches('/') {
        "" | "." => Ok(RelPath::root()),
        path => RelPath::parse(path.as_bytes()).map_err(|error| error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_travels_encoded_and_never_leaves_its_feed() {
        let target: FeedPath = "apps/web apps/a%b?#ä.war".parse().unwrap();
        assert_eq!(target.in_url("files/"), "apps/files/web%20apps/a%25b%3F%23%C3%A4.war");
        for bad in ["apps", "apps/", "apps/../x", "a b/x", "/x", "apps//x", "apps/.git/x"] {
            assert!(bad.parse::<FeedPath>().is_err(), "{bad}");
        }
        assert_eq!(rel_path("webapps/").unwrap().as_bytes(), b"webapps");
        assert!(rel_path("a/../b").is_err() && rel_path(".").unwrap().is_root());
    }
}
