//! A folder of a published version: JSON for programs, a plain page for browsers.
//!
//! Names are bytes: what is not UTF-8 is shown lossy, linked exactly, and given in base64 in JSON.
//! Every name is escaped in the page, which runs no script and loads nothing.

use std::{fmt::Write, sync::Arc};

use axum::{
    Json,
    response::{Html, IntoResponse},
};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Edge,
    document::{Found, Place},
    edge::Feed,
    error::Answer,
    page::{Page, Paged, base64_if_needed},
    target,
};
use crate::{
    model::{Entry, Kind, Meta},
    store::{self, Store},
};

/// One entry of a folder.
#[derive(Debug, Serialize)]
pub(super) struct Item {
    #[serde(skip)]
    raw: Vec<u8>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_b64: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Of a symlink.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Permission bits in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime: Option<String>,
}

/// Answers with the listing of the folder that was found at a place.
pub(super) async fn folder(
    edge: &Edge,
    feed: &Arc<Feed>,
    parts: &Parts,
    place: &Place,
    found: &Found,
) -> Answer {
    let Found::Folder(real) = found else {
        return Err(target::no_such_path(place.1.as_bytes()));
    };
    let (commit, page, real) = (place.0, Page::of(&parts.uri)?, real.clone());
    let items = edge.store(feed, move |store| read(store, &(commit, real), &page)).await?;
    let items = items.ok_or_else(|| target::no_such_path(place.1.as_bytes()))?;
    let mut response = if wants_page(&parts.headers) {
        Html(page_of(parts.uri.path(), place, &items)).into_response()
    } else {
        Json(document(feed, place, items)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    let policy = "default-src 'none'; style-src 'unsafe-inline'; sandbox allow-top-navigation-by-user-activation";
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    if let Ok(commit) = HeaderValue::try_from(commit.to_string()) {
        headers.insert("x-depsync-commit", commit);
    }
    Ok(response)
}

/// One page of a folder's entries; none when there is no such folder. Blocks.
pub(super) fn read(
    store: &Store,
    place: &Place,
    page: &Page,
) -> store::Result<Option<Paged<Item>>> {
    let Some(entries) = store.list(place.0, &place.1)? else { return Ok(None) };
    let Paged { items, next } = page.cut(entries, |(name, _)| target::encode(name));
    let items = items.into_iter().map(|(name, entry)| Item::new(store, name, &entry));
    Ok(Some(Paged { items: items.collect::<store::Result<_>>()?, next }))
}

impl Item {
    fn new(store: &Store, raw: Vec<u8>, entry: &Entry) -> store::Result<Self> {
        let name = String::from_utf8_lossy(&raw).into_owned();
        let name_b64 = base64_if_needed(&raw);
        let mut item = Item {
            raw,
            name,
            name_b64,
            kind: "folder",
            size: None,
            target: None,
            mode: mode(&entry.meta, &entry.kind).map(|mode| format!("{mode:04o}")),
            mtime: entry.meta.mtime.and_then(|at| time(at.secs, at.nanos)),
        };
        match entry.kind {
            Kind::File { blob, .. } => {
                (item.kind, item.size) = ("file", Some(store.size(blob)?));
            }
            Kind::Symlink { blob } => {
                let target = store.read_blob(blob)?;
                (item.kind, item.target) =
                    ("symlink", Some(String::from_utf8_lossy(&target).into_owned()));
            }
            Kind::Dir => {}
        }
        Ok(item)
    }
}

/// The permission bits: as recorded, else what git keeps of them.
pub(super) fn mode(meta: &Meta, kind: &Kind) -> Option<u32> {
    meta.mode.or(match kind {
        Kind::File { executable: true, .. } => Some(0o755),
        Kind::File { .. } => Some(0o644),
        Kind::Symlink { .. } | Kind::Dir => None,
    })
}

/// A time in RFC 3339; none when no calendar holds it.
pub(super) fn time(secs: i64, nanos: u32) -> Option<String> {
    let at = chrono::DateTime::from_timestamp(secs, nanos)?;
    Some(at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
}

/// A page of a folder as JSON.
pub(super) fn document(feed: &Feed, place: &Place, items: Paged<Item>) -> Value {
    let mut object = items.json("entries");
    object["feed"] = json!(feed.desk.feed);
    object["commit"] = json!(place.0);
    object["path"] = json!(place.1.to_text());
    if let Some(bytes) = base64_if_needed(place.1.as_bytes()) {
        object["path_b64"] = json!(bytes);
    }
    object
}

fn wants_page(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(header::ACCEPT).iter();
    accept.filter_map(|value| value.to_str().ok()).any(|value| value.contains("text/html"))
}

fn page_of(url: &str, place: &Place, items: &Paged<Item>) -> String {
    let base = url.trim_end_matches('/');
    let title = escape(&format!("/{}", place.1.to_text()));
    let mut rows = String::new();
    if !place.1.is_root() {
        let up = base.rfind('/').map_or("", |at| &base[..at]);
        row(&mut rows, &format!("{}/", escape(up)), "..", "", "");
    }
    for item in &items.items {
        let slash = if item.kind == "folder" { "/" } else { "" };
        let href = format!("{}/{}{slash}", escape(base), target::encode(&item.raw));
        let size = item.size.map(|size| size.to_string()).unwrap_or_default();
        let mtime = item.mtime.as_deref().unwrap_or_default();
        row(&mut rows, &href, &format!("{}{slash}", escape(&item.name)), &size, mtime);
    }
    if let Some(next) = &items.next {
        let href = format!("{}/?after={}", escape(base), target::encode(next.as_bytes()));
        row(&mut rows, &href, "more …", "", "");
    }
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\
         <style>body{{font-family:monospace}}td{{padding-right:2em}}</style>\
         <h1>{title}</h1><table>{rows}</table></html>\n"
    )
}

fn row(rows: &mut String, href: &str, name: &str, size: &str, mtime: &str) {
    let written = write!(
        rows,
        "<tr><td><a href=\"{href}\">{name}</a></td><td align=\"right\">{size}</td><td>{mtime}</td></tr>"
    );
    written.expect("writing to a string never fails");
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            character => escaped.push(character),
        }
    }
    escaped
}

/// A commit that is asked for by its digits, as JSON has it.
pub(super) fn commit_json(commit: &store::Commit) -> Value {
    let store::Commit { id, head, node, parent, time: at, author, subject, .. } = commit;
    json!({
        "commit": id, "epoch": head.epoch, "seq": head.seq, "node": node, "parent": parent,
        "time": time(*at, 0), "author": author, "subject": subject,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Oid, RelPath};

    #[test]
    fn a_page_escapes_every_name() {
        let item = |raw: &[u8], kind| Item {
            raw: raw.to_vec(),
            name: String::from_utf8_lossy(raw).into_owned(),
            name_b64: None,
            kind,
            size: Some(7),
            target: None,
            mode: None,
            mtime: None,
        };
        let items = vec![item(b"<script>alert('x')</script>", "file"), item(b"a\"b\xff", "folder")];
        let place = (Oid::from_bytes([1; 20]), RelPath::parse(b"x/<b>").unwrap());
        let page = page_of("/v1/feeds/f/files/x/%3Cb%3E/", &place, &Paged { items, next: None });
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
        assert!(page.contains("href=\"/v1/feeds/f/files/x/%3Cb%3E/a%22b%FF/\""), "{page}");
        assert!(page.contains("href=\"/v1/feeds/f/files/x/\">..<"), "{page}");
    }
}
