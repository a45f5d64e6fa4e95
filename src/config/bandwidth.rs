//! `[bandwidth]` as it is meant: limits, networks, the timetable, how many downloads at once.
//!
//! Whether a region that has a limit exists is known only with the region table: `check` looks.

use std::time::Duration;

use toml::Spanned;

use super::{
    convert::Faults,
    fault::Fault,
    file::{self, Value},
};
use crate::model::{Bandwidth, Cron, Network, NetworkLimit, Rate, RatePlan, RegionName, Window};

/// Limits for networks and windows of the timetable, each; all are looked through for each client.
const MAX_ENTRIES: usize = 1000;
/// Each is a connection: more than the edge takes at once means nothing.
const MAX_DOWNLOADS: u64 = 1 << 20;

impl TryFrom<file::Bandwidth> for Bandwidth {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Bandwidth) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let mut rate = |key, value| faults.parse::<Rate>(key, value);
        let mut limits = RatePlan {
            total: rate("bandwidth.total", raw.total.as_ref()),
            downloads: rate("bandwidth.downloads", raw.downloads.as_ref()),
            replication: rate("bandwidth.replication", raw.replication.as_ref()),
            per_client: rate("bandwidth.per_client", raw.per_client.as_ref()),
            networks: Vec::new(),
        };
        let networks = raw.network.into_iter().map(NetworkLimit::try_from);
        limits.networks = networks.filter_map(|read| faults.section(read)).collect();
        let windows = raw.window.into_iter().map(Window::try_from);
        let windows: Vec<Window> = windows.filter_map(|read| faults.section(read)).collect();
        if limits.networks.len().max(windows.len()) > MAX_ENTRIES {
            let message = format!("there are more than {MAX_ENTRIES} entries");
            faults.add(Fault::new("bandwidth", message));
        }
        let mut count = |key, value: &Value<u64>, least| {
            faults.read(key, value.as_ref(), |count| match usize::try_from(*count) {
                Ok(fits) if (least..=MAX_DOWNLOADS).contains(count) => Ok(fits),
                _ => Err(format!("{count} is not between {least} and {MAX_DOWNLOADS}")),
            })
        };
        let max_downloads = count("bandwidth.max_downloads", &raw.max_downloads, 1);
        let max_queue = count("bandwidth.max_queue", &raw.max_queue, 0);
        faults.done(Bandwidth {
            limits,
            windows,
            max_downloads,
            max_queue: max_queue.unwrap_or(Bandwidth::MAX_QUEUE),
        })
    }
}

impl TryFrom<file::Network> for NetworkLimit {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Network) -> Result<Self, Vec<Fault>> {
        const KEY: &str = "bandwidth.network";
        let mut faults = Faults::default();
        let cidr = faults.parse(KEY, raw.cidr.as_ref()).map(Network::Cidr);
        let region = faults.parse::<RegionName>(KEY, raw.region.as_ref()).map(Network::Region);
        let limit: Option<Rate> = faults.parse(KEY, raw.limit.as_ref());
        let named = [&raw.cidr, &raw.region].into_iter().flatten().count();
        let place = raw.limit.as_ref().or(raw.cidr.as_ref()).or(raw.region.as_ref());
        if named != 1 {
            let message = "a network is named by one of \"cidr\" and \"region\"";
            faults.add(Fault::new(KEY, message).near(place));
        }
        if raw.limit.is_none() {
            faults.add(Fault::new(KEY, "it has no \"limit\"").near(place));
        }
        let both = cidr.or(region).zip(limit);
        faults.some(both.map(|(network, limit)| NetworkLimit { network, limit }))
    }
}

impl TryFrom<file::Window> for Window {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Window) -> Result<Self, Vec<Fault>> {
        const KEY: &str = "bandwidth.window";
        let mut faults = Faults::default();
        let zone = raw.timezone.as_ref().map(Spanned::get_ref);
        let cron = |text: &String| Cron::parse(text, zone.map(String::as_str));
        let start = faults.read(KEY, raw.start.as_ref(), cron);
        let least = Duration::from_secs(1);
        let most = Duration::from_secs(366 * 86_400);
        let lasts = faults.duration(KEY, raw.lasts.as_ref(), [least, most], least);
        for (there, key) in [(raw.start.is_some(), "start"), (raw.lasts.is_some(), "for")] {
            if !there {
                let near = raw.start.as_ref().or(raw.lasts.as_ref());
                faults.add(Fault::new(KEY, format!("it has no \"{key}\"")).near(near));
            }
        }
        let mut rate = |value: &Value<String>| faults.parse::<Rate>(KEY, value.as_ref());
        let [total, downloads, replication, per_client] =
            [&raw.total, &raw.downloads, &raw.replication, &raw.per_client].map(&mut rate);
        let window =
            start.map(|start| Window { start, lasts, total, downloads, replication, per_client });
        faults.some(window)
    }
}
