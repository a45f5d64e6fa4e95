//! What people decide about the nodes below: pins and revocations.
//!
//! Kept among the decisions and posted on the desk, from where every heartbeat carries them.

use super::{
    Setup,
    control::{now, text},
    session::Session,
};
use crate::{
    ledger::decisions::{Act, Feed, Pin},
    model::{MAX_PINS, MAX_REVOKED, Oid, Orders, Pinned, Target},
};

/// Posts the decisions as they are; a pin whose commit is not here any more says nothing.
pub(super) fn post(setup: &Setup) {
    let decided = setup.decisions.feed(&setup.feed);
    let pinned = |pin: Pin| {
        let head = setup.store.commit(pin.commit).ok()?.head;
        Some(Pinned { target: pin.target, head })
    };
    let pins = decided.pins.into_iter().filter_map(pinned).collect();
    setup.desk.orders.send_replace(Orders { pins, revoked: decided.revoked });
}

impl Session<'_, '_> {
    pub(super) fn pin(&self, commit: Oid, target: Target, by: String) -> Result<(), String> {
        let decided = self.setup.decisions.feed(&self.setup.feed);
        if decided.revoked.contains(&commit) {
            return Err(format!("commit {commit} is revoked"));
        }
        if decided.pins.len() >= MAX_PINS {
            return Err(format!("there are {MAX_PINS} pins already: unpin some"));
        }
        let pin = Pin { target, commit, act: Act { since: now(), by } };
        self.decide(|feed| {
            feed.pins.retain(|other| other.target != pin.target);
            feed.pins.push(pin);
        })
    }

    pub(super) fn unpin(&self, target: &Target) -> Result<(), String> {
        let pins = self.setup.decisions.feed(&self.setup.feed).pins;
        if !pins.iter().any(|pin| pin.target == *target) {
            return Err("there is no such pin".to_owned());
        }
        self.decide(|feed| feed.pins.retain(|pin| pin.target != *target))
    }

    pub(super) fn revoke(&self, commit: Oid) -> Result<(), String> {
        let decided = self.setup.decisions.feed(&self.setup.feed);
        if decided.pins.iter().any(|pin| pin.commit == commit) {
            return Err(format!("nodes are pinned to commit {commit}: unpin them first"));
        }
        if decided.revoked.len() >= MAX_REVOKED {
            return Err(format!("{MAX_REVOKED} commits are revoked already"));
        }
        self.decide(|feed| {
            feed.revoked.insert(commit);
        })
    }

    fn decide(&self, change: impl FnOnce(&mut Feed)) -> Result<(), String> {
        self.setup.decisions.update_feed(&self.setup.feed, change).map_err(text)?;
        post(self.setup);
        Ok(())
    }
}
