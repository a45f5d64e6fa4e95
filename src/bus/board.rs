//! What this node knows now, shared by its stages: a head posted here wakes whoever follows.
//!
//! Each feed has one `Desk`. Whoever waits sees only the newest value (`watch`), so a slow follower
//! skips and nothing piles up. Nothing here is the truth about content: that is the store.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::watch;

use crate::{
    bus::{
        care::{Care, Chores},
        fleet::Verdict,
        frame::{Ack, Fault, FromFollower, Outcome, Progress, Session, Standing},
        report::Report,
        request::{Decision, Request},
        roster::{Arrival, Caller, Follower, Reach, Roster, Site, Times},
        state::State,
        trust::Learned,
    },
    model::{Bindings, FeedName, Head, NodeId, Orders, RegionName, Target},
    store::{Published, Store},
};

/// Followers that may fetch at the same moment, what each further one adds to the time over which
/// they spread, and the longest such time.
const AT_ONCE: u32 = 50;
const SPREAD_EACH: Duration = Duration::from_millis(10);
const MAX_SPREAD: Duration = Duration::from_secs(20);
/// For how long somebody in a higher epoch is minded who asked once: five polls.
const ASKED_LATELY: Duration = Duration::from_secs(300);
/// Callers that were turned away and are remembered.
const MAX_TURNED_AWAY: usize = 50;

/// All feeds of this node.
#[derive(Default, Clone)]
pub struct Board {
    desks: Arc<BTreeMap<FeedName, Arc<Desk>>>,
    turned_away: Arc<Mutex<VecDeque<TurnedAway>>>,
    /// Where followers are spoken to over NATS.
    nats: Option<OverNats>,
    /// Why nothing can be said over NATS now.
    pub away: Arc<watch::Sender<Option<String>>>,
}

/// What followers are told with that are spoken to over NATS.
#[derive(Clone)]
struct OverNats {
    run: u32,
    trust_version: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// A caller that could not be talked with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TurnedAway {
    /// Who: its name, or its address where it did not say one.
    pub who: String,
    /// The feed that it asked for.
    pub feed: String,
    /// Why.
    pub fault: Fault,
    /// When, the last time.
    pub at: SystemTime,
}

impl Board {
    /// A board with these desks.
    pub fn new(desks: impl IntoIterator<Item = Arc<Desk>>) -> Self {
        let desks = desks.into_iter().map(|desk| (desk.feed.clone(), desk)).collect();
        Board { desks: Arc::new(desks), ..Board::default() }
    }

    /// Followers that wish so are spoken to over NATS in this run of the node; the version is another
    /// one whenever what they are to trust has changed.
    #[must_use]
    pub fn over_nats(self, run: u32, trust_version: Arc<dyn Fn() -> u64 + Send + Sync>) -> Self {
        Board { nats: Some(OverNats { run, trust_version }), ..self }
    }

    /// What a follower shows over NATS from its hello on; none where it is spoken to directly.
    pub fn session(&self, connection: u64) -> Option<Session> {
        let OverNats { run, trust_version } = self.nats.as_ref()?;
        Some(Session { run: *run, connection, trust_version: trust_version() })
    }

    /// Remembers a caller that was turned away; true when that is news.
    pub fn turn_away(&self, caller: TurnedAway) -> bool {
        let mut known = self.turned_away.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |old: &TurnedAway| {
            (&old.who, &old.feed, &old.fault) == (&caller.who, &caller.feed, &caller.fault)
        };
        if let Some(old) = known.iter_mut().find(|old| same(old)) {
            old.at = caller.at;
            return false;
        }
        known.truncate(MAX_TURNED_AWAY - 1);
        known.push_front(caller);
        true
    }

    /// Callers that were turned away, the newest first.
    pub fn turned_away(&self) -> Vec<TurnedAway> {
        self.turned_away.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The desk of a feed; none when this node does not carry it.
    pub fn get(&self, feed: &FeedName) -> Option<&Arc<Desk>> {
        self.desks.get(feed)
    }

    /// All desks, by the name of their feed.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Desk>> {
        self.desks.values()
    }
}

