//! `gc` and `fsck`: ordered of the daemon, which has the repository, and waited for.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Client, Connection, block_on},
    table::items,
    target::FeedArg,
};

/// How often it is asked whether it is done.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Arguments of `gc` and `fsck`.
#[derive(Debug, Args)]
pub(super) struct UpkeepArgs {
    #[command(flatten)]
    feed: FeedArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl UpkeepArgs {
    /// `gc`: removes what no kept version needs, and folds packs.
    pub(super) fn gc(self) -> Result<()> {
        let report = self.order("gc")?;
        let done = &report["gc"];
        if self.json {
            println!("{done:#}");
            return Ok(());
        }
        println!(
            "{}: {} objects with {} bytes removed; {} with {} bytes stay, for {} versions",
            self.feed.name,
            done["removed"],
            done["removed_bytes"],
            done["kept"],
            done["kept_bytes"],
            done["versions"]
        );
        Ok(())
    }

    /// `fsck`: checks everything, and repairs what it can.
    pub(super) fn fsck(self) -> Result<()> {
        let report = self.order("fsck")?;
        let done = &report["fsck"];
        if self.json {
            println!("{done:#}");
        } else {
            let (bytes, commits) = (&done["bytes"], &done["commits"]);
            println!("{}: {bytes} bytes and {commits} versions checked", self.feed.name);
            for (what, list) in [("found", "found"), ("differs", "differing")] {
                for line in items(done, list) {
                    println!("  {what}: {}", text(line));
                }
            }
        }
        let broken = items(done, "broken");
        if broken.is_empty() {
            return Ok(());
        }
        for line in broken {
            eprintln!("  broken: {}", text(line));
        }
        bail!("{} things are still damaged or missing; it is tried again", broken.len())
    }

    /// Orders it and waits until it is done; the report then.
    fn order(&self, what: &str) -> Result<Value> {
        let client = Client::new(&self.connection)?;
        block_on(async {
            let order = client.post(&self.feed.api_of(what), &json!({})).await?;
            let number = order["order"].as_u64().unwrap_or_default();
            loop {
                let report = client.get(client.url(&self.feed.api_of("upkeep"))?).await?;
                if report["done"][what].as_u64() >= Some(number) {
                    if let Some(error) = report["last_error"].as_str() {
                        bail!("{error}");
                    }
                    return Ok(report);
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        })
    }
}

fn text(line: &Value) -> &str {
    line.as_str().unwrap_or_default()
}
