//! Brings a head's pack and objects into the store: resumable, checked, and no request too many.
//!
//! A pack comes by Range into a partial file in `spool/`, which a later try goes on with; objects
//! come four at a time. What an announcement carried needs no request. Only when pack and objects
//! are durable does the store's head move. Nothing here decides when to try again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use http::header::{IF_RANGE, RANGE};
use tokio::sync::watch;

use crate::{
    bus::frame::Progress,
    model::{Class, Head, ObjectId, Oid},
    replica::{
        Error,
        event::Parcel,
        lane::Lane,
        partial::{Partial, spool},
        upstream::Upstream,
    },
    store::{ObjectWriter, Published, Store},
};

/// Objects that are fetched at the same time.
const PARALLEL: usize = 4;
/// Bytes that are handed to the store at once: enough that the hand-over does not count.
const BLOCK: usize = 1024 * 1024;
/// How far back our own line is searched for a commit that the upstream knows.
const LINE: usize = 4_096;

/// What a fetch needs.
#[derive(Clone)]
pub(super) struct Fetcher {
    pub(super) store: Arc<Store>,
    pub(super) lane: Lane,
    pub(super) progress: watch::Sender<Option<Progress>>,
}

impl Fetcher {
    /// Fetches `want` on top of `have`, and makes it the store's head.
    pub(super) async fn fetch(
        &self,
        upstream: &Upstream,
        have: Option<Head>,
        want: Head,
    ) -> Result<Published, Error> {
        let pack = self.download(upstream, have.map(|head| head.commit), want).await?;
        let store = self.store.clone();
        let objects = self.on_lane(move || {
            take_pack(&store, &pack, &want)?;
            lacking(&store, &want)
        });
        let objects = objects.await?;
        self.fetch_objects(upstream, want, objects).await?;
        let store = self.store.clone();
        self.on_lane(move || advance(&store, &want, None)).await
    }

    /// Takes in the packs that came inside announcements, and makes the last one's head the store's.
    pub(super) async fn receive(
        &self,
        upstream: &Upstream,
        parcels: Vec<Parcel>,
    ) -> Result<Published, Error> {
        let Some(last) = parcels.last().cloned() else { return Err(Error::Stopped) };
        let alone = (parcels.len() == 1).then(|| last.pack.clone());
        let (store, want, pack) = (self.store.clone(), last.head, alone.clone());
        let received = self.on_lane(move || {
            for parcel in &parcels {
                store.receive(&mut &parcel.pack[..], &parcel.head)?;
            }
            match lacking(&store, &want)? {
                objects if objects.is_empty() => advance(&store, &want, pack).map(Ok),
                objects => Ok(Err(objects)),
            }
        });
        match received.await? {
            Ok(published) => Ok(published),
            Err(objects) => {
                self.fetch_objects(upstream, want, objects).await?;
                let store = self.store.clone();
                self.on_lane(move || advance(&store, &want, alone)).await
            }
        }
    }

