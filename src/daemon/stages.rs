//! What runs: each stage is joined, one that ends early ends the daemon, and a stop waits for them, but
//! not for ever.

use std::{thread, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Error, systemd};

/// How long a stop waits for the stages.
const DRAIN: Duration = Duration::from_secs(20);

/// The signals that the daemon minds.
pub(super) struct Signals {
    pub(super) stop: Stop,
    pub(super) hangup: Signal,
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, Error> {
        let stop = Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        Ok(Self { stop, hangup: signal(SignalKind::hangup())? })
    }
}

impl Stop {
    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What runs. Each task ends only after `stop`, or the daemon ends with it.
pub(super) struct Stages {
    tasks: JoinSet<Result<(), Error>>,
    pub(super) stop: CancellationToken,
}

impl Stages {
    pub(super) fn new(stop: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), stop }
    }

    pub(super) fn spawn(
        &mut self,
        stage: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.tasks.spawn(stage);
    }

    /// A stage of blocking code, on a thread of its own; `signal` asks it to end.
    pub(super) fn spawn_thread(
        &mut self,
        name: String,
        stage: impl FnOnce() -> Result<(), Error> + Send + 'static,
        signal: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        self.spawn(on_thread(name, stage, signal, self.stop.clone())?);
        Ok(())
    }

    /// Runs until a stop is asked for or a stage ends; then stops the others.
    pub(super) async fn run_until(mut self, mut stop: Stop) -> Result<(), Error> {
        let first = tokio::select! {
            () = stop.asked() => Ok(()),
            ended = self.tasks.join_next() => early(ended),
        };
        tracing::info!("stopping");
        systemd::stopping();
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, self.drain());
        match (first, drained.await) {
            (Err(error), _) => Err(error),
            (Ok(()), Ok(result)) => result,
            (Ok(()), Err(_)) => {
                Err(Error::Ended(format!("a stage that did not stop within {DRAIN:?}")))
            }
        }
    }

    pub(super) async fn drain(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.unwrap_or_else(|panic| Err(Error::Ended(panic.to_string())));
            first = first.and(ended);
        }
        first
    }
}

/// A stage of blocking code, on a thread of its own; `signal` asks it to end.
pub(super) fn on_thread(
    name: String,
    stage: impl FnOnce() -> Result<(), Error> + Send + 'static,
    signal: impl FnOnce() + Send + 'static,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), Error>>, Error> {
    let (done, mut ended) = oneshot::channel();
    thread::Builder::new().name(name.clone()).spawn(move || done.send(stage()))?;
    Ok(async move {
        let result = tokio::select! {
            result = &mut ended => result,
            () = stop.cancelled() => {
                signal();
                ended.await
            }
        };
        // A panic drops the sender.
        result.unwrap_or_else(|_| Err(Error::Ended(format!("the thread {name}"))))
    })
}

/// A stage ended before it was told to: always an error.
fn early(ended: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(Error::Ended(panic.to_string())),
        Some(Ok(Ok(()))) | None => Err(Error::Ended("a stage".to_owned())),
    }
}
