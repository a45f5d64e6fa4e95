//! What an operator says about bandwidth: limits, how many downloads at once, and a timetable.
//!
//! While a window is open its limits replace those of the plan, key by key; of several open ones the
//! last in the list counts. Pure: the time is what the caller says it is.

use std::time::{Duration, SystemTime};

use super::{Cron, Network, Rate, RatePlan, RegionName};

/// Everything that is said about bandwidth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bandwidth {
    /// The limits while no window is open.
    pub limits: RatePlan,
    /// When other limits hold.
    pub windows: Vec<Window>,
    /// Downloads that are sent at once; absent: any number.
    pub max_downloads: Option<usize>,
    /// Downloads that wait for a place among these; those beyond are told to come again.
    pub max_queue: usize,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Bandwidth {
            limits: RatePlan::default(),
            windows: Vec::new(),
            max_downloads: None,
            max_queue: Bandwidth::MAX_QUEUE,
        }
    }
}

/// A time in which other limits hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// When it opens.
    pub start: Cron,
    /// How long it stays open.
    pub lasts: Duration,
    /// Over everything, while it is open.
    pub total: Option<Rate>,
    /// Over downloads, while it is open.
    pub downloads: Option<Rate>,
    /// Over replication, while it is open.
    pub replication: Option<Rate>,
    /// For each compute host, while it is open.
    pub per_client: Option<Rate>,
}

impl Window {
    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self, now: SystemTime) -> bool {
        self.start.fired_within(self.lasts, now)
    }
}

impl Bandwidth {
    /// Downloads that wait unless it is said otherwise: each is a connection with nothing under way.
    pub const MAX_QUEUE: usize = 1000;

    /// The limits that hold at an instant.
    #[must_use]
    pub fn in_force(&self, now: SystemTime) -> RatePlan {
        let mut plan = self.limits.clone();
        for window in self.windows.iter().filter(|window| window.is_open(now)) {
            let pairs = [
                (&mut plan.total, window.total),
                (&mut plan.downloads, window.downloads),
                (&mut plan.replication, window.replication),
                (&mut plan.per_client, window.per_client),
            ];
            for (limit, other) in pairs {
                *limit = other.or(*limit);
            }
        }
        plan
    }

    /// A region that has a limit and that `known` does not know.
    pub fn unknown_region(&self, known: impl Fn(&RegionName) -> bool) -> Option<&RegionName> {
        self.limits.networks.iter().find_map(|limit| match &limit.network {
            Network::Region(name) if !known(name) => Some(name),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_window_replaces_the_limits_that_it_names() {
        let rate = |text: &str| Some(text.parse::<Rate>().unwrap());
        let window = |start: &str, total| Window {
            start: Cron::parse(start, None).unwrap(),
            lasts: Duration::from_secs(3600),
            total,
            downloads: None,
            replication: None,
            per_client: None,
        };
        let limits =
            RatePlan { total: rate("200MB/s"), downloads: rate("100MB/s"), ..RatePlan::default() };
        let windows =
            vec![window("0 0 8 * * *", rate("20MB/s")), window("0 30 8 * * *", rate("5MB/s"))];
        let bandwidth = Bandwidth { limits, windows, ..Bandwidth::default() };
        let day = 1_800_000_000 / 86_400 * 86_400;
        for (minutes, total) in [
            (7 * 60 + 59, "200MB/s"),
            (8 * 60, "20MB/s"),
            (8 * 60 + 30, "5MB/s"),
            (9 * 60 + 29, "5MB/s"),
            (9 * 60 + 30, "200MB/s"),
        ] {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(day + minutes * 60);
            let plan = bandwidth.in_force(now);
            assert_eq!((plan.total, plan.downloads), (rate(total), rate("100MB/s")), "{minutes}");
        }
    }
}
