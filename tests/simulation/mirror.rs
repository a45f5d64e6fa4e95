//! The mirror's shell: carries out what `Follow` decides, over a network and a disk that fail.

use super::*;

impl World {
    pub(super) fn feed(&mut self, node: usize, event: Event) {
        let now = self.now;
        let Some(mirror) = self.nodes[node].mirror() else { return };
        let effects = mirror.follow.step(now, event);
        let next = mirror.follow.deadline();
        assert!(next.is_none_or(|at| at > now), "n{node} would spin");
        for effect in effects {
            self.carry_out(node, effect);
        }
        self.attend(node);
    }

    pub(super) fn carry_out(&mut self, node: usize, effect: Effect) {
        let run = self.nodes[node].run;
        let fetched = self.nodes[node].fetched;
        match effect {
            Effect::Connect(upstream) => {
                let mirror = self.nodes[node].mirror().expect("it has decided");
                assert!(mirror.link.is_none() && !mirror.connecting, "one connection");
                mirror.connecting = true;
                let dial = mirror.dial;
                let after = self.delay();
                self.later(after, Happening::Connect { mirror: node, run, dial, upstream });
            }
            Effect::Disconnect => {
                let mirror = self.nodes[node].mirror().expect("it has decided");
                mirror.dial += 1;
                mirror.connecting = false;
                if let Some(link) = mirror.link.take() {
                    self.links[link].follower_open = false;
                    self.tell_other_end(link, false);
                }
            }
            Effect::Poll => {
                let mirror = self.nodes[node].mirror().expect("it has decided");
                assert!(!std::mem::replace(&mut mirror.polling, true), "one poll at a time");
                let after = self.delay();
                self.later(after, Happening::Poll { mirror: node, run });
            }
            Effect::Receive { upstream, parcels } => {
                let mut parent = fetched.map(|head| head.commit);
                for parcel in &parcels {
                    assert_eq!(parcel.parent, parent, "packs come in order");
                    parent = Some(parcel.head.commit);
                }
                let want = parcels.last().expect("something came").head;
                self.fetch(node, Job { mirror: node, run, upstream, have: fetched, want, parcels });
            }
            Effect::Fetch { upstream, have, want } => {
                assert!(have.is_none() || have == fetched, "it builds on what it has");
                let parcels: Vec<Parcel> = Vec::new();
                self.fetch(node, Job { mirror: node, run, upstream, have, want, parcels });
            }
            Effect::CheckOut(head) => {
                assert_eq!(Some(head), fetched, "only what is here is put in place");
                let mirror = self.nodes[node].mirror().expect("it has decided");
                assert!(!std::mem::replace(&mut mirror.placing, true), "one checkout at a time");
                let lasts = self.disk();
                self.later(lasts, Happening::Place { mirror: node, run, head });
            }
            Effect::Report(ack) => self.report(node, ack),
            Effect::Alarm(refusal) => {
                self.tell(|_| format!("n{node} refuses: {refusal}"));
                let is_right = self.plan.rivals || self.plan.reorders;
                assert!(is_right, "n{node} alarms for nothing: {refusal}");
            }
        }
    }

    pub(super) fn report(&mut self, node: usize, ack: Ack) {
        if ack.outcome == Outcome::Verified {
            let it = &self.nodes[node];
            assert_eq!(it.have, Some(ack.head), "what is acknowledged is durable");
            assert_eq!(it.dir, Some(self.history.tree(it.have)), "and is what lies there");
        }
        if let Some(link) = self.nodes[node].mirror().and_then(|mirror| mirror.link) {
            self.send_up(link, FromFollower::Ack(ack));
        }
    }

    pub(super) fn polled(&mut self, node: usize, run: u64) {
        if self.nodes[node].run != run {
            return;
        }
        let all: Vec<usize> = self.nodes[node].upstreams.clone();
        let answers = all.iter().enumerate().filter(|(_, upstream)| self.reaches(node, **upstream));
        let heads: Vec<_> = answers.map(|(at, up)| (at, self.nodes[*up].fetched)).collect();
        let after = self.delay();
        self.later(after, Happening::Answered { mirror: node, run, heads });
    }

    pub(super) fn answered(&mut self, node: usize, run: u64, heads: Vec<(usize, Option<Head>)>) {
        if self.nodes[node].run == run {
            self.nodes[node].mirror().expect("it has asked").polling = false;
            self.feed(node, Event::Polled { heads });
        }
    }

