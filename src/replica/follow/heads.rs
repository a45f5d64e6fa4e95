//! What a mirror makes of a head that it hears: it follows ours, it is behind, or it is on another line.
//!
//! An odd head is never taken; it is alarmed on once it was heard often enough to be meant.

use std::time::Instant;

use super::{Follow, Link, ODD_ALONE, ODD_HEADS};
use crate::{
    bus::frame::{Ack, Outcome},
    model::{Head, Step},
    replica::event::{Effect, Refusal},
};

impl Follow {
    /// Takes note of the head that the upstream has.
    pub(super) fn hear(&mut self, now: Instant, head: Option<Head>, effects: &mut Vec<Effect>) {
        if self.options.upstreams == 1 {
            self.poll_at = now + self.options.poll;
        }
        if !self.follows(head) {
            if self.options.upstreams > 1 && self.is_behind(head) {
                self.lagging = true;
                self.poll_at = now;
                return;
            }
            self.odd += 1;
            if self.odd >= ODD_HEADS {
                self.refuse(head, effects);
            }
            return;
        }
        self.odd = 0;
        self.lagging = false;
        self.refusal = None;
        if head != self.want && head != self.fetched && !self.manner.spread.is_zero() {
            let is_set = self.spread_until.is_some_and(|until| until > now);
            if !is_set {
                self.spread_until = Some(now + self.reconnect.share(self.manner.spread));
            }
        }
        self.want = head;
        if self.want == self.fetched {
            self.fetch_error = None;
        }
        if self.want == self.have {
            self.wanting_since = None;
        } else {
            self.wanting_since.get_or_insert(now);
        }
    }

    /// Whether we may move to that head, or are there.
    pub(super) fn follows(&self, head: Option<Head>) -> bool {
        match head {
            None => self.fetched.is_none(),
            Some(head) if Some(head) == self.split => false,
            Some(head) => {
                !matches!(head.step_from(self.fetched.as_ref()), Step::Behind | Step::Split)
            }
        }
    }

    /// Whether it is an older one of our own line, as far as that can be told.
    pub(super) fn is_behind(&self, head: Option<Head>) -> bool {
        head.is_none_or(|head| head.step_from(self.fetched.as_ref()) == Step::Behind)
    }

    pub(super) fn refuse(&mut self, head: Option<Head>, effects: &mut Vec<Effect>) {
        let Some(have) = self.fetched else { return };
        let is_new = self.refusal.is_none();
        let refusal = Refusal { head, have };
        self.refusal = Some(refusal);
        self.want = None;
        self.begun = None;
        if is_new {
            effects.push(Effect::Alarm(refusal));
            let refused = head.unwrap_or(have);
            effects.push(Effect::Report(Ack::new(
                refused,
                Outcome::Refused,
                0,
                Some(&refusal.to_string()),
            )));
        }
    }

    /// Several upstreams: the one of the highest epoch is followed.
    pub(super) fn compare(
        &mut self,
        now: Instant,
        heads: &[(usize, Option<Head>)],
        effects: &mut Vec<Effect>,
    ) {
        self.polling = false;
        let epoch = |head: Option<Head>| head.map_or(0, |head| head.epoch);
        let of_ours = heads.iter().find(|(upstream, _)| *upstream == self.upstream);
        let good = heads.iter().filter(|(_, head)| head.is_some() && self.follows(*head));
        let best = good.max_by_key(|(upstream, head)| (epoch(*head), *upstream == self.upstream));
        if let Some(&(upstream, head)) = best
            && upstream != self.upstream
            && (self.refusal.is_some()
                || self.lagging
                || self.link != Link::Up
                || epoch(head) > epoch(self.want))
        {
            effects.push(Effect::Disconnect);
            self.upstream = upstream;
            self.link = Link::Down;
            self.reconnect.reset();
            self.parcels.clear();
            self.hear(now, head, effects);
        } else if let Some(&(_, head)) = of_ours {
            if self.options.upstreams == 1 || self.follows(head) || !self.is_behind(head) {
                return self.hear(now, head, effects);
            }
            self.odd += 1;
            let all_say_so = heads.len() == self.options.upstreams;
            if self.odd >= if all_say_so { ODD_HEADS } else { ODD_ALONE } {
                self.refuse(head, effects);
            }
        }
    }
}
