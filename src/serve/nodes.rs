//! The fleet as this node sees it: who mirrors what, which region is served by whom.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use axum::{
    Json,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
    feeds,
    page::Page,
    redirect::{self, Client, Mirrors, Server},
    target,
};
use crate::{
    bus::Follower,
    model::{Member, NodeId, RegionName},
};

/// `GET /v1/nodes`: every node that follows a feed here.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let page = Page::of(&parts.uri)?;
    let now = Instant::now();
    let mut nodes: BTreeMap<NodeId, (Follower, Vec<Value>)> = BTreeMap::new();
    for feed in edge.feeds() {
        for follower in feed.desk.followers() {
            let feed = feed_of(feed, &follower, now);
            let id = follower.hello.node.clone();
            nodes.entry(id).or_insert_with(|| (follower, Vec::new())).1.push(feed);
        }
    }
    let nodes = nodes.into_values().map(|(follower, feeds)| node_of(&follower, &feeds));
    let paged =
        page.cut(nodes.collect(), |node| node["id"].as_str().unwrap_or_default().to_owned());
    Ok(Json(paged.json("nodes")).into_response())
}

fn node_of(follower: &Follower, feeds: &[Value]) -> Value {
    let hello = &follower.hello;
    json!({
        "id": hello.node, "label": hello.label, "region": hello.region, "url": follower.url,
        "connected": follower.connected, "feeds": feeds,
    })
}

fn feed_of(feed: &Feed, follower: &Follower, now: Instant) -> Value {
    let live = follower.is_live(now);
    let state = match (live, follower.behind_since) {
        (false, _) => "away",
        (true, None) => "verified",
        (true, Some(_)) => "behind",
    };
    let ack = follower.last_ack.as_ref();
    json!({
        "feed": feed.desk.feed,
        "want": follower.want,
        "fetched": follower.fetched,
        "have": follower.have,
        "standing": follower.standing,
        "state": state,
        "lag_ms": follower.lag(now).as_millis(),
        "verified_at": follower.verified_at.and_then(|at| {
            crate::sys::now().checked_sub(now.saturating_duration_since(at)).and_then(super::feeds::moment)
        }),
        "took_ms": ack.map(|ack| ack.took_ms),
        "progress": follower.progress.map(feeds::progress),
        "last_error": ack.and_then(|ack| ack.error.as_deref()),
    })
}

/// `DELETE /v1/nodes/{id}`: forget a node that is gone.
pub(super) async fn forget(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let id = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let id: NodeId = id.parse().map_err(|bad| Fault::malformed(format!("{bad}")))?;
    let known = |feed: &Arc<Feed>| {
        feed.desk.followers().into_iter().find(|follower| follower.hello.node == id)
    };
    let found: Vec<Follower> = edge.feeds().filter_map(known).collect();
    if found.is_empty() {
        return Err(Fault::not_found(
            "no_such_node",
            format!("no node \"{id}\" follows a feed here"),
        ));
    }
    if found.iter().any(|follower| follower.connected) {
        return Err(Fault::conflict(format!("the node \"{id}\" is connected; stop it first")));
    }
    for feed in edge.feeds() {
        feed.desk.forget(&id);
    }
    Ok(Response::builder()
        .status(StatusCode::NO_CONTENT)
        .body(axum::body::Body::empty())
        .expect("a status and nothing else"))
}

/// `GET /v1/regions`: the region table, and who serves each region.
pub(super) async fn regions(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let page = Page::of(&parts.uri)?;
    let table = edge.regions();
    let text = |member: &Member| match member {
        Member::Range(range) => range.to_string(),
        Member::Group(group) => group.clone(),
    };
    let listed = table.regions().iter().map(|region| {
        let members: Vec<String> = region.members.iter().map(text).collect();
        let kind = if table.by_group() { "resource_groups" } else { "ranges" };
        let mut object =
            json!({ "name": region.name, "listed": true, "nodes": nodes_of(&edge, &region.name) });
        object[kind] = json!(members);
        object
    });
    // A region that registered without an entry mirrors, and no client is led to it.
    let named = edge.feeds().flat_map(|feed| feed.desk.followers());
    let unlisted: BTreeSet<RegionName> =
        named.filter_map(|f| f.hello.region).filter(|name| !table.has(name)).collect();
    let unlisted = unlisted
        .iter()
        .map(|name| json!({ "name": name, "listed": false, "nodes": nodes_of(&edge, name) }));
    let all = listed.chain(unlisted).collect();
    let paged = page.cut(all, |region| region["name"].as_str().unwrap_or_default().to_owned());
    Ok(Json(paged.json("regions")).into_response())
}

fn nodes_of(edge: &Edge, region: &RegionName) -> Vec<Value> {
    let serving =
        edge.feeds().filter_map(|feed| Some((&feed.desk.feed, feed.desk.of_region(region)?)));
    serving
        .map(|(feed, mirror)| json!({ "feed": feed, "id": mirror.node, "url": mirror.url }))
        .collect()
}

#[derive(Deserialize)]
struct Asker {
    #[serde(rename = "from")]
    addr: Option<IpAddr>,
    resource_group: Option<String>,
    via: Option<String>,
}

/// `GET /v1/locate/{feed}/{path}`: who would serve this client, and why.
pub(super) async fn locate(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let tail = parts.uri.path().splitn(4, '/').nth(3).unwrap_or_default();
    let (name, raw) = tail.split_once('/').unwrap_or((tail, ""));
    let feed = edge.feed(name)?;
    let (path, _) = target::path_to_read(raw)?;
    let Query(asker) = Query::<Asker>::try_from_uri(&parts.uri)
        .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
    let client = Client {
        addr: asker.addr.or_else(|| edge.client(&parts)),
        group: asker.resource_group.as_deref(),
        via: asker.via.as_deref(),
    };
    let choice = redirect::who_serves(&edge.regions(), &client, &*feed.desk);
    let (node, base, name) = match choice.server {
        // A region serves whoever asks it; only the primary leads clients elsewhere.
        Server::Mirror(mirror) if feed.is_primary() => {
            let there = mirror.feed.unwrap_or_else(|| feed.desk.feed.clone());
            (mirror.node, mirror.url, there)
        }
        _ => (edge.node.clone(), edge.advertise.clone(), feed.desk.feed.clone()),
    };
    let (base, path) = (base.trim_end_matches('/'), target::encode(path.as_bytes()));
    let url = match feed.desk.head() {
        Some(head) => format!("{base}/v1/feeds/{name}/at/{}/{path}", head.commit),
        None => format!("{base}/v1/feeds/{name}/files/{path}"),
    };
    let answer = json!({
        "feed": feed.desk.feed, "client": client.addr, "region": choice.region, "node": node,
        "url": url, "why": choice.why,
    });
    Ok(Json(answer).into_response())
}
