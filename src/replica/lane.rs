//! The thread on which blocking work for a feed is done, one job after the other.
//!
//! git and the file system know no async; here their work leaves the async threads. A job that has
//! begun is always finished, also when nobody waits for it any more: a tree is never left between
//! two steps by a shutdown. A job that panics ends the lane, and with it the stage.

use std::{io, thread};

use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait. Callers wait for a place; there are only a few of them.
const QUEUE: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

/// A lane's entrance.
#[derive(Debug, Clone)]
pub(super) struct Lane {
    jobs: mpsc::Sender<Job>,
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
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _end = end; // dropped when the thread ends, by a panic too
            while let Some(job) = queue.blocking_recv() {
                job();
            }
        })?;
        Ok((Lane { jobs }, Worker { ended, thread }))
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
    async fn a_panic_ends_the_lane() {
        let (lane, worker) = Lane::start("test").unwrap();
        assert!(lane.run(|| panic!("on purpose")).await.is_err());
        assert!(lane.run(|| ()).await.is_err());
        drop(lane);
        assert!(worker.join().await.is_err());
    }
}
