//! Commands: what the edge asks of the stage that owns a feed, and what that answers.
//!
//! Nothing is decided here. A stage that does not answer in time is said to be busy; the command may
//! still be done.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    response::IntoResponse,
};
use http::{StatusCode, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Edge, MAX_COMMAND,
    access::Caller,
    edge::Feed,
    error::{Answer, Fault},
};
use crate::{
    bus::{Answer as Reply, Approval, Request},
    model::RelPath,
};

/// A scan of a large folder, or a commit of many files, may take this long.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoFields {}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApprovalFields {
    id: Option<String>,
    path: Option<String>,
    #[serde(default)]
    root: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RejectionFields {
    id: Option<String>,
}

/// `POST …/sync`: look now.
pub(super) async fn sync(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let NoFields {} = fields(body)?;
    ask(&edge, &parts, Request::Sync).await
}

/// `POST …/hold`: gather changes, publish nothing.
pub(super) async fn hold(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    parts: Parts,
    body: Taken,
) -> Answer {
    let NoFields {} = fields(body)?;
    let by = caller.name();
    ask(&edge, &parts, |answer| Request::Hold { by, answer }).await
}

/// `POST …/release`: publish what was gathered.
pub(super) async fn release(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let NoFields {} = fields(body)?;
    ask(&edge, &parts, Request::Release).await
}

/// `POST …/approve`: publish what is held: a list, a path, or the replaced root.
pub(super) async fn approve(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let approved = match fields(body)? {
        ApprovalFields { id, path: None, root: false } => Approval::Deletions(id),
        ApprovalFields { id: None, path: Some(path), root: false } => {
            let path = RelPath::parse(path.as_bytes());
            Approval::Path(path.map_err(|bad| Fault::malformed(bad.to_string()))?)
        }
        ApprovalFields { id: None, path: None, root: true } => Approval::Root,
        _ => return Err(Fault::malformed("approve takes one of \"id\", \"path\" and \"root\"")),
    };
    ask(&edge, &parts, |answer| Request::Approve(approved, answer)).await
}

/// `POST …/reject`: put back what the held deletions removed.
pub(super) async fn reject(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let RejectionFields { id } = fields(body)?;
    ask(&edge, &parts, |answer| Request::Reject { id, answer }).await
}

/// A command's body, or that it is too large.
pub(super) type Taken = Result<Bytes, BytesRejection>;

/// The fields of a command's body; an empty body has none.
pub(super) fn fields<T: DeserializeOwned + Default>(body: Taken) -> Result<T, Fault> {
    let body = body.map_err(|error| match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Fault::too_large(MAX_COMMAND as u64),
        _ => Fault::malformed(error.body_text()),
    })?;
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&body).map_err(|error| {
        Fault::malformed(format!("the body is not what the command takes: {error}"))
    })
}

pub(super) async fn ask(
    edge: &Edge,
    parts: &Parts,
    request: impl FnOnce(Reply) -> Request,
) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let (answer, outcome) = oneshot::channel();
    if !feed.desk.ask(request(answer)) {
        return Err(Fault::unavailable("this feed takes no commands now", 5));
    }
    answered(feed, outcome).await
}

/// What a command's outcome means to whoever gave it.
pub(super) async fn answered(
    feed: &Feed,
    outcome: oneshot::Receiver<Result<(), String>>,
) -> Answer {
    match tokio::time::timeout(TIMEOUT, outcome).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({ "feed": feed.desk.feed, "done": true })).into_response()),
        Ok(Ok(Err(reason))) => Err(Fault::conflict(reason)),
        Ok(Err(_)) => Err(Fault::unavailable("this node is shutting down", 5)),
        Err(_) => Err(Fault::unavailable("the feed is still busy with it; look at its state", 10)),
    }
}
