//! Whether an announcement is believed, before anything is done for it.
//!
//! It must be about our feed and, where there are trusted keys, bring the head's commit as one of them
//! has signed it. Heads that heartbeats and answers name are hints of where to look: what is fetched for
//! them is checked in the same way before it counts.

use std::sync::Arc;

use crate::{
    bus::frame::Announce,
    model::FeedName,
    replica::Error,
    store::{self, Store},
};

/// An error, with the reason, when it is not.
pub(super) async fn check(
    store: &Arc<Store>,
    feed: &FeedName,
    announce: &Announce,
) -> Result<(), Error> {
    if announce.feed != *feed {
        let other = format!("it is about the feed \"{}\", and ours is \"{feed}\"", announce.feed);
        return Err(store::Error::Refused(other).into());
    }
    if !store.asks_for_signatures() {
        return Ok(());
    }
    let (store, announce) = (Arc::clone(store), announce.clone());
    #[expect(clippy::disallowed_methods, reason = "a file of kilobytes, and a signature")]
    let checked = tokio::task::spawn_blocking(move || {
        store.check_announced(&announce.head, announce.parent, announce.signature.as_deref())
    });
    Ok(checked.await.map_err(|_| Error::Stopped)??)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;

    use super::*;
    use crate::{
        model::{Entry, Kind, Meta, RelPath},
        signing::{self, Signer, Trusted},
        store::{Keys, Published, Signature},
    };

    fn publish(store: &Store, text: &str) -> Published {
        let mut draft = store.draft().unwrap();
        let blob = draft.add_blob(text.as_bytes()).unwrap();
        let entry = Entry { kind: Kind::File { blob, executable: false }, meta: Meta::default() };
        draft.put(&RelPath::parse(b"a.txt").unwrap(), entry);
        let by = Signature {
            author: "tester".to_owned(),
            node: "hub".parse().unwrap(),
            epoch: 1,
            time: 1_700_000_000,
            subject: "a change".to_owned(),
        };
        store.publish(draft.finish(&by).unwrap().unwrap()).unwrap()
    }

    fn encode(published: &Published) -> Bytes {
        let Published { head, parent, signed, pack } = published.clone();
        let signature = signed.as_deref().map(str::to_owned);
        let feed = FeedName::default();
        Announce { feed, head, parent, size: 0, signature }.encode(pack.as_deref())
    }

    fn stores(folder: &Path) -> (Store, Arc<Store>) {
        let key = folder.join("key");
        let line = signing::create(&key, "hub").unwrap();
        std::fs::write(folder.join("allowed"), line).unwrap();
        let signer = Some(Signer::open(&key).unwrap());
        let trusted = Some(Trusted::open(&folder.join("allowed")).unwrap());
        let hub = Store::open(&folder.join("hub")).unwrap();
        let mirror = Store::open_mirror(&folder.join("mirror")).unwrap();
        let hub = hub.with_keys(Keys { signer, trusted: None });
        (hub, Arc::new(mirror.with_keys(Keys { signer: None, trusted })))
    }

    #[tokio::test]
    async fn one_flipped_bit_anywhere_in_an_announcement_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, mirror) = stores(folder.path());
        let (first, second) = (publish(&hub, "one"), publish(&hub, "two"));
        let pack = first.pack.clone().unwrap();
        mirror.receive(&mut &pack[..], &first.head).unwrap();
        mirror.advance(&first.head).unwrap();
        let frame = encode(&second);
        let (announce, pack) = Announce::decode(frame.clone()).unwrap();
        let feed = FeedName::default();
        check(&mirror, &feed, &announce).await.unwrap();
        let pack = pack.unwrap();
        let json = frame.len() - pack.len();
        for bit in 0..8 * frame.len() {
            let mut bad = frame.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok((read, inside)) = Announce::decode(bad.into()) else { continue };
            if bit / 8 < json {
                let refused = check(&mirror, &feed, &read).await;
                assert!(refused.is_err(), "bit {bit}: {read:?}");
            } else {
                let refused = mirror.receive(&mut &inside.unwrap()[..], &read.head);
                assert!(refused.is_err(), "bit {bit} of the pack");
            }
        }
        assert_eq!(mirror.head().unwrap(), Some(first.head), "the old release stays");
        mirror.receive(&mut &pack[..], &second.head).unwrap();
    }

    #[tokio::test]
    async fn unsigned_and_strange_ones_are_refused_where_it_matters() {
        let folder = tempfile::tempdir().unwrap();
        let (hub, mirror) = stores(folder.path());
        let published = publish(&hub, "one");
        let (announce, _) = Announce::decode(encode(&published)).unwrap();
        let (feed, other) = (FeedName::default(), "other".parse().unwrap());
        assert!(check(&mirror, &other, &announce).await.is_err());
        let unsigned = Announce { signature: None, ..announce.clone() };
        assert!(check(&mirror, &feed, &unsigned).await.is_err());
        let open = Arc::new(Store::open_mirror(&folder.path().join("open")).unwrap());
        check(&open, &feed, &unsigned).await.unwrap();
        // Another primary's commit, signed by a key that is not believed.
        let strange = tempfile::tempdir().unwrap();
        let (stranger, _) = stores(strange.path());
        let (announce, _) = Announce::decode(encode(&publish(&stranger, "three"))).unwrap();
        let refused = check(&mirror, &feed, &announce).await.unwrap_err().to_string();
        assert!(refused.contains("which is not in"), "{refused}");
    }
}
