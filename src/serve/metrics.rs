//! Counters of the edge, and the page that Prometheus reads: names begin with `depsync_`.
//!
//! `docs/metrics.md` lists every family with its type, labels and meaning; a test compares the two. A
//! family is on the page even while it has no sample.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use axum::{extract::State, response::IntoResponse};
use http::{StatusCode, header};

use super::{
    Access, Edge,
    diagnosis::{Level, MAX_LAG},
    error::Answer,
};
use crate::{
    bus::{
        Cause, Distant, Follower,
        roster::{BOUNDS, Reach},
    },
    model::{FeedName, Label, Network, NodeId, RegionName, Traffic},
    store::Built,
    sys,
};

/// What the edge counts, from its start.
#[derive(Default)]
pub(super) struct Metrics {
    /// By the first digit of the status.
    answers: [AtomicU64; 6],
    redirects: AtomicU64,
    packs: AtomicU64,
    deltas: AtomicU64,
    downloads: Arc<AtomicU64>,
    replication: Arc<AtomicU64>,
    received: AtomicU64,
    connections: AtomicU64,
    hasty: AtomicU64,
}

impl Metrics {
    /// Counts an answer.
    pub(super) fn answered(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100).min(self.answers.len() - 1);
        self.answers[class].fetch_add(1, Relaxed);
    }

    /// Counts a request or connection that was one too many of its client's.
    pub(super) fn turned_away(&self) {
        self.hasty.fetch_add(1, Relaxed);
    }

    /// Counts a redirect to a region.
    pub(super) fn redirected(&self) {
        self.redirects.fetch_add(1, Relaxed);
    }

    /// Counts a pack that a mirror asked for.
    pub(super) fn served_pack(&self) {
        self.packs.fetch_add(1, Relaxed);
    }

    /// Counts a delta that a mirror asked for.
    pub(super) fn served_delta(&self) {
        self.deltas.fetch_add(1, Relaxed);
    }

    /// Counts bytes on their way to a client.
    pub(super) fn sent(&self, class: Traffic, bytes: u64) {
        self.counter(class).fetch_add(bytes, Relaxed);
    }

    /// Bytes of a class that went out so far.
    pub(super) fn sent_so_far(&self, class: Traffic) -> u64 {
        self.counter(class).load(Relaxed)
    }

    /// Where a body counts the bytes that it sends.
    pub(super) fn sending(&self, class: Traffic) -> Arc<AtomicU64> {
        Arc::clone(self.counter(class))
    }

    /// Counts bytes that were uploaded.
    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// The number of open connections now.
    pub(super) fn set_connections(&self, open: usize) {
        self.connections.store(open as u64, Relaxed);
    }

    fn counter(&self, class: Traffic) -> &Arc<AtomicU64> {
        match class {
            Traffic::Downloads => &self.downloads,
            Traffic::Replication => &self.replication,
        }
    }
}

const NEVER: &str = "writing to a string never fails";

/// The page's text.
struct Page(String);

