//! `sync`, `hold`, `release`, `approve` and `reject`: what a person decides about a feed.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{
    client::{Client, Connection, block_on},
    table::items,
    target::FeedArg,
};

/// Arguments of commands that take a feed and nothing else, and what they share with the others.
#[derive(Debug, Args)]
pub(super) struct FeedCommandArgs {
    #[command(flatten)]
    feed: FeedArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl FeedCommandArgs {
    /// Asks for the action, and says what is done then.
    pub(super) fn run(self, action: &str, done: &str) -> Result<()> {
        self.ask(action, &json!({}), done)
    }

    /// The same with what the action takes.
    pub(super) fn ask(&self, action: &str, body: &Value, done: &str) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let answer = block_on(client.post(&self.feed.api_of(action), body))?;
        self.say(&answer, done);
        Ok(())
    }

    fn say(&self, answer: &Value, done: &str) {
        if self.json {
            println!("{answer:#}");
        } else {
            println!("{}: {done}", self.feed.name);
        }
    }
}

/// Arguments of `approve`.
#[derive(Debug, Args)]
pub(super) struct ApproveArgs {
    /// The held list that was seen, or one held path [default: the list that is held now]
    #[arg(value_name = "LIST-ID|PATH", conflicts_with = "root")]
    what: Option<String>,
    /// The directory that now lies where the feed's was
    #[arg(long)]
    root: bool,
    #[command(flatten)]
    shared: FeedCommandArgs,
}

impl ApproveArgs {
    pub(super) fn run(self) -> Result<()> {
        let FeedCommandArgs { feed, connection, .. } = &self.shared;
        let client = Client::new(connection)?;
        let answer = block_on(async {
            let body = match &self.what {
                None if self.root => json!({ "root": true }),
                None => json!({}),
                Some(what) => {
                    let held = client.list(&feed.api_of("held"), "held").await?;
                    let is_path = items(&held, "held").iter().any(|held| held["path"] == **what);
                    if is_path { json!({ "path": what }) } else { json!({ "id": what }) }
                }
            };
            client.post(&feed.api_of("approve"), &body).await
        })?;
        self.shared.say(&answer, "approved");
        Ok(())
    }
}

/// Arguments of `reject`.
#[derive(Debug, Args)]
pub(super) struct RejectArgs {
    /// The held list that was seen [default: the list that is held now]
    #[arg(value_name = "LIST-ID")]
    id: Option<String>,
    #[command(flatten)]
    shared: FeedCommandArgs,
}

impl RejectArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.shared.connection)?;
        let body = self.id.as_ref().map_or(json!({}), |id| json!({ "id": id }));
        let answer = block_on(client.post(&self.shared.feed.api_of("reject"), &body))?;
        self.shared.say(&answer, "rejected: what was deleted is put back");
        Ok(())
    }
}