/// One feed at this node.
pub struct Desk {
    /// Its name here.
    pub feed: FeedName,
    /// Its repository.
    pub store: Arc<Store>,
    /// The newest published head, with its pack when small: posted by the stage that owns the
    /// feed, read by followers' connections.
    pub head: watch::Sender<Option<Published>>,
    /// What that stage says of itself.
    pub state: watch::Sender<State>,
    /// The feed's profile as its primary has it; empty where there is none.
    pub profile: watch::Sender<String>,
    /// Hooks that are not well, and why: refused, failing, or to be run again.
    pub hooks: watch::Sender<BTreeMap<&'static str, String>>,
    /// How far a fetch of this node's is; none while there is none.
    pub progress: watch::Sender<Option<Progress>>,
    /// Pins and revocations: the owning stage's decisions, or what the upstream last said.
    pub orders: watch::Sender<Orders>,
    /// At a mirror: what its upstream lets it know of who may read.
    pub learned: watch::Sender<Learned>,
    /// Which node serves which region; whoever assembles the node keeps it across restarts.
    pub bindings: watch::Sender<Bindings>,
    /// Who is to stay where it is; whoever assembles the node keeps it across restarts.
    pub paused: watch::Sender<Vec<Target>>,
    /// Woken by whatever changes in what is known of followers.
    pub changes: watch::Sender<()>,
    /// Woken by each hello.
    pub hellos: watch::Sender<()>,
    /// Where it is decided what this node is to the feed; see [`Desk::decide`].
    decider: Mutex<Option<Decider>>,
    /// What upkeep did and found.
    pub care: watch::Sender<Care>,
    /// What it was asked to do.
    pub chores: watch::Sender<Chores>,
    /// Where that stage takes requests from the edge; see [`Desk::ask`].
    mailbox: Mutex<Option<Mailbox>>,
    /// When the stage that owns the feed last went round its loop, and what has held it up since.
    turned: Mutex<(Instant, Option<&'static str>)>,
    /// The last one who asked and was in a higher epoch than we are.
    asked: Mutex<Option<(Ahead, Instant)>>,
    roster: Mutex<Roster>,
}

/// Somebody who is ahead of this node, or on another line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// Its name, or its address.
    pub who: String,
    /// What it has.
    pub head: Option<Head>,
}

/// Takes a decision without waiting; false when its queue is full.
pub type Decider = Box<dyn Fn(Decision) -> bool + Send + Sync>;

/// Takes a request without waiting; false when the stage's queue is full.
pub type Mailbox = Box<dyn Fn(Request) -> bool + Send + Sync>;

impl Desk {
    /// A desk with nothing on it, but for the bindings that an earlier run kept.
    pub fn new(feed: FeedName, store: Arc<Store>, bindings: Bindings) -> Self {
        Desk {
            feed,
            store,
            head: watch::Sender::default(),
            state: watch::Sender::default(),
            profile: watch::Sender::default(),
            hooks: watch::Sender::default(),
            progress: watch::Sender::default(),
            orders: watch::Sender::default(),
            learned: watch::Sender::default(),
            bindings: watch::Sender::new(bindings.clone()),
            paused: watch::Sender::default(),
            changes: watch::Sender::default(),
            hellos: watch::Sender::default(),
            decider: Mutex::default(),
            turned: Mutex::new((Instant::now(), None)),
            asked: Mutex::default(),
            care: watch::Sender::default(),
            chores: watch::Sender::default(),
            mailbox: Mutex::default(),
            roster: Mutex::new(Roster::new(Instant::now(), bindings)),
        }
    }

    /// Posts a head whose content is durable: every follower hears of it.
    pub fn post(&self, published: Published) {
        let head = published.head;
        // In one step: whoever acknowledges it at once, or says hello meanwhile, finds it announced.
        self.change(|roster| {
            roster.posted(Instant::now(), head);
            self.head.send_if_modified(|posted| {
                let is_new = posted.as_ref().is_none_or(|old| old.head != head);
                if is_new {
                    *posted = Some(published);
                }
                is_new
            });
        });
    }

    /// The head as posted.
    pub fn head(&self) -> Option<Head> {
        self.head.borrow().as_ref().map(|published| published.head)
    }

    /// The stage that owns the feed goes round its loop, as it does every few seconds at least.
    pub fn turn(&self) {
        *self.turned() = (Instant::now(), None);
    }

    /// It goes round its loop, and a thread of its own does not get on.
    pub fn held_up(&self, by: &'static str) {
        self.turned().1 = Some(by);
    }

    /// For how long that stage has not got on, and what holds it up where that is known.
    pub fn stuck_for(&self) -> (Duration, Option<&'static str>) {
        let (at, by) = *self.turned();
        (at.elapsed(), by)
    }

