//! What the operator may change while the daemon runs: the region table and the limits.
//!
//! The files are read again on SIGHUP and when one of them changes. What is wrong is said, and all
//! stays as it was. Limits that were set through the API stay until the file says something new.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::signal::unix::Signal;
use tokio_util::sync::CancellationToken;

use super::{Error, systemd};
use crate::{
    config::{self, Settings},
    model::Bandwidth,
    serve::Edge,
};

/// How often the files are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Reads the files again until `stop`.
pub(super) async fn follow(
    mut hangup: Signal,
    settings: Settings,
    edge: Arc<Edge>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let settings = Arc::new(settings);
    let mut last = settings.bandwidth.clone();
    let mut seen = stamps(&settings).await;
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = hangup.recv() => true,
            () = tokio::time::sleep(TICK) => false,
        };
        let now = stamps(&settings).await;
        if asked || now != seen {
            seen = now;
            if asked {
                systemd::reloading();
            }
            read(&settings, &edge, &mut last, asked).await?;
            if asked {
                systemd::ready();
            }
        }
    }
}

async fn read(
    settings: &Arc<Settings>,
    edge: &Edge,
    last: &mut Bandwidth,
    asked: bool,
) -> Result<(), Error> {
    let again = Arc::clone(settings);
    #[expect(clippy::disallowed_methods, reason = "a few files, when the operator changes them")]
    let read = tokio::task::spawn_blocking(move || config::live(&again)).await;
    match read.map_err(|panic| Error::Ended(panic.to_string()))? {
        Err(error) => tracing::error!("regions and limits stay as they were: {error}"),
        Ok(live) => {
            edge.set_regions(live.regions);
            if asked || live.bandwidth != *last {
                last.clone_from(&live.bandwidth);
                edge.set_bandwidth(live.bandwidth);
            }
            tracing::info!("regions and limits were read again");
        }
    }
    Ok(())
}

/// By which a file that was changed or replaced is told.
type Stamp = (SystemTime, u64, u64);

/// Of every file that is read again; none for one that is not there.
async fn stamps(settings: &Settings) -> Vec<Option<Stamp>> {
    let files: [&Option<PathBuf>; 3] = [&settings.file, &settings.rs, &settings.regions];
    let mut stamps = Vec::with_capacity(files.len());
    for file in files.into_iter().flatten() {
        stamps.push(stamp(file).await);
    }
    stamps
}

async fn stamp(file: &PathBuf) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;

    let found = tokio::fs::metadata(file).await.ok()?;
    Some((found.modified().ok()?, found.ino(), found.len()))
}
