//! The async shell of the rate tree: response bodies that send no more than they are granted.
//!
//! What is not limited passes after one look at a flag. A body that must wait leaves its waker here
//! and `pace`, which runs beside the server, wakes it when its turn has come; so changed limits hold
//! at once for bodies under way.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use crate::model::{Flow, RatePlan, RateTree, Receiver, Traffic};

/// What is sent at once; set it with [`Throttle::set_plan`].
#[derive(Clone)]
pub struct Throttle {
    inner: Arc<Inner>,
}

struct Inner {
    limited: AtomicBool,
    start: Instant,
    state: Mutex<State>,
    /// Someone began to wait, or the limits changed.
    changed: Notify,
}

struct State {
    tree: RateTree,
    waits: HashMap<Flow, Wait>,
    /// When `pace` steps next.
    wake_at: Option<Duration>,
}

#[derive(Default)]
struct Wait {
    granted: u64,
    waker: Option<Waker>,
}

impl Throttle {
    /// With these limits.
    #[must_use]
    pub fn new(plan: RatePlan) -> Self {
        let limited = AtomicBool::new(!plan.is_unlimited());
        let state = State { tree: RateTree::new(plan), waits: HashMap::new(), wake_at: None };
        let (start, changed) = (Instant::now(), Notify::new());
        Throttle { inner: Arc::new(Inner { limited, start, state: Mutex::new(state), changed }) }
    }

    /// The limits.
    #[must_use]
    pub fn plan(&self) -> RatePlan {
        self.inner.state().tree.plan().clone()
    }

    /// Transfers of a class that wait for their turn.
    pub(super) fn waiting(&self, class: Traffic) -> usize {
        self.inner.state().tree.waiting(class)
    }

    /// Puts other limits in force, for bodies under way too.
    pub fn set_plan(&self, plan: RatePlan) {
        let mut state = self.inner.state();
        self.inner.limited.store(!plan.is_unlimited(), Relaxed);
        state.tree.set_plan(self.inner.start.elapsed(), plan);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Whether anything is limited now.
    pub(super) fn is_limited(&self) -> bool {
        self.inner.limited.load(Relaxed)
    }

    /// A body that keeps to the limits for `to`, and counts what of it is `sent`.
    pub(super) fn body<B>(&self, inner: B, to: Receiver, sent: Arc<AtomicU64>) -> Throttled<B> {
        Throttled { inner, pending: Bytes::new(), flow: None, to, throttle: self.clone(), sent }
    }

    /// Wakes bodies when their turn comes; never ends by itself.
    pub(super) async fn pace(&self) {
        loop {
            let wake_at = self.inner.step().map(|at| self.inner.start + at);
            let changed = self.inner.changed.notified();
            match wake_at {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Gives what there is now, wakes who got some, and says when to step again.
    fn step(&self) -> Option<Duration> {
        let mut state = self.state();
        state.step(self.start.elapsed());
        state.wake_at
    }

    /// What a body may send of `bytes` now.
    fn poll_grant(&self, flow: Flow, bytes: u64, cx: &Context<'_>) -> Poll<u64> {
        let mut state = self.state();
        let now = self.start.elapsed();
        if state.waits.get(&flow).is_none_or(|wait| wait.granted == 0) {
            state.tree.want(flow, bytes);
            state.waits.entry(flow).or_default().waker = None;
            let before = state.wake_at;
            state.step(now);
            if state.wake_at != before {
                self.changed.notify_one();
            }
        }
        let wait = state.waits.entry(flow).or_default();
        if wait.granted > 0 {
            return Poll::Ready(std::mem::take(&mut wait.granted));
        }
        wait.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl State {
    fn step(&mut self, now: Duration) {
        let stepped = self.tree.step(now);
        self.wake_at = stepped.wake_at;
        for grant in stepped.grants {
            let wait = self.waits.entry(grant.flow).or_default();
            wait.granted += grant.bytes;
            if let Some(waker) = wait.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A body that sends what it is granted.
pub(super) struct Throttled<B> {
    inner: B,
    /// Of the frame that is being sent, what is still to come.
    pending: Bytes,
    flow: Option<Flow>,
    to: Receiver,
    throttle: Throttle,
    sent: Arc<AtomicU64>,
}

impl<B> Throttled<B> {
    /// The next piece of the pending frame.
    fn poll_piece(&mut self, cx: &Context<'_>) -> Poll<Bytes> {
        if !self.throttle.is_limited() && self.flow.is_none() {
            return Poll::Ready(std::mem::take(&mut self.pending));
        }
        let inner = &self.throttle.inner;
        let flow = *self
            .flow
            .get_or_insert_with(|| inner.state().tree.open(inner.start.elapsed(), self.to.clone()));
        let granted = ready!(inner.poll_grant(flow, self.pending.len() as u64, cx));
        let granted = usize::try_from(granted).unwrap_or(usize::MAX).min(self.pending.len());
        Poll::Ready(self.pending.split_to(granted))
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Throttled<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        while this.pending.is_empty() {
            match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pending = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = ready!(this.poll_piece(cx));
        this.sent.fetch_add(piece.len() as u64, Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pending.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let pending = self.pending.len() as u64;
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + pending);
        }
        hint.set_lower(hint.lower() + pending);
        hint
    }
}

impl<B> Drop for Throttled<B> {
    fn drop(&mut self) {
        let Some(flow) = self.flow else { return };
        let mut state = self.throttle.inner.state();
        state.tree.close(flow);
        state.waits.remove(&flow);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn receiver() -> Receiver {
        Receiver { class: Traffic::Downloads, client: [10, 0, 0, 1].into(), region: None }
    }

    fn plan(kilobytes: u64) -> RatePlan {
        RatePlan { total: crate::model::Rate::new(kilobytes * 1000), ..RatePlan::default() }
    }

    async fn drain(body: Throttled<Full<Bytes>>) -> usize {
        body.collect().await.unwrap().to_bytes().len()
    }

    #[tokio::test]
    async fn a_body_keeps_to_its_limit_and_to_its_bytes() {
        let throttle = Throttle::new(plan(1000));
        let data = Bytes::from(vec![7; 250_000]);
        let body = throttle.body(Full::new(data), receiver(), Arc::default());
        assert_eq!(body.size_hint().exact(), Some(250_000));
        let begin = Instant::now();
        let sent = tokio::select! { sent = drain(body) => sent, () = throttle.pace() => 0 };
        assert_eq!(sent, 250_000);
        // All but the burst of 50 kB comes at 1 MB/s.
        assert!(begin.elapsed() >= Duration::from_millis(199), "{:?}", begin.elapsed());
        assert!(throttle.inner.state().waits.is_empty());
    }

    #[tokio::test]
    async fn a_changed_limit_reaches_a_body_that_waits() {
        let throttle = Throttle::new(plan(1));
        let body =
            throttle.body(Full::new(Bytes::from(vec![7; 1_000_000])), receiver(), Arc::default());
        let change = async {
            while throttle.inner.state().waits.is_empty() {
                tokio::task::yield_now().await;
            }
            throttle.set_plan(RatePlan::default());
            throttle.pace().await;
        };
        let begin = Instant::now();
        let sent = tokio::select! { sent = drain(body) => sent, () = change => 0 };
        assert_eq!(sent, 1_000_000);
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }

    #[tokio::test]
    async fn without_limits_a_frame_passes_whole() {
        let throttle = Throttle::new(RatePlan::default());
        let mut body =
            throttle.body(Full::new(Bytes::from(vec![7; 1_000_000])), receiver(), Arc::default());
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap().len(), 1_000_000);
        assert!(body.flow.is_none());
    }
}
