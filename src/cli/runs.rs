//! `runs`: what a node did, and what came of it.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, Connection, block_on},
    table::{self, items, millis, size, word},
};
use crate::model::FeedName;

/// Arguments of `runs`.
#[derive(Debug, Args)]
pub(super) struct RunsArgs {
    /// Only this feed's
    #[arg(long, value_name = "NAME")]
    feed: Option<FeedName>,
    /// How many, the newest first
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Also the names of what was moved
    #[arg(long)]
    names: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl RunsArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let mut url = client.url(&format!("/v1/runs?limit={}", self.limit))?;
        if let Some(feed) = &self.feed {
            url.query_pairs_mut().append_pair("feed", feed.as_str());
        }
        let answer = block_on(client.get(url))?;
        if self.json {
            println!("{answer:#}");
            return Ok(());
        }
        let heading = ["STARTED", "FEED", "RUN", "OUTCOME", "TOOK", "FILES", "BYTES", "DETAIL"];
        let mut rows = vec![heading.map(ToOwned::to_owned).to_vec()];
        for run in items(&answer, "runs") {
            rows.push(row(run));
            let names = items(run, "names").iter().filter(|_| self.names);
            rows.extend(names.map(|name| vec![format!("  {}", word(&name["path"]))]));
        }
        table::print(&rows);
        Ok(())
    }
}

fn row(run: &Value) -> Vec<String> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for a person")]
    let took = run["took_ms"].as_f64().map(|took| took.max(0.0) as u64);
    vec![
        word(&run["started"]),
        word(&run["feed"]),
        word(&run["kind"]),
        word(&run["outcome"]),
        millis(&took.into()),
        word(&run["files"]),
        size(&run["bytes"]),
        word(&run["detail"]),
    ]
}
