//! Tries whether the address that a region's node advertises leads to that node.
//!
//! `GET /livez`, and the answer must name the node: no token is sent, no redirect followed. Each
//! address is tried when it is first heard and every minute from then on; until it has answered,
//! nobody is led there. A few at a time, each with a time-out: a dead address delays no other.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Board, Desk, roster::Reach};
use crate::model::NodeId;

/// The header by which a node says which one it is.
pub const NODE_HEADER: &str = "x-depsync-node";
/// An address that answers later than this is of no use to a client.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often an address is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Addresses tried at the same time.
const PARALLEL: usize = 16;

/// Tries addresses until `stop`; `http` follows no redirect.
pub async fn watch(board: Board, http: reqwest::Client, stop: CancellationToken) {
    let trying = board.iter().map(|desk| watch_feed(Arc::clone(desk), http.clone()));
    tokio::select! {
        () = stop.cancelled() => {}
        () = async { futures_util::future::join_all(trying).await; } => stop.cancelled().await,
    }
}

async fn watch_feed(desk: Arc<Desk>, http: reqwest::Client) {
    let mut changed = desk.hellos.subscribe();
    let mut again = Instant::now() + AGAIN;
    loop {
        let is_due = Instant::now() >= again;
        if is_due {
            again = Instant::now() + AGAIN;
        }
        futures_util::stream::iter(desk.to_reach(is_due))
            .for_each_concurrent(PARALLEL, |(node, url)| try_one(&desk, &http, node, url))
            .await;
        tokio::select! {
            heard = changed.changed() => if heard.is_err() { return },
            () = sleep_until(again) => {}
        }
    }
}

async fn try_one(desk: &Desk, http: &reqwest::Client, node: NodeId, url: String) {
    let reach = match timeout(TIMEOUT, ask(http, &node, &url)).await {
        Ok(reach) => reach,
        Err(_) => Reach::Unreachable(format!("{url} does not answer within 5 s")),
    };
    if let (true, Reach::Unreachable(why)) = (desk.reached(&node, &url, reach.clone()), &reach) {
        tracing::warn!(feed = %desk.feed, %node, "no client is led there: {why}");
    }
}

async fn ask(http: &reqwest::Client, node: &NodeId, url: &str) -> Reach {
    let answer = match http.get(format!("{}/livez", url.trim_end_matches('/'))).send().await {
        Ok(answer) => answer,
        Err(error) => {
            let error = error.without_url();
            return Reach::Unreachable(format!("{url} cannot be reached: {error}"));
        }
    };
    let named = answer.headers().get(NODE_HEADER).and_then(|name| name.to_str().ok());
    match named {
        Some(name) if name == node.as_str() => Reach::Reached,
        Some(name) => Reach::Unreachable(format!("at {url} answers another node, {name}")),
        None => Reach::Unreachable(format!(
            "at {url} answers something that is no depsync node ({})",
            answer.status()
        )),
    }
}
