//! Which bytes of a representation a request asks for, and whether it asks for any: RFC 9110, 13 and 14.
//!
//! Pure. One range is honoured; several, or what is no range, mean the whole, as the RFC allows.

use std::ops::Range;

use http::{HeaderMap, Method, header};

/// What is to be done with a representation.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 200 with everything.
    Whole,
    /// 206 with these bytes, at least one.
    Part(Range<u64>),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
    /// 416.
    Unsatisfiable,
}

/// Judges a `GET` or `HEAD` of a representation of `size` bytes with this strong entity tag, quotes
/// included.
#[must_use]
pub fn judge(method: &Method, headers: &HeaderMap, etag: &str, size: u64) -> Verdict {
    if !if_match(headers, etag) {
        return Verdict::PreconditionFailed;
    }
    if if_none_match(headers, etag) {
        return Verdict::NotModified;
    }
    let Some(range) = headers.get(header::RANGE) else { return Verdict::Whole };
    let fresh = headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes());
    if method != Method::GET || !fresh || headers.get_all(header::RANGE).iter().count() > 1 {
        return Verdict::Whole;
    }
    match range.to_str().ok().and_then(|text| parse(text, size)) {
        None => Verdict::Whole,
        // Whoever brings every file by ranges would be told that an empty one cannot be had (RFC 9110,
        // 14.2: the field may be left unheeded).
        Some(_) if size == 0 => Verdict::Whole,
        Some(range) if range.is_empty() => Verdict::Unsatisfiable,
        Some(range) => Verdict::Part(range),
    }
}

/// Whether `If-None-Match` says that the asker has this representation.
pub(super) fn if_none_match(headers: &HeaderMap, etag: &str) -> bool {
    names(headers, header::IF_NONE_MATCH, etag, weak)
}

/// Whether `If-Match` lets a request pass that meets a representation with this tag.
pub(super) fn if_match(headers: &HeaderMap, etag: &str) -> bool {
    !headers.contains_key(header::IF_MATCH) || names(headers, header::IF_MATCH, etag, |tag| tag)
}

fn weak(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

/// Whether a list of tags names this one. Our tags hold no comma, so a list may be cut at commas.
fn names(
    headers: &HeaderMap,
    name: header::HeaderName,
    etag: &str,
    compared: fn(&str) -> &str,
) -> bool {
    let lists = headers.get_all(name).iter().filter_map(|list| list.to_str().ok());
    lists
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || compared(tag) == etag)
}

/// The bytes of `bytes=…`, cut to what is there; empty: none of them is. None: not one range of bytes.
fn parse(text: &str, size: u64) -> Option<Range<u64>> {
    let (unit, range) = text.trim().split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
        // More digits than 64 bits hold is beyond every end.
        plain.then(|| text.parse().unwrap_or(u64::MAX))
    };
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    if first.is_empty() {
        let wanted = number(last)?;
        return Some(size.saturating_sub(wanted)..size);
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    Some(first.min(size)..last.saturating_add(1).min(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"abc\"";

    fn judged(headers: &[(&str, &str)]) -> Verdict {
        of(&Method::GET, headers, 100)
    }

    fn of(method: &Method, headers: &[(&str, &str)], size: u64) -> Verdict {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        judge(method, &map, TAG, size)
    }

    #[test]
    fn an_empty_file_comes_whole_whatever_the_range() {
        for range in ["bytes=0-", "bytes=0-9", "bytes=-5", "bytes=7-"] {
            assert_eq!(of(&Method::GET, &[("range", range)], 0), Verdict::Whole, "{range}");
        }
    }

    #[test]
    fn one_range_is_honoured() {
        for (range, verdict) in [
            ("bytes=0-0", Verdict::Part(0..1)),
            ("bytes=0-9", Verdict::Part(0..10)),
            ("Bytes=10-", Verdict::Part(10..100)),
            ("bytes=90-1000", Verdict::Part(90..100)),
            ("bytes=99-99999999999999999999999", Verdict::Part(99..100)),
            ("bytes=-10", Verdict::Part(90..100)),
            ("bytes=-1000", Verdict::Part(0..100)),
            ("bytes=100-", Verdict::Unsatisfiable),
            ("bytes=99999999999999999999999-", Verdict::Unsatisfiable),
            ("bytes=-0", Verdict::Unsatisfiable),
            ("bytes=9-5", Verdict::Whole),
            ("bytes=a-b", Verdict::Whole),
            ("bytes=-", Verdict::Whole),
            ("bytes=+1-2", Verdict::Whole),
            ("bytes=0-1,5-6", Verdict::Whole),
            ("lines=0-1", Verdict::Whole),
            ("0-1", Verdict::Whole),
        ] {
            assert_eq!(judged(&[("range", range)]), verdict, "{range}");
        }
        assert_eq!(judged(&[("range", "bytes=0-1"), ("range", "bytes=2-3")]), Verdict::Whole);
        assert_eq!(of(&Method::HEAD, &[("range", "bytes=0-1")], 100), Verdict::Whole);
    }

    #[test]
    fn a_resume_holds_only_for_the_same_bytes() {
        for (tag, verdict) in [
            (TAG, Verdict::Part(5..100)),
            ("\"other\"", Verdict::Whole),
            ("W/\"abc\"", Verdict::Whole),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Verdict::Whole),
        ] {
            assert_eq!(judged(&[("range", "bytes=5-"), ("if-range", tag)]), verdict, "{tag}");
        }
    }

    #[test]
    fn conditions_come_before_ranges() {
        for (name, value, verdict) in [
            ("if-none-match", TAG, Verdict::NotModified),
            ("if-none-match", "W/\"abc\"", Verdict::NotModified),
            ("if-none-match", "\"x\" , \"abc\"", Verdict::NotModified),
            ("if-none-match", "*", Verdict::NotModified),
            ("if-none-match", "\"x\"", Verdict::Part(0..1)),
            ("if-match", TAG, Verdict::Part(0..1)),
            ("if-match", "*", Verdict::Part(0..1)),
            ("if-match", "W/\"abc\"", Verdict::PreconditionFailed),
            ("if-match", "\"x\"", Verdict::PreconditionFailed),
        ] {
            assert_eq!(judged(&[("range", "bytes=0-0"), (name, value)]), verdict, "{name} {value}");
        }
    }
}
