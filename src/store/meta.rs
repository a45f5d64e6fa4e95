//! What git's trees cannot hold: the metadata blob of one folder.
//!
//! The blob is the line `depsync-meta 1`, then one record for each entry of the folder that has
//! metadata, sorted by name, each ended by NUL:
//!
//! ```text
//! <kind>[<octal mode>][ <key>=<value>]… /<name>
//! ```
//!
//! `kind` is `f` (file), `l` (link) or `d` (folder); a `d` record makes a folder exist even when
//! nothing lies in it. Keys: `t` modification time, `<secs>.<nine digits>`, the seconds negative
//! before 1970; `u`, `g` owner and group, percent-encoded; `x` one extended attribute,
//! `<percent-encoded name>:<value in URL-safe base64 without padding>`, any number of times. Unknown
//! keys are ignored. No field holds a slash, so the first one begins the name, which may hold
//! anything but slash and NUL.

use std::{fmt::Write, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::{Error, Result};
use crate::model::{Extra, Meta, Mtime};

const FIRST_LINE: &[u8] = b"depsync-meta 1\n";
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Which kind of entry a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    File,
    Link,
    Folder,
}

/// The bytes of one record, without its final NUL.
pub(super) fn record(of: Of, meta: &Meta, name: &[u8]) -> Vec<u8> {
    let mut text = match of {
        Of::File => "f",
        Of::Link => "l",
        Of::Folder => "d",
    }
    .to_owned();
    push_fields(&mut text, meta).expect("a String takes all");
    [text.as_bytes(), b" /", name].concat()
}

/// One record, without its final NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    raw: &'a [u8],
    slash: usize,
}

impl<'a> Record<'a> {
    pub(super) fn parse(raw: &'a [u8]) -> Result<Record<'a>> {
        let slash = memchr::memchr(b'/', raw).filter(|&at| at > 0);
        let slash = slash.ok_or_else(|| bad("a record has no kind or no name"))?;
        Ok(Record { raw, slash })
    }

    pub(super) fn name(&self) -> &'a [u8] {
        &self.raw[self.slash + 1..]
    }

    pub(super) fn of(&self) -> Result<Of> {
        match self.raw[0] {
            b'f' => Ok(Of::File),
            b'l' => Ok(Of::Link),
            b'd' => Ok(Of::Folder),
            _ => Err(bad("a record is about neither file, link nor folder")),
        }
    }

    pub(super) fn meta(&self) -> Result<Meta> {
        let fields = std::str::from_utf8(&self.raw[1..self.slash]);
        let mut fields = fields.map_err(|_| bad("a field is not UTF-8"))?.split(' ');
        let (mut meta, mut extra) = (Meta::default(), Extra::default());
        if let Some(mode) = fields.next().filter(|mode| !mode.is_empty()) {
            let mode = u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777);
            meta.mode = Some(mode.ok_or_else(|| bad("a mode is not octal"))?);
        }
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            read_field(&mut meta, &mut extra, key, value)
                .ok_or_else(|| bad(&format!("the field {key}={value} is malformed")))?;
        }
        meta.extra = extra.boxed();
        Ok(meta)
    }
}

fn push_fields(text: &mut String, meta: &Meta) -> std::fmt::Result {
    if let Some(mode) = meta.mode {
        write!(text, "{:o}", mode & 0o7777)?;
    }
    if let Some(Mtime { secs, nanos }) = meta.mtime {
        write!(text, " t={secs}.{nanos:09}")?;
    }
    for (key, name) in [('u', &meta.extra().user), ('g', &meta.extra().group)] {
        if let Some(name) = name {
            write!(text, " {key}={}", percent_encode(name.as_bytes(), PLAIN))?;
        }
    }
    for (name, value) in &meta.extra().xattrs {
        let value = URL_SAFE_NO_PAD.encode(value);
        write!(text, " x={}:{value}", percent_encode(name, PLAIN))?;
    }
    Ok(())
}

/// None: malformed.
fn read_field(meta: &mut Meta, extra: &mut Extra, key: &str, value: &str) -> Option<()> {
    let decode = || percent_decode_str(value).decode_utf8().ok().map(Into::into);
    match key {
        "t" => {
            let (secs, nanos) = value.split_once('.').filter(|(_, nanos)| nanos.len() == 9)?;
            let nanos = nanos.bytes().all(|c| c.is_ascii_digit()).then(|| nanos.parse())?.ok()?;
            meta.mtime = Some(Mtime { secs: i64::from_str(secs).ok()?, nanos });
        }
        "u" => extra.user = Some(decode()?),
        "g" => extra.group = Some(decode()?),
        "x" => {
            let (name, value) = value.split_once(':')?;
            let name = percent_decode_str(name).collect();
            extra.xattrs.insert(name, URL_SAFE_NO_PAD.decode(value).ok()?);
        }
        _ => {}
    }
    Some(())
}

