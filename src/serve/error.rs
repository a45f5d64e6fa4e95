//! What the edge answers when it does not do what was asked: `{"error": code, "message": text}`.
//!
//! Each fault is one status with one code for programs; the message is for people and says what they
//! can do. A fault of our own (5xx) is logged here, where it is answered, and nowhere else.

use std::time::Duration;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;

use crate::store;

/// Why the edge stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listening socket is broken.
    #[error("cannot accept connections any more: {0}; start the daemon again")]
    Listen(#[source] std::io::Error),
}

/// Why a request is not done.
#[derive(Debug)]
pub(super) struct Fault {
    status: StatusCode,
    code: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

/// What a handler returns.
pub(super) type Answer = Result<Response, Fault>;

impl Fault {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Fault { status, code, message: message.into(), header: None }
    }

    /// 307: the answer is at the upstream.
    pub(super) fn elsewhere(url: &str) -> Self {
        let message = "the redirect that led here has ended; ask again where it came from";
        let mut fault = Self::new(StatusCode::TEMPORARY_REDIRECT, "ended", message);
        fault.header = HeaderValue::try_from(url).ok().map(|url| (header::LOCATION, url));
        fault
    }

    /// 426: the other side speaks another version of the protocol; ours is named.
    pub(super) fn other_protocol(message: impl Into<String>) -> Self {
        let ours = HeaderValue::from_static(crate::bus::frame::SUBPROTOCOL);
        Fault {
            header: Some((header::SEC_WEBSOCKET_PROTOCOL, ours)),
            ..Fault::new(StatusCode::UPGRADE_REQUIRED, "other_protocol", message)
        }
    }

    /// 400: the request cannot be read.
    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", message)
    }

    /// 401: acting needs a token.
    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        let mut fault = Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message);
        let ask = HeaderValue::from_static("Bearer realm=\"depsync\", Basic realm=\"depsync\"");
        fault.header = Some((header::WWW_AUTHENTICATE, ask));
        fault
    }

    /// 403: nobody may do that here.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    /// Whether it was there and is no more.
    pub(super) fn is_gone(&self) -> bool {
        self.status == StatusCode::GONE
    }

    /// It was there, and nobody may have it any more.
    pub(super) fn gone(code: &'static str, message: impl Into<String>) -> Self {
        Fault { status: StatusCode::GONE, ..Fault::not_found(code, message) }
    }

    /// 404: what was named is not there.
    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
    }

    /// 404: nothing is served there.
    pub(super) fn no_such_route() -> Self {
        Self::not_found("no_such_route", "nothing is served at this path")
    }

    /// 405: the path is served, but not by this method.
    pub(super) fn method() -> Self {
        let message = "this path is not served by that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    }

    /// 409: the state of the feed or the folder forbids it.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message)
    }

    /// 412: `If-Match` or `If-None-Match` does not hold.
    pub(super) fn precondition() -> Self {
        let message = "the file is not the version that the request names";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition_failed", message)
    }

    /// 413: more bytes than are taken.
    pub(super) fn too_large(limit: u64) -> Self {
        let message = format!("more than {limit} bytes are not accepted here");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 413: more things at once than are looked for.
    pub(super) fn too_many(limit: usize) -> Self {
        let message = format!("more than {limit} at once are not looked for; ask in parts");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many", message)
    }

    /// 416: no byte of the range is there.
    pub(super) fn range(size: u64) -> Self {
        let message = format!("the range holds none of the {size} bytes");
        let mut fault = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", message);
        let size = HeaderValue::from_str(&format!("bytes */{size}")).expect("digits");
        fault.header = Some((header::CONTENT_RANGE, size));
        fault
    }

    /// 421: the request was meant for another server.
    pub(super) fn wrong_host(message: impl Into<String>) -> Self {
        Self::new(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message)
    }

    /// 422: well-formed, and refused.
    pub(super) fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message)
    }

    /// 503: not now; `retry_secs` is when to ask again.
    pub(super) fn unavailable(message: impl Into<String>, retry_secs: u32) -> Self {
        let mut fault = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        fault.header = Some((header::RETRY_AFTER, retry_secs.into()));
        fault
    }

    /// 429: too many requests; `wait` is when to ask again.
    pub(super) fn too_often(message: impl Into<String>, wait: Duration) -> Self {
        let mut fault = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_often", message);
        let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        fault.header = Some((header::RETRY_AFTER, secs.max(1).into()));
        fault
    }

    /// 504: what was waited for did not come.
    pub(super) fn late(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    /// 500: a failure here.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// 501: this node lacks what it takes.
    pub(super) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", message)
    }

    /// The text for people.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The status it is answered with.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer, with a body for who does not read JSON.
    pub(super) fn with_body<B: IntoResponse>(self, body: impl FnOnce(&Self) -> B) -> Response {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("a request failed: {}", self.message);
        }
        let mut response = (self.status, body(&self)).into_response();
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<store::Error> for Fault {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::UnknownCommit(_) => Self::not_found("no_such_commit", error.to_string()),
            error => Self::internal(&error),
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        self.with_body(|fault| Json(json!({ "error": fault.code, "message": fault.message })))
    }
}
