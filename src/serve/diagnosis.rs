//! What is wrong now, since when, and what to do about it: the one list behind health and the console.
//!
//! A fault is found by looking at what the stages have posted, never by asking them. `Ailing` only
//! remembers when each was first seen; it is looked at every few seconds, so that the time is right
//! even when nobody asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use super::{Access, Edge, edge::Feed, feeds::moment};
use crate::{
    bus::{Held, State, frame::SILENCE, roster::Reach},
    model::FeedName,
    sys,
};

/// A region that has lacked the newest version for this long, with nobody's consent, is stale; one
/// that was not heard for 20 s is, whatever it has.
pub(super) const MAX_LAG: Duration = Duration::from_secs(60);
/// A change that waits this long needs somebody; before, it may be an upload that is slow.
const PATIENCE: Duration = Duration::from_secs(600);
/// A stage goes round its loop every few seconds; one that has not for so long is stuck in a system
/// call, a hook's place or a fault of ours.
const STUCK: Duration = Duration::from_secs(20);
/// Who was turned away is worth a look for so long after it asked last.
const LATELY: Duration = Duration::from_secs(600);
/// A file system that is full in so many days wants a larger one now.
const SOON_DAYS: u64 = 14;
/// Faults of one kind that a list names: a fleet that is away as a whole is told by some.
const MAX_ALIKE: usize = 50;
/// How long ahead the end of a token is told of.
const AHEAD: TimeDelta = TimeDelta::days(14);
/// Kinds of notices that say who is let in.
pub(super) const TRUST: [&str; 2] = ["insecure", "token_ends"];

/// What is said at every start, and by health, where nobody is asked for a token.
pub const INSECURE: &str = "--insecure: whoever reaches this node may read and change its feeds";
/// How often faults are looked for while nobody asks.
const TICK: Duration = Duration::from_secs(5);

/// Every kind of fault; `docs/health.md` explains each.
pub(super) const KINDS: [&str; 23] = [
    "stuck",
    "stopped",
    "failing",
    "refused",
    "full",
    "starting",
    "empty",
    "error",
    "upstream_unheard",
    "unwatched",
    "deletions_held",
    "held",
    "region_stale",
    "hook",
    "bus_away",
    "unreachable",
    "turned_away",
    "drift",
    "damage",
    "upkeep",
    "filling",
    "insecure",
    "token_ends",
];

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// The feed is not served, or its stage no longer works: `/readyz` fails.
    Critical,
    /// Somebody is needed: `/healthz` fails.
    Fault,
    /// Worth knowing; nothing fails.
    Notice,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fault {
    pub(super) level: Level,
    /// One word for programs.
    pub(super) kind: &'static str,
    pub(super) feed: Option<FeedName>,
    /// Which of several: a region, a node, a hook.
    pub(super) subject: Option<String>,
    /// The feed's state.
    pub(super) state: Option<&'static str>,
    /// What is wrong, for people.
    #[serde(rename = "fault")]
    pub(super) what: String,
    /// What they can do.
    pub(super) advice: &'static str,
    /// Since when: as known, else since it was first seen.
    #[serde(serialize_with = "as_moment")]
    pub(super) since: Option<SystemTime>,
}

#[expect(clippy::ref_option, reason = "serde gives the field as it is")]
fn as_moment<S: serde::Serializer>(
    at: &Option<SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    at.and_then(moment).serialize(serializer)
}

type Key = (&'static str, Option<FeedName>, Option<String>);

/// When each fault that is there now was first seen.
#[derive(Debug, Default)]
pub(super) struct Ailing(Mutex<BTreeMap<Key, SystemTime>>);

impl Ailing {
    /// Fills in since when; forgets what is over.
    fn note(&self, faults: &mut [Fault], now: SystemTime) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *known);
        for fault in faults {
            let key = (fault.kind, fault.feed.clone(), fault.subject.clone());
            let first = before.get(&key).copied().unwrap_or(now);
            fault.since.get_or_insert(first);
            known.insert(key, first);
        }
    }
}

