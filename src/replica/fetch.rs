//! Brings a head's pack and objects into the store: resumable, checked, and no request too many.
//!
//! A pack comes by Range into a partial file in `spool/`, which a later try goes on with; `objects`
//! brings the objects. What an announcement carried needs no request. Only when pack and objects are
//! durable does the store's head move. Nothing here decides when to try again, but for a link that
//! breaks while it brings something.

use std::{
    collections::HashSet,
    fs::File,
    io::Seek,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use http::header::{IF_RANGE, RANGE};

use crate::{
    model::{Class, Head, Oid, Subset},
    replica::{
        Error,
        event::Parcel,
        lane::Lane,
        meter::{Meter, Shown},
        partial::{self, Partial, spool},
        upstream::Upstream,
    },
    store::{self, Lacking, Published, Store},
};

/// How far back our own line is searched for a commit that the upstream knows.
const LINE: usize = 4_096;

/// What a fetch needs.
#[derive(Clone)]
pub(super) struct Fetcher {
    pub(super) store: Arc<Store>,
    pub(super) lane: Lane,
    pub(super) progress: Shown,
    /// The part of the feed whose objects are fetched.
    pub(super) part: Arc<Subset>,
    /// The directory that all of it is put into.
    pub(super) dir: Option<PathBuf>,
    /// Whether the objects of what the store holds were fetched for that part.
    pub(super) is_same_part: bool,
    /// Whether the history before the first version that is fetched is left out.
    pub(super) shallow: bool,
    /// Whether what an earlier fetch began is removed: by the fetch of the head, one at a time.
    pub(super) sweeps: bool,
}

impl Fetcher {
    /// Fetches `want` on top of `have`, and makes it the store's head.
    pub(super) async fn fetch(
        &self,
        upstream: &Upstream,
        have: Option<Head>,
        want: Head,
    ) -> Result<Published, Error> {
        self.check_room(upstream, have).await?;
        if !self.has(want).await? {
            let pack = self.download_pack(upstream, have.map(|head| head.commit), want).await?;
            let (store, shallow) = (self.store.clone(), self.shallow);
            self.on_lane(move || take_pack(&store, &pack, &want, shallow)).await?;
        }
        let fetcher = self.clone();
        let objects = self.on_lane(move || fetcher.lacking(&want)).await?;
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
        let came = parcels.iter().map(|parcel| parcel.pack.len() as u64).sum();
        self.progress.received(came);
        let alone = (parcels.len() == 1).then(|| last.pack.clone());
        let (store, want, pack) = (self.store.clone(), last.head, alone.clone());
        let fetcher = self.clone();
        let received = self.on_lane(move || {
            store.check_room(0)?;
            if let [Parcel { pack, head, .. }] = &parcels[..]
                && fetcher.is_same_part
                && fetcher.part.is_all()
                && let Some(published) = store.receive_next(pack, head)?
            {
                return Ok(Ok(published));
            }
            for parcel in &parcels {
                store.receive(&mut &parcel.pack[..], &parcel.head)?;
            }
            match fetcher.lacking(&want)? {
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

    /// Before a first sync all of the feed must fit, in the store and in the directory; later, what
    /// is fetched is checked when it is known.
    async fn check_room(&self, upstream: &Upstream, have: Option<Head>) -> Result<(), Error> {
        let is_first = have.is_none() && self.part.is_all();
        let bytes = if is_first { Some(upstream.bytes().await?) } else { None };
        let (store, dir) = (self.store.clone(), self.dir.clone());
        self.on_lane(move || match bytes {
            Some(bytes) => Ok(store.check_room_for_all(bytes, dir.as_deref())?),
            None => Ok(store.check_room(0)?),
        })
        .await
    }

    /// Whether the commit came before, and only objects of it may be missing: another part of the
    /// feed is wanted than then.
    async fn has(&self, want: Head) -> Result<bool, Error> {
        if self.is_same_part {
            return Ok(false);
        }
        let store = self.store.clone();
        self.on_lane(move || Ok(store.is_published(want.commit)?)).await
    }

    /// The objects that are needed for `want` and are not here, now that its trees are.
    fn lacking(&self, want: &Head) -> Result<Vec<Lacking>, Error> {
        let have = self.store.head()?;
        if let Some(have) = have
            && have.epoch == want.epoch
            && !self.store.descends(have.commit, want.commit)?
        {
            return Err(Error::Split(*want));
        }
        let have = have.filter(|_| self.is_same_part).map(|have| have.commit);
        Ok(self.store.lacking_of(have, want.commit, &self.part)?)
    }

    pub(super) async fn on_lane<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, Error> + Send + 'static,
    {
        self.lane.run(job).await?
    }

    /// Downloads the pack, from the newest commit of ours that the upstream knows.
    pub(super) async fn download_pack(
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
        let depth = if self.shallow && have == "0" { "?depth=1" } else { "" };
        let what = format!("packs/{have}..{}{depth}", want.commit);
        let wanted = HashSet::from([partial::file_of(&what)]);
        if self.sweeps {
            partial::sweep(self.store.spool(), &wanted).map_err(spool(self.store.spool()))?;
        }
        let meter = Meter::new(&self.progress, want, 0, 0);
        let download = Download { what, most: u64::MAX };
        let came = self.download(upstream, &download, &meter).await?;
        Ok(came.expect("a pack may have any size").path)
    }

    /// Downloads something into the spool, going on with what is there of it. A link that breaks is
    /// gone on with at once while it brings something. None: it is larger than it may be.
    pub(super) async fn download(
        &self,
        upstream: &Upstream,
        download: &Download,
        meter: &Meter<'_>,
    ) -> Result<Option<Downloaded>, Error> {
        loop {
            let mut partial = Partial::open(self.store.spool(), &download.what).await?;
            let before = partial.offset;
            let came = go_on(upstream, download, &mut partial, meter).await;
            let size = partial.offset;
            let path = partial.finish().await?; // also when it was cut: the next try goes on here
            match came {
                Ok(true) => return Ok(Some(Downloaded { path, size })),
                Ok(false) => {
                    Partial::remove(&path)?;
                    return Ok(None);
                }
                Err(error) if error.is_of_the_link() && size > before => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Something that is downloaded into the spool.
pub(super) struct Download {
    /// Its address below the feed.
    pub(super) what: String,
    /// The most bytes for which it is worth it.
    pub(super) most: u64,
}

/// What lies whole in the spool.
pub(super) struct Downloaded {
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

/// Brings what is lacking of a download. False: it is larger than it may be.
async fn go_on(
    upstream: &Upstream,
    download: &Download,
    partial: &mut Partial,
    meter: &Meter<'_>,
) -> Result<bool, Error> {
    if partial.is_whole() {
        return Ok(true);
    }
    let mut request = upstream.get(&download.what);
    if let Some(etag) = partial.etag() {
        request =
            request.header(RANGE, format!("bytes={}-", partial.offset)).header(IF_RANGE, etag);
    }
    let mut answer = match upstream.send(request).await {
        Err(Error::Answer { status: 416, .. }) => {
            partial.start_again().await?; // it has become another
            upstream.send(upstream.get(&download.what)).await?
        }
        other => other?,
    };
    if answer.status().as_u16() != 206 || !partial.continues(&answer) {
        partial.start_again().await?;
    }
    let total = partial.offset + answer.content_length().unwrap_or(0);
    if total > download.most {
        return Ok(false);
    }
    partial.remember(&answer, total).await?;
    meter.begun(partial.offset, total);
    while let Some(chunk) = upstream.chunk(&mut answer).await? {
        partial.write(&chunk).await?;
        meter.came(chunk.len() as u64);
    }
    Ok(true)
}

/// Takes a downloaded pack in; a damaged one is not kept to be gone on with.
fn take_pack(store: &Store, pack: &Path, want: &Head, shallow: bool) -> Result<(), Error> {
    let mut file = File::open(pack).map_err(spool(pack))?;
    let received = match store.receive(&mut file, want) {
        // It does not begin where our line ends: as was asked for, it begins anew.
        Err(store::Error::Refused(_)) if shallow => {
            file.rewind().map_err(spool(pack))?;
            store.receive_alone(&mut file, want)
        }
        received => received,
    };
    let again = received.as_ref().is_err_and(|error| error.class() == Class::Transient);
    if !again {
        Partial::remove(pack)?;
    }
    Ok(received?)
}

fn advance(store: &Store, want: &Head, pack: Option<Bytes>) -> Result<Published, Error> {
    store.advance(want)?;
    Ok(Published { pack, ..store.announced(*want)? })
}
