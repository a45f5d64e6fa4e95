//! The limits on what this node sends: shown, changed while it runs, and kept to the timetable.
//!
//! What the API changes holds until the configuration file changes or the daemon starts again. A plan
//! that is wrong in any part changes nothing. Transfers under way follow within a second.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Bytes,
    extract::{State, rejection::BytesRejection},
    response::IntoResponse,
};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge, control,
    error::{Answer, Fault},
};
use crate::{
    model::{Bandwidth, Cron, Network, NetworkLimit, Rate, RatePlan, RegionName, Traffic, Window},
    sys,
};

/// How often the timetable is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Networks and windows that one request may name, each.
const MAX_ENTRIES: usize = 1000;
/// For how many milliseconds a window may be open: from a second to a year, as in the file.
const LASTS: std::ops::RangeInclusive<u64> = 1_000..=366 * 86_400 * 1_000;

/// What a `PUT` says; what it leaves out is not limited.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    total: Option<Rate>,
    downloads: Option<Rate>,
    replication: Option<Rate>,
    per_client: Option<Rate>,
    max_downloads: Option<usize>,
    max_queue: Option<usize>,
    networks: Vec<NetworkFields>,
    windows: Vec<WindowFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkFields {
    cidr: Option<IpNet>,
    region: Option<RegionName>,
    limit: Rate,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowFields {
    start: String,
    for_ms: u64,
    timezone: Option<String>,
    total: Option<Rate>,
    downloads: Option<Rate>,
    replication: Option<Rate>,
    per_client: Option<Rate>,
}

/// `GET /v1/bandwidth`: what was said, what is in force, and what is going on.
pub(super) async fn show(State(edge): State<Arc<Edge>>) -> Answer {
    Ok(Json(as_json(&edge)).into_response())
}

/// `PUT /v1/bandwidth`: puts other limits in the place of all that were.
pub(super) async fn change(
    State(edge): State<Arc<Edge>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let fields: Fields = control::fields(body)?;
    let bandwidth = fields.read()?;
    let table = edge.regions();
    let own = edge.region.as_ref();
    if let Some(name) = bandwidth.unknown_region(|name| table.has(name) || own == Some(name)) {
        return Err(refused(format!("there is no region \"{name}\" in the region table")));
    }
    edge.set_bandwidth(bandwidth);
    Ok(Json(as_json(&edge)).into_response())
}

fn refused(message: String) -> Fault {
    Fault::refused("bandwidth", message)
}

impl Fields {
    fn read(self) -> Result<Bandwidth, Fault> {
        if self.networks.len().max(self.windows.len()) > MAX_ENTRIES {
            return Err(Fault::too_many(MAX_ENTRIES));
        }
        if self.max_downloads == Some(0) {
            return Err(refused("max_downloads is at least 1; leave it out for no limit".into()));
        }
        let networks = self.networks.into_iter().map(NetworkFields::read);
        let windows = self.windows.into_iter().map(WindowFields::read);
        Ok(Bandwidth {
            limits: RatePlan {
                total: self.total,
                downloads: self.downloads,
                replication: self.replication,
                per_client: self.per_client,
                networks: networks.collect::<Result<_, _>>()?,
            },
            windows: windows.collect::<Result<_, _>>()?,
            max_downloads: self.max_downloads,
            max_queue: self.max_queue.unwrap_or(Bandwidth::MAX_QUEUE),
        })
    }
}

impl NetworkFields {
    fn read(self) -> Result<NetworkLimit, Fault> {
        let network = match (self.cidr, self.region) {
            (Some(cidr), None) => Network::Cidr(cidr),
            (None, Some(region)) => Network::Region(region),
            _ => {
                let message = "a network is named by one of \"cidr\" and \"region\"";
                return Err(refused(message.to_owned()));
            }
        };
        Ok(NetworkLimit { network, limit: self.limit })
    }
}

impl WindowFields {
    fn read(self) -> Result<Window, Fault> {
        let start = Cron::parse(&self.start, self.timezone.as_deref());
        let start = start.map_err(|error| refused(error.to_string()))?;
        if !LASTS.contains(&self.for_ms) {
            return Err(refused(format!(
                "a window is open for 1,000 to {} ms, not for {}",
                LASTS.end(),
                self.for_ms
            )));
        }
        Ok(Window {
            start,
            lasts: Duration::from_millis(self.for_ms),
            total: self.total,
            downloads: self.downloads,
            replication: self.replication,
            per_client: self.per_client,
        })
    }
}

/// What was said, what is in force, and what is going on.
pub(super) fn as_json(edge: &Edge) -> Value {
    let bandwidth = edge.bandwidth();
    let mut limits = plan_json(&bandwidth.limits);
    limits["max_downloads"] = json!(bandwidth.max_downloads);
    limits["max_queue"] = json!(bandwidth.max_queue);
    limits["windows"] = bandwidth.windows.iter().map(window_json).collect();
    let (crowd, throttle) = (edge.gate.crowd(), edge.throttle());
    let by_class = |of: &dyn Fn(Traffic) -> u64| json!({ "downloads": of(Traffic::Downloads), "replication": of(Traffic::Replication) });
    json!({
        "limits": limits,
        "in_force": plan_json(&throttle.plan()),
        "open_windows": bandwidth.windows.iter().filter(|w| w.is_open(sys::now())).count(),
        "sending": crowd.sending,
        "queued": crowd.waiting,
        "refused": crowd.refused,
        "waiting": by_class(&|class| throttle.waiting(class) as u64),
        "sent": by_class(&|class| edge.metrics.sent_so_far(class)),
    })
}

fn plan_json(plan: &RatePlan) -> Value {
    json!({
        "total": plan.total, "downloads": plan.downloads, "replication": plan.replication,
        "per_client": plan.per_client, "networks": plan.networks,
    })
}

fn window_json(window: &Window) -> Value {
    json!({
        "start": window.start.to_string(),
        "for_ms": u64::try_from(window.lasts.as_millis()).unwrap_or(u64::MAX),
        "timezone": window.start.zone(),
        "total": window.total, "downloads": window.downloads,
        "replication": window.replication, "per_client": window.per_client,
    })
}

impl Edge {
    /// What was said about bandwidth last.
    #[must_use]
    pub fn bandwidth(&self) -> Arc<Bandwidth> {
        Arc::clone(&self.bandwidth.borrow())
    }

    /// Puts other limits in force.
    pub fn set_bandwidth(&self, bandwidth: Bandwidth) {
        self.gate.set(bandwidth.max_downloads, bandwidth.max_queue);
        self.bandwidth.send_replace(Arc::new(bandwidth));
        self.keep_to_timetable();
    }

    fn keep_to_timetable(&self) {
        let plan = self.bandwidth().in_force(sys::now());
        if plan != self.throttle.plan() {
            self.throttle.set_plan(plan);
        }
    }

    /// Opens and closes the windows of the timetable; never ends by itself.
    pub(super) async fn follow_timetable(&self) {
        let mut said = self.bandwidth.subscribe();
        loop {
            let some = !said.borrow_and_update().windows.is_empty();
            self.keep_to_timetable();
            let changed = said.changed();
            let tick = async {
                if some { tokio::time::sleep(TICK).await } else { std::future::pending().await }
            };
            tokio::select! {
                // The sender is ours, so it is never closed.
                _ = changed => {}
                () = tick => {}
            }
        }
    }
}
