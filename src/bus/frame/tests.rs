//! What others see on the wire, and that nothing from there can hurt.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::model::Oid;

fn head(seq: u64) -> Head {
    Head { epoch: 1, seq, commit: Oid::from_bytes([7; 20]) }
}

fn announce() -> Announce {
    let feed = FeedName::default();
    Announce {
        feed,
        head: head(3),
        parent: Some(Oid::from_bytes([6; 20])),
        size: 0,
        signature: None,
    }
}

#[test]
fn an_announcement_comes_back_with_its_pack() {
    for pack in [None, Some(b"PACK and more".as_slice())] {
        let (got, inside) = Announce::decode(announce().encode(pack)).unwrap();
        assert_eq!(got.head, head(3));
        assert_eq!(got.parent, announce().parent);
        assert_eq!(inside.as_deref(), pack);
    }
}

#[test]
fn a_large_pack_is_left_out() {
    let (got, inside) =
        Announce::decode(announce().encode(Some(&vec![0; MAX_INLINE_PACK + 1]))).unwrap();
    assert_eq!((got.size, inside), (0, None));
}

#[test]
fn broken_binary_frames_are_errors() {
    let whole = announce().encode(Some(b"pack"));
    for cut in 0..whole.len() {
        assert!(Announce::decode(whole.slice(..cut)).is_err(), "cut at {cut}");
    }
    assert!(matches!(Announce::decode(vec![0; MAX_FRAME + 1].into()), Err(BadFrame::TooLong(_))));
    assert!(Announce::decode(Bytes::from_static(&[255, 255, 255, 255, 1])).is_err());
}

#[test]
fn the_text_frames_are_as_others_see_them() {
    let ack = FromFollower::Ack(Ack::new(head(3), Outcome::Verified, 12, None));
    let commit = "0707070707070707070707070707070707070707";
    let json = format!(
        r#"{{"type":"ack","epoch":1,"seq":3,"commit":"{commit}","outcome":"verified","took_ms":12}}"#
    );
    assert_eq!(encode(&ack), json);
    assert_eq!(decode::<FromFollower>(&json).unwrap(), ack);
    let fault = FromUpstream::Fault(Fault::Protocol { upstream: 1, follower: 9 });
    assert_eq!(encode(&fault), r#"{"type":"fault","code":"protocol","upstream":1,"follower":9}"#);
}

#[test]
fn what_a_newer_program_adds_is_ignored() {
    let hello = r#"{"type":"hello","protocol":1,"node":"n1","label":"eu west","shoe_size":44}"#;
    let FromFollower::Hello(hello) = decode(hello).unwrap() else { panic!("not a hello") };
    assert_eq!((hello.node.as_str(), hello.region, hello.have), ("n1", None, None));
    assert_eq!(
        decode::<FromUpstream>(r#"{"type":"song","notes":[1]}"#).unwrap(),
        FromUpstream::Unknown
    );
    let fault: FromUpstream = decode(r#"{"type":"fault","code":"moon_phase"}"#).unwrap();
    assert_eq!(fault, FromUpstream::Fault(Fault::Unknown));
    let beat: FromUpstream = decode(r#"{"type":"heartbeat","standing":"levitating"}"#).unwrap();
    assert_eq!(
        beat,
        FromUpstream::Heartbeat(Heartbeat {
            head: None,
            standing: Standing::Mirror,
            paused: false,
            spread_ms: 0,
            orders: Orders::default(),
            trust: None,
            paused_targets: Vec::new(),
            trust_version: None,
        })
    );
}

#[test]
fn broken_text_frames_are_errors() {
    let long = " ".repeat(MAX_FRAME + 1);
    let nested = "[".repeat(100_000);
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"type":"hello"}"#,
        r#"{"type":"hello","protocol":1,"node":"../x","label":"l"}"#,
        r#"{"type":"ack","epoch":1,"seq":-3,"commit":"07","outcome":"verified"}"#,
        &long,
        &nested,
    ] {
        assert!(decode::<FromFollower>(bad).is_err(), "{bad:.40}");
    }
}

#[test]
fn a_fault_says_what_there_is() {
    let feeds = ["apps", "models"].map(|name| name.parse().unwrap());
    let text = Fault::no_such_feed("app", feeds).to_string();
    assert_eq!(text, "the upstream has no feed \"app\"; it has: apps, models");
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode::<FromFollower>(&String::from_utf8_lossy(&bytes));
        let _ = decode::<FromUpstream>(&String::from_utf8_lossy(&bytes));
        let _ = Announce::decode(bytes.into());
    }

    #[test]
    fn one_wrong_byte_never_panics(at in 0usize..200, byte in any::<u8>()) {
        let mut frame = announce().encode(Some(b"pack")).to_vec();
        let at = at % frame.len();
        frame[at] = byte;
        if let Ok((announce, Some(pack))) = Announce::decode(frame.into()) {
            prop_assert_eq!(announce.size, pack.len() as u64);
        }
    }
}
