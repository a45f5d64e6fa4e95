//! `audit`: who did what, from where, with which token, and how it ended.

use anyhow::Result;
use clap::Args;

use super::{
    client::{Client, Connection, block_on},
    table::{self, items, word},
};

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// How many acts, the newest first
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl AuditArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let answer = block_on(client.get(client.url(&format!("/v1/audit?limit={}", self.limit))?))?;
        if self.json {
            println!("{answer:#}");
            return Ok(());
        }
        let head = ["AT", "WHO", "FROM", "STATUS", "ACT", "WHAT"].map(str::to_owned);
        let mut rows = vec![head.to_vec()];
        let row = |act| COLUMNS.map(|key| word(&act_field(act, key))).to_vec();
        rows.extend(items(&answer, "acts").iter().map(row));
        table::print(&rows);
        Ok(())
    }
}

const COLUMNS: [&str; 6] = ["at", "who", "from", "status", "action", "detail"];

/// Times to the second: more is noise to a person.
fn act_field(act: &serde_json::Value, key: &str) -> serde_json::Value {
    let text = act[key].as_str().filter(|_| key == "at");
    match text.and_then(|text| Some((text.get(..19)?, text.ends_with('Z')))) {
        Some((second, true)) => format!("{second}Z").into(),
        _ => act[key].clone(),
    }
}
