//! `GET /v1/audit`: who did what, newest first. For admins alone.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::request::Parts;
use serde_json::{Value, json};

use super::{
    Edge,
    error::{Answer, Fault},
    page::Page,
};

/// The newest acts, each with its number.
pub(super) async fn list(State(edge): State<Arc<Edge>>, parts: Parts) -> Answer {
    let page = Page::of(&parts.uri)?;
    let after = page.after.as_deref().map(str::parse).transpose();
    let after = after.map_err(|_| Fault::malformed("after is the `next` of the page before"))?;
    let (audit, limit) = (Arc::clone(&edge.audit), page.limit());
    // One more than asked for tells whether there is a next page.
    let acts = edge.blocking.run(move || audit.acts(limit + 1, after)).await;
    let mut acts = acts.map_err(|error| Fault::internal(&error))?;
    let more = acts.len() > limit;
    acts.truncate(limit);
    let next = acts.last().filter(|_| more).map(|(id, _)| id.to_string());
    let acts: Vec<Value> = acts
        .into_iter()
        .map(|(id, act)| {
            let mut value = json!(act);
            value["id"] = Value::from(id);
            value
        })
        .collect();
    let mut answer = json!({ "acts": acts });
    if let Some(next) = next {
        answer["next"] = Value::from(next);
    }
    Ok(Json(answer).into_response())
}
