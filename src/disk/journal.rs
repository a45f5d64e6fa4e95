//! The note that a placing leaves before its first rename, so that a start after a kill knows which
//! paths may be half-way.
//!
//! Format 1: the magic line `depsync-journal 1`, then NUL-ended: the commit from (`-`: none), the
//! commit to, and each path; last the CRC-32 of all before it as eight hex digits and a newline. It
//! becomes visible only when it is durable, so one that does not read was damaged later.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use super::{Error, Result};
use crate::model::{Oid, RelPath};

const MAGIC: &[u8] = b"depsync-journal 1\n";

/// Bytes of the checksum and its newline.
const TRAILER: usize = 9;

/// Writes the journal; durable, with its name, when it answers.
pub(super) fn write<'a>(
    at: &Path,
    from: Option<Oid>,
    to: Oid,
    paths: impl Iterator<Item = &'a RelPath>,
) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    let from = from.map_or_else(|| "-".to_owned(), |id| id.to_string());
    bytes.extend(format!("{from}\0{to}\0").bytes());
    for path in paths {
        bytes.extend(path.as_bytes());
        bytes.push(0);
    }
    bytes.extend(format!("{:08x}\n", crc32fast::hash(&bytes)).bytes());
    let unfinished = at.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&unfinished)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, at)?;
    let folder = at.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes the journal. Not made durable: one that comes back only makes us compare.
pub(super) fn remove(at: &Path) -> io::Result<()> {
    match std::fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What a journal says: the commit from, the commit to, and the paths.
pub type Unfinished = (Option<Oid>, Oid, Vec<RelPath>);

/// The journal that a killed placing left. Those paths hold the old entry
/// or the new one; a placing that covers them, from whatever lies there, makes them whole.
///
/// # Errors
/// `Journal` for a file that is not a whole journal of a version known here.
pub fn unfinished(journal: &Path) -> Result<Option<Unfinished>> {
    let bytes = match std::fs::read(journal) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", journal)(error)),
    };
    match parse(&bytes) {
        Ok(found) => Ok(Some(found)),
        Err(reason) => Err(Error::Journal { path: journal.to_owned(), reason }),
    }
}

fn parse(bytes: &[u8]) -> std::result::Result<Unfinished, &'static str> {
    if !bytes.starts_with(b"depsync-journal ") {
        return Err("it is not a journal");
    }
    if !bytes.starts_with(MAGIC) {
        return Err("it is of another version");
    }
    let damaged = "it is damaged";
    let (body, trailer) = bytes.split_at_checked(bytes.len() - TRAILER).ok_or(damaged)?;
    if trailer != format!("{:08x}\n", crc32fast::hash(body)).as_bytes() {
        return Err(damaged);
    }
    let records =
        body.get(MAGIC.len()..).and_then(|rest| rest.strip_suffix(b"\0")).ok_or(damaged)?;
    let mut records = records.split(|&byte| byte == 0);
    let mut commit = || records.next().and_then(|id| std::str::from_utf8(id).ok()).ok_or(damaged);
    let from = match commit()? {
        "-" => None,
        id => Some(id.parse().map_err(|_| damaged)?),
    };
    let to = commit()?.parse().map_err(|_| damaged)?;
    let paths = records.map(|path| RelPath::parse(path).map_err(|_| damaged));
    Ok((from, to, paths.collect::<std::result::Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: &Path) -> Vec<RelPath> {
        let paths =
            ["a", "b/c d", "new\nline"].map(|path| RelPath::parse(path.as_bytes()).unwrap());
        let paths = [&paths[..], &[RelPath::parse(b"\xff\xfe").unwrap()]].concat();
        write(at, None, Oid::from_bytes([7; 20]), paths.iter()).unwrap();
        paths
    }

    #[test]
    fn a_journal_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("journal");
        assert!(unfinished(&at).unwrap().is_none());
        let paths = sample(&at);
        assert_eq!(unfinished(&at).unwrap(), Some((None, Oid::from_bytes([7; 20]), paths)));
        let from = Some(Oid::from_bytes([1; 20]));
        write(&at, from, Oid::from_bytes([2; 20]), std::iter::empty()).unwrap();
        assert_eq!(unfinished(&at).unwrap(), Some((from, Oid::from_bytes([2; 20]), Vec::new())));
        remove(&at).unwrap();
        remove(&at).unwrap();
        assert!(unfinished(&at).unwrap().is_none());
    }

    #[test]
    fn format_1_stays_readable() {
        let text = b"depsync-journal 1\n-\x000707070707070707070707070707070707070707\0a/b\0";
        let whole = [&text[..], format!("{:08x}\n", crc32fast::hash(text)).as_bytes()].concat();
        let path = RelPath::parse(b"a/b").unwrap();
        assert_eq!(parse(&whole), Ok((None, Oid::from_bytes([7; 20]), vec![path])));
    }

    #[test]
    fn damage_is_told_and_never_panics() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("journal");
        sample(&at);
        let whole = std::fs::read(&at).unwrap();
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        for byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1;
            assert!(parse(&bytes).is_err(), "{byte}");
        }
        let other = b"depsync-journal 2\n";
        assert_eq!(parse(other), Err("it is of another version"));
    }
}
