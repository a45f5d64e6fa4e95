//! The way in: the one answer that costs neither the router nor a task, and all others behind it.
//!
//! Most of what a primary answers is to which region's node a client goes. Where nothing has to be
//! waited for to know that, it is answered here; `admit` stands before everything else.

use std::{convert::Infallible, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::Request;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Edge, Peer, connection::BoxError, download, routes};

/// All that is behind a connection.
pub(super) struct Front {
    pub(super) edge: Arc<Edge>,
    router: Router,
}

impl Front {
    /// All routes; followers' connections end at `stop`.
    pub(super) fn new(edge: &Arc<Edge>, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Front { edge: Arc::clone(edge), router: routes(edge, stop) })
    }

    /// The answer to a request; never an error.
    pub(super) async fn answer<B>(
        self: Arc<Self>,
        peer: Peer,
        mut request: Request<B>,
    ) -> Result<Response, Infallible>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let from = self.edge.client_behind(peer.0.ip(), request.headers());
        if let Err(fault) = self.edge.pace.address(from, Instant::now()) {
            self.edge.metrics.turned_away();
            self.edge.metrics.answered(fault.status());
            return Ok(fault.into_response());
        }
        if let Some(redirect) = download::led_at_once(&self.edge, peer, &request) {
            self.edge.metrics.answered(redirect.status());
            return Ok(redirect);
        }
        request.extensions_mut().insert(peer);
        self.router.clone().oneshot(request.map(Body::new)).await
    }
}
