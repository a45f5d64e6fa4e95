//! `status`, `nodes`, `regions` and `locate`: who has what, what waits, who serves whom.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Client, Connection, block_on},
    paint,
    table::{self, head, items, millis, plain, size, word},
    target::FeedPath,
    watch,
};

/// What these commands have in common.
#[derive(Debug, Args)]
pub(super) struct ViewArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Go on showing it, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    #[command(flatten)]
    view: ViewArgs,
}

impl StatusArgs {
    /// The feeds of a node, what waits in them, and who mirrors them.
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.view.connection)?;
        if self.watch {
            return block_on(watch::run(&client));
        }
        let seen = block_on(see(&client))?;
        if self.view.json {
            println!("{seen:#}");
        } else {
            print!("{}", text(&seen));
        }
        Ok(())
    }
}

/// What a node says of itself and of those below it.
async fn see(client: &Client) -> Result<Value> {
    let feeds = client.list("/v1/feeds", "feeds").await?;
    let nodes = client.list("/v1/nodes", "nodes").await?;
    let bandwidth = client.get(client.url("/v1/bandwidth")?).await?;
    Ok(json!({ "feeds": feeds["feeds"], "nodes": nodes["nodes"], "bandwidth": bandwidth }))
}

/// The view of `status`, for a person.
pub(super) async fn view(client: &Client) -> Result<String> {
    Ok(text(&see(client).await?))
}

fn text(seen: &Value) -> String {
    let mut out = String::new();
    for feed in items(seen, "feeds") {
        write_feed(&mut out, feed);
        let followers = items(seen, "nodes").iter().filter_map(|node| follower(node, feed));
        out.push_str(&table::text(&followers.collect::<Vec<_>>()));
    }
    if let Some(line) = sending(&seen["bandwidth"]) {
        out.push_str(&line);
        out.push('\n');
    }
    out
}

impl ViewArgs {
    /// `nodes`: every node below this one, feed by feed.
    pub(super) fn nodes(self) -> Result<()> {
        let answer = self.list("/v1/nodes", "nodes")?;
        if self.json {
            println!("{answer:#}");
            return Ok(());
        }
        let heading = [
            "REGION",
            "NODE",
            "FEED",
            "STATE",
            "HAVE",
            "WANT",
            "VERIFIED",
            "LAG",
            "URL",
            "ID",
            "LAST ERROR",
        ];
        let mut rows = vec![heading.map(ToOwned::to_owned).to_vec()];
        for node in items(&answer, "nodes") {
            for feed in items(node, "feeds") {
                rows.push(vec![
                    word(&node["region"]),
                    word(&node["label"]),
                    word(&feed["feed"]),
                    word(&feed["state"]),
                    head(&feed["have"]),
                    head(&feed["want"]),
                    word(&feed["verified_at"]),
                    millis(&feed["lag_ms"]),
                    word(&node["url"]),
                    word(&node["id"]),
                    word(&feed["last_error"]),
                ]);
            }
        }
        table::print(&rows);
        Ok(())
    }

    /// `regions`: the region table, and who serves each region.
    pub(super) fn regions(self) -> Result<()> {
        let answer = self.list("/v1/regions", "regions")?;
        if self.json {
            println!("{answer:#}");
            return Ok(());
        }
        let heading = ["REGION", "CLIENTS", "FEED", "SERVED BY"];
        let mut rows = vec![heading.map(ToOwned::to_owned).to_vec()];
        for region in items(&answer, "regions") {
            let members = [items(region, "ranges"), items(region, "resource_groups")].concat();
            let members: Vec<String> = members.iter().map(word).collect();
            let clients = match region["listed"].as_bool() {
                Some(false) => "none: it is not in the region table".to_owned(),
                _ => members.join(" "),
            };
            let row = |feed, by| vec![word(&region["name"]), clients.clone(), feed, by];
            let served = items(region, "nodes").iter().chain(items(region, "barred"));
            let before = rows.len();
            rows.extend(served.map(|node| row(word(&node["feed"]), server(node))));
            if rows.len() == before {
                rows.push(row("-".to_owned(), "the primary: no node has registered".to_owned()));
            }
        }
        table::print(&rows);
        Ok(())
    }

    fn list(&self, path: &str, name: &str) -> Result<Value> {
        let client = Client::new(&self.connection)?;
        block_on(client.list(path, name))
    }
}

