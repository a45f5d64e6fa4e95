//! What many threads do to a desk at once.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::*;
use crate::{bus::frame::Hello, model::Oid};

fn published(seq: u64) -> Published {
    let commit = Oid::from_bytes([u8::try_from(seq % 251).unwrap(); 20]);
    Published { head: Head { epoch: 1, seq, commit }, parent: None, signed: None, pack: None }
}

#[test]
fn who_says_hello_while_the_head_moves_is_to_have_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("feed")).unwrap());
    let desk = Desk::new("apps".parse().unwrap(), store, Bindings::default());
    let node: NodeId = "a".parse().unwrap();
    let (posted, hellos) = (AtomicU64::new(0), AtomicU64::new(0));
    let last = 5_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 1..=last {
                desk.post(published(seq));
                posted.fetch_max(seq, SeqCst);
                // Whatever said hello meanwhile is looked at before the next one mends it.
                let from = hellos.load(SeqCst);
                while hellos.load(SeqCst) < from + 2 && posted.load(SeqCst) < last {
                    std::thread::yield_now();
                }
            }
        });
        let mut wrong = None;
        while posted.load(SeqCst) < last {
            let hello = Hello::of(node.clone(), "a".parse().unwrap());
            desk.register(Caller { hello, url: None, token: None }).unwrap();
            let known = posted.load(SeqCst);
            let want = desk.followers()[0].want.map_or(0, |want| want.seq);
            if want < known {
                wrong = Some((known, want));
                posted.store(last, SeqCst);
            }
            hellos.fetch_add(1, SeqCst);
        }
        assert_eq!(wrong, None, "what is posted, and what is wanted");
    });
}
