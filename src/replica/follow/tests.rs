//! Tables for single rules, and a world that loses, reorders, fails and crashes.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::Oid;

const OPTIONS: Options = Options {
    upstreams: 1,
    checkout: true,
    scheduled: false,
    poll: Duration::from_secs(60),
    seed: 7,
};

fn head(epoch: u64, seq: u64) -> Head {
    let mut id = [u8::try_from(epoch).unwrap(); 20];
    id[..8].copy_from_slice(&seq.to_be_bytes());
    Head { epoch, seq, commit: Oid::from_bytes(id) }
}

fn announced(seq: u64, pack: bool) -> Event {
    let parent = (seq > 1).then(|| head(1, seq - 1).commit);
    Event::Announced { head: head(1, seq), parent, pack: pack.then(|| Bytes::from_static(b"pack")) }
}

fn cut() -> Event {
    Event::Disconnected { reason: "cut".to_owned() }
}

/// A mirror that is connected and idle at seq `at`, and the time.
fn settled(at: u64) -> (Follow, Instant) {
    let now = Instant::now();
    let have = Some(head(1, at));
    let mut follow = Follow::new(now, OPTIONS, have, have);
    assert_eq!(follow.step(now, Event::Ticked), [Effect::Connect(0)]);
    assert_eq!(follow.step(now, Event::Welcomed { head: have }), []);
    assert_eq!(follow.summary().state, "idle");
    (follow, now)
}

fn fetch(have: u64, want: u64) -> Effect {
    Effect::Fetch { upstream: 0, have: Some(head(1, have)), want: head(1, want) }
}

fn seqs(effect: &Effect) -> Vec<u64> {
    let Effect::Receive { parcels, .. } = effect else { panic!("{effect:?} is no receiving") };
    parcels.iter().map(|parcel| parcel.head.seq).collect()
}

fn outcome(effect: &Effect) -> Option<(Outcome, u64, u64)> {
    match effect {
        Effect::Report(ack) => Some((ack.outcome, ack.head.seq, ack.took_ms)),
        _ => None,
    }
}

#[test]
fn a_small_commit_costs_one_message() {
    let (mut follow, now) = settled(4);
    let effects = follow.step(now, announced(5, true));
    assert_eq!(seqs(&effects[0]), [5]);
    assert_eq!(
        follow.step(now, Event::Fetched { head: head(1, 5) }),
        [Effect::CheckOut(head(1, 5))]
    );
    let later = now + Duration::from_millis(3);
    let effects = follow.step(later, Event::CheckedOut { head: head(1, 5) });
    assert_eq!(outcome(&effects[0]), Some((Outcome::Verified, 5, 3)));
    assert_eq!(follow.summary().state, "idle");
}

#[test]
fn a_large_commit_is_fetched() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, announced(5, false)), [fetch(4, 5)]);
}

#[test]
fn packs_that_come_during_a_fetch_are_received_together() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, announced(5, false)), [fetch(4, 5)]);
    for seq in 6..9 {
        assert_eq!(follow.step(now, announced(seq, true)), []);
    }
    let effects = follow.step(now, Event::Fetched { head: head(1, 5) });
    assert_eq!(seqs(&effects[0]), [6, 7, 8]);
    assert_eq!(effects[1], Effect::CheckOut(head(1, 5)));
}

#[test]
fn in_a_large_fleet_fetches_are_spread_and_what_came_inside_is_not_waited_with() {
    let spread = Duration::from_secs(20);
    let mut waits = Vec::new();
    for seed in 0..40 {
        let now = Instant::now();
        let have = Some(head(1, 4));
        let mut follow = Follow::new(now, Options { seed, ..OPTIONS }, have, have);
        follow.step(now, Event::Welcomed { head: have });
        follow.step(now, Event::Asked(Manner { paused: false, spread }));
        assert_eq!(follow.step(now, announced(5, false)), []);
        let due = follow.deadline().unwrap();
        waits.push((due - now).as_millis());
        // What is announced meanwhile does not put it off.
        assert_eq!(follow.step(now, announced(6, false)), []);
        assert_eq!(follow.deadline(), Some(due));
        assert_eq!(follow.step(due, Event::Ticked), [fetch(4, 6)]);
        follow.step(due, Event::Fetched { head: head(1, 6) });
        assert_eq!(seqs(&follow.step(due, announced(7, true))[0]), [7]);
    }
    waits.sort_unstable();
    assert!(waits[0] < 4_000 && (8_000..12_000).contains(&waits[20]) && waits[39] > 16_000);
    assert!(waits[39] <= 20_000, "{waits:?}");
}