    pub(super) fn fetch(&mut self, node: usize, job: Job) {
        let step = job.want.step_from(self.nodes[node].fetched.as_ref());
        assert!(matches!(step, Step::Forward | Step::NewEpoch), "n{node} would go {step:?}");
        let mirror = self.nodes[node].mirror().expect("it has decided");
        assert!(!std::mem::replace(&mut mirror.fetching, true), "one fetch at a time");
        if job.parcels.is_empty() {
            let after = self.delay();
            self.later(after, Happening::Begin(job));
        } else {
            let after = self.disk();
            self.later(after, Happening::Came(job));
        }
    }

    /// The upstream is asked for a pack.
    pub(super) fn begin(&mut self, job: Job) {
        let upstream = self.nodes[job.mirror].upstreams.get(job.upstream).copied();
        let Some(upstream) = upstream.filter(|_| self.nodes[job.mirror].run == job.run) else {
            return;
        };
        if !self.reaches(job.mirror, upstream) || (!self.calm && self.random.percent(10)) {
            return self.lost(job.mirror, job.run, Failure::Again);
        }
        let there = self.nodes[upstream].fetched;
        if !there.is_some_and(|there| self.history.descends(there, Some(job.want))) {
            return self.lost(job.mirror, job.run, Failure::Gone);
        }
        let differs = differing(&self.history.tree(job.have), &self.history.tree(Some(job.want)));
        let bytes = 200 + differs as u64 * 20_000;
        self.nodes[upstream].sending.begin(self.now, job, bytes);
        self.pump(upstream, self.nodes[upstream].run);
    }

    pub(super) fn pump(&mut self, node: usize, run: u64) {
        if self.nodes[node].run != run || !self.nodes[node].up {
            return;
        }
        for job in self.nodes[node].sending.pump(self.now) {
            let after = self.delay() + self.disk();
            self.later(after, Happening::Came(job));
        }
        if let Some(at) = self.nodes[node].sending.pump_at {
            self.at(at, Happening::Pump(node, run));
        }
    }

    pub(super) fn lost(&mut self, node: usize, run: u64, failure: Failure) {
        if self.nodes[node].run != run {
            return;
        }
        let Some(mirror) = self.nodes[node].mirror() else { return };
        mirror.fetching = false;
        let reason = format!("{failure:?}");
        self.feed(node, Event::FetchFailed { failure, reason });
    }

    /// All of a pack has come.
    pub(super) fn came(&mut self, job: Job) {
        let Job { mirror: node, run, want, .. } = job;
        if self.nodes[node].run != run {
            return;
        }
        if !self.calm && self.random.percent(3) {
            return self.lost(node, run, Failure::Afresh);
        }
        let fetched = self.nodes[node].fetched;
        let is_new_owner = fetched.is_some_and(|have| want.epoch > have.epoch);
        self.nodes[node].mirror().expect("it has asked").fetching = false;
        if !is_new_owner && !self.history.descends(want, fetched) {
            assert!(self.plan.rivals, "two lines, and one owner");
            return self.feed(node, Event::FetchSplit { head: want });
        }
        let step = want.step_from(fetched.as_ref());
        assert!(matches!(step, Step::Forward | Step::NewEpoch), "n{node} goes {step:?}");
        self.tell(|_| format!("n{node} has fetched {} of epoch {}", want.seq, want.epoch));
        self.nodes[node].fetched = Some(want);
        self.post(node, want);
        self.feed(node, Event::Fetched { head: want });
    }

    pub(super) fn placed(&mut self, node: usize, run: u64, head: Head) {
        if self.nodes[node].run != run {
            return;
        }
        self.nodes[node].mirror().expect("it places").placing = false;
        if !self.calm && self.random.percent(6) {
            self.nodes[node].dir = None;
            return self.feed(node, Event::CheckoutFailed { reason: "no space".to_owned() });
        }
        if let Some(have) = self.nodes[node].have {
            let step = head.step_from(Some(&have));
            assert!(
                matches!(step, Step::Forward | Step::NewEpoch | Step::Same),
                "n{node} takes its directory {step:?}"
            );
        }
        self.nodes[node].dir = Some(self.history.tree(Some(head)));
        self.nodes[node].have = Some(head);
        self.feed(node, Event::CheckedOut { head });
    }
}
