//! The loop of a mirror: every event in one order, every effect carried out, the desk kept current.
//!
//! It decides nothing that `follow` could. Connections, transfers and jobs are tasks of one set,
//! which ends with the loop; each of them ends in exactly one `Ended`, but for the connection,
//! which also says what it hears.

mod asked;
mod drifted;
mod ended;
mod heard;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    Error, Setup,
    checkout::{Done, Way},
    connection::{self, Heard, Line},
    drift::{Findings, Scope, Watch},
    event::{Effect, Event, Summary},
    fetch::Fetcher,
    follow::{Follow, Options},
    lane::{Lane, Worker},
    meter::Shown,
    on_demand::OnDemand,
    record::Recorder,
    reports::Reports,
    subset::Noted,
    upstream::Upstream,
};
use crate::{
    bus::{
        Desk, Nats, Request, Unfetched,
        frame::{FromFollower, Hello, Pulse},
    },
    ledger::Ledger,
    model::{Cron, Head, ObjectId, Oid},
    store::{self, Published, Store},
    sys,
};

/// Requests from the edge, reports and heard frames that may wait.
const QUEUE: usize = 64;
/// Whatever an upstream says, a fetch does not wait longer than this for others.
const LONGEST_SPREAD: Duration = Duration::from_secs(60);
/// Redirected downloads that may wait for their commit.
const MAX_WAITING: usize = 1_000;

/// Paths that differ and are named.
const MAX_DRIFT: usize = 1_000;
/// The longest that the loop rests: whoever looks sees that it is not stuck.
const TURN: Duration = Duration::from_secs(5);
/// How often the time of day is looked at.
const CLOCK: Duration = Duration::from_secs(30);

type Answer = oneshot::Sender<Result<(), String>>;

pub(super) async fn run(setup: Setup, stop: CancellationToken) -> Result<(), Error> {
    let name = setup.desk.feed.clone();
    let (store, stored) = start_lane(&format!("{name}-store"))?;
    let (directory, placed) = start_lane(&format!("{name}-disk"))?;
    let desk = setup.desk.clone();
    let ended = match Stage::open(setup, store, directory).await {
        Ok((stage, requests)) => stage.run(requests, stop).await,
        Err(error) => Err(error),
    };
    desk.take_requests(None);
    let joined = tokio::join!(stored.join(), placed.join());
    ended.and(joined.0.map_err(Error::from)).and(joined.1.map_err(Error::from))
}

fn start_lane(name: &str) -> Result<(Lane, Worker), Error> {
    Lane::start(name).map_err(|source| Error::Worker(format!("cannot start a thread: {source}")))
}

/// The conversation with the upstream.
struct Link {
    heard: mpsc::Receiver<Heard>,
    outbox: mpsc::Sender<FromFollower>,
    task: AbortHandle,
}

/// How a task ended.
enum Ended {
    Talk,
    Poll(Vec<(usize, Result<Option<Head>, Error>)>),
    Fetch(Result<Published, Error>),
    Checkout(Head, Result<Done, Error>),
    Checked(Result<Findings, Error>),
    Recorded,
    /// One object that someone waits for.
    Object(ObjectId, Result<(), Unfetched>),
    /// Whether a commit is here that someone waits for; with the number of looks so far.
    Look(Oid, Answer, u32, Result<bool, Error>),
}

struct Stage {
    desk: Arc<Desk>,
    hello: Hello,
    upstreams: Vec<Upstream>,
    /// By way of which announcements come; none: over connections of our own.
    nats: Option<Nats>,
    fetcher: Fetcher,
    directory: Lane,
    checkout: Option<Arc<Way>>,
    follow: Follow,
    link: Option<Link>,
    tasks: JoinSet<Ended>,
    pulse: watch::Sender<Pulse>,
    shown: Option<Summary>,
    recorder: Recorder,
    /// When the fetch and the checkout under way began.
    fetch_began: Instant,
    checkout_began: Instant,
    /// What the upstream has heard of the nodes below us.
    reports: Reports,
    /// Who waits for the answer to a poll, and who for a commit.
    askers: Vec<Answer>,
    /// Who asked before the question under way was put, and gets its answer.
    asked: Vec<Answer>,
    waiting: Vec<(Oid, Answer)>,
    /// Looks for commits under way: a store that is stuck ends none of them.
    looks: usize,
    /// Objects that downloads wait for.
    on_demand: OnDemand,
    /// Ends a hook that is being asked.
    stopping: Arc<AtomicBool>,
    /// Looks for what others change; none where there is nothing to be changed.
    watch: Option<Watch>,
    checking: bool,
    /// Whether that is a step of a verification.
    verifying: bool,
    ledger: Arc<Ledger>,
    /// When checkouts are due.
    checkout_at: Option<Cron>,
    next_checkout: Option<SystemTime>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
    }
}

