//! The conversations: each end of a connection knows its own state only, and what is said may be lost.

use super::*;

impl World {
    pub(super) fn connect(&mut self, mirror: usize, (run, dial): (u64, u64), upstream: usize) {
        if self.nodes[mirror].run != run {
            return;
        }
        let number = self.nodes[mirror].upstreams[upstream];
        let it = self.nodes[mirror].mirror().expect("it connects");
        if it.dial != dial {
            return; // it has hung up meanwhile
        }
        it.connecting = false;
        if !self.reaches(mirror, number) {
            let reason = format!("n{number} cannot be reached");
            return self.feed(mirror, Event::Disconnected { reason });
        }
        let now = self.now;
        let it = &self.nodes[mirror];
        let hello = Hello {
            region: it.region.clone(),
            have: it.have,
            fetched: it.fetched,
            ..Hello::of(it.id.clone(), it.label.clone())
        };
        let paused = self.is_paused(number, mirror);
        let it = &mut self.nodes[number];
        let head = it.fetched;
        let caller = Caller { hello, url: None, token: None };
        let (connection, standing) = it.roster.register(now, caller, head).expect("there is room");
        self.tell(|_| format!("n{mirror} follows n{number}: {standing:?}"));
        let link = self.links.len();
        self.links.push(Link {
            follower: mirror,
            upstream: number,
            runs: (run, self.nodes[number].run),
            dead: false,
            follower_open: true,
            upstream_open: true,
            connection,
            told: head.map(|head| head.commit),
            heard: (now, now),
            last: (now, now),
        });
        self.nodes[mirror].mirror().expect("it connects").link = Some(link);
        self.send_down(link, Down::Welcome { head, paused });
        self.later(HEARTBEAT, Happening::Beat(link));
        self.attend(number);
    }

    pub(super) fn is_paused(&self, upstream: usize, mirror: usize) -> bool {
        let it = &self.nodes[mirror];
        let about = |target: &Target| target.is_about(&it.id, it.region.as_ref());
        self.nodes[upstream].paused.iter().any(about)
    }

    pub(super) fn send_down(&mut self, link: usize, frame: Down) {
        let is_first = matches!(frame, Down::Welcome { .. });
        if self.links[link].dead || (!is_first && self.is_lost()) {
            return;
        }
        let mut at = self.now + self.delay();
        let last = &mut self.links[link].last.0;
        if !self.plan.reorders || is_first {
            at = at.max(*last);
        }
        *last = at.max(*last);
        self.at(at, Happening::Down(link, frame));
    }

    pub(super) fn send_up(&mut self, link: usize, frame: FromFollower) {
        if self.links[link].dead || self.is_lost() {
            return;
        }
        let mut at = self.now + self.delay();
        let last = &mut self.links[link].last.1;
        if !self.plan.reorders {
            at = at.max(*last);
        }
        *last = at.max(*last);
        self.at(at, Happening::Up(link, frame));
    }

    pub(super) fn announce(&mut self, link: usize) {
        let Link { follower, upstream, upstream_open, told, .. } = self.links[link];
        let Some(head) = self.nodes[upstream].fetched.filter(|_| upstream_open) else { return };
        if told == Some(head.commit) || self.is_paused(upstream, follower) {
            return; // one slot: a newer head has taken its place already
        }
        let parent = self.history.get(head.commit).parent;
        let inside = parent == told && self.random.percent(70);
        self.links[link].told = Some(head.commit);
        self.send_down(link, Down::Announce { head, parent, inside });
    }

    /// Every five seconds: a sign of life, and whether there was one.
    pub(super) fn beat(&mut self, link: usize) {
        let Link { follower, upstream, follower_open, upstream_open, heard, .. } = self.links[link];
        if !follower_open && !upstream_open {
            return;
        }
        if follower_open && self.now - heard.0 >= SILENCE {
            self.end_at_follower(link, "silent");
        }
        if upstream_open && self.now - heard.1 >= SILENCE {
            self.end_at_upstream(link);
            self.tell_other_end(link, true);
        } else if upstream_open {
            let head = self.nodes[upstream].fetched;
            let paused = self.is_paused(upstream, follower);
            self.send_down(link, Down::Heartbeat { head, paused });
        }
        self.check_roster(upstream);
        self.later(HEARTBEAT, Happening::Beat(link));
    }

    pub(super) fn end_at_follower(&mut self, link: usize, why: &str) {
        let Link { follower, runs, follower_open, .. } = self.links[link];
        if !follower_open || self.nodes[follower].run != runs.0 {
            return;
        }
        self.links[link].follower_open = false;
        self.tell_other_end(link, false);
        let Some(mirror) = self.nodes[follower].mirror() else { return };
        if mirror.link == Some(link) {
            mirror.link = None;
            self.feed(follower, Event::Disconnected { reason: why.to_owned() });
        }
    }

    pub(super) fn end_at_upstream(&mut self, link: usize) {
        let Link { follower, upstream, runs, upstream_open, connection, .. } = self.links[link];
        self.links[link].upstream_open = false;
        if upstream_open && self.nodes[upstream].run == runs.1 {
            let id = self.nodes[follower].id.clone();
            self.nodes[upstream].roster.gone(&id, connection);
        }
    }

    pub(super) fn hear_up(&mut self, link: usize, frame: FromFollower) {
        let Link { follower, upstream, upstream_open, connection, dead, .. } = self.links[link];
        if !upstream_open || dead {
            return;
        }
        self.links[link].heard.1 = self.now;
        let id = self.nodes[follower].id.clone();
        let took = self.nodes[upstream].roster.take(self.now, &id, connection, frame);
        if took.is_none() {
            self.end_at_upstream(link);
            self.tell_other_end(link, true);
        }
        self.attend(upstream);
    }

    pub(super) fn hear_down(&mut self, link: usize, frame: Down) {
        let Link { follower, follower_open, dead, .. } = self.links[link];
        if !follower_open || dead {
            return;
        }
        self.links[link].heard.0 = self.now;
        let ask = |paused| Event::Asked(Manner { paused, spread: Duration::ZERO });
        match frame {
            Down::Welcome { head, paused } => {
                self.feed(follower, ask(paused));
                self.feed(follower, Event::Welcomed { head });
            }
            Down::Announce { head, parent, inside } => {
                let pack = inside.then(|| b"pack".as_slice().into());
                self.feed(follower, Event::Announced { head, parent, pack });
            }
            Down::Heartbeat { head, paused } => {
                self.feed(follower, ask(paused));
                self.feed(follower, Event::HeartbeatHeard { head });
                self.answer(follower, link);
            }
        }
    }

    /// The answer to a heartbeat: what it has, and what those below it have.
    pub(super) fn answer(&mut self, node: usize, link: usize) {
        let it = &mut self.nodes[node];
        let Some(mirror) = it.mirror() else { return };
        let waits = mirror.follow.excuse();
        let paused = mirror.follow.waits().is_some();
        let summary = mirror.follow.summary();
        let error = summary.last_error.or(summary.detail.filter(|_| summary.state == "refused"));
        let pulse = Pulse { have: it.have, fetched: it.fetched, waits, paused, error };
        let nodes = it.roster.reports(self.now, &it.id, &it.paused);
        self.send_up(link, FromFollower::Heartbeat(pulse));
        if !nodes.is_empty() {
            self.send_up(link, FromFollower::Below(Below { nodes }));
        }
    }
}
