//! What is asked of the fleet as a whole: whether every region has verified a commit; who is to
//! stay where it is; who owns the feed.
//!
//! Answers come from what the nodes themselves have reported, never from what was sent to them. A
//! decision is answered once it is durable and in force.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use serde_json::json;

use tokio::sync::oneshot;

use super::{
    Edge,
    access::Caller,
    control::{Taken, answered, fields},
    edge::Feed,
    error::{Answer, Fault},
    target,
};
use crate::{
    bus::{Answer as Reply, Decision, Follower, Verdict},
    model::{Head, RegionName, Target},
    sys,
};

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
        .store(feed, move |store| {
            let is_published = store.is_published(commit)?;
            is_published.then(|| store.commit(commit).map(|found| found.head)).transpose()
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whom {
    node: Option<String>,
    region: Option<RegionName>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    upstream: Option<String>,
}

/// `POST …/pause`: a node, a region's node, or all of them stay where they are.
pub(super) async fn pause(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    parts: Parts,
    body: Taken,
) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let target = target_of(feed, fields(body)?)?;
    let by = caller.name();
    decide(feed, |answer| Decision::Pause { target, by, answer }).await
}

/// `POST …/resume`: they go on.
pub(super) async fn resume(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let target = target_of(feed, fields(body)?)?;
    decide(feed, |answer| Decision::Resume { target, answer }).await
}

/// `POST …/promote`: this node owns the feed from now on.
pub(super) async fn promote(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let Whom { node: None, region: None } = fields(body)? else {
        return Err(Fault::malformed("promote is asked of the node that is to own the feed"));
    };
    decide(feed, Decision::Promote).await
}

/// `POST …/demote`: this node mirrors the feed from now on.
pub(super) async fn demote(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let Owner { upstream } = fields(body)?;
    let is_url = |url: &String| {
        ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme))
            && url.parse::<http::Uri>().is_ok_and(|url| url.host().is_some())
    };
    if upstream.as_ref().is_some_and(|url| !is_url(url)) {
        return Err(Fault::malformed("upstream is the URL of a node, as in http://hub:7873"));
    }
    decide(feed, |answer| Decision::Demote { upstream, answer }).await
}

/// Whom a command is about: a node by its id or its label, a region, or all.
fn target_of(feed: &Feed, whom: Whom) -> Result<Target, Fault> {
    let name = match whom {
        Whom { node: None, region: None } => return Ok(Target::Feed),
        Whom { node: None, region: Some(region) } => return Ok(Target::Region(region)),
        Whom { node: Some(name), region: None } => name,
        _ => return Err(Fault::malformed("name a node or a region, not both")),
    };
    let followers = feed.desk.followers();
    let is_named =
        |known: &&Follower| known.hello.node.as_str() == name || known.hello.label.as_str() == name;
    if let Some(known) = followers.iter().find(is_named) {
        return Ok(Target::Node(known.hello.node.clone()));
    }
    let below = followers.iter().flat_map(|known| known.below.values().map(|it| &it.report));
    let via = below.into_iter().find(|it| it.node.as_str() == name || it.label.as_str() == name);
    Err(match via {
        Some(report) => {
            Fault::conflict(format!("\"{name}\" follows the node {}: ask there", report.via))
        }
        None => Fault::not_found(
            "no_such_node",
            format!("no node \"{name}\" follows this feed here; `depsync nodes` lists them"),
        ),
    })
}

async fn decide(feed: &Feed, decision: impl FnOnce(Reply) -> Decision) -> Answer {
    let (answer, outcome) = oneshot::channel();
    if !feed.desk.decide(decision(answer)) {
        return Err(Fault::unavailable("this feed takes no decisions now", 5));
    }
    answered(feed, outcome).await
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
