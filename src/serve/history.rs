//! History: the log, the difference of two versions, a folder of any version.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::request::Parts;
use serde::Serialize;
use serde_json::json;

use super::{
    Edge, download,
    error::{Answer, Fault},
    listing,
    page::{Page, Paged, PathField},
    target,
};
use crate::model::{Change, Entry, Kind, Verb};

/// `GET …/log`: commits from the newest backwards; `after` is the last one of the page before.
pub(super) async fn log(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, _) = edge.below(&parts.uri)?;
    let page = Page::of(&parts.uri)?;
    let after = page.after.as_deref().map(target::commit).transpose()?;
    let Some(head) = feed.desk.head() else {
        return Ok(Json(json!({ "commits": [] })).into_response());
    };
    if let Some(after) = after {
        download::published(&edge, feed, after).await?;
    }
    // One more than asked for says whether there is a next page, and `after` itself is left out.
    let (from, skip) = after.map_or((head.commit, 0), |after| (after, 1));
    let count = page.limit() + 1 + skip;
    let commits = edge.store(feed, move |store| store.log(from, count)).await?;
    let mut commits = commits.iter().skip(skip);
    let items: Vec<_> = commits.by_ref().take(page.limit()).collect();
    let next = commits.next().and(items.last()).map(|last| last.id.to_string());
    let items = items.into_iter().map(listing::commit_json).collect();
    Ok(Json(Paged { items, next }.json("commits")).into_response())
}

/// One path's difference.
#[derive(Serialize)]
struct Difference {
    #[serde(flatten)]
    path: PathField,
    /// `A`, `M` or `D`, as git has it.
    status: char,
    change: &'static str,
    /// What was there: a file, a link or a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<&'static str>,
    /// What is there now.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'static str>,
}

impl From<&Change> for Difference {
    fn from(change: &Change) -> Self {
        let what = match change.verb() {
            Verb::Added => "added",
            Verb::Modified => "modified",
            Verb::Metadata => "metadata",
            Verb::Deleted => "deleted",
        };
        let kind = |entry: &Entry| match entry.kind {
            Kind::File { .. } => "file",
            Kind::Symlink { .. } => "link",
            Kind::Dir => "folder",
        };
        Difference {
            path: (&change.path).into(),
            status: change.status(),
            change: what,
            before: change.before.as_ref().map(kind),
            after: change.after.as_ref().map(kind),
        }
    }
}

/// `GET …/diff/{a}..{b}`; `a` may be `0`: everything that `b` holds.
pub(super) async fn diff(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let page = Page::of(&parts.uri)?;
    let (from, to) = target::pair(tail)?;
    let from = if from == "0" { None } else { Some(target::commit(from)?) };
    let to = target::commit(to)?;
    for commit in from.into_iter().chain([to]) {
        download::published(&edge, feed, commit).await?;
    }
    let paged = edge.store(feed, move |store| {
        let changes = store.diff(from, to)?;
        let Paged { items, next } =
            page.cut(changes, |change: &Change| target::encode(change.path.as_bytes()));
        Ok(Paged { items: items.iter().map(Difference::from).collect(), next })
    });
    let mut body = paged.await?.json("changes");
    (body["from"], body["to"]) = (json!(from), json!(to));
    Ok(Json(body).into_response())
}

/// `GET …/tree/{commit}/{path}`: always JSON, whoever asks.
pub(super) async fn tree(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let page = Page::of(&parts.uri)?;
    let (commit, raw) = tail.split_once('/').unwrap_or((tail, ""));
    let commit = target::commit(commit)?;
    let (path, _) = target::path_to_read(raw)?;
    download::published(&edge, feed, commit).await?;
    let place = (commit, path);
    let read = place.clone();
    let items = edge.store(feed, move |store| listing::read(store, &read, &page)).await?;
    match items {
        Some(items) => Ok(Json(listing::document(feed, &place, items)).into_response()),
        None => Err(Fault::not_found("no_such_path", "no folder lies there in this version")),
    }
}
