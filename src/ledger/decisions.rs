//! `decisions.json`: what people decided and nodes agreed on, which must not be lost.
//!
//! Who owns a feed and in which epoch, which node stands for a region, holds, pins, pauses, marks of
//! work half done. One small JSON file with a version, replaced by rename after fsync: a crash
//! leaves the old one or the new one. A file that cannot be understood, or of another version, is
//! refused, since going on without it would forget decisions. Never a place for what can be found
//! again: that is the ledger.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Error, Result, tokens::Token};
pub use crate::model::Target;
use crate::model::{Bindings, FeedName, Oid};

const VERSION: u32 = 1;

/// All decisions of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doc {
    version: u32,
    /// By feed; one that is absent has only defaults.
    #[serde(default)]
    pub feeds: BTreeMap<FeedName, Feed>,
    /// Who is let in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<Token>,
}

impl Default for Doc {
    fn default() -> Self {
        Self { version: VERSION, feeds: BTreeMap::new(), tokens: Vec::new() }
    }
}

/// What was decided about one feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Feed {
    /// Whether this node owns the feed; none: as configured, at the first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The highest epoch that this node owned or saw; a promotion takes a higher one.
    pub epoch: u64,
    /// Where a demoted primary follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// The last commit that this node published before it was demoted: what lies in its directory
    /// beyond what the new owner has is put aside at the first checkout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub demoted_at: Option<Oid>,
    /// Who stands for each region.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub bindings: Bindings,
    /// Changes are gathered, not published, until `release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold: Option<Act>,
    /// Since when deletions wait for `approve` or `reject`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletions_held: Option<DateTime<Utc>>,
    /// The commits that nodes are kept at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Who is not sent anything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<Pause>,
    /// A rollback or reject that has begun; a start finishes it before its first scan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// Since a rollback: later changes are listed as held until `release`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Act>,
    /// The deployment directory that this feed's history is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootMark>,
    /// The readers' tokens of the upstream: good for this feed here too, also while that is away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readers: Vec<Token>,
    /// Commits that nobody may be given.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<Oid>,
}

/// Whether a node owns a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Watches the directory and commits.
    Primary,
    /// Mirrors it from an upstream.
    Region,
}

/// Who did something, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// When.
    pub since: DateTime<Utc>,
    /// Who: a token's name, or a file.
    pub by: String,
}

/// A commit that nodes are kept at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Who.
    pub target: Target,
    /// Where.
    pub commit: Oid,
    /// By whom, and when.
    pub act: Act,
}

/// A target that is sent nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Who.
    pub target: Target,
    /// By whom, and when.
    pub act: Act,
}

/// A rollback that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The commit whose tree is brought back.
    pub target: Oid,
    /// The head when it began.
    pub head: Oid,
    /// By whom, and when.
    pub act: Act,
}

/// The identity of a directory: its inode and the file system's `statfs` id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootMark {
    /// The directory's inode.
    pub inode: u64,
    /// Its file system.
    pub fsid: u64,
}

/// The decisions file. Blocking, `Send + Sync`.
pub struct Decisions {
    path: PathBuf,
    doc: Mutex<Arc<Doc>>,
}

impl Decisions {
    /// Reads the file; none there means that nothing was decided yet.
    ///
    /// # Errors
    /// When it cannot be read or understood, or is of another version.
    pub fn load(path: &Path) -> Result<Self> {
        let doc = match fs::read(path) {
            Ok(bytes) => parse(&bytes)
                .map_err(|reason| Error::Decisions { path: path.to_owned(), reason })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Doc::default(),
            Err(source) => return Err(Error::Io { what: "read", path: path.to_owned(), source }),
        };
        Ok(Self { path: path.to_owned(), doc: Mutex::new(Arc::new(doc)) })
    }

