//! `log`, `diff` and `ls`: what was published when, what it changed, and what lies where.

use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, Connection, block_on},
    patch,
    table::{self, items, plain, size, word},
    target::{FeedArg, encoded, rel_path},
};
use crate::model::{Oid, RelPath};

/// What these commands have in common.
#[derive(Debug, Args)]
struct HistoryArgs {
    #[command(flatten)]
    feed: FeedArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Arguments of `log`.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// How many commits, from the newest backwards
    #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 20,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    /// Only what is older than this commit
    #[arg(long, value_name = "COMMIT")]
    after: Option<Oid>,
    #[command(flatten)]
    shared: HistoryArgs,
}

impl LogArgs {
    pub(super) fn run(self) -> Result<()> {
        let HistoryArgs { feed, json, connection } = &self.shared;
        let after = self.after.map(|after| format!("&after={after}")).unwrap_or_default();
        let client = Client::new(connection)?;
        let url = client.url(&feed.api_of(&format!("log?limit={}{after}", self.limit)))?;
        let answer = block_on(client.get(url))?;
        if *json {
            println!("{answer:#}");
            return Ok(());
        }
        let row = |commit: &Value| {
            vec![
                word(&commit["commit"]),
                format!("{}.{}", word(&commit["epoch"]), word(&commit["seq"])),
                word(&commit["time"]),
                word(&commit["subject"]),
            ]
        };
        table::print(&items(&answer, "commits").iter().map(row).collect::<Vec<_>>());
        Ok(())
    }
}

/// Two commits, `A..B`; a missing side is chosen for the person.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: Option<Oid>,
    to: Option<Oid>,
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|error| format!("{error}")),
        };
        let (from, to) =
            text.split_once("..").ok_or("write A..B, A.. or ..B, with full commit ids")?;
        Ok(Span { from: side(from)?, to: side(to)? })
    }
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Two commits, A..B; without A from nothing, without B to the newest [default: the last commit's
    /// changes]
    #[arg(value_name = "A..B")]
    span: Option<Span>,
    /// Show what changed inside files of text
    #[arg(long, short = 'p', conflicts_with = "json")]
    patch: bool,
    #[command(flatten)]
    shared: HistoryArgs,
}

impl DiffArgs {
    pub(super) fn run(self) -> Result<()> {
        let HistoryArgs { feed, json, connection } = &self.shared;
        let client = Client::new(connection)?;
        let (between, answer) = block_on(async {
            let Span { from, to } = match self.span {
                Some(span) => span,
                None => last_commit(&client, feed).await?,
            };
            let to = match to {
                Some(to) => to,
                None => newest(&client, feed).await?,
            };
            let since = from.map_or("0".to_owned(), |from| from.to_string());
            let path = feed.api_of(&format!("diff/{since}..{to}"));
            Ok(((from, to), client.list(&path, "changes").await?))
        })?;
        if self.patch {
            return block_on(async {
                for change in items(&answer, "changes") {
                    patch::show(&client, feed, between, change).await?;
                }
                Ok(())
            });
        }
        if *json {
            println!("{answer:#}");
            return Ok(());
        }
        for change in items(&answer, "changes") {
            println!("{} {}", word(&change["status"]), plain(&word(&change["path"])));
        }
        Ok(())
    }
}

/// The newest commit and the one before it.
async fn last_commit(client: &Client, feed: &FeedArg) -> Result<Span> {
    let answer = client.get(client.url(&feed.api_of("log?limit=1"))?).await?;
    let Some(newest) = items(&answer, "commits").first() else {
        bail!("nothing is published in feed \"{}\" yet", feed.name);
    };
    let id = |value: &Value| value.as_str().and_then(|id| id.parse().ok());
    Ok(Span { from: id(&newest["parent"]), to: id(&newest["commit"]) })
}

async fn newest(client: &Client, feed: &FeedArg) -> Result<Oid> {
    let answer = client.get(client.url(&feed.api())?).await?;
    let commit = answer["commit"].as_str();
    let commit =
        commit.with_context(|| format!("nothing is published in feed \"{}\" yet", feed.name))?;
    commit.parse().context("the node names a commit in a form that is not known")
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(super) struct LsArgs {
    /// The folder
    #[arg(default_value = ".", value_parser = rel_path)]
    path: RelPath,
    /// As it was in this commit, 40 hex digits [default: the newest]
    #[arg(long, value_name = "COMMIT")]
    at: Option<Oid>,
    #[command(flatten)]
    shared: HistoryArgs,
}

impl LsArgs {
    pub(super) fn run(self) -> Result<()> {
        let HistoryArgs { feed, json, connection } = &self.shared;
        let client = Client::new(connection)?;
        let answer = block_on(async {
            let commit = match self.at {
                Some(commit) => commit,
                None => newest(&client, feed).await?,
            };
            let path = feed.api_of(&format!("tree/{commit}/{}", encoded(&self.path)));
            client.list(&path, "entries").await
        })?;
        if *json {
            println!("{answer:#}");
            return Ok(());
        }
        table::print(&items(&answer, "entries").iter().map(entry).collect::<Vec<_>>());
        Ok(())
    }
}

fn entry(entry: &Value) -> Vec<String> {
    let name = word(&entry["name"]);
    let name = match (entry["type"].as_str(), entry["target"].as_str()) {
        (Some("folder"), _) => format!("{name}/"),
        (_, Some(target)) => format!("{name} -> {target}"),
        _ => name,
    };
    vec![word(&entry["mode"]), size(&entry["size"]), word(&entry["mtime"]), name]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_two_commits_or_leaves_one_out() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let read = |text: &str| text.parse::<Span>().map(|Span { from, to }| (from, to));
        let one = Some(id.parse().unwrap());
        assert_eq!(read(&format!("{id}..{id}")), Ok((one, one)));
        assert_eq!(read(&format!("{id}..")), Ok((one, None)));
        assert_eq!(read(&format!("..{id}")), Ok((None, one)));
        for bad in ["", id, "a..b", "0123..", &format!("{id}...{id}")] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
