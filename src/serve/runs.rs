//! The history of what this node did: commits, fetches and checkouts, newest first.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    response::IntoResponse,
};
use http::request::Parts;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge,
    error::{Answer, Fault},
    feeds,
    page::{Page, PathField},
};
use crate::{
    ledger::{NewRun, Run},
    model::FeedName,
};

#[derive(Deserialize)]
struct Filter {
    feed: Option<FeedName>,
}

/// `GET /v1/runs?feed=`: of one feed, or of all.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let page = Page::of(&parts.uri)?;
    let Query(Filter { feed }) = Query::try_from_uri(&parts.uri)
        .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
    let after = page.after.as_deref().map(str::parse).transpose();
    let after = after.map_err(|_| Fault::malformed("after is the `next` of the page before"))?;
    let (ledger, limit) = (Arc::clone(&edge.ledger), page.limit());
    // One more than asked for tells whether there is a next page.
    let runs = edge.blocking.run(move || ledger.runs(feed.as_ref(), limit + 1, after)).await;
    let mut runs = runs.map_err(|error| Fault::internal(&error))?;
    let more = runs.len() > limit;
    runs.truncate(limit);
    let mut answer = json!({ "runs": runs.iter().map(run_of).collect::<Vec<_>>() });
    if let (true, Some(last)) = (more, runs.last()) {
        answer["next"] = Value::from(last.id.to_string());
    }
    Ok(Json(answer).into_response())
}

fn run_of(Run { id, run }: &Run) -> Value {
    let NewRun { feed, kind, started, took, outcome, detail, commit, files, bytes, names } = run;
    let names: Vec<PathField> = names.iter().map(PathField::from).collect();
    json!({
        "id": id, "feed": feed, "kind": kind.as_str(), "started": feeds::moment(*started),
        "took_ms": took.as_secs_f64() * 1e3, "outcome": outcome.as_str(), "detail": detail,
        "commit": commit, "files": files, "bytes": bytes, "names": names,
    })
}