#[test]
fn a_pack_that_does_not_continue_ours_is_not_used() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, announced(6, true)), [fetch(4, 6)]);
}

#[test]
fn a_mirror_that_falls_far_behind_fetches_in_one_piece() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, announced(5, false)), [fetch(4, 5)]);
    let last = 6 + MAX_PARCELS as u64;
    for seq in 6..=last {
        follow.step(now, announced(seq, true));
    }
    let effects = follow.step(now, Event::Fetched { head: head(1, 5) });
    assert_eq!(effects[0], fetch(5, last));
}

#[test]
fn with_every_announcement_lost_a_heartbeat_brings_the_head() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, Event::HeartbeatHeard { head: Some(head(1, 9)) }), [fetch(4, 9)]);
}

#[test]
fn with_heartbeats_lost_too_the_poll_does() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.deadline(), Some(now + OPTIONS.poll));
    let now = follow.deadline().unwrap();
    assert_eq!(follow.step(now, Event::Ticked), [Effect::Poll]);
    assert_eq!(
        follow.step(now, Event::Polled { heads: vec![(0, Some(head(1, 9)))] }),
        [fetch(4, 9)]
    );
}

#[test]
fn a_broken_fetch_goes_on_with_what_it_began() {
    let (mut follow, now) = settled(4);
    assert_eq!(follow.step(now, announced(5, false)), [fetch(4, 5)]);
    follow.step(now, announced(6, false));
    let failed = |failure| Event::FetchFailed { failure, reason: "cut".to_owned() };
    let effects = follow.step(now, failed(Failure::Again));
    assert_eq!(outcome(&effects[0]), Some((Outcome::Failed, 5, 0)));
    assert_eq!(follow.summary().state, "failing");
    let now = follow.deadline().unwrap();
    assert_eq!(follow.step(now, Event::Ticked), [fetch(4, 5)]);
    follow.step(now, failed(Failure::Afresh));
    let now = follow.deadline().unwrap();
    assert_eq!(follow.step(now, Event::Ticked), [fetch(4, 6)]);
    follow.step(now, failed(Failure::Afresh));
    let now = follow.deadline().unwrap();
    let from_nothing = Effect::Fetch { upstream: 0, have: None, want: head(1, 6) };
    assert_eq!(follow.step(now, Event::Ticked), [from_nothing]);
    follow.step(now, Event::Fetched { head: head(1, 6) });
    assert_eq!(follow.summary().last_error, None);
}

#[test]
fn a_commit_that_is_gone_is_asked_for_no_more() {
    let (mut follow, now) = settled(4);
    follow.step(now, announced(5, false));
    let gone = Event::FetchFailed { failure: Failure::Gone, reason: "404".to_owned() };
    assert_eq!(follow.step(now, gone).last(), Some(&Effect::Poll));
    let now = now + Duration::from_secs(1);
    assert_eq!(follow.step(now, Event::Ticked), []);
    assert_eq!(follow.step(now, Event::HeartbeatHeard { head: Some(head(1, 6)) }), [fetch(4, 6)]);
}

#[test]
fn odd_heads_are_refused_and_alarmed_on_once() {
    let other_line = Head { commit: head(9, 9).commit, ..head(1, 4) };
    for odd in [None, Some(head(1, 3)), Some(head(0, 9)), Some(other_line)] {
        let (mut follow, now) = settled(4);
        let beat = || Event::HeartbeatHeard { head: odd };
        assert_eq!(follow.step(now, beat()), [], "one may be a message that was overtaken");
        let refusal = Refusal { head: odd, have: head(1, 4) };
        let effects = follow.step(now, beat());
        assert_eq!(effects[0], Effect::Alarm(refusal));
        assert_eq!(outcome(&effects[1]).unwrap().0, Outcome::Refused);
        assert_eq!(follow.step(now, beat()), []);
        assert_eq!(follow.summary().state, "refused");
        assert!(follow.summary().detail.unwrap().contains("promote"));
        assert_eq!(
            follow.step(now, Event::HeartbeatHeard { head: Some(head(1, 5)) }),
            [fetch(4, 5)]
        );
    }
}

