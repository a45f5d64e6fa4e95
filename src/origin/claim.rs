//! The first commit of a new owner: it changes nothing but the epoch.
//!
//! A promotion has decided on an epoch above every other; this makes it known before anything else is
//! published, so that followers of several nodes see at once which of them owns the feed.

use crate::{
    store::{self, Signature},
    sys,
};

use super::Setup;

/// Publishes the decided epoch, unless the head has it already or there is none.
pub(super) fn claim(setup: &Setup) -> store::Result<()> {
    let decided = setup.decisions.feed(&setup.feed).epoch;
    if setup.store.head()?.is_none_or(|head| head.epoch >= decided) {
        return Ok(());
    }
    let seconds = sys::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let by = Signature {
        author: setup.label.to_string(),
        node: setup.node.clone(),
        epoch: decided,
        time: i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX),
        subject: format!("{} owns the feed in epoch {decided}", setup.label),
    };
    let Some(prepared) = setup.store.draft()?.finish_claim(&by)? else { return Ok(()) };
    let published = setup.store.publish(prepared)?;
    tracing::info!(feed = %setup.feed, epoch = decided, seq = published.head.seq, commit = %published.head.commit, "this node owns the feed");
    setup.desk.post(published);
    Ok(())
}
