//! `Content-Disposition` as RFC 6266 has it: the name that a download is saved under, and whether a
//! browser shows it or saves it.
//!
//! A redirect ends in an address with a query; without this header some clients keep that in the name.

use http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What RFC 8187 lets stand in an extended value.
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// The header for a file of this name and media type: text, pictures and documents are shown, the rest is
/// saved. A name that is not plain text is told twice, for old clients with what they cannot take replaced.
pub(super) fn of(name: &[u8], mime: &str) -> HeaderValue {
    let shown = ["text/", "image/", "audio/", "video/"].iter().any(|kind| mime.starts_with(kind))
        || matches!(mime, "application/json" | "application/xml" | "application/pdf");
    let plain = |c: u8| matches!(c, b' '..=b'~') && !matches!(c, b'"' | b'\\' | b'%' | b'/');
    let mut text = String::from(if shown { "inline" } else { "attachment" });
    text.push_str("; filename=\"");
    text.extend(name.iter().map(|&c| if plain(c) { char::from(c) } else { '_' }));
    text.push('"');
    if !name.iter().copied().all(plain) && std::str::from_utf8(name).is_ok() {
        text.push_str("; filename*=UTF-8''");
        text.extend(percent_encode(name, ATTRIBUTE));
    }
    HeaderValue::try_from(text).expect("printable ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_so_that_every_client_can_save_it() {
        for (name, mime, expected) in [
            (&b"app.war"[..], "application/octet-stream", "attachment; filename=\"app.war\""),
            (b"a b.txt", "text/plain", "inline; filename=\"a b.txt\""),
            (
                "gr\u{fc}n.xml".as_bytes(),
                "application/xml",
                "inline; filename=\"gr__n.xml\"; filename*=UTF-8''gr%C3%BCn.xml",
            ),
            (
                b"a\"; filename=x\r\n",
                "application/zip",
                "attachment; filename=\"a_; filename=x__\"; \
                 filename*=UTF-8''a%22%3B%20filename%3Dx%0D%0A",
            ),
            (b"\xff.jar", "application/java-archive", "attachment; filename=\"_.jar\""),
        ] {
            assert_eq!(of(name, mime), expected);
        }
    }
}