impl Page {
    fn family<V: Display>(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, V)]) {
        self.head(name, kind, help);
        for (labels, value) in samples {
            self.line(&format!("{name}{labels}"), value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP depsync_{name} {help}\n# TYPE depsync_{name} {kind}")
            .expect(NEVER);
    }

    fn line(&mut self, sample: &str, value: impl Display) {
        writeln!(self.0, "depsync_{sample} {value}").expect(NEVER);
    }
}

/// `GET /metrics`
pub(super) async fn show(State(edge): State<Arc<Edge>>) -> Answer {
    let mut page = Page(String::new());
    of_the_node(&mut page, &edge);
    of_the_edge(&mut page, &edge.metrics);
    of_the_limits(&mut page, &edge);
    of_the_tokens(&mut page, &edge.access);
    of_the_feeds(&mut page, &edge);
    of_what_is_held(&mut page, &edge);
    of_the_fleet(&mut page, &edge);
    of_arrivals(&mut page, &edge);
    of_the_upstream(&mut page, &edge);
    of_the_repositories(&mut page, &edge);
    of_the_stores(&mut page, &edge);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((kind, page.0).into_response())
}

fn of_the_node(page: &mut Page, edge: &Edge) {
    let build = format!(
        "{{version=\"{}\",label=\"{}\"}}",
        env!("CARGO_PKG_VERSION"),
        escaped(edge.label.as_str())
    );
    page.family("build_info", "gauge", "Always 1: which version runs here.", &[(build, 1)]);
    let faults = edge.faults();
    let levels =
        [(Level::Critical, "critical"), (Level::Fault, "fault"), (Level::Notice, "notice")];
    let count = |level| faults.iter().filter(|fault| fault.level == level).count();
    let rows = levels.map(|(level, name)| (format!("{{level=\"{name}\"}}"), count(level)));
    page.family("faults", "gauge", "What is wrong now, as the health page has it.", &rows);
}

/// Labels are quoted.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Nodes of one feed that are shown: a page has a bound.
const MAX_NODES: usize = 5_000;

/// Where each node below stands, through relays too.
fn of_the_fleet(page: &mut Page, edge: &Edge) {
    let mut rows: [Vec<(String, f64)>; FAMILIES.len()] = Default::default();
    let now = Instant::now();
    for feed in edge.feeds() {
        let followers = feed.desk.followers();
        let stands = followers.iter().flat_map(|follower| {
            let below = follower.below.values();
            let below = below.map(|distant| Stand::below(distant, follower.is_live(now), now));
            std::iter::once(Stand::of(follower, now)).chain(below)
        });
        // Who has gone over to a relay, or come from there, is shown where it lives.
        let mut once: BTreeMap<&NodeId, Stand<'_>> = BTreeMap::new();
        for stand in stands {
            let is_known = once.get(stand.node).is_some_and(|known| known.live);
            if !is_known && (once.len() < MAX_NODES || once.contains_key(stand.node)) {
                once.insert(stand.node, stand);
            }
        }
        for stand in once.values() {
            let labels = stand.labels(&feed.desk.feed);
            for (rows, figure) in rows.iter_mut().zip(stand.figures) {
                rows.extend(figure.map(|figure| (labels.clone(), figure)));
            }
        }
    }
    for ((name, help), rows) in FAMILIES.into_iter().zip(rows) {
        page.family(name, "gauge", help, &rows);
    }
}

const FAMILIES: [(&str, &str); 7] = [
    ("node_up", "1 while the node is connected or was heard lately."),
    ("node_lag_seconds", "How long the node has lacked what it should have."),
    ("node_reached", "1 while its address was seen to lead to it."),
    ("node_want_seq", "Number of the version that the node should have."),
    ("node_have_seq", "Number of the version that it has verified."),
    ("node_verified_timestamp_seconds", "When it verified what it has."),
    ("node_failing", "1 while its last failure is not mended."),
];

/// Where one node stands.
struct Stand<'a> {
    node: &'a NodeId,
    label: &'a Label,
    region: Option<&'a RegionName>,
    live: bool,
    figures: [Option<f64>; FAMILIES.len()],
}

impl<'a> Stand<'a> {
    fn of(follower: &'a Follower, now: Instant) -> Self {
        let (hello, live) = (&follower.hello, follower.is_live(now));
        Stand {
            node: &hello.node,
            label: &hello.label,
            region: hello.region.as_ref(),
            live,
            figures: [
                Some(live.into()),
                Some(follower.lag(now).as_secs_f64()),
                Some((follower.reach == Reach::Reached).into()),
                follower.want.map(|head| number(head.seq)),
                follower.have.map(|head| number(head.seq)),
                moment(follower.verified_at, now),
                Some(follower.error().is_some().into()),
            ],
        }
    }

