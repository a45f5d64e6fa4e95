//! The bus over NATS: the same frames as over a follower's own connection, by way of a server.
//!
//! A follower says hello at its upstream, where tokens and versions are looked at, and hears and says
//! the rest here: `announce` is the upstream's end, `attend` the follower's. Two `JetStream` key-value
//! buckets hold what was last said, one of heads, one of nodes. Nothing depends on a message: what is
//! lost is said again with the next heartbeat. Content never travels here, but for a commit's pack of
//! 64 KiB at most. `docs/nats.md` describes what is on the wire.

pub mod announce;
pub mod attend;

use std::{sync::Arc, time::Duration};

use async_nats::{
    Client, ClientError, ConnectOptions, Event,
    connection::State,
    jetstream::{self, kv, stream},
};
use bytes::Bytes;
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::frame::{FromFollower, MAX_FRAME, Session, Standing};
use crate::model::{FeedName, NodeId};

/// The newest head of each feed at each upstream, under `upstream.feed`.
const HEADS: &str = "depsync_heads";
/// What each node last said, under `upstream.feed.node.kind`.
const NODES: &str = "depsync_nodes";
/// An upstream asks one of its followers by this, which is not kept.
const NOTICES: &str = "depsync.notice";
/// What a node that is gone has said is forgotten by the server after this time.
const KEPT: Duration = Duration::from_secs(86_400);
/// The longest that the server may take for an answer, and for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest wait before the server is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Why the server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is none.
    #[error("{0} is not the address of a NATS server, as in nats://10.0.0.5:4222")]
    Address(String),
    /// It does not answer; tried again without end.
    #[error("NATS at {server} is away{}", because(.why))]
    Away {
        /// Its address.
        server: String,
        /// What was tried, and came to nothing.
        why: String,
    },
    /// It does not let us in; tried again without end.
    #[error(
        "NATS at {0} does not accept our name and password; check those in [bus] nats, and the server's users"
    )]
    Refused(String),
}

/// Whether the server turns us away from now on; none: this says nothing of it. Only a connection shows
/// that it lets us in: whatever else goes wrong meanwhile does not.
fn refusal(event: &Event) -> Option<bool> {
    match event {
        Event::Connected => Some(false),
        // In the words of the crate, which has no others for this.
        Event::ClientError(ClientError::Other(why)) if why.contains("authorization") => Some(true),
        _ => None,
    }
}

fn because(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(": {why}") }
}

/// One connection to a server, shared by all feeds of a node. It is made anew without end.
#[derive(Clone)]
pub struct Nats {
    client: Client,
    jetstream: jetstream::Context,
    /// The server's address, without name and password.
    server: Arc<str>,
    /// How often it was connected.
    connected: watch::Receiver<u64>,
    /// Whether it has turned us away since.
    refused: watch::Receiver<bool>,
}

/// A frame of a follower, with what shows whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    session: Session,
    /// What it takes itself for.
    standing: Standing,
    frame: FromFollower,
}

impl Nats {
    /// Begins to connect, and does not wait for it: a server that is away now is there later.
    ///
    /// # Errors
    /// When `url` is no address.
    pub async fn connect(url: &str, name: &str, tls: rustls::ClientConfig) -> Result<Self, Error> {
        let parsed = Url::parse(url).map_err(|_| Error::Address(url.to_owned()))?;
        let host = parsed.host_str().ok_or_else(|| Error::Address(url.to_owned()))?;
        let server = format!("{}://{host}:{}", parsed.scheme(), parsed.port().unwrap_or(4222));
        let (count, connected) = watch::channel(0);
        let (refuse, refused) = watch::channel(false);
        let mut options = ConnectOptions::new()
            .name(name)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            .tls_client_config(tls)
            .reconnect_delay_callback(|tries| {
                (Duration::from_millis(50) * u32::try_from(tries).unwrap_or(u32::MAX)).min(AGAIN)
            })
            .event_callback(move |event| {
                if let Some(is_refused) = refusal(&event) {
                    refuse.send_replace(is_refused);
                }
                if matches!(event, Event::Connected) {
                    count.send_modify(|count| *count += 1);
                }
                async {}
            });
        if let Some(password) = parsed.password() {
            let plain = |text: &str| {
                percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
            };
            options = options.user_and_password(plain(parsed.username()), plain(password));
        }
        let client = options.connect(&server).await;
        let client = client.map_err(|_| Error::Address(server.clone()))?;
        let jetstream = jetstream::new(client.clone());
        Ok(Nats { client, jetstream, server: server.into(), connected, refused })
    }