impl Edge {
    /// All that is wrong now, the worst first.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let now = sys::now();
        let mut faults: Vec<Fault> =
            self.feeds().flat_map(|feed| of_feed(feed, now)).chain(self.of_node(now)).collect();
        self.ailing.note(&mut faults, now);
        faults.sort_by_key(|fault| fault.level);
        faults
    }

    /// Looks for faults all the while, so that each is known since it began; never ends by itself.
    pub(super) async fn look_after(&self) {
        loop {
            self.faults();
            tokio::time::sleep(TICK).await;
        }
    }

    fn of_node(&self, now: SystemTime) -> Vec<Fault> {
        let away = self.board.away.borrow().clone();
        let away = away.map(|why| Fault {
            state: Some("unheard"),
            ..Fault::new(Level::Fault, "bus_away", why, advice::BUS_AWAY)
        });
        let lately = |at| now.duration_since(at).is_ok_and(|age| age < LATELY);
        let turned_away = self.board.turned_away();
        let turned_away = turned_away.into_iter().filter(|it| lately(it.at)).take(MAX_ALIKE);
        let turned_away = turned_away.map(|it| Fault {
            subject: Some(it.who.clone()),
            ..Fault::new(
                Level::Notice,
                "turned_away",
                format!("{} was turned away from \"{}\": {}", it.who, it.feed, it.fault),
                advice::TURNED_AWAY,
            )
        });
        away.into_iter().chain(turned_away).chain(of_trust(&self.access, now.into())).collect()
    }
}

impl Fault {
    fn new(level: Level, kind: &'static str, what: String, advice: &'static str) -> Self {
        debug_assert!(KINDS.contains(&kind), "{kind} is explained nowhere");
        Fault { level, kind, feed: None, subject: None, state: None, what, advice, since: None }
    }
}

/// What an operator should know of who is let in.
fn of_trust(access: &Access, now: DateTime<Utc>) -> Vec<Fault> {
    let notice = |kind, fault, advice| Fault::new(Level::Notice, kind, fault, advice);
    let insecure = || notice(TRUST[0], INSECURE.to_owned(), advice::INSECURE);
    let tokens = access.decisions.get();
    let ending = tokens.tokens.iter().filter_map(|token| {
        let left = token.expires? - now;
        let (id, role, days) = (&token.id, token.scope.role, left.num_days());
        let fault = format!("the token {id}, a {role}'s, ends in {days} days");
        let is_soon = left > TimeDelta::zero() && left <= AHEAD;
        let ends = notice(TRUST[1], fault, advice::TOKEN_ENDS);
        is_soon.then(|| Fault { subject: Some(id.clone()), ..ends })
    });
    access.insecure.then(insecure).into_iter().chain(ending.take(MAX_ALIKE)).collect()
}

fn of_feed(feed: &Feed, now: SystemTime) -> Vec<Fault> {
    let state = feed.desk.state.borrow().clone();
    let mut faults: Vec<Fault> = match not_ready(feed, &state) {
        Some(fault) => vec![fault],
        None => unwell(&state, now),
    };
    faults.extend(stale(feed));
    faults.extend(hooks(feed));
    faults.extend(notices(feed, &state));
    for fault in &mut faults {
        fault.feed = Some(feed.desk.feed.clone());
        fault.state = Some(state.state);
    }
    faults
}

/// Why a feed cannot be served, or its stage no longer works.
fn not_ready(feed: &Feed, state: &State) -> Option<Fault> {
    let critical = |kind, fault, advice| Some(Fault::new(Level::Critical, kind, fault, advice));
    let (stuck_for, held_up) = feed.desk.stuck_for();
    if stuck_for > STUCK {
        let why = held_up.map_or(String::new(), |by| format!(": {by} does not get on"));
        let fault = format!("the stage has not moved for {} s{why}", stuck_for.as_secs());
        return critical("stuck", fault, advice::STUCK);
    }
    let why = || state.last_error.clone().or_else(|| state.detail.clone()).unwrap_or_default();
    let advice = match state.state {
        "stopped" => advice::STOPPED,
        "failing" => advice::FAILING,
        "refused" => advice::REFUSED,
        "full" => advice::FULL,
        "" | "importing" => {
            return critical("starting", "the feed is not up yet".to_owned(), advice::STARTING);
        }
        _ if state.primary || feed.desk.head().is_some() => return None,
        _ => {
            let fault = "nothing has come from the upstream yet".to_owned();
            return critical("empty", fault, advice::UPSTREAM);
        }
    };
    critical(state.state, format!("the feed is {}: {}", state.state, why()), advice)
}

