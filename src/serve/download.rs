//! Downloads: `files/` (the newest version, or where to get it) and `at/{commit}/` (exactly that one).
//!
//! The primary leads a client to its region's node, naming the commit, so what arrives is the version
//! that the primary has. A file in the cache is answered without touching a thread.

use std::{fs::File, net::IpAddr, ops::Range, sync::Arc, time::Duration};

use axum::{
    body::Body as AxumBody,
    extract::{Query, State},
    response::Response,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header, request::Parts};
use http_body::Body as _;
use http_body_util::Full;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{
    Edge, Peer,
    access::Caller,
    document::{self, Body, Document, Found},
    edge::Feed,
    error::{Answer, Fault},
    freshness,
    gate::Place,
    listing,
    objects::GIVEN_UP,
    range::{self, Verdict},
    redirect::{self, Aim, Client, Fleet, Versions},
    stream::FileBody,
    target,
    throttle::Throttled,
};
use crate::{
    bus::{Desk, Request as Ask, Site, Unfetched},
    model::{ObjectId, Oid, Receiver, RegionName, RelPath, Traffic},
    store::Store,
};

/// How long a region may take to fetch a version before its client is told to come again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// What an unknown commit takes in its cache.
const UNKNOWN_COST: usize = 200;

const NEWEST: HeaderValue = HeaderValue::from_static("no-cache");
const FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

#[derive(Debug, Default, Deserialize)]
struct Wishes {
    via: Option<String>,
    resource_group: Option<String>,
}

/// `GET /v1/feeds/{feed}/files/{path}`
pub(super) async fn newest(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let (path, folder) = target::path_to_read(tail)?;
    let newest = freshness::newest(&edge, feed).await?;
    // Only the primary leads clients elsewhere.
    let asker = (&parts.headers, edge.client(&parts));
    let aim = if feed.is_primary() { aim(&edge, feed, &parts.uri, asker)? } else { None };
    let commit = aim.as_ref().map_or(newest.commit, |aim| aim.version.commit);
    not_revoked(feed, commit)?;
    let found = find(&edge, feed, (commit, path), folder).await?;
    let Found::File(file) = &found.1 else {
        return listing::folder(&edge, feed, &parts, &found.0, &found.1).await;
    };
    if let Some(answer) = aim.and_then(|aim| led_away(&edge, feed, aim, (&found.0.1, file))) {
        return Ok(answer);
    }
    let mut response = send(&edge, feed, &parts, file, NEWEST).await?;
    newest.describe(response.headers_mut());
    Ok(response)
}

/// That a version may be given to anybody.
pub(super) fn not_revoked(feed: &Feed, commit: Oid) -> Result<(), Fault> {
    if feed.desk.orders.borrow().revoked.contains(&commit) {
        return Err(Fault::gone("revoked", format!("commit {commit} is revoked")));
    }
    Ok(())
}

/// `GET /v1/feeds/{feed}/at/{commit}/{path}`
pub(super) async fn exact(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let (feed, tail) = edge.below(&parts.uri)?;
    let (commit, raw) = tail.split_once('/').unwrap_or((tail, ""));
    let commit = target::commit(commit)?;
    let (path, folder) = target::path_to_read(raw)?;
    let place = (commit, path);
    not_revoked(feed, commit)?;
    if feed.found.get(&place).is_none() {
        published(&edge, feed, commit).await?;
    }
    let found = find(&edge, feed, place, folder).await?;
    match &found.1 {
        Found::File(file) => send(&edge, feed, &parts, file, FOREVER).await,
        Found::Folder(_) => listing::folder(&edge, feed, &parts, &found.0, &found.1).await,
    }
}

