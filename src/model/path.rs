//! Paths inside a feed: bytes, relative, without `.`, `..`, NUL or `.git`, by construction.
//!
//! Whatever comes from a URL, a tree, a frame or a command line becomes a `RelPath` before anything
//! else looks at it, so no later code needs to ask whether a path leaves the feed.

use std::{borrow::Cow, ffi::OsStr, fmt, os::unix::ffi::OsStrExt, path::Path};

/// The name that is ours at every level of a feed: metadata lies under it.
pub const RESERVED: &[u8] = b".depsync";

/// The longest path within a feed, as Linux has it.
const MAX_PATH: usize = 4096;
/// The longest name of a file, as Linux has it.
const MAX_NAME: usize = 255;

/// Why bytes are not a path inside a feed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{path}\" is not a path inside a feed: {reason}")]
pub struct BadPath {
    path: String,
    reason: &'static str,
}

impl BadPath {
    /// What is wrong with it, without the path.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

/// A path inside a feed. The empty path is the feed's root.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RelPath(Box<[u8]>);

impl RelPath {
    /// The feed's own folder.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Parses bytes: components separated by single slashes.
    ///
    /// # Errors
    /// When a component is empty, `.`, `..`, `.git` in any case, the reserved `.depsync`, holds NUL,
    /// or is over 255 bytes; when the whole is empty or over 4,096 bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPath> {
        let bad = |reason| {
            let path = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            Err(BadPath { path, reason })
        };
        if bytes.is_empty() {
            return bad("it is empty");
        }
        if bytes.len() > MAX_PATH {
            return bad("it is over 4,096 bytes");
        }
        if bytes[0] == b'/' {
            return bad("it is absolute");
        }
        for name in bytes.split(|&c| c == b'/') {
            if let Some(reason) = fault_of_name(name) {
                return bad(reason);
            }
        }
        Ok(Self(bytes.into()))
    }

    /// The entry `name` of this folder.
    ///
    /// # Errors
    /// As [`RelPath::parse`]; `name` is one component.
    pub fn join(&self, name: &[u8]) -> Result<Self, BadPath> {
        if let Some(reason) = fault_of_name(name) {
            let path = String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned();
            return Err(BadPath { path, reason });
        }
        if self.is_root() {
            return Ok(Self(name.into()));
        }
        let whole = [&self.0, b"/".as_slice(), name].concat();
        if whole.len() > MAX_PATH {
            let path = String::from_utf8_lossy(&whole[..200]).into_owned();
            return Err(BadPath { path, reason: "it is over 4,096 bytes" });
        }
        Ok(Self(whole.into()))
    }

    /// The bytes, without a leading or trailing slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For the file system's calls, relative to the feed's folder.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// Whether this is the feed's own folder.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The folder that holds it; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<RelPath> {
        if self.is_root() {
            return None;
        }
        let end = self.0.iter().rposition(|&c| c == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let start = self.0.iter().rposition(|&c| c == b'/').map_or(0, |at| at + 1);
        &self.0[start..]
    }

    /// The components from the top down; none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|&c| c == b'/').filter(|name| !name.is_empty())
    }

    /// Whether it is `folder` or lies below it.
    #[must_use]
    pub fn is_within(&self, folder: &RelPath) -> bool {
        folder.is_root()
            || self
                .0
                .strip_prefix(&*folder.0)
                .is_some_and(|rest| rest.first().is_none_or(|&c| c == b'/'))
    }

    /// As text for people; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

fn fault_of_name(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("it has an empty component"),
        b"." | b".." => Some("it has a component \".\" or \"..\""),
        _ if name.len() > MAX_NAME => Some("it has a component over 255 bytes"),
        _ if name.contains(&0) => Some("it has a NUL byte"),
        _ if name.contains(&b'/') => Some("a name has no slash"),
        _ if name.eq_ignore_ascii_case(b".git") => Some("\".git\" is never part of a feed"),
        RESERVED => Some("the name \".depsync\" is reserved"),
        _ => None,
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_leaves_the_feed_is_a_path() {
        for good in ["a", "a/b", "ä ö/…", "a/.gitignore", "...", "a/.b", "x\ny"] {
            assert!(RelPath::parse(good.as_bytes()).is_ok(), "{good:?}");
        }
        assert!(RelPath::parse(b"\xff\xfe").is_ok());
        for bad in [
            "",
            "/",
            "/a",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/.",
            "a\0b",
            ".git",
            "a/.GIT/x",
            ".depsync",
            "a/.depsync",
        ] {
            assert!(RelPath::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(RelPath::parse(&[b'x'; 256]).is_err());
    }

    #[test]
    fn a_path_knows_its_folder() {
        let path = RelPath::parse(b"a/b/c").unwrap();
        assert_eq!(path.name(), b"c");
        let parent = path.parent().unwrap();
        assert_eq!(parent.as_bytes(), b"a/b");
        assert_eq!(parent.join(b"c").unwrap(), path);
        assert!(
            path.is_within(&parent) && path.is_within(&RelPath::root()) && path.is_within(&path)
        );
        assert!(!RelPath::parse(b"a/bc").unwrap().is_within(&parent));
        assert_eq!(RelPath::parse(b"a").unwrap().parent(), Some(RelPath::root()));
        assert_eq!(RelPath::root().parent(), None);
    }
}
