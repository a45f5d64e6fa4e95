//! What the service manager is told, where one listens: ready, reading again, stopping, and that the
//! daemon still turns.
//!
//! `$NOTIFY_SOCKET` says where; without it all of this is nothing. A message that cannot be sent is
//! logged, and never stops the daemon: the manager has its own time-outs.

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::Error;

/// It listens, and serves what it has.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The region table and the limits are being read; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager is not told of a reload"),
    }
}

/// It was asked to stop, or has to.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says twice in each period of the manager's watchdog that the tasks of the edge still run, until
/// `stop`. That the stages of the feeds do is `/readyz`'s to say: a restart mends no stuck disk.
pub(super) async fn watch(stop: CancellationToken) -> Result<(), Error> {
    let period = sd_notify::watchdog_enabled().filter(|period| !period.is_zero());
    let Some(period) = period else {
        stop.cancelled().await;
        return Ok(());
    };
    let mut pulse = tokio::time::interval(period / 2);
    while stop.run_until_cancelled(pulse.tick()).await.is_some() {
        tell(&[NotifyState::Watchdog]);
    }
    Ok(())
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
