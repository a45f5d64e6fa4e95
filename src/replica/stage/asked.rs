//! What the edge asks of a mirror: to look now, to bring a commit or an object, to mend the store.
//!
//! Whoever waits is answered once, and whoever waits no longer is forgotten.

use super::{Answer, Ended, MAX_WAITING, Stage};
use crate::{
    bus::{Request, Unfetched},
    model::{ObjectId, Oid},
    replica::{
        Error,
        event::{Effect, Event},
        fetch::Fetcher,
    },
};

const TOO_MANY: &str = "too many wait for a commit";

impl Stage {
    pub(super) fn take_request(&mut self, request: Request) {
        self.askers.retain(|asker| !asker.is_closed());
        self.waiting.retain(|(_, answer)| !answer.is_closed());
        match request {
            Request::Sync(answer) => {
                self.askers.push(answer);
                self.feed(Event::SyncRequested);
            }
            Request::Fetch(_, answer) if self.looks + self.waiting.len() >= MAX_WAITING => {
                let _ = answer.send(Err(TOO_MANY.to_owned())); // it waits no longer: fine
            }
            Request::Fetch(commit, answer) => self.look(commit, answer, 0),
            Request::Object { id, size, commit, answer } => {
                let head = self.follow.summary().fetched.map(|head| head.commit);
                if commit.is_some() && commit == head && self.fetcher.part.is_all() {
                    // What came with the head was here.
                    self.desk.store.alarm();
                }
                self.on_demand.ask((id, size), answer);
                self.bring_objects();
            }
            Request::Repair { history, objects, answer } => self.repair(history, objects, answer),
            Request::Report(ack) => self.carry_out(Effect::Report(ack)),
            other => other.refuse("this node mirrors the feed: ask its primary"),
        }
    }

    /// Brings back what the store lacks of its head.
    pub(super) fn repair(&mut self, history: bool, objects: Vec<(ObjectId, u64)>, answer: Answer) {
        let fetcher = Fetcher { sweeps: false, ..self.fetcher.clone() };
        let Some(upstream) = self.upstreams.get(self.follow.summary().upstream).cloned() else {
            let _ = answer.send(Err("there is no upstream".to_owned())); // it waits no longer: fine
            return;
        };
        self.tasks.spawn(async move {
            let repaired = match fetcher.store.head() {
                Ok(Some(head)) => fetcher.repair(&upstream, head, history, objects).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            let _ = answer.send(repaired.map_err(|error| error.to_string())); // it waits no longer: fine
            Ended::Talk
        });
    }

    /// Begins to fetch what downloads wait for.
    pub(super) fn bring_objects(&mut self) {
        while let Some(wanted) = self.on_demand.begin() {
            let summary = self.follow.summary();
            let (upstream, head) = (self.upstreams.get(summary.upstream), summary.fetched);
            let (Some(upstream), Some(head)) = (upstream.cloned(), head) else {
                let none = Unfetched::later("there is no upstream");
                self.on_demand.ended(wanted.0, &Err(none));
                continue;
            };
            let fetcher = self.fetcher.clone();
            self.tasks.spawn(async move {
                Ended::Object(wanted.0, fetcher.fetch_object(&upstream, head, wanted).await)
            });
        }
    }

    /// Looks whether a commit is here.
    pub(super) fn look(&mut self, commit: Oid, answer: Answer, looks: u32) {
        let (store, lane) = (self.desk.store.clone(), self.fetcher.lane.clone());
        self.looks += 1;
        self.tasks.spawn(async move {
            let found = lane.run(move || store.is_published(commit)).await;
            let found = found.map_err(Error::from).and_then(|found| Ok(found?));
            Ended::Look(commit, answer, looks + 1, found)
        });
    }

    pub(super) fn take_look(
        &mut self,
        commit: Oid,
        answer: Answer,
        looks: u32,
        found: Result<bool, Error>,
    ) -> Result<(), Error> {
        self.looks -= 1;
        let result = match found {
            Ok(true) => Ok(()),
            Ok(false) if self.waiting.len() >= MAX_WAITING => Err(TOO_MANY.to_owned()),
            Ok(false) if looks > 1 && self.follow.has_all_it_knows_of() => {
                Err("the upstream has no such commit".to_owned())
            }
            Ok(false) => {
                self.waiting.push((commit, answer));
                if looks == 1 {
                    self.feed(Event::SyncRequested);
                }
                return Ok(());
            }
            Err(error) if error.ends_the_stage() => return Err(error),
            Err(error) => Err(error.to_string()),
        };
        let _ = answer.send(result); // it waits no longer: fine
        Ok(())
    }
}
