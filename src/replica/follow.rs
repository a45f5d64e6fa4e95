//! What a mirror does next: connect, fetch, check out, wait. Pure decisions, told the time.
//!
//! Level, not edge: it goes on until what it has is what the upstream says it should have. A
//! message only wakes it; when every announcement is lost, heartbeats and the slow poll behind them
//! carry the head. It never does anything itself: events in, effects out, and the shell in `mod.rs`
//! carries them out. A head that is behind ours or on another line is refused and alarmed on.

mod heads;
mod told;

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use crate::{
    bus::frame::{Ack, Outcome},
    model::{Head, Oid, Step},
    replica::{
        backoff::Backoff,
        event::{Effect, Event, Failure, Manner, Parcel, Refusal},
    },
};

/// Announced packs that wait to be received, each of 64 KiB at most: a mirror that is slower than
/// that fetches them in one piece.
const MAX_PARCELS: usize = 32;
/// An odd head is alarmed on when it is heard twice in a row: once may be a message that another
/// one has overtaken.
const ODD_HEADS: u32 = 2;
/// One that is only behind ours may be a relay's that lags: as long as not all upstreams answer, that is
/// looked at with every heartbeat for three minutes before it is alarmed on.
const ODD_ALONE: u32 = 36;

/// How a mirror works.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many upstreams there are to choose from.
    pub upstreams: usize,
    /// Whether there is a directory to check out into; else history and objects are all.
    pub checkout: bool,
    /// Whether heads are put in place only at certain times.
    pub scheduled: bool,
    /// How long after the last sign of the head it is asked for.
    pub poll: Duration,
    /// Where the randomness of the waits begins.
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    Connecting,
    Up,
}

/// The mirror of one feed.
#[expect(clippy::struct_excessive_bools, reason = "each is another question")]
#[derive(Debug)]
pub struct Follow {
    options: Options,
    upstream: usize,
    link: Link,
    /// Why there is no connection.
    broken: Option<String>,
    /// The name of that, where it has one.
    barred: Option<&'static str>,
    manner: Manner,
    paused_here: bool,
    /// A fetch waits until then, since others fetch too.
    spread_until: Option<Instant>,
    want: Option<Head>,
    fetched: Option<Head>,
    have: Option<Head>,
    /// When it was first known that `have` is not what it should be.
    wanting_since: Option<Instant>,
    /// What is being fetched, and what a broken fetch goes on with.
    fetching: Option<Head>,
    begun: Option<Head>,
    placing: Option<Head>,
    /// The head that a hook refuses or puts off, and why.
    vetoed: Option<Head>,
    put_off: Option<(Head, String)>,
    /// Where the primary keeps us, and what we never check out.
    pin: Option<Head>,
    revoked: BTreeSet<Oid>,
    /// The time for a checkout has come; a first one does not wait for it.
    due: bool,
    parcels: VecDeque<Parcel>,
    /// Heads in a row that do not follow ours.
    odd: u32,
    /// The upstream that we follow is behind us, and another one may know better.
    lagging: bool,
    refusal: Option<Refusal>,
    /// A head that a fetch has proved to be on another line.
    split: Option<Head>,
    poll_at: Instant,
    polling: bool,
    reconnect: Backoff,
    refetch: Backoff,
    replace: Backoff,
    damaged: u32,
    fetch_error: Option<String>,
    checkout_error: Option<String>,
}

impl Follow {
    /// A mirror that has `fetched` in its store and `have` in its directory.
    pub fn new(now: Instant, options: Options, fetched: Option<Head>, have: Option<Head>) -> Self {
        let backoff = |first_ms, salt| {
            Backoff::new(
                Duration::from_millis(first_ms),
                Duration::from_secs(60),
                options.seed ^ salt,
            )
        };
        Follow {
            options,
            upstream: 0,
            link: Link::Down,
            broken: None,
            barred: None,
            manner: Manner::default(),
            paused_here: false,
            spread_until: None,
            want: None,
            fetched,
            have: if options.checkout { have } else { fetched },
            wanting_since: None,
            fetching: None,
            begun: None,
            placing: None,
            vetoed: None,
            put_off: None,
            pin: None,
            revoked: BTreeSet::new(),
            due: !options.scheduled || have.is_none(),
            parcels: VecDeque::new(),
            odd: 0,
            lagging: false,
            refusal: None,
            split: None,
            poll_at: now + options.poll,
            polling: false,
            reconnect: Backoff::new(
                Duration::from_millis(200),
                Duration::from_secs(30),
                options.seed,
            ),
            refetch: backoff(200, 1),
            replace: backoff(1_000, 2),
            damaged: 0,
            fetch_error: None,
            checkout_error: None,
        }
    }

