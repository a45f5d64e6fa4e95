//! From what is written to what is meant: one `TryFrom` for each section, and the rules between them.
//!
//! Pure: looks at nothing but the text. A section with faults gives all of them. `[[feed]]` and
//! `[bandwidth]` have files of their own.

use std::{fmt::Display, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use toml::Spanned;

use super::{
    BaseUrl, Consent, DEFAULT_LISTEN, Settings, Tls, duration,
    fault::Fault,
    feed,
    file::{self, Value},
    place,
};
use crate::model::{
    Bandwidth, ByteSize, Cron, Freshness, Label, Limits, RegionName, RegionTable, Stale,
};

/// Puts the sections together and applies the rules between them; `unread` are the keys that stand
/// in the text and are left out of `file`.
pub(super) fn settings(
    file: file::File,
    unread: &[String],
    consent: Consent,
) -> Result<Settings, Vec<Fault>> {
    let mut faults = Faults::default();
    let node = NodeSection {
        node: file.node,
        listen: file.listen,
        advertise: file.advertise,
        proxies: file.proxies,
        poll: file.poll,
        is_guarded: consent.insecure || file.tls.cert.is_some(),
    };
    let node = faults.section(Node::try_from(node));
    let tls = faults.section(Tls::try_from(file.tls));
    let min_free: Option<ByteSize> = faults.parse("min_free", file.min_free.as_ref());
    let maintenance = maintenance(&file.maintenance, &mut faults);
    let nats = faults.parse("bus.nats", file.bus.nats.as_ref());
    let region: Option<RegionName> = faults.parse("region.name", file.region.name.as_ref());
    let freshness: Option<Freshness> =
        faults.parse("region.freshness", file.region.freshness.as_ref());
    let stale: Option<Stale> = faults.parse("region.stale", file.region.stale.as_ref());
    let bandwidth = faults.section(Bandwidth::try_from(file.bandwidth));
    let limits = faults.section(Limits::try_from(file.limits));
    feed::unique_names(&file.feed, &mut faults);
    let is_primary =
        |feed: &file::Feed| feed.role.as_ref().is_some_and(|role| role.get_ref() == "primary");
    let mut mirrors = file.feed.iter().filter(|feed| !is_primary(feed));
    let mirrors = mirrors.find_map(|feed| feed.upstream.clone());
    if let (Some(upstream), None) = (mirrors, file.region.name.as_ref()) {
        let message = "a feed has an upstream, so this node serves a region; which one?";
        faults.0.push(Fault::missing("region.name", message).near(Some(&upstream)));
    }
    let feeds = feed::all(file.feed, consent.adopt, &mut faults);
    faults.0.retain(|fault| !(fault.missing && unread.contains(&fault.key)));
    let (Some(node), Some(tls), Some(bandwidth), Some(limits), true) =
        (node, tls, bandwidth, limits, faults.0.is_empty())
    else {
        return Err(faults.0);
    };
    Ok(Settings {
        node: node.label.unwrap_or_else(|| default_label(region.as_ref())),
        listen: node.listen,
        advertise: node.advertise,
        state_dir: file.state_dir.map_or_else(place::default_state_dir, Spanned::into_inner),
        regions: file.regions.map(Spanned::into_inner),
        region_table: RegionTable::default(),
        region,
        freshness: freshness.unwrap_or_default(),
        stale: stale.unwrap_or_default(),
        proxies: node.proxies,
        poll: node.poll,
        min_free: min_free.map(ByteSize::bytes),
        maintenance,
        feeds,
        bandwidth,
        limits,
        tls,
        nats,
        insecure: consent.insecure,
        file: None,
        rs: file.rs.map(Spanned::into_inner),
        unused: Vec::new(),
    })
}

fn maintenance(raw: &file::Maintenance, faults: &mut Faults) -> Option<Cron> {
    let zone = raw.timezone.as_ref().map(|zone| zone.get_ref().as_str());
    faults.read("maintenance.schedule", raw.schedule.as_ref(), |text| Cron::parse(text, zone))
}

/// The faults of a section while it is read.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// A section's value; its faults are kept.
    pub(super) fn section<T>(&mut self, read: Result<T, Vec<Fault>>) -> Option<T> {
        read.map_err(|faults| self.0.extend(faults)).ok()
    }

    /// A value by `read`; absent, or at fault: none.
    pub(super) fn read<V, T, E: Display>(
        &mut self,
        key: &str,
        value: Option<&Spanned<V>>,
        read: impl FnOnce(&V) -> Result<T, E>,
    ) -> Option<T> {
        let value = value?;
        read(value.get_ref())
            .map_err(|error| self.0.push(Fault::new(key, error).at(value.span())))
            .ok()
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(
        &mut self,
        key: &str,
        value: Option<&Spanned<String>>,
    ) -> Option<T> {
        self.read(key, value, |text| text.parse())
    }

    /// A duration between two bounds; absent: the default.
    pub(super) fn duration(
        &mut self,
        key: &str,
        value: Option<&Spanned<String>>,
        [least, most]: [Duration; 2],
        default: Duration,
    ) -> Duration {
        let within = |text: &String| {
            let duration = duration::parse(text)?;
            if (least..=most).contains(&duration) {
                return Ok(duration);
            }
            Err(format!("\"{text}\" is not between {least:?} and {most:?}"))
        };
        self.read(key, value, within).unwrap_or(default)
    }

    pub(super) fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// A section's value, which is there unless there are faults.
    pub(super) fn some<T>(self, value: Option<T>) -> Result<T, Vec<Fault>> {
        value.filter(|_| self.0.is_empty()).ok_or(self.0)
    }

    pub(super) fn done<T>(self, value: T) -> Result<T, Vec<Fault>> {
        if self.0.is_empty() { Ok(value) } else { Err(self.0) }
    }
}

/// The keys that stand before any section.
struct NodeSection {
    node: Value<String>,
    listen: Value<String>,
    advertise: Value<String>,
    proxies: Vec<Spanned<String>>,
    poll: Value<String>,
    /// Whether whoever comes is asked for a token, or may come by the operator's word.
    is_guarded: bool,
}

struct Node {
    label: Option<Label>,
    listen: SocketAddr,
    advertise: Option<BaseUrl>,
    proxies: Vec<ipnet::IpNet>,
    poll: Duration,
}

impl TryFrom<NodeSection> for Node {
    type Error = Vec<Fault>;

    fn try_from(raw: NodeSection) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let default = DEFAULT_LISTEN.parse().expect("it is an address");
        let listen =
            faults.read("listen", raw.listen.as_ref(), |text| address(text, raw.is_guarded));
        let proxies = raw
            .proxies
            .into_iter()
            .filter_map(|proxy| faults.read("proxies", Some(&proxy), |text| network(text)));
        let proxies = proxies.collect();
        let node = Node {
            label: faults.parse("node", raw.node.as_ref()),
            listen: listen.unwrap_or(default),
            advertise: faults.parse("advertise", raw.advertise.as_ref()),
            proxies,
            poll: faults.duration("poll", raw.poll.as_ref(), [SECOND, DAY], 60 * SECOND),
        };
        faults.done(node)
    }
}

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

