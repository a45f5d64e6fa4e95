//! Settling, alone: every verdict, in every order.

use proptest::prelude::*;

use super::*;
use crate::model::Mtime;

const QUIET: Duration = Duration::from_secs(2);

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

fn seen(size: u64) -> Fingerprint {
    let time = Mtime { secs: 1, nanos: 0 };
    Fingerprint { symlink: false, mode: 0o644, size, mtime: time, ctime: time, inode: 1 }
}

fn look(settle: &mut Settle, now: Instant) -> Option<String> {
    settle.next(now).map(|look| look.path.to_text().into_owned())
}

#[test]
fn a_refusal_is_tried_again_ever_later_and_a_touch_at_once() {
    let start = Instant::now();
    let (mut settle, mut now) = (Settle::new(QUIET), start);
    settle.touch(&path("a"), Lane::Event);
    for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
        assert_eq!(look(&mut settle, now).as_deref(), Some("a"));
        settle.judged(now, &path("a"), Verdict::Busy);
        assert_eq!(look(&mut settle, now), None);
        assert_eq!(settle.deadline(now), Some(now + Duration::from_millis(wait)));
        now += Duration::from_millis(wait);
    }
    let (_, waiting) = settle.waiting().next().unwrap();
    assert_eq!(waiting.reason, "somebody is writing it");
    look(&mut settle, now).unwrap();
    settle.judged(now, &path("a"), Verdict::Busy);
    settle.touch(&path("a"), Lane::Event);
    assert_eq!(look(&mut settle, now).as_deref(), Some("a"), "the close's event");
    settle.judged(now, &path("a"), Verdict::Settled);
    assert_eq!((settle.len(), settle.deadline(now), settle.waiting().count()), (0, None, 0));
}

#[test]
fn one_busy_path_never_holds_up_the_others() {
    let (mut settle, now) = (Settle::new(QUIET), Instant::now());
    settle.touch(&path("busy"), Lane::Event);
    look(&mut settle, now).unwrap();
    settle.judged(now, &path("busy"), Verdict::Busy);
    for number in 0..100 {
        settle.touch(&path(&number.to_string()), Lane::Event);
        settle.touch(&path("busy"), Lane::Event);
    }
    let order: Vec<_> = std::iter::from_fn(|| look(&mut settle, now)).collect();
    assert_eq!(order.len(), 101);
    assert_eq!(order.iter().position(|name| name == "busy"), Some(1), "its place is kept");
}

#[test]
fn events_come_before_what_a_scan_found() {
    let (mut settle, now) = (Settle::new(QUIET), Instant::now());
    for name in ["s1", "s2", "s3"] {
        settle.touch(&path(name), Lane::Scan);
    }
    settle.touch(&path("e"), Lane::Event);
    settle.touch(&path("s3"), Lane::Event);
    settle.touch(&path("e"), Lane::Scan);
    assert!(settle.has_scan_work());
    let order: Vec<_> = std::iter::from_fn(|| look(&mut settle, now)).collect();
    assert_eq!(order, ["e", "s3", "s1", "s2"]);
    settle.judged(now, &path("s1"), Verdict::Settled);
    assert!(settle.has_scan_work(), "one is being looked at");
    settle.judged(now, &path("s2"), Verdict::Busy);
    assert!(!settle.has_scan_work(), "it waits for somebody");
}

#[test]
fn a_touch_while_looking_leads_to_another_look() {
    let (mut settle, now) = (Settle::new(QUIET), Instant::now());
    for verdict in [Verdict::Settled, Verdict::Incomplete(seen(1)), Verdict::Busy] {
        settle.touch(&path("a"), Lane::Event);
        look(&mut settle, now).unwrap();
        settle.touch(&path("a"), Lane::Scan);
        settle.touch(&path("a"), Lane::Event);
        settle.judged(now, &path("a"), verdict);
        assert_eq!(settle.next(now).unwrap().lane, Lane::Event);
        settle.judged(now, &path("a"), Verdict::Settled);
        assert_eq!(settle.len(), 0);
    }
}

#[test]
fn without_leases_a_file_must_be_quiet() {
    let (mut settle, start) = (Settle::new(QUIET), Instant::now());
    settle.touch(&path("a"), Lane::Scan);
    assert_eq!(settle.next(start).unwrap().quiet, None);
    settle.judged(start, &path("a"), Verdict::NoLease(seen(1)));
    let now = settle.deadline(start).unwrap();
    assert_eq!(now, start + QUIET);
    assert_eq!(settle.next(now).unwrap().quiet, Some(seen(1)));
    settle.judged(now, &path("a"), Verdict::NoLease(seen(2)));
    assert_eq!(settle.deadline(now), Some(now + QUIET), "it grew: from the start again");
    // A touch in between looks at once, and the time that it was quiet still counts.
    settle.touch(&path("a"), Lane::Event);
    let middle = now + QUIET / 2;
    assert_eq!(settle.next(middle).unwrap().quiet, None);
    settle.judged(middle, &path("a"), Verdict::NoLease(seen(2)));
    assert_eq!(settle.deadline(middle), Some(now + QUIET));
    assert_eq!(settle.next(now + QUIET).unwrap().quiet, Some(seen(2)));
}

