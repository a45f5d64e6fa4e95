//! What this node remembers beside the repositories: a ledger that may be lost, and the decisions
//! that may not.
//!
//! `Ledger` is one SQLite file (WAL): the stat cache, the history of runs, digests of blobs, who did
//! what. Whatever is in it can be found again or done without, so a missing, empty, damaged or
//! foreign file is set aside as `ledger.db.bad-…` and made anew. `Decisions` is a JSON file replaced by rename after fsync.
//! SQL is named in this folder only; nothing here says what is published: that is the store.

mod audit;
mod codec;
pub mod decisions;
mod digests;
mod runs;
mod stat_cache;
pub mod state_dir;
pub mod tokens;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, OpenFlags};

pub use audit::{Act, Audit};
pub use decisions::Decisions;
pub use runs::{Kind, MAX_NAMES, NewRun, Outcome, Run};
pub use stat_cache::{Cached, DirCache, Fingerprint, StatCache};

use crate::model::Class;

/// The form of the tables; another number means that the file is made anew.
const VERSION: i64 = 2;
/// How many damaged ledgers are kept to be looked at.
const KEEP_BAD: usize = 3;

const SCHEMA: &str = "
    CREATE TABLE stat_cache (
        feed TEXT NOT NULL, dir BLOB NOT NULL, entries BLOB NOT NULL, UNIQUE (feed, dir));
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, feed TEXT NOT NULL, kind TEXT NOT NULL,
        started_ms INTEGER NOT NULL, took_us INTEGER NOT NULL, outcome TEXT NOT NULL,
        detail TEXT, head BLOB, files INTEGER NOT NULL, bytes INTEGER NOT NULL,
        names BLOB NOT NULL);
    CREATE INDEX runs_of_feed ON runs (feed, id);
    CREATE TABLE acts (id INTEGER PRIMARY KEY AUTOINCREMENT, act TEXT NOT NULL);
    CREATE TABLE token_uses (id TEXT PRIMARY KEY, at_ms INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE digests (blob BLOB PRIMARY KEY, sha256 BLOB NOT NULL) WITHOUT ROWID;
";

/// What can go wrong in this folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite refused.
    #[error("{what} in the ledger {path}: {source}")]
    Sqlite {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// SQLite's own words.
        source: rusqlite::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// The decisions file cannot be understood, and guessing would lose decisions.
    #[error(
        "{path} cannot be read: {reason}; put back a copy of it, or move it away to start without the decisions in it (ownership, pins, holds)"
    )]
    Decisions {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        reason: String,
    },
}

/// This folder's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// How a caller should react.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Sqlite { source, .. } if is_damage(source) => Class::Corrupt,
            Error::Sqlite { .. } | Error::Io { .. } => Class::Transient,
            Error::Decisions { .. } => Class::Fatal,
        }
    }
}

/// The node's SQLite file. Blocking, `Send + Sync`; one connection.
pub struct Ledger {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Ledger {
    /// Opens or makes the file at `path`; one that cannot be used is set aside first.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = connect(path).or_else(|error| match error.class() {
            Class::Corrupt => {
                tracing::warn!(%error, "the ledger is damaged: making a new one");
                set_aside(path)?;
                connect(path)
            }
            _ => Err(error),
        })?;
        Ok(Self { path: path.to_owned(), connection: Mutex::new(connection) })
    }

    /// Runs `work`; if the file turns out damaged, once more on a new, empty one.
    fn with<T>(
        &self,
        what: &'static str,
        work: impl Fn(&mut Connection) -> rusqlite::Result<T>,
    ) -> Result<T> {
        let mut connection = self.lock();
        let fault = |source| Error::Sqlite { what, path: self.path.clone(), source };
        match work(&mut connection) {
            Err(error) if is_damage(&error) => {
                tracing::warn!(%error, path = %self.path.display(), "the ledger is damaged: making a new one");
                // Closed before its file is renamed, or its log would be written beside the new one.
                *connection = Connection::open_in_memory().map_err(fault)?;
                set_aside(&self.path)?;
                *connection = connect(&self.path)?;
                work(&mut connection).map_err(fault)
            }
            other => other.map_err(fault),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("no holder of the ledger panics")
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let fault =
        |source| Error::Sqlite { what: "cannot open the tables", path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(fault)?;
    prepare(&connection).map_err(fault)?;
    Ok(connection)
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (version, tables) {
        (VERSION, 1..) => Ok(()),
        (0, 0) => connection
            .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")),
        _ => Err(foreign(version)),
    }
}

/// Another version's tables are of no use to us: the same way out as for damage.
fn foreign(version: i64) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB);
    rusqlite::Error::SqliteFailure(code, Some(format!("its version is {version}, not {VERSION}")))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        || error.to_string().contains("no such table")
}

fn set_aside(path: &Path) -> Result<()> {
    let fault = |source| Error::Io { what: "set aside", path: path.to_owned(), source };
    let with = |ending: &str| PathBuf::from(format!("{}{ending}", path.display()));
    for ending in ["-wal", "-shm"] {
        match fs::remove_file(with(ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fault(error)),
            _ => {}
        }
    }
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).map_err(fault)?;
    let stamp = modified.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis());
    fs::rename(path, with(&format!(".bad-{stamp}"))).map_err(fault)?;
    drop_old_bad(path).map_err(fault)
}

fn drop_old_bad(path: &Path) -> io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.bad-", name.to_string_lossy());
    let mut bad: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|found| found.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    bad.sort();
    let excess = bad.len().saturating_sub(KEEP_BAD);
    bad.iter().take(excess).try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};

    use super::*;
    use crate::model::FeedName;

    fn bad_files(folder: &Path) -> usize {
        let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().contains(".bad-")).count()
    }

    #[test]
    fn a_ledger_that_cannot_be_used_is_set_aside_and_made_anew() {
        let text = b"this is no database at all, and long enough to be taken for one".repeat(40);
        for content in [&b""[..], &text] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger.db");
            fs::write(&path, content).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            let run = NewRun::new(FeedName::default(), Kind::Commit, UNIX_EPOCH);
            ledger.add_run(&run).unwrap();
            assert_eq!(ledger.runs(None, 10, None).unwrap().len(), 1);
            assert_eq!(bad_files(folder.path()), usize::from(!content.is_empty()));
        }
    }

    #[test]
    fn another_version_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE x (y); PRAGMA user_version = 99;").unwrap();
        drop(other);
        Ledger::open(&path).unwrap();
        assert_eq!(bad_files(folder.path()), 1);
    }

    #[test]
    fn damage_found_while_running_does_not_stop_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let run = NewRun::new(FeedName::default(), Kind::Commit, UNIX_EPOCH);
        Ledger::open(&path).unwrap().add_run(&run).unwrap();
        // The header stays, so that opening succeeds; every page behind the first is noise.
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        let length = file.metadata().unwrap().len();
        file.seek(SeekFrom::Start(4096)).unwrap();
        file.write_all(&vec![0xa5; usize::try_from(length - 4096).unwrap()]).unwrap();
        drop(file);
        let ledger = Ledger::open(&path).unwrap();
        ledger.add_run(&run).unwrap();
        assert_eq!(ledger.runs(None, 10, None).unwrap().len(), 1);
        assert_eq!(bad_files(folder.path()), 1);
    }
}