impl Stage {
    /// Begins where the store says that we were; `lane` is the repository's.
    async fn open(
        mut setup: Setup,
        lane: Lane,
        directory: Lane,
    ) -> Result<(Self, mpsc::Receiver<Request>), Error> {
        let desk = setup.desk.clone();
        let store = desk.store.clone();
        let (newest, have) = lane.run(move || position(&store)).await??;
        // Another part of the feed than before: objects and files of it may be missing.
        let is_same_part =
            setup.root.is_none() || Noted::at(&setup.state).read()? == setup.subset().patterns();
        let fetched = newest.as_ref().map(|published| published.head).filter(|_| is_same_part);
        let have = have.filter(|_| is_same_part);
        // After a demotion our own last version lies there, and more: nothing is put in place before
        // the new owner's has come.
        let own = fetched.filter(|head| Some(head.commit) == setup.demoted_at);
        let have = have.or(own);
        if let Some(published) = newest {
            desk.post(published);
        }
        let options = Options {
            upstreams: setup.upstreams.len(),
            checkout: setup.root.is_some() || setup.snapshot.is_some(),
            scheduled: setup.checkout_at.is_some(),
            poll: setup.poll,
            seed: setup.seed(),
        };
        let (accept, requests) = mpsc::channel(QUEUE);
        let mailbox = move |request| accept.try_send(request).is_ok();
        desk.take_requests(Some(Box::new(mailbox)));
        let progress = Shown::of(desk.progress.clone());
        let shallow = setup.shallow;
        let stopping = Arc::new(AtomicBool::new(false));
        let watch = setup.root.as_ref().filter(|_| setup.snapshot.is_none());
        let verify_at = setup.verify_at.take();
        let watch = watch.map(|root| Watch::start(root, verify_at));
        let stage = Stage {
            hello: setup.hello(),
            upstreams: setup.upstreams(),
            nats: setup.nats.take(),
            checkout: setup.checkout(&stopping),
            fetcher: Fetcher {
                store: desk.store.clone(),
                lane,
                progress,
                part: setup.subset(),
                dir: setup.root.as_ref().map(|root| root.path().to_owned()),
                is_same_part,
                shallow,
                sweeps: true,
            },
            recorder: Recorder {
                feed: desk.feed.clone(),
                ledger: setup.ledger.clone(),
                store: desk.store.clone(),
            },
            fetch_began: Instant::now(),
            checkout_began: Instant::now(),
            reports: Reports::new(setup.node.clone()),
            directory,
            follow: Follow::new(Instant::now(), options, fetched, have),
            link: None,
            tasks: JoinSet::new(),
            pulse: watch::Sender::new(Pulse { have, fetched, ..Pulse::default() }),
            shown: None,
            askers: Vec::new(),
            asked: Vec::new(),
            waiting: Vec::new(),
            looks: 0,
            on_demand: OnDemand::default(),
            stopping,
            watch,
            checking: false,
            verifying: false,
            ledger: setup.ledger.clone(),
            next_checkout: setup.checkout_at.as_ref().and_then(|cron| cron.next_after(sys::now())),
            checkout_at: setup.checkout_at.take(),
            desk,
        };
        Ok((stage, requests))
    }