#[test]
fn a_relay_that_lags_is_left_and_no_reason_for_an_alarm() {
    let now = Instant::now();
    let have = Some(head(1, 4));
    let start = || {
        let mut follow = Follow::new(now, Options { upstreams: 2, ..OPTIONS }, have, have);
        follow.step(now, Event::Welcomed { head: have });
        follow
    };
    let is_alarmed = |effects: &[Effect]| effects.iter().any(|it| matches!(it, Effect::Alarm(_)));
    for late in [None, Some(head(1, 3))] {
        // Another one has what we have: it is followed from now on.
        let mut follow = start();
        let effects = follow.step(now, Event::HeartbeatHeard { head: late });
        assert_eq!(effects, [Effect::Poll]);
        let effects = follow.step(now, Event::Polled { heads: vec![(0, late), (1, have)] });
        assert_eq!(effects, [Effect::Disconnect, Effect::Connect(1)]);

        // All say the same: somebody was restored.
        let mut follow = start();
        for round in 0..2 {
            assert_eq!(follow.step(now, Event::HeartbeatHeard { head: late }), [Effect::Poll]);
            let effects = follow.step(now, Event::Polled { heads: vec![(0, late), (1, late)] });
            assert_eq!(is_alarmed(&effects), round == 1);
        }
        assert_eq!(follow.summary().state, "refused");

        // Nobody else answers: that is waited for, and not for ever.
        let mut follow = start();
        let alarmed = (1..100).find(|_| {
            follow.step(now, Event::HeartbeatHeard { head: late });
            is_alarmed(&follow.step(now, Event::Polled { heads: vec![(0, late)] }))
        });
        assert_eq!(alarmed, Some(ODD_ALONE));
        follow.step(now, Event::HeartbeatHeard { head: have });
        assert_eq!(follow.summary().state, "idle");
    }
}

#[test]
fn a_promoted_owner_is_followed_whatever_its_seq() {
    let (mut follow, now) = settled(4);
    let promoted = Effect::Fetch { upstream: 0, have: Some(head(1, 4)), want: head(2, 2) };
    assert_eq!(follow.step(now, Event::HeartbeatHeard { head: Some(head(2, 2)) }), [promoted]);
}

#[test]
fn a_head_that_does_not_descend_is_refused_until_it_changes() {
    let (mut follow, now) = settled(4);
    follow.step(now, announced(5, false));
    let effects = follow.step(now, Event::FetchSplit { head: head(1, 5) });
    assert!(matches!(effects[0], Effect::Alarm(_)));
    assert_eq!(follow.step(now, Event::HeartbeatHeard { head: Some(head(1, 5)) }), []);
    assert_eq!(follow.step(now, Event::HeartbeatHeard { head: Some(head(1, 6)) }), [fetch(4, 6)]);
}

#[test]
fn a_failed_checkout_is_tried_again_with_the_newest_head() {
    let (mut follow, now) = settled(4);
    follow.step(now, announced(5, true));
    follow.step(now, Event::Fetched { head: head(1, 5) });
    follow.step(now, Event::CheckoutFailed { reason: "no space".to_owned() });
    assert_eq!(follow.summary().detail.as_deref(), Some("no space"));
    follow.step(now, announced(6, true));
    assert_eq!(follow.step(now, Event::Fetched { head: head(1, 6) }), []);
    let now = follow.deadline().unwrap();
    assert_eq!(follow.step(now, Event::Ticked), [Effect::CheckOut(head(1, 6))]);
}

#[test]
fn without_a_directory_fetched_is_verified() {
    let now = Instant::now();
    let mut follow = Follow::new(now, Options { checkout: false, ..OPTIONS }, None, None);
    follow.step(now, Event::Welcomed { head: Some(head(1, 3)) });
    let effects = follow.step(now, Event::Fetched { head: head(1, 3) });
    assert_eq!(outcome(&effects[0]), Some((Outcome::Verified, 3, 0)));
    assert_eq!(follow.summary().have, Some(head(1, 3)));
}

