//! The HTTP edge: downloads, redirects, uploads, replication, control, health.
//!
//! Handlers read what the stages have posted on the board and what the store holds; whatever they
//! want done, they ask of the stage that owns the feed. Every answer comes from the store, never from
//! a directory that others write. Nothing blocks here: store and disk are called in `blocking`.

mod access;
mod admit;
mod archive;
mod audit;
mod bandwidth;
mod blocking;
mod cache;
mod connection;
mod console;
mod control;
mod diagnosis;
mod disposition;
mod document;
mod download;
mod edge;
mod error;
mod events;
mod failures;
mod feeds;
mod fleet;
mod follow;
mod freshness;
mod front;
mod gate;
mod git;
mod health;
mod history;
mod lfs;
mod listing;
mod metrics;
mod need;
mod node;
mod nodes;
mod objects;
mod openapi;
mod orders;
mod pace;
mod packs;
mod page;
mod passes;
mod propagation;
#[doc(hidden)]
pub mod range;
mod redirect;
mod runs;
mod stream;
mod target;
mod throttle;
mod tokens;
mod upkeep;
mod upload;
mod wait;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRequestParts, Request, State, ws::WebSocketUpgrade},
    middleware,
    response::IntoResponse,
    routing::{MethodRouter, any, delete, get, post},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use access::{Access, Secret};
pub use connection::Peer;
pub use diagnosis::INSECURE;
pub use edge::{Edge, Intake, LeftOut, Setup};
pub use error::Error;
pub use throttle::Throttle;

use crate::{bus::frame, tls};
use access::Caller;
use error::Fault;
use front::Front;

/// The largest body that a command may have.
const MAX_COMMAND: usize = 64 << 10;

/// Serves, over TLS where there is a certificate, until `stop`, then lets requests under way finish for a while.
///
/// # Errors
/// When the listening socket breaks.
pub async fn run(
    listener: TcpListener,
    tls: Option<Arc<tls::Server>>,
    edge: Arc<Edge>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let (throttle, timetable, health) =
        (edge.throttle.clone(), Arc::clone(&edge), Arc::clone(&edge));
    let front = Front::new(&edge, stop.clone());
    tokio::select! {
        served = connection::serve(listener, tls, front, stop) => served,
        () = throttle.pace() => unreachable!("pacing never ends by itself"),
        () = timetable.follow_timetable() => unreachable!("the timetable never ends by itself"),
        () = health.look_after() => unreachable!("looking never ends by itself"),
    }
}

/// All that a node answers, as whoever wraps it wants it; each request knows its [`Peer`].
pub fn router(edge: &Arc<Edge>, stop: CancellationToken) -> Router {
    let front = Front::new(edge, stop);
    Router::new().fallback(
        async move |peer: Option<Extension<Peer>>, request: Request| match peer {
            Some(Extension(peer)) => Arc::clone(&front).answer(peer, request).await.into_response(),
            None => Fault::malformed("the connection has no address").into_response(),
        },
    )
}

/// All routes; followers' connections end at `stop`. What comes before them is in `front`.
fn routes(edge: &Arc<Edge>, stop: CancellationToken) -> Router {
    Router::new()
        .merge(feed_routes())
        .merge(git_routes())
        .route("/", get(console::page))
        .route("/console/{file}", get(console::file))
        .route("/v1/openapi.json", get(openapi::show))
        .route("/v1/node", get(node::show))
        .route("/v1/events", events_route(stop.clone()))
        .route("/v1/feeds/{feed}/follow", follow_route(edge, stop))
        .route("/v1/feeds", get(feeds::list))
        .route("/v1/nodes", get(nodes::list))
        .route("/v1/nodes/{id}", delete(nodes::forget))
        .route("/v1/regions", get(nodes::regions))
        .route("/v1/locate/{feed}/{*path}", get(nodes::locate))
        .route("/v1/runs", get(runs::list))
        .route("/v1/audit", get(audit::list))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{id}", delete(tokens::revoke))
        .route("/v1/bandwidth", get(bandwidth::show).put(bandwidth::change))
        .route("/metrics", get(metrics::show))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/healthz", get(health::health))
        .fallback(async || Fault::no_such_route())
        .method_not_allowed_fallback(async || Fault::method())
        .layer(DefaultBodyLimit::max(MAX_COMMAND))
        .layer(middleware::from_fn_with_state(Arc::clone(edge), admit::admit))
        .with_state(Arc::clone(edge))
}

type Routes = Router<Arc<Edge>>;

