//! The loop of a mirror: every event in one order, every effect carried out, the desk kept current.
//!
//! It decides nothing that `follow` could. Connections, transfers and jobs are tasks of one set,
//! which ends with the loop; each of them ends in exactly one `Ended`, but for the connection,
//! which also says what it hears.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Error, Setup,
    checkout::{Done, Way},
    connection::{self, Heard, Line},
    drift::{Findings, Scope, Watch},
    event::{Effect, Event, Manner, Summary},
    fetch::Fetcher,
    follow::{Follow, Options},
    lane::{Lane, Worker},
    meter::Shown,
    on_demand::OnDemand,
    record::{Recorder, Work},
    reports::Reports,
    subset::Noted,
    upstream::Upstream,
    verify::Step,
};
use crate::{
    bus::{
        Cause, Desk, Held, Nats, Request, Trust, Unfetched, Verified,
        frame::{FromFollower, Hello, Pulse, Standing},
    },
    ledger::{self, Kind, Ledger, MAX_NAMES, NewRun},
    model::{Cron, Head, ObjectId, Oid, Orders, RelPath},
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
            self.desk.turn();
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

    fn check(&mut self, scope: Scope) {
        let Some(checkout) = self.checkout.clone() else { return };
        let watcher = self.watch.as_ref().and_then(|watch| watch.watcher.clone());
        let (directory, profile) = (self.directory.clone(), self.desk.profile.borrow().clone());
        self.checking = true;
        self.verifying = matches!(scope, Scope::Content(_));
        self.tasks.spawn(async move {
            let found = directory.run(move || match &*checkout {
                Way::InPlace(checkout) => checkout.check(&scope, &profile, watcher.as_deref()),
                Way::Snapshot(_) => Ok(Findings::default()),
            });
            Ended::Checked(found.await.map_err(Error::from).flatten())
        });
    }

    /// How far a verification is; a step that came to nothing is tried again later.
    fn take_verified(&mut self, step: Option<Step>) {
        let is_step = std::mem::take(&mut self.verifying);
        let watch = self.watch.as_mut().filter(|_| is_step);
        let Some(whole) = watch.and_then(|watch| watch.verified(step)) else { return };
        let (files, differing, took) = (whole.files, whole.differing, whole.began.elapsed());
        info!(feed = %self.desk.feed, files, differing, ?took, "all files were read and compared");
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.desk.state.send_modify(|state| {
            state.verified = Some(Verified { at: sys::now(), files, differing, took_ms: took });
        });
    }

    fn take_findings(&mut self, findings: Findings) {
        let feed = &self.desk.feed;
        for path in findings.set_aside.iter().chain(&findings.repaired) {
            warn!(%feed, %path, "was changed here: put right");
        }
        for (path, why) in &findings.told {
            warn!(%feed, %path, "differs from the feed: {why}");
        }
        if !findings.repaired.is_empty() {
            let mut run = NewRun::new(feed.clone(), ledger::Kind::Repair, sys::now());
            run.files = findings.repaired.len() as u64;
            run.commit = self.follow.summary().have.map(|head| head.commit);
            run.names = findings.repaired.iter().take(ledger::MAX_NAMES).cloned().collect();
            if let Err(error) = self.ledger.add_run(&run) {
                warn!(%feed, %error, "a run is not recorded");
            }
        }
        let told = |(path, reason): (RelPath, String)| Held {
            path,
            cause: Cause::Drift,
            reason,
            since: sys::now(),
            decision: false,
        };
        self.desk.state.send_if_modified(|state| {
            let before = (state.drift.len(), state.extra);
            if let Some(extra) = findings.extra {
                state.extra = extra;
                state.drift.clear();
            }
            let news: Vec<Held> = findings.told.into_iter().map(told).collect();
            state.drift.retain(|known| {
                !findings.repaired.contains(&known.path)
                    && !news.iter().any(|new| new.path == known.path)
            });
            state.drift.extend(news);
            state.drift.truncate(MAX_DRIFT);
            before != (state.drift.len(), state.extra)
        });
    }

    fn take_heard(&mut self, heard: Heard) {
        self.desk.state.send_modify(|state| state.heartbeat = Some(Instant::now()));
        match heard {
            Heard::Welcome(welcome) => {
                info!(feed = %self.desk.feed, upstream = %welcome.label, "following");
                if let Some(warning) = &welcome.warning {
                    warn!(feed = %self.desk.feed, "{warning}");
                }
                self.desk.profile.send_replace(welcome.profile);
                self.stand(welcome.standing);
                self.take_orders(&welcome.orders);
                self.learn(welcome.trust);
                self.reports.begin_again(Instant::now());
                self.ask(welcome.paused, welcome.spread_ms);
                self.feed(Event::Welcomed { head: welcome.head });
            }
            Heard::Announce(announce, pack) => {
                self.feed(Event::Announced { head: announce.head, parent: announce.parent, pack });
            }
            Heard::Heartbeat(beat) => {
                self.stand(beat.standing);
                self.take_orders(&beat.orders);
                self.learn(beat.trust);
                self.reports.changed(Instant::now());
                self.ask(beat.paused, beat.spread_ms);
                self.feed(Event::HeartbeatHeard { head: beat.head });
            }
            Heard::Ended(reason) => {
                self.link = None;
                let name = reason.name();
                let reason = reason.to_string();
                if self.follow.summary().detail.as_ref() != Some(&reason) {
                    warn!(feed = %self.desk.feed, "{reason}");
                }
                self.feed(match name {
                    Some(name) => Event::Barred { name, reason },
                    None => Event::Disconnected { reason },
                });
            }
        }
    }

    /// Pins and revocations: kept by whoever assembles the node, and handed on to those below.
    fn take_orders(&mut self, orders: &Orders) {
        let differs = self.desk.orders.send_if_modified(|known| {
            let differs = known != orders;
            if differs {
                known.clone_from(orders);
            }
            differs
        });
        if differs {
            self.obey(orders);
        }
    }

    /// Who may read here: kept by whoever assembles the node.
    fn learn(&self, said: Option<Trust>) {
        let now = sys::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.desk.learned.send_modify(|learned| learned.take(said, now));
    }

    fn obey(&mut self, orders: &Orders) {
        let pin = orders.pin_of(&self.hello.node, self.hello.region.as_ref());
        self.feed(Event::Ordered { pin, revoked: orders.revoked.clone() });
    }

    fn ask(&mut self, paused: bool, spread_ms: u64) {
        let spread = Duration::from_millis(spread_ms).min(LONGEST_SPREAD);
        self.feed(Event::Asked(Manner { paused, spread }));
    }

    fn stand(&self, standing: Standing) {
        self.desk.state.send_if_modified(|state| {
            let differs = state.standing != standing;
            state.standing = standing;
            differs
        });
    }

    /// # Errors
    /// What ends the mirror; everything else is fed to `follow`.
    fn take_ended(&mut self, ended: Ended) -> Result<(), Error> {
        match ended {
            Ended::Talk | Ended::Recorded => {}
            Ended::Poll(answers) => self.take_polled(answers),
            Ended::Fetch(Ok(published)) => {
                let head = published.head;
                let from = self.follow.summary().fetched;
                self.desk.post(published);
                self.feed(Event::Fetched { head });
                self.record(Work {
                    kind: Kind::Fetch,
                    began: self.fetch_began,
                    from: from.map(|head| head.commit),
                    to: Some(head),
                    bytes: self.fetcher.progress.take_received(),
                    error: None,
                    detail: None,
                });
                for (commit, answer) in std::mem::take(&mut self.waiting) {
                    self.look(commit, answer, 1);
                }
            }
            Ended::Fetch(Err(error)) => {
                self.take_failed_fetch(error)?;
            }
            Ended::Checked(found) => {
                self.checking = false;
                self.take_verified(found.as_ref().ok().and_then(|found| found.step.clone()));
                match found {
                    Ok(findings) => self.take_findings(findings),
                    Err(error) if error.ends_the_stage() => return Err(error),
                    Err(error) => warn!(feed = %self.desk.feed, "cannot look for drift: {error}"),
                }
            }
            Ended::Checkout(head, Ok(done)) => {
                let from = self.follow.summary().have;
                self.tell(head, &done);
                // The first one makes the folders that are to be watched.
                if self.follow.summary().have.is_none()
                    && let Some(watch) = &mut self.watch
                {
                    watch.look_at_all();
                }
                self.feed(Event::CheckedOut { head });
                self.record(Work {
                    kind: Kind::Checkout,
                    began: self.checkout_began,
                    from: from.map(|head| head.commit),
                    to: Some(head),
                    bytes: done.placed.bytes,
                    error: None,
                    detail: put_aside(&done),
                });
            }
            Ended::Checkout(head, Err(Error::Vetoed(reason))) => {
                warn!(feed = %self.desk.feed, commit = %head.commit, "not checked out: {reason}");
                self.feed(Event::CheckoutVetoed { reason });
            }
            Ended::Checkout(_, Err(Error::Later { until, reason })) => {
                self.feed(Event::CheckoutPutOff { until, reason });
            }
            Ended::Checkout(head, Err(error)) => {
                if error.ends_the_stage() {
                    return Err(error);
                }
                warn!(feed = %self.desk.feed, commit = %head.commit, "{error}");
                self.failed(Kind::Checkout, self.checkout_began, error.to_string());
                self.feed(Event::CheckoutFailed { reason: error.to_string() });
            }
            Ended::Object(id, result) => {
                self.on_demand.ended(id, &result);
                self.bring_objects();
            }
            Ended::Look(commit, answer, looks, found) => {
                self.take_look(commit, answer, looks, found)?;
            }
        }
        Ok(())
    }

    fn take_failed_fetch(&mut self, error: Error) -> Result<(), Error> {
        if error.ends_the_stage() {
            return Err(error);
        }
        let reason = error.to_string();
        let commit = self.follow.summary().want.map(|head| tracing::field::display(head.commit));
        warn!(feed = %self.desk.feed, commit, "{reason}");
        for (_, answer) in self.waiting.drain(..) {
            let _ = answer.send(Err(reason.clone())); // it waits no longer: fine
        }
        self.failed(Kind::Fetch, self.fetch_began, reason.clone());
        self.feed(match error {
            Error::Split(head) => Event::FetchSplit { head },
            error => Event::FetchFailed { failure: error.class(), reason },
        });
        Ok(())
    }

    /// A run that failed; the same failure again is not another entry.
    fn failed(&mut self, kind: Kind, began: Instant, error: String) {
        let bytes = self.fetcher.progress.take_received();
        if self.follow.summary().last_error.as_ref() == Some(&error) {
            return;
        }
        let (from, to, detail) = (None, self.follow.summary().want, None);
        self.record(Work { kind, began, from, to, bytes, error: Some(error), detail });
    }

    /// Records a run, behind whatever is under way.
    fn record(&mut self, work: Work) {
        let (recorder, lane) = (self.recorder.clone(), self.fetcher.lane.clone());
        self.tasks.spawn(async move {
            // A broken lane is told by whatever needs it next.
            let _ = lane.run(move || recorder.record(&work)).await;
            Ended::Recorded
        });
    }

    fn take_polled(&mut self, answers: Vec<(usize, Result<Option<Head>, Error>)>) {
        let mut heads = Vec::new();
        let mut result = Err("there is no upstream".to_owned());
        for (upstream, answer) in answers {
            match answer {
                Ok(head) => {
                    heads.push((upstream, head));
                    result = Ok(());
                }
                Err(error) if result.is_err() => result = Err(error.to_string()),
                Err(_) => {}
            }
        }
        let askers = std::mem::take(&mut self.asked);
        self.feed(Event::Polled { heads });
        for asker in askers {
            let _ = asker.send(result.clone()); // it waits no longer: fine
        }
        if self.follow.has_all_it_knows_of() {
            let reason =
                result.err().unwrap_or_else(|| "the upstream has no such commit".to_owned());
            for (_, answer) in self.waiting.drain(..) {
                let _ = answer.send(Err(reason.clone()));
            }
        }
    }

    fn take_request(&mut self, request: Request) {
        self.askers.retain(|asker| !asker.is_closed());
        self.waiting.retain(|(_, answer)| !answer.is_closed());
        match request {
            Request::Sync(answer) => {
                self.askers.push(answer);
                self.feed(Event::SyncRequested);
            }
            Request::Fetch(commit, answer) => self.look(commit, answer, 0),
            Request::Object { id, size, commit, answer } => {
                let head = self.follow.summary().fetched.map(|head| head.commit);
                if commit.is_some() && commit == head && self.fetcher.part.is_all() {
                    // What came with the head was here.
                    self.desk.store.alarm();
                }
                self.on_demand.ask((id, size), answer);
                self.bring_objects();
            }
            Request::Repair { history, objects, answer } => self.repair(history, objects, answer),
            Request::Report(ack) => self.carry_out(Effect::Report(ack)),
            other => other.refuse("this node mirrors the feed: ask its primary"),
        }
    }

    /// Brings back what the store lacks of its head.
    fn repair(&mut self, history: bool, objects: Vec<(ObjectId, u64)>, answer: Answer) {
        let fetcher = Fetcher { sweeps: false, ..self.fetcher.clone() };
        let Some(upstream) = self.upstreams.get(self.follow.summary().upstream).cloned() else {
            let _ = answer.send(Err("there is no upstream".to_owned())); // it waits no longer: fine
            return;
        };
        self.tasks.spawn(async move {
            let repaired = match fetcher.store.head() {
                Ok(Some(head)) => fetcher.repair(&upstream, head, history, objects).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            let _ = answer.send(repaired.map_err(|error| error.to_string())); // it waits no longer: fine
            Ended::Talk
        });
    }

    /// Begins to fetch what downloads wait for.
    fn bring_objects(&mut self) {
        while let Some(wanted) = self.on_demand.begin() {
            let summary = self.follow.summary();
            let (upstream, head) = (self.upstreams.get(summary.upstream), summary.fetched);
            let (Some(upstream), Some(head)) = (upstream.cloned(), head) else {
                let none = Unfetched::later("there is no upstream");
                self.on_demand.ended(wanted.0, &Err(none));
                continue;
            };
            let fetcher = self.fetcher.clone();
            self.tasks.spawn(async move {
                Ended::Object(wanted.0, fetcher.fetch_object(&upstream, head, wanted).await)
            });
        }
    }

    /// Looks whether a commit is here.
    fn look(&mut self, commit: Oid, answer: Answer, looks: u32) {
        let (store, lane) = (self.desk.store.clone(), self.fetcher.lane.clone());
        self.tasks.spawn(async move {
            let found = lane.run(move || store.is_published(commit)).await;
            let found = found.map_err(Error::from).and_then(|found| Ok(found?));
            Ended::Look(commit, answer, looks + 1, found)
        });
    }

    fn take_look(
        &mut self,
        commit: Oid,
        answer: Answer,
        looks: u32,
        found: Result<bool, Error>,
    ) -> Result<(), Error> {
        let result = match found {
            Ok(true) => Ok(()),
            Ok(false) if self.waiting.len() >= MAX_WAITING => {
                Err("too many wait for a commit".to_owned())
            }
            Ok(false) if looks > 1 && self.follow.has_all_it_knows_of() => {
                Err("the upstream has no such commit".to_owned())
            }
            Ok(false) => {
                self.waiting.push((commit, answer));
                if looks == 1 {
                    self.feed(Event::SyncRequested);
                }
                return Ok(());
            }
            Err(error) if error.ends_the_stage() => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        let _ = answer.send(result); // it waits no longer: fine
        Ok(())
    }

    fn tell(&self, head: Head, done: &Done) {
        let (feed, placed) = (&self.desk.feed, &done.placed);
        info!(%feed, commit = %head.commit, seq = head.seq, written = placed.written, deleted = placed.deleted, "checked out");
        for path in &placed.set_aside {
            warn!(%feed, %path, commit = %head.commit, "was not as the feed had it: put aside");
        }
        for (path, note) in &placed.notes {
            warn!(%feed, %path, commit = %head.commit, "{note}");
        }
        for path in &done.drifted {
            warn!(%feed, %path, commit = %head.commit, "was changed by another program right after it was put in place");
        }
    }

    /// Brings desk and heartbeats up to date.
    fn show(&mut self) {
        let summary = self.follow.summary();
        if self.shown.as_ref() == Some(&summary) {
            return;
        }
        let (have, fetched) = (summary.have, summary.fetched);
        let error = summary.last_error.clone();
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

/// What had to make way, for those who look back.
fn put_aside(done: &Done) -> Option<String> {
    let count = done.placed.set_aside.len();
    let first: Vec<String> = done
        .placed
        .set_aside
        .iter()
        .take(MAX_NAMES)
        .map(|path| path.to_text().into_owned())
        .collect();
    (count > 0).then(|| format!("{count} files were put aside: {}", first.join(", ")))
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
        Some(head) => {
            let parent = store.commit(head.commit)?.parent;
            Some(Published { head, parent, pack: None })
        }
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
