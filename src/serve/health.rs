//! Health that tells the truth: alive, ready to serve, and everything as it should be.
//!
//! `livez` says that the edge answers. `readyz` says that every feed can be served and that no stage
//! has stopped. `healthz` says more, and is not well while anything needs an operator.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::{Edge, edge::Feed, error::Answer};
use crate::{
    bus::{self, Held, State as FeedState},
    sys,
};

/// An upstream that was not heard for this long is away.
const SILENCE: Duration = Duration::from_secs(20);
/// A region that has lacked the newest version for this long, with nobody's consent, is stale; one
/// that was not heard for 20 s is, whatever it has.
pub(super) const MAX_LAG: Duration = Duration::from_secs(60);
/// A change that waits this long needs somebody; before, it may be an upload that is slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// A stage goes round its loop every few seconds; one that has not for so long is stuck in a system
/// call, a hook's place or a fault of ours.
const STUCK: Duration = Duration::from_secs(20);

/// `GET /livez`: which node lives here, for an upstream that tries the address before it leads
/// anybody to it.
pub(super) async fn live(State(edge): State<Arc<Edge>>) -> impl IntoResponse {
    ([(bus::reach::NODE_HEADER, edge.node.to_string())], "ok\n")
}

/// `GET /readyz`
pub(super) async fn ready(State(edge): State<Arc<Edge>>) -> Answer {
    let faults = edge.feeds().filter_map(|feed| Some(fault_json(feed, &not_ready(feed)?)));
    Ok(answer("ready", &faults.collect::<Vec<_>>(), None))
}

/// `GET /healthz`; with `?verbose` also what each stage is at, and when it last moved.
pub(super) async fn health(State(edge): State<Arc<Edge>>, uri: Uri) -> Answer {
    let faults = edge.feeds().filter_map(|feed| {
        let fault = not_ready(feed)
            .or_else(|| unwell(&feed.desk.state.borrow(), sys::now()))
            .or_else(|| stale(feed));
        let fault = fault.or_else(|| bad_hook(feed));
        Some(fault_json(feed, &fault?))
    });
    let away = edge.board.away.borrow().clone();
    let away = away.map(|fault| json!({ "state": "unheard", "fault": fault }));
    let is_verbose = uri.query().is_some_and(|query| query.split('&').any(|it| it == "verbose"));
    let stages = is_verbose.then(|| edge.feeds().map(|feed| stage_json(feed)).collect());
    let mut response = answer("ok", &faults.chain(away).collect::<Vec<_>>(), stages);
    if let Ok(node) = http::HeaderValue::try_from(edge.node.as_str()) {
        response.headers_mut().insert("x-depsync-node", node);
    }
    Ok(response)
}

fn answer(well: &str, faults: &[Value], stages: Option<Vec<Value>>) -> axum::response::Response {
    let (status, mut body) = match faults {
        [] => (StatusCode::OK, json!({ "status": well })),
        _ => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "degraded", "faults": faults })),
    };
    if let Some(stages) = stages {
        body["stages"] = json!(stages);
    }
    (status, Json(body)).into_response()
}

fn stage_json(feed: &Feed) -> Value {
    let state = feed.desk.state.borrow();
    let hooks = feed.desk.hooks.borrow();
    json!({
        "feed": feed.desk.feed, "stage": if state.primary { "origin" } else { "replica" },
        "state": state.state, "detail": state.detail, "last_error": state.last_error,
        "moved_ms": feed.desk.stuck_for().as_millis(), "hooks": *hooks,
        "heard_ms": state.heartbeat.map(|heard| heard.elapsed().as_millis()),
    })
}

fn fault_json(feed: &Feed, fault: &str) -> Value {
    json!({ "feed": feed.desk.feed, "state": feed.desk.state.borrow().state, "fault": fault })
}

/// Why a feed cannot be served, or its stage no longer works.
fn not_ready(feed: &Feed) -> Option<String> {
    let state = feed.desk.state.borrow();
    let stopped = ["stopped", "failing", "refused", "full"].contains(&state.state);
    let stuck_for = feed.desk.stuck_for();
    if stuck_for > STUCK {
        return Some(format!("the stage has not moved for {} s", stuck_for.as_secs()));
    }
    let why = || state.last_error.clone().or_else(|| state.detail.clone()).unwrap_or_default();
    if stopped {
        return Some(format!("the feed is {}: {}", state.state, why()));
    }
    if state.state.is_empty() || state.state == "importing" {
        return Some("the feed is not up yet".to_owned());
    }
    let serves = state.primary || feed.desk.head().is_some();
    (!serves).then(|| "nothing has come from the upstream yet".to_owned())
}

fn bad_hook(feed: &Feed) -> Option<String> {
    let hooks = feed.desk.hooks.borrow();
    let (hook, reason) = hooks.iter().next()?;
    Some(format!("the hook {hook}: {reason}"))
}

/// What an operator should look at, although the feed is served.
fn unwell(state: &FeedState, now: SystemTime) -> Option<String> {
    if let Some(error) = &state.last_error {
        return Some(error.clone());
    }
    if !state.primary && state.heartbeat.is_none_or(|heard| heard.elapsed() > SILENCE) {
        let why = state.detail.clone().unwrap_or_else(|| "it is silent".to_owned());
        return Some(format!("the upstream is not heard: {why}"));
    }
    if let Some(deletions) = &state.deletions {
        return Some(format!("{} deletions wait for approve or reject", deletions.files));
    }
    if let Some(why) = &state.unwatched {
        return Some(why.clone());
    }
    let long = |held: &&Held| now.duration_since(held.since).is_ok_and(|age| age >= PATIENCE);
    let held = state.held.iter().find(long)?;
    Some(format!("\"{}\" waits: {}", held.path, held.reason))
}

/// The regions of the fleet that this node has lost, or that do not keep up.
fn stale(feed: &Feed) -> Option<String> {
    let behind = feed.desk.stale(MAX_LAG);
    (!behind.is_empty()).then(|| format!("stale: {}", behind.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{bus::DeletionsHeld, model::RelPath};

    #[test]
    fn what_needs_an_operator_is_not_well() {
        let start = SystemTime::UNIX_EPOCH;
        let at = |secs| start + Duration::from_secs(secs);
        let primary = FeedState { primary: true, state: "idle", ..FeedState::default() };
        let region =
            FeedState { state: "idle", heartbeat: Some(Instant::now()), ..FeedState::default() };
        assert_eq!(unwell(&primary, start), None);
        assert_eq!(unwell(&region, start), None);
        let alone = FeedState { heartbeat: None, ..region };
        assert!(unwell(&alone, start).unwrap().contains("upstream"));
        let failed = FeedState { last_error: Some("disk full".to_owned()), ..primary.clone() };
        assert_eq!(unwell(&failed, start).unwrap(), "disk full");

        let unwatched = Some("raise the sysctl".to_owned());
        let polled = FeedState { unwatched, ..primary.clone() };
        assert_eq!(unwell(&polled, start).unwrap(), "raise the sysctl");

        let path = RelPath::parse(b"app.war").unwrap();
        let slow = Held { path, reason: "still open".to_owned(), since: start, decision: true };
        let slow = FeedState { held: vec![slow], ..primary.clone() };
        assert_eq!(unwell(&slow, at(599)), None);
        assert!(unwell(&slow, at(600)).unwrap().contains("app.war"));
        let deletions = Some(DeletionsHeld { id: "7".to_owned(), files: 60, since: start });
        let gone = FeedState { deletions, ..primary };
        assert!(unwell(&gone, start).unwrap().starts_with("60 deletions"));
    }
}
