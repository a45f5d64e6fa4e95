//! Replication: one object by its SHA-256, if a published commit of the feed refers to it, whole or as
//! what makes it out of another that the mirror has.
//!
//! What is stored but not yet published (or vetoed) is nobody's business; what retention removed is
//! gone (410), and said to be.

use std::sync::Arc;

use axum::extract::State;
use http::request::Parts;

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
    packs::{self, Sending},
};
use crate::{
    model::{ObjectId, Traffic},
    store,
};

/// `GET …/objects/{sha256}`
pub(super) async fn get(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let id = named(tail)?;
    let sending = open_or_bring(&edge, feed, id).await?;
    packs::send(&edge, &parts, sending, Traffic::Replication)
}

/// Opens an object; a region that passed its version over has it brought first.
pub(super) async fn open_or_bring(
    edge: &Edge,
    feed: &Arc<Feed>,
    id: ObjectId,
) -> Result<Sending, Fault> {
    let open = || {
        let kept = Arc::clone(feed);
        edge.blocking.run(move || open(&kept, &id))
    };
    if let Some(sending) = open().await? {
        return Ok(sending);
    }
    if let Some(size) = edge.store(feed, move |store| store.public_size(&id)).await? {
        edge.bring(feed, (id, size), None).await?;
        if let Some(sending) = open().await? {
            return Ok(sending);
        }
    }
    Err(absent(edge, feed, id).await)
}

/// Why an object is not here.
async fn absent(edge: &Edge, feed: &Feed, id: ObjectId) -> Fault {
    match edge.store(feed, move |store| store.was_removed(&id)).await {
        Ok(true) => Fault::gone("not_kept", format!("object {id} {GIVEN_UP}")),
        Ok(false) => Fault::not_found("no_such_object", format!("object {id} is not here")),
        Err(fault) => fault,
    }
}

/// What became of content that retention removed.
pub(super) const GIVEN_UP: &str =
    "belongs to versions that are too old to be kept here (`keep`); `depsync log` still lists them";

/// An object's name.
pub(super) fn named(raw: &str) -> Result<ObjectId, Fault> {
    raw.parse().map_err(|bad| Fault::malformed(format!("no object's name: {bad}")))
}

/// `GET …/objects/{sha256}/from/{base}`
pub(super) async fn delta(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let pair = tail.split_once("/from/");
    let (result, base) = pair.ok_or_else(|| Fault::malformed("a delta is NEW/from/OLD"))?;
    let (result, base) = (named(result)?, named(base)?);
    let kept = Arc::clone(feed);
    match edge.packing.run(move || open_delta(&kept, &base, &result)).await? {
        Some(sending) => {
            edge.metrics.served_delta();
            packs::send(&edge, &parts, sending, Traffic::Replication)
        }
        None => Err(Fault::not_found(
            "no_delta",
            format!("there is no delta that would be worth it; ask for the whole object {result}"),
        )),
    }
}

/// Makes a delta between two objects of published commits, or finds the one that is made, and opens
/// it. Blocks.
fn open_delta(feed: &Feed, base: &ObjectId, result: &ObjectId) -> store::Result<Option<Sending>> {
    let store = &feed.desk.store;
    for id in [result, base] {
        if !store.is_public(id)? {
            return Ok(None);
        }
    }
    packs::open_spooled(|| {
        let Some(delta) = store.delta(base, result)? else { return Ok(None) };
        let checksum = format!("{result}-{base}-{:08x}", delta.checksum);
        Ok(Some((delta.path, delta.size, checksum)))
    })
}

/// Opens an object, if it is here and a published commit refers to it. Blocks.
pub(super) fn open(feed: &Feed, id: &ObjectId) -> store::Result<Option<Sending>> {
    let store = &feed.desk.store;
    if !store.is_public(id)? {
        return Ok(None);
    }
    let Some(file) = store.open_object(id)? else { return Ok(None) };
    let found = file.metadata().map_err(|source| store::Error::Io {
        action: "look at object",
        path: id.to_string().into(),
        source,
    })?;
    Ok(Some(Sending { file, size: found.len(), checksum: id.to_string() }))
}
