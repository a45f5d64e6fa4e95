//! Whether an archive is whole, by the marks that its format leaves at the end.
//!
//! An uploader that closes the file in the middle and goes on later leaves nothing else to tell by.
//! Zip files end with a directory of what is in them (APPNOTE.TXT 4.3.16, 4.3.14 for zip64); a .deb
//! is an `ar` file whose member sizes add up to its own. Only the tail or the headers are read, and
//! a wrong answer costs a question to the operator, never content.

use std::io::{self, Read, Seek, SeekFrom};

/// What is a zip file under another name. `.apk` is Alpine's too, which is no zip file:
/// see [`may_become_zip`].
const ZIP_FAMILY: [&[u8]; 18] = [
    b"zip", b"jar", b"war", b"ear", b"car", b"aar", b"sar", b"har", b"kar", b"esb", b"nupkg",
    b"whl", b"apk", b"aab", b"ipa", b"xpi", b"vsix", b"egg",
];
/// How a zip file begins, or what becomes one: an entry, the end of an empty one, the mark of a
/// split one, a start script or program before it, and room that was preallocated.
const BEGINNINGS: [&[u8]; 6] =
    [b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"#!", b"MZ", b"\0\0\0\0"];

/// The record at the end of a zip file, without its comment.
const END_LEN: u64 = 22;
const END_MARK: [u8; 4] = *b"PK\x05\x06";
/// Stands right before the end record where sizes take 64 bits.
const LOCATOR_LEN: u64 = 20;
const LOCATOR_MARK: [u8; 4] = *b"PK\x06\x07";
const END64_LEN: u64 = 56;
const END64_MARK: [u8; 4] = *b"PK\x06\x06";
const ENTRY_MARK: [u8; 4] = *b"PK\x01\x02";
const MAX_COMMENT: u64 = 0xffff;

const AR_MAGIC: [u8; 8] = *b"!<arch>\n";
const AR_HEADER: u64 = 60;
/// A .deb has three members, some have a few more.
const MAX_MEMBERS: usize = 100;

/// Whether a file of that name and size is whole, as far as its format tells: what is no archive
/// always is.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn is_whole(name: &[u8], size: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    match ending(name).as_deref() {
        Some(b"deb") => is_whole_ar(size, file),
        Some(ending) if ZIP_FAMILY.contains(&ending) => is_whole_zip(size, file),
        _ => Ok(true),
    }
}

fn ending(name: &[u8]) -> Option<Vec<u8>> {
    let dot = name.iter().rposition(|&byte| byte == b'.')?;
    (dot > 0).then(|| name[dot + 1..].to_ascii_lowercase())
}

