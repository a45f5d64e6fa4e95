//! Health that tells the truth: alive, ready to serve, and everything as it should be.
//!
//! `livez` says that the edge answers. `readyz` says that every feed can be served and that no stage
//! has stopped. `healthz` says more, and is not well while anything needs an operator. What is wrong
//! is found in `diagnosis`.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::{
    Edge,
    diagnosis::{Fault, Level, TRUST},
    edge::Feed,
    error::Answer,
};
use crate::bus;

/// `GET /livez`: which node lives here, for an upstream that tries the address before it leads
/// anybody to it.
pub(super) async fn live(State(edge): State<Arc<Edge>>) -> impl IntoResponse {
    ([(bus::reach::NODE_HEADER, edge.node.to_string())], "ok\n")
}

/// `GET /readyz`: nobody is asked for a token, so no name and no text of an error is told.
pub(super) async fn ready(State(edge): State<Arc<Edge>>) -> Answer {
    let faults = edge.faults();
    let critical = faults.iter().filter(|fault| fault.level == Level::Critical);
    let brief = |fault: &Fault| json!({ "kind": fault.kind, "state": fault.state });
    let body = body("ready", &critical.map(brief).collect::<Vec<_>>());
    Ok(answer(&edge, body))
}

/// `GET /healthz`; with `?verbose` also what is worth knowing, what each stage is at, and when it
/// last moved.
pub(super) async fn health(State(edge): State<Arc<Edge>>, uri: Uri) -> Answer {
    let (faults, notices): (Vec<_>, Vec<_>) =
        edge.faults().into_iter().partition(|fault| fault.level != Level::Notice);
    let mut body = body("ok", &faults.iter().map(|fault| json!(fault)).collect::<Vec<_>>());
    let is_verbose = uri.query().is_some_and(|query| query.split('&').any(|it| it == "verbose"));
    // Who is let in is worth knowing to whoever looks at all.
    let of_trust = notices.iter().filter(|notice| TRUST.contains(&notice.kind));
    let warnings: Vec<&str> = of_trust.map(|notice| notice.what.as_str()).collect();
    if !warnings.is_empty() {
        body["warnings"] = json!(warnings);
    }
    if is_verbose {
        body["notices"] = json!(notices);
        body["stages"] = edge.feeds().map(|feed| stage_json(feed)).collect();
    }
    Ok(answer(&edge, body))
}

fn body(well: &str, faults: &[Value]) -> Value {
    if faults.is_empty() {
        json!({ "status": well })
    } else {
        json!({ "status": "degraded", "faults": faults })
    }
}

fn answer(edge: &Edge, body: Value) -> axum::response::Response {
    let well = body.get("faults").is_none();
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    ([(bus::reach::NODE_HEADER, edge.node.to_string())], (status, Json(body))).into_response()
}

fn stage_json(feed: &Feed) -> Value {
    let state = feed.desk.state.borrow();
    let hooks = feed.desk.hooks.borrow();
    json!({
        "feed": feed.desk.feed, "stage": if state.primary { "origin" } else { "replica" },
        "state": state.state, "detail": state.detail, "last_error": state.last_error,
        "moved_ms": feed.desk.stuck_for().0.as_millis(), "hooks": *hooks,
        "heard_ms": state.heartbeat.map(|heard| heard.elapsed().as_millis()),
    })
}
