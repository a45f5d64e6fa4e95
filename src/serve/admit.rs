//! What comes before every handler and after it: who may pass, and who did what.
//!
//! An act is written down before it is answered: who, from where, what was asked for, and how it
//! ended. So is what was refused, each time that has doubled, so that nobody fills the disk by asking.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header, request::Parts};

use super::{Edge, MAX_COMMAND, access::Caller, error::Fault, git, need};
use crate::{ledger::Act, sys};

/// What is kept of a path, and of what a command asks for.
const MAX_TEXT: usize = 1000;
/// When to come again where too many guess.
const GUESSES: Duration = Duration::from_secs(10);

/// Lets a request through to its handler, or answers why not.
pub(super) async fn admit(
    State(edge): State<Arc<Edge>>,
    mut request: Request,
    next: Next,
) -> Response {
    let checked = edge.access.check(request.method(), request.uri(), request.headers());
    let checked = checked.or_else(|fault| edge.check_pass(&request, fault));
    let checked = checked.and_then(|caller| edge.count(&caller).map(|()| caller));
    let response = match checked {
        Ok(caller) => {
            edge.note_use(&caller).await;
            request.extensions_mut().insert(caller.clone());
            if is_act(&request) {
                act(&edge, &caller, request, next).await
            } else {
                next.run(request).await
            }
        }
        Err(fault) => turned_away(&edge, &request.into_parts().0, fault).await,
    };
    edge.metrics.answered(response.status());
    response
}

/// Git and git-lfs read by POST.
fn is_act(request: &Request) -> bool {
    !request.method().is_safe() && !request.uri().path().starts_with("/git/")
}

async fn act(edge: &Edge, caller: &Caller, request: Request, next: Next) -> Response {
    let mut act = edge.act(caller.name(), &request);
    let request = match with_detail(request, &mut act).await {
        Ok(request) => request,
        Err(fault) => return fault.into_response(),
    };
    let response = next.run(request).await;
    act.status = response.status().as_u16();
    edge.write_down(act).await;
    response
}

/// A command says in its body what it wants; that of an upload is the file.
async fn with_detail(request: Request, act: &mut Act) -> Result<Request, Fault> {
    if need::is_upload(request.method(), request.uri().path()) {
        return Ok(request);
    }
    let (parts, body) = request.into_parts();
    let body = git::gather(body, MAX_COMMAND).await?;
    act.detail = (!body.is_empty()).then(|| cut(&String::from_utf8_lossy(&body)));
    Ok(Request::from_parts(parts, Body::from(body)))
}

async fn turned_away(edge: &Edge, parts: &Parts, fault: Fault) -> Response {
    let guessed = fault.status() == StatusCode::UNAUTHORIZED
        && parts.headers.contains_key(header::AUTHORIZATION);
    if !guessed && fault.status() != StatusCode::FORBIDDEN {
        return fault.into_response();
    }
    let Some(from) = edge.client(parts) else { return fault.into_response() };
    let count = edge.failures.add(from, Instant::now());
    if count.is_power_of_two() {
        let who = edge.access.caller(&parts.headers).ok().as_ref().and_then(Caller::shown);
        let who = who.unwrap_or_else(|| "nobody".to_owned());
        let mut act = act_of(who, &parts.method, parts.uri.path(), Some(from));
        act.status = fault.status().as_u16();
        act.detail = Some(format!("refused, {count} within a minute: {}", fault.message()));
        edge.write_down(act).await;
    }
    if guessed && !edge.failures.hold_back(count).await {
        let message = "too many requests with tokens that are not known; come again later";
        return Fault::too_often(message, GUESSES).into_response();
    }
    fault.into_response()
}

impl Edge {
    fn act(&self, who: String, request: &Request) -> Act {
        let from = request.extensions().get::<super::Peer>();
        let from = from.map(|peer| self.client_behind(peer.0.ip(), request.headers()));
        act_of(who, request.method(), request.uri().path(), from)
    }

    /// Counts a request with a token.
    fn count(&self, caller: &Caller) -> Result<(), Fault> {
        match caller {
            Caller::Holder(token) => {
                let counted = self.pace.with_token(&token.id, Instant::now());
                counted.inspect_err(|_| self.metrics.turned_away())
            }
            Caller::Anyone | Caller::Admin => Ok(()),
        }
    }

    async fn write_down(&self, act: Act) {
        let audit = Arc::clone(&self.audit);
        if let Err(error) = self.blocking.run(move || audit.add(&act)).await {
            tracing::error!(%error, "an act could not be written down");
        }
    }

    /// Remembers when a token was last shown, to the minute.
    async fn note_use(&self, caller: &Caller) {
        let Caller::Holder(token) = caller else { return };
        let now = sys::now().into();
        if !self.access.uses.is_news(&token.id, now) {
            return;
        }
        let (ledger, id) = (Arc::clone(&self.ledger), token.id.clone());
        if let Err(error) = self.blocking.run(move || ledger.token_used(&id, now)).await {
            tracing::warn!(%error, "the use of a token could not be written down");
        }
    }
}

/// One that has not ended yet.
fn act_of(who: String, method: &Method, path: &str, from: Option<IpAddr>) -> Act {
    let action = format!("{method} {}", cut(path));
    Act { at: sys::now().into(), who, from, action, detail: None, status: 0 }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}
