//! Who did what: one line of JSON for each act in `audit.jsonl`, and the newest in the ledger.
//!
//! The file is the record; it survives the loss of the ledger, which is there to be looked through.
//! Both have a bound: the file is put aside as `audit.jsonl.1` when it is full, in place of the one
//! before. Nothing secret is ever written: a token by its id.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use chrono::{DateTime, Utc};
use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Error, Ledger, Result};

/// How long the file becomes before the next one is begun: a few hundred thousand acts.
const MAX_BYTES: u64 = 64 << 20;
/// Acts that are kept in the ledger.
const KEEP: i64 = 20_480;

/// What somebody did, or was not allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Act {
    /// When it was answered.
    pub at: DateTime<Utc>,
    /// `admin`, `token ID`, or `anyone` where nobody was asked.
    pub who: String,
    /// From where, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<IpAddr>,
    /// The request: its method and path.
    pub action: String,
    /// What it asked for, as it was sent; long ones are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The HTTP status that answered it.
    pub status: u16,
}

/// The record of a node. Blocking, `Send + Sync`.
pub struct Audit {
    path: PathBuf,
    file: Mutex<Option<File>>,
    ledger: Arc<Ledger>,
}

impl Audit {
    /// The record whose file is `path`; it is made with the first act.
    #[must_use]
    pub fn new(path: PathBuf, ledger: Arc<Ledger>) -> Self {
        Self { path, file: Mutex::new(None), ledger }
    }

    /// Writes an act down.
    ///
    /// # Errors
    /// When the file or the ledger cannot be written.
    pub fn add(&self, act: &Act) -> Result<()> {
        let fault = |source| Error::Io { what: "write", path: self.path.clone(), source };
        self.append(act).map_err(fault)?;
        self.ledger.add_act(act)
    }

    /// The newest acts, those before the number `before` where one is given.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn acts(&self, limit: usize, before: Option<i64>) -> Result<Vec<(i64, Act)>> {
        self.ledger.acts(limit, before)
    }

    fn append(&self, act: &Act) -> io::Result<()> {
        let mut line = serde_json::to_vec(act)?;
        line.push(b'\n');
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match open.take() {
            Some(file) => file,
            None => open_private(&self.path)?,
        };
        if file.metadata()?.len() >= MAX_BYTES {
            fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            file = open_private(&self.path)?;
        }
        // One write for each line, so that lines of a crash are whole or not there.
        file.write_all(&line)?;
        *open = Some(file);
        Ok(())
    }
}

fn open_private(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

impl Ledger {
    fn add_act(&self, act: &Act) -> Result<()> {
        let text = serde_json::to_string(act).unwrap_or_default();
        self.with("cannot record an act", |connection| {
            connection.prepare_cached("INSERT INTO acts (act) VALUES (?1)")?.execute([&text])?;
            let id = connection.last_insert_rowid();
            if id % 256 == 0 {
                connection.execute("DELETE FROM acts WHERE id <= ?1", [id - KEEP])?;
            }
            Ok(())
        })
    }

    fn acts(&self, limit: usize, before: Option<i64>) -> Result<Vec<(i64, Act)>> {
        self.with("cannot read the acts", |connection| {
            let sql = "SELECT id, act FROM acts WHERE id < ?1 ORDER BY id DESC LIMIT ?2";
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![before.unwrap_or(i64::MAX), limit], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
            })?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            // One that cannot be read was not written by us; it hides no other.
            let read = |(id, text): (i64, String)| Some((id, serde_json::from_str(&text).ok()?));
            Ok(rows.into_iter().filter_map(read).collect())
        })
    }

    /// Remembers when a token was last shown.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn token_used(&self, id: &str, at: DateTime<Utc>) -> Result<()> {
        self.with("cannot record the use of a token", |connection| {
            let sql = "INSERT INTO token_uses (id, at_ms) VALUES (?1, ?2)
                ON CONFLICT (id) DO UPDATE SET at_ms = max(at_ms, ?2)";
            connection.prepare_cached(sql)?.execute(params![id, at.timestamp_millis()])?;
            Ok(())
        })
    }

    /// When each token was last shown.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn token_uses(&self) -> Result<Vec<(String, DateTime<Utc>)>> {
        self.with("cannot read the uses of tokens", |connection| {
            let mut statement = connection.prepare_cached("SELECT id, at_ms FROM token_uses")?;
            let rows = statement.query_map([], |row| {
                let at = DateTime::from_timestamp_millis(row.get(1)?).unwrap_or_default();
                Ok((row.get(0)?, at))
            })?;
            rows.collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn act(action: &str) -> Act {
        Act {
            at: DateTime::UNIX_EPOCH,
            who: "token 01020304".to_owned(),
            from: Some([10, 0, 0, 7].into()),
            action: action.to_owned(),
            detail: Some(r#"{"commit":"x"}"#.to_owned()),
            status: 200,
        }
    }

    #[test]
    fn an_act_is_a_private_line_and_is_found_again_newest_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let ledger = Arc::new(Ledger::open(&folder.path().join("ledger.db")).unwrap());
        let audit = Audit::new(path.clone(), Arc::clone(&ledger));
        for action in ["POST /1", "POST /2", "POST /3"] {
            audit.add(&act(action)).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<Act> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines, ["POST /1", "POST /2", "POST /3"].map(act));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

        let newest = audit.acts(2, None).unwrap();
        assert_eq!(
            newest.iter().map(|(_, act)| &*act.action).collect::<Vec<_>>(),
            ["POST /3", "POST /2"]
        );
        assert_eq!(audit.acts(9, Some(newest[1].0)).unwrap()[0].1, act("POST /1"));
        drop(audit);
        Audit::new(path.clone(), ledger).add(&act("POST /4")).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 4, "a restart goes on");
    }

    #[test]
    fn a_full_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        File::create(&path).unwrap().set_len(MAX_BYTES).unwrap();
        let ledger = Arc::new(Ledger::open(&folder.path().join("ledger.db")).unwrap());
        Audit::new(path.clone(), ledger).add(&act("POST /1")).unwrap();
        assert_eq!(fs::metadata(folder.path().join("audit.jsonl.1")).unwrap().len(), MAX_BYTES);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
    }

    #[test]
    fn the_last_use_of_a_token_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.db")).unwrap();
        let at = |ms| DateTime::from_timestamp_millis(ms).unwrap();
        for (id, ms) in [("a", 5), ("b", 9), ("a", 7), ("b", 3)] {
            ledger.token_used(id, at(ms)).unwrap();
        }
        let mut uses = ledger.token_uses().unwrap();
        uses.sort();
        assert_eq!(uses, [("a".to_owned(), at(7)), ("b".to_owned(), at(9))]);
    }
}
