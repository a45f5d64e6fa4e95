//! `diff --patch`: what changed inside files of text, line by line.
//!
//! Both versions are downloaded, up to 1 MiB each; what is larger, or is no text, is told by its size.
//! A link is never followed: it is told as one. So is content that is kept no more, and what comes after
//! it is shown.

use std::fmt::Write;

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

use super::{
    client::{Client, Refused},
    paint,
    table::{plain, word},
    target::{FeedArg, encoded},
};
use crate::model::{Oid, RelPath};

/// A larger file is no text that a person reads as a difference.
const MAX_TEXT: usize = 1 << 20;
/// Lines around a change.
const CONTEXT: usize = 3;

/// One side of a difference.
enum Side {
    Nothing,
    Text(String),
    Link,
    Folder,
    /// Too old to be kept, or revoked.
    Gone,
    /// So many bytes that are no text.
    Other(u64),
    /// More than a text may have; how many more is not said.
    Large,
}

impl Side {
    fn told(&self) -> String {
        match self {
            Side::Nothing => "nothing".to_owned(),
            Side::Text(text) => format!("a text of {} bytes", text.len()),
            Side::Link => "a link".to_owned(),
            Side::Folder => "a folder".to_owned(),
            Side::Gone => "content that is kept no more".to_owned(),
            Side::Large => format!("more than {MAX_TEXT} bytes"),
            Side::Other(bytes) => format!("{bytes} bytes"),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Side::Nothing => Some(""),
            Side::Text(text) => Some(text),
            Side::Link | Side::Folder | Side::Gone | Side::Other(_) | Side::Large => None,
        }
    }
}

/// Prints what one change did.
pub(super) async fn show(
    client: &Client,
    feed: &FeedArg,
    (from, to): (Option<Oid>, Oid),
    change: &Value,
) -> Result<()> {
    let path = path(change)?;
    let name = plain(&word(&change["path"]));
    let before = side(client, feed, from, &path, &change["before"]).await?;
    let after = side(client, feed, Some(to), &path, &change["after"]).await?;
    println!("{}", paint::heading(&format!("{} {name}", word(&change["status"]))));
    match (before.text(), after.text()) {
        (Some(old), Some(new)) if old == new => println!("  the same content"),
        (Some(old), Some(new)) => print!("{}", unified(old, new)),
        _ => println!("  {}, before: {}", after.told(), before.told()),
    }
    Ok(())
}

fn path(change: &Value) -> Result<RelPath> {
    let bytes = match change["path_b64"].as_str() {
        Some(encoded) => BASE64_STANDARD.decode(encoded).context("path_b64 is not base64")?,
        None => word(&change["path"]).into_bytes(),
    };
    Ok(RelPath::parse(&bytes)?)
}

async fn side(
    client: &Client,
    feed: &FeedArg,
    commit: Option<Oid>,
    path: &RelPath,
    kind: &Value,
) -> Result<Side> {
    let Some((commit, kind)) = commit.zip(kind.as_str()) else { return Ok(Side::Nothing) };
    match kind {
        "file" => {}
        "folder" => return Ok(Side::Folder),
        _ => return Ok(Side::Link),
    }
    let url = client.url(&feed.api_of(&format!("at/{commit}/{}", encoded(path))))?;
    let mut answer = match client.send(Method::GET, url, |request| request).await {
        Err(error) if is_gone(&error) => return Ok(Side::Gone),
        answer => answer?,
    };
    let length = answer.content_length().unwrap_or_default();
    if length > MAX_TEXT as u64 {
        return Ok(Side::Other(length));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.context("the file does not arrive")? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_TEXT {
            return Ok(Side::Large);
        }
    }
    let size = bytes.len() as u64;
    let is_text = !bytes.contains(&0);
    Ok(match String::from_utf8(bytes) {
        Ok(text) if is_text => Side::Text(text),
        _ => Side::Other(size),
    })
}

fn is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(|Refused { status, .. }| *status == StatusCode::GONE)
}

/// The lines that differ, with those around them, as `diff -u` has them.
fn unified(old: &str, new: &str) -> String {
    let diff = TextDiff::from_lines(old, new);
    let mut out = String::new();
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        let _ = writeln!(out, "{}", hunk.header());
        for change in hunk.iter_changes() {
            let line = plain(change.value().trim_end_matches(['\n', '\r']));
            let end = if change.missing_newline() { "\n\\ no newline at the end" } else { "" };
            let line = match change.tag() {
                ChangeTag::Delete => paint::bad(&format!("-{line}")).to_string(),
                ChangeTag::Insert => paint::good(&format!("+{line}")).to_string(),
                ChangeTag::Equal => format!(" {line}"),
            };
            let _ = writeln!(out, "{line}{end}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_differ_as_in_diff_u() {
        let old = "a\nb\nc\nd\ne\nf\ng\n";
        let new = "a\nb\nc\nD\u{1b}[31m\ne\nf\ng";
        let said = unified(old, new);
        assert!(said.starts_with("@@ -1,7 +1,7 @@\n a\n b\n c\n-d\n"), "{said}");
        assert!(said.contains("+D\u{fffd}[31m\n"), "{said}");
        assert!(said.ends_with("\\ no newline at the end\n"), "{said}");
        assert_eq!(unified("a\n", "a\n"), "");
    }
}
