//! The rules of who serves a region, what is lacking where, and what is remembered.

use std::time::Duration;

use super::*;
use crate::{
    bus::frame::Outcome,
    model::{Oid, Target},
};

fn head(epoch: u64, seq: u64) -> Head {
    Head { epoch, seq, commit: Oid::from_bytes([u8::try_from(seq).unwrap(); 20]) }
}

fn caller(node: &str, region: Option<&str>) -> Caller {
    let hello = Hello {
        region: region.map(|name| name.parse().unwrap()),
        ..Hello::of(node.parse().unwrap(), node.parse().unwrap())
    };
    Caller { hello, url: Some(format!("http://{node}")), token: None }
}

fn at(start: Instant, secs: u64) -> Instant {
    start + Duration::from_secs(secs)
}

#[test]
fn the_first_hello_serves_and_the_second_stands_by_until_silence() {
    let start = Instant::now();
    let eu: RegionName = "eu".parse().unwrap();
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    let mut roster = Roster::new(start, Bindings::default());
    let (first, standing) = roster.register(start, caller("a", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Serving);
    let (second, standing) = roster.register(start, caller("b", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Standby);
    let led_to = |roster: &Roster, now| {
        let site = roster.sites_of(now, &eu, &[]).remove(0);
        site.bar.is_none().then_some(site.url)
    };
    assert_eq!(led_to(&roster, start), None, "its address was not tried yet");
    assert!(roster.reached(&a, "http://a", Reach::Reached));
    assert!(roster.reached(&b, "http://b", Reach::Reached));
    assert_eq!(led_to(&roster, start).unwrap(), "http://a");

    roster.heard(at(start, 10), &a, first).unwrap();
    roster.gone(&a, first);
    assert_eq!(roster.heard(at(start, 29), &b, second), Some(Standing::Standby));
    assert_eq!(roster.heard(at(start, 30), &b, second), Some(Standing::Serving));
    assert_eq!(led_to(&roster, at(start, 30)).unwrap(), "http://b");
    let (_, standing) = roster.register(at(start, 31), caller("a", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Standby, "what was taken over stays with the new node");
}

#[test]
fn a_restart_is_not_silence() {
    let start = Instant::now();
    let mut roster = Roster::new(start, Bindings::default());
    roster.register(start, caller("a", Some("eu")), None).unwrap();
    let mut roster = Roster::new(start, roster.bindings().clone());
    let (_, standing) = roster.register(at(start, 1), caller("b", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Standby);
    let (_, standing) = roster.register(at(start, 2), caller("a", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Serving);
}

#[test]
fn a_new_connection_of_a_node_replaces_the_old_one() {
    let start = Instant::now();
    let a = "a".parse().unwrap();
    let mut roster = Roster::new(start, Bindings::default());
    let (old, _) = roster.register(start, caller("a", Some("eu")), None).unwrap();
    let (new, standing) = roster.register(start, caller("a", Some("eu")), None).unwrap();
    assert_eq!(standing, Standing::Serving);
    assert_eq!(roster.heard(start, &a, old), None);
    roster.gone(&a, old);
    assert!(roster.followers().all(|known| known.connected));
    assert!(roster.heard(start, &a, new).is_some());
    let thief = Caller { token: Some("other".to_owned()), ..caller("a", Some("eu")) };
    assert_eq!(roster.register(start, thief, None).unwrap_err(), Fault::WrongToken);
}

#[test]
fn lag_runs_from_the_first_head_that_is_lacking() {
    let start = Instant::now();
    let a = "a".parse().unwrap();
    let mut roster = Roster::new(start, Bindings::default());
    roster.register(start, caller("a", None), None).unwrap();
    roster.posted(at(start, 1), head(1, 1));
    roster.posted(at(start, 3), head(1, 2));
    let lag = |roster: &Roster, now| roster.followers().next().unwrap().lag(now).as_secs();
    assert_eq!(lag(&roster, at(start, 4)), 3);
    roster.acked(at(start, 5), &a, Ack::new(head(1, 1), Outcome::Verified, 1, None));
    assert_eq!(lag(&roster, at(start, 5)), 4);
    roster.acked(at(start, 6), &a, Ack::new(head(1, 2), Outcome::Verified, 1, None));
    assert_eq!(lag(&roster, at(start, 9)), 0);
}

#[test]
fn a_follower_ahead_is_seen() {
    let start = Instant::now();
    let mut roster = Roster::new(start, Bindings::default());
    let mut ahead = caller("a", None);
    ahead.hello.fetched = Some(head(2, 5));
    roster.register(start, ahead, None).unwrap();
    for (mine, seen) in [
        (None, true),
        (Some(head(2, 4)), true),
        (Some(head(2, 5)), false),
        (Some(head(3, 1)), false),
    ] {
        assert_eq!(roster.ahead_of(start, mine.as_ref()).is_some(), seen, "{mine:?}");
    }
}

#[test]
fn a_verdict_names_every_region_that_lacks_a_head_and_why() {
    let start = Instant::now();
    let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
    let gone = Binding { node: "gone".parse().unwrap(), token: None };
    let bindings = Bindings::from([("old".parse().unwrap(), gone)]);
    let mut roster = Roster::new(start, bindings);
    roster.register(start, caller("a", Some("eu")), None).unwrap();
    roster.register(start, caller("b", Some("us")), None).unwrap();
    roster.register(start, caller("c", Some("us")), None).unwrap();
    roster.acked(start, &a, Ack::new(head(1, 2), Outcome::Verified, 1, None));
    roster.acked(start, &b, Ack::new(head(1, 2), Outcome::Failed, 1, Some("disk full")));
    let below = Hello { region: Some("asia".parse().unwrap()), ..caller("d", None).hello };
    let mut leaf = Roster::new(start, Bindings::default());
    let caller = Caller { hello: below, url: None, token: None };
    leaf.register(start, caller, Some(head(1, 2))).unwrap();
    roster.reported(start, &a, leaf.reports(start, &a, &[]));
    let verdict = roster.verdict(start, &head(1, 2), &[]);
    assert!(!verdict.is_complete());
    assert_eq!(
        verdict.lacks(),
        "asia (is behind, below a), us (disk full), old (not heard since this node started)"
    );
    assert_eq!(verdict.verified.len(), 1);
    assert_eq!(verdict.excused[0].why, "it stands by");

    let paused = [Target::Region("us".parse().unwrap())];
    assert!(roster.forget(&"gone".parse().unwrap()));
    roster.reported(start, &a, vec![Report { have: Some(head(1, 3)), ..reports(&leaf, start) }]);
    let verdict = roster.verdict(start, &head(1, 2), &paused);
    assert!(verdict.is_complete(), "{}", verdict.lacks());
    assert_eq!(verdict.excused.len(), 2);
    let away = roster.reports(at(start, 20), &"hub".parse().unwrap(), &[]);
    assert!(away.iter().any(|report| report.node.as_str() == "d" && report.live));
    roster.gone(&a, 1);
    let away = roster.reports(at(start, 20), &"hub".parse().unwrap(), &[]);
    assert!(!away.iter().any(|report| report.node.as_str() == "d" && report.live));
}

fn reports(roster: &Roster, now: Instant) -> Report {
    roster.reports(now, &"a".parse().unwrap(), &[]).remove(0)
}

#[test]
fn the_number_of_followers_is_bounded() {
    let start = Instant::now();
    let mut roster = Roster::new(start, Bindings::default());
    for n in 0..MAX_FOLLOWERS {
        roster.register(start, caller(&format!("n{n}"), None), None).unwrap();
    }
    assert_eq!(roster.register(start, caller("late", None), None).unwrap_err(), Fault::Full);
    let node = "n7".parse().unwrap();
    let connection = roster.followers[&node].connection;
    roster.gone(&node, connection);
    assert!(roster.register(start, caller("late", None), None).is_ok());
    assert_eq!(roster.followers().count(), MAX_FOLLOWERS);
}

fn ack(roster: &mut Roster, now: Instant, node: &str, seq: u64) {
    let ack = Ack::new(head(1, seq), Outcome::Verified, 1, None);
    roster.acked(now, &node.parse().unwrap(), ack);
}

#[test]
fn whoever_waits_for_all_looks_at_one_after_the_other() {
    let start = Instant::now();
    let gone = Binding { node: "gone".parse().unwrap(), token: None };
    let mut roster = Roster::new(start, Bindings::from([("old".parse().unwrap(), gone.clone())]));
    for node in ["a", "b", "c"] {
        roster.register(start, caller(node, Some(&format!("in-{node}"))), None).unwrap();
    }
    let at = |node: &str| Some(Lacking::At(node.parse().unwrap()));
    let next = |roster: &Roster, last: Option<Lacking>| {
        let lacking = roster.lacking(start, &head(1, 1), &[], last.as_ref());
        let verdict = roster.verdict(start, &head(1, 1), &[]);
        assert_eq!(lacking.is_none(), verdict.is_complete());
        lacking
    };
    assert_eq!(next(&roster, None), at("a"));
    ack(&mut roster, start, "a", 1);
    assert_eq!(next(&roster, at("a")), at("b"));
    ack(&mut roster, start, "c", 1);
    assert_eq!(next(&roster, at("b")), at("b"), "it has not moved");
    ack(&mut roster, start, "b", 1);
    let unheard = Some(Lacking::Unheard("old".parse().unwrap()));
    assert_eq!(next(&roster, at("b")), unheard);
    assert_eq!(next(&roster, unheard.clone()), unheard);
    assert!(roster.forget(&gone.node));
    roster.pulsed(start, &"a".parse().unwrap(), &Pulse::default());
    assert_eq!(next(&roster, unheard), at("a"), "who has lost it lacks it again");
    ack(&mut roster, start, "a", 2);
    assert_eq!(next(&roster, at("a")), None);
}

#[test]
fn what_is_further_down_is_counted_as_it_is_heard_here() {
    let start = Instant::now();
    let relay: NodeId = "relay".parse().unwrap();
    let (mut hub, mut middle) =
        (Roster::new(start, Bindings::default()), Roster::new(start, Bindings::default()));
    hub.register(start, caller("relay", Some("near")), None).unwrap();
    middle.register(start, caller("leaf", Some("far")), Some(head(1, 1))).unwrap();
    ack(&mut middle, start, "leaf", 1);
    hub.reported(start, &relay, middle.reports(start, &relay, &[]));
    hub.posted(start, head(1, 1));
    ack(&mut hub, start, "relay", 1);
    let leaf = |hub: &Roster| hub.follower(&relay).unwrap().below.values().next().unwrap().clone();
    assert_eq!((leaf(&hub).lag(at(start, 9)).as_secs(), leaf(&hub).verified_at), (0, Some(start)));
    assert_eq!(hub.stale(at(start, 9), &head(1, 1), &[], SILENCE), [""; 0]);

    hub.posted(at(start, 10), head(1, 2));
    ack(&mut hub, at(start, 11), "relay", 2);
    assert_eq!((leaf(&hub).want, leaf(&hub).lag(at(start, 50)).as_secs()), (Some(head(1, 2)), 40));
    let limit = Duration::from_secs(30);
    assert_eq!(hub.stale(at(start, 40), &head(1, 2), &[], limit), [""; 0]);
    let stale = hub.stale(at(start, 41), &head(1, 2), &[], limit);
    assert_eq!(stale, ["far: is behind, below relay"]);
    ack(&mut middle, at(start, 60), "leaf", 2);
    hub.reported(at(start, 60), &relay, middle.reports(at(start, 60), &relay, &[]));
    assert_eq!(leaf(&hub).verified_at, Some(at(start, 60)));
    assert_eq!(hub.stale(at(start, 99), &head(1, 2), &[], limit), [""; 0]);
}

#[test]
fn bindings_are_given_out_when_they_are_other_ones() {
    let start = Instant::now();
    let mut roster = Roster::new(start, Bindings::default());
    let (connection, _) = roster.register(start, caller("a", Some("eu")), None).unwrap();
    assert_eq!(roster.take_rebound().map(Bindings::len), Some(1));
    roster.heard(start, &"a".parse().unwrap(), connection).unwrap();
    ack(&mut roster, start, "a", 1);
    assert_eq!(roster.take_rebound(), None);
    roster.gone(&"a".parse().unwrap(), connection);
    assert!(roster.forget(&"a".parse().unwrap()));
    assert_eq!(roster.take_rebound().map(Bindings::len), Some(0));
}

#[test]
fn what_another_connection_says_changes_nothing() {
    let start = Instant::now();
    let a: NodeId = "a".parse().unwrap();
    let mut roster = Roster::new(start, Bindings::default());
    let (old, _) = roster.register(start, caller("a", None), None).unwrap();
    let (new, _) = roster.register(start, caller("a", None), None).unwrap();
    let frame = || FromFollower::Ack(Ack::new(head(1, 1), Outcome::Verified, 1, None));
    assert_eq!(roster.take(start, &a, old, frame()), None);
    assert_eq!(roster.follower(&a).unwrap().have, None);
    assert_eq!(roster.take(start, &a, new, frame()), Some(Standing::Mirror));
    assert_eq!(roster.follower(&a).unwrap().have, Some(head(1, 1)));
}

#[test]
fn who_goes_over_to_a_relay_and_back_is_counted_once() {
    let start = Instant::now();
    let [relay, us]: [NodeId; 2] = ["relay", "us"].map(|name| name.parse().unwrap());
    let [mut hub, mut middle] = [(); 2].map(|()| Roster::new(start, Bindings::default()));
    hub.register(start, caller("relay", Some("eu")), Some(head(1, 1))).unwrap();
    ack(&mut hub, start, "relay", 1);
    let (connection, _) = hub.register(start, caller("us", Some("us")), Some(head(1, 1))).unwrap();
    hub.gone(&us, connection);
    let later = at(start, 60);
    let (below, _) = middle.register(later, caller("us", Some("us")), Some(head(1, 1))).unwrap();
    ack(&mut middle, later, "us", 1);
    let told = |hub: &Roster| {
        let names = |members: &[crate::bus::fleet::Member]| -> Vec<String> {
            members.iter().map(|member| member.node.to_string()).collect()
        };
        let verdict = hub.verdict(later, &head(1, 1), &[]);
        assert_eq!(hub.lacking(later, &head(1, 1), &[], None).is_none(), verdict.is_complete());
        (names(&verdict.verified), names(&verdict.lacking))
    };
    assert_eq!(told(&hub), (vec!["relay".to_owned()], vec!["us".to_owned()]));
    hub.reported(later, &relay, middle.reports(later, &relay, &[]));
    assert_eq!(told(&hub), (vec!["relay".to_owned(), "us".to_owned()], vec![]));
    assert_eq!(hub.stale(later, &head(1, 1), &[], SILENCE), [""; 0]);
    assert_eq!(hub.reports(later, &"hub".parse().unwrap(), &[]).len(), 2);
    assert_eq!(hub.sites_of(later, &"us".parse().unwrap(), &[]).len(), 2, "it, and the relay");

    // And back: what the relay says of its absence is no news of it.
    middle.gone(&us, below);
    let (_, standing) = hub.register(later, caller("us", Some("us")), Some(head(1, 1))).unwrap();
    assert_eq!(standing, Standing::Serving);
    ack(&mut hub, later, "us", 1);
    let gone = middle.reports(at(start, 90), &relay, &[]);
    hub.reported(later, &relay, gone);
    assert_eq!(told(&hub), (vec!["relay".to_owned(), "us".to_owned()], vec![]));
    assert_eq!(hub.reports(later, &"hub".parse().unwrap(), &[]).len(), 2);
}

#[test]
fn what_a_relay_said_before_it_was_started_anew_is_not_believed() {
    let start = Instant::now();
    let [relay, leaf]: [NodeId; 2] = ["relay", "leaf"].map(|name| name.parse().unwrap());
    let [mut hub, mut middle] = [(); 2].map(|()| Roster::new(start, Bindings::default()));
    let (old, _) = hub.register(start, caller("relay", None), None).unwrap();
    middle.register(start, caller("leaf", Some("far")), None).unwrap();
    hub.reported(start, &relay, middle.reports(start, &relay, &[]));
    let lives = |hub: &Roster| hub.site(start, &leaf, &[]).unwrap().bar != Some(Bar::Away);
    assert!(lives(&hub) && !hub.forget(&leaf));
    hub.gone(&relay, old);
    hub.register(start, caller("relay", None), None).unwrap();
    assert!(!lives(&hub), "nobody has said so since");
    hub.reported(start, &relay, middle.reports(start, &relay, &[]));
    assert!(lives(&hub));
    hub.register(start, caller("relay", None), None).unwrap();
    assert!(hub.forget(&leaf) && hub.site(start, &leaf, &[]).is_none());
}

#[test]
fn who_is_forgotten_is_forgotten_here_and_below() {
    let start = Instant::now();
    let [relay, us]: [NodeId; 2] = ["relay", "us"].map(|name| name.parse().unwrap());
    let [mut hub, mut middle] = [(); 2].map(|()| Roster::new(start, Bindings::default()));
    hub.register(start, caller("relay", None), None).unwrap();
    let (here, _) = hub.register(start, caller("us", Some("us")), None).unwrap();
    hub.gone(&us, here);
    let later = at(start, 60);
    let (below, _) = middle.register(later, caller("us", Some("us")), None).unwrap();
    middle.gone(&us, below);
    hub.reported(later, &relay, middle.reports(at(start, 120), &relay, &[]));
    assert!(hub.forget(&us));
    assert!(hub.site(at(start, 120), &us, &[]).is_none(), "it is known below the relay still");
    assert!(!hub.forget(&us), "nothing is left of it");
}

#[test]
fn a_version_is_verified_since_it_was_first_heard_of_whoever_says_so() {
    let start = Instant::now();
    let a: NodeId = "a".parse().unwrap();
    let mut roster = Roster::new(start, Bindings::default());
    let since = |roster: &Roster| {
        let at = roster.follower(&a).unwrap().verified_at;
        at.map(|at| at.saturating_duration_since(start).as_secs())
    };
    let greet = |roster: &mut Roster, secs, have| {
        let mut caller = caller("a", None);
        caller.hello.have = have;
        roster.register(at(start, secs), caller, None).unwrap();
    };
    let pulse = |have| Pulse { have, ..Pulse::default() };
    greet(&mut roster, 1, Some(head(1, 1)));
    assert_eq!(since(&roster), Some(1), "by its hello");
    roster.pulsed(at(start, 2), &a, &pulse(Some(head(1, 2))));
    assert_eq!(since(&roster), Some(2), "by a heartbeat");
    ack(&mut roster, at(start, 3), "a", 2);
    assert_eq!(since(&roster), Some(2), "the same as before");
    greet(&mut roster, 4, Some(head(1, 2)));
    assert_eq!(since(&roster), Some(2), "the same over another connection");
    greet(&mut roster, 5, Some(head(1, 3)));
    assert_eq!(since(&roster), Some(5), "it went on while it was away");
    ack(&mut roster, at(start, 6), "a", 4);
    assert_eq!(since(&roster), Some(6));
    roster.pulsed(at(start, 7), &a, &pulse(None));
    assert_eq!(since(&roster), None, "it has lost it");
}

#[test]
fn an_arrival_counts_once_whether_a_heartbeat_or_an_acknowledgement_says_so_first() {
    let start = Instant::now();
    let mut roster = Roster::new(start, Bindings::default());
    let a: NodeId = "a".parse().unwrap();
    roster.register(start, caller("a", None), None).unwrap();
    roster.posted(start, head(1, 1));
    roster.pulsed(at(start, 1), &a, &Pulse { have: Some(head(1, 1)), ..Pulse::default() });
    ack(&mut roster, at(start, 2), "a", 1);
    let took: Vec<_> = roster.arrivals(9).iter().map(|it| it.took.as_secs()).collect();
    assert_eq!(took, [1]);
}
