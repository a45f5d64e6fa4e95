//! The validated whole that a daemon is started with.
//!
//! Paths are absolute, names and addresses parsed, every number within its bounds: whoever holds a
//! [`Settings`] asks nothing of it again.

use std::{fmt, net::SocketAddr, path::Path, path::PathBuf, str::FromStr, time::Duration};

use ipnet::IpNet;

use crate::model::{
    Bandwidth, Cron, FeedName, Freshness, Keep, Label, Limits, Pin, Profile, RegionName,
    RegionTable, Retention, Stale,
};

/// What one daemon does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What people call this node.
    pub node: Label,
    /// Where it listens; port 0: any free one.
    pub listen: SocketAddr,
    /// The URL under which others reach it; absent: made from `listen`, at a region from the
    /// address that the upstream sees.
    pub advertise: Option<BaseUrl>,
    /// Where everything is kept that is not the deployment directories.
    pub state_dir: PathBuf,
    /// The region table's file.
    pub regions: Option<PathBuf>,
    /// What it holds; empty without a file.
    pub region_table: RegionTable,
    /// The region that this node serves; there where any feed has an upstream.
    pub region: Option<RegionName>,
    /// At a region: how it knows that its newest version is the newest.
    pub freshness: Freshness,
    /// At a region: what it does while its upstream is away.
    pub stale: Stale,
    /// Whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
    /// A primary: time between scans of folders without events; a region: between questions for
    /// the head, behind the heartbeats.
    pub poll: Duration,
    /// Bytes that stay free on the disk of the state directory; absent: the smaller of a twentieth of
    /// it and 2 GB.
    pub min_free: Option<u64>,
    /// When everything is folded and checked, besides what is done all the while; absent: never.
    pub maintenance: Option<Cron>,
    /// The feeds, at least one, with unique names.
    pub feeds: Vec<FeedSettings>,
    /// Limits on what this node sends.
    pub bandwidth: Bandwidth,
    /// Limits on what one client may ask for.
    pub limits: Limits,
    /// Certificates; without a pair of its own it serves without TLS.
    pub tls: Tls,
    /// The server by way of which heads are announced, beside followers' own connections.
    pub nats: Option<NatsUrl>,
    /// Asks for no tokens at all; without it, and without TLS, `listen` is a loopback address.
    pub insecure: bool,
    /// The file that all this was read from; absent: flags.
    pub file: Option<PathBuf>,
    /// The `rs.xml` that completes it.
    pub rs: Option<PathBuf>,
    /// What that one says and nothing here means, for people.
    pub unused: Vec<String>,
}

/// What of the settings can change while the daemon runs.
#[derive(Debug, Clone)]
pub struct Live {
    /// Which clients belong to which region.
    pub regions: RegionTable,
    /// Limits on what this node sends.
    pub bandwidth: Bandwidth,
}

/// Where certificates lie.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// This node's certificate and its key.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// The only CA that is believed, for upstreams and for client certificates.
    pub ca: Option<PathBuf>,
    /// The CA of the certificates that all clients must show; absent: none need show one.
    pub client_ca: Option<PathBuf>,
}

/// One feed at this node. It has the settings of both roles, since a promotion or demotion changes
/// what it is while the configuration stays.
#[derive(Debug, Clone)]
pub struct FeedSettings {
    /// Its name here.
    pub name: FeedName,
    /// Where the operator's hooks lie.
    pub hooks: Option<PathBuf>,
    /// The key that commits made here are signed with.
    pub sign_with: Option<PathBuf>,
    /// Whose commits are taken from upstreams; absent: anyone's.
    pub trusted_keys: Option<PathBuf>,
    /// Which versions keep their content; a mirror that keeps just the head keeps only its.
    pub keep: Retention,
    /// Whether it is owned here or mirrored, at the first start: from then on that is state.
    pub role: Role,
    /// How it is watched and committed where it is owned here; absent: it has no directory.
    pub primary: Option<Primary>,
    /// How it is mirrored.
    pub mirror: Mirror,
}

impl FeedSettings {
    /// Its deployment directory; none for a mirror without a checkout.
    #[must_use]
    pub fn dir(&self) -> Option<&Path> {
        self.dir_as(self.role)
    }

