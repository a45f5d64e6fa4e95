//! What a URL names below a feed: bytes, percent-decoded from the raw path, never normalised.
//!
//! A path becomes a `RelPath` here or not at all; no later code sees the URL's own spelling. What
//! leaves the feed is malformed; the names that are never part of a feed are not there, or refused
//! where someone wants to write them.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, percent_encode};

use super::error::Fault;
use crate::model::{Oid, RelPath};

/// What stays as it is in a path that we write into a URL: RFC 3986's unreserved, and the slash.
const KEPT: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The bytes that a raw piece of a URL's path means.
pub(super) fn decode(raw: &str) -> Result<Cow<'_, [u8]>, Fault> {
    let bytes = raw.as_bytes();
    let hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let broken = |(at, &c): (usize, &u8)| c == b'%' && !(hex(at + 1) && hex(at + 2));
    if bytes.iter().enumerate().any(broken) {
        return Err(Fault::malformed("a percent sign is not followed by two hex digits"));
    }
    Ok(percent_encoding::percent_decode(bytes).into())
}

/// A path as written into a URL.
pub(super) fn encode(path: &[u8]) -> String {
    encoded(path).collect()
}

/// The same in pieces, for whoever writes more than the path.
pub(super) fn encoded(path: &[u8]) -> PercentEncode<'_> {
    percent_encode(path, KEPT)
}

/// A path that someone wants to read; the empty one is the feed's own folder. A slash at the end
/// says that it is a folder, which the second value tells.
pub(super) fn path_to_read(raw: &str) -> Result<(RelPath, bool), Fault> {
    let bytes = decode(raw)?;
    let (path, folder) = match bytes.strip_suffix(b"/") {
        Some(path) => (path, true),
        None => (&*bytes, false),
    };
    if bytes.is_empty() {
        return Ok((RelPath::root(), true));
    }
    match parse(path)? {
        Some(path) => Ok((path, folder)),
        None => Err(no_such_path(path)),
    }
}

/// A path that someone wants to write or remove.
pub(super) fn path_to_write(raw: &str) -> Result<RelPath, Fault> {
    match parse(&decode(raw)?)? {
        Some(path) => Ok(path),
        None => {
            Err(Fault::refused("reserved", "\".git\" and \".depsync\" are never part of a feed"))
        }
    }
}

/// That nothing lies at a path.
pub(super) fn no_such_path(path: &[u8]) -> Fault {
    let path = String::from_utf8_lossy(&path[..path.len().min(200)]);
    Fault::not_found(
        "no_such_path",
        format!("nothing lies at \"{path}\" in this version of the feed"),
    )
}

/// None: well-formed, but with a name that is never part of a feed.
fn parse(bytes: &[u8]) -> Result<Option<RelPath>, Fault> {
    let reserved =
        |name: &[u8]| name.eq_ignore_ascii_case(b".git") || name == crate::model::RESERVED;
    match RelPath::parse(bytes) {
        Ok(path) => Ok(Some(path)),
        Err(bad) => {
            let plain: Vec<&[u8]> =
                bytes.split(|&c| c == b'/').filter(|name| !reserved(name)).collect();
            let rest = plain.join(&b'/');
            let only_reserved =
                rest.len() < bytes.len() && (rest.is_empty() || RelPath::parse(&rest).is_ok());
            if only_reserved { Ok(None) } else { Err(Fault::malformed(bad.to_string())) }
        }
    }
}

/// A commit's 40 hex digits.
pub(super) fn commit(raw: &str) -> Result<Oid, Fault> {
    raw.parse().map_err(|bad| Fault::malformed(format!("no commit: {bad}")))
}

/// Cuts `a..b`.
pub(super) fn pair(raw: &str) -> Result<(&str, &str), Fault> {
    raw.split_once("..").ok_or_else(|| Fault::malformed("two commits are written as a..b"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Result<String, u16> {
        path_to_read(raw).map(|(path, _)| path.to_string()).map_err(|fault| fault.status().as_u16())
    }

    #[test]
    fn nothing_in_a_url_leaves_the_feed() {
        for (raw, expected) in [
            ("a/b.txt", Ok("a/b.txt")),
            ("a%20b/%C3%A4", Ok("a b/ä")),
            ("a%2fb", Ok("a/b")),
            ("", Ok("")),
            ("a/", Ok("a")),
            ("a+b", Ok("a+b")),
            ("%2e%2e%2fetc/passwd", Err(400)),
            ("..%2fetc%2fpasswd", Err(400)),
            ("../etc/passwd", Err(400)),
            ("a/..", Err(400)),
            ("a/../../b", Err(400)),
            ("a/./b", Err(400)),
            ("/etc/passwd", Err(400)),
            ("%2fetc/passwd", Err(400)),
            ("a//b", Err(400)),
            ("/", Err(400)),
            ("a%00b", Err(400)),
            ("a%0", Err(400)),
            ("a%zz", Err(400)),
            ("%252e%252e%252fx", Ok("%2e%2e%2fx")),
            ("..\\..\\etc", Ok("..\\..\\etc")),
            (".git/config", Err(404)),
            (".GIT/config", Err(404)),
            ("a/.depsync", Err(404)),
            (".git/../../etc", Err(400)),
            (".git/%00", Err(400)),
        ] {
            assert_eq!(read(raw).as_deref(), expected.as_deref(), "{raw}");
        }
        assert_eq!(read(&"x".repeat(256)), Err(400));
        assert_eq!(read(&"x/".repeat(2100)), Err(400));
    }

    #[test]
    fn reserved_names_are_refused_to_writers() {
        for (raw, status) in
            [(".git/hooks/x", 422), ("a/.depsync", 422), ("../x", 400), ("", 400), ("a/", 400)]
        {
            assert_eq!(path_to_write(raw).unwrap_err().status(), status, "{raw}");
        }
        assert!(path_to_write("a/b").is_ok());
    }

    #[test]
    fn a_path_in_a_url_reads_back() {
        for bytes in [&b"a/b c"[..], b"\xff\xfe/?#%", "ä".as_bytes(), b"new\nline", b"a+b;c&d=e"] {
            let url = encode(bytes);
            assert!(url.parse::<http::Uri>().is_ok() || url.starts_with(|c| c != '/'), "{url}");
            assert_eq!(path_to_read(&url).unwrap().0.as_bytes(), bytes);
        }
    }
}
