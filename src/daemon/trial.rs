//! What a configuration names, tried as the daemon would use it: for `check` and `doctor`.
//!
//! Nothing is kept and nothing is fetched; whoever is asked sees one more caller.

use std::time::Duration;

use tokio::runtime::Builder;

use super::{Error, contact, tls::Tls};
use crate::{
    bus::Nats,
    config::Settings,
    model::{FeedName, Head},
};

/// How long a NATS server may take to answer whoever only tries it.
const TRY: Duration = Duration::from_secs(5);

/// An upstream of a feed, and what came of trying it: the head there, or what is in the way.
pub type Tried = (FeedName, String, Result<Option<Head>, String>);

/// Tries every upstream that a configuration names, as the daemon would connect to it.
///
/// # Errors
/// When requests cannot be made at all.
pub fn try_upstreams(settings: &Settings) -> Result<Vec<Tried>, Error> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tls = Tls::open(settings)?;
    let mut tried = Vec::new();
    for feed in &settings.feeds {
        let mirror = &feed.mirror;
        for url in &mirror.upstreams {
            let wrong = |_| Error::Upstream { feed: feed.name.clone(), url: url.to_string() };
            let base = reqwest::Url::parse(url.as_str()).map_err(wrong)?;
            let contact = contact(mirror, tls.client_of(&feed.name))?;
            let came =
                runtime.block_on(contact.try_to_follow(&base)).map_err(|error| error.to_string());
            tried.push((feed.name.clone(), url.to_string(), came));
        }
    }
    Ok(tried)
}

/// Why the NATS server that a configuration names cannot be reached; none: it can, or none is named.
///
/// # Errors
/// When connections cannot be made at all.
pub fn try_nats(settings: &Settings) -> Result<Option<String>, Error> {
    let Some(url) = &settings.nats else { return Ok(None) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tls = Tls::open(settings)?;
    let tried = runtime.block_on(async {
        let nats = Nats::connect(url.as_str(), "check", tls.client.config()).await?;
        nats.await_up(TRY).await
    });
    Ok(tried.err().map(|error| error.to_string()))
}