    fn turned(&self) -> MutexGuard<'_, (Instant, Option<&'static str>)> {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to the stage that owns the feed; false when there is none or it is full.
    pub fn ask(&self, request: Request) -> bool {
        self.mailbox().as_ref().is_some_and(|take| take(request))
    }

    /// Says where requests go from now on; none: nowhere.
    pub fn take_requests(&self, mailbox: Option<Mailbox>) {
        *self.mailbox() = mailbox;
    }

    /// Hands on what somebody has decided about the feed itself; false when nobody takes it.
    pub fn decide(&self, decision: Decision) -> bool {
        let decider = self.decider.lock().unwrap_or_else(PoisonError::into_inner);
        decider.as_ref().is_some_and(|take| take(decision))
    }

    /// Says where decisions go from now on.
    pub fn take_decisions(&self, decider: Decider) {
        *self.decider.lock().unwrap_or_else(PoisonError::into_inner) = Some(decider);
    }

    /// The highest epoch that anybody here is known to have.
    pub fn highest_epoch(&self) -> u64 {
        let state = self.state.borrow();
        let own = [self.head(), state.want, state.fetched, state.have];
        let own = own.into_iter().flatten().map(|head| head.epoch).max().unwrap_or(0);
        own.max(self.roster().highest_epoch())
    }

    /// Everyone who follows here, as last heard.
    pub fn followers(&self) -> Vec<Follower> {
        self.roster().followers().cloned().collect()
    }

    /// The last versions that nodes have verified, the newest first, and what they took.
    pub fn arrivals(&self, limit: usize) -> Vec<Arrival> {
        self.roster().arrivals(limit)
    }

    /// How long they took, counted from the start.
    pub fn arrival_times(&self) -> Times {
        self.roster().arrival_times().clone()
    }

    /// The nodes that could serve a region's clients: its own first, then the relays above it.
    pub fn sites_of(&self, region: &RegionName) -> Vec<Site> {
        self.roster().sites_of(Instant::now(), region, &self.paused.borrow())
    }

    /// The regions that a follower stands for, itself and through those below it.
    pub fn regions_at(&self, node: &NodeId) -> Vec<RegionName> {
        self.roster().regions_at(node)
    }

    /// One node that clients could be led to.
    pub fn site(&self, node: &NodeId) -> Option<Site> {
        self.roster().site(Instant::now(), node, &self.paused.borrow())
    }

    /// Who has verified a head, and which regions have not.
    pub fn verdict(&self, head: &Head) -> Verdict {
        self.roster().verdict(Instant::now(), head, &self.paused.borrow())
    }

    /// Regions, here and through relays, that are not heard any more or have lacked the head for
    /// longer than `limit`, each with the reason.
    pub fn stale(&self, limit: Duration) -> Vec<String> {
        let Some(head) = self.head() else { return Vec::new() };
        self.roster().stale(Instant::now(), &head, &self.paused.borrow(), limit)
    }

    /// Waits until every region has verified a head, until `deadline` at the latest: what stands
    /// in the verdict then is the answer.
    pub async fn wait_verified(&self, head: &Head, deadline: Instant) -> Verdict {
        let mut changed = self.changes.subscribe();
        let mut paused = self.paused.subscribe();
        let mut lacking = None;
        loop {
            let held = self.paused.borrow().clone();
            lacking = self.roster().lacking(Instant::now(), head, &held, lacking.as_ref());
            if lacking.is_none() {
                return self.verdict(head);
            }
            tokio::select! {
                Ok(()) = changed.changed() => {}
                Ok(()) = paused.changed() => {}
                () = tokio::time::sleep_until(deadline.into()) => return self.verdict(head),
                else => return self.verdict(head),
            }
        }
    }

    /// Whether a node is to stay where it is.
    pub fn is_paused(&self, node: &NodeId, region: Option<&RegionName>) -> bool {
        self.paused.borrow().iter().any(|target| target.is_about(node, region))
    }

    /// Over how long followers are to spread their fetches: each costs this node a request and a
    /// pack's bytes, and a hundred at once delay each other.
    pub fn spread(&self) -> Duration {
        let followers = u32::try_from(self.roster().followers().len()).unwrap_or(u32::MAX);
        let more = followers.saturating_sub(AT_ONCE);
        (SPREAD_EACH * more).min(MAX_SPREAD)
    }

    /// What this node, `own`, has to tell its upstream of all below it.
    pub fn reports(&self, own: &NodeId) -> Vec<Report> {
        let mut reports = self.roster().reports(Instant::now(), own, &self.paused.borrow());
        for report in reports.iter_mut().filter(|report| report.via == *own) {
            // The upstream may have another name for the feed than this node and those below it.
            report.feed.get_or_insert_with(|| self.feed.clone());
        }
        reports
    }

    /// Addresses that are to be tried: the new ones, or all again.
    pub fn to_reach(&self, again: bool) -> Vec<(NodeId, String)> {
        self.roster().to_reach(again)
    }

    /// Notes whether an address leads to its node; true when that is news.
    pub fn reached(&self, node: &NodeId, url: &str, reach: Reach) -> bool {
        self.change(|roster| roster.reached(node, url, reach))
    }

    /// Somebody who is ahead of our head or on another line: a live follower, or one that asked for
    /// our head lately.
    pub fn ahead(&self) -> Option<Ahead> {
        let own = self.head();
        let follower = self.roster().ahead_of(Instant::now(), own.as_ref()).map(|follower| Ahead {
            who: follower.hello.label.to_string(),
            head: follower.fetched,
        });
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lately = asked.filter(|(_, at)| at.elapsed() < ASKED_LATELY).map(|(ahead, _)| ahead);
        let above = |ahead: &Ahead| ahead.head.map(|head| head.epoch) > own.map(|head| head.epoch);
        follower.or(lately.filter(above))
    }

    /// Notes what somebody has who asks for our head without following us.
    pub fn asked(&self, who: String, head: Head) {
        if Some(head.epoch) > self.head().map(|own| own.epoch) {
            let ahead = Ahead { who, head: Some(head) };
            *self.asked.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((ahead, Instant::now()));
        }
    }

    /// Forgets a node; false when it is not known or still connected.
    pub fn forget(&self, node: &NodeId) -> bool {
        self.change(|roster| roster.forget(node))
    }

    /// Takes a hello in; see [`Roster::register`].
    ///
    /// # Errors
    /// When the node is here already with another token, or nobody more can be taken.
    pub fn register(&self, caller: Caller) -> Result<(u64, Standing), Fault> {
        // A head that moves between being looked at and taken would be wanted for ever.
        let registered = self.change(|roster| roster.register(Instant::now(), caller, self.head()));
        self.hellos.send_replace(());
        registered
    }

    /// Takes in what a follower says, and says what that is to its region now. None: another hello of
    /// that node has taken the place of this one's.
    pub fn take(&self, node: &NodeId, connection: u64, frame: FromFollower) -> Option<Standing> {
        if let FromFollower::Ack(ack) = &frame {
            self.note(node, ack);
        }
        self.change(|roster| roster.take(Instant::now(), node, connection, frame))
    }

    fn note(&self, node: &NodeId, ack: &Ack) {
        if ack.outcome == Outcome::Refused {
            let reason = ack.error.as_deref().unwrap_or_default();
            let commit = ack.head.commit;
            tracing::warn!(feed = %self.feed, %node, %commit, "a follower refuses our head: {reason}");
        }
    }

    /// Whether some of those who follow here do so over NATS.
    pub fn has_followers_over_nats(&self) -> bool {
        self.roster().followers().any(|follower| follower.hello.nats)
    }

    /// The id of the token that a follower showed.
    pub fn token_of(&self, node: &NodeId) -> Option<String> {
        self.roster().follower(node)?.token.clone()
    }

    /// Looks for followers that have fallen silent over NATS.
    pub fn drop_silent(&self) {
        self.change(|roster| roster.drop_silent(Instant::now()));
    }

    /// Notes that a connection is over.
    pub fn gone(&self, node: &NodeId, connection: u64) {
        self.change(|roster| roster.gone(node, connection));
    }

    /// Changes the roster and says so, also when the bindings are other ones afterwards.
    fn change<T>(&self, change: impl FnOnce(&mut Roster) -> T) -> T {
        let mut roster = self.roster();
        let result = change(&mut roster);
        self.changes.send_replace(());
        if let Some(bindings) = roster.take_rebound() {
            self.bindings.send_replace(bindings.clone());
        }
        result
    }

    fn mailbox(&self) -> MutexGuard<'_, Option<Mailbox>> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
