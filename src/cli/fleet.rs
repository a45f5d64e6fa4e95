//! `sync`, `wait`, `pause`, `resume`, `promote`, `demote` and `forget`: the fleet as a whole, and who owns
//! what.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{
    client::{Client, Connection, block_on},
    table::{self, items, word},
    target::FeedArg,
};
use crate::model::FeedName;

/// How long one request waits, in seconds; a longer wait is several.
const LONGEST_REQUEST: u64 = 45;

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// The feed
    #[arg(value_name = "FEED", default_value_t)]
    feed: FeedName,
    /// The commit that every region is to have [default: the newest]
    #[arg(long, value_name = "COMMIT")]
    commit: Option<String>,
    /// For how long, as in 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s")]
    timeout: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl WaitArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let verdict = block_on(wait(&client, &self.feed, self.commit.as_deref(), &self.timeout))?;
        tell(&verdict, self.json)
    }
}

/// What the node answers, whether every region has the commit or not.
pub(super) async fn wait(
    client: &Client,
    feed: &FeedName,
    commit: Option<&str>,
    timeout: &str,
) -> Result<Value> {
    let end = Instant::now() + seconds(timeout)?;
    let mut commit = commit.map(ToOwned::to_owned);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut url = client.url(&format!("/v1/feeds/{feed}/wait"))?;
        let patience = left.as_secs().min(LONGEST_REQUEST).to_string();
        url.query_pairs_mut().append_pair("timeout", &patience);
        if let Some(commit) = &commit {
            url.query_pairs_mut().append_pair("commit", commit);
        }
        let verdict = client.ask(url, &[StatusCode::GATEWAY_TIMEOUT]).await?;
        if verdict["error"].is_null() || left.as_secs() <= LONGEST_REQUEST {
            return Ok(verdict);
        }
        // The same commit again, also when a newer one was published meanwhile.
        commit = verdict["commit"].as_str().map(ToOwned::to_owned);
    }
}

/// A number of seconds, with or without its unit.
fn seconds(text: &str) -> Result<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => bail!("\"{text}\" is no time, as in 90s or 5m"),
    };
    let count: u64 = digits.parse().with_context(|| format!("\"{text}\" is no time"))?;
    let secs = count.saturating_mul(factor);
    ensure!(secs <= 7 * 86_400, "\"{text}\" is longer than a week");
    Ok(Duration::from_secs(secs))
}

/// Arguments of `sync`.
#[derive(Debug, Args)]
pub(super) struct SyncArgs {
    /// Wait until every region has verified what was found
    #[arg(long)]
    wait: bool,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait")]
    timeout: String,
    #[command(flatten)]
    feed: FeedArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl SyncArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let answer = block_on(client.post(&self.feed.api_of("sync"), &json!({})))?;
        if self.wait {
            let verdict = block_on(wait(&client, &self.feed.name, None, &self.timeout))?;
            return tell(&verdict, self.json);
        }
        if self.json {
            println!("{answer:#}");
        } else {
            println!("{}: looked, and everything found is under way", self.feed.name);
        }
        Ok(())
    }
}

/// Says who has the commit; an error while somebody lacks it.
pub(super) fn tell(verdict: &Value, json: bool) -> Result<()> {
    if json {
        println!("{verdict:#}");
    } else {
        let mut rows = Vec::new();
        for (list, what) in
            [("verified", "verified"), ("excused", "not waited for"), ("lacking", "lacks it")]
        {
            rows.extend(items(verdict, list).iter().map(|member| {
                vec![
                    word(&member["region"]),
                    word(&member["label"]),
                    what.to_owned(),
                    word(&member["why"]),
                ]
            }));
        }
        table::print(&rows);
    }
    match verdict["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => Ok(()),
    }
}

/// Arguments of `pause` and `resume`.
#[derive(Debug, Args)]
pub(super) struct WhomArgs {
    #[command(flatten)]
    feed: FeedArg,
    /// Only this node, by its id or label
    #[arg(long, value_name = "NODE", conflicts_with = "region")]
    node: Option<String>,
    /// Only whoever stands for this region
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl WhomArgs {
    pub(super) fn run(self, action: &str, done: &str) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let fields = [("node", &self.node), ("region", &self.region)];
        let named = fields.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        let body: Map<String, Value> =
            named.map(|(name, value)| (name.to_owned(), json!(value))).collect();
        let whom = body.values().next().and_then(Value::as_str).unwrap_or("every node").to_owned();
        block_on(client.post(&self.feed.api_of(action), &Value::Object(body)))?;
        println!("{}: {whom} {done}", self.feed.name);
        Ok(())
    }
}

/// Arguments of `promote`.
#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    #[command(flatten)]
    feed: FeedArg,
    #[command(flatten)]
    connection: Connection,
}

impl PromoteArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        block_on(client.post(&self.feed.api_of("promote"), &json!({})))?;
        println!(
            "{}: this node owns the feed, and its directory is watched; `depsync status` shows the epoch",
            self.feed.name
        );
        Ok(())
    }
}

/// Arguments of `demote`.
#[derive(Debug, Args)]
pub(super) struct DemoteArgs {
    #[command(flatten)]
    feed: FeedArg,
    /// The node that owns the feed now [default: as configured]
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

impl DemoteArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let body = self.upstream.map_or(json!({}), |url| json!({ "upstream": url }));
        block_on(client.post(&self.feed.api_of("demote"), &body))?;
        println!(
            "{}: this node mirrors the feed; what it had not published goes aside",
            self.feed.name
        );
        Ok(())
    }
}

/// Arguments of `forget`.
#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The node's id, as `depsync nodes` shows it
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    connection: Connection,
}

impl ForgetArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let url = client.url(&format!("/v1/nodes/{}", self.node))?;
        block_on(client.send(Method::DELETE, url, |request| request))?;
        println!("{}: forgotten", self.node);
        Ok(())
    }
}
