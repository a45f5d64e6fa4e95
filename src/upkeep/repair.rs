//! Bringing back what a store lost: a primary from its folder, a mirror from its upstream.
//!
//! Only bytes that have the right id are taken, wherever they come from.

use std::{collections::HashMap, fs::File, io, io::Read as _};

use tokio::sync::oneshot;

use super::Feed;
use crate::{
    bus::Request,
    disk::{Root, Source},
    model::{Content, Kind, ObjectId, Oid, RelPath},
    store::{Findings, MAX_BLOB, Opened, Store},
};

/// Files read back into one pack.
const BATCH: usize = 64 << 20;

/// Brings back what it can; what is still missing afterwards is for the caller to see.
pub(super) fn repair(feed: &Feed, is_primary: bool, missing: &Findings) {
    let done = match &feed.root {
        Some(root) if is_primary => from_folder(feed, &root.get(), missing),
        _ => from_upstream(feed, missing),
    };
    if let Err(reason) = done {
        tracing::warn!(feed = %feed.desk.feed, "repair: {reason}");
    }
}

/// Asks the stage that mirrors the feed, and waits for it.
fn from_upstream(feed: &Feed, missing: &Findings) -> Result<(), String> {
    let (answer, done) = oneshot::channel();
    let objects = missing.objects.clone();
    let request = Request::Repair { history: !missing.history.is_empty(), objects, answer };
    if !feed.desk.ask(request) {
        return Err("the stage that mirrors the feed takes no requests now".to_owned());
    }
    done.blocking_recv().unwrap_or_else(|_| Err("the daemon is stopping".to_owned()))
}

/// Reads the files of the head's tree whose content is missing.
fn from_folder(feed: &Feed, root: &Root, missing: &Findings) -> Result<(), String> {
    let store = &feed.desk.store;
    let text = |error: &dyn std::error::Error| error.to_string();
    let Some(head) = store.head().map_err(|e| text(&e))? else { return Ok(()) };
    let wanted: HashMap<ObjectId, u64> = missing.objects.iter().copied().collect();
    let (mut objects, mut blobs) = (Vec::new(), Vec::new());
    store
        .walk(head.commit, &mut |path, entry| {
            let Kind::File { blob, .. } = entry.kind else { return };
            if missing.history.contains(&blob) {
                blobs.push(path);
            } else if let Ok(Content::Object { id, .. }) = store.content(blob)
                && wanted.contains_key(&id)
            {
                objects.push((id, path));
            }
        })
        .map_err(|error| format!("{error}; build the feed anew from a mirror of it: `depsync region DIR --upstream MIRROR`, then `depsync promote`"))?;
    for (id, path) in objects {
        let Ok(mut file) = root.open_file(&path) else { continue };
        store.restore_object(&id, &mut file).map_err(|e| text(&e))?;
    }
    restore_blobs(store, root, &missing.history, &blobs).map_err(|e| text(&e))
}

fn restore_blobs(
    store: &Store,
    root: &Root,
    wanted: &[Oid],
    paths: &[RelPath],
) -> crate::store::Result<()> {
    let (mut contents, mut size) = (Vec::new(), 0);
    for path in paths {
        let Some(bytes) = root.open_file(path).ok().and_then(|file| read(&file)) else { continue };
        // What is a pointer in the history is an object in the folder.
        if Store::reads_as_pointer(&bytes) {
            continue;
        }
        size += bytes.len();
        contents.push(bytes);
        if size > BATCH {
            store.restore_blobs(wanted, &contents)?;
            (contents, size) = (Vec::new(), 0);
        }
    }
    store.restore_blobs(wanted, &contents).map(drop)
}

fn read(mut file: &File) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let size = (&mut file).take(MAX_BLOB + 1).read_to_end(&mut bytes).ok()?;
    (size as u64 <= MAX_BLOB).then_some(bytes)
}

/// What a blob stands for.
pub(super) fn content(store: &Store, blob: Oid) -> io::Result<Source> {
    Ok(match store.open_content(blob)? {
        Opened::Bytes(bytes) => Source::Bytes(bytes),
        Opened::File(file) => Source::File(file),
    })
}