/// What an operator should look at, although the feed is served.
fn unwell(state: &State, now: SystemTime) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |kind, fault, advice| faults.push(Fault::new(Level::Fault, kind, fault, advice));
    if let Some(error) = &state.last_error {
        add("error", error.clone(), advice::FAILING);
    }
    if !state.primary && state.heartbeat.is_none_or(|heard| heard.elapsed() > SILENCE) {
        let why = state.detail.clone().unwrap_or_else(|| "it is silent".to_owned());
        add("upstream_unheard", format!("the upstream is not heard: {why}"), advice::UPSTREAM);
    }
    if let Some(why) = &state.unwatched {
        add("unwatched", why.clone(), advice::UNWATCHED);
    }
    if let Some(list) = &state.deletions {
        let fault = format!("{} deletions wait for approve or reject", list.files);
        let fault = Fault::new(Level::Fault, "deletions_held", fault, advice::DELETIONS);
        faults.push(Fault { since: Some(list.since), ..fault });
    }
    let long = |held: &&Held| now.duration_since(held.since).is_ok_and(|age| age >= PATIENCE);
    for held in state.held.iter().filter(long).take(MAX_ALIKE) {
        let fault = format!("\"{}\" waits: {}", held.path, held.reason);
        let fault = Fault::new(Level::Fault, "held", fault, advice::HELD);
        let subject = Some(held.path.to_text().into_owned());
        faults.push(Fault { since: Some(held.since), subject, ..fault });
    }
    faults
}

/// The regions of the fleet that this node has lost, or that do not keep up.
fn stale(feed: &Feed) -> Vec<Fault> {
    let regions = feed.desk.stale(MAX_LAG);
    let of = |text: &String| Fault {
        subject: text.split_once(": ").map(|(region, _)| region.to_owned()),
        ..Fault::new(Level::Fault, "region_stale", format!("stale: {text}"), advice::STALE)
    };
    regions.iter().take(MAX_ALIKE).map(of).collect()
}

fn hooks(feed: &Feed) -> Vec<Fault> {
    let hooks = feed.desk.hooks.borrow();
    let of = |(hook, reason): (&&'static str, &String)| Fault {
        subject: Some((*hook).to_owned()),
        ..Fault::new(Level::Fault, "hook", format!("the hook {hook}: {reason}"), advice::HOOK)
    };
    hooks.iter().map(of).collect()
}

/// What nothing fails for, and somebody should know.
fn notices(feed: &Feed, state: &State) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut add = |kind, subject: Option<String>, fault, advice| {
        faults.push(Fault { subject, ..Fault::new(Level::Notice, kind, fault, advice) });
    };
    for follower in feed.desk.followers().iter().take(MAX_ALIKE) {
        if let Reach::Unreachable(why) = &follower.reach {
            let label = follower.hello.label.to_string();
            let fault = format!("no client is led to {label}: {why}");
            add("unreachable", Some(label), fault, advice::UNREACHABLE);
        }
    }
    if !state.drift.is_empty() {
        let fault = format!("{} files were changed here by others, and stay so", state.drift.len());
        add("drift", None, fault, advice::DRIFT);
    }
    let care = feed.desk.care.borrow();
    if !care.broken.is_empty() {
        let fault = format!("{} parts of the repository are damaged", care.broken.len());
        add("damage", None, fault, advice::DAMAGE);
    }
    if let Some(error) = &care.last_error {
        add("upkeep", None, format!("upkeep: {error}"), advice::UPKEEP);
    }
    if let Some(days) = care.days_until_full().filter(|days| *days <= SOON_DAYS) {
        add("filling", None, format!("the disk is full in {days} days at this pace"), advice::FULL);
    }
    faults
}