/// Who serves a region.
fn server(node: &Value) -> String {
    let url = word(&node["url"]);
    if !node["why"].is_null() {
        let (label, why) = (word(&node["id"]), passed_over(&node["why"]));
        return format!("a relay above it or the primary: the node {label} {why}");
    }
    match node["pinned"].as_str() {
        Some(commit) => format!("{url}, kept at commit {}", &commit[..commit.len().min(12)]),
        None => url,
    }
}

/// Why a node is passed over.
fn passed_over(why: &Value) -> String {
    match why.as_str() {
        Some("away") => "is not connected".to_owned(),
        Some("unreached") => "was not reached at its address".to_owned(),
        Some("paused") => "is paused".to_owned(),
        Some("pinned") => "is kept at another version".to_owned(),
        Some("other_part") => "does not keep this part of the feed".to_owned(),
        Some("cannot_fetch") => "lacks this version, and its last fetch has failed".to_owned(),
        _ => word(why),
    }
}

/// What is limited, being sent and waiting; none where there is nothing of that.
fn sending(bandwidth: &Value) -> Option<String> {
    let limits = ["total", "downloads", "replication", "per_client"];
    let limits = limits.into_iter().filter_map(|over| {
        Some(format!("{} {}", over.replace('_', " "), bandwidth["in_force"][over].as_str()?))
    });
    let networks = items(&bandwidth["in_force"], "networks").iter().map(|network| {
        let name = network["cidr"].as_str().or(network["region"].as_str()).unwrap_or_default();
        format!("{name} {}", word(&network["limit"]))
    });
    let limits: Vec<_> = limits.chain(networks).collect();
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let waiting = &bandwidth["waiting"];
    let throttled = count(&waiting["downloads"]) + count(&waiting["replication"]);
    let (sending, queued) = (count(&bandwidth["sending"]), count(&bandwidth["queued"]));
    if limits.is_empty() && sending + queued + throttled == 0 {
        return None;
    }
    let limits =
        if limits.is_empty() { "nothing is limited".to_owned() } else { limits.join(", ") };
    Some(format!(
        "sending: {limits}; downloads: {sending} being sent, {queued} queued; {throttled} wait for \
         their turn under a limit"
    ))
}

fn write_feed(out: &mut String, feed: &Value) {
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!(
        "{} ({}): {}, {}, {}, {}",
        paint::heading(&plain(&word(&feed["feed"]))),
        word(&feed["role"]),
        state(&plain(&word(&feed["state"]))),
        head(feed),
        files(&feed["files"]),
        size(&feed["bytes"]),
    ));
    for (name, what) in [("detail", "note"), ("last_error", "last error"), ("upstream", "from")] {
        if let Some(text) = feed[name].as_str() {
            line(format!("  {what}: {}", plain(text)));
        }
    }
    if let Some(text) = progress(&feed["progress"]) {
        line(format!("  fetching: {text}"));
    }
    if let Some(text) = importing(&feed["importing"]) {
        line(format!("  importing: {text}"));
    }
    if let Some(text) = growth(&feed["store"]) {
        line(format!("  disk: {text}"));
    }
    let held = items(feed, "held");
    for change in held {
        let [path, reason, since] = ["path", "reason", "since"].map(|name| word(&change[name]));
        line(format!("  held: {}: {}, since {since}", plain(&path), plain(&reason)));
    }
    let more = feed["held_count"].as_u64().unwrap_or(0).saturating_sub(held.len() as u64);
    if more > 0 {
        line(format!("  held: {more} more"));
    }
}

/// A feed's state, in the colour of what it asks of whoever reads it.
fn state(name: &str) -> String {
    let calm = ["idle", "importing", "syncing"];
    let painted = if calm.contains(&name) { paint::good(name) } else { paint::warning(name) };
    painted.to_string()
}

/// What the repository takes, how fast it grows, and how long that goes well.
fn growth(store: &Value) -> Option<String> {
    store["free_bytes"].as_u64().filter(|free| *free > 0)?;
    let (objects, packs) = (size(&store["object_bytes"]), size(&store["pack_bytes"]));
    let mut text = format!("{objects} of large files, {packs} of the rest and history");
    if store["growth_per_day"].as_u64().is_some_and(|growth| growth > 0) {
        text = format!("{text}; {} more each day", size(&store["growth_per_day"]));
    }
    text = format!("{text}; {} free", size(&store["free_bytes"]));
    if let Some(days) = store["days_until_full"].as_u64() {
        text = format!("{text}, full in {days} days");
    }
    Some(text)
}

