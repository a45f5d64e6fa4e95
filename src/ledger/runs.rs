//! The history of what this node did: commits, fetches, checkouts and the like, newest first.
//!
//! A run is written when it is over, so that nothing is ever left "running". The table is pruned to
//! a bound; it is for people and programs that look back, never a source of truth.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Row, params};
use serde::Serialize;

use super::{Ledger, Result};
use crate::model::{FeedName, Oid, RelPath};

/// Paths that a run names; the rest is only counted.
pub const MAX_NAMES: usize = 20;
/// Runs that are kept.
const KEEP: i64 = 20_480;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$about])* $variant,)* }

        impl $name {
            /// The word that programs and people see.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            fn parse(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

words! {
    /// What was done.
    Kind {
        /// A primary published a commit.
        Commit = "commit",
        /// A region brought a commit from its upstream.
        Fetch = "fetch",
        /// A region put a commit in place.
        Checkout = "checkout",
        /// A region put right what someone changed in its directory.
        Repair = "repair",
        /// A hook ran.
        Hook = "hook",
        /// An older commit was brought back.
        Rollback = "rollback",
        /// Packs folded, objects dropped.
        Maintenance = "maintenance",
    }
}

words! {
    /// How it ended.
    Outcome {
        /// Done.
        Ok = "ok",
        /// Not done: the detail says why.
        Failed = "failed",
        /// Refused by a rule or a hook.
        Refused = "refused",
        /// Waits for a person.
        Held = "held",
    }
}

/// A run to be recorded.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Whose.
    pub feed: FeedName,
    /// What was done.
    pub kind: Kind,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, when it did not end well.
    pub detail: Option<String>,
    /// The commit it was about.
    pub commit: Option<Oid>,
    /// Paths touched.
    pub files: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// The first paths, at most [`MAX_NAMES`].
    pub names: Vec<RelPath>,
}

impl NewRun {
    /// A run that went well and touched nothing yet.
    #[must_use]
    pub fn new(feed: FeedName, kind: Kind, started: SystemTime) -> Self {
        Self {
            feed,
            kind,
            started,
            took: Duration::ZERO,
            outcome: Outcome::Ok,
            detail: None,
            commit: None,
            files: 0,
            bytes: 0,
            names: Vec::new(),
        }
    }
}

/// A recorded run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its number: larger is newer. What `after` takes.
    pub id: i64,
    /// What was recorded.
    pub run: NewRun,
}

