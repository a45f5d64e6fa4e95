//! Single objects that somebody waits for: of versions that were passed over on the way to the head, or
//! whose content was given up here while the upstream keeps it.
//!
//! Each is fetched once, however many wait; a few at a time, behind a bounded queue. An object that no
//! kept version needs goes with the next collection: what is asked for never adds up.

use std::collections::{HashMap, VecDeque};

use tokio::sync::oneshot;

use super::{
    Error,
    fetch::Fetcher,
    meter::{Meter, Shown},
    upstream::Upstream,
};
use crate::{
    bus::Unfetched,
    model::{Head, ObjectId},
    store::Lacking,
};

/// Objects that are fetched at the same time.
const PARALLEL: usize = 2;
/// Objects that may wait for that.
const MAX_QUEUED: usize = 64;
/// Who may wait for one object.
const MAX_WAITING: usize = 1_000;

/// Where the answer goes.
pub(super) type Answer = oneshot::Sender<Result<(), Unfetched>>;

/// An object, with its size.
pub(super) type Wanted = (ObjectId, u64);

/// What is asked for, and by whom.
#[derive(Default)]
pub(super) struct OnDemand {
    waiting: HashMap<ObjectId, Vec<Answer>>,
    queue: VecDeque<Wanted>,
    running: usize,
}

impl OnDemand {
    /// Somebody waits for an object.
    pub(super) fn ask(&mut self, wanted: Wanted, answer: Answer) {
        let is_full = match self.waiting.get(&wanted.0) {
            Some(others) => others.len() >= MAX_WAITING,
            None => self.queue.len() >= MAX_QUEUED,
        };
        if is_full {
            let _ = answer.send(Err(Unfetched::later("too much is asked for at once"))); // gone: fine
            return;
        }
        let others = self.waiting.entry(wanted.0).or_default();
        if others.is_empty() {
            self.queue.push_back(wanted);
        }
        others.push(answer);
    }

    /// What is to be fetched now; its end must be told.
    pub(super) fn begin(&mut self) -> Option<Wanted> {
        if self.running >= PARALLEL {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.running += 1;
        Some(next)
    }

    /// A fetch has ended.
    pub(super) fn ended(&mut self, id: ObjectId, result: &Result<(), Unfetched>) {
        self.running -= 1;
        for answer in self.waiting.remove(&id).unwrap_or_default() {
            let _ = answer.send(result.clone()); // it waits no longer: fine
        }
    }
}

impl Fetcher {
    /// Fetches one object whole, beside whatever else is under way. It takes no delta: those that are
    /// partly here are swept when a newer head is fetched.
    pub(super) async fn fetch_object(
        &self,
        upstream: &Upstream,
        head: Head,
        (id, size): Wanted,
    ) -> Result<(), Unfetched> {
        // What is shown is how far the head is.
        let shown = Shown::default();
        let meter = Meter::new(&shown, head, 0, size);
        let fetched = self.fetch_whole(upstream, &meter, Lacking { id, size, base: None }).await;
        self.store.settled(&id);
        fetched.map_err(|error| match error {
            Error::Answer { status: 410, message, .. } => Unfetched::Gone(message),
            error => Unfetched::Later(error.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_fetched_once_for_all_who_wait() {
        let object = |n: usize| (ObjectId::from_bytes([u8::try_from(n).unwrap(); 32]), 5);
        let mut demand = OnDemand::default();
        let mut answers = Vec::new();
        for n in [1, 1, 2, 3, 1] {
            let (answer, waits) = oneshot::channel();
            demand.ask(object(n), answer);
            answers.push(waits);
        }
        assert_eq!([demand.begin(), demand.begin()], [Some(object(1)), Some(object(2))]);
        assert_eq!(demand.begin(), None, "two at a time");
        demand.ended(object(1).0, &Ok(()));
        for (waits, done) in answers.iter_mut().zip([true, true, false, false, true]) {
            assert_eq!(waits.try_recv().is_ok(), done);
        }
        assert_eq!(demand.begin(), Some(object(3)));
        for n in 4..80 {
            demand.ask(object(n), oneshot::channel().0);
        }
        let (answer, mut refused) = oneshot::channel();
        demand.ask(object(99), answer);
        assert!(matches!(refused.try_recv(), Ok(Err(Unfetched::Later(_)))), "the queue is full");
    }
}