#[test]
fn an_archive_without_its_end_waits_for_a_change_or_approval() {
    let (mut settle, now) = (Settle::new(QUIET), Instant::now());
    settle.touch(&path("a.war"), Lane::Event);
    assert!(!settle.approve(&path("a.war")), "not held yet");
    look(&mut settle, now).unwrap();
    settle.judged(now, &path("a.war"), Verdict::Incomplete(seen(1)));
    assert_eq!(settle.deadline(now), None, "no timer");
    assert!(!settle.has_scan_work());
    assert!(!settle.is_settled_since(now) && settle.is_settled_since(now + FIRST_WAIT));
    let later = now + Duration::from_secs(60);
    settle.touch(&path("a.war"), Lane::Scan);
    look(&mut settle, later).unwrap();
    settle.judged(later, &path("a.war"), Verdict::Incomplete(seen(1)));
    assert_eq!(settle.waiting().next().unwrap().1.since, now, "held since the first look");
    assert!(settle.approve(&path("a.war")));
    assert_eq!(settle.next(later).unwrap().approved, Some(seen(1)));
    settle.judged(later, &path("a.war"), Verdict::Settled);
    assert_eq!(settle.len(), 0);
}

#[test]
fn what_cannot_be_read_is_tried_ever_later_and_then_left_to_a_scan() {
    let (mut settle, mut now) = (Settle::new(QUIET), Instant::now());
    settle.touch(&path("a"), Lane::Scan);
    let mut looks = 0;
    while settle.next(now).is_some() {
        looks += 1;
        settle.judged(now, &path("a"), Verdict::Fault("denied".to_owned()));
        now = settle.deadline(now).unwrap_or(now);
    }
    assert_eq!((looks, settle.active(), settle.len()), (16, 0, 1));
    assert!(settle.is_waiting(&path("a")) && !settle.approve(&path("a")));
    settle.touch(&path("a"), Lane::Scan);
    assert_eq!(settle.next(now).unwrap().path, path("a"));
    settle.judged(now, &path("a"), Verdict::Settled);
    assert_eq!(settle.len(), 0);
}

#[derive(Debug, Clone)]
enum Op {
    Touch(u8, Lane),
    Next,
    Judge(u8, Verdict),
    Pass(u16),
    Approve(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let lane = prop_oneof![Just(Lane::Event), Just(Lane::Scan)];
    let verdict = prop_oneof![
        3 => Just(Verdict::Settled),
        1 => Just(Verdict::Busy),
        1 => Just(Verdict::Changed),
        1 => (0..3_u64).prop_map(|size| Verdict::NoLease(seen(size))),
        1 => (0..3_u64).prop_map(|size| Verdict::Incomplete(seen(size))),
        1 => Just(Verdict::Fault("denied".to_owned())),
    ];
    prop_oneof![
        3 => (0..5_u8, lane).prop_map(|(path, lane)| Op::Touch(path, lane)),
        3 => Just(Op::Next),
        3 => (0..5_u8, verdict).prop_map(|(path, verdict)| Op::Judge(path, verdict)),
        1 => (0..3000_u16).prop_map(Op::Pass),
        1 => (0..5_u8).prop_map(Op::Approve),
    ]
}

proptest! {
    /// Whatever happens: a touched path is looked at after its touch, sooner or later, and once
    /// everything is judged settled nothing is left behind in any index.
    #[test]
    fn no_touch_is_lost_and_nothing_is_left(ops in prop::collection::vec(op(), 1..80)) {
        let mut settle = Settle::new(QUIET);
        let mut now = Instant::now();
        let mut unseen = BTreeSet::new();
        for op in ops {
            match op {
                Op::Touch(number, lane) => {
                    settle.touch(&path(&number.to_string()), lane);
                    unseen.insert(path(&number.to_string()));
                }
                Op::Next => {
                    if let Some(look) = settle.next(now) {
                        unseen.remove(&look.path);
                    }
                }
                Op::Judge(number, verdict) => {
                    settle.judged(now, &path(&number.to_string()), verdict);
                }
                Op::Pass(millis) => now += Duration::from_millis(millis.into()),
                Op::Approve(number) => {
                    settle.approve(&path(&number.to_string()));
                }
            }
        }
        let held = |settle: &Settle| {
            let stages = settle.paths.values().map(|known| known.stage);
            stages.filter(|stage| matches!(stage, Stage::Held(_))).count()
        };
        let looking: Vec<_> = settle.paths.iter()
            .filter(|(_, known)| matches!(known.stage, Stage::Looking { .. }))
            .map(|(path, _)| path.clone()).collect();
        for path in looking {
            settle.judged(now, &path, Verdict::Settled);
        }
        now += LONGEST_FAULT_WAIT;
        while let Some(look) = settle.next(now) {
            unseen.remove(&look.path);
            settle.judged(now, &look.path, Verdict::Settled);
        }
        // A scan's touch of a path that waits for a writer is seen by that wait's own look.
        prop_assert!(unseen.is_empty(), "never looked at: {unseen:?}");
        prop_assert_eq!(settle.len(), held(&settle));
        prop_assert!(settle.queue.is_empty() && settle.timers.is_empty());
        prop_assert_eq!(settle.looking, [0; 2]);
    }
}