    async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        stop: CancellationToken,
    ) -> Result<(), Error> {
        let orders = self.desk.orders.borrow().clone();
        self.obey(&orders);
        let mut paused = self.desk.paused.subscribe();
        let mut below = self.desk.changes.subscribe();
        self.pause_here();
        loop {
            self.turn();
            let deadline = self.follow.deadline();
            let report = self.reports.deadline();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(heard) = hear(&mut self.link) => self.take_heard(heard),
                Some(ended) = self.tasks.join_next() => {
                    let ended = ended.map_err(|error| Error::Worker(format!("a task has ended badly: {error}")))?;
                    self.take_ended(ended)?;
                }
                Some(request) = requests.recv() => self.take_request(request),
                Ok(()) = paused.changed() => self.pause_here(),
                Ok(()) = below.changed() => self.reports.changed(Instant::now()),
                () = sleep_until(report) => self.report_below(),
                () = sleep_until(deadline) => self.feed(Event::Ticked),
                scope = look(&mut self.watch, self.checking) => self.check(scope),
                () = wait_for(self.next_checkout) => self.mind_clock(),
                () = tokio::time::sleep(TURN) => {}
            }
        }
    }

    /// Says that the mirror gets on, if its threads do.
    fn turn(&self) {
        let lanes =
            [("its store thread", &self.fetcher.lane), ("its disk thread", &self.directory)];
        match lanes.iter().find(|(_, lane)| lane.stuck_for() > TURN / 2) {
            Some((name, _)) => self.desk.held_up(name),
            None => self.desk.turn(),
        }
    }

    /// Somebody has told this node itself to stay where it is, or to go on.
    fn pause_here(&mut self) {
        let hello = &self.hello;
        let paused = self.desk.is_paused(&hello.node, hello.region.as_ref());
        self.feed(Event::PausedHere(paused));
    }

    /// Tells the upstream what has changed among the nodes below us.
    fn report_below(&mut self) {
        let reports = self.desk.reports(&self.hello.node);
        let Some(link) = &self.link else { return self.reports.wait() };
        let outbox = &link.outbox;
        self.reports.send(Instant::now(), reports, |below| {
            outbox.try_send(FromFollower::Below(below)).is_ok()
        });
    }

    /// One step: the event in, the effects out, the desk up to date.
    fn feed(&mut self, event: Event) {
        for effect in self.follow.step(Instant::now(), event) {
            self.carry_out(effect);
        }
        self.show();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Connect(upstream) => self.connect(upstream),
            Effect::Disconnect => self.hang_up(),
            Effect::Poll => self.poll(),
            Effect::Receive { upstream, parcels } => {
                self.fetch_began = Instant::now();
                let (fetcher, upstream) = (self.fetcher.clone(), self.upstreams[upstream].clone());
                self.tasks
                    .spawn(async move { Ended::Fetch(fetcher.receive(&upstream, parcels).await) });
            }
            Effect::Fetch { upstream, have, want } => {
                self.fetch_began = Instant::now();
                let (fetcher, upstream) = (self.fetcher.clone(), self.upstreams[upstream].clone());
                self.tasks
                    .spawn(async move { Ended::Fetch(fetcher.fetch(&upstream, have, want).await) });
            }
            Effect::CheckOut(head) => self.check_out(head),
            Effect::Report(ack) => {
                if let Some(link) = &self.link {
                    // A full queue drops it: heartbeats say what we have.
                    let _ = link.outbox.try_send(FromFollower::Ack(ack));
                }
            }
            Effect::Alarm(refusal) => error!(feed = %self.desk.feed, "refused: {refusal}"),
        }
    }

    fn connect(&mut self, upstream: usize) {
        self.hang_up();
        let (tell, heard) = mpsc::channel(QUEUE);
        let (outbox, reports) = mpsc::channel(QUEUE);
        let Pulse { have, fetched, .. } = self.pulse.borrow().clone();
        let hello = Hello { have, fetched, ..self.hello.clone() };
        let line = Line {
            heard: tell,
            outbox: reports,
            pulse: self.pulse.subscribe(),
            progress: self.fetcher.progress.subscribe(),
            store: Arc::clone(&self.desk.store),
        };
        let (upstream, nats) = (self.upstreams[upstream].clone(), self.nats.clone());
        let conversation = connection::converse(upstream, nats, hello, line);
        let task = self.tasks.spawn(async move {
            conversation.await;
            Ended::Talk
        });
        self.link = Some(Link { heard, outbox, task });
    }

    fn hang_up(&mut self) {
        if let Some(link) = self.link.take() {
            link.task.abort();
        }
    }

    fn poll(&mut self) {
        self.asked.append(&mut self.askers);
        let upstreams = self.upstreams.clone();
        let have = self.pulse.borrow().fetched;
        self.tasks.spawn(async move {
            let asked = upstreams
                .iter()
                .enumerate()
                .map(async |(number, upstream)| (number, upstream.head_telling(have).await));
            Ended::Poll(futures_util::future::join_all(asked).await)
        });
    }

    fn check_out(&mut self, head: Head) {
        let Some(checkout) = self.checkout.clone() else { return };
        self.checkout_began = Instant::now();
        let (directory, profile) = (self.directory.clone(), self.desk.profile.borrow().clone());
        self.tasks.spawn(async move {
            let done = directory.run(move || checkout.run(&head, &profile)).await;
            Ended::Checkout(head, done.map_err(Error::from).flatten())
        });
    }

    /// A clock that was set is minded too: it is looked at every half minute.
    fn mind_clock(&mut self) {
        let Some(at) = self.next_checkout.filter(|at| *at <= sys::now()) else { return };
        self.next_checkout =
            self.checkout_at.as_ref().and_then(|cron| cron.next_after(at.max(sys::now())));
        self.feed(Event::CheckoutDue);
    }

    /// Brings desk and heartbeats up to date.
    fn show(&mut self) {
        let summary = self.follow.summary();
        if self.shown.as_ref() == Some(&summary) {
            return;
        }
        let (have, fetched) = (summary.have, summary.fetched);
        // Who refuses what we have to offer is to be seen at both ends.
        let refusal = summary.detail.clone().filter(|_| summary.state == "refused");
        let error = summary.last_error.clone().or(refusal);
        let (waits, paused) = (self.follow.excuse(), self.follow.waits().is_some());
        self.pulse.send_replace(Pulse { have, fetched, waits, paused, error });
        self.desk.state.send_modify(|state| {
            state.primary = false;
            state.state = summary.state;
            state.detail.clone_from(&summary.detail);
            state.want = summary.want;
            state.fetched = fetched;
            state.have = have;
            state.upstream_url =
                self.upstreams.get(summary.upstream).map(|upstream| upstream.base.to_string());
            state.upstream_feed = self.upstreams.first().map(|upstream| upstream.feed.clone());
            state.last_error.clone_from(&summary.last_error);
        });
        self.shown = Some(summary);
    }
}