/// What to do: one or two sentences that name the command.
mod advice {
    pub(super) const STUCK: &str = "Look at the disk, at network file systems and at hooks that \
        hang; the log says what the stage did last. If it stays so, restart the daemon: a start is \
        a recovery.";
    pub(super) const STOPPED: &str = "Read the reason. A directory that is another one than before \
        is accepted by `depsync approve --root`; when it is back, the feed goes on by itself.";
    pub(super) const FAILING: &str = "The work is tried again with growing pauses. Mend what the \
        message names; `depsync sync` tries at once.";
    pub(super) const REFUSED: &str = "Two nodes have different histories. Decide which one owns the \
        feed and run `depsync promote` there; the other follows, and puts aside what differs.";
    pub(super) const FULL: &str = "Make room on the file system of the state directory, or keep \
        fewer versions (`keep`) and run `depsync gc`. Intake goes on by itself.";
    pub(super) const STARTING: &str = "Wait: a first import reads every file once. Progress is \
        shown beside the feed.";
    pub(super) const UPSTREAM: &str = "See that the upstream runs and is reachable from here, and \
        that the token is good: `depsync check --connect` tries it. What is here is served \
        meanwhile.";
    pub(super) const UNWATCHED: &str = "Changes are found by scanning until then. Raise the limit \
        that the message names; watching begins by itself at the next scan.";
    pub(super) const DELETIONS: &str = "Look at the list. Approve it if the files are meant to go; \
        reject it to have them put back.";
    pub(super) const HELD: &str = "Finish or repeat the upload. `depsync approve PATH` publishes \
        the file as it is.";
    pub(super) const STALE: &str = "Look at that region's node: is it running, does it reach this \
        one, what is its last error? One that is gone for good is forgotten by `depsync forget`.";
    pub(super) const HOOK: &str = "Run the hook by hand with the environment that the \
        documentation lists; a hook must be executable and not writable by others.";
    pub(super) const BUS_AWAY: &str = "See that the NATS server runs. Regions ask for the newest \
        version on their own meanwhile, each poll interval.";
    pub(super) const INSECURE: &str = "Use it on a network that is trusted alone; else name a \
        certificate in [tls] and make tokens (`depsync token create`).";
    pub(super) const TOKEN_ENDS: &str = "Make another, hand it out, and revoke this one.";
    pub(super) const TURNED_AWAY: &str = "If it is one of yours, give it a token that is good for \
        its region (`depsync token create`) and the right feed's name.";
    pub(super) const UNREACHABLE: &str = "Its clients are served from here meanwhile. Set \
        `advertise` at that node to an address that this one reaches.";
    pub(super) const DRIFT: &str = "Find out who writes there. They are repaired when the feed \
        changes them, or at once with `drift = \"repair\"`.";
    pub(super) const DAMAGE: &str = "It is brought back from the directory or the upstream where \
        they have it; `depsync fsck` tries now and says what is left.";
    pub(super) const UPKEEP: &str = "It is tried again at the next maintenance; `depsync gc` tries \
        now.";
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        bus::{Cause, DeletionsHeld},
        model::RelPath,
    };

    fn told(state: &State, now: SystemTime) -> Option<String> {
        unwell(state, now).into_iter().next().map(|fault| fault.what)
    }

    #[test]
    fn what_needs_an_operator_is_not_well() {
        let start = SystemTime::UNIX_EPOCH;
        let at = |secs| start + Duration::from_secs(secs);
        let primary = State { primary: true, state: "idle", ..State::default() };
        let region = State { state: "idle", heartbeat: Some(Instant::now()), ..State::default() };
        assert_eq!(told(&primary, start), None);
        assert_eq!(told(&region, start), None);
        let alone = State { heartbeat: None, ..region };
        assert!(told(&alone, start).unwrap().contains("upstream"));
        let failed = State { last_error: Some("disk full".to_owned()), ..primary.clone() };
        assert_eq!(told(&failed, start).unwrap(), "disk full");

        let unwatched = Some("raise the sysctl".to_owned());
        let polled = State { unwatched, ..primary.clone() };
        assert_eq!(told(&polled, start).unwrap(), "raise the sysctl");

        let path = RelPath::parse(b"app.war").unwrap();
        let (cause, reason) = (Cause::Writing, "still open".to_owned());
        let slow = Held { path, cause, reason, since: start, decision: true };
        let slow = State { held: vec![slow], ..primary.clone() };
        assert_eq!(told(&slow, at(599)), None);
        assert!(told(&slow, at(600)).unwrap().contains("app.war"));
        let deletions = Some(DeletionsHeld { id: "7".to_owned(), files: 60, since: start });
        let gone = State { deletions, ..primary };
        assert!(told(&gone, start).unwrap().starts_with("60 deletions"));
        assert_eq!(unwell(&gone, at(9))[0].since, Some(start));
    }

    #[test]
    fn a_fault_is_known_since_it_was_first_seen_and_forgotten_when_it_is_over() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let ailing = Ailing::default();
        let fault = |text: &str| Fault::new(Level::Fault, "error", text.to_owned(), "");
        let since = |faults: &mut [Fault], now| {
            ailing.note(faults, at(now));
            faults.first().and_then(|fault| fault.since)
        };
        assert_eq!(since(&mut [fault("away for 1 s")], 1), Some(at(1)));
        assert_eq!(since(&mut [fault("away for 9 s")], 9), Some(at(1)), "the same one");
        assert_eq!(since(&mut [], 10), None);
        assert_eq!(since(&mut [fault("again")], 20), Some(at(20)));
    }
}
