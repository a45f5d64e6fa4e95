//! Upkeep of a feed: `gc` and `fsck` are ordered here, and what they did is told.
//!
//! An order is answered at once with its number: it is done when `done` in the report has reached it.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::request::Parts;
use serde_json::{Value, json};

use super::{
    Edge,
    control::{NoFields, Taken, fields},
    error::Answer,
    feeds::moment,
};
use crate::bus::{Care, Chores, FsckReport, GcReport};

/// `POST …/gc`: remove what no kept version needs, now.
pub(super) async fn gc(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    order(&edge, &parts, body, |chores| &mut chores.gc)
}

/// `POST …/fsck`: check everything, and repair.
pub(super) async fn fsck(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    order(&edge, &parts, body, |chores| &mut chores.fsck)
}

fn order(edge: &Edge, parts: &Parts, body: Taken, which: fn(&mut Chores) -> &mut u64) -> Answer {
    let NoFields {} = fields(body)?;
    let (feed, _) = edge.below(&parts.uri)?;
    let mut number = 0;
    feed.desk.chores.send_modify(|chores| {
        *which(chores) += 1;
        number = *which(chores);
    });
    Ok(Json(json!({ "feed": feed.desk.feed, "order": number })).into_response())
}

/// `GET …/upkeep`
pub(super) async fn show(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let care = feed.desk.care.borrow().clone();
    Ok(Json(describe(&care)).into_response())
}

/// What upkeep knows, as programs read it.
pub(super) fn describe(care: &Care) -> Value {
    json!({
        "done": { "gc": care.done.gc, "fsck": care.done.fsck },
        "running": care.running,
        "last_error": care.last_error,
        "pack_bytes": care.bytes.0,
        "object_bytes": care.bytes.1,
        "packs": care.packs,
        "folds": care.folds,
        "growth_per_day": care.growth_per_day,
        "free_bytes": care.free,
        "days_until_full": care.days_until_full(),
        "damage": { "found": care.found, "repaired": care.repaired, "broken": care.broken },
        "gc": care.gc.as_ref().map(of_gc),
        "fsck": care.fsck.as_ref().map(of_fsck),
    })
}

fn of_gc(report: &GcReport) -> Value {
    let GcReport { at, collected, folded } = report;
    json!({
        "at": moment(*at),
        "versions": collected.versions,
        "kept": collected.kept,
        "kept_bytes": collected.kept_bytes,
        "removed": collected.removed,
        "removed_bytes": collected.removed_bytes,
        "folded": folded.map(|folded| json!({
            "packs": folded.packs, "objects": folded.objects,
            "before_bytes": folded.before, "after_bytes": folded.after,
        })),
    })
}

fn of_fsck(report: &FsckReport) -> Value {
    let FsckReport { at, bytes, commits, found, broken, differing } = report;
    json!({
        "at": moment(*at), "bytes": bytes, "commits": commits,
        "found": found, "broken": broken, "differing": differing,
    })
}