/// Makes sure that a commit is a published one of this feed, and here; a region fetches it if need be.
pub(super) async fn published(edge: &Edge, feed: &Feed, commit: Oid) -> Result<(), Fault> {
    let known = || edge.store(feed, move |store| store.is_published(commit));
    if known().await? {
        return Ok(());
    }
    let unknown = || {
        let message = format!("commit {commit} is not a published one of this feed");
        Fault::not_found("no_such_commit", message)
    };
    if feed.is_primary() {
        return Err(unknown());
    }
    // Whoever makes commits up costs the upstream one question for each while nothing is published.
    let head = feed.desk.head();
    if feed.unknown.get(&commit) == Some(head) {
        return Err(unknown());
    }
    let fetched = fetch(&feed.desk, commit).await;
    if known().await? {
        return Ok(());
    }
    let state = feed.desk.state.borrow().clone();
    let current = state.want == head && feed.desk.head() == head;
    if current && freshness::is_leased(&state) {
        feed.unknown.insert(commit, head, UNKNOWN_COST);
        return Err(unknown());
    }
    fetched.and_then(|()| Err(unknown()))
}

/// Asks the stage that mirrors the feed to bring a commit, and waits for it.
async fn fetch(desk: &Desk, commit: Oid) -> Result<(), Fault> {
    let (answer, fetched) = oneshot::channel();
    if !desk.ask(Ask::Fetch(commit, answer)) {
        return Err(Fault::unavailable(
            "this version is not here, and too much is being fetched",
            5,
        ));
    }
    match tokio::time::timeout(FETCH_TIMEOUT, fetched).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(reason))) => {
            Err(Fault::unavailable(format!("this version cannot be fetched: {reason}"), 5))
        }
        Ok(Err(_)) => Err(Fault::unavailable("this node is shutting down", 5)),
        Err(_) => Err(Fault::unavailable("this version is still being fetched", 10)),
    }
}

/// What lies at a place of a published commit, with the place.
pub(super) async fn find(
    edge: &Edge,
    feed: &Arc<Feed>,
    place: document::Place,
    folder: bool,
) -> Result<(document::Place, Found), Fault> {
    let found = match feed.found.get(&place) {
        Some(found) => Some(found),
        None => edge.look_up(feed, place.clone()).await?,
    };
    match found {
        Some(Found::File(_)) if folder => Err(target::no_such_path(place.1.as_bytes())),
        Some(found) => Ok((place, found)),
        None => Err(target::no_such_path(place.1.as_bytes())),
    }
}

/// The redirect of a `GET` of the newest version, where nothing has to be waited for to know it, and who
/// asks may have it. None: another answer, or one that takes longer.
pub(super) fn led_at_once<B>(edge: &Edge, peer: Peer, request: &Request<B>) -> Option<Response> {
    let (uri, headers) = (request.uri(), request.headers());
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let (feed, raw) = uri.path().strip_prefix("/v1/feeds/")?.split_once("/files/")?;
    let feed = edge.feed(feed).ok().filter(|feed| feed.is_primary())?;
    // When a token was used is written down.
    match edge.access.check(request.method(), uri, headers) {
        Ok(Caller::Anyone | Caller::Admin) => {}
        Ok(Caller::Holder(_)) | Err(_) => return None,
    }
    let (path, folder) = target::path_to_read(raw).ok()?;
    let client = edge.client_behind(peer.0.ip(), headers);
    let aim = aim(edge, feed, uri, (headers, Some(client))).ok()??;
    not_revoked(feed, aim.version.commit).ok()?;
    let place = (aim.version.commit, path);
    match feed.found.get(&place)? {
        Found::File(file) if !folder => led_away(edge, feed, aim, (&place.1, &file)),
        _ => None,
    }
}

/// Which version the client of a request gets, and from where at best; none before the first one.
fn aim(
    edge: &Edge,
    feed: &Feed,
    uri: &Uri,
    (headers, addr): (&HeaderMap, Option<IpAddr>),
) -> Result<Option<Aim>, Fault> {
    let Some(newest) = feed.desk.head() else { return Ok(None) };
    let wishes = match uri.query() {
        None => Wishes::default(),
        Some(_) => wishes(uri)?,
    };
    let named = headers.get("x-resource-group").and_then(|group| group.to_str().ok());
    let client = Client {
        addr,
        group: wishes.resource_group.as_deref().or(named),
        via: wishes.via.as_deref(),
    };
    let versions = Versions { newest, orders: &feed.desk.orders.borrow() };
    Ok(Some(redirect::aim(&edge.regions(), &client, &*feed.desk, &versions)))
}

