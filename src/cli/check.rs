//! `check`: reads a configuration as the daemon would, and says what it comes to.
//!
//! Opens no port, makes no state: it may run beside the daemon. Only `--connect` talks to others.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::Error;
use crate::{
    config::{self, BaseUrl, Checkout, Consent, FeedSettings, Mirror, Role, Settings},
    daemon,
};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// As it would be run with --insecure
    #[arg(long)]
    insecure: bool,
    /// Try the upstreams and the NATS server as well, as the daemon would connect to them
    #[arg(long)]
    connect: bool,
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
            return if self.connect { connect(&settings) } else { Ok(()) };
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
        if self.connect { connect(&settings) } else { Ok(()) }
    }
}

/// Says what came of each upstream, on stderr; an error when one of them cannot be followed.
fn connect(settings: &Settings) -> Result<(), Error> {
    let mut faults = 0;
    for (feed, url, came) in daemon::try_upstreams(settings)? {
        match came {
            Ok(Some(head)) => {
                eprintln!("feed {feed}: {url} answers, at {} of epoch {}", head.seq, head.epoch);
            }
            Ok(None) => eprintln!("feed {feed}: {url} answers, and has published nothing yet"),
            Err(why) => {
                faults += 1;
                eprintln!("feed {feed}: {url}: {why}");
            }
        }
    }
    if let Some(why) = daemon::try_nats(settings)? {
        eprintln!("{why}");
        return Err(anyhow::anyhow!("heads cannot be announced over NATS").into());
    }
    if faults > 0 {
        return Err(anyhow::anyhow!("{faults} upstreams cannot be followed").into());
    }
    Ok(())
}

fn role(feed: &FeedSettings) -> String {
    if let (Role::Primary, Some(primary)) = (feed.role, &feed.primary) {
        return format!("primary of {}", primary.dir.display());
    }
    let Mirror { upstreams, upstream_feed, checkout, paths, .. } = &feed.mirror;
    let from: Vec<&str> = upstreams.iter().map(BaseUrl::as_str).collect();
    let part = if paths.is_empty() { String::new() } else { format!(", only {}", paths.join(" ")) };
    let to = match checkout {
        Checkout::Snapshot { link, .. } => format!("as releases, shown at {}", link.display()),
        Checkout::InPlace { dir, .. } => format!("to {}", dir.display()),
        Checkout::None => "without a checkout".to_owned(),
    };
    format!("mirrored from {} (feed {upstream_feed}) {to}{part}", from.join(" or "))
}

fn as_json(settings: &Settings) -> serde_json::Value {
    let feeds: Vec<_> = settings
        .feeds
        .iter()
        .map(|feed| {
            let role = if feed.role == Role::Primary { "primary" } else { "region" };
            let upstreams: Vec<&str> = feed.mirror.upstreams.iter().map(BaseUrl::as_str).collect();
            json!({ "name": feed.name, "role": role, "dir": feed.dir().map(Path::to_string_lossy), "upstream": upstreams })
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
