//! How many downloads are sent at once: a place for each, a queue, and no more.
//!
//! Who finds all places taken waits in turn; who finds the queue full, or has waited for too long, is
//! told to come again. A place is given back when it is dropped, so a client that goes away frees it.
//! The limit can change while downloads are under way: what has begun goes on.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use super::error::Fault;

/// Longer than this nobody is kept waiting: clients give up after a minute.
const PATIENCE: Duration = Duration::from_secs(30);
/// When to come again.
const RETRY_SECS: u32 = 10;

/// The entrance to all downloads of a node.
pub(super) struct Gate {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None: any number.
    places: Option<usize>,
    max_queue: usize,
    sending: usize,
    queue: VecDeque<oneshot::Sender<Place>>,
    refused: u64,
}

/// What is going on at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crowd {
    /// Downloads under way.
    pub(super) sending: usize,
    /// Downloads that wait for a place.
    pub(super) waiting: usize,
    /// Downloads that were told to come again, so far.
    pub(super) refused: u64,
}

/// A download's place; dropping it lets the next one in.
pub(super) struct Place(Option<Arc<Gate>>);

impl Gate {
    /// With so many places and so long a queue.
    pub(super) fn new(places: Option<usize>, max_queue: usize) -> Arc<Self> {
        Arc::new(Gate { state: Mutex::new(State { places, max_queue, ..State::default() }) })
    }

    /// Changes both; who waits is let in if there is room now.
    pub(super) fn set(self: &Arc<Self>, places: Option<usize>, max_queue: usize) {
        let mut state = self.state();
        (state.places, state.max_queue) = (places, max_queue);
        while state.has_room()
            && let Some(next) = state.queue.pop_front()
        {
            state.sending += 1;
            drop(state);
            self.hand_over(next);
            state = self.state();
        }
    }

    /// A place, perhaps after waiting for one.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Place, Fault> {
        let waiting = {
            let mut state = self.state();
            if state.has_room() {
                state.sending += 1;
                return Ok(Place(Some(Arc::clone(self))));
            }
            state.line_up()
        };
        let waited = match waiting {
            Some(turn) => tokio::time::timeout(PATIENCE, turn).await.ok().and_then(Result::ok),
            None => None,
        };
        waited.ok_or_else(|| {
            self.state().refused += 1;
            Fault::unavailable("as many downloads as this node takes are under way", RETRY_SECS)
        })
    }

    /// What is going on.
    pub(super) fn crowd(&self) -> Crowd {
        let state = self.state();
        let waiting = state.queue.iter().filter(|turn| !turn.is_closed()).count();
        Crowd { sending: state.sending, waiting, refused: state.refused }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Gives a place that counts already to who waits, or to nobody if that one has gone.
    fn hand_over(self: &Arc<Self>, to: oneshot::Sender<Place>) {
        if let Err(mut place) = to.send(Place(Some(Arc::clone(self)))) {
            place.0 = None;
            self.leave();
        }
    }

    fn leave(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let room = state.places.is_none_or(|places| state.sending <= places);
            let Some(next) = room.then(|| state.queue.pop_front()).flatten() else {
                state.sending -= 1;
                return;
            };
            drop(state);
            match next.send(Place(Some(Arc::clone(self)))) {
                Ok(()) => return,
                // It has gone: the place is still to be given.
                Err(mut place) => place.0 = None,
            }
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.places.is_none_or(|places| self.sending < places)
    }

    /// A turn in the queue; none when it is full of clients that are still there.
    fn line_up(&mut self) -> Option<oneshot::Receiver<Place>> {
        if self.queue.len() >= self.max_queue {
            self.queue.retain(|turn| !turn.is_closed());
        }
        if self.queue.len() >= self.max_queue {
            return None;
        }
        let (turn, waiting) = oneshot::channel();
        self.queue.push_back(turn);
        Some(waiting)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(gate) = self.0.take() {
            gate.leave();
        }
    }
}

/// A body that keeps its place until it is sent.
pub(super) struct Placed<B> {
    inner: B,
    _place: Place,
}

impl Place {
    /// A body that keeps this place.
    pub(super) fn with<B>(self, inner: B) -> Placed<B> {
        Placed { inner, _place: self }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Placed<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.get_mut().inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn crowd(gate: &Gate) -> (usize, usize, u64) {
        let Crowd { sending, waiting, refused } = gate.crowd();
        (sending, waiting, refused)
    }

    #[tokio::test]
    async fn places_are_given_in_turn_and_never_more_than_there_are() {
        let gate = Gate::new(Some(1), 2);
        let first = gate.enter().await.unwrap();
        let (mut gone, mut second) = (Box::pin(gate.enter()), Box::pin(gate.enter()));
        assert!(poll(&mut gone).is_pending() && poll(&mut second).is_pending());
        assert!(gate.enter().await.is_err(), "the queue is full");
        assert_eq!(crowd(&gate), (1, 2, 1));
        drop(gone);
        let mut third = Box::pin(gate.enter());
        assert!(poll(&mut third).is_pending(), "who has gone leaves room in the queue");
        drop(first);
        let Poll::Ready(Ok(second)) = poll(&mut second) else { panic!("it is its turn") };
        assert!(poll(&mut third).is_pending());
        assert_eq!(crowd(&gate), (1, 1, 1));
        gate.set(Some(2), 2);
        let Poll::Ready(Ok(third)) = poll(&mut third) else { panic!("there is room now") };
        gate.set(Some(1), 2);
        let mut fourth = Box::pin(gate.enter());
        assert!(poll(&mut fourth).is_pending());
        drop(second);
        assert!(poll(&mut fourth).is_pending(), "one too many was under way");
        drop(third);
        assert!(poll(&mut fourth).is_ready());
        assert_eq!(crowd(&gate), (0, 0, 1));
    }

    #[tokio::test]
    async fn a_turn_that_comes_too_late_is_not_lost() {
        let gate = Gate::new(Some(1), 9);
        let first = gate.enter().await.unwrap();
        let mut late = Box::pin(gate.enter());
        assert!(poll(&mut late).is_pending());
        drop(first);
        drop(late);
        assert_eq!(crowd(&gate), (0, 0, 0));
        assert!(gate.enter().await.is_ok());
    }
}
