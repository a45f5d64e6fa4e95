//! The newest version, to whoever does not name one: which it is, and how sure this node is of that.
//!
//! The primary knows. A region answers from what it has while its upstream was heard a moment ago, or
//! asks each time; while the upstream is away it says that its answer may be stale, or refuses, as the
//! operator wants.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue};
use tokio::sync::oneshot;

use super::{Edge, download, edge::Feed, error::Fault};
use crate::{
    bus::{Desk, Request as Ask, State},
    model::{Freshness, Oid, Stale},
};

/// A region's newest version counts as fresh while its upstream was heard within this.
const LEASE: Duration = Duration::from_secs(10);
/// How long the upstream may take to name its head.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The newest version.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newest {
    pub(super) commit: Oid,
    /// At a region: how long ago the upstream was heard.
    age: Option<Duration>,
    stale: bool,
}

impl Newest {
    /// Says how old it may be.
    pub(super) fn describe(&self, headers: &mut HeaderMap) {
        if let Some(age) = self.age {
            headers.insert("x-depsync-age", age.as_secs().into());
        }
        if self.stale {
            headers.insert("x-depsync-stale", HeaderValue::from_static("true"));
        }
    }
}

/// Whether the upstream was heard a moment ago.
pub(super) fn is_leased(state: &State) -> bool {
    state.heartbeat.is_some_and(|heard| heard.elapsed() < LEASE)
}

/// The newest version of a feed.
pub(super) async fn newest(edge: &Edge, feed: &Arc<Feed>) -> Result<Newest, Fault> {
    if feed.is_primary() {
        return Ok(Newest { commit: feed.newest()?, age: None, stale: false });
    }
    let fresh = match edge.freshness {
        Freshness::Lease => is_leased(&feed.desk.state.borrow()),
        Freshness::Ask => ask(edge, feed).await.is_ok(),
    };
    if !fresh && edge.stale == Stale::Refuse {
        return Err(Fault::unavailable("the upstream is not heard, so this may be stale", 5));
    }
    let age = feed.desk.state.borrow().heartbeat.map(|heard| heard.elapsed());
    // Who has just been answered by the upstream is as fresh as can be.
    let age = if fresh && edge.freshness == Freshness::Ask { Some(Duration::ZERO) } else { age };
    Ok(Newest { commit: here(edge, feed).await?, age, stale: !fresh })
}

/// The version that a region gives: the newest that it has, or the one that it is kept at.
async fn here(edge: &Edge, feed: &Feed) -> Result<Oid, Fault> {
    let pin = feed.desk.orders.borrow().pin_of(&edge.node, edge.region.as_ref());
    let Some(pin) = pin else { return feed.newest() };
    download::published(edge, feed, pin.commit).await?;
    Ok(pin.commit)
}

/// Asks the upstream for its head, and brings that version here.
async fn ask(edge: &Edge, feed: &Arc<Feed>) -> Result<(), Fault> {
    let want = ask_upstream(&feed.desk).await?;
    match want {
        Some(commit) if feed.desk.head().map(|head| head.commit) != Some(commit) => {
            download::published(edge, feed, commit).await
        }
        _ => Ok(()),
    }
}

/// All who ask at once share one question.
async fn ask_upstream(desk: &Desk) -> Result<Option<Oid>, Fault> {
    let away = || Fault::unavailable("the upstream is away", 5);
    let (answer, asked) = oneshot::channel();
    if !desk.ask(Ask::Sync(answer)) {
        return Err(away());
    }
    match tokio::time::timeout(ASK_TIMEOUT, asked).await {
        Ok(Ok(Ok(()))) => Ok(desk.state.borrow().want.map(|want| want.commit)),
        _ => Err(away()),
    }
}
