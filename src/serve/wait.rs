//! `?wait=` of uploads and removals: until the change is committed, or verified at every region.
//!
//! A change is committed when the newest version says what was asked for. Level, not edge: the
//! version is looked at again whenever the feed's head or state changes, and what a lost wake-up
//! would cost is bounded by the deadline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::extract::Query;
use http::Uri;
use serde::Deserialize;

use super::{Edge, document::Found, edge::Feed, error::Fault, fleet};
use crate::{
    bus::{Held, Verdict},
    model::{Head, ObjectId, RelPath},
};

/// How long a removal that nobody waits for may take to say that it is held: a batch of deletions is
/// judged when they have ceased for a second.
const JUDGEMENT: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Fields {
    wait: Option<String>,
    timeout: Option<String>,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing.
    Nothing,
    /// The commit.
    Commit(Duration),
    /// Every region.
    Regions(Duration),
}

/// How far a change has come.
pub(super) enum Come {
    /// It is in this version.
    Committed(Head),
    /// It waits for somebody's decision; this is why.
    Held(String),
    /// Nothing is known yet.
    Unknown,
}

impl Wish {
    /// Reads a query.
    pub(super) fn of(uri: &Uri) -> Result<Wish, Fault> {
        let Query(fields) = Query::<Fields>::try_from_uri(uri)
            .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
        let timeout = fleet::timeout(fields.timeout.as_deref())?;
        match fields.wait.as_deref() {
            None => Ok(Wish::Nothing),
            Some("commit") => Ok(Wish::Commit(timeout)),
            Some("regions") => Ok(Wish::Regions(timeout)),
            Some(_) => Err(Fault::malformed("one waits for \"commit\" or for \"regions\"")),
        }
    }

    /// How long the commit may take: a removal is waited for in any case, for a moment.
    pub(super) fn patience(self, removal: bool) -> Duration {
        match self {
            Wish::Commit(timeout) | Wish::Regions(timeout) => timeout,
            Wish::Nothing if removal => JUDGEMENT,
            Wish::Nothing => Duration::ZERO,
        }
    }

    /// Waits for the regions where that is wished; complete where it is not.
    pub(super) async fn regions(self, feed: &Feed, head: &Head, since: Instant) -> Verdict {
        match self {
            Wish::Regions(timeout) => feed.desk.wait_verified(head, since + timeout).await,
            Wish::Nothing | Wish::Commit(_) => Verdict::default(),
        }
    }
}

/// Waits until the newest version has this content at a path (none: nothing there), it is held, or
/// the time is over.
pub(super) async fn committed(
    edge: &Edge,
    feed: &Arc<Feed>,
    (path, content): (&RelPath, Option<ObjectId>),
    deadline: Instant,
) -> Result<Come, Fault> {
    let (mut heads, mut states) = (feed.desk.head.subscribe(), feed.desk.state.subscribe());
    loop {
        heads.borrow_and_update();
        let decision = |held: &&Held| held.decision && held.path == *path;
        let held = states.borrow_and_update().held.iter().find(decision).cloned();
        if let Some(head) = feed.desk.head()
            && says(edge, feed, &head, path, content).await?
        {
            return Ok(Come::Committed(head));
        }
        if let Some(held) = held {
            return Ok(Come::Held(held.reason));
        }
        tokio::select! {
            Ok(()) = heads.changed() => {}
            Ok(()) = states.changed() => {}
            () = tokio::time::sleep_until(deadline.into()) => return Ok(Come::Unknown),
        }
    }
}

async fn says(
    edge: &Edge,
    feed: &Arc<Feed>,
    head: &Head,
    path: &RelPath,
    content: Option<ObjectId>,
) -> Result<bool, Fault> {
    let Some(content) = content else {
        let (commit, path) = (head.commit, path.clone());
        return edge.store(feed, move |store| Ok(store.entry(commit, &path)?.is_none())).await;
    };
    let found = edge.look_up(feed, (head.commit, path.clone())).await?;
    Ok(matches!(found, Some(Found::File(file)) if file.etag == format!("\"{content}\"")))
}