fn is_whole_zip(size: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    if !may_become_zip(&read_at(file, 0, size.min(4))?) {
        return Ok(true);
    }
    if size < END_LEN {
        return Ok(false);
    }
    // Nearly every zip file has no comment: look there before reading 64 KiB.
    if ends_at(size - END_LEN, size, file)? {
        return Ok(true);
    }
    let reach = size.min(END_LEN + MAX_COMMENT);
    let start = size - reach;
    let tail = read_at(file, start, reach)?;
    let last = tail.len().saturating_sub(to_index(END_LEN));
    for offset in (0..last).rev().filter(|&at| tail[at..].starts_with(&END_MARK)) {
        if ends_at(start + offset as u64, size, file)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether what begins like this may be a zip file on its way. Anything else only bears the name of
/// one, and no wait would make it whole.
fn may_become_zip(start: &[u8]) -> bool {
    BEGINNINGS.iter().any(|begin| start.starts_with(begin) || begin.starts_with(start))
}

/// Whether an end record lies at `at`, its comment ends the file, and its directory fits before it.
fn ends_at(at: u64, size: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let end = read_at(file, at, END_LEN)?;
    if end.len() < to_index(END_LEN) || end[..4] != END_MARK {
        return Ok(false);
    }
    if at + END_LEN + u64::from(u16_at(&end, 20)) != size {
        return Ok(false);
    }
    let (entries, length, offset) = (u16_at(&end, 10), u32_at(&end, 12), u32_at(&end, 16));
    if entries == 0xffff || length == u32::MAX || offset == u32::MAX {
        return ends_with_64(at, file);
    }
    let directory =
        Directory { entries: entries.into(), length: length.into(), offset: offset.into() };
    directory.fits_before(at, file)
}

fn ends_with_64(end: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    let Some(locator) = end.checked_sub(LOCATOR_LEN) else { return Ok(false) };
    if read_at(file, locator, 4)? != LOCATOR_MARK {
        return Ok(false);
    }
    // Its recorded place is wrong where something was put before the archive: look right before.
    let Some(at) = locator.checked_sub(END64_LEN) else { return Ok(false) };
    let record = read_at(file, at, END64_LEN)?;
    if record.len() < to_index(END64_LEN) || record[..4] != END64_MARK {
        return Ok(false);
    }
    let directory = Directory {
        entries: u64_at(&record, 32),
        length: u64_at(&record, 40),
        offset: u64_at(&record, 48),
    };
    directory.fits_before(at, file)
}

struct Directory {
    entries: u64,
    length: u64,
    offset: u64,
}

impl Directory {
    /// Whether the directory ends where the end record begins. What was put before the archive (a
    /// start script, a self-extractor) shifts it: then it must begin with an entry.
    fn fits_before(&self, end: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
        let Some(start) = end.checked_sub(self.length) else { return Ok(false) };
        if start < self.offset {
            return Ok(false);
        }
        Ok(self.entries == 0 || read_at(file, start, 4)? == ENTRY_MARK)
    }
}

fn is_whole_ar(size: u64, file: &mut (impl Read + Seek)) -> io::Result<bool> {
    if read_at(file, 0, 8)? != AR_MAGIC {
        return Ok(false);
    }
    let mut at = AR_MAGIC.len() as u64;
    for _ in 0..MAX_MEMBERS {
        let header = read_at(file, at, AR_HEADER)?;
        if header.len() < to_index(AR_HEADER) || header[58..] != *b"`\n" {
            return Ok(false);
        }
        let digits = String::from_utf8_lossy(&header[48..58]);
        let Ok(length) = digits.trim_end().parse::<u64>() else { return Ok(false) };
        at += AR_HEADER + length;
        // Members begin at even offsets; some writers leave the last pad byte out.
        if at == size || at + at % 2 == size {
            return Ok(true);
        }
        at += at % 2;
        if at > size {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Up to `length` bytes from `at`; fewer at the end of the file.
fn read_at(file: &mut (impl Read + Seek), at: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::with_capacity(to_index(length));
    file.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Lengths here are constants or at most 64 KiB.
fn to_index(length: u64) -> usize {
    usize::try_from(length).expect("no length here is over 64 KiB and a header")
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::{io::Cursor, path::Path, process::Command};

    use super::*;

    fn whole(name: &str, bytes: &[u8]) -> bool {
        is_whole(name.as_bytes(), bytes.len() as u64, &mut Cursor::new(bytes)).unwrap()
    }

    /// Stored entries, as Python's `zipfile` and Java's `jar` write them.
    fn zip(comment: &[u8]) -> Vec<u8> {
        let content = vec![b'x'; 3000];
        let mut local = b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        local.extend([3000_u32.to_le_bytes(), 3000_u32.to_le_bytes()].concat());
        local.extend(b"\x01\0\0\0a");
        let mut out = [local, content].concat();
        let start = u32::try_from(out.len()).unwrap();
        let mut entry = b"PK\x01\x02".to_vec();
        entry.extend([0; 42]);
        entry[28] = 1;
        entry.push(b'a');
        let length = u32::try_from(entry.len()).unwrap();
        out.extend(entry);
        out.extend(END_MARK);
        out.extend([0, 0, 0, 0, 1, 0, 1, 0]);
        out.extend(length.to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(u16::try_from(comment.len()).unwrap().to_le_bytes());
        out.extend(comment);
        out
    }

    #[test]
    fn a_zip_file_is_whole_only_to_its_last_byte() {
        for comment in [&b""[..], b"built on a Tuesday", &vec![b'c'; 65535]] {
            let zip = zip(comment);
            assert!(whole("app.war", &zip));
            for cut in [0, 1, 21, 22, 100, 3030, zip.len() - 1] {
                assert!(!whole("app.war", &zip[..cut]), "{cut} of {}", zip.len());
            }
            assert!(!whole("app.jar", &[&zip, &b"more"[..]].concat()), "something follows");
        }
        assert!(!whole("app.zip", &vec![0; 5000]), "preallocated");
        assert!(whole("app.zip", &[END_MARK.as_slice(), &[0; 18]].concat()), "an empty archive");
    }

    #[test]
    fn a_start_script_before_the_archive_is_allowed() {
        let jar = [b"#!/bin/sh\nexec java -jar $0\n".as_slice(), &zip(b"")].concat();
        assert!(whole("app.jar", &jar));
        assert!(!whole("app.jar", &jar[..jar.len() - 5]));
    }

    #[test]
    fn an_end_record_inside_the_content_is_not_the_end() {
        let mut zip = zip(b"");
        zip.splice(100..100, [END_MARK.as_slice(), &[0; 18]].concat());
        assert!(!whole("app.zip", &zip[..2000]));
    }

    #[test]
    fn only_archives_are_looked_into() {
        for name in ["a.txt", "a", ".war", "a.tar.gz", "apk"] {
            assert!(whole(name, b"PK\x03\x04 and no end"), "{name}");
        }
        assert!(!whole("A.WAR", b"PK"));
        assert!(whole("alpine.apk", &[&[0x1f, 0x8b][..], &[0; 40]].concat()));
        assert!(whole("only-a-name.war", b"not an archive at all"));
    }

    #[test]
    fn a_deb_is_whole_when_its_members_are() {
        let member = |name: &str, content: &[u8]| {
            let header = format!(
                "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n",
                0,
                0,
                0,
                100_644,
                content.len()
            );
            let pad = vec![b'\n'; content.len() % 2];
            [header.into_bytes(), content.to_vec(), pad].concat()
        };
        let deb = [
            AR_MAGIC.to_vec(),
            member("debian-binary", b"2.0\n"),
            member("control.tar.xz", &[1; 101]),
            member("data.tar.xz", &[2; 2000]),
        ]
        .concat();
        assert!(whole("a.deb", &deb));
        for cut in [0, 7, 8, 60, 100, deb.len() - 1] {
            assert!(!whole("a.deb", &deb[..cut]), "{cut}");
        }
        assert!(!whole("a.deb", &[&deb, &b"x"[..]].concat()));
    }

    /// What real programs write, where they are installed.
    #[test]
    fn what_zip_programs_write_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let script = "import zipfile,sys
for name, allow in (('plain.zip', True), ('big.zip', True)):
    with zipfile.ZipFile(name, 'w', zipfile.ZIP_DEFLATED) as z:
        for i in range(10 if name == 'plain.zip' else 66000):
            z.writestr(f'f{i}', 'x')
";
        let run = Command::new("python3").arg("-c").arg(script).current_dir(&folder).status();
        if !run.is_ok_and(|status| status.success()) {
            return;
        }
        for name in ["plain.zip", "big.zip"] {
            let bytes = std::fs::read(folder.path().join(Path::new(name))).unwrap();
            assert!(whole(name, &bytes), "{name}");
            assert!(!whole(name, &bytes[..bytes.len() - 1]), "{name}");
        }
    }
}
