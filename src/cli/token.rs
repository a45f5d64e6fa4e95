//! `token create`, `token list` and `token revoke`: who is let in.
//!
//! A secret is printed once, alone on stdout, so that `> file` keeps it; all the rest goes to stderr.

use std::time::Duration;

use anyhow::{Result, anyhow};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{
    client::{Client, Connection, block_on},
    table::{self, items, word},
};
use crate::{
    config,
    model::{FeedName, RegionPattern, Role},
    sys,
};

/// Arguments of `token`.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a token, and print it: this once
    Create(CreateArgs),
    /// List the tokens, without their secrets
    List(ListArgs),
    /// Let nobody in by a token any more
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// What its holder is: reader, mirror, writer or admin
    #[arg(long)]
    role: Role,
    /// The only feed that it opens [default: all feeds]
    #[arg(long, value_name = "NAME")]
    feed: Option<FeedName>,
    /// The region that a mirror stands for, or a pattern of names, as in edge-*
    /// [default: none, and no client is led to it]
    #[arg(long, value_name = "REGION")]
    region: Option<RegionPattern>,
    /// For how long it is good, as in 365d [default: until it is revoked]
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    expires: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, Args)]
struct RevokeArgs {
    /// Its id, as `token list` shows it
    #[arg(value_parser = id)]
    id: String,
    #[command(flatten)]
    connection: Connection,
}

fn id(text: &str) -> std::result::Result<String, String> {
    let is_id = !text.is_empty() && text.bytes().all(|c| c.is_ascii_hexdigit());
    is_id
        .then(|| text.to_owned())
        .ok_or_else(|| "an id is hex digits; `token list` shows them".into())
}

impl TokenArgs {
    pub(super) fn run(self) -> Result<()> {
        match self.command {
            Command::Create(args) => args.run(),
            Command::List(args) => args.run(),
            Command::Revoke(args) => args.run(),
        }
    }
}

impl CreateArgs {
    fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let expires = self.expires.map(|time| DateTime::<Utc>::from(sys::now()) + time);
        let body = json!({
            "role": self.role, "feed": self.feed, "region": self.region, "expires": expires,
        });
        let made = block_on(client.post("/v1/tokens", &body))?;
        if self.json {
            println!("{made:#}");
            return Ok(());
        }
        let secret = made["token"].as_str().ok_or_else(|| anyhow!("the answer holds no token"))?;
        println!("{secret}");
        eprintln!(
            "token {} for a {}; it is not shown again: keep it in a file of mode 0600",
            word(&made["id"]),
            self.role
        );
        Ok(())
    }
}

impl ListArgs {
    fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let answer = block_on(client.list("/v1/tokens", "tokens"))?;
        if self.json {
            println!("{answer:#}");
            return Ok(());
        }
        let head =
            ["ID", "ROLE", "FEED", "REGION", "CREATED", "LAST USED", "EXPIRES"].map(str::to_owned);
        let mut rows = vec![head.to_vec()];
        for token in items(&answer, "tokens") {
            let mut row = COLUMNS.map(|key| word(&token[key])).to_vec();
            row.push(format!("{}{}", word(&token["expires"]), left(token)));
            rows.push(row);
        }
        table::print(&rows);
        Ok(())
    }
}

const COLUMNS: [&str; 6] = ["id", "role", "feed", "region", "created", "last_used"];

/// What an operator should notice of a token's end.
fn left(token: &serde_json::Value) -> String {
    if token["expired"] == true {
        return " (expired)".to_owned();
    }
    let end = token["expires"].as_str().and_then(|text| text.parse::<DateTime<Utc>>().ok());
    match end.map(|end| (end - DateTime::<Utc>::from(sys::now())).num_days()) {
        Some(days) if days < 14 => format!(" (in {days} days)"),
        _ => String::new(),
    }
}

impl RevokeArgs {
    fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let url = client.url(&format!("/v1/tokens/{}", self.id))?;
        block_on(client.send(Method::DELETE, url, |request| request))?;
        println!("token {} lets nobody in any more", self.id);
        Ok(())
    }
}