/// What lies below one feed. A wildcard does not match the empty path, so folders have three routes.
fn feed_routes() -> Routes {
    let files = get(download::newest).put(upload::put).delete(upload::delete);
    let folders = [
        ("/files", files),
        ("/at/{commit}", get(download::exact)),
        ("/tree/{commit}", get(history::tree)),
    ];
    let others = [
        ("", get(feeds::show)),
        ("/", get(feeds::show)),
        ("/archive/{*path}", get(archive::tar)),
        ("/log", get(history::log)),
        ("/diff/{range}", get(history::diff)),
        ("/held", get(feeds::held)),
        ("/wait", get(fleet::wait)),
        ("/packs/{range}", get(packs::get)),
        ("/objects/{id}", get(objects::get)),
        ("/objects/{id}/from/{base}", get(objects::delta)),
        ("/sync", post(control::sync)),
        ("/hold", post(control::hold)),
        ("/release", post(control::release)),
        ("/approve", post(control::approve)),
        ("/reject", post(control::reject)),
        ("/rollback", post(orders::rollback)),
        ("/pin", post(orders::pin)),
        ("/unpin", post(orders::unpin)),
        ("/revoke", post(orders::revoke)),
        ("/pause", post(fleet::pause)),
        ("/resume", post(fleet::resume)),
        ("/promote", post(fleet::promote)),
        ("/demote", post(fleet::demote)),
        ("/propagation", get(propagation::list)),
        ("/upkeep", get(upkeep::show)),
        ("/gc", post(upkeep::gc)),
        ("/fsck", post(upkeep::fsck)),
    ];
    let folders = folders.into_iter().flat_map(|(at, handler)| {
        ["", "/", "/{*path}"].map(|below| (format!("{at}{below}"), handler.clone()))
    });
    let others = others.into_iter().map(|(at, handler)| (at.to_owned(), handler));
    folders.chain(others).fold(Router::new(), |routes, (at, handler)| {
        routes.route(&format!("/v1/feeds/{{feed}}{at}"), handler)
    })
}

/// What stock git and git-lfs ask for. Nothing below `/git/` changes anything.
fn git_routes() -> Routes {
    Router::new()
        .route("/git/{repository}/info/refs", get(git::refs))
        .route("/git/{repository}/git-upload-pack", post(git::upload_pack))
        .route("/git/{repository}/git-receive-pack", post(git::receive_pack))
        .route("/git/{repository}/info/lfs/objects/batch", post(lfs::batch))
        .route("/git/{repository}/info/lfs/objects/{id}", get(lfs::object))
        .route("/git/{repository}/info/lfs/locks", any(lfs::locks))
        .route("/git/{repository}/info/lfs/locks/{*below}", any(lfs::locks))
}

/// What consoles hear; their connections end at `stop`.
fn events_route(stop: CancellationToken) -> MethodRouter<Arc<Edge>> {
    get(async move |State(edge): State<Arc<Edge>>, Extension(caller): Extension<Caller>| {
        events::follow(edge, caller, &stop)
    })
}

/// The `WebSocket`s of followers. One that asks for a feed that is not here hears so in a frame.
fn follow_route(edge: &Arc<Edge>, stop: CancellationToken) -> MethodRouter<Arc<Edge>> {
    let (table, trust, access) = (Arc::clone(edge), Arc::clone(edge), edge.access.clone());
    let host = Arc::new(follow::Host {
        node: edge.node.clone(),
        label: edge.label.clone(),
        knows_region: Box::new(move |region| table.regions().has(region)),
        board: edge.board.clone(),
        trust: Box::new(move |desk, node, told| trust.trust(desk, node, told)),
        still_in: Box::new(move |caller| access.is_still_in(caller)),
        stop,
    });
    get(
        async move |State(edge): State<Arc<Edge>>,
                    peer: Option<Extension<Peer>>,
                    Extension(caller): Extension<Caller>,
                    request: Request| {
            let (mut parts, _) = request.into_parts();
            let feed = parts.uri.path().split('/').nth(3).unwrap_or_default().to_owned();
            let who = edge.client(&parts).map_or_else(String::new, |addr| addr.to_string());
            if let Some(fault) = follow::offers(&parts.headers) {
                host.turn_away(&who, &feed, &fault);
                return Err(Fault::other_protocol(fault.to_string()));
            }
            let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await;
            let upgrade = upgrade.map_err(|error| Fault::malformed(error.body_text()))?;
            let Ok(feed) = edge.feed(&feed) else {
                let feeds = edge.feeds().map(|feed| feed.desk.feed.clone());
                let fault = frame::Fault::no_such_feed(&feed, feeds);
                host.turn_away(&who, &feed, &fault);
                return Ok(follow::refuse(fault, upgrade));
            };
            let Some(Extension(Peer(peer))) = peer else {
                return Err(Fault::malformed("the connection has no address"));
            };
            let visitor = follow::Visitor { peer, caller };
            Ok(follow::follow(Arc::clone(&feed.desk), visitor, host, upgrade))
        },
    )
}
