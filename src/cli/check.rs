//! `check`: reads a configuration as the daemon would, and says what it comes to.
//!
//! Opens no port, makes no state: it may run beside the daemon.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Error;
use crate::config::{self, Checkout, Consent, FeedSettings, Mirror, Role, Settings};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// As it would be run with --insecure
    #[arg(long)]
    insecure: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl CheckArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let consent = Consent { insecure: self.insecure, adopt: false };
        let settings = config::from_file(&self.config, consent)?;
        if self.json {
            println!("{:#}", as_json(&settings));
            return Ok(());
        }
        println!("{}: good", self.config.display());
        println!(
            "node {}, on {}, state in {}",
            settings.node,
            settings.listen,
            settings.state_dir.display()
        );
        for feed in &settings.feeds {
            println!("feed {}: {}", feed.name, role(feed));
        }
        Ok(())
    }
}

fn role(feed: &FeedSettings) -> String {
    match &feed.role {
        Role::Primary(primary) => format!("primary of {}", primary.dir.display()),
        Role::Region(Mirror { upstream, upstream_feed, checkout, .. }) => {
            let to = match checkout {
                Checkout::Snapshot { link, .. } => {
                    format!("as releases, shown at {}", link.display())
                }
                Checkout::InPlace { dir, .. } => format!("to {}", dir.display()),
                Checkout::None => "without a checkout".to_owned(),
            };
            format!("mirrored from {upstream} (feed {upstream_feed}) {to}")
        }
    }
}

fn as_json(settings: &Settings) -> serde_json::Value {
    let feeds: Vec<_> = settings
        .feeds
        .iter()
        .map(|feed| {
            let (role, upstream) = match &feed.role {
                Role::Primary(_) => ("primary", None),
                Role::Region(mirror) => ("region", Some(mirror.upstream.as_str())),
            };
            json!({ "name": feed.name, "role": role, "dir": feed.dir().map(Path::to_string_lossy), "upstream": upstream })
        })
        .collect();
    json!({
        "node": settings.node,
        "listen": settings.listen,
        "advertise": settings.advertise.as_ref().map(ToString::to_string),
        "state_dir": settings.state_dir.to_string_lossy(),
        "region": settings.region,
        "feeds": feeds,
    })
}