impl Ledger {
    /// Records a run; returns its number.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn add_run(&self, run: &NewRun) -> Result<i64> {
        let names: Vec<_> = run.names.iter().take(MAX_NAMES).map(RelPath::as_bytes).collect();
        let names = names.join(&0);
        self.with("cannot record a run", |connection| {
            let sql = "INSERT INTO runs
                (feed, kind, started_ms, took_us, outcome, detail, head, files, bytes, names)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
            connection.prepare_cached(sql)?.execute(params![
                run.feed.as_str(),
                run.kind.as_str(),
                millis(run.started.duration_since(UNIX_EPOCH).unwrap_or_default()),
                i64::try_from(run.took.as_micros()).unwrap_or(i64::MAX),
                run.outcome.as_str(),
                run.detail,
                run.commit.as_ref().map(|id| id.as_bytes().as_slice()),
                run.files.cast_signed(),
                run.bytes.cast_signed(),
                names,
            ])?;
            let id = connection.last_insert_rowid();
            if id % 256 == 0 {
                connection.execute("DELETE FROM runs WHERE id <= ?1", [id - KEEP])?;
            }
            Ok(id)
        })
    }

    /// At most `limit` runs, newest first: of one feed or of all, older than the run `after`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn runs(
        &self,
        feed: Option<&FeedName>,
        limit: usize,
        after: Option<i64>,
    ) -> Result<Vec<Run>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.with("cannot read the runs", |connection| {
            let sql = "SELECT id, feed, kind, started_ms, took_us, outcome, detail, head, files,
                bytes, names FROM runs
                WHERE (?1 IS NULL OR feed = ?1) AND id < ?2 ORDER BY id DESC LIMIT ?3";
            let mut query = connection.prepare_cached(sql)?;
            let feed = feed.map(FeedName::as_str);
            let rows = query.query_map(params![feed, after.unwrap_or(i64::MAX), limit], read)?;
            // A row that a newer version wrote with words we do not know is left out.
            rows.filter_map(rusqlite::Result::transpose).collect()
        })
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Option<Run>> {
    let (feed, kind, outcome): (String, String, String) = (row.get(1)?, row.get(2)?, row.get(5)?);
    let (Ok(feed), Some(kind), Some(outcome)) =
        (FeedName::try_from(feed), Kind::parse(&kind), Outcome::parse(&outcome))
    else {
        return Ok(None);
    };
    let names: Vec<u8> = row.get(10)?;
    let names = names.split(|&byte| byte == 0).filter_map(|name| RelPath::parse(name).ok());
    let run = NewRun {
        feed,
        kind,
        started: UNIX_EPOCH + duration(row.get(3)?),
        took: Duration::from_micros(u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0)),
        outcome,
        detail: row.get(6)?,
        commit: row.get::<_, Option<Vec<u8>>>(7)?.and_then(|id| Oid::try_from(&*id).ok()),
        files: row.get::<_, i64>(8)?.cast_unsigned(),
        bytes: row.get::<_, i64>(9)?.cast_unsigned(),
        names: names.collect(),
    };
    Ok(Some(Run { id: row.get(0)?, run }))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_newest_first_by_pages_and_by_feed() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.db")).unwrap();
        let feeds: [FeedName; 2] = ["one".parse().unwrap(), "two".parse().unwrap()];
        for number in 0..10_u64 {
            let feed = feeds[usize::from(number % 2 == 1)].clone();
            let mut run = NewRun::new(feed, Kind::Checkout, UNIX_EPOCH + Duration::from_secs(5));
            run.took = Duration::from_millis(7);
            run.files = number;
            run.commit = Some(Oid::from_bytes([4; 20]));
            run.names =
                (0..30).map(|n| RelPath::parse(format!("f{n}").as_bytes()).unwrap()).collect();
            ledger.add_run(&run).unwrap();
        }
        let all = ledger.runs(None, 3, None).unwrap();
        assert_eq!(all.iter().map(|run| run.run.files).collect::<Vec<_>>(), [9, 8, 7]);
        let next = ledger.runs(None, 3, Some(all[2].id)).unwrap();
        assert_eq!(next.iter().map(|run| run.run.files).collect::<Vec<_>>(), [6, 5, 4]);
        let one = ledger.runs(Some(&feeds[0]), 100, None).unwrap();
        assert_eq!(one.iter().map(|run| run.run.files).collect::<Vec<_>>(), [8, 6, 4, 2, 0]);
        let run = &one[0].run;
        assert_eq!(run.started, UNIX_EPOCH + Duration::from_secs(5));
        assert_eq!((run.took, run.outcome), (Duration::from_millis(7), Outcome::Ok));
        assert_eq!((run.commit, run.names.len()), (Some(Oid::from_bytes([4; 20])), MAX_NAMES));
    }

    #[test]
    fn the_table_has_a_bound() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.db")).unwrap();
        let run = NewRun::new(FeedName::default(), Kind::Commit, UNIX_EPOCH);
        ledger.add_run(&run).unwrap();
        ledger
            .with("jump", |c| c.execute("UPDATE sqlite_sequence SET seq = ?1", [KEEP + 511]))
            .unwrap();
        ledger.add_run(&run).unwrap();
        assert_eq!(ledger.runs(None, 10, None).unwrap().len(), 1, "the first is too old");
    }
}
