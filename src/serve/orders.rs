//! Commands about versions: bring one back, keep nodes at one, take one out of use.
//!
//! The commit is looked up first, so that a mistyped one is not there rather than not done. Whom a
//! pin is about is a node's id, or its label where only one follower has it, or a region.

use std::sync::Arc;

use axum::{Extension, extract::State};
use http::request::Parts;
use serde::Deserialize;

use super::{
    Edge,
    access::Caller,
    control::{Taken, ask, fields},
    download,
    edge::Feed,
    error::{Answer, Fault},
    target,
};
use crate::{
    bus::Request,
    model::{NodeId, Oid, Target},
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommitFields {
    commit: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinFields {
    commit: Option<String>,
    node: Option<String>,
    region: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TargetFields {
    node: Option<String>,
    region: Option<String>,
}

/// `POST …/rollback`: bring the tree of an older commit back, as a new commit.
pub(super) async fn rollback(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    parts: Parts,
    body: Taken,
) -> Answer {
    let CommitFields { commit } = fields(body)?;
    let commit = published(&edge, &parts, commit).await?;
    let by = caller.name();
    ask(&edge, &parts, |answer| Request::Rollback { commit, by, answer }).await
}

/// `POST …/pin`: keep nodes at a commit.
pub(super) async fn pin(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    parts: Parts,
    body: Taken,
) -> Answer {
    let PinFields { commit, node, region } = fields(body)?;
    let (feed, _) = edge.below(&parts.uri)?;
    let target = about(feed, node, region)?;
    let commit = published(&edge, &parts, commit).await?;
    let by = caller.name();
    ask(&edge, &parts, |answer| Request::Pin { commit, target, by, answer }).await
}

/// `POST …/unpin`: let them go to the newest again.
pub(super) async fn unpin(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let TargetFields { node, region } = fields(body)?;
    let (feed, _) = edge.below(&parts.uri)?;
    let target = about(feed, node, region)?;
    ask(&edge, &parts, |answer| Request::Unpin { target, answer }).await
}

/// `POST …/revoke`: nobody checks this commit out, or is given it, any more.
pub(super) async fn revoke(State(edge): State<Arc<Edge>>, parts: Parts, body: Taken) -> Answer {
    let CommitFields { commit } = fields(body)?;
    let commit = published(&edge, &parts, commit).await?;
    ask(&edge, &parts, |answer| Request::Revoke { commit, answer }).await
}

async fn published(edge: &Edge, parts: &Parts, commit: Option<String>) -> Result<Oid, Fault> {
    let commit = commit.ok_or_else(|| Fault::malformed("the command takes a \"commit\""))?;
    let commit = target::commit(&commit)?;
    let (feed, _) = edge.below(&parts.uri)?;
    download::published(edge, feed, commit).await?;
    Ok(commit)
}

fn about(feed: &Feed, node: Option<String>, region: Option<String>) -> Result<Target, Fault> {
    match (node, region) {
        (None, None) => Ok(Target::Feed),
        (Some(node), None) => node_of(feed, &node).map(Target::Node),
        (None, Some(region)) => {
            region.parse().map(Target::Region).map_err(|error| Fault::malformed(format!("{error}")))
        }
        (Some(_), Some(_)) => {
            Err(Fault::malformed("the command takes a \"node\" or a \"region\", not both"))
        }
    }
}

/// A node's id, or a label that only one follower has.
fn node_of(feed: &Feed, node: &str) -> Result<NodeId, Fault> {
    let followers = feed.desk.followers();
    let mut called = followers.iter().filter(|follower| follower.hello.label.as_str() == node);
    match (called.next(), called.next()) {
        (Some(one), None) => Ok(one.hello.node.clone()),
        (Some(_), Some(_)) => {
            Err(Fault::malformed(format!("several nodes are called {node}: name one by its id")))
        }
        _ => node.parse().map_err(|error| Fault::malformed(format!("{error}"))),
    }
}
