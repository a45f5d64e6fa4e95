//! Who may read at a region without a token of that region: the passes in redirects, and what a mirror
//! is told so that it can judge by itself.
//!
//! A primary signs with keys that it derives; a region checks with the keys that it was given, and a
//! relay hands on those of the regions below it. A pass that has ended leads back to the upstream,
//! which never sends on what it is asked for by commit, so nobody goes round in circles.

use std::{sync::Arc, time::UNIX_EPOCH};

use axum::extract::Request;
use http::{StatusCode, Uri};

use super::{Edge, access::Caller, error::Fault, target};
use crate::{
    bus::{Desk, Reader, Site, Trust},
    ledger::{decisions::Doc, tokens::Token},
    model::{FeedName, LASTS, Need, NodeId, Oid, Pass, RegionKey, RelPath, Role, day_of},
    sys,
};

/// What a follower was last told; only what differs is told again.
#[derive(Default)]
pub(super) struct Told {
    keys: Option<Vec<RegionKey>>,
    readers: Option<Vec<Reader>>,
    /// The decisions that the readers were read from.
    seen: Option<Arc<Doc>>,
}

impl Edge {
    /// What a redirect ends in; none where nobody is asked for a token.
    pub(super) fn pass(
        &self,
        site: &Site,
        desk: &Desk,
        commit: Oid,
        path: &RelPath,
    ) -> Option<String> {
        let (secret, region) = (self.pass_secret.as_ref()?, site.region.as_ref()?);
        let feed = site.feed.as_ref().unwrap_or(&desk.feed);
        let expires = (now_ms() / 1000).cast_unsigned() + LASTS.as_secs();
        let pass = Pass { feed, commit, path, region, expires };
        Some(secret.key(&desk.feed, region, day_of(expires)).query(&pass))
    }

    /// What a follower may know of who may read.
    pub(super) fn trust(&self, desk: &Desk, node: &NodeId, told: &mut Told) -> Option<Trust> {
        self.pass_secret.as_ref()?;
        let keys = self.keys_of(desk, node);
        let keys = (told.keys.as_ref() != Some(&keys)).then_some(keys);
        if keys.is_some() {
            told.keys.clone_from(&keys);
        }
        Some(Trust { now_ms: now_ms(), keys, readers: self.readers_of(&desk.feed, told) })
    }

    /// A primary derives the keys; a relay hands on those it was given.
    fn keys_of(&self, desk: &Desk, node: &NodeId) -> Vec<RegionKey> {
        let regions = desk.regions_at(node);
        let is_primary = desk.state.borrow().primary;
        match &self.pass_secret {
            Some(secret) if is_primary => {
                let now = (now_ms() / 1000).cast_unsigned();
                regions.iter().flat_map(|region| secret.keys(&desk.feed, region, now)).collect()
            }
            _ => {
                let learned = desk.learned.borrow();
                let wanted = |key: &&RegionKey| regions.contains(&key.region);
                learned.keys.iter().filter(wanted).cloned().collect()
            }
        }
    }

    fn readers_of(&self, feed: &FeedName, told: &mut Told) -> Option<Vec<Reader>> {
        let doc = self.access.decisions.get();
        if told.seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, &doc)) {
            return None;
        }
        let readers = readers(&doc, feed);
        told.seen = Some(doc);
        let news = told.readers.as_ref() != Some(&readers);
        news.then(|| {
            told.readers = Some(readers.clone());
            readers
        })
    }

    /// Whether a request that its token does not open has a pass; otherwise the fault stays.
    pub(super) fn check_pass(&self, request: &Request, fault: Fault) -> Result<Caller, Fault> {
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&fault.status());
        if !refused || !request.method().is_safe() {
            return Err(fault);
        }
        match self.judge(request.uri()) {
            Some(Verdict::Good) => Ok(Caller::Anyone),
            Some(Verdict::Ended(url)) => Err(Fault::elsewhere(&url)),
            None => Err(fault),
        }
    }

    /// None: there is no pass, or it is not one of ours.
    fn judge(&self, uri: &Uri) -> Option<Verdict> {
        let (expires, signature) = pass_of(uri.query()?)?;
        let region = self.region.as_ref()?;
        let below = uri.path().strip_prefix("/v1/feeds/")?;
        let (feed, below) = below.split_once('/')?;
        let (commit, raw) = below.strip_prefix("at/")?.split_once('/')?;
        let desk = &self.feed(feed).ok()?.desk;
        let (path, _) = target::path_to_read(raw).ok()?;
        let pass = Pass {
            feed: &desk.feed,
            commit: target::commit(commit).ok()?,
            path: &path,
            region,
            expires,
        };
        let learned = desk.learned.borrow();
        let now = now_ms().saturating_add(learned.ahead_ms) / 1000;
        if i64::try_from(expires).is_ok_and(|end| end <= now) {
            return Some(Verdict::Ended(upstream_of(desk, commit, raw)?));
        }
        let day = day_of(expires);
        let mut keys = learned.keys.iter().filter(|key| key.day == day && key.region == *region);
        keys.any(|key| key.key.signed(&pass, signature)).then_some(Verdict::Good)
    }
}

enum Verdict {
    Good,
    /// It was good, or says so: the upstream knows, at that address.
    Ended(String),
}

/// The expiry and the signature of a query.
fn pass_of(query: &str) -> Option<(u64, &str)> {
    let of = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name));
    Some((of("exp=")?.parse().ok()?, of("sig=")?))
}

/// The same file of the same version at the upstream.
fn upstream_of(desk: &Desk, commit: &str, raw: &str) -> Option<String> {
    let state = desk.state.borrow();
    let base = state.upstream_url.as_deref()?.trim_end_matches('/');
    let feed = state.upstream_feed.as_ref().unwrap_or(&desk.feed);
    Some(format!("{base}/v1/feeds/{feed}/at/{commit}/{raw}"))
}

/// The readers' tokens that are good for a feed: made here, or at its upstream.
fn readers(doc: &Doc, feed: &FeedName) -> Vec<Reader> {
    let ours = doc.tokens.iter().filter(|token| {
        token.scope.role == Role::Reader && token.scope.opens(Need::Read, Some(feed.as_str()))
    });
    let learned = doc.feeds.get(feed).map_or(&[][..], |kept| &kept.readers);
    ours.chain(learned).map(reader).collect()
}

fn reader(token: &Token) -> Reader {
    let Token { id, hash, created, expires, scope: _ } = token.clone();
    Reader { id, hash, created, expires }
}

fn now_ms() -> i64 {
    let since = sys::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
