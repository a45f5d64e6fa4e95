//! `GET /v1/node`: which node this is, and who asks.

use std::sync::Arc;

use axum::{Extension, Json, extract::State, response::IntoResponse};
use serde_json::{Value, json};

use super::{Edge, access::Caller, error::Answer};
use crate::model::Role;

/// This node, and what its asker may do here.
pub(super) async fn show(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
) -> Answer {
    Ok(Json(describe(&edge, &caller)).into_response())
}

/// The same, for whoever needs it.
pub(super) fn describe(edge: &Edge, caller: &Caller) -> Value {
    let role = match caller {
        Caller::Anyone if edge.access.insecure => Role::Admin,
        Caller::Anyone => Role::Reader,
        Caller::Admin => Role::Admin,
        Caller::Holder(token) => token.scope.role,
    };
    json!({
        "id": edge.node, "label": edge.label, "region": edge.region, "url": edge.advertise,
        "version": env!("CARGO_PKG_VERSION"),
        "you": { "name": caller.name(), "role": role },
    })
}
