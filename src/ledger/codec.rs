//! The compact form of a stat cache row: one version byte, then the entries sorted by name.
//!
//! Numbers are LEB128 varints, signed ones zigzag; an entry is some 75 bytes. A row that does not
//! decode to its last byte is taken for an empty one: it only costs reading files again.

use super::stat_cache::{Cached, DirCache, Fingerprint};
use crate::model::{Mtime, Oid};

const VERSION: u8 = 1;

pub(super) fn encode(dir: &DirCache) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 80 * dir.len());
    out.push(VERSION);
    for (name, cached) in dir.iter() {
        put(&mut out, name.len() as u64);
        out.extend_from_slice(name);
        let Fingerprint { symlink, mode, size, mtime, ctime, inode } = cached.seen;
        put(&mut out, u64::from(mode) << 1 | u64::from(symlink));
        put(&mut out, size);
        put(&mut out, inode);
        for time in [mtime, ctime, cached.hashed_at] {
            put(&mut out, zigzag(time.secs));
            put(&mut out, u64::from(time.nanos));
        }
        out.extend_from_slice(cached.blob.as_bytes());
    }
    out
}

pub(super) fn decode(row: &[u8]) -> Option<DirCache> {
    let mut rest = row.strip_prefix(&[VERSION])?;
    let mut dir = DirCache::default();
    while !rest.is_empty() {
        let length = usize::try_from(take(&mut rest)?).ok()?;
        let name = take_bytes(&mut rest, length)?;
        let mode = take(&mut rest)?;
        let (size, inode) = (take(&mut rest)?, take(&mut rest)?);
        let (mtime, ctime) = (take_time(&mut rest)?, take_time(&mut rest)?);
        let hashed_at = take_time(&mut rest)?;
        let blob = Oid::try_from(take_bytes(&mut rest, 20)?).ok()?;
        let (symlink, mode) = (mode & 1 == 1, u32::try_from(mode >> 1).ok()?);
        let seen = Fingerprint { symlink, mode, size, mtime, ctime, inode };
        dir.insert(name.to_vec(), Cached { seen, hashed_at, blob });
    }
    Some(dir)
}

fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (bytes, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(bytes)
}

fn take_time(rest: &mut &[u8]) -> Option<Mtime> {
    let secs = unzigzag(take(rest)?);
    let nanos = u32::try_from(take(rest)?).ok()?;
    Some(Mtime { secs, nanos })
}

fn zigzag(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Mtime> {
        (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Mtime { secs, nanos })
    }

    fn cached() -> impl Strategy<Value = Cached> {
        let seen = (any::<bool>(), any::<u32>(), any::<u64>(), time(), time(), any::<u64>());
        (seen, time(), any::<[u8; 20]>()).prop_map(|(seen, hashed_at, blob)| {
            let (symlink, mode, size, mtime, ctime, inode) = seen;
            let seen = Fingerprint { symlink, mode, size, mtime, ctime, inode };
            Cached { seen, hashed_at, blob: Oid::from_bytes(blob) }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(entries in prop::collection::btree_map(
            prop::collection::vec(1_u8.., 1..20), cached(), 0..20))
        {
            let mut dir = DirCache::default();
            for (name, cached) in entries {
                dir.insert(name, cached);
            }
            prop_assert_eq!(decode(&encode(&dir)), Some(dir));
        }

        #[test]
        fn noise_never_panics(row in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&row);
        }
    }

    #[test]
    fn a_cut_row_is_refused() {
        let seen = Fingerprint {
            symlink: false,
            mode: 0o644,
            size: 5,
            mtime: Mtime { secs: -1, nanos: 7 },
            ctime: Mtime { secs: 1, nanos: 0 },
            inode: 99,
        };
        let mut dir = DirCache::default();
        let hashed_at = Mtime { secs: 2, nanos: 0 };
        dir.insert(b"name".to_vec(), Cached { seen, hashed_at, blob: Oid::from_bytes([3; 20]) });
        let whole = encode(&dir);
        for end in 2..whole.len() {
            assert_eq!(decode(&whole[..end]), None, "{end}");
        }
    }
}
