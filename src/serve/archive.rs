//! A folder of the newest version as one tar stream.
//!
//! A thread walks the tree and writes into a short queue; when the client goes away the queue closes
//! and the thread stops. What the version holds is what comes: modes, times, links, empty folders.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{body::Body, extract::State, response::Response};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, header, request::Parts};
use http_body::Frame;
use tar::{Builder, EntryType, Header};
use tokio::sync::mpsc;

use super::{
    Edge, disposition,
    document::{Found, Place},
    download,
    error::{Answer, Fault},
    freshness, listing, target,
};
use crate::{
    model::{Content, Entry, Kind, RelPath, Traffic},
    store::Store,
};

/// Bytes of one piece of the stream, and how many wait for a slow client.
const PIECE: usize = 256 << 10;
const PIECES: usize = 2;
/// Each takes a thread for as long as its client takes.
pub(super) const MAX_ARCHIVES: usize = 16;

/// `GET …/archive/{path}.tar`; the feed's own folder is `archive/.tar`.
pub(super) async fn tar(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let Some(raw) = tail.strip_suffix(".tar") else {
        return Err(Fault::not_found(
            "no_such_route",
            "a folder's archive is asked for as {path}.tar",
        ));
    };
    let (path, _) = target::path_to_read(raw)?;
    let newest = freshness::newest(&edge, feed).await?;
    let commit = newest.commit;
    download::not_revoked(feed, commit)?;
    let found = download::find(&edge, feed, (commit, path), true).await?;
    let Found::Folder(folder) = found.1 else {
        return Err(target::no_such_path(found.0.1.as_bytes()));
    };
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    let whole = feed.desk.feed.as_str().as_bytes();
    let name = [if folder.is_root() { whole } else { folder.name() }, b".tar"].concat();
    headers.insert(header::CONTENT_DISPOSITION, disposition::of(&name, "application/x-tar"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(commit) = HeaderValue::try_from(commit.to_string()) {
        headers.insert("x-depsync-commit", commit);
    }
    newest.describe(headers);
    if parts.method == Method::HEAD {
        return Ok(response);
    }
    let place = edge.gate.enter().await?;
    let Ok(slot) = Arc::clone(&edge.archives).try_acquire_owned() else {
        return Err(Fault::unavailable("too many archives are being sent", 10));
    };
    let (pieces, stream) = mpsc::channel(PIECES);
    let feed = Arc::clone(feed);
    let made = edge.blocking.run(move || {
        let mut out = Pieces { pieces, piece: BytesMut::with_capacity(PIECE) };
        let written =
            write(&feed.desk.store, &(commit, folder), &mut out).and_then(|()| out.flush());
        drop(slot);
        written
    });
    let body = Stream { stream, made: Some(Box::pin(made)) };
    let receiver = edge.receiver(&parts, Traffic::Downloads);
    *response.body_mut() = Body::new(edge.throttled(place.with(body), receiver));
    Ok(response)
}

/// Writes the archive of a folder. Blocks as long as its reader does.
fn write(store: &Store, (commit, folder): &Place, out: &mut Pieces) -> io::Result<()> {
    let mut builder = Builder::new(out);
    let mut todo = vec![(folder.clone(), Vec::new())];
    while let Some((folder, shown)) = todo.pop() {
        let entries = store.list(*commit, &folder).map_err(io::Error::other)?.unwrap_or_default();
        let mut folders = Vec::new();
        for (name, entry) in entries {
            let shown =
                if shown.is_empty() { name.clone() } else { [&*shown, b"/", &name].concat() };
            if entry.kind.is_dir() {
                let below: RelPath = folder.join(&name).map_err(io::Error::other)?;
                folders.push((below, shown.clone()));
            }
            append(store, &mut builder, &shown, &entry)?;
        }
        todo.extend(folders.into_iter().rev());
    }
    builder.finish()
}

fn append(
    store: &Store,
    tar: &mut Builder<&mut Pieces>,
    shown: &[u8],
    entry: &Entry,
) -> io::Result<()> {
    let path = Path::new(std::ffi::OsStr::from_bytes(shown));
    let mut header = Header::new_gnu();
    let mode = listing::mode(&entry.meta, &entry.kind);
    header.set_mode(mode.unwrap_or(0o755));
    let mtime = entry.meta.mtime.map_or(0, |at| u64::try_from(at.secs).unwrap_or(0));
    header.set_mtime(mtime);
    header.set_size(0);
    match entry.kind {
        Kind::Dir => {
            header.set_entry_type(EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())
        }
        Kind::Symlink { blob } => {
            let target = store.read_blob(blob).map_err(io::Error::other)?;
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, Path::new(std::ffi::OsStr::from_bytes(&target)))
        }
        Kind::File { blob, .. } => match store.content(blob).map_err(io::Error::other)? {
            Content::Blob(blob) => {
                let bytes = store.read_blob(blob).map_err(io::Error::other)?;
                header.set_size(bytes.len() as u64);
                tar.append_data(&mut header, path, &*bytes)
            }
            Content::Object { id, size } => {
                let file = store.open_object(&id).map_err(io::Error::other)?;
                let file =
                    file.ok_or_else(|| io::Error::other(format!("object {id} is not here")))?;
                header.set_size(size);
                tar.append_data(&mut header, path, file)
            }
        },
    }
}

/// Cuts what is written into pieces for the stream.
struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    piece: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.piece.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE)).freeze();
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// The pieces as a body. An archive that could not be finished breaks off, so nobody takes it for whole.
struct Stream {
    stream: mpsc::Receiver<Bytes>,
    made: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send>>>,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        // Polled first: the first poll is what starts the thread.
        if let Some(made) = &mut this.made
            && let Poll::Ready(result) = made.as_mut().poll(cx)
        {
            this.made = None;
            if let Err(error) = result {
                return Poll::Ready(Some(Err(error)));
            }
        }
        match this.stream.poll_recv(cx) {
            Poll::Ready(Some(piece)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            // The thread has let go of the queue; its result says whether that is the end.
            Poll::Ready(None) if this.made.is_some() => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