    fn below(distant: &'a Distant, live: bool, now: Instant) -> Self {
        let report = &distant.report;
        let live = live && report.live;
        Stand {
            node: &report.node,
            label: &report.label,
            region: report.region.as_ref(),
            live,
            figures: [
                Some(live.into()),
                Some(distant.lag(now).as_secs_f64()),
                Some(report.reached.into()),
                distant.want.map(|head| number(head.seq)),
                report.have.map(|head| number(head.seq)),
                moment(distant.verified_at, now),
                Some(report.error.is_some().into()),
            ],
        }
    }

    fn labels(&self, feed: &FeedName) -> String {
        let Stand { node, label, region, .. } = self;
        let region = region.map_or("", |region| region.as_str());
        let label = escaped(label.as_str());
        format!("{{feed=\"{feed}\",node=\"{node}\",label=\"{label}\",region=\"{region}\"}}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "nobody publishes 2^53 versions")]
fn number(seq: u64) -> f64 {
    seq as f64
}

/// Seconds since 1970 of an instant that is past.
fn moment(at: Option<Instant>, now: Instant) -> Option<f64> {
    let at = sys::now().checked_sub(now.saturating_duration_since(at?))?;
    at.duration_since(std::time::UNIX_EPOCH).ok().map(|since| number(since.as_secs()))
}

/// How long versions take to arrive.
fn of_arrivals(page: &mut Page, edge: &Edge) {
    let name = "propagation_seconds";
    page.head(
        name,
        "histogram",
        "From the announcement of a version until a node has verified it.",
    );
    for feed in edge.feeds() {
        let (times, feed) = (feed.desk.arrival_times(), &feed.desk.feed);
        let mut below = 0;
        for (bound, within) in BOUNDS.iter().zip(times.within) {
            below += within;
            page.line(&format!("{name}_bucket{{feed=\"{feed}\",le=\"{bound}\"}}"), below);
        }
        page.line(&format!("{name}_bucket{{feed=\"{feed}\",le=\"+Inf\"}}"), times.count);
        page.line(&format!("{name}_sum{{feed=\"{feed}\"}}"), times.sum);
        page.line(&format!("{name}_count{{feed=\"{feed}\"}}"), times.count);
    }
}

/// At a region: how long the upstream has been silent, and how far a fetch is.
fn of_the_upstream(page: &mut Page, edge: &Edge) {
    let (mut silent, mut left) = (Vec::new(), Vec::new());
    for feed in edge.feeds() {
        let labels = || format!("{{feed=\"{}\"}}", feed.desk.feed);
        let state = feed.desk.state.borrow();
        let heard = state.heartbeat.filter(|_| !state.primary);
        silent.extend(heard.map(|heard| (labels(), heard.elapsed().as_secs_f64())));
        let fetch = *feed.desk.progress.borrow();
        left.extend(fetch.map(|it| (labels(), it.total.saturating_sub(it.done))));
    }
    page.family("upstream_silent_seconds", "gauge", "Since the upstream was last heard.", &silent);
    page.family("fetch_left_bytes", "gauge", "What the fetch under way still has to bring.", &left);
}

fn of_the_edge(page: &mut Page, metrics: &Metrics) {
    let one = |value: &AtomicU64| [(String::new(), value.load(Relaxed))];
    let answers = metrics.answers.iter().enumerate().skip(1);
    let answers = answers.map(|(class, n)| (format!("{{status=\"{class}xx\"}}"), n.load(Relaxed)));
    page.family(
        "http_answers_total",
        "counter",
        "Requests answered.",
        &answers.collect::<Vec<_>>(),
    );
    page.family("redirects_total", "counter", "Clients led to a region.", &one(&metrics.redirects));
    page.family("packs_served_total", "counter", "Packs sent to mirrors.", &one(&metrics.packs));
    page.family("deltas_served_total", "counter", "Deltas sent to mirrors.", &one(&metrics.deltas));
    let sent = [("downloads", &metrics.downloads), ("replication", &metrics.replication)];
    let sent = sent.map(|(class, n)| (format!("{{class=\"{class}\"}}"), n.load(Relaxed)));
    page.family("sent_bytes_total", "counter", "Content sent.", &sent);
    page.family("received_bytes_total", "counter", "Content uploaded.", &one(&metrics.received));
    page.family("connections", "gauge", "Open connections.", &one(&metrics.connections));
    let hasty = one(&metrics.hasty);
    page.family(
        "hasty_total",
        "counter",
        "Requests and connections beyond one client's limit.",
        &hasty,
    );
}

fn of_the_tokens(page: &mut Page, access: &Access) {
    let insecure = [(String::new(), u64::from(access.insecure))];
    page.family("insecure", "gauge", "1 where nobody is asked for a token.", &insecure);
    let tokens = access.decisions.get();
    let ends = tokens.tokens.iter().filter_map(|token| {
        let end = u64::try_from(token.expires?.timestamp()).unwrap_or(0);
        Some((format!("{{token=\"{}\",role=\"{}\"}}", token.id, token.scope.role), end))
    });
    page.family(
        "token_expires_seconds",
        "gauge",
        "When a token ends, in seconds since 1970.",
        &ends.collect::<Vec<_>>(),
    );
}

fn of_the_limits(page: &mut Page, edge: &Edge) {
    let crowd = edge.gate.crowd();
    let one = |value: u64| [(String::new(), value)];
    page.family("downloads_sending", "gauge", "Downloads under way.", &one(crowd.sending as u64));
    page.family(
        "downloads_queued",
        "gauge",
        "Downloads that wait for a place.",
        &one(crowd.waiting as u64),
    );
    page.family(
        "downloads_refused_total",
        "counter",
        "Downloads told to come again.",
        &one(crowd.refused),
    );
    let classes = [("downloads", Traffic::Downloads), ("replication", Traffic::Replication)];
    let waiting = classes
        .map(|(class, of)| (format!("{{class=\"{class}\"}}"), edge.throttle.waiting(of) as u64));
    page.family(
        "throttled",
        "gauge",
        "Transfers that wait for their turn under a limit.",
        &waiting,
    );
    let plan = edge.throttle.plan();
    let limits = [
        ("total", plan.total),
        ("downloads", plan.downloads),
        ("replication", plan.replication),
        ("per_client", plan.per_client),
    ];
    let limits = limits
        .into_iter()
        .filter_map(|(over, rate)| Some((format!("{{over=\"{over}\"}}"), rate?.bytes_per_sec())));
    let networks = plan.networks.iter().map(|it| {
        let network = match &it.network {
            Network::Cidr(cidr) => cidr.to_string(),
            Network::Region(region) => region.to_string(),
        };
        (format!("{{over=\"{network}\"}}"), it.limit.bytes_per_sec())
    });
    let limits: Vec<_> = limits.chain(networks).collect();
    page.family("limit_bytes_per_second", "gauge", "Limits in force.", &limits);
}

fn of_the_feeds(page: &mut Page, edge: &Edge) {
    let mut rows: [Vec<(String, u64)>; 9] = Default::default();
    for feed in edge.feeds() {
        let (desk, state) = (&feed.desk, feed.desk.state.borrow());
        let labels = || format!("{{feed=\"{}\"}}", desk.feed);
        let head = desk.head();
        let now = Instant::now();
        let followers = desk.followers();
        let behind =
            followers.iter().filter(|f| f.is_live(now) && f.behind_since.is_some()).count();
        let live = followers.iter().filter(|f| f.is_live(now)).count();
        let figures = [
            head.map_or(0, |head| head.epoch),
            head.map_or(0, |head| head.seq),
            state.held.len() as u64,
            u64::from(state.last_error.is_some()),
            state.rescans,
            live as u64,
            behind as u64,
            desk.stale(MAX_LAG).len() as u64,
            desk.hooks.borrow().len() as u64,
        ];
        rows.iter_mut().zip(figures).for_each(|(rows, figure)| rows.push((labels(), figure)));
    }
    let families = [
        ("feed_epoch", "Epoch of the newest published version."),
        ("feed_seq", "Number of the newest published version."),
        ("feed_held", "Changes that wait."),
        ("feed_failing", "1 while the last work on the feed failed."),
        ("feed_rescans", "Times that everything was scanned because events were lost."),
        ("feed_followers", "Live nodes that mirror the feed from here."),
        ("feed_followers_behind", "Of these, nodes that lack the newest version."),
        ("feed_regions_stale", "Regions that are not heard, or have been behind for a minute."),
        ("feed_hooks_failing", "Hooks that are refused, fail or are to be run again."),
    ];
    for ((name, help), rows) in families.into_iter().zip(rows) {
        page.family(name, "gauge", help, &rows);
    }
}

/// Why changes wait, and for how long the oldest has.
fn of_what_is_held(page: &mut Page, edge: &Edge) {
    let (mut causes, mut ages) = (Vec::new(), Vec::new());
    let now = sys::now();
    for feed in edge.feeds() {
        let (name, state) = (&feed.desk.feed, feed.desk.state.borrow());
        for cause in Cause::ALL {
            let count = state.held.iter().filter(|held| held.cause == cause).count();
            let labels = format!("{{feed=\"{name}\",cause=\"{}\"}}", cause.as_str());
            causes.push((labels, count as u64));
        }
        let oldest = state.held.iter().map(|held| held.since).min();
        let age = oldest.and_then(|since| now.duration_since(since).ok());
        ages.push((format!("{{feed=\"{name}\"}}"), age.map_or(0, |age| age.as_secs())));
    }
    page.family(
        "feed_held_by_cause",
        "gauge",
        "Changes that wait, by what they wait for.",
        &causes,
    );
    let help = "Age of the change that has waited longest; 0 when none waits.";
    page.family("feed_held_oldest_seconds", "gauge", help, &ages);
}

/// What was built to be sent: once, however many mirrors asked.
fn of_the_stores(page: &mut Page, edge: &Edge) {
    let built = edge.feeds().map(|feed| (&feed.desk.feed, feed.desk.store.built()));
    let rows = |(feed, built): (&FeedName, Built)| {
        let labels = format!("{{feed=\"{feed}\"}}");
        ((labels.clone(), built.packs), (labels, built.deltas))
    };
    let (packs, deltas): (Vec<_>, Vec<_>) = built.map(rows).unzip();
    page.family("packs_built_total", "counter", "Packs that were built to be sent.", &packs);
    page.family("deltas_built_total", "counter", "Deltas that were made to be sent.", &deltas);
}

/// What upkeep knows of each repository.
fn of_the_repositories(page: &mut Page, edge: &Edge) {
    let mut rows: [Vec<(String, u64)>; 10] = Default::default();
    for feed in edge.feeds() {
        let care = feed.desk.care.borrow();
        let labels = || format!("{{feed=\"{}\"}}", feed.desk.feed);
        let figures = [
            Some(care.bytes.0),
            Some(care.bytes.1),
            Some(care.packs),
            Some(care.folds),
            care.growth_per_day,
            care.days_until_full(),
            Some(care.free),
            Some(care.found),
            Some(care.repaired),
            Some(care.broken.len() as u64),
        ];
        for (rows, figure) in rows.iter_mut().zip(figures) {
            rows.extend(figure.map(|figure| (labels(), figure)));
        }
    }
    let families = [
        ("store_pack_bytes", "gauge", "Bytes of packs."),
        ("store_object_bytes", "gauge", "Bytes of objects."),
        ("store_packs", "gauge", "Packs."),
        ("store_folds_total", "counter", "Times that packs were folded."),
        ("store_growth_bytes_per_day", "gauge", "Bytes that came in a day, over a week."),
        ("store_days_until_full", "gauge", "Days until the file system is full, at this pace."),
        ("store_free_bytes", "gauge", "Free bytes of the file system."),
        ("store_damage_found_total", "counter", "What was found damaged or missing."),
        ("store_damage_repaired_total", "counter", "Of this, what is sound again."),
        ("store_damage_left", "gauge", "What is still damaged or missing."),
    ];
    for ((name, kind, help), rows) in families.into_iter().zip(rows) {
        page.family(name, kind, help, &rows);
    }
}
