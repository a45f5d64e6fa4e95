//! Brings a head's objects: several at a time, each by a delta where that is worth it, else whole.
//!
//! A delta is downloaded, applied to the older version that is here, and its result checked; when
//! anything about it is wrong, the object comes whole. A whole one goes on where an earlier try was
//! broken off, also by a kill. An object counts only once its SHA-256 is right and it is durable.

use std::{collections::HashSet, fs::File, path::PathBuf};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use http::header::{CONTENT_RANGE, IF_RANGE, RANGE};
use reqwest::Response;
use tracing::warn;

use crate::{
    model::{Head, ObjectId},
    replica::{
        Error,
        fetch::{Download, Fetcher},
        meter::Meter,
        partial::{self, Partial, spool},
        upstream::Upstream,
    },
    store::{self, Lacking, ObjectWriter, Store, delta},
};

/// Objects that are fetched at the same time.
const PARALLEL: usize = 4;
/// Bytes that are handed to the store at once: enough that the hand-over does not count. While one
/// block is hashed and written, the next comes.
const BLOCK: usize = 512 * 1024;

impl Fetcher {
    /// Brings objects that are needed for `want`; what is left of others goes.
    pub(super) async fn fetch_objects(
        &self,
        upstream: &Upstream,
        want: Head,
        objects: Vec<Lacking>,
    ) -> Result<(), Error> {
        if objects.is_empty() {
            return Ok(());
        }
        if self.sweeps {
            let (store, wanted) = (self.store.clone(), objects.clone());
            self.on_lane(move || sweep(&store, &wanted)).await?;
        }
        let total = objects.iter().map(|object| object.size).sum();
        let store = self.store.clone();
        self.on_lane(move || Ok(store.check_room(total)?)).await?;
        let meter = Meter::new(&self.progress, want, 0, total);
        let job = |object| Job { fetcher: self, upstream, meter: &meter, object };
        futures_util::stream::iter(objects)
            .map(|object| job(object).run())
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }
}

impl Fetcher {
    /// Brings one object, by no delta.
    pub(super) async fn fetch_whole(
        &self,
        upstream: &Upstream,
        meter: &Meter<'_>,
        object: Lacking,
    ) -> Result<(), Error> {
        let store = self.store.clone();
        self.on_lane(move || Ok(store.check_room(object.size)?)).await?;
        Job { fetcher: self, upstream, meter, object }.run().await
    }
}

/// Removes what was begun and is no longer wanted.
fn sweep(store: &Store, wanted: &[Lacking]) -> Result<(), Error> {
    let delta = |object: &Lacking| Some(partial::file_of(&delta_of(object.id, object.base?)));
    let deltas: HashSet<String> = wanted.iter().filter_map(delta).collect();
    partial::sweep(store.spool(), &deltas).map_err(spool(store.spool()))?;
    let ids = wanted.iter().map(|object| object.id).collect();
    Ok(store.sweep_parts(&ids)?)
}

/// What the delta is asked for by.
fn delta_of(result: ObjectId, base: ObjectId) -> String {
    format!("objects/{result}/from/{base}")
}

/// One object on its way.
struct Job<'a> {
    fetcher: &'a Fetcher,
    upstream: &'a Upstream,
    meter: &'a Meter<'a>,
    object: Lacking,
}

