//! What a path means in a published version: a file with its headers ready, or a folder.
//!
//! A symlink is followed inside the tree, eight steps. Small files are kept inflated in a cache
//! bounded by bytes, keyed by their blob; large ones are only named. A published version never
//! changes, so nothing here is ever stale.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;
use sha2::{Digest, Sha256};

use super::{cache::Cache, disposition};
use crate::{
    model::{Content, Kind, ObjectId, Oid, RelPath},
    store::{self, Store},
};

/// Symlinks that are followed before a path counts as not there.
const MAX_LINKS: usize = 8;
/// Bytes of small files that are kept inflated.
const BLOBS: usize = 64 << 20;
/// Bytes of what paths mean, for each feed.
const PATHS: usize = 8 << 20;

/// A path of a published commit.
pub(super) type Place = (Oid, RelPath);
/// What paths mean, as far as it was asked lately.
pub(super) type Cached = Cache<Place, Found>;

/// What a path means.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// A file.
    File(Arc<Document>),
    /// A folder, where links have led to it.
    Folder(RelPath),
}

/// A file of a published version.
#[derive(Debug)]
pub(super) struct Document {
    /// Where links have led to.
    pub(super) path: RelPath,
    pub(super) size: u64,
    pub(super) body: Body,
    pub(super) etag: HeaderValue,
    pub(super) digest: HeaderValue,
    pub(super) mime: HeaderValue,
    pub(super) disposition: HeaderValue,
    /// The version it was asked for in.
    pub(super) commit: Oid,
    pub(super) commit_text: HeaderValue,
}

/// Where its bytes are.
#[derive(Debug)]
pub(super) enum Body {
    /// Here.
    Memory(Bytes),
    /// In an object's file.
    Object(ObjectId),
}

/// Small files that are read often.
pub(super) struct Library(Cache<Oid, (Bytes, ObjectId)>);

/// Room for what the paths of one feed mean.
pub(super) fn cache() -> Cached {
    Cache::new(PATHS)
}

impl Library {
    pub(super) fn new() -> Self {
        Library(Cache::new(BLOBS))
    }

    fn blob(&self, store: &Store, blob: Oid) -> store::Result<(Bytes, ObjectId)> {
        if let Some(known) = self.0.get(&blob) {
            return Ok(known);
        }
        let bytes = Bytes::from(store.read_blob(blob)?);
        let known = (bytes.clone(), ObjectId::from_bytes(Sha256::digest(&bytes).into()));
        self.0.insert(blob, known.clone(), bytes.len() + 100);
        Ok(known)
    }
}

impl Document {
    fn new((place, path): (&Place, RelPath), size: u64, sha256: ObjectId, body: Body) -> Self {
        let header = |text: String| HeaderValue::try_from(text).expect("plain ASCII");
        let mime = mime_guess::from_path(place.1.as_path()).first_raw();
        let mime = mime.unwrap_or("application/octet-stream");
        Document {
            path,
            size,
            body,
            etag: header(format!("\"{sha256}\"")),
            digest: header(repr_digest(&sha256)),
            mime: HeaderValue::from_static(mime),
            disposition: disposition::of(place.1.name(), mime),
            commit: place.0,
            commit_text: header(place.0.to_string()),
        }
    }
}

/// `Repr-Digest` as RFC 9530 writes it.
pub(super) fn repr_digest(sha256: &ObjectId) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("sha-256=:{}:", STANDARD.encode(sha256.as_bytes()))
}

/// Looks up what lies at a path of a published commit, and keeps it; none: nothing. Blocks.
pub(super) fn find(
    store: &Store,
    library: &Library,
    cached: &Cached,
    place: &Place,
) -> store::Result<Option<Found>> {
    let Some((path, kind)) = follow(store, place)? else { return Ok(None) };
    let found = match kind {
        Kind::Dir => Found::Folder(path),
        Kind::Symlink { .. } => return Ok(None),
        Kind::File { blob, .. } => Found::File(Arc::new(match store.content(blob)? {
            Content::Object { id, size } => {
                Document::new((place, path), size, id, Body::Object(id))
            }
            Content::Blob(blob) => {
                let (bytes, sha256) = library.blob(store, blob)?;
                Document::new((place, path), bytes.len() as u64, sha256, Body::Memory(bytes))
            }
        })),
    };
    let held = if let Found::File(file) = &found
        && let Body::Memory(bytes) = &file.body
    {
        bytes.len()
    } else {
        0
    };
    // What a document pins counts too, or evicted blobs would live on in this cache unseen.
    cached.insert(place.clone(), found.clone(), 600 + 3 * place.1.as_bytes().len() + held);
    Ok(Some(found))
}

/// The path and the kind of what lies there once every link on the way is followed.
fn follow(store: &Store, (commit, path): &Place) -> store::Result<Option<(RelPath, Kind)>> {
    if path.is_root() {
        return Ok(Some((RelPath::root(), Kind::Dir)));
    }
    match store.entry(*commit, path)?.map(|entry| entry.kind) {
        Some(Kind::Symlink { .. }) | None => walk(store, *commit, path),
        Some(kind) => Ok(Some((path.clone(), kind))),
    }
}

fn walk(store: &Store, commit: Oid, path: &RelPath) -> store::Result<Option<(RelPath, Kind)>> {
    let mut todo: VecDeque<Vec<u8>> = path.components().map(<[u8]>::to_vec).collect();
    let (mut at, mut kind) = (RelPath::root(), Kind::Dir);
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if !kind.is_dir() {
            return Ok(None);
        }
        match &*name {
            b"" | b"." => {}
            b".." => match at.parent() {
                Some(parent) => at = parent,
                None => return Ok(None),
            },
            name => {
                let Ok(next) = at.join(name) else { return Ok(None) };
                match store.entry(commit, &next)?.map(|entry| entry.kind) {
                    None => return Ok(None),
                    Some(Kind::Symlink { blob }) => {
                        let target = store.read_blob(blob)?;
                        links += 1;
                        if links > MAX_LINKS || target.starts_with(b"/") {
                            return Ok(None);
                        }
                        target
                            .split(|&c| c == b'/')
                            .rev()
                            .for_each(|name| todo.push_front(name.to_vec()));
                    }
                    Some(found) => (at, kind) = (next, found),
                }
            }
        }
    }
    Ok(Some((at, kind)))
}
