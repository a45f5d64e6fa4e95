//! The one place of the edge that hands store and disk calls to threads.
//!
//! So many at once and no more: whoever comes later waits its turn. A call that has begun is never
//! cut off, even when nobody waits for it any longer.

use std::{future::Future, sync::Arc};

use tokio::sync::Semaphore;

/// Threads for blocking calls.
#[derive(Clone)]
pub(super) struct Blocking {
    slots: Arc<Semaphore>,
}

impl Blocking {
    /// At most so many at once.
    pub(super) fn new(threads: usize) -> Self {
        Blocking { slots: Arc::new(Semaphore::new(threads)) }
    }

    /// Runs a call on a thread; the result comes when the future is awaited. A panic of the call is
    /// a panic here.
    pub(super) fn run<T, F>(&self, call: F) -> impl Future<Output = T> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let slots = Arc::clone(&self.slots);
        async move {
            let slot = slots.acquire_owned().await.expect("the slots are never closed");
            #[expect(clippy::disallowed_methods, reason = "this is the place that bounds it")]
            let task = tokio::task::spawn_blocking(move || {
                let result = call();
                drop(slot);
                result
            });
            match task.await {
                Ok(result) => result,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }
}
