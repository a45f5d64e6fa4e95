//! `GET /v1/feeds/{feed}/propagation`: how long versions took to arrive at the nodes, newest first.

use std::{sync::Arc, time::Instant};

use axum::{Json, extract::State, response::IntoResponse};
use http::request::Parts;
use serde_json::{Value, json};

use super::{Edge, edge::Feed, error::Answer, nodes::moment, page::Page};
use crate::bus::roster::Arrival;

/// The last arrivals, as far back as they are remembered.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let limit = Page::of(&parts.uri)?.limit();
    Ok(Json(arrivals(feed, limit)).into_response())
}

/// So many of a feed's arrivals, and what all of them took on average.
pub(super) fn arrivals(feed: &Feed, limit: usize) -> Value {
    let now = Instant::now();
    let arrivals: Vec<Value> =
        feed.desk.arrivals(limit).iter().map(|arrival| shown(arrival, now)).collect();
    let times = feed.desk.arrival_times();
    json!({
        "feed": feed.desk.feed, "arrivals": arrivals, "count": times.count,
        "sum_ms": times.sum * 1e3,
    })
}

fn shown(arrival: &Arrival, now: Instant) -> Value {
    let Arrival { head, node, label, region, announced, took } = arrival;
    json!({
        "node": node, "label": label, "region": region, "commit": head.commit, "seq": head.seq,
        "announced": moment(Some(*announced), now), "took_ms": took.as_secs_f64() * 1e3,
    })
}