    async fn on_lane<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        self.lane.run(job).await?
    }

    /// Downloads the pack, from the newest commit of ours that the upstream knows.
    async fn download(
        &self,
        upstream: &Upstream,
        have: Option<Oid>,
        want: Head,
    ) -> Result<PathBuf, Error> {
        let mut older = None;
        let mut base = have;
        loop {
            match self.download_from(upstream, base, want).await {
                Err(Error::Answer { status: 404, code, .. })
                    if code == "unknown_have" && base.is_some() =>
                {
                    if older.is_none() {
                        older = Some(self.older(have).await?.into_iter());
                    }
                    base = older.as_mut().and_then(Iterator::next);
                }
                other => return other,
            }
        }
    }

    /// Commits of our own line, ever further back.
    async fn older(&self, have: Option<Oid>) -> Result<Vec<Oid>, Error> {
        let Some(have) = have else { return Ok(Vec::new()) };
        let store = self.store.clone();
        self.on_lane(move || {
            let line = store.log(have, LINE)?;
            let steps = std::iter::successors(Some(1), |step| Some(step * 2));
            Ok(steps.map_while(|step: usize| line.get(step)).map(|commit| commit.id).collect())
        })
        .await
    }

    async fn download_from(
        &self,
        upstream: &Upstream,
        have: Option<Oid>,
        want: Head,
    ) -> Result<PathBuf, Error> {
        let have = have.map_or_else(|| "0".to_owned(), |have| have.to_string());
        let what = format!("{have}..{}", want.commit);
        let mut partial = Partial::open(self.store.spool(), &what).await?;
        if partial.is_whole() {
            return Ok(partial.path);
        }
        let mut request = upstream.get(&format!("packs/{what}"));
        if let Some(etag) = partial.etag() {
            request =
                request.header(RANGE, format!("bytes={}-", partial.offset)).header(IF_RANGE, etag);
        }
        let mut answer = match upstream.send(request).await {
            Err(Error::Answer { status: 416, .. }) => {
                partial.start_again().await?; // it has become another pack
                upstream.send(upstream.get(&format!("packs/{what}"))).await?
            }
            other => other?,
        };
        if answer.status().as_u16() != 206 || !partial.continues(&answer) {
            partial.start_again().await?;
        }
        let total = partial.offset + answer.content_length().unwrap_or(0);
        partial.remember(&answer, total).await?;
        let meter = Meter::new(&self.progress, want, partial.offset, total);
        let came = async {
            while let Some(chunk) = upstream.chunk(&mut answer).await? {
                partial.write(&chunk).await?;
                meter.add(chunk.len());
            }
            Ok(())
        };
        let came = came.await;
        let path = partial.finish().await?; // also when it was cut: the next try goes on from here
        came.map(|()| path)
    }

    async fn fetch_objects(
        &self,
        upstream: &Upstream,
        want: Head,
        objects: Vec<(ObjectId, u64)>,
    ) -> Result<(), Error> {
        let total = objects.iter().map(|(_, size)| size).sum();
        let meter = Meter::new(&self.progress, want, 0, total);
        futures_util::stream::iter(objects)
            .map(|(id, size)| self.fetch_object(upstream, id, size, &meter))
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    async fn fetch_object(
        &self,
        upstream: &Upstream,
        id: ObjectId,
        size: u64,
        meter: &Meter<'_>,
    ) -> Result<(), Error> {
        let store = self.store.clone();
        let mut writer = self.on_lane(move || Ok(store.object_writer(id, size)?)).await?;
        meter.add(usize::try_from(writer.offset()).unwrap_or(usize::MAX));
        if writer.offset() < size {
            writer = self.stream_object(upstream, id, writer, meter).await?;
        }
        self.on_lane(move || Ok(writer.finish()?)).await
    }

    /// Writes what an object lacks. What came before a break is kept: the next try goes on there.
    async fn stream_object(
        &self,
        upstream: &Upstream,
        id: ObjectId,
        mut writer: ObjectWriter,
        meter: &Meter<'_>,
    ) -> Result<ObjectWriter, Error> {
        let offset = writer.offset();
        let mut request = upstream.get(&format!("objects/{id}"));
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let mut answer = upstream.send(request).await?;
        // An object never changes: whoever sends it whole sends what we have first.
        let mut skip = if answer.status().as_u16() == 206 { 0 } else { offset };
        let mut block = BytesMut::with_capacity(BLOCK);
        loop {
            let chunk = upstream.chunk(&mut answer).await;
            if let Ok(Some(chunk)) = &chunk {
                block.extend_from_slice(&after(&mut skip, chunk.clone()));
            }
            let goes_on = matches!(chunk, Ok(Some(_)));
            if block.len() >= BLOCK || !goes_on {
                meter.add(block.len());
                let bytes = block.split().freeze();
                let write = move || {
                    writer.write(&bytes)?;
                    Ok(writer)
                };
                writer = self.on_lane(write).await?;
            }
            if !goes_on {
                return chunk.map(|_| writer);
            }
        }
    }
}

/// What of a chunk lies behind the bytes that are still to be skipped.
fn after(skip: &mut u64, mut chunk: Bytes) -> Bytes {
    let skipped = usize::try_from(*skip).unwrap_or(usize::MAX).min(chunk.len());
    *skip -= skipped as u64;
    chunk.split_off(skipped)
}

/// Takes a downloaded pack in; a damaged one is not kept to be gone on with.
fn take_pack(store: &Store, pack: &Path, want: &Head) -> Result<(), Error> {
    let mut file = File::open(pack).map_err(spool(pack))?;
    let received = store.receive(&mut file, want);
    let again = received.as_ref().is_err_and(|error| error.class() == Class::Transient);
    if !again {
        Partial::remove(pack)?;
    }
    Ok(received?)
}

/// The objects that are needed for `want` and are not here, now that its trees are.
fn lacking(store: &Store, want: &Head) -> Result<Vec<(ObjectId, u64)>, Error> {
    let have = store.head()?;
    if let Some(have) = have
        && have.epoch == want.epoch
        && !store.descends(have.commit, want.commit)?
    {
        return Err(Error::Split(*want));
    }
    Ok(store.missing_objects(have.map(|head| head.commit), want.commit)?)
}

fn advance(store: &Store, want: &Head, pack: Option<Bytes>) -> Result<Published, Error> {
    store.advance(want)?;
    let parent = store.commit(want.commit)?.parent;
    Ok(Published { head: *want, parent, pack })
}

/// Counts what has come, where the connection and `status` see it; nothing is under way once it is
/// dropped.
struct Meter<'a> {
    progress: &'a watch::Sender<Option<Progress>>,
}

impl<'a> Meter<'a> {
    fn new(
        progress: &'a watch::Sender<Option<Progress>>,
        head: Head,
        done: u64,
        total: u64,
    ) -> Self {
        progress.send_replace(Some(Progress { head, done, total }));
        Meter { progress }
    }

    fn add(&self, bytes: usize) {
        self.progress.send_modify(|progress| {
            if let Some(progress) = progress {
                progress.done += bytes as u64;
            }
        });
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.progress.send_replace(None);
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
