//! `/v1/tokens`: making, listing and revoking what lets others in. For admins alone.
//!
//! The secret is in the answer to its making and nowhere else.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, State},
    response::IntoResponse,
};
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Edge,
    control::{Taken, fields},
    error::{Answer, Fault},
};
use crate::{
    ledger::tokens::{Made, Token},
    model::{FeedName, Need, RegionPattern, Role, Scope},
    sys,
};

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    role: Option<Role>,
    feed: Option<FeedName>,
    region: Option<RegionPattern>,
    expires: Option<DateTime<Utc>>,
}

/// `POST /v1/tokens`: 201 with the secret.
pub(super) async fn create(State(edge): State<Arc<Edge>>, body: Taken) -> Answer {
    let Wish { role, feed, region, expires } = fields(body)?;
    let Some(role) = role else { return Err(Fault::malformed("a token needs a role")) };
    let now = sys::now().into();
    if expires.is_some_and(|end| end <= now) {
        return Err(Fault::refused("expires", "a token that has expired already lets nobody in"));
    }
    if region.is_some() && !role.allows(Need::Mirror) {
        return Err(Fault::refused("region", format!("a {role} stands for no region")));
    }
    let scope = Scope { role, feed, region };
    let decisions = Arc::clone(&edge.access.decisions);
    let made = edge.blocking.run(move || decisions.create_token(scope, expires, now)).await;
    let made = made.map_err(|error| Fault::internal(&error))?;
    let Made { token, secret } = made.map_err(|error| Fault::conflict(error.to_string()))?;
    let mut answer = token_of(&token);
    answer["token"] = Value::from(secret);
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// `GET /v1/tokens`: all, without their secrets. There are a thousand at most.
pub(super) async fn list(State(edge): State<Arc<Edge>>) -> Answer {
    let doc = edge.access.decisions.get();
    let ledger = Arc::clone(&edge.ledger);
    let uses = edge.blocking.run(move || ledger.token_uses()).await;
    let uses: HashMap<_, _> = uses.map_err(|error| Fault::internal(&error))?.into_iter().collect();
    let last_used = |id: &str| edge.access.uses.last(id).max(uses.get(id).copied());
    let of = |token: &Token| {
        let mut value = token_of(token);
        value["last_used"] = json!(last_used(&token.id));
        value
    };
    let tokens: Vec<Value> = doc.tokens.iter().map(of).collect();
    Ok(Json(json!({ "tokens": tokens })).into_response())
}

/// `DELETE /v1/tokens/{id}`: it lets nobody in from now on.
pub(super) async fn revoke(State(edge): State<Arc<Edge>>, Path(id): Path<String>) -> Answer {
    let decisions = Arc::clone(&edge.access.decisions);
    let revoked = edge.blocking.run(move || decisions.revoke_token(&id)).await;
    if revoked.map_err(|error| Fault::internal(&error))? {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Err(Fault::not_found(
        "no_such_token",
        "there is no token of that id; `depsync token list` shows them",
    ))
}

fn token_of(token: &Token) -> Value {
    let Token { id, scope, created, expires, hash: _ } = token;
    let is_expired = token.is_expired(sys::now().into());
    json!({
        "id": id, "role": scope.role, "feed": scope.feed, "region": scope.region,
        "created": created, "expires": expires, "expired": is_expired,
    })
}
