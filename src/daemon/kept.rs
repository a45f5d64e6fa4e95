//! What a node has heard or settled and goes on with when it starts alone: who serves which region, and
//! at a region the primary's pins, revocations and readers.
//!
//! Each is written whole when it changes, and only then. The primary's own orders are written where
//! they are decided.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::{
    bus::{Desk, Reader},
    ledger::{
        Decisions,
        decisions::{self, Act, Pin},
        tokens::Token,
    },
    model::{Bindings, FeedName, Orders, Pinned, Role, Scope},
    store::Store,
    sys,
};

/// Of what, where, and for how long.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) desk: Arc<Desk>,
    pub(super) decisions: Arc<Decisions>,
    pub(super) stop: CancellationToken,
}

impl Kept {
    /// Which node serves which region.
    pub(super) async fn bindings(self) -> Result<(), Error> {
        let write = |bindings: Bindings, kept: &mut decisions::Feed| kept.bindings = bindings;
        self.keep(self.desk.bindings.subscribe(), Bindings::clone, write).await
    }

    /// What the primary last said of pins and revocations.
    pub(super) async fn orders(self) -> Result<(), Error> {
        let mut changes = self.desk.orders.subscribe();
        // One may have come before this began.
        changes.mark_changed();
        let write = |Orders { pins, revoked }: Orders, kept: &mut decisions::Feed| {
            let act = Act { since: sys::now().into(), by: "the upstream".to_owned() };
            let pin =
                |pin: Pinned| Pin { target: pin.target, commit: pin.head.commit, act: act.clone() };
            (kept.pins, kept.revoked) = (pins.into_iter().map(pin).collect(), revoked);
        };
        self.keep(changes, Orders::clone, write).await
    }

    /// Who may read here by the upstream's word.
    pub(super) async fn readers(self) -> Result<(), Error> {
        let feed = self.desk.feed.clone();
        let write = move |readers: Vec<Reader>, kept: &mut decisions::Feed| {
            let readers = readers.into_iter().map(|reader| reader_token(reader, &feed));
            kept.readers = readers.collect();
        };
        let changes = self.desk.learned.subscribe();
        self.keep(changes, |learned| learned.readers.clone(), write).await
    }

    /// Writes what is picked of each value, where that differs.
    async fn keep<T, V: Clone + PartialEq + Send + 'static>(
        &self,
        mut changes: watch::Receiver<T>,
        pick: fn(&T) -> V,
        write: impl Fn(V, &mut decisions::Feed) + Clone + Send + 'static,
    ) -> Result<(), Error> {
        let mut last = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                changed = changes.changed() => if changed.is_err() { return Ok(()) },
            }
            let value = pick(&changes.borrow_and_update());
            if last.as_ref() == Some(&value) {
                continue;
            }
            last = Some(value.clone());
            let (decisions, feed) = (Arc::clone(&self.decisions), self.desk.feed.clone());
            let write = write.clone();
            let kept = move || decisions.update_feed(&feed, |kept| write(value, kept));
            #[expect(
                clippy::disallowed_methods,
                reason = "a file of kilobytes, when something changes"
            )]
            let kept = tokio::task::spawn_blocking(kept).await;
            kept.map_err(|panic| Error::Ended(panic.to_string()))??;
        }
    }
}

/// As the mirror keeps it: good for reading that feed and nothing else.
fn reader_token(reader: Reader, feed: &FeedName) -> Token {
    let Reader { id, hash, created, expires } = reader;
    let scope = Scope { role: Role::Reader, feed: Some(feed.clone()), region: None };
    Token { id, hash, scope, created, expires }
}

/// The orders that an earlier run kept; a pin whose commit never came is heard of again.
pub(super) fn orders(decided: &decisions::Feed, store: &Store) -> Orders {
    let pinned = |pin: &Pin| {
        Some(Pinned { target: pin.target.clone(), head: store.commit(pin.commit).ok()?.head })
    };
    let pins = decided.pins.iter().filter_map(pinned).collect();
    Orders { pins, revoked: decided.revoked.clone() }
}
