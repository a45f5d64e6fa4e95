//! The thread on which blocking work for a feed is done, one job after the other.
//!
//! git and the file system know no async; here their work leaves the async threads. A job that has
//! begun is always finished, also when nobody waits for it any more: a tree is never left between
//! two steps by a shutdown. A job that panics ends the lane, and with it the stage. Whoever looks sees
//! whether the thread gets on: one that neither computes nor is woken by anything is stuck.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait. Callers wait for a place; there are only a few of them.
const QUEUE: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// A lane's entrance.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    jobs: mpsc::Sender<Job>,
    gait: Arc<Gait>,
}

/// Whether a lane's thread gets on.
#[derive(Debug, Default)]
struct Gait {
    busy: AtomicBool,
    /// What the kernel says of the thread: how long it ran, how long it waited for a processor, and
    /// how often it was put on one. Absent on a kernel that does not count it.
    counts: OnceLock<File>,
    /// What that was when it last differed, and when.
    seen: Mutex<Option<(Vec<u8>, Instant)>>,
}

/// A job panicked, so no further one runs.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread has panicked")]
pub(super) struct Broken;

/// The lane's thread, to be waited for.
#[derive(Debug)]
pub(super) struct Worker {
    ended: oneshot::Receiver<()>,
    thread: thread::JoinHandle<()>,
}

impl Lane {
    /// Starts a thread of this name.
    pub(super) fn start(name: &str) -> io::Result<(Lane, Worker)> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        let (end, ended) = oneshot::channel::<()>();
        let gait = Arc::new(Gait::default());
        let own = Arc::clone(&gait);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _end = end; // dropped when the thread ends, by a panic too
            if let Ok(counts) = File::open("/proc/thread-self/schedstat") {
                let _ = own.counts.set(counts); // it is set here alone
            }
            while let Some(job) = queue.blocking_recv() {
                own.busy.store(true, Ordering::Relaxed);
                job();
                own.busy.store(false, Ordering::Relaxed);
            }
        })?;
        Ok((Lane { jobs, gait }, Worker { ended, thread }))
    }

    /// For how long the job under way has not got on, as far as it was looked at; zero without one.
    pub(super) fn stuck_for(&self) -> Duration {
        self.gait.stuck_for(Instant::now())
    }

    /// Runs a job and waits for what it returns.
    pub(super) async fn run<T, F>(&self, job: F) -> Result<T, Broken>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (answer, result) = oneshot::channel();
        let job = Box::new(move || {
            let _ = answer.send(job()); // nobody waits any more: fine
        });
        self.jobs.send(job).await.map_err(|_| Broken)?;
        result.await.map_err(|_| Broken)
    }
}

impl Gait {
    fn stuck_for(&self, now: Instant) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.busy.load(Ordering::Relaxed) {
            *seen = None;
            return Duration::ZERO;
        }
        let mut text = [0; 96]; // three numbers
        let read = self.counts.get().and_then(|counts| counts.read_at(&mut text, 0).ok());
        let counts = &text[..read.unwrap_or(0)];
        match &*seen {
            Some((known, since)) if known == counts => now.saturating_duration_since(*since),
            _ if counts.is_empty() => Duration::ZERO,
            _ => {
                *seen = Some((counts.to_vec(), now));
                Duration::ZERO
            }
        }
    }
}

impl Worker {
    /// Waits until the thread has ended: when every [`Lane`] to it is dropped and the jobs are done.
    pub(super) async fn join(self) -> Result<(), Broken> {
        let _ = self.ended.await; // the sender is only ever dropped
        self.thread.join().map_err(|_| Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_run_in_order_and_are_finished() {
        let (lane, worker) = Lane::start("test").unwrap();
        let (tell, seen) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        assert_eq!(lane.run(|| 6 * 7).await.unwrap(), 42);
        let first = tell.clone();
        let slow = lane.run(move || (held.recv().is_ok(), first.send(1)));
        let second = lane.run(move || tell.send(2));
        {
            tokio::pin!(slow, second);
            futures_util::future::select(&mut slow, std::future::ready(())).await;
            futures_util::future::select(&mut second, std::future::ready(())).await;
        } // nobody waits for them any more
        drop(lane);
        release.send(()).unwrap();
        worker.join().await.unwrap();
        assert_eq!(seen.iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn a_job_that_waits_for_ever_does_not_get_on() {
        let (lane, worker) = Lane::start("test").unwrap();
        assert_eq!(lane.stuck_for(), Duration::ZERO);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let (tell, begun) = oneshot::channel();
        let mut job = Box::pin(lane.run(move || {
            let _ = tell.send(());
            held.recv().is_ok()
        }));
        tokio::select! { _ = &mut job => unreachable!("it is held"), _ = begun => {} }
        let end = Instant::now() + Duration::from_secs(20);
        while lane.stuck_for() < Duration::from_millis(50) {
            assert!(Instant::now() < end, "it is not seen to be stuck");
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        assert!(job.await.unwrap());
        let end = Instant::now() + Duration::from_secs(20);
        while lane.stuck_for() > Duration::ZERO {
            assert!(Instant::now() < end, "it has gone on");
        }
        drop(lane);
        worker.join().await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_the_lane() {
        let (lane, worker) = Lane::start("test").unwrap();
        assert!(lane.run(|| panic!("on purpose")).await.is_err());
        assert!(lane.run(|| ()).await.is_err());
        drop(lane);
        assert!(worker.join().await.is_err());
    }
}