    /// Its deployment directory when this node is that to it.
    #[must_use]
    pub fn dir_as(&self, role: Role) -> Option<&Path> {
        match (role, &self.mirror.checkout) {
            (Role::Region, Checkout::None | Checkout::Snapshot { .. }) => None,
            (Role::Region, Checkout::InPlace { dir, .. }) => Some(dir),
            (Role::Primary, _) => self.primary.as_ref().map(|primary| primary.dir.as_path()),
        }
    }

    /// Where its files are seen: the deployment directory, or the link to the current release.
    #[must_use]
    pub fn place(&self) -> Option<&Path> {
        match (self.role, &self.mirror.checkout) {
            (Role::Region, Checkout::Snapshot { link, .. }) => Some(link),
            _ => self.dir(),
        }
    }
}

/// What this node is to a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It owns the feed.
    Primary,
    /// It mirrors the feed from an upstream.
    Region,
}

/// A feed that is owned here.
#[derive(Debug, Clone)]
pub struct Primary {
    /// The watched folder.
    pub dir: PathBuf,
    /// What the server in that folder itself writes there.
    pub profile: Option<Profile>,
    /// Whether the kernel's events are used; without them everything is scanned every `poll`.
    pub events: bool,
    /// From this size on a file is an object, in bytes.
    pub large_file: u64,
    /// What is kept besides content, type and the executable bit.
    pub metadata: Keep,
    /// How long a file must rest where no lease can tell whether it is being written.
    pub quiet: Duration,
    /// When deletions are held; absent: never.
    pub guard: Option<Guard>,
}

/// A feed that is mirrored here.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where it comes from: of several, the one with the highest epoch is followed; none: nowhere
    /// yet.
    pub upstreams: Vec<BaseUrl>,
    /// Its name there.
    pub upstream_feed: FeedName,
    /// The file with the token that lets us in there.
    pub token_file: Option<PathBuf>,
    /// The keys of which the upstream's certificate must have one; empty: its CA is believed.
    pub pins: Vec<Pin>,
    /// The certificate and key that are shown there; absent: this node's.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Whether only the head is kept, without the history before it (`history = 1`).
    pub shallow: bool,
    /// Where its files are put.
    pub checkout: Checkout,
    /// When; absent: at once.
    pub checkout_at: Option<Cron>,
    /// Whether what others change in the directory is put right, or only told of.
    pub repair: bool,
    /// The part of it that is kept; empty: all of it.
    pub paths: Vec<String>,
}

/// Where a mirrored feed's files are put.
#[derive(Debug, Clone)]
pub enum Checkout {
    /// Into the deployment directory, path by path.
    InPlace {
        /// The directory.
        dir: PathBuf,
        /// Move aside what lies there and differs, instead of stopping.
        adopt: bool,
    },
    /// Each version into a folder of its own, shown by a link that is switched.
    Snapshot {
        /// Where the link lies.
        link: PathBuf,
        /// How many releases are kept.
        releases: usize,
        /// Whether files that are the same in two releases are one file.
        hard_link: bool,
    },
    /// Nowhere: history and objects only.
    None,
}

/// When a batch of deletions waits for approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// More than this share of the files, 1 to 100.
    pub max_delete_percent: u8,
    /// And at least so many.
    pub min_delete_files: u64,
    /// Summed over this time.
    pub window: Duration,
}

/// Where a NATS server is reached, and as whom: `nats` or `tls`, a host, perhaps a port.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(String);

impl NatsUrl {
    /// With the password: not for people.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NatsUrl")
    }
}

impl FromStr for NatsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let what = "the address of a NATS server is as in nats://10.0.0.5:4222";
        if !["nats://", "tls://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err(format!("{what}; this begins with neither nats:// nor tls://"));
        }
        let url = reqwest::Url::parse(text).map_err(|error| format!("{what}: {error}"))?;
        if url.host_str().is_none_or(str::is_empty) {
            return Err(format!("{what}; this names no host"));
        }
        if !["", "/"].contains(&url.path()) || url.query().is_some() || url.fragment().is_some() {
            return Err(format!("{what}; nothing may follow the host and port"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// The URL of a node: `http` or `https`, a host, perhaps a port, and nothing behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// The URL, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fault = |why: &str| {
            format!("\"{text}\" is not the URL of a node, as in http://hub.example:7873: {why}")
        };
        if !["http://", "https://"].iter().any(|scheme| text.starts_with(scheme)) {
            return Err(fault("it begins with neither http:// nor https://"));
        }
        let url = reqwest::Url::parse(text).map_err(|error| fault(&error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(fault("it holds a user name or a password"));
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(fault("nothing may follow the host and port"));
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