fn wishes(uri: &Uri) -> Result<Wishes, Fault> {
    let Query(wishes) = Query::try_from_uri(uri)
        .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
    Ok(wishes)
}

impl Fleet for Desk {
    fn of_region(&self, region: &RegionName) -> Vec<Site> {
        self.sites_of(region)
    }

    fn of_node(&self, node: &str) -> Option<Site> {
        self.site(&node.parse().ok()?)
    }
}

/// The redirect, where another node serves.
fn led_away(
    edge: &Edge,
    feed: &Feed,
    aim: Aim,
    (path, file): (&RelPath, &Document),
) -> Option<Response> {
    let site = aim.choose([path, &file.path]).server?;
    edge.metrics.redirected();
    Some(redirect_to(edge, &site, &feed.desk, (file, path)))
}

fn redirect_to(
    edge: &Edge,
    site: &Site,
    desk: &Desk,
    (file, path): (&Document, &RelPath),
) -> Response {
    let feed = site.feed.as_ref().unwrap_or(&desk.feed);
    let commit = file.commit_text.to_str().expect("hex digits");
    let parts = [site.url.trim_end_matches('/'), "/v1/feeds/", feed.as_str(), "/at/", commit, "/"];
    let mut url = parts.concat();
    url.extend(target::encoded(path.as_bytes()));
    if let Some(pass) = edge.pass(site, desk, file.commit, path) {
        url.extend(["?", &pass]);
    }
    let mut response = Response::new(AxumBody::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    if let Ok(url) = HeaderValue::try_from(url) {
        headers.insert(header::LOCATION, url);
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Sends a file, or the part or the answer that the request's conditions ask for.
async fn send(
    edge: &Edge,
    feed: &Arc<Feed>,
    parts: &Parts,
    file: &Arc<Document>,
    caching: HeaderValue,
) -> Answer {
    let etag = file.etag.to_str().expect("quotes and hex digits");
    let (status, bytes) = match range::judge(&parts.method, &parts.headers, etag, file.size) {
        Verdict::Whole => (StatusCode::OK, 0..file.size),
        Verdict::Part(bytes) => (StatusCode::PARTIAL_CONTENT, bytes),
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, 0..0),
        Verdict::PreconditionFailed => return Err(Fault::precondition()),
        Verdict::Unsatisfiable => return Err(Fault::range(file.size)),
    };
    let length = bytes.end - bytes.start;
    let content_range = (status == StatusCode::PARTIAL_CONTENT)
        .then(|| format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, file.size));
    let body = if status == StatusCode::NOT_MODIFIED || parts.method == Method::HEAD {
        AxumBody::empty()
    } else {
        let place = edge.gate.enter().await?;
        let receiver = edge.receiver(parts, Traffic::Downloads);
        edge.body_of(feed, file, bytes, (place, receiver)).await?
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(file, headers);
    headers.insert(header::CACHE_CONTROL, caching);
    if status != StatusCode::NOT_MODIFIED {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if let Some(range) = content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
        headers.insert(header::CONTENT_RANGE, range);
    }
    Ok(response)
}

/// The headers that say what a file is. A browser must neither guess its type nor run it as ours.
fn describe(file: &Document, headers: &mut HeaderMap) {
    headers.reserve(13);
    headers.insert(header::ETAG, file.etag.clone());
    headers.insert("repr-digest", file.digest.clone());
    headers.insert("x-depsync-commit", file.commit_text.clone());
    headers.insert(header::CONTENT_TYPE, file.mime.clone());
    headers.insert(header::CONTENT_DISPOSITION, file.disposition.clone());
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
}

fn gone(commit: Oid) -> Fault {
    Fault::gone("not_kept", format!("the content of version {commit} {GIVEN_UP}"))
}

impl Edge {
    /// What lies at a place of a published commit, and keeps it.
    pub(super) async fn look_up(
        &self,
        feed: &Arc<Feed>,
        place: document::Place,
    ) -> Result<Option<Found>, Fault> {
        let (library, feed) = (Arc::clone(&self.library), Arc::clone(feed));
        let call = move || document::find(&feed.desk.store, &library, &feed.found, &place);
        Ok(self.blocking.run(call).await?)
    }

    /// For whom a response's bytes are.
    pub(super) fn receiver(&self, parts: &Parts, class: Traffic) -> Receiver {
        let client = self.client(parts);
        let region = client.and_then(|addr| self.regions().of_address(addr).cloned());
        Receiver { class, client: client.unwrap_or([0, 0, 0, 0].into()), region }
    }

    /// Part of a file as a body that keeps to the limits.
    async fn body_of(
        &self,
        feed: &Feed,
        file: &Document,
        bytes: Range<u64>,
        (place, to): (Place, Receiver),
    ) -> Result<AxumBody, Fault> {
        match &file.body {
            Body::Memory(all) => {
                let index =
                    |at| usize::try_from(at).expect("what is in memory is indexed by usize");
                let part = all.slice(index(bytes.start)..index(bytes.end));
                Ok(self.memory_body(part, place, to))
            }
            Body::Object(id) => {
                let opened = self.open_object(feed, file.commit, (*id, file.size)).await?;
                Ok(AxumBody::new(place.with(self.file_body(opened, bytes, to))))
            }
        }
    }

    /// Opens an object's file; a region that passed its version over fetches the object first.
    async fn open_object(
        &self,
        feed: &Feed,
        commit: Oid,
        (id, size): (ObjectId, u64),
    ) -> Result<File, Fault> {
        let open = || self.store(feed, move |store| store.open_object(&id));
        if let Some(file) = open().await? {
            return Ok(file);
        }
        let brought = self.bring(feed, (id, size), Some(commit)).await;
        if let Some(file) = open().await? {
            return Ok(file);
        }
        if brought.as_ref().is_err_and(Fault::is_gone) {
            return Err(gone(commit));
        }
        let why = move |store: &Store| store.is_given_up(commit, &id);
        if feed.is_primary() && self.store(feed, why).await? {
            return Err(gone(commit));
        }
        brought?;
        Err(Fault::unavailable("the content of this file is being repaired", 5))
    }

    /// At a region: has an object brought that a published version refers to, and waits for it.
    pub(super) async fn bring(
        &self,
        feed: &Feed,
        (id, size): (ObjectId, u64),
        commit: Option<Oid>,
    ) -> Result<(), Fault> {
        if feed.is_primary() {
            return Ok(());
        }
        let (answer, brought) = oneshot::channel();
        if !feed.desk.ask(Ask::Object { id, size, commit, answer }) {
            let message = "this content is not here, and too much is being fetched";
            return Err(Fault::unavailable(message, 5));
        }
        match tokio::time::timeout(FETCH_TIMEOUT, brought).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(Unfetched::Gone(why)))) => Err(Fault::gone("not_kept", why)),
            Ok(Ok(Err(Unfetched::Later(why)))) => {
                Err(Fault::unavailable(format!("this content cannot be fetched now: {why}"), 5))
            }
            Ok(Err(_)) => Err(Fault::unavailable("this node is shutting down", 5)),
            Err(_) => Err(Fault::unavailable("this content is still being fetched", 10)),
        }
    }

    fn memory_body(&self, bytes: Bytes, place: Place, to: Receiver) -> AxumBody {
        let body = place.with(Full::new(bytes));
        if self.throttle.is_limited() {
            return AxumBody::new(self.throttled(body, to));
        }
        self.metrics.sent(to.class, body.size_hint().lower());
        AxumBody::new(body)
    }

    /// Part of an opened file as a body that keeps to the limits.
    pub(super) fn file_body(&self, file: File, bytes: Range<u64>, to: Receiver) -> AxumBody {
        let body = FileBody::new(file, bytes, self.blocking.clone(), &self.share);
        AxumBody::new(self.throttled(body, to))
    }

    /// A body that keeps to the limits and is counted.
    pub(super) fn throttled<B>(&self, body: B, to: Receiver) -> Throttled<B> {
        let sent = self.metrics.sending(to.class);
        self.throttle.body(body, to, sent)
    }
}
