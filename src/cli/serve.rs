//! `primary`, `region` and `run`: from arguments to settings to the daemon.
//!
//! All three end in the same `config::Settings` and the same `daemon::run`; the flags are a short
//! form of a configuration file with one feed.

use std::{
    io::{IsTerminal, stderr},
    path::PathBuf,
};

use clap::{Args, ValueEnum};

use super::{Error, import_bar::Bars};
use crate::{
    config::{self, Consent, Flags, Settings},
    daemon,
};

/// How the log is written, on stderr.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What every daemon takes, whichever way its feeds are named.
#[derive(Debug, Args)]
struct DaemonArgs {
    /// Serve beyond loopback without TLS and tokens: whoever reaches the port may read and change
    #[arg(long)]
    insecure: bool,
    /// How the log is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

/// What names a node, the same for `primary` and `region`.
#[derive(Debug, Args)]
struct NodeArgs {
    /// The deployment directory
    dir: PathBuf,
    /// The feed's name
    #[arg(long, value_name = "NAME", default_value = "default")]
    feed: String,
    /// What people call this node [default: the host's name, for a region its region's]
    #[arg(long, value_name = "LABEL")]
    node: Option<String>,
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR", default_value = config::DEFAULT_LISTEN)]
    listen: String,
    /// The URL under which others reach this node
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Where everything but the files is kept [default: /var/lib/depsync as root, else
    /// ~/.local/state/depsync]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl NodeArgs {
    fn flags(self) -> Flags {
        Flags {
            dir: self.dir,
            feed: Some(self.feed),
            node: self.node,
            listen: Some(self.listen),
            advertise: self.advertise,
            state: self.state,
            ..Flags::default()
        }
    }
}

/// Arguments of `primary`.
#[derive(Debug, Args)]
pub(super) struct PrimaryArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The region table, region.xml
    #[arg(long, value_name = "FILE")]
    regions: Option<PathBuf>,
    /// Leave out what the server in the directory writes itself: tomcat, wildfly, wso2 or karaf
    #[arg(long, value_name = "SERVER")]
    profile: Option<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl PrimaryArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let flags = Flags { regions: self.regions, profile: self.profile, ..self.node.flags() };
        let consent = Consent { insecure: self.daemon.insecure, adopt: false };
        serve(config::from_flags(flags, consent)?, self.daemon.log_format)
    }
}

/// Arguments of `region`.
#[derive(Debug, Args)]
pub(super) struct RegionArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[arg(
        long,
        value_name = "URL",
        required = true,
        help = "The node to mirror from, as in http://hub.example:7873; given several times, the \
                one with the highest epoch is followed"
    )]
    upstream: Vec<String>,
    /// The feed's name there [default: the same]
    #[arg(long, value_name = "NAME")]
    upstream_feed: Option<String>,
    /// The region that this node serves
    #[arg(long, value_name = "REGION")]
    name: String,
    /// Move files aside that lie in the directory and differ from the feed's
    #[arg(long)]
    adopt: bool,
    /// A file with the token that the upstream asks for; `depsync token create` makes one there
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl RegionArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let flags = Flags {
            upstreams: self.upstream,
            upstream_feed: self.upstream_feed,
            name: Some(self.name),
            token_file: self.token_file,
            ..self.node.flags()
        };
        let consent = Consent { insecure: self.daemon.insecure, adopt: self.adopt };
        serve(config::from_flags(flags, consent)?, self.daemon.log_format)
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// Move files aside that lie in mirrored directories and differ from the feeds'
    #[arg(long)]
    adopt: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<(), Error> {
        let consent = Consent { insecure: self.daemon.insecure, adopt: self.adopt };
        serve(config::from_file(&self.config, consent)?, self.daemon.log_format)
    }
}

fn serve(settings: Settings, format: LogFormat) -> Result<(), Error> {
    let bars = Bars::new();
    log_to_stderr(format, &bars);
    Ok(daemon::run(settings, bars.watcher())?)
}

/// `RUST_LOG` chooses what is told, as everywhere; without it, what an operator needs.
fn log_to_stderr(format: LogFormat, bars: &Bars) {
    use tracing_subscriber::{EnvFilter, fmt};

    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log =
        fmt().with_env_filter(filter).with_writer(bars.writer()).with_ansi(stderr().is_terminal());
    match format {
        LogFormat::Text => log.with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
