//! Uploads at the primary: a body streamed into a hidden file of the watched folder, then renamed.
//!
//! Whatever fails on the way, a wrong digest or a client that goes away, leaves nothing. Whether a
//! name may enter the feed is known before the first byte is taken. Publishing is the origin's work.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Edge,
    edge::{Feed, Intake},
    error::{Answer, Fault},
    fleet,
    page::PathField,
    target,
    wait::{self, Come, Wish},
};
use crate::{
    disk::{self, FileKind, Root, Upload},
    model::{ObjectId, RelPath},
};

/// Bytes that are gathered before a thread writes them.
const BLOCK: usize = 1 << 20;
/// Of a body that is refused, what is still taken, and for how long.
const DRAINED: usize = 64 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// For any progress of a body.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// `PUT …/files/{path}`: 201 with path and SHA-256 once the file lies whole in the folder.
pub(super) async fn put(State(edge): State<Arc<Edge>>, request: Request) -> Answer {
    let (parts, mut body) = request.into_parts();
    let (feed, tail) = edge.below(&parts.uri)?;
    if !feed.is_primary() {
        return to_upstream(feed, &parts.uri);
    }
    let path = target::path_to_write(tail)?;
    let wish = Wish::of(&parts.uri)?;
    let root = intake(feed, &path)?;
    let expected = expected_digest(&parts.headers)?;
    if announced(&parts.headers).is_some_and(|size| size > edge.max_upload) {
        return Err(Fault::too_large(edge.max_upload));
    }
    let (at, target) = (Arc::clone(&root), path.clone());
    let upload =
        edge.blocking.run(move || at.upload(&target)).await.map_err(|e| refused(&path, &e))?;
    let (upload, sha256) = match receive(&edge, upload, &mut body).await {
        Ok(received) => received,
        Err(fault) => {
            drain(&mut body).await;
            return Err(fault);
        }
    };
    if expected.is_some_and(|expected| expected != sha256) {
        return Err(Fault::refused(
            "digest_mismatch",
            format!("the content's SHA-256 is {sha256}, not what Repr-Digest says; send it again"),
        ));
    }
    edge.blocking.run(move || upload.persist()).await.map_err(|error| refused(&path, &error))?;
    let mut answer = json!(PathField::from(&path));
    answer["sha256"] = Value::from(sha256.to_string());
    let since = Instant::now();
    if wish == Wish::Nothing {
        return Ok((StatusCode::CREATED, Json(answer)).into_response());
    }
    let change = (&path, Some(sha256));
    match wait::committed(&edge, feed, change, since + wish.patience(false)).await? {
        Come::Committed(head) => {
            let verdict = wish.regions(feed, &head, since).await;
            if !verdict.is_complete() {
                return Ok(fleet::told(feed, &head, &verdict));
            }
            answer["commit"] = json!(head.commit);
            answer["verified"] = json!(verdict.verified);
            answer["excused"] = json!(verdict.excused);
            Ok((StatusCode::CREATED, Json(answer)).into_response())
        }
        Come::Held(reason) => Err(not_yet(&path, &reason)),
        Come::Unknown => Err(not_yet(&path, &doing(feed))),
    }
}

/// That a file lies in the folder, and is not published.
fn not_yet(path: &RelPath, why: &str) -> Fault {
    Fault::late(format!("\"{path}\" lies in the folder and is not committed yet: {why}"))
}

/// What the feed is doing, for people.
fn doing(feed: &Feed) -> String {
    let state = feed.desk.state.borrow();
    state.detail.clone().unwrap_or_else(|| format!("the feed is {}", state.state))
}

