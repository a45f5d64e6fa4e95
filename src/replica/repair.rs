//! Bringing back from the upstream what the store has lost: a mirror's repair.
//!
//! The history comes as one pack of all of it, objects one by one; every id is checked on the way in.
//! No head moves.

use std::fs::File;

use super::{Error, fetch::Fetcher, partial::Partial, upstream::Upstream};
use crate::{
    model::{Head, ObjectId},
    store::Lacking,
};

impl Fetcher {
    /// Fetches what is missing of `head`.
    pub(super) async fn repair(
        &self,
        upstream: &Upstream,
        head: Head,
        history: bool,
        objects: Vec<(ObjectId, u64)>,
    ) -> Result<(), Error> {
        if history {
            let path = self.download_pack(upstream, None, head).await?;
            let store = self.store.clone();
            let restore = move || {
                let mut pack = File::open(&path).map_err(super::partial::spool(&path))?;
                let restored = store.restore_history(&mut pack);
                Partial::remove(&path)?;
                Ok(restored?)
            };
            self.on_lane(restore).await?;
        }
        let (store, mut objects) = (self.store.clone(), objects);
        if history {
            // Only now can it be told what the trees refer to.
            let part = self.part.clone();
            let lost = move || Ok(store.lacking_of(None, head.commit, &part)?);
            let lost = self.on_lane(lost).await?;
            objects.extend(lost.into_iter().map(|object| (object.id, object.size)));
            objects.sort_unstable();
            objects.dedup();
        }
        let whole = |(id, size)| Lacking { id, size, base: None };
        self.fetch_objects(upstream, head, objects.into_iter().map(whole).collect()).await
    }
}
