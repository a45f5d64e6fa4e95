//! The note that a placing leaves before its first rename, so that a start after a kill knows which
//! paths may be half-way.
//!
//! Format 1: the magic line `depsync-journal 1`, then NUL-ended: the commit from (`-`: none), the
//! commit to, and each path; last the CRC-32 of all before it as eight hex digits and a newline. One
//! that is not whole was cut off while it was written, before anything was renamed: there was none.

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

/// Writes the journal, whose bytes are durable once the file that comes back is synced. One that an
/// earlier placing left is in force until then: it is replaced whole.
pub(super) fn write<'a>(
    at: &Path,
    from: Option<Oid>,
    to: Oid,
    paths: impl Iterator<Item = &'a RelPath>,
) -> io::Result<File> {
    let bytes = encode(from, to, paths);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return replace(at, &bytes),
        file => file?,
    };
    file.write_all(&bytes).inspect_err(|_| {
        // Half a journal is none; the next placing replaces it.
        let _ = std::fs::remove_file(at);
    })?;
    Ok(file)
}

fn encode<'a>(from: Option<Oid>, to: Oid, paths: impl Iterator<Item = &'a RelPath>) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let from = from.map_or_else(|| "-".to_owned(), |id| id.to_string());
    bytes.extend(format!("{from}\0{to}\0").bytes());
    for path in paths {
        bytes.extend(path.as_bytes());
        bytes.push(0);
    }
    bytes.extend(format!("{:08x}\n", crc32fast::hash(&bytes)).bytes());
    bytes
}

fn replace(at: &Path, bytes: &[u8]) -> io::Result<File> {
    let unfinished = at.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, at)?;
    Ok(file)
}

/// The folder that the journal lies in: once it is synced, the name is durable too.
pub(super) fn folder(at: &Path) -> io::Result<File> {
    let folder = at.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
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
/// `Journal` for a file that is whole and no journal of a version known here.
pub fn unfinished(journal: &Path) -> Result<Option<Unfinished>> {
    let bytes = match std::fs::read(journal) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", journal)(error)),
    };
    let failed = |reason| Error::Journal { path: journal.to_owned(), reason };
    body(&bytes).map(parse).transpose().map_err(failed)
}

/// All but the checksum; none where that is not right.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    let (body, trailer) = bytes.split_at_checked(bytes.len().checked_sub(TRAILER)?)?;
    (trailer == format!("{:08x}\n", crc32fast::hash(body)).as_bytes()).then_some(body)
}

fn parse(body: &[u8]) -> std::result::Result<Unfinished, &'static str> {
    if !body.starts_with(b"depsync-journal ") {
        return Err("it is not a journal");
    }
    if !body.starts_with(MAGIC) {
        return Err("it is of another version");
    }
    let damaged = "it is damaged";
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
        let parsed = body(&whole).map(parse);
        assert_eq!(parsed, Some(Ok((None, Oid::from_bytes([7; 20]), vec![path]))));
    }

    #[test]
    fn one_that_was_cut_off_is_none_and_nothing_panics() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("journal");
        sample(&at);
        let whole = std::fs::read(&at).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&at, &whole[..end]).unwrap();
            assert_eq!(unfinished(&at).unwrap(), None, "{end}");
        }
        for byte in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[byte] ^= 1;
            assert_eq!(body(&bytes), None, "{byte}");
        }
        std::fs::write(&at, vec![0; whole.len()]).unwrap();
        assert_eq!(unfinished(&at).unwrap(), None);
        assert_eq!(parse(b"depsync-journal 2\n"), Err("it is of another version"));
        for text in [&b""[..], b"depsync-journal 1\n", b"depsync-journal 1\n-\0x\0", b"else"] {
            assert!(parse(text).is_err());
        }
    }

    #[test]
    fn one_that_another_placing_left_is_in_force_until_the_next_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("journal");
        sample(&at);
        let before = std::fs::File::open(&at).unwrap();
        sample(&at);
        let inode = |file: &File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        assert_ne!(inode(&before), inode(&File::open(&at).unwrap()));
        assert!(unfinished(&at).unwrap().is_some());
    }
}
