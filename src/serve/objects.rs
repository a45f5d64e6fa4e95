//! Replication: one object by its SHA-256, if a published commit of the feed refers to it, whole or as
//! what makes it out of another that the mirror has.
//!
//! What is stored but not yet published (or vetoed) is nobody's business. Which objects the history
//! refers to is learnt once, from its differences, when the first one is asked for, and then kept up.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use axum::extract::State;
use http::request::Parts;

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
    packs::{self, Sending},
};
use crate::{
    model::{Content, Kind, ObjectId, Oid, Traffic},
    store::{self, Store},
};

/// Commits whose differences are read in one go.
const STEP: usize = 256;

/// Objects that a feed's published commits refer to, as far as its history has been read.
#[derive(Default)]
pub(super) struct Referenced {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    objects: HashSet<ObjectId>,
    /// The newest commit that has been read; all before it have been too.
    read_to: Option<Oid>,
}

impl Referenced {
    /// Whether a published commit refers to an object. Blocks; the first time for the whole history.
    fn holds(&self, store: &Store, id: &ObjectId) -> store::Result<bool> {
        let mut known = self.known.lock().expect("no holder panics");
        if !known.objects.contains(id) {
            known.catch_up(store)?;
        }
        Ok(known.objects.contains(id))
    }
}

impl Known {
    fn catch_up(&mut self, store: &Store) -> store::Result<()> {
        let Some(head) = store.head()? else { return Ok(()) };
        let mut next = Some(head.commit);
        while let Some(from) = next {
            let commits = store.log(from, STEP)?;
            next = None;
            for commit in commits {
                if Some(commit.id) == self.read_to {
                    next = None;
                    break;
                }
                self.read(store, &commit)?;
                next = commit.parent;
            }
        }
        self.read_to = Some(head.commit);
        Ok(())
    }

    fn read(&mut self, store: &Store, commit: &store::Commit) -> store::Result<()> {
        for change in store.diff(commit.parent, commit.id)? {
            let Some(Kind::File { blob, .. }) = change.after.map(|entry| entry.kind) else {
                continue;
            };
            if let Content::Object { id, .. } = store.content(blob)? {
                self.objects.insert(id);
            }
        }
        Ok(())
    }
}

/// `GET …/objects/{sha256}`
pub(super) async fn get(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let id = named(tail)?;
    let kept = Arc::clone(feed);
    match edge.blocking.run(move || open(&kept, &id)).await? {
        Some(sending) => packs::send(&edge, &parts, sending, Traffic::Replication),
        None => Err(Fault::not_found("no_such_object", format!("object {id} is not here"))),
    }
}

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
        if !feed.referenced.holds(store, id)? {
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
    if !feed.referenced.holds(store, id)? {
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
