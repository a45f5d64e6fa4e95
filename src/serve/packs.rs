//! Replication: the pack from one published commit to another, and the sending of opened files.
//!
//! The pack is made once however many ask (the store sees to that); its checksum is its entity tag, so
//! a transfer that was cut off goes on where it was.

use std::{fs::File, io::ErrorKind, ops::Range, path::PathBuf, sync::Arc};

use axum::{body::Body, extract::State, response::Response};
use http::{HeaderValue, Method, StatusCode, header, request::Parts};

use super::{
    Edge,
    error::{Answer, Fault},
    range::{self, Verdict},
    target,
};
use crate::{
    model::{Oid, Traffic},
    store::{self, Store},
};

/// A file to be sent to a mirror.
pub(super) struct Sending {
    pub(super) file: File,
    pub(super) size: u64,
    /// What names exactly these bytes.
    pub(super) checksum: String,
}

/// `GET …/packs/{have}..{want}`
pub(super) async fn get(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let (have, want) = target::pair(tail)?;
    let have = if have == "0" { None } else { Some(target::commit(have)?) };
    let want = target::commit(want)?;
    let alone = depth(&parts)?;
    let desk = Arc::clone(&feed.desk);
    let open = move || {
        if alone { open_alone(&desk.store, want) } else { open(&desk.store, have, want) }
    };
    match edge.packing.run(open).await {
        Ok(sending) => {
            edge.metrics.served_pack();
            send(&edge, &parts, sending, Traffic::Replication)
        }
        Err(store::Error::UnknownCommit(commit)) if Some(commit) == have => Err(Fault::not_found(
            "unknown_have",
            format!(
                "commit {commit} is not in this feed's history; ask with an older one, or with 0"
            ),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Whether the version alone is wanted, without its history.
fn depth(parts: &Parts) -> Result<bool, Fault> {
    let mut asked = parts.uri.query().unwrap_or_default().split('&');
    match asked.find_map(|pair| pair.strip_prefix("depth=")) {
        None => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(Fault::malformed("there is only depth=1: the version without its history")),
    }
}

/// As `open`, for a version without its history. Blocks.
fn open_alone(store: &Store, want: Oid) -> store::Result<Sending> {
    let opened = open_spooled(|| {
        let pack = store.pack_alone(want)?;
        Ok(Some((pack.path, pack.size, pack.checksum.to_string())))
    });
    Ok(opened?.expect("there is always a pack"))
}

/// Makes a pack, or finds the one that is made, and opens it. Blocks.
fn open(store: &Store, have: Option<Oid>, want: Oid) -> store::Result<Sending> {
    let opened = open_spooled(|| {
        let pack = store.pack(have, want)?;
        Ok(Some((pack.path, pack.size, pack.checksum.to_string())))
    });
    Ok(opened?.expect("there is always a pack"))
}

/// Opens what `make` makes or finds in the spool: path, size, checksum. Blocks.
pub(super) fn open_spooled(
    make: impl Fn() -> store::Result<Option<(PathBuf, u64, String)>>,
) -> store::Result<Option<Sending>> {
    let mut tries = 0;
    loop {
        let Some((path, size, checksum)) = make()? else { return Ok(None) };
        match File::open(&path) {
            Ok(file) => return Ok(Some(Sending { file, size, checksum })),
            // Dropped from the spool between the two calls: it is made again, with the same bytes.
            Err(error) if error.kind() == ErrorKind::NotFound && tries < 3 => tries += 1,
            Err(source) => return Err(store::Error::Io { action: "open", path, source }),
        }
    }
}

/// Sends a file: whole, or the range that is asked for.
pub(super) fn send(edge: &Edge, parts: &Parts, sending: Sending, class: Traffic) -> Answer {
    let Sending { file, size, checksum } = sending;
    let etag = format!("\"{checksum}\"");
    let (status, bytes) = match range::judge(&parts.method, &parts.headers, &etag, size) {
        Verdict::Whole => (StatusCode::OK, 0..size),
        Verdict::Part(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, 0..0),
        Verdict::PreconditionFailed => return Err(Fault::precondition()),
        Verdict::Unsatisfiable => return Err(Fault::range(size)),
    };
    let head = headers(&etag, status, &bytes, size);
    let body = if parts.method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        Body::empty()
    } else {
        edge.file_body(file, bytes, edge.receiver(parts, class))
    };
    head.body(body).map_err(|error| Fault::internal(&error))
}

fn headers(
    etag: &str,
    status: StatusCode,
    bytes: &Range<u64>,
    size: u64,
) -> http::response::Builder {
    let head = Response::builder()
        .status(status)
        .header(header::ETAG, etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, "private, immutable")
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    match status {
        StatusCode::NOT_MODIFIED => head,
        StatusCode::PARTIAL_CONTENT => head
            .header(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1),
            )
            .header(header::CONTENT_LENGTH, bytes.end - bytes.start),
        _ => head.header(header::CONTENT_LENGTH, size),
    }
}