    /// Where the file lies.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is decided now.
    #[must_use]
    pub fn get(&self) -> Arc<Doc> {
        Arc::clone(&self.doc.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is decided now about one feed.
    #[must_use]
    pub fn feed(&self, feed: &FeedName) -> Feed {
        self.get().feeds.get(feed).cloned().unwrap_or_default()
    }

    /// Changes the decisions; durable when it returns. Without a difference nothing is written.
    ///
    /// # Errors
    /// When the file cannot be written: then nothing has changed.
    pub fn update<T>(&self, change: impl FnOnce(&mut Doc) -> T) -> Result<T> {
        // The document is only replaced as a whole, so a panic in `change` leaves it sound.
        let mut doc = self.doc.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Doc::clone(&doc);
        let answer = change(&mut next);
        if next != **doc {
            let fault = |source| Error::Io { what: "write", path: self.path.clone(), source };
            write(&self.path, &next).map_err(fault)?;
            *doc = Arc::new(next);
        }
        Ok(answer)
    }

    /// Changes what is decided about one feed.
    ///
    /// # Errors
    /// As [`Decisions::update`].
    pub fn update_feed<T>(
        &self,
        feed: &FeedName,
        change: impl FnOnce(&mut Feed) -> T,
    ) -> Result<T> {
        self.update(|doc| change(doc.feeds.entry(feed.clone()).or_default()))
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<Doc, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let text = |error: serde_json::Error| error.to_string();
    // The version first: another version's fields are not ours to complain about.
    let Version { version } = serde_json::from_slice(bytes).map_err(text)?;
    if version != VERSION {
        return Err(format!("it is of version {version}, and this program reads {VERSION}"));
    }
    serde_json::from_slice(bytes).map_err(text)
}

fn write(path: &Path, doc: &Doc) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".decisions-").tempfile_in(folder)?;
    let mut text = serde_json::to_vec_pretty(doc)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn act() -> Act {
        Act { since: DateTime::UNIX_EPOCH, by: "admin".to_owned() }
    }

    #[test]
    fn what_was_decided_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.json");
        let feed = FeedName::default();
        let decisions = Decisions::load(&path).unwrap();
        assert_eq!(decisions.feed(&feed), Feed::default());
        let whole = Feed {
            role: Some(Role::Primary),
            epoch: 3,
            upstream: Some("http://hub:1".to_owned()),
            demoted_at: Some(Oid::from_bytes([9; 20])),
            bindings: [(
                "eu".parse().unwrap(),
                crate::model::Binding { node: "n1".parse().unwrap(), token: None },
            )]
            .into(),
            hold: Some(act()),
            deletions_held: Some(DateTime::UNIX_EPOCH),
            pins: vec![Pin {
                target: Target::Region("eu".parse().unwrap()),
                commit: Oid::from_bytes([1; 20]),
                act: act(),
            }],
            pauses: vec![Pause { target: Target::Feed, act: act() }],
            rollback: Some(Rollback {
                target: Oid::from_bytes([1; 20]),
                head: Oid::from_bytes([2; 20]),
                act: act(),
            }),
            frozen: Some(act()),
            root: Some(RootMark { inode: 7, fsid: u64::MAX }),
            readers: Vec::new(),
            revoked: [Oid::from_bytes([5; 20])].into(),
        };
        decisions.update_feed(&feed, |entry| *entry = whole.clone()).unwrap();
        assert_eq!(Decisions::load(&path).unwrap().feed(&feed), whole);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 1, "no temporary file stays");
    }

    #[test]
    fn a_file_of_version_1_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.json");
        let old = r#"{"version":1,"feeds":{"apps":{"role":"primary","epoch":2,
            "hold":{"since":"2026-01-02T03:04:05Z","by":"admin"},
            "pauses":[{"target":{"node":"n1"},"act":{"since":"2026-01-02T03:04:05Z","by":"x"}}]}}}"#;
        fs::write(&path, old).unwrap();
        let feed = Decisions::load(&path).unwrap().feed(&"apps".parse().unwrap());
        assert_eq!((feed.role, feed.epoch), (Some(Role::Primary), 2));
        assert_eq!(feed.pauses[0].target, Target::Node("n1".parse().unwrap()));
    }

    #[test]
    fn what_cannot_be_understood_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.json");
        for (text, reason) in [
            ("", "EOF"),
            ("{", "EOF"),
            (r#"{"version":2,"sheep":1}"#, "version 2"),
            (r#"{"version":1,"sheep":1}"#, "sheep"),
            (r#"{"version":1,"feeds":{"a b":{}}}"#, "a b"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Decisions::load(&path).err().expect(text);
            assert!(error.to_string().contains(reason), "{error}");
            assert_eq!(error.class(), crate::model::Class::Fatal);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_change_that_cannot_be_written_has_not_happened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gone").join("decisions.json");
        let decisions = Decisions::load(&path).unwrap();
        decisions.update_feed(&FeedName::default(), |feed| feed.epoch = 9).unwrap_err();
        assert_eq!(decisions.feed(&FeedName::default()).epoch, 0);
    }
}
