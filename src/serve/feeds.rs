//! The feeds of this node: where each stands, and what waits.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::request::Parts;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Edge,
    access::Caller,
    edge::Feed,
    error::{Answer, Fault},
    listing,
    page::{Page, Paged, PathField},
    upkeep,
};
use crate::bus::{
    Held,
    frame::{self, Progress},
};

/// Held changes that a feed's own page shows; all are at `…/held`.
const SHOWN_HELD: usize = 100;

/// `GET /v1/feeds`
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    Ok(Json(all(&edge, &Page::of(&parts.uri)?).await?).into_response())
}

/// A page of the feeds.
pub(super) async fn all(edge: &Edge, page: &Page) -> Result<Value, Fault> {
    let all: Vec<&Arc<Feed>> = edge.feeds().collect();
    let Paged { items, next } = page.cut(all, |feed| feed.desk.feed.to_string());
    let mut feeds = Vec::with_capacity(items.len());
    for feed in items {
        feeds.push(describe(edge, feed).await?);
    }
    Ok(Paged { items: feeds, next }.json("feeds"))
}

/// `GET /v1/feeds/{feed}`
pub(super) async fn show(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let have = parts.headers.get(frame::HEAD_HEADER).and_then(|text| text.to_str().ok());
    let may_say = parts.extensions.get::<Caller>().is_some_and(Caller::may_mirror);
    if let Some(have) = have.and_then(frame::head_from_text).filter(|_| may_say) {
        let who = edge.client(&parts).map_or_else(|| "a node".to_owned(), |addr| addr.to_string());
        feed.desk.asked(who, have);
    }
    Ok(Json(describe(&edge, feed).await?).into_response())
}

/// `GET …/held`
pub(super) async fn held(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let page = Page::of(&parts.uri)?;
    let held: Vec<Waiting> = feed.desk.state.borrow().held.iter().map(Waiting::from).collect();
    let paged = page.cut(held, |waiting| waiting.key.clone());
    Ok(Json(paged.json("held")).into_response())
}

/// A change that waits.
#[derive(Serialize)]
struct Waiting {
    #[serde(skip)]
    key: String,
    #[serde(flatten)]
    path: PathField,
    cause: &'static str,
    reason: String,
    since: Option<String>,
}

impl From<&Held> for Waiting {
    fn from(held: &Held) -> Self {
        Waiting {
            key: super::target::encode(held.path.as_bytes()),
            path: (&held.path).into(),
            cause: held.cause.as_str(),
            reason: held.reason.clone(),
            since: moment(held.since),
        }
    }
}

/// A time of day in RFC 3339.
pub(super) fn moment(at: std::time::SystemTime) -> Option<String> {
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    listing::time(i64::try_from(since.as_secs()).ok()?, since.subsec_nanos())
}

/// A time of day, to the tenth of a second: one that is reckoned back from an age says the same each
/// time.
pub(super) fn tenth(at: std::time::SystemTime) -> Option<String> {
    let since = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    let tenths = (since.as_millis() + 50) / 100;
    let (secs, tenth) = (i64::try_from(tenths / 10).ok()?, u32::try_from(tenths % 10).ok()?);
    listing::time(secs, tenth * 100_000_000)
}

/// How far a fetch is.
pub(super) fn progress(progress: Progress) -> Value {
    let Progress { head, done, total, rate, left_ms } = progress;
    json!({ "seq": head.seq, "done": done, "total": total, "rate": rate, "left_ms": left_ms })
}

async fn describe(edge: &Edge, feed: &Feed) -> Result<Value, Fault> {
    let head = feed.desk.head();
    let (files, bytes) = match head {
        Some(head) => edge.store(feed, move |store| store.totals(head.commit)).await?,
        None => (0, 0),
    };
    let state = feed.desk.state.borrow().clone();
    let under_way = *feed.desk.progress.borrow();
    let shown: Vec<Waiting> = state.held.iter().take(SHOWN_HELD).map(Waiting::from).collect();
    let mut feed = json!({
        "feed": feed.desk.feed,
        "role": if state.primary { "primary" } else { "region" },
        "epoch": head.map(|head| head.epoch),
        "seq": head.map(|head| head.seq),
        "commit": head.map(|head| head.commit),
        "files": files,
        "bytes": bytes,
        "state": state.state,
        "detail": state.detail,
        "last_error": state.last_error,
        "held": shown,
        "held_count": state.held.len(),
        "held_deletions": state.deletions.map(|list| json!({
            "id": list.id, "files": list.files, "since": moment(list.since),
        })),
        "rescans": state.rescans,
        "hooks": *feed.desk.hooks.borrow(),
        "followers": feed.desk.followers().len(),
        "store": upkeep::describe(&feed.desk.care.borrow()),
    });
    if let Some(importing) = state.importing {
        feed["importing"] = json!({
            "files": importing.files,
            "bytes": importing.bytes,
            "total_files": importing.total,
            "files_per_sec": importing.files_per_sec,
            "rate": importing.rate,
            "left_ms": importing.left.map(|left| left.as_millis()),
        });
    }
    if !state.primary {
        feed["upstream"] = json!(state.upstream_url);
        (feed["want"], feed["fetched"], feed["have"]) =
            (json!(state.want), json!(state.fetched), json!(state.have));
        let drift: Vec<Waiting> = state.drift.iter().take(SHOWN_HELD).map(Waiting::from).collect();
        feed["drift"] = json!({ "paths": drift, "count": state.drift.len() });
        feed["verified"] = state.verified.as_ref().map_or(Value::Null, |done| {
            json!({
                "at": moment(done.at), "files": done.files, "differing": done.differing,
                "took_ms": done.took_ms,
            })
        });
        feed["extra_files"] = json!(state.extra);
        feed["standing"] = json!(state.standing);
        feed["progress"] = json!(under_way.map(progress));
        feed["heard_ms"] = json!(state.heartbeat.map(|heard| heard.elapsed().as_millis()));
    }
    Ok(feed)
}
