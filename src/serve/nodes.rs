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
    document::Found,
    edge::Feed,
    error::{Answer, Fault},
    feeds,
    page::Page,
    redirect::{self, Client, Passed, Versions, Why},
    target,
};
use crate::{
    bus::{Distant, Follower, report::Report, roster::Reach},
    model::{Head, Member, NodeId, RegionName, RelPath},
};

/// A node of the fleet, and what it has of each feed.
struct Row {
    node: Value,
    feeds: Vec<Value>,
}

impl Row {
    /// Puts in what is known of a node from one place: where it is away there, another place counts.
    fn put(rows: &mut BTreeMap<NodeId, Row>, id: NodeId, row: Row) {
        let Some(known) = rows.get_mut(&id) else {
            rows.insert(id, row);
            return;
        };
        for feed in row.feeds {
            match known.feeds.iter_mut().find(|known| known["feed"] == feed["feed"]) {
                None => known.feeds.push(feed),
                Some(place) if place["state"] == "away" => {
                    *place = feed;
                    known.node.clone_from(&row.node);
                }
                Some(_) => {}
            }
        }
    }
}

/// `GET /v1/nodes`: every node that follows a feed here, also through relays; and who was turned away.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    Ok(Json(all(&edge, &Page::of(&parts.uri)?)).into_response())
}

/// A page of the nodes.
pub(super) fn all(edge: &Edge, page: &Page) -> Value {
    let now = Instant::now();
    let mut rows: BTreeMap<NodeId, Row> = BTreeMap::new();
    for feed in edge.feeds() {
        for follower in feed.desk.followers() {
            let id = follower.hello.node.clone();
            let row = Row { node: node_of(&follower), feeds: vec![feed_of(feed, &follower, now)] };
            Row::put(&mut rows, id, row);
            let live = follower.is_live(now);
            for distant in follower.below.values() {
                let node = node_below(&distant.report, live);
                let row = Row { node, feeds: vec![feed_below(feed, distant, live, now)] };
                Row::put(&mut rows, distant.report.node.clone(), row);
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
    answer
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

fn feed_below(feed: &Feed, distant: &Distant, live: bool, now: Instant) -> Value {
    let report = &distant.report;
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
        "lag_ms": distant.lag(now).as_millis(), "verified_at": moment(distant.verified_at, now),
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
        "verified_at": moment(follower.verified_at, now),
        "took_ms": ack.map(|ack| ack.took_ms),
        "progress": follower.progress.map(feeds::progress),
        "last_error": follower.error(),
    })
}

/// The time of day of an instant that is past.
pub(super) fn moment(at: Option<Instant>, now: Instant) -> Option<String> {
    let age = now.saturating_duration_since(at?);
    crate::sys::now().checked_sub(age).and_then(feeds::tenth)
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
    Ok(Json(all_regions(&edge, &Page::of(&parts.uri)?)).into_response())
}

/// A page of the regions.
pub(super) fn all_regions(edge: &Edge, page: &Page) -> Value {
    let table = edge.regions();
    let text = |member: &Member| match member {
        Member::Range(range) => range.to_string(),
        Member::Group(group) => group.clone(),
    };
    let shown = |name: &RegionName, listed: bool| {
        let (nodes, barred) = served_by(edge, name);
        json!({ "name": name, "listed": listed, "nodes": nodes, "barred": barred })
    };
    let listed = table.regions().iter().map(|region| {
        let members: Vec<String> = region.members.iter().map(text).collect();
        let kind = if table.by_group() { "resource_groups" } else { "ranges" };
        let mut object = shown(&region.name, true);
        object[kind] = json!(members);
        object
    });
    // A region that registered without an entry mirrors, and no client is led to it.
    let unlisted: Vec<RegionName> =
        named(edge).into_iter().filter(|name| !table.has(name)).collect();
    let unlisted = unlisted.iter().map(|name| shown(name, false));
    let all = listed.chain(unlisted).collect();
    page.cut(all, |region| region["name"].as_str().unwrap_or_default().to_owned()).json("regions")
}

/// Who serves a region, feed by feed, or what keeps its node from it.
fn served_by(edge: &Edge, region: &RegionName) -> (Vec<Value>, Vec<Value>) {
    let (mut nodes, mut barred) = (Vec::new(), Vec::new());
    for feed in edge.feeds() {
        let Some(site) = feed.desk.sites_of(region).into_iter().next() else { continue };
        let mut shown = json!({ "feed": feed.desk.feed, "id": site.node, "url": site.url });
        let pin = feed.desk.orders.borrow().pin_of(&site.node, Some(region));
        if let Some(pin) = pin {
            shown["pinned"] = json!(pin.commit);
        }
        match site.bar {
            None => nodes.push(shown),
            Some(bar) => {
                shown["why"] = json!(Passed::from(bar));
                barred.push(shown);
            }
        }
    }
    (nodes, barred)
}

/// Every region that a node names, here or below a relay.
fn named(edge: &Edge) -> BTreeSet<RegionName> {
    let followers = edge.feeds().flat_map(|feed| feed.desk.followers());
    let regions = followers.flat_map(|follower| {
        let below = follower.below.into_values().map(|distant| distant.report.region);
        below.chain([follower.hello.region]).flatten().collect::<Vec<_>>()
    });
    regions.collect()
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
    let head = feed.desk.head();
    // A region serves whoever asks it; only the primary leads clients elsewhere.
    let aim = head.filter(|_| feed.is_primary()).map(|newest| {
        let versions = Versions { newest, orders: &feed.desk.orders.borrow() };
        redirect::aim(&edge.regions(), &client, &*feed.desk, &versions)
    });
    let region = match &aim {
        Some(aim) => aim.region.clone(),
        None => redirect::region_of(&edge.regions(), &client).cloned(),
    };
    let version = aim.as_ref().map_or(head, |aim| Some(aim.version));
    let real = real_path(&edge, feed, version, &path).await?;
    let choice = aim.map(|aim| aim.choose([&path, &real]));
    let (why, passed) = choice.as_ref().map_or((Why::NoEntry, &[][..]), |it| (it.why, &it.passed));
    let passed: Vec<Value> =
        passed.iter().map(|(node, why)| json!({ "node": node, "why": why })).collect();
    let (node, base, name) = match choice.as_ref().and_then(|choice| choice.server.as_ref()) {
        Some(site) => (&site.node, &site.url, site.feed.as_ref().unwrap_or(&feed.desk.feed)),
        None => (&edge.node, &edge.advertise, &feed.desk.feed),
    };
    let (base, path) = (base.trim_end_matches('/'), target::encode(path.as_bytes()));
    let url = match version {
        Some(version) => format!("{base}/v1/feeds/{name}/at/{}/{path}", version.commit),
        None => format!("{base}/v1/feeds/{name}/files/{path}"),
    };
    let answer = json!({
        "feed": feed.desk.feed, "client": client.addr, "region": region, "node": node, "url": url,
        "why": why, "passed_over": passed,
    });
    Ok(Json(answer).into_response())
}

/// Where links lead a path in a version; the path itself where nothing lies there.
async fn real_path(
    edge: &Edge,
    feed: &Arc<Feed>,
    version: Option<Head>,
    path: &RelPath,
) -> Result<RelPath, Fault> {
    let Some(version) = version else { return Ok(path.clone()) };
    match edge.look_up(feed, (version.commit, path.clone())).await? {
        Some(Found::File(file)) => Ok(file.path.clone()),
        _ => Ok(path.clone()),
    }
}