impl Job<'_> {
    async fn run(self) -> Result<(), Error> {
        let (Lacking { id, size, base }, store) = (self.object, self.fetcher.store.clone());
        let writer = self.fetcher.on_lane(move || Ok(store.object_writer(id, size)?)).await?;
        let writer = match base {
            Some(base) => match self.by_delta(base, writer).await? {
                None => return Ok(()),
                Some(writer) => writer,
            },
            None => writer,
        };
        self.meter.found(writer.offset());
        let writer = self.whole(writer).await?;
        let finished = self.fetcher.on_lane(move || Ok(writer.finish()?)).await;
        finished.map_err(|error| self.damaged(error))
    }

    /// Makes the object out of an older version. Gives the writer back when it must come whole.
    async fn by_delta(
        &self,
        base: ObjectId,
        writer: ObjectWriter,
    ) -> Result<Option<ObjectWriter>, Error> {
        let Lacking { id, size, .. } = self.object;
        let most = size - writer.offset();
        let download = Download { what: delta_of(id, base), most };
        let delta = match self.fetcher.download(self.upstream, &download, self.meter).await {
            Ok(Some(delta)) => delta,
            // It is not worth it, or cannot be made there.
            Ok(None) | Err(Error::Answer { .. }) => return Ok(Some(writer)),
            Err(error) => return Err(error),
        };
        self.meter.corrected(size, delta.size);
        let store = self.fetcher.store.clone();
        let applied = move || apply(&store, Pair { base, id, size }, &delta.path, writer);
        if let Err(error) = self.fetcher.on_lane(applied).await? {
            warn!(object = %id, %base, "{error}; it is fetched whole");
            self.meter.corrected(0, size);
            let store = self.fetcher.store.clone();
            let again = move || Ok(store.object_writer(id, size)?);
            return Ok(Some(self.fetcher.on_lane(again).await?));
        }
        Ok(None)
    }

    /// Writes what an object lacks. A link that breaks is gone on with at once while it brings
    /// something; what came is kept in any case.
    async fn whole(&self, mut writer: ObjectWriter) -> Result<ObjectWriter, Error> {
        loop {
            let before = writer.offset();
            if before == self.object.size {
                return Ok(writer);
            }
            let (rest, ended) = self.stream(writer).await?;
            writer = rest;
            match ended {
                Ok(()) => return Ok(writer),
                Err(error) if error.is_of_the_link() && writer.offset() > before => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// # Errors
    /// Of the store; how the link ended is beside the writer.
    async fn stream(
        &self,
        mut writer: ObjectWriter,
    ) -> Result<(ObjectWriter, Result<(), Error>), Error> {
        let (id, offset) = (self.object.id, writer.offset());
        let mut request = self.upstream.get(&format!("objects/{id}"));
        if offset > 0 {
            let range = format!("bytes={offset}-");
            request = request.header(RANGE, range).header(IF_RANGE, format!("\"{id}\""));
        }
        let mut answer = match self.upstream.send(request).await {
            Ok(answer) => answer,
            Err(error) => return Ok((writer, Err(error))),
        };
        // An object never changes: whoever sends it whole sends what we have first.
        let mut skip = if begins_at(&answer, offset) { 0 } else { offset };
        let mut block = Bytes::new();
        loop {
            let comes = self.next_block(&mut answer, &mut skip);
            let (written, (next, ended)) = tokio::join!(self.append(writer, block), comes);
            writer = written?;
            if let Some(ended) = ended {
                return Ok((self.append(writer, next).await?, ended));
            }
            block = next;
        }
    }

    /// What comes next of an object, and how it ended, where it has.
    async fn next_block(
        &self,
        answer: &mut Response,
        skip: &mut u64,
    ) -> (Bytes, Option<Result<(), Error>>) {
        let mut block = BytesMut::with_capacity(BLOCK);
        while block.len() < BLOCK {
            match self.upstream.chunk(answer).await {
                Ok(Some(chunk)) => {
                    let new = after(skip, chunk);
                    self.meter.came(new.len() as u64);
                    block.extend_from_slice(&new);
                }
                ended => return (block.freeze(), Some(ended.map(drop))),
            }
        }
        (block.freeze(), None)
    }

    async fn append(&self, mut writer: ObjectWriter, bytes: Bytes) -> Result<ObjectWriter, Error> {
        if bytes.is_empty() {
            return Ok(writer);
        }
        let write = move || {
            writer.write(&bytes)?;
            Ok(writer)
        };
        self.fetcher.on_lane(write).await
    }

    /// Bytes that are not the object's are the sender's fault or the link's, not our history's.
    fn damaged(&self, error: Error) -> Error {
        match error {
            Error::Store(error @ store::Error::Refused(_)) => {
                Error::Damaged { url: self.upstream.base.to_string(), why: error.to_string() }
            }
            error => error,
        }
    }
}

/// Whether an answer is the rest from `offset` on.
fn begins_at(answer: &Response, offset: u64) -> bool {
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    answer.status().as_u16() == 206
        && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")))
}

/// What of a chunk lies behind the bytes that are still to be skipped.
fn after(skip: &mut u64, mut chunk: Bytes) -> Bytes {
    let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    *skip -= skipped as u64;
    chunk.split_off(skipped)
}

/// An object and what it is made of.
#[derive(Clone, Copy)]
struct Pair {
    base: ObjectId,
    id: ObjectId,
    size: u64,
}

/// Makes an object out of another by a downloaded delta, and keeps the delta for those who follow
/// us. The inner error: this delta gave nothing, and nothing is left of it.
fn apply(
    store: &Store,
    pair: Pair,
    came: &PathBuf,
    mut writer: ObjectWriter,
) -> Result<Result<(), String>, Error> {
    let Pair { base, id, size } = pair;
    let delta = File::open(came).map_err(spool(came))?;
    let Some(old) = store.open_object(&base)? else {
        return Ok(Err(format!("the older version {base} is gone")));
    };
    writer.start_again()?;
    let header = delta::Header { base, result: id, size };
    let delta = std::io::BufReader::new(delta);
    let made = match writer.fill(|out| delta::apply(&header, &old, delta, out)) {
        Ok(()) => match writer.finish() {
            Ok(()) => Ok(()),
            Err(error @ store::Error::Refused(_)) => Err(error.to_string()),
            Err(error) => return Err(error.into()),
        },
        Err(error) => {
            writer.start_again()?;
            Err(unless_ours(error)?.to_string())
        }
    };
    if made.is_ok() {
        store.keep_delta(&base, &id, came)?;
    }
    Partial::remove(came)?;
    Ok(made)
}

/// A result that cannot be written here would not be if it came whole.
fn unless_ours(error: delta::Error) -> Result<delta::Error, Error> {
    match error {
        delta::Error::Io { doing, source } => match source.downcast::<store::Error>() {
            Ok(error) => Err(error.into()),
            Err(source) => Ok(delta::Error::Io { doing, source }),
        },
        error @ delta::Error::Corrupt(_) => Ok(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_here_are_skipped() {
        let mut skip = 5;
        assert_eq!(after(&mut skip, Bytes::from_static(b"abc")), "");
        assert_eq!(after(&mut skip, Bytes::from_static(b"defg")), "fg");
        assert_eq!(after(&mut skip, Bytes::from_static(b"hi")), "hi");
    }
}
