//! What is asked of the fleet as a whole: whether every region has verified a commit.
//!
//! Answers from what the nodes themselves have reported, never from what was sent to them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use serde_json::json;

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
    target,
};
use crate::{bus::Verdict, model::Head, sys};

/// How long one request may wait for the fleet, and how long it does unless told.
const LONGEST_WAIT: u64 = 3_600;
const USUAL_WAIT: u64 = 60;

#[derive(Deserialize)]
struct Wish {
    commit: Option<String>,
    timeout: Option<String>,
}

/// `GET …/wait?commit=&timeout=60s`: 200 once every region has verified the commit (by default the
/// newest), else 504 naming those that have not. Whoever is paused, pinned or standing by is listed
/// and not waited for.
pub(super) async fn wait(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let Query(wish) = Query::<Wish>::try_from_uri(&parts.uri)
        .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
    let head = match &wish.commit {
        Some(commit) => published(&edge, feed, commit).await?,
        None => feed.desk.head().ok_or_else(|| {
            Fault::not_found("nothing_published", "nothing is published in this feed yet")
        })?,
    };
    let limit = timeout(wish.timeout.as_deref())?;
    let verdict = feed.desk.wait_verified(&head, Instant::now() + limit).await;
    Ok(told(feed, &head, &verdict))
}

async fn published(edge: &Edge, feed: &Feed, commit: &str) -> Result<Head, Fault> {
    let commit = target::commit(commit)?;
    let found = edge
        .store(feed, move |store| match store.is_published(commit)? {
            true => store.commit(commit).map(|found| Some(found.head)),
            false => Ok(None),
        })
        .await?;
    found.ok_or_else(|| {
        Fault::not_found("no_such_commit", format!("commit {commit} is not published here"))
    })
}

/// A number of seconds, with or without its unit; a bound keeps connections from piling up.
pub(super) fn timeout(text: Option<&str>) -> Result<Duration, Fault> {
    let Some(text) = text else { return Ok(Duration::from_secs(USUAL_WAIT)) };
    let (digits, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => 0,
    };
    let secs = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(factor));
    match secs {
        Some(secs @ 0..=LONGEST_WAIT) if factor > 0 => Ok(Duration::from_secs(secs)),
        _ => Err(Fault::malformed(format!("timeout is as in 60s, and 1h at most, not \"{text}\""))),
    }
}

/// The verdict for programs: 504 while somebody lacks the commit.
pub(super) fn told(feed: &Feed, head: &Head, verdict: &Verdict) -> Response {
    let mut body = json!({
        "feed": feed.desk.feed, "commit": head.commit, "epoch": head.epoch, "seq": head.seq,
        "verified": verdict.verified, "lacking": verdict.lacking, "excused": verdict.excused,
        "at": super::feeds::moment(sys::now()),
    });
    if verdict.is_complete() {
        return Json(body).into_response();
    }
    body["error"] = json!("not_verified");
    body["message"] =
        json!(format!("commit {} is not verified at: {}", head.commit.short(), verdict.lacks()));
    (StatusCode::GATEWAY_TIMEOUT, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_bounded() {
        for (text, secs) in [(None, 60), (Some("0"), 0), (Some("90s"), 90), (Some("5m"), 300)] {
            assert_eq!(timeout(text).unwrap().as_secs(), secs, "{text:?}");
        }
        for text in ["", "s", "-1s", "2h", "1d", "99999999999999999999s", "1.5s"] {
            assert!(timeout(Some(text)).is_err(), "{text}");
        }
    }
}
