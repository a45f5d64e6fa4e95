//! The SHA-256 of a small file's content by its git blob: what a download's ETag says.
//!
//! Computed while the file is read anyway. A cache: one that is not here is computed from the blob.

use rusqlite::{OptionalExtension, params};

use super::{Ledger, Result};
use crate::model::{ObjectId, Oid};

/// Digests that are kept; beyond it the table starts anew (some 60 bytes each).
const KEEP: i64 = 4_000_000;

impl Ledger {
    /// The SHA-256 of the bytes of `blob`, when known.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn digest(&self, blob: &Oid) -> Result<Option<ObjectId>> {
        let found = self.with("cannot read a digest", |connection| {
            let mut query =
                connection.prepare_cached("SELECT sha256 FROM digests WHERE blob = ?1")?;
            query.query_row([blob.as_bytes()], |row| row.get::<_, Vec<u8>>(0)).optional()
        })?;
        Ok(found.and_then(|bytes| ObjectId::try_from(&*bytes).ok()))
    }

    /// Remembers digests, in one transaction.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn put_digests(&self, digests: &[(Oid, ObjectId)]) -> Result<()> {
        self.with("cannot write digests", |connection| {
            let transaction = connection.transaction()?;
            let sql = "INSERT OR IGNORE INTO digests (blob, sha256) VALUES (?1, ?2)";
            let mut insert = transaction.prepare_cached(sql)?;
            for (blob, sha256) in digests {
                insert.execute(params![blob.as_bytes(), sha256.as_bytes()])?;
            }
            drop(insert);
            transaction.commit()
        })
    }

    /// Empties the table of digests once it is over its bound; part of maintenance.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn prune_digests(&self) -> Result<()> {
        self.with("cannot prune the digests", |connection| {
            let count: i64 =
                connection.query_row("SELECT count(*) FROM digests", [], |row| row.get(0))?;
            if count > KEEP {
                connection.execute("DELETE FROM digests", [])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_by_its_blob() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&folder.path().join("ledger.db")).unwrap();
        let (blob, sha) = (Oid::from_bytes([1; 20]), ObjectId::from_bytes([2; 32]));
        assert_eq!(ledger.digest(&blob).unwrap(), None);
        ledger.put_digests(&[(blob, sha), (blob, sha)]).unwrap();
        assert_eq!(ledger.digest(&blob).unwrap(), Some(sha));
        ledger.prune_digests().unwrap();
        assert_eq!(ledger.digest(&blob).unwrap(), Some(sha), "far from the bound");
    }
}