#[test]
fn a_lost_link_is_made_again_without_end() {
    let (mut follow, mut now) = settled(4);
    for _ in 0..200 {
        assert_eq!(follow.step(now, cut()), []);
        let summary = follow.summary();
        assert_eq!(
            (summary.state, summary.detail.as_deref()),
            ("waiting-for-upstream", Some("cut"))
        );
        let wait = follow.reconnect.until().unwrap() - now;
        assert!(wait <= Duration::from_secs(30), "{wait:?}");
        while follow.link == Link::Down {
            now = follow.deadline().unwrap();
            follow.step(now, Event::Ticked);
        }
        follow.step(now, Event::Polled { heads: vec![] });
    }
}

#[test]
fn of_several_upstreams_the_highest_epoch_is_followed() {
    let now = Instant::now();
    let have = Some(head(1, 4));
    let mut follow = Follow::new(now, Options { upstreams: 3, ..OPTIONS }, have, have);
    follow.step(now, Event::Welcomed { head: have });
    let now = now + OPTIONS.poll;
    follow.step(now, Event::HeartbeatHeard { head: have });
    assert_eq!(follow.step(now, Event::Ticked), [], "the poll is due whatever is heard, once");
    let heads = vec![(0, have), (1, Some(head(2, 3))), (2, Some(head(1, 9)))];
    let effects = follow.step(now, Event::Polled { heads });
    let from_second = Effect::Fetch { upstream: 1, have, want: head(2, 3) };
    assert_eq!(effects, [Effect::Disconnect, Effect::Connect(1), from_second]);
}

#[test]
fn a_dead_upstream_gives_way_to_the_next() {
    let now = Instant::now();
    let mut follow = Follow::new(now, Options { upstreams: 2, ..OPTIONS }, None, None);
    assert_eq!(follow.step(now, Event::Ticked), [Effect::Connect(0)]);
    follow.step(now, cut());
    let now = follow.deadline().unwrap();
    assert_eq!(follow.step(now, Event::Ticked), [Effect::Connect(1)]);
}

/// The upstream, the network between, and what of the mirror survives a crash.
struct World {
    now: Instant,
    follow: Follow,
    line: Vec<Head>,
    fetched: Option<Head>,
    have: Option<Head>,
    link: bool,
    polling: bool,
    fetching: Option<Head>,
    placing: Option<Head>,
}

