//! What a region keeps of the primary's pins and revocations, so that it obeys them when it starts
//! alone. The primary's own are written where they are decided.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Error;
use crate::{
    bus::{Desk, Reader},
    ledger::{
        Decisions,
        decisions::{self, Act, Pin},
        tokens::Token,
    },
    model::{FeedName, Orders, Pinned, Role, Scope},
    store::Store,
    sys,
};

/// What the primary last said of pins and revocations outlives a restart of a region.
pub(super) async fn keep(
    desk: Arc<Desk>,
    decisions: Arc<Decisions>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut changes = desk.orders.subscribe();
    // One may have come before this began.
    changes.mark_changed();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
        let Orders { pins, revoked } = changes.borrow_and_update().clone();
        let act = Act { since: sys::now().into(), by: "the upstream".to_owned() };
        let pin =
            |pin: Pinned| Pin { target: pin.target, commit: pin.head.commit, act: act.clone() };
        let pins = pins.into_iter().map(pin).collect();
        let (decisions, feed) = (Arc::clone(&decisions), desk.feed.clone());
        let kept = move || {
            decisions.update_feed(&feed, |kept| (kept.pins, kept.revoked) = (pins, revoked))
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "a file of kilobytes, when an order is given"
        )]
        let kept = tokio::task::spawn_blocking(kept).await;
        kept.map_err(|panic| Error::Ended(panic.to_string()))??;
    }
}

/// Who may read here by the upstream's word outlives a restart of a region.
pub(super) async fn keep_readers(
    desk: Arc<Desk>,
    decisions: Arc<Decisions>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut changes = desk.learned.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
        let readers = changes.borrow_and_update().readers.clone();
        let (decisions, feed) = (Arc::clone(&decisions), desk.feed.clone());
        let readers: Vec<Token> =
            readers.into_iter().map(|reader| reader_token(reader, &feed)).collect();
        if decisions.get().feeds.get(&feed).is_some_and(|kept| kept.readers == readers) {
            continue;
        }
        let kept = move || decisions.update_feed(&feed, |kept| kept.readers = readers);
        #[expect(clippy::disallowed_methods, reason = "a file of kilobytes, when a token is made")]
        let kept = tokio::task::spawn_blocking(kept).await;
        kept.map_err(|panic| Error::Ended(panic.to_string()))??;
    }
}

/// As the mirror keeps it: good for reading that feed and nothing else.
fn reader_token(reader: Reader, feed: &FeedName) -> Token {
    let Reader { id, hash, created, expires } = reader;
    let scope = Scope { role: Role::Reader, feed: Some(feed.clone()), region: None };
    Token { id, hash, scope, created, expires }
}

/// The orders that an earlier run kept; a pin whose commit never came is heard of again.
pub(super) fn kept(decided: &decisions::Feed, store: &Store) -> Orders {
    let pinned = |pin: &Pin| {
        Some(Pinned { target: pin.target.clone(), head: store.commit(pin.commit).ok()?.head })
    };
    let pins = decided.pins.iter().filter_map(pinned).collect();
    Orders { pins, revoked: decided.revoked.clone() }
}