/// The records of a metadata blob, sorted by name; none after a fault.
pub(super) struct Records<'a> {
    rest: &'a [u8],
    last: &'a [u8],
}

/// Reads a metadata blob.
pub(super) fn records(raw: &[u8]) -> Result<Records<'_>> {
    if let Some(rest) = raw.strip_prefix(FIRST_LINE) {
        return Ok(Records { rest, last: b"" });
    }
    let first = raw.split(|&c| c == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(&first[..first.len().min(40)]);
    Err(bad(&format!("it begins with \"{first}\", this version reads \"depsync-meta 1\"")))
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.take_one();
        if read.is_err() {
            self.rest = b"";
        }
        Some(read)
    }
}

impl<'a> Records<'a> {
    fn take_one(&mut self) -> Result<Record<'a>> {
        let nul = memchr::memchr(0, self.rest).ok_or_else(|| bad("its end is missing"))?;
        let record = Record::parse(&self.rest[..nul])?;
        if record.name() <= self.last {
            return Err(bad("its records are out of order, or one has no name"));
        }
        self.rest = &self.rest[nul + 1..];
        self.last = record.name();
        Ok(record)
    }
}

/// The bytes of a metadata blob, from records sorted by name; none without records.
pub(super) fn encode<'a>(records: impl Iterator<Item = Record<'a>>) -> Option<Vec<u8>> {
    let mut out = FIRST_LINE.to_vec();
    for record in records {
        out.extend_from_slice(record.raw);
        out.push(0);
    }
    (out.len() > FIRST_LINE.len()).then_some(out)
}

fn bad(why: &str) -> Error {
    Error::damaged("a metadata blob", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Meta {
        let extra = Extra {
            user: Some("wso2 carbon/é".into()),
            group: Some("=".into()),
            xattrs: [(b"user.a:/\0".to_vec(), vec![0, 255, b'/']), (b"user.b".to_vec(), vec![])]
                .into(),
        };
        Meta { mode: Some(0o2750), mtime: Some(Mtime { secs: -7, nanos: 1 }), extra: extra.boxed() }
    }

    #[test]
    fn what_is_recorded_is_read_back() {
        let name = b"a b/=\n\xff".as_slice();
        let name = &name.iter().copied().filter(|&c| c != b'/').collect::<Vec<_>>()[..];
        for (of, meta) in [(Of::File, full()), (Of::Folder, Meta::default()), (Of::Link, full())] {
            let bytes = record(of, &meta, name);
            let record = Record::parse(&bytes).unwrap();
            let blob = encode([record].into_iter()).unwrap();
            let read: Vec<_> = records(&blob).unwrap().map(Result::unwrap).collect();
            assert_eq!(read, [record]);
            assert_eq!(read[0].name(), name);
            assert_eq!((read[0].of().unwrap(), read[0].meta().unwrap()), (of, meta));
        }
    }

    #[test]
    fn the_format_is_what_it_was() {
        let blob = b"depsync-meta 1\nd755 /bin\0f644 t=1700000000.000000009 new=1 u=a%20b /x y\0";
        let read: Vec<_> = records(blob).unwrap().map(Result::unwrap).collect();
        assert_eq!((read[0].of().unwrap(), read[0].name()), (Of::Folder, b"bin".as_slice()));
        let meta = read[1].meta().unwrap();
        assert_eq!(meta.mtime, Some(Mtime { secs: 1_700_000_000, nanos: 9 }));
        assert_eq!((meta.mode, meta.extra().user.as_deref()), (Some(0o644), Some("a b")));
    }

    #[test]
    fn malformed_metadata_is_an_error() {
        for blob in [
            "",
            "depsync-meta 2\n",
            "depsync-meta 1\nf644",
            "depsync-meta 1\n\0",
            "depsync-meta 1\nf /b\0f /a\0",
            "depsync-meta 1\nf /a\0f /a\0",
        ] {
            let read = records(blob.as_bytes()).and_then(Iterator::collect::<Result<Vec<_>>>);
            assert!(read.is_err(), "{blob:?}");
        }
        for record in [
            "f9 /a",
            "f77777 /a",
            "f t=1 /a",
            "f t=1.5 /a",
            "f t=1.+00000001 /a",
            "f x=a /a",
            "f x=a:! /a",
        ] {
            let record = Record::parse(record.as_bytes()).unwrap();
            assert!(record.meta().is_err(), "{record:?}");
        }
    }
}
