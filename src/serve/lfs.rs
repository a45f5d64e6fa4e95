//! The batch API of git-lfs, for downloads: it says where each object is; objects come from there.
//!
//! Only what published commits refer to is here, as everywhere. Nothing is taken in and nothing is
//! locked; both are refused in the way that keeps git-lfs quiet where it can go on without.
//! The format is that of git-lfs, `docs/api/batch.md`.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header, request::Parts};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
    git, objects, packs,
};
use crate::{
    model::{ObjectId, Traffic},
    store,
};

/// git-lfs asks for a hundred at once.
const MAX_OBJECTS: usize = 1000;
/// Room for so many, in about a hundred bytes each.
const MAX_REQUEST: usize = 256 << 10;

#[derive(Deserialize)]
struct Batch {
    operation: String,
    hash_algo: Option<String>,
    objects: Vec<Wanted>,
}

#[derive(Deserialize)]
struct Wanted {
    oid: String,
    size: u64,
}

/// `POST /git/{feed}.git/info/lfs/objects/batch`
pub(super) async fn batch(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    as_lfs(locate(&edge, request).await)
}

/// `GET …/info/lfs/objects/{sha256}`: an object, to a client that downloads and mirrors nothing.
pub(super) async fn object(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let feed = Arc::clone(git::repository(&edge, &parts.uri)?);
    let id = objects::named(parts.uri.path().rsplit('/').next().unwrap_or_default())?;
    let sending = objects::open_or_bring(&edge, &feed, id).await?;
    let place = edge.gate.enter().await?;
    let answer = packs::send(&edge, &parts, sending, Traffic::Downloads)?;
    Ok(answer.map(|body| Body::new(place.with(body))))
}

/// `…/info/lfs/locks…`: 404 says that there are no locks here, and git-lfs goes on without.
pub(super) async fn locks() -> Response {
    as_lfs(Err(Fault::not_found("no_locks", "feeds are read only for git: nothing is locked")))
}

async fn locate(edge: &Edge, request: Request) -> Answer {
    let (parts, body) = request.into_parts();
    let feed = Arc::clone(git::repository(edge, &parts.uri)?);
    let body = git::gather(body, MAX_REQUEST).await?;
    let batch: Batch = serde_json::from_slice(&body)
        .map_err(|error| Fault::malformed(format!("this is no batch request: {error}")))?;
    batch.check()?;
    let objects = format!("{}/git/{}.git/info/lfs/objects", edge.advertise, feed.desk.feed);
    let look = move || {
        let found = batch.objects.iter().map(|wanted| wanted.find(&feed, &objects));
        found.collect::<store::Result<Vec<Value>>>()
    };
    let objects = edge.blocking.run(look).await?;
    let answer = json!({ "transfer": "basic", "hash_algo": "sha256", "objects": objects });
    Ok(Json(answer).into_response())
}

impl Batch {
    fn check(&self) -> Result<(), Fault> {
        if self.operation != "download" {
            return Err(Fault::forbidden("feeds are read only for git: objects can be downloaded"));
        }
        if self.hash_algo.as_ref().is_some_and(|name| name != "sha256") {
            return Err(Fault::conflict("objects are named by sha256 here"));
        }
        if self.objects.len() > MAX_OBJECTS {
            return Err(Fault::too_many(MAX_OBJECTS));
        }
        Ok(())
    }
}

impl Wanted {
    /// Where the object is, below the URL of all, or why it is not. Blocks.
    fn find(&self, feed: &Feed, objects: &str) -> store::Result<Value> {
        let Wanted { oid, size } = self;
        let Ok(id) = oid.parse::<ObjectId>() else {
            return Ok(self.refuse(422, "the name is not that of an object: 64 hex digits"));
        };
        let store = &feed.desk.store;
        // A region has it brought when it is asked for.
        let is_to_be_had = !feed.is_primary() || store.has_object(&id);
        Ok(match store.public_size(&id)?.filter(|_| is_to_be_had) {
            None if store.was_removed(&id)? => {
                self.refuse(410, &format!("the object {}", objects::GIVEN_UP))
            }
            None => self.refuse(404, "no published commit here refers to this object"),
            Some(found) if found != *size => {
                self.refuse(422, &format!("the object has {found} bytes"))
            }
            Some(_) => json!({
                "oid": oid, "size": size, "authenticated": true,
                "actions": { "download": { "href": format!("{objects}/{id}") } },
            }),
        })
    }

    fn refuse(&self, code: u16, message: &str) -> Value {
        // A name may be as long as the whole request; what is wrong with it shows in its beginning.
        let oid: String = self.oid.chars().take(80).collect();
        json!({ "oid": oid, "size": self.size, "error": { "code": code, "message": message } })
    }
}

fn as_lfs(answer: Answer) -> Response {
    let mut response = answer.into_response();
    let mime = HeaderValue::from_static("application/vnd.git-lfs+json");
    response.headers_mut().insert(header::CONTENT_TYPE, mime);
    response
}
