//! `GET /v1/events`: what the console shows, as server-sent events.
//!
//! Each event is the whole of one thing, sent when it is another than was last sent: whoever connects,
//! or connects again, hears everything once and needs no history. A comment keeps the connection
//! alive. There is a bound on listeners; one that reads slowly hears less often, and nothing piles
//! up, since the next state is made when the last one has been taken.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use axum::response::{
    IntoResponse, Sse,
    sse::{Event, KeepAlive},
};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::{
    Edge,
    access::Caller,
    bandwidth,
    error::{Answer, Fault},
    feeds, node, nodes,
    page::Page,
    propagation,
};

/// Consoles that are open at the same time: more than people who look, and each costs some work a
/// second.
pub(super) const MAX_LISTENERS: usize = 64;
/// How often it is looked whether something has changed.
const TICK: Duration = Duration::from_secs(1);
/// How long a connection is silent at most.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How soon a browser connects again.
const RETRY: Duration = Duration::from_secs(2);
/// Arrivals of each feed that are shown.
const ARRIVALS: usize = 100;

/// Follows until the client goes, its token ends, or the node stops.
pub(super) fn follow(edge: Arc<Edge>, caller: Caller, stop: &CancellationToken) -> Answer {
    let place = Arc::clone(&edge.listeners).try_acquire_owned();
    let place = place.map_err(|_| {
        Fault::unavailable(format!("{MAX_LISTENERS} consoles are open here already"), 10)
    })?;
    let listener = Listener {
        edge,
        caller,
        stop: stop.clone(),
        told: BTreeMap::new(),
        due: VecDeque::new(),
        _place: place,
    };
    let alive = KeepAlive::new().interval(HEARTBEAT).text("alive");
    let mut response = Sse::new(listener.events()).keep_alive(alive).into_response();
    // A proxy that gathers answers would make them late.
    response.headers_mut().insert("x-accel-buffering", http::HeaderValue::from_static("no"));
    Ok(response)
}

struct Listener {
    edge: Arc<Edge>,
    caller: Caller,
    stop: CancellationToken,
    /// What was sent last, by name.
    told: BTreeMap<&'static str, String>,
    due: VecDeque<Event>,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, async |mut listener| {
            let event = listener.next().await?;
            Some((Ok(event), listener))
        })
    }

    /// The next event; none when it is over.
    async fn next(&mut self) -> Option<Event> {
        let mut is_first = self.told.is_empty();
        while self.due.is_empty() {
            if !is_first {
                let tick = tokio::time::sleep(TICK);
                self.stop.run_until_cancelled(tick).await?;
            }
            is_first = false;
            if !self.edge.access.is_still_in(&self.caller) {
                return None;
            }
            self.look().await;
        }
        self.due.pop_front()
    }

    /// Makes events of what is not as it was told.
    async fn look(&mut self) {
        for (name, value) in self.state().await {
            let text = value.to_string();
            if self.told.get(name) != Some(&text) {
                let mut event = Event::default().event(name).data(&text);
                if self.told.is_empty() {
                    event = event.retry(RETRY);
                }
                self.due.push_back(event);
                self.told.insert(name, text);
            }
        }
    }

    async fn state(&self) -> Vec<(&'static str, Value)> {
        let (edge, page) = (&self.edge, Page::largest());
        let mut state = vec![("node", node::describe(edge, &self.caller))];
        // A feed whose repository cannot be read says so where it is asked for itself.
        if let Ok(feeds) = feeds::all(edge, &page).await {
            state.push(("feeds", feeds));
        }
        state.push(("nodes", nodes::all(edge, &page)));
        state.push(("regions", nodes::all_regions(edge, &page)));
        state.push(("bandwidth", bandwidth::as_json(edge)));
        state.push(("faults", json!({ "faults": edge.faults() })));
        let arrivals: Vec<Value> =
            edge.feeds().map(|feed| propagation::arrivals(feed, ARRIVALS)).collect();
        state.push(("propagation", json!({ "feeds": arrivals })));
        let ledger = Arc::clone(&edge.ledger);
        if let Ok(newest) = edge.blocking.run(move || ledger.runs(None, 1, None)).await {
            state.push(("runs", json!({ "newest": newest.first().map(|run| run.id) })));
        }
        state
    }
}
