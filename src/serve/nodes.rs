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
    bus::{Follower, report::Report, roster::Reach},
    model::{Member, NodeId, RegionName},
};

/// A node of the fleet, and what it has of each feed.
struct Row {
    node: Value,
    feeds: Vec<Value>,
}

/// `GET /v1/nodes`: every node that follows a feed here, also through relays; and who was turned away.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let page = Page::of(&parts.uri)?;
    let now = Instant::now();
    let mut rows: BTreeMap<NodeId, Row> = BTreeMap::new();
    for feed in edge.feeds() {
        for follower in feed.desk.followers() {
            let id = follower.hello.node.clone();
            let row = || Row { node: node_of(&follower), feeds: Vec::new() };
            rows.entry(id).or_insert_with(row).feeds.push(feed_of(feed, &follower, now));
            let live = follower.is_live(now);
            for report in follower.below.values() {
                let row = || Row { node: node_below(report, live), feeds: Vec::new() };
                let feed = feed_below(feed, report, live);
                rows.entry(report.node.clone()).or_insert_with(row).feeds.push(feed);
            }
        }
    }
    let nodes = rows.into_values().map(|Row { mut node, feeds }| {
        node["feeds"] = json!(feeds);
        node
    });
    let paged =
        page.cut(nodes.collect(), |node| node["id"].as_str().unwrap_or_default().to_owned());
    let mut answer = paged.json("nodes");
    let turned_away = edge.board.turned_away();
    answer["turned_away"] = turned_away
        .iter()
        .map(|it| {
            json!({
                "who": it.who, "feed": it.feed, "fault": it.fault, "message": it.fault.to_string(),
                "at": super::feeds::moment(it.at),
            })
        })
        .collect();
    Ok(Json(answer).into_response())
}

fn node_of(follower: &Follower) -> Value {
    let hello = &follower.hello;
    let unreachable = match &follower.reach {
        Reach::Unreachable(why) => Some(why),
        _ => None,
    };
    json!({
        "id": hello.node, "label": hello.label, "region": hello.region, "url": follower.url,
        "connected": follower.connected, "reached": follower.reach == Reach::Reached,
        "unreachable": unreachable,
    })
}

fn node_below(report: &Report, live: bool) -> Value {
    json!({
        "id": report.node, "label": report.label, "region": report.region, "url": report.url,
        "connected": report.live && live, "via": report.via,
    })
}

fn feed_below(feed: &Feed, report: &Report, live: bool) -> Value {
    let head = feed.desk.head();
    let state = match report.live && live {
        false => "away",
        true if report.have == head => "verified",
        true if report.waits.is_some() => "waiting",
        true => "behind",
    };
    json!({
        "feed": feed.desk.feed, "want": head, "fetched": report.fetched, "have": report.have,
        "standing": report.standing, "state": state, "waits": report.waits,
        "last_error": report.error,
    })
}

fn feed_of(feed: &Feed, follower: &Follower, now: Instant) -> Value {
    let live = follower.is_live(now);
    let paused = feed.desk.is_paused(&follower.hello.node, follower.hello.region.as_ref());
    let state = match (live, follower.behind_since) {
        (false, _) => "away",
        (true, _) if paused => "paused",
        (true, None) => "verified",
        (true, Some(_)) if follower.waits.is_some() => "waiting",
        (true, Some(_)) => "behind",
    };
    let ack = follower.last_ack.as_ref();
    json!({
        "feed": feed.desk.feed,
        "name_there": follower.hello.feed,
        "paths": follower.hello.paths,
        "want": follower.want,
        "fetched": follower.fetched,
        "have": follower.have,
        "standing": follower.standing,
        "state": state,
        "waits": follower.waits,
        "lag_ms": follower.lag(now).as_millis(),
        "verified_at": follower.verified_at.and_then(|at| {
            crate::sys::now().checked_sub(now.saturating_duration_since(at)).and_then(super::feeds::moment)
        }),
        "took_ms": ack.map(|ack| ack.took_ms),
        "progress": follower.progress.map(feeds::progress),
        "last_error": follower.error(),
    })
}

/// `DELETE /v1/nodes/{id}`: forget a node that is gone.
pub(super) async fn forget(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let id = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let id: NodeId = id.parse().map_err(|bad| Fault::malformed(format!("{bad}")))?;
    let followers = || edge.feeds().flat_map(|feed| feed.desk.followers());
    if followers().any(|known| known.connected && known.hello.node == id) {
        return Err(Fault::conflict(format!("the node \"{id}\" is connected; stop it first")));
    }
    // Every feed is asked: a node may be bound in one and known in another.
    let forgotten = edge.feeds().filter(|feed| feed.desk.forget(&id)).count();
    if forgotten == 0 {
        let relay = followers().find(|known| known.below.contains_key(&id));
        return Err(match relay {
            Some(relay) => Fault::conflict(format!(
                "the node \"{id}\" follows the node {}: forget it there",
                relay.hello.label
            )),
            None => {
                Fault::not_found("no_such_node", format!("no node \"{id}\" follows a feed here"))
            }
        });
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
