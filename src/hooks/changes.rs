//! The list of changes that a hook reads: a temporary file of records, status, NUL, path, NUL.
//!
//! A file and not memory or the environment, since a first import changes more paths than either
//! should hold, and since one list serves every attempt. It is gone when dropped; a crash leaves it
//! in the spool, which is safe to delete.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use tempfile::{NamedTempFile, TempPath};

use super::Error;
use crate::model::{Change, RelPath};

/// The paths that a commit changes, written down for a hook.
#[derive(Debug)]
pub struct Changes(TempPath);

impl Changes {
    /// Writes the difference of two trees into a file in `spool`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn of(spool: &Path, changes: &[Change]) -> Result<Self, Error> {
        Self::write(spool, changes.iter().map(|change| (change.status(), &change.path)))
    }

    /// Writes paths, each with its status letter `A`, `M` or `D`, into a file in `spool`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write<'a>(
        spool: &Path,
        changes: impl IntoIterator<Item = (char, &'a RelPath)>,
    ) -> Result<Self, Error> {
        write_records(spool, changes)
            .map_err(|source| Error::Changes { dir: spool.to_owned(), source })
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether every one of `paths` is in the list.
    pub(super) fn hold_all(&self, paths: &[RelPath]) -> io::Result<bool> {
        let mut missing: HashSet<&[u8]> = paths.iter().map(RelPath::as_bytes).collect();
        let mut records = BufReader::new(File::open(&self.0)?);
        let mut field = Vec::new();
        while !missing.is_empty() && next_field(&mut records, &mut field)? {
            next_field(&mut records, &mut field)?;
            missing.remove(field.as_slice());
        }
        Ok(missing.is_empty())
    }
}

fn write_records<'a>(
    spool: &Path,
    changes: impl IntoIterator<Item = (char, &'a RelPath)>,
) -> io::Result<Changes> {
    fs::create_dir_all(spool)?;
    // The path reaches the hook through the environment: it must hold from any working directory.
    let spool = std::path::absolute(spool)?;
    let file = NamedTempFile::with_prefix_in("changes-", spool)?;
    let mut records = BufWriter::new(file);
    for (status, path) in changes {
        write!(records, "{status}\0")?;
        records.write_all(path.as_bytes())?;
        records.write_all(b"\0")?;
    }
    let file = records.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Changes(file.into_temp_path()))
}

/// Reads up to the next NUL; false at the end.
fn next_field(from: &mut impl BufRead, field: &mut Vec<u8>) -> io::Result<bool> {
    field.clear();
    let read = from.read_until(0, field)?;
    field.pop();
    Ok(read > 0)
}