    /// Takes in what has happened; what is to be done comes back.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.take_in(now, event, &mut effects);
        self.go_on(now, &mut effects);
        effects
    }

    /// When [`Event::Ticked`] is due; none: only something else can bring news.
    pub fn deadline(&self) -> Option<Instant> {
        let link = (self.link == Link::Down).then_some(self.reconnect.until()).flatten();
        let poll = (!self.polling).then_some(self.poll_at);
        let fetch = self.lacks().and(self.refetch.until().max(self.spread_until));
        let place = self.unplaced().and(self.replace.until());
        [link, poll, fetch, place].into_iter().flatten().min()
    }

    /// Whether nothing is under way that could bring a commit which is not here.
    pub fn has_all_it_knows_of(&self) -> bool {
        !self.polling && self.fetching.is_none() && self.lacks().is_none()
    }

    fn is_busy(&self) -> bool {
        let fetches = self.fetching.is_some() || self.lacks().is_some();
        fetches || self.placing.is_some() || self.unplaced().is_some()
    }

    fn take_in(&mut self, now: Instant, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Asked(manner) => self.manner = manner,
            Event::PausedHere(paused) => self.paused_here = paused,
            Event::Barred { name, reason } => {
                self.lose_link(now, reason);
                self.reconnect.failed_for_good(now);
                self.barred = Some(name);
            }
            Event::Welcomed { head } => {
                self.link = Link::Up;
                self.broken = None;
                self.barred = None;
                self.refetch.reset();
                self.hear(now, head, effects);
            }
            Event::Announced { head, parent, pack } => {
                self.reconnect.reset();
                self.hear(now, Some(head), effects);
                self.keep(pack.map(|pack| Parcel { head, parent, pack }));
            }
            Event::HeartbeatHeard { head } => {
                self.reconnect.reset();
                self.hear(now, head, effects);
            }
            Event::Disconnected { reason } => self.lose_link(now, reason),
            Event::Polled { heads } => self.compare(now, &heads, effects),
            Event::Fetched { head } => self.take_fetched(now, head, effects),
            Event::FetchFailed { failure, reason } => {
                self.take_failure(now, failure, reason, effects);
            }
            Event::FetchSplit { head } => {
                self.fetching = None;
                self.begun = None;
                self.split = Some(head);
                self.odd = ODD_HEADS;
                self.refuse(Some(head), effects);
            }
            Event::CheckedOut { head } => self.take_checked_out(now, head, effects),
            Event::CheckoutFailed { reason } => {
                self.replace.failed(now);
                if let Some(head) = self.placing.take() {
                    effects.push(self.report(now, head, Outcome::Failed, Some(&reason)));
                }
                self.checkout_error = Some(reason);
            }
            Event::CheckoutVetoed { reason } => {
                self.vetoed = self.placing.take();
                if let Some(head) = self.vetoed {
                    effects.push(self.report(now, head, Outcome::Vetoed, Some(&reason)));
                    self.put_off = Some((head, reason));
                }
            }
            Event::CheckoutPutOff { until, reason } => {
                self.replace.put_off(until);
                self.put_off = self.placing.take().map(|head| (head, reason));
            }
            Event::Ordered { pin, revoked } => {
                (self.pin, self.revoked) = (pin, revoked);
            }
            Event::CheckoutDue => self.due = true,
            Event::SyncRequested => {
                self.due = true;
                for backoff in [&mut self.reconnect, &mut self.refetch, &mut self.replace] {
                    backoff.reset();
                }
                self.spread_until = None;
                self.poll_at = now;
            }
            Event::Ticked => {}
        }
    }

    /// Does whatever is due: this is the loop until have = want.
    fn go_on(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.link == Link::Down && self.reconnect.is_due(now) && self.options.upstreams > 0 {
            self.link = Link::Connecting;
            effects.push(Effect::Connect(self.upstream));
        }
        if now >= self.poll_at && !self.polling {
            self.poll_at = now + self.options.poll;
            self.polling = true;
            effects.push(Effect::Poll);
        }
        if let Some(want) = self.lacks()
            && self.refetch.is_due(now)
            && (self.came_inside() || self.spread_until.is_none_or(|until| now >= until))
        {
            self.fetching = Some(want);
            effects.push(self.fetch(want));
        }
        if let Some(head) = self.unplaced()
            && self.replace.is_due(now)
        {
            self.placing = Some(head);
            effects.push(Effect::CheckOut(head));
        }
    }

    /// The head to fetch now: the one that a broken fetch began with, else the one wanted.
    fn lacks(&self) -> Option<Head> {
        if self.fetching.is_some() || self.refusal.is_some() || self.waits().is_some() {
            return None;
        }
        let is_ahead = |head: &Head| {
            matches!(head.step_from(self.fetched.as_ref()), Step::Forward | Step::NewEpoch)
        };
        self.begun.filter(is_ahead).or(self.want.filter(is_ahead))
    }

    /// The head to put in place now.
    fn unplaced(&self) -> Option<Head> {
        let is_free = self.placing.is_none() && self.due && self.waits().is_none();
        let idle = self.options.checkout && is_free;
        let goal = self.goal().filter(|_| idle);
        goal.filter(|goal| Some(*goal) != self.have && Some(*goal) != self.vetoed)
    }

    /// What the directory should hold: where we are pinned, once that is here, else the newest; never
    /// what is revoked.
    fn goal(&self) -> Option<Head> {
        let goal = match self.pin {
            Some(pin) => {
                let at = |head: Head| (head.epoch, head.seq);
                self.fetched.filter(|fetched| at(*fetched) >= at(pin)).map(|_| pin)
            }
            None => self.fetched,
        };
        goal.filter(|goal| !self.revoked.contains(&goal.commit))
    }

    /// Whether the head wanted came inside announcements, on top of what is here.
    fn came_inside(&self) -> bool {
        let fetched = self.fetched.map(|head| head.commit);
        let continues = self.parcels.iter().any(|parcel| parcel.parent == fetched);
        let is_wanted = self.parcels.back().is_some_and(|last| Some(last.head) == self.want);
        continues && is_wanted && self.damaged == 0
    }

    fn fetch(&mut self, want: Head) -> Effect {
        let fetched = self.fetched.map(|head| head.commit);
        if self.came_inside() {
            while self.parcels.front().is_some_and(|parcel| parcel.parent != fetched) {
                self.parcels.pop_front();
            }
            self.fetching = self.want;
            let parcels = self.parcels.drain(..).collect();
            return Effect::Receive { upstream: self.upstream, parcels };
        }
        self.begun = Some(want);
        let have = self.fetched.filter(|_| self.damaged < 2);
        Effect::Fetch { upstream: self.upstream, have, want }
    }

    /// Keeps an announced pack while it continues what we have, are fetching, or keep already.
    fn keep(&mut self, parcel: Option<Parcel>) {
        let Some(parcel) = parcel.filter(|_| self.parcels.len() < MAX_PARCELS) else {
            self.parcels.clear();
            return;
        };
        if self.parcels.back().is_some_and(|last| Some(last.head.commit) != parcel.parent) {
            self.parcels.clear();
        }
        self.parcels.push_back(parcel);
    }

    fn lose_link(&mut self, now: Instant, reason: String) {
        self.link = Link::Down;
        self.broken = Some(reason);
        self.parcels.clear();
        self.reconnect.failed(now);
        self.upstream = (self.upstream + 1) % self.options.upstreams.max(1);
    }

    fn take_fetched(&mut self, now: Instant, head: Head, effects: &mut Vec<Effect>) {
        self.fetching = None;
        self.begun = None;
        self.fetched = Some(head);
        self.damaged = 0;
        self.fetch_error = None;
        self.refetch.reset();
        if self.put_off.take().is_some() {
            self.replace.reset();
        }
        if !self.options.checkout {
            self.take_checked_out(now, head, effects);
        }
    }

    fn take_failure(
        &mut self,
        now: Instant,
        failure: Failure,
        reason: String,
        effects: &mut Vec<Effect>,
    ) {
        let head = self.fetching.take();
        self.refetch.failed(now);
        match failure {
            Failure::Again => {}
            Failure::Afresh => {
                self.damaged += 1;
                self.begun = None;
            }
            Failure::Gone => {
                self.begun = None;
                self.want = None;
                self.poll_at = now;
            }
            Failure::Fatal => self.refetch.failed_for_good(now),
        }
        if let Some(head) = head {
            effects.push(self.report(now, head, Outcome::Failed, Some(&reason)));
        }
        self.fetch_error = Some(reason);
    }

    fn take_checked_out(&mut self, now: Instant, head: Head, effects: &mut Vec<Effect>) {
        self.placing = None;
        self.have = Some(head);
        self.due = !self.options.scheduled;
        (self.checkout_error, self.vetoed, self.put_off) = (None, None, None);
        self.replace.reset();
        effects.push(self.report(now, head, Outcome::Verified, None));
        if self.have == self.want {
            self.wanting_since = None;
        }
    }

    fn report(&self, now: Instant, head: Head, outcome: Outcome, error: Option<&str>) -> Effect {
        let took =
            self.wanting_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Effect::Report(Ack::new(head, outcome, took_ms, error))
    }
}

#[cfg(test)]
mod tests;
