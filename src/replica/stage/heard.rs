//! What a mirror hears from its upstream, and what that comes to here: heads for `follow`, orders and
//! standing for the desk.
//!
//! A sign of life is what the upstream has said; that a conversation is over is none.

use std::time::{Duration, Instant, UNIX_EPOCH};

use tracing::{info, warn};

use super::{LONGEST_SPREAD, Stage};
use crate::{
    bus::{Trust, frame::Standing},
    model::Orders,
    replica::{
        connection::Heard,
        event::{Event, Manner},
    },
    sys,
};

impl Stage {
    pub(super) fn take_heard(&mut self, heard: Heard) {
        if !matches!(heard, Heard::Ended(_)) {
            self.desk.state.send_modify(|state| state.heartbeat = Some(Instant::now()));
        }
        match heard {
            Heard::Welcome(welcome) => {
                info!(feed = %self.desk.feed, upstream = %welcome.label, "following");
                if let Some(warning) = &welcome.warning {
                    warn!(feed = %self.desk.feed, "{warning}");
                }
                self.desk.profile.send_replace(welcome.profile);
                self.stand(welcome.standing);
                self.take_orders(&welcome.orders);
                self.learn(welcome.trust);
                self.reports.begin_again(Instant::now());
                self.ask(welcome.paused, welcome.spread_ms);
                self.feed(Event::Welcomed { head: welcome.head });
            }
            Heard::Announce(announce, pack) => {
                self.feed(Event::Announced { head: announce.head, parent: announce.parent, pack });
            }
            Heard::Heartbeat(beat) => {
                self.stand(beat.standing);
                self.take_orders(&beat.orders);
                self.learn(beat.trust);
                self.reports.changed(Instant::now());
                self.ask(beat.paused, beat.spread_ms);
                self.feed(Event::HeartbeatHeard { head: beat.head });
            }
            Heard::Ended(reason) => {
                self.link = None;
                let name = reason.name();
                let reason = reason.to_string();
                if self.follow.summary().detail.as_ref() != Some(&reason) {
                    warn!(feed = %self.desk.feed, "{reason}");
                }
                self.feed(match name {
                    Some(name) => Event::Barred { name, reason },
                    None => Event::Disconnected { reason },
                });
            }
        }
    }

    /// Pins and revocations: kept by whoever assembles the node, and handed on to those below.
    pub(super) fn take_orders(&mut self, orders: &Orders) {
        let differs = self.desk.orders.send_if_modified(|known| {
            let differs = known != orders;
            if differs {
                known.clone_from(orders);
            }
            differs
        });
        if differs {
            self.obey(orders);
        }
    }

    /// Who may read here: kept by whoever assembles the node.
    pub(super) fn learn(&self, said: Option<Trust>) {
        let now = sys::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        self.desk.learned.send_modify(|learned| learned.take(said, now));
    }

    pub(super) fn obey(&mut self, orders: &Orders) {
        let pin = orders.pin_of(&self.hello.node, self.hello.region.as_ref());
        self.feed(Event::Ordered { pin, revoked: orders.revoked.clone() });
    }

    pub(super) fn ask(&mut self, paused: bool, spread_ms: u64) {
        let spread = Duration::from_millis(spread_ms).min(LONGEST_SPREAD);
        self.feed(Event::Asked(Manner { paused, spread }));
    }

    pub(super) fn stand(&self, standing: Standing) {
        self.desk.state.send_if_modified(|state| {
            let differs = state.standing != standing;
            state.standing = standing;
            differs
        });
    }
}
