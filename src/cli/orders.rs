//! `rollback`, `pin`, `unpin` and `revoke`: which version lies where.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::control::FeedCommandArgs;
use crate::model::Oid;

/// Arguments of `rollback` and `revoke`.
#[derive(Debug, Args)]
pub(super) struct CommitArgs {
    /// The commit, 40 hex digits
    commit: Oid,
    #[command(flatten)]
    shared: FeedCommandArgs,
}

impl CommitArgs {
    /// Asks for the action, and says what is done then.
    pub(super) fn run(self, action: &str, done: &str) -> Result<()> {
        self.shared.ask(action, &json!({ "commit": self.commit }), done)
    }
}

/// Whom it is about; neither: every node.
#[derive(Debug, Args)]
struct TargetArgs {
    /// One node, by id or label
    #[arg(long, conflicts_with = "region")]
    node: Option<String>,
    /// Whoever serves a region
    #[arg(long)]
    region: Option<String>,
}

/// Arguments of `pin`.
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// The commit, 40 hex digits
    commit: Oid,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    shared: FeedCommandArgs,
}

impl PinArgs {
    pub(super) fn run(self) -> Result<()> {
        let TargetArgs { node, region } = &self.target;
        let mut body = json!({ "commit": self.commit });
        add(&mut body, "node", node.as_ref());
        add(&mut body, "region", region.as_ref());
        self.shared.ask("pin", &body, "pinned until `depsync unpin`")
    }
}

/// Arguments of `unpin`.
#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    shared: FeedCommandArgs,
}

impl UnpinArgs {
    pub(super) fn run(self) -> Result<()> {
        let TargetArgs { node, region } = &self.target;
        let mut body = json!({});
        add(&mut body, "node", node.as_ref());
        add(&mut body, "region", region.as_ref());
        self.shared.ask("unpin", &body, "unpinned")
    }
}

fn add(body: &mut serde_json::Value, key: &str, value: Option<&String>) {
    if let Some(value) = value {
        body[key] = json!(value);
    }
}