#[derive(Debug, Clone)]
enum Op {
    Commit,
    Promote,
    Announce { back: usize, pack: bool },
    Heartbeat { back: usize },
    Poll { back: Option<usize> },
    Fetch(Option<Failure>),
    CheckOut(bool),
    Connect(bool),
    Disconnect,
    Crash,
    Sync,
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Commit),
        1 => Just(Op::Promote),
        4 => (0usize..3, any::<bool>()).prop_map(|(back, pack)| Op::Announce { back, pack }),
        2 => (0usize..3).prop_map(|back| Op::Heartbeat { back }),
        1 => proptest::option::of(0usize..3).prop_map(|back| Op::Poll { back }),
        4 => Just(Op::Fetch(None)),
        2 => proptest::sample::select(vec![Failure::Again, Failure::Afresh, Failure::Gone, Failure::Fatal])
            .prop_map(|failure| Op::Fetch(Some(failure))),
        4 => any::<bool>().prop_map(Op::CheckOut),
        3 => any::<bool>().prop_map(Op::Connect),
        1 => Just(Op::Disconnect),
        1 => Just(Op::Crash),
        1 => Just(Op::Sync),
        3 => (0u64..70_000).prop_map(Op::Wait),
    ]
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let follow = Follow::new(now, OPTIONS, None, None);
        let (line, fetched, have) = (vec![head(1, 1)], None, None);
        World {
            now,
            follow,
            line,
            fetched,
            have,
            link: false,
            polling: false,
            fetching: None,
            placing: None,
        }
    }

    fn newest(&self) -> Head {
        *self.line.last().unwrap()
    }

    fn earlier(&self, back: usize) -> Head {
        self.line[self.line.len().saturating_sub(1 + back)]
    }

    fn send(&mut self, event: Event) {
        for effect in self.follow.step(self.now, event) {
            match effect {
                Effect::Connect(_) => assert!(!self.link, "one connection"),
                Effect::Poll => {
                    assert!(!self.polling, "one poll at a time");
                    self.polling = true;
                }
                Effect::Fetch { have, want, .. } => {
                    assert!(have.is_none() || have == self.fetched);
                    self.begin(want);
                }
                Effect::Receive { parcels, .. } => {
                    let mut parent = self.fetched.map(|head| head.commit);
                    for parcel in &parcels {
                        assert_eq!(parcel.parent, parent, "packs come in order");
                        parent = Some(parcel.head.commit);
                    }
                    self.begin(parcels.last().unwrap().head);
                }
                Effect::CheckOut(head) => {
                    assert!(self.placing.is_none(), "one checkout at a time");
                    assert_eq!(Some(head), self.fetched);
                    self.placing = Some(head);
                }
                Effect::Disconnect | Effect::Report(_) | Effect::Alarm(_) => {}
            }
        }
        let deadline = self.follow.deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "a deadline that has passed would spin");
    }

    fn begin(&mut self, want: Head) {
        assert!(self.fetching.is_none(), "one fetch at a time");
        let step = want.step_from(self.fetched.as_ref());
        assert!(matches!(step, Step::Forward | Step::NewEpoch), "{step:?}");
        self.fetching = Some(want);
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Commit => self.line.push(head(self.newest().epoch, self.newest().seq + 1)),
            Op::Promote => self.line.push(head(self.newest().epoch + 1, self.newest().seq + 1)),
            Op::Announce { back, pack } if self.link => {
                let head = self.earlier(back);
                let parent = (self.line.len() > 1 + back).then(|| self.earlier(back + 1).commit);
                self.send(Event::Announced {
                    head,
                    parent,
                    pack: pack.then(|| Bytes::from_static(b"p")),
                });
            }
            Op::Heartbeat { back } if self.link => {
                self.send(Event::HeartbeatHeard { head: Some(self.earlier(back)) });
            }
            Op::Poll { back } if self.polling => {
                self.polling = false;
                let heads = back.map(|back| (0, Some(self.earlier(back))));
                self.send(Event::Polled { heads: heads.into_iter().collect() });
            }
            Op::Fetch(failure) => self.end_fetch(failure),
            Op::CheckOut(works) => self.end_checkout(works),
            Op::Connect(works) if !self.link && self.follow.link == Link::Connecting => {
                self.link = works;
                let head = Some(self.newest());
                self.send(if works { Event::Welcomed { head } } else { cut() });
            }
            Op::Disconnect if self.link => {
                self.link = false;
                self.send(cut());
            }
            Op::Crash => {
                self.follow = Follow::new(self.now, OPTIONS, self.fetched, self.have);
                (self.link, self.polling, self.fetching, self.placing) = (false, false, None, None);
                self.send(Event::Ticked);
            }
            Op::Sync => self.send(Event::SyncRequested),
            Op::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.send(Event::Ticked);
            }
            _ => {}
        }
    }

    fn end_fetch(&mut self, failure: Option<Failure>) {
        let Some(head) = self.fetching.take() else { return };
        match failure {
            None => {
                self.fetched = Some(head);
                self.send(Event::Fetched { head });
            }
            Some(failure) => self.send(Event::FetchFailed { failure, reason: "r".to_owned() }),
        }
    }

    fn end_checkout(&mut self, works: bool) {
        let Some(head) = self.placing.take() else { return };
        if works {
            self.have = Some(head);
            self.send(Event::CheckedOut { head });
        } else {
            self.send(Event::CheckoutFailed { reason: "r".to_owned() });
        }
    }

    /// Nothing fails any more; only heartbeats or, without a link, polls bring the head.
    fn calm(&mut self, link_comes_back: bool) {
        for _ in 0..400 {
            if link_comes_back {
                self.apply(&Op::Connect(true));
                self.apply(&Op::Heartbeat { back: 0 });
            } else {
                self.apply(&Op::Disconnect);
                self.apply(&Op::Connect(false));
            }
            self.apply(&Op::Poll { back: Some(0) });
            self.apply(&Op::Fetch(None));
            self.apply(&Op::CheckOut(true));
            if self.have == Some(self.newest()) && self.follow.summary().want == self.have {
                return;
            }
            let wait = self.follow.deadline().map(|at| (at - self.now).as_millis());
            let wait = u64::try_from(wait.unwrap_or_default()).unwrap();
            self.apply(&Op::Wait(wait.min(5_000) + 1));
        }
        panic!("never got to {:?}: {:?}", self.newest(), self.follow.summary());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn it_always_ends_with_what_it_should_have(
        ops in proptest::collection::vec(ops(), 0..120),
        link_comes_back in any::<bool>(),
    ) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        world.calm(link_comes_back);
    }
}