fn address(text: &str, is_guarded: bool) -> Result<SocketAddr, String> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    let address: SocketAddr = numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        format!("\"{text}\" is not an address and a port, as in 127.0.0.1:7873 or [::1]:7873")
    })?;
    if address.ip().to_canonical().is_loopback() || is_guarded {
        return Ok(address);
    }
    Err(format!(
        "{address} can be reached from other machines, and anyone there could read and change the \
         feeds; listen on 127.0.0.1, name a certificate in [tls], or say --insecure where the network \
         is trusted"
    ))
}

fn network(text: &str) -> Result<ipnet::IpNet, String> {
    let single = || text.parse::<std::net::IpAddr>().map(ipnet::IpNet::from);
    text.parse()
        .or_else(|_| single())
        .map_err(|_| format!("\"{text}\" is not an address or a network, as in 10.0.0.0/24"))
}

impl TryFrom<file::Tls> for Tls {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Tls) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let ca = raw.ca.map(Spanned::into_inner);
        if let (Some(_), None, None) = (&raw.client_ca, &raw.cert, &raw.key) {
            let message = "clients show certificates to a node that has one: name cert and key";
            faults.0.push(Fault::missing("tls", message).near(raw.client_ca.as_ref()));
        }
        let client_ca = raw.client_ca.map(Spanned::into_inner);
        let pair = pair("tls", (raw.cert, raw.key), ["cert", "key"], &mut faults);
        faults.done(Tls { pair, ca, client_ca })
    }
}

/// A certificate and its key, which come together.
pub(super) fn pair(
    section: &str,
    (cert, key): (Value<PathBuf>, Value<PathBuf>),
    names: [&str; 2],
    faults: &mut Faults,
) -> Option<(PathBuf, PathBuf)> {
    match (cert, key) {
        (Some(cert), Some(key)) => Some((cert.into_inner(), key.into_inner())),
        (None, None) => None,
        (cert, key) => {
            let [cert_name, key_name] = names;
            let message = format!(
                "a certificate and its key come together: name both {cert_name} and {key_name}"
            );
            let there = cert.or(key);
            faults.0.push(Fault::missing(section, message).near(there.as_ref()));
            None
        }
    }
}

/// Far more than any client asks for, and what a machine of ten years ago answers.
const MOST_REQUESTS: u64 = 10_000_000;

impl TryFrom<file::Limits> for Limits {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Limits) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let count = |number: &u64| match number {
            1..=MOST_REQUESTS => Ok(u32::try_from(*number).unwrap_or(u32::MAX)),
            _ => Err(format!("{number} is not between 1 and {MOST_REQUESTS}")),
        };
        let default = Limits::default();
        let connections = faults
            .read("limits.connections_per_client", raw.connections_per_client.as_ref(), count)
            .map_or(default.connections_per_client, |number| number as usize);
        let limits = Limits {
            connections_per_client: connections,
            requests_per_client: faults
                .read("limits.requests_per_client", raw.requests_per_client.as_ref(), count)
                .unwrap_or(default.requests_per_client),
            requests_per_token: faults
                .read("limits.requests_per_token", raw.requests_per_token.as_ref(), count)
                .unwrap_or(default.requests_per_token),
        };
        faults.done(limits)
    }
}

/// A region's label is its name; a primary's that of its host.
fn default_label(region: Option<&RegionName>) -> Label {
    let name = region.map_or_else(place::host_name, ToString::to_string);
    name.parse().unwrap_or_else(|_| "depsync".parse().expect("it is a label"))
}