/// When there is something to be looked at, and nobody is looking already.
async fn look(watch: &mut Option<Watch>, busy: bool) -> Scope {
    match watch {
        Some(watch) if !busy => watch.due().await,
        _ => std::future::pending().await,
    }
}

/// Until then by the time of day, or for half a minute.
async fn wait_for(at: Option<SystemTime>) {
    match at {
        Some(at) => {
            let left = at.duration_since(sys::now()).unwrap_or_default();
            tokio::time::sleep(left.min(CLOCK)).await;
        }
        None => std::future::pending().await,
    }
}

/// What the connection hears; forever silent without one.
async fn hear(link: &mut Option<Link>) -> Option<Heard> {
    match link {
        Some(link) => link.heard.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The store's head, for those who follow us, and what lies in the directory.
fn position(store: &Store) -> Result<(Option<Published>, Option<Head>), Error> {
    let newest = match store.head()? {
        Some(head) => Some(store.announced(head)?),
        None => None,
    };
    let have = match store.checked_out()?.map(|commit| store.commit(commit)) {
        Some(Ok(commit)) => Some(commit.head),
        // Lost, or given up with its history: what lies there is compared by content.
        Some(Err(store::Error::UnknownCommit(_))) | None => None,
        Some(Err(error)) => return Err(error.into()),
    };
    Ok((newest, have))
}