fn files(count: &Value) -> String {
    if *count == 1 { "1 file".to_owned() } else { format!("{} files", word(count)) }
}

/// A node's line under a feed that it mirrors.
fn follower(node: &Value, feed: &Value) -> Option<Vec<String>> {
    let mirrored = items(node, "feeds").iter().find(|mirrored| mirrored["feed"] == feed["feed"])?;
    let lag = match mirrored["lag_ms"].as_u64() {
        None | Some(0) => String::new(),
        Some(_) => format!("for {}", millis(&mirrored["lag_ms"])),
    };
    let error = mirrored["last_error"].as_str().map(ToOwned::to_owned);
    Some(vec![
        format!("  {}", word(&node["region"])),
        word(&node["label"]),
        format!("{} {lag}", word(&mirrored["state"])).trim_end().to_owned(),
        head(&mirrored["have"]),
        word(&node["url"]),
        error.or_else(|| progress(&mirrored["progress"])).unwrap_or_default(),
    ])
}

/// How far a first import is, how fast, and how long it will take.
fn importing(importing: &Value) -> Option<String> {
    let mut text = files(importing.get("files")?);
    if !importing["total_files"].is_null() {
        text = format!("{} of {}", word(&importing["files"]), files(&importing["total_files"]));
    }
    text = format!("{text}, {}", size(&importing["bytes"]));
    if !importing["rate"].is_null() {
        let files = word(&importing["files_per_sec"]);
        text = format!("{text}, {files} files/s, {}/s", size(&importing["rate"]));
    }
    if !importing["left_ms"].is_null() {
        text = format!("{text}, {} left", millis(&importing["left_ms"]));
    }
    Some(text)
}

/// How far a fetch is, how fast, and how long it will take.
fn progress(progress: &Value) -> Option<String> {
    let total = progress["total"].as_u64().filter(|total| *total > 0)?;
    let mut text = format!("{} of {}", size(&progress["done"]), size(&total.into()));
    if !progress["rate"].is_null() {
        text = format!("{text}, {}/s", size(&progress["rate"]));
    }
    if !progress["left_ms"].is_null() {
        text = format!("{text}, {} left", millis(&progress["left_ms"]));
    }
    Some(text)
}

/// Arguments of `locate`.
#[derive(Debug, Args)]
pub(super) struct LocateArgs {
    /// The file, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    path: FeedPath,
    /// The client's address [default: this host's]
    #[arg(long, value_name = "IP")]
    from: Option<IpAddr>,
    /// The client's resource group
    #[arg(long, value_name = "GROUP")]
    resource_group: Option<String>,
    #[command(flatten)]
    view: ViewArgs,
}

impl LocateArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.view.connection)?;
        let mut url = client.url(&format!("/v1/locate/{}", self.path.in_url("")))?;
        if let Some(from) = self.from {
            url.query_pairs_mut().append_pair("from", &from.to_string());
        }
        if let Some(group) = &self.resource_group {
            url.query_pairs_mut().append_pair("resource_group", group);
        }
        let answer = block_on(client.get(url))?;
        if self.view.json {
            println!("{answer:#}");
            return Ok(());
        }
        println!("{}", word(&answer["url"]));
        println!("region {}, because: {}", word(&answer["region"]), because(&answer["why"]));
        for node in items(&answer, "passed_over") {
            println!("passed over: {}, which {}", word(&node["node"]), passed_over(&node["why"]));
        }
        Ok(())
    }
}

fn because(why: &Value) -> String {
    match why.as_str() {
        Some("address") => "the client's address is in its ranges".to_owned(),
        Some("resource_group") => "the client's resource group belongs to it".to_owned(),
        Some("no_entry") => "no entry of the region table holds the client".to_owned(),
        Some("relay") => "it is a relay above the client's region".to_owned(),
        Some("region_down") => "no node of the client's region can serve this".to_owned(),
        Some("via") => "the client asks for it".to_owned(),
        Some("via_down") => "what the client asks for cannot serve this".to_owned(),
        _ => word(why),
    }
}
