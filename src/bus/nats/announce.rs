//! The upstream's end: announces the heads of its feeds to whoever listens, and takes in what its
//! followers say.
//!
//! A head is put as soon as it is posted, a heartbeat every five seconds; the bucket answers for
//! each, so that a server which has lost its buckets is noticed, and gets new ones.

use async_nats::jetstream::kv;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::{Error, NODES, NOTICES, Nats, PATIENCE, Said, head_key, name, part, subject};
use crate::{
    bus::{
        Board, Desk, Trust,
        frame::{self, Announce, FromUpstream, HEARTBEAT, Heartbeat, Standing},
    },
    model::{FeedName, NodeId},
    store::Published,
    sys,
};

/// What a node announces with.
pub struct Announcer {
    /// The server.
    pub nats: Nats,
    /// This node.
    pub node: NodeId,
    /// All its feeds; it knows the number of this run.
    pub board: Board,
    /// Whether the token of that id is still good.
    pub still_in: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Announcer {
    /// Announces and listens until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let announcing = self.board.iter().map(|desk| self.announce(desk));
        tokio::select! {
            () = stop.cancelled() => {}
            _ = futures_util::future::join_all(announcing) => {}
            () = self.listen() => {}
        }
    }

    async fn announce(&self, desk: &Desk) {
        let mut heads = desk.head.subscribe();
        let (mut paused, mut orders) = (desk.paused.subscribe(), desk.orders.subscribe());
        let mut connected = self.nats.connected.clone();
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bucket = None;
        loop {
            let is_new = tokio::select! {
                Ok(()) = heads.changed() => true,
                Ok(()) = connected.changed() => true,
                Ok(()) = paused.changed() => false,
                Ok(()) = orders.changed() => false,
                _ = beat.tick() => {
                    desk.drop_silent();
                    false
                }
                else => return std::future::pending().await,
            };
            if !desk.state.borrow().primary && !desk.has_followers_over_nats() {
                continue;
            }
            let published = heads.borrow_and_update().clone().filter(|_| is_new);
            let beat = || heartbeat(desk, self.board.session(0).map(|it| it.trust_version));
            let frame = published.map_or_else(beat, |it| announcement(desk, it));
            let put = self.put(&mut bucket, desk, frame).await;
            self.show(put.err());
        }
    }

    async fn put(
        &self,
        bucket: &mut Option<kv::Store>,
        desk: &Desk,
        frame: Bytes,
    ) -> Result<(), Error> {
        if !self.nats.is_up() {
            return Err(self.nats.away(""));
        }
        let store = match bucket.take() {
            Some(store) => store,
            None => self.nats.heads().await?,
        };
        let put = timeout(PATIENCE, store.put(head_key(&self.node, &desk.feed), frame)).await;
        let put = put.map_err(|_| self.nats.away("it answers nothing"))?;
        put.map_err(|error| self.nats.away(&error.to_string()))?;
        *bucket = Some(store);
        Ok(())
    }

    fn show(&self, fault: Option<Error>) {
        let fault = fault.map(|fault| fault.to_string());
        self.board.away.send_if_modified(|known| {
            let is_news = *known != fault;
            if let (true, Some(fault)) = (is_news, &fault) {
                tracing::warn!("nobody hears us: {fault}");
            }
            *known = fault;
            is_news
        });
    }

    async fn listen(&self) {
        loop {
            let all = format!("{}.>", part(self.node.as_str()));
            let Ok(mut said) = self.nats.subscribe(subject(NODES, &all)).await else {
                tokio::time::sleep(PATIENCE).await;
                continue;
            };
            while let Some(message) = said.next().await {
                self.take(message.subject.as_str(), &message.payload).await;
            }
        }
    }

    /// Whoever cannot be read is not ours to answer.
    async fn take(&self, subject: &str, payload: &[u8]) {
        let Some((feed, node)) = sender(subject) else { return };
        let Some(desk) = self.board.get(&feed) else { return };
        let Ok(text) = std::str::from_utf8(payload) else { return };
        let Ok(said) = frame::decode::<Said>(text) else { return };
        let standing = said.standing;
        if self.standing(desk, &node, said) != Some(standing) {
            let bytes = Bytes::from(frame::encode(&FromUpstream::HelloAgain));
            let key = head_key(&self.node, &feed);
            let notice = format!("{NOTICES}.{key}.{}", part(node.as_str()));
            // It says something again within a heartbeat, and is asked again.
            let _ = self.nats.say(notice, bytes).await;
        }
    }

    /// What a follower is to its region; none where its hello is not, or no more, a good one.
    fn standing(&self, desk: &Desk, node: &NodeId, said: Said) -> Option<Standing> {
        let connection = said.session.connection;
        self.board.session(connection).filter(|session| session.run == said.session.run)?;
        let is_in = desk.token_of(node).is_none_or(|token| (self.still_in)(&token));
        is_in.then(|| desk.take(node, connection, said.frame))?
    }
}

/// Whose key it is.
fn sender(subject: &str) -> Option<(FeedName, NodeId)> {
    let mut parts = subject.split('.').skip(3).map(name);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn announcement(desk: &Desk, published: Published) -> Bytes {
    let (feed, Published { head, parent, signed, pack }) = (desk.feed.clone(), published);
    let signature = signed.as_deref().map(str::to_owned);
    Announce { feed, head, parent, size: 0, signature }.encode(pack.as_deref())
}

fn heartbeat(desk: &Desk, trust_version: Option<u64>) -> Bytes {
    let spread = desk.spread().as_millis();
    let beat = Heartbeat {
        head: desk.head(),
        standing: Standing::Mirror,
        paused: false,
        spread_ms: u64::try_from(spread).unwrap_or(u64::MAX),
        orders: desk.orders.borrow().clone(),
        trust: Some(Trust {
            now_ms: DateTime::<Utc>::from(sys::now()).timestamp_millis(),
            ..Trust::default()
        }),
        paused_targets: desk.paused.borrow().clone(),
        trust_version,
    };
    Bytes::from(frame::encode(&FromUpstream::Heartbeat(beat)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_whose_it_is() {
        let sender =
            |subject| sender(subject).map(|(feed, node)| (feed.to_string(), node.to_string()));
        let known = Some(("apps.v2".to_owned(), "eu".to_owned()));
        assert_eq!(sender("$KV.depsync_nodes.hub.apps=v2.eu.pulse"), known);
        assert_eq!(sender("$KV.depsync_nodes.hub.apps=v2.eu.below.x"), known);
        assert_eq!(sender("$KV.depsync_nodes.hub.apps=v2"), None);
        assert_eq!(sender("$KV.depsync_nodes.hub.-.eu"), None);
    }
}