    /// Whether the server is there now.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits until the server is there.
    ///
    /// # Errors
    /// When it is not there within `limit`, or turns us away.
    pub async fn await_up(&self, limit: Duration) -> Result<(), Error> {
        let (mut connected, mut refused) = (self.connected.clone(), self.refused.clone());
        let news = async {
            while !self.is_up() && !*refused.borrow_and_update() {
                let went_on = tokio::select! {
                    changed = connected.changed() => changed,
                    changed = refused.changed() => changed,
                };
                if went_on.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        // Over or not: what counts is whether it is there.
        let _ = tokio::time::timeout(limit, news).await;
        if self.is_up() { Ok(()) } else { Err(self.away("")) }
    }

    /// That the server is away, or does not let us in.
    pub fn away(&self, why: &str) -> Error {
        let server = self.server.to_string();
        if *self.refused.borrow() {
            return Error::Refused(server);
        }
        Error::Away { server, why: why.to_owned() }
    }

    /// The bucket of heads, made with that of nodes where they are not there.
    async fn heads(&self) -> Result<kv::Store, Error> {
        self.bucket(NODES, "what each node last said", KEPT).await?;
        self.bucket(HEADS, "the newest head of each feed at each upstream", Duration::ZERO).await
    }

    async fn bucket(&self, name: &str, what: &str, max_age: Duration) -> Result<kv::Store, Error> {
        if let Ok(found) = self.jetstream.get_key_value(name).await {
            return Ok(found);
        }
        // As the crate would make it; its own way asks for the account first, in words that servers
        // before 2.10 do not answer in.
        let config = stream::Config {
            name: format!("KV_{name}"),
            description: Some(what.to_owned()),
            subjects: vec![subject(name, ">")],
            max_messages_per_subject: 1,
            max_age,
            max_message_size: i32::try_from(MAX_FRAME).unwrap_or(i32::MAX),
            discard: stream::DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            num_replicas: 1,
            ..stream::Config::default()
        };
        let fault =
            |error: String| self.away(&format!("the bucket {name} cannot be made: {error}"));
        self.jetstream.create_stream(config).await.map_err(|error| fault(error.to_string()))?;
        let made = self.jetstream.get_key_value(name).await;
        made.map_err(|error| fault(error.to_string()))
    }

    /// Says something without waiting for the server; nothing where it is away.
    async fn say(&self, subject: String, bytes: Bytes) -> Result<(), Error> {
        if !self.is_up() {
            return Ok(());
        }
        let said = tokio::time::timeout(PATIENCE, self.client.publish(subject, bytes)).await;
        match said {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.away(&error.to_string())),
            Err(_) => Err(self.away("it takes nothing")),
        }
    }

    async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, Error> {
        let subscribed = tokio::time::timeout(PATIENCE, self.client.subscribe(subject)).await;
        let subscribed = subscribed.map_err(|_| self.away("it takes nothing"))?;
        subscribed.map_err(|error| self.away(&error.to_string()))
    }
}

/// A name as one part of a key: a dot would end it, and no name has a `=`.
fn part(name: &str) -> String {
    name.replace('.', "=")
}

fn name(part: &str) -> String {
    part.replace('=', ".")
}

fn head_key(upstream: &NodeId, feed: &FeedName) -> String {
    format!("{}.{}", part(upstream.as_str()), part(feed.as_str()))
}

/// The message by which the bucket takes a value in, and by which others hear of it at once.
fn subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::frame::Pulse;

    #[test]
    fn names_are_parts_of_keys_and_come_back() {
        for text in ["default", "a.b_c-d", "7", "v1.2.3"] {
            assert!(!part(text).contains('.'));
            assert_eq!(name(&part(text)), text);
        }
        let key = head_key(&"hub.1".parse().unwrap(), &"apps.v2".parse().unwrap());
        assert_eq!(subject(HEADS, &key), "$KV.depsync_heads.hub=1.apps=v2");
    }

    #[test]
    fn what_a_follower_says_comes_back() {
        let said = Said {
            session: Session { run: 7, connection: 3, trust_version: 1 },
            standing: Standing::Serving,
            frame: FromFollower::Heartbeat(Pulse::default()),
        };
        let text = crate::bus::frame::encode(&said);
        assert_eq!(crate::bus::frame::decode::<Said>(&text).unwrap(), said);
    }

    #[test]
    fn who_is_turned_away_stays_so_until_it_is_let_in() {
        let other = |why: &str| Event::ClientError(ClientError::Other(why.to_owned()));
        assert_eq!(refusal(&other("authorization violation: nats: auth")), Some(true));
        for event in [other("connection reset"), Event::Disconnected, Event::Closed] {
            assert_eq!(refusal(&event), None, "{event}");
        }
        assert_eq!(refusal(&Event::Connected), Some(false));
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_named_without_its_password() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let nats = Nats::connect("nats://me:secret@127.0.0.1:9", "test", tls).await.unwrap();
        assert!(!nats.is_up());
        let away = nats.await_up(Duration::from_millis(50)).await.unwrap_err().to_string();
        assert_eq!(away, "NATS at nats://127.0.0.1:9 is away");
    }
}