/// `DELETE …/files/{path}`: 204 once the file is gone from the folder, 202 when the guard holds that.
pub(super) async fn delete(State(edge): State<Arc<Edge>>, request: Request) -> Answer {
    let (feed, tail) = edge.below(request.uri())?;
    if !feed.is_primary() {
        return to_upstream(feed, request.uri());
    }
    let path = target::path_to_write(tail)?;
    let wish = Wish::of(request.uri())?;
    let root = intake(feed, &path)?;
    let target = path.clone();
    let removed = edge.blocking.run(move || match root.stat(&target)? {
        Some(stat) if stat.kind == FileKind::Dir => Ok(None),
        _ => root.remove(&target).map(Some),
    });
    match removed.await.map_err(|error| refused(&path, &error))? {
        Some(true) => removed_from(&edge, feed, &path, wish).await,
        Some(false) => Err(target::no_such_path(path.as_bytes())),
        None => Err(Fault::conflict("a folder lies there; remove the files in it")),
    }
}

/// What becomes of a removal whose file is gone from the folder.
async fn removed_from(edge: &Edge, feed: &Arc<Feed>, path: &RelPath, wish: Wish) -> Answer {
    let since = Instant::now();
    match wait::committed(edge, feed, (path, None), since + wish.patience(true)).await? {
        Come::Committed(head) => {
            let verdict = wish.regions(feed, &head, since).await;
            if !verdict.is_complete() {
                return Ok(fleet::told(feed, &head, &verdict));
            }
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Come::Held(reason) => {
            let mut answer = json!(PathField::from(path));
            answer["held"] = Value::from(reason);
            Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
        }
        Come::Unknown if wish == Wish::Nothing => Ok(StatusCode::NO_CONTENT.into_response()),
        Come::Unknown => {
            let (path, doing) = (path.to_text(), doing(feed));
            Err(Fault::late(format!("the removal of \"{path}\" is not committed yet: {doing}")))
        }
    }
}

/// The folder into which a path may be written.
fn intake(feed: &Feed, path: &RelPath) -> Result<Arc<Root>, Fault> {
    let Some(Intake { root, left_out }) = &feed.intake else {
        return Err(Fault::unavailable("the feed's folder is not open yet", 5));
    };
    match left_out(path) {
        None => Ok(root.get()),
        Some(reason) => Err(Fault::refused(
            "ignored",
            format!("\"{path}\" would never enter the feed: {reason}"),
        )),
    }
}

/// A region sends who wants to write to its upstream, with the path as it came.
fn to_upstream(feed: &Feed, uri: &Uri) -> Answer {
    let (upstream, there) = {
        let state = feed.desk.state.borrow();
        (state.upstream_url.clone(), state.upstream_feed.clone())
    };
    // The feed may have another name there; what follows it goes on as it came.
    let path = uri.path_and_query().map_or(uri.path(), |both| both.as_str());
    let below = path.splitn(5, '/').nth(4).unwrap_or_default();
    let there = there.unwrap_or_else(|| feed.desk.feed.clone());
    let url =
        upstream.map(|base| format!("{}/v1/feeds/{there}/{below}", base.trim_end_matches('/')));
    let Some(url) = url.and_then(|url| HeaderValue::try_from(url).ok()) else {
        return Err(Fault::unavailable(
            "this node does not own the feed, and knows no upstream yet",
            5,
        ));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, url);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The SHA-256 in `Repr-Digest` (RFC 9530), where the client sends one.
fn expected_digest(headers: &HeaderMap) -> Result<Option<ObjectId>, Fault> {
    let lists = headers.get_all("repr-digest").iter();
    let members = lists.flat_map(|list| list.to_str().unwrap_or("?").split(',')).map(str::trim);
    let mut some = false;
    for member in members {
        some = true;
        let Some(value) = member.strip_prefix("sha-256=") else { continue };
        let base64 = value.strip_prefix(':').and_then(|value| value.strip_suffix(':'));
        let bytes = base64.and_then(|text| STANDARD.decode(text).ok());
        let digest = bytes.and_then(|bytes| ObjectId::try_from(&*bytes).ok());
        return digest.map(Some).ok_or_else(|| {
            Fault::malformed("Repr-Digest is written as sha-256=:base64 of 32 bytes:")
        });
    }
    // To take a digest and not check it would be a lie.
    if some {
        Err(Fault::malformed("Repr-Digest has no sha-256, and no other is checked"))
    } else {
        Ok(None)
    }
}

/// Takes the body in, a block at a time, and hashes it on the way.
async fn receive(
    edge: &Edge,
    upload: Upload,
    body: &mut Body,
) -> Result<(Upload, ObjectId), Fault> {
    let mut taken = 0;
    let mut block = BytesMut::with_capacity(BLOCK);
    let mut writing = Writing { upload, hash: Sha256::new() };
    loop {
        let frame = tokio::time::timeout(STALL_TIMEOUT, body.frame()).await;
        let frame = frame.map_err(|_| Fault::malformed("the body stopped coming"))?;
        let Some(frame) = frame else { break };
        let frame =
            frame.map_err(|error| Fault::malformed(format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        taken += data.len() as u64;
        if taken > edge.max_upload {
            return Err(Fault::too_large(edge.max_upload));
        }
        edge.metrics.received(data.len() as u64);
        block.extend_from_slice(&data);
        if block.len() >= BLOCK {
            writing = write(edge, writing, block.split().freeze()).await?;
        }
    }
    let Writing { upload, hash } = write(edge, writing, block.freeze()).await?;
    Ok((upload, ObjectId::from_bytes(hash.finalize().into())))
}

/// Takes some of what is still coming and throws it away: a client that is cut off while it sends
/// would not hear why.
async fn drain(body: &mut Body) {
    let drained = async {
        let mut left = DRAINED;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Who sends more, or slower, is cut off.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

struct Writing {
    upload: Upload,
    hash: Sha256,
}

async fn write(edge: &Edge, mut writing: Writing, block: Bytes) -> Result<Writing, Fault> {
    let written = edge.blocking.run(move || {
        writing.hash.update(&block);
        writing.upload.file().write_all(&block).map(|()| writing)
    });
    written.await.map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Fault::unavailable("there is no space left for this file", 60)
        }
        _ => Fault::internal(&error),
    })
}

/// What the folder's refusal means to a client.
fn refused(path: &RelPath, error: &disk::Error) -> Fault {
    use std::io::ErrorKind::{
        AlreadyExists, DirectoryNotEmpty, IsADirectory, NotADirectory, NotFound,
    };
    let disk::Error::Io { source, .. } = error else { return Fault::internal(error) };
    // A link on the way is refused by the system as too many links, whatever it points at.
    let link = source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    let escape = source.raw_os_error() == Some(rustix::io::Errno::XDEV.raw_os_error());
    match source.kind() {
        IsADirectory | AlreadyExists | DirectoryNotEmpty => {
            Fault::conflict(format!("a folder lies at \"{path}\""))
        }
        NotADirectory | NotFound => {
            Fault::conflict(format!("something that is no folder lies on the way to \"{path}\""))
        }
        _ if link || escape => Fault::conflict(format!(
            "a link lies on the way to \"{path}\"; links are not written through"
        )),
        _ => Fault::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_checked_or_refused() {
        let digest = |value: &str| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("repr-digest"),
                value.parse().unwrap(),
            )]);
            expected_digest(&headers)
        };
        let zero = ObjectId::from_bytes([0; 32]);
        let good = format!("sha-256=:{}:", STANDARD.encode([0; 32]));
        assert_eq!(digest(&good).unwrap(), Some(zero));
        assert_eq!(digest(&format!("md5=:AA==:, {good}")).unwrap(), Some(zero));
        for bad in ["sha-256=:AA==:", "sha-256=AA", "sha-512=:AA==:", "x", ""] {
            assert!(digest(bad).is_err(), "{bad}");
        }
        assert_eq!(expected_digest(&HeaderMap::new()).unwrap(), None);
    }
}
