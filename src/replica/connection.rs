//! The mirror's end of the WebSocket: says hello, hands on what it hears, sends what it is given.
//!
//! It decides nothing. It ends when the upstream is silent for 20 s, when a frame cannot be read,
//! or when the upstream says why it will not talk; what comes then is up to `follow`.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self, ClientRequestBuilder, Message,
        error::{ProtocolError, SubProtocolError},
        protocol::WebSocketConfig,
    },
};

use tokio_util::either::Either;
use tracing::warn;

use crate::{
    bus::{
        frame::{
            self, Announce, Fault, FromFollower, FromUpstream, Heartbeat, Hello, Progress, Pulse,
            SILENCE, Welcome,
        },
        nats::{
            Nats,
            attend::{Attendance, Attendant, Told},
        },
    },
    replica::{Error, distrust, upstream::Upstream, vet},
    store::Store,
};

/// How long making a connection may take, with the answer to our hello.
const CONNECT: Duration = SILENCE;

/// What came from the upstream.
#[derive(Debug)]
pub(super) enum Heard {
    /// The answer to our hello.
    Welcome(Welcome),
    /// A new head, with its pack when that is small.
    Announce(Announce, Option<Bytes>),
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// The conversation is over; nothing comes after this.
    Ended(Error),
}

/// Both ends of what a conversation needs from the rest of the mirror.
pub(super) struct Line {
    /// Where it puts what it hears.
    pub(super) heard: mpsc::Sender<Heard>,
    /// What it is to send.
    pub(super) outbox: mpsc::Receiver<FromFollower>,
    /// What we have now.
    pub(super) pulse: watch::Receiver<Pulse>,
    /// How far a fetch is.
    pub(super) progress: watch::Receiver<Option<Progress>>,
    /// Which knows whose announcements are believed.
    pub(super) store: Arc<Store>,
}

/// Talks with the upstream until that ends, and says why it ended; over NATS, where we have that and
/// the upstream speaks it.
pub(super) async fn converse(upstream: Upstream, nats: Option<Nats>, hello: Hello, mut line: Line) {
    let Err(reason) = talk(&upstream, nats, hello, &mut line).await;
    let _ = line.heard.send(Heard::Ended(reason)).await; // the stage is ending: nobody to tell
}

/// What carries a conversation: the contract of both is that of `tests/cluster/bus.rs`.
enum Wire {
    /// A connection of our own to the upstream.
    Socket(Box<Socket>),
    /// By way of a server that both are connected to.
    Nats(Box<Attendance>),
}

type Socket = WebSocketStream<Either<TcpStream, TlsStream<TcpStream>>>;

impl Wire {
    /// What comes next; none: nothing for us. Nothing is lost when it is not waited for to its end.
    async fn hear(&mut self, upstream: &Upstream) -> Result<Option<Heard>, Error> {
        match self {
            Wire::Socket(socket) => read(socket.next().await, upstream),
            Wire::Nats(attendance) => Ok(Some(match attendance.hear().await? {
                Told::Announce(announce, pack) => Heard::Announce(announce, pack),
                Told::Heartbeat(beat) => Heard::Heartbeat(beat),
                Told::HelloAgain => {
                    return Err(Error::Link("the upstream wants to hear hello again".to_owned()));
                }
            })),
        }
    }

    async fn say(&mut self, frame: FromFollower) -> Result<(), Error> {
        match self {
            Wire::Socket(socket) => send(socket, &frame).await,
            Wire::Nats(attendance) => Ok(attendance.say(frame).await?),
        }
    }
}

async fn talk(
    upstream: &Upstream,
    nats: Option<Nats>,
    hello: Hello,
    line: &mut Line,
) -> Result<std::convert::Infallible, Error> {
    if let Some(nats) = &nats {
        nats.await_up(CONNECT).await?;
    }
    let hello = Hello { nats: nats.is_some(), ..hello };
    let greeting = timeout(CONNECT, greet(upstream, &hello)).await;
    let silent = || Error::Silent { url: upstream.base.to_string() };
    let (mut wire, welcome) = greeting.map_err(|_| silent())??;
    if let (Some(nats), Some(session)) = (nats, welcome.session) {
        let attendant = Attendant {
            upstream: welcome.node.clone(),
            feed: upstream.feed.clone(),
            node: hello.node,
            region: hello.region,
            session,
            standing: welcome.standing,
            head: welcome.head,
            trusted: welcome.trust.is_some(),
        };
        wire = Wire::Nats(Box::new(nats.attend(attendant).await?));
    }
    line.tell(Heard::Welcome(welcome)).await?;
    let (mut heard_at, mut waits) = (Instant::now(), None);
    loop {
        tokio::select! {
            heard = wire.hear(upstream) => {
                heard_at = Instant::now();
                let Some(heard) = heard? else { continue };
                if let Heard::Announce(announce, _) = &heard
                    && let Err(why) = vet::check(&line.store, &upstream.feed, announce).await
                {
                    // Should it be true all the same, the next heartbeat says so.
                    warn!(feed = %announce.feed, "an announcement is not believed: {why}");
                    continue;
                }
                if matches!(heard, Heard::Heartbeat(_)) {
                    answer(&mut wire, line).await?;
                }
                line.tell(heard).await?;
            }
            frame = line.outbox.recv() => wire.say(frame.ok_or(Error::Stopped)?).await?,
            // Whoever waits for us hears at once that we wait ourselves.
            Ok(()) = line.pulse.changed() => {
                let now = line.pulse.borrow_and_update().waits.clone();
                if now != waits {
                    waits = now;
                    answer(&mut wire, line).await?;
                }
            }
            () = sleep_until(heard_at + SILENCE) => return Err(silent()),
        }
    }
}

/// Says hello over a connection of our own, and waits for the answer.
async fn greet(upstream: &Upstream, hello: &Hello) -> Result<(Wire, Welcome), Error> {
    let mut wire = Wire::Socket(Box::new(open(upstream).await?));
    wire.say(FromFollower::Hello(hello.clone())).await?;
    loop {
        if let Some(Heard::Welcome(welcome)) = wire.hear(upstream).await? {
            return Ok((wire, welcome));
        }
    }
}

/// The answer to a heartbeat: what we have, and how far a fetch is.
async fn answer(wire: &mut Wire, line: &mut Line) -> Result<(), Error> {
    let pulse = line.pulse.borrow_and_update().clone();
    wire.say(FromFollower::Heartbeat(pulse)).await?;
    let progress = *line.progress.borrow_and_update();
    match progress {
        Some(progress) => wire.say(FromFollower::Progress(progress)).await,
        None => Ok(()),
    }
}

impl Line {
    async fn tell(&self, heard: Heard) -> Result<(), Error> {
        self.heard.send(heard).await.map_err(|_| Error::Stopped)
    }
}

async fn send(socket: &mut Socket, frame: &FromFollower) -> Result<(), Error> {
    let sent = timeout(SILENCE, socket.send(Message::text(frame::encode(frame)))).await;
    sent.map_err(|_| Error::Link("the upstream takes nothing".to_owned()))?
        .map_err(|source| fault_of(&source))
}

fn read(
    frame: Option<Result<Message, tungstenite::Error>>,
    upstream: &Upstream,
) -> Result<Option<Heard>, Error> {
    let closed = || Error::Link(format!("{} has closed the connection", upstream.base));
    let text = match frame.ok_or_else(closed)?.map_err(|source| fault_of(&source))? {
        Message::Text(text) => text,
        Message::Binary(bytes) => {
            let (announce, pack) = Announce::decode(bytes)?;
            return Ok(Some(Heard::Announce(announce, pack)));
        }
        Message::Close(_) => return Err(closed()),
        _ => return Ok(None),
    };
    match frame::decode(&text)? {
        FromUpstream::Welcome(welcome) => Ok(Some(Heard::Welcome(welcome))),
        FromUpstream::Heartbeat(heartbeat) => Ok(Some(Heard::Heartbeat(heartbeat))),
        FromUpstream::Fault(fault) => Err(Error::Fault(fault)),
        FromUpstream::HelloAgain | FromUpstream::Unknown => Ok(None),
    }
}

/// Opens a connection and closes it again.
pub(super) async fn try_open(upstream: &Upstream) -> Result<(), Error> {
    let opened = timeout(CONNECT, open(upstream)).await;
    opened.map_err(|_| Error::Silent { url: upstream.base.to_string() })??;
    Ok(())
}

async fn open(upstream: &Upstream) -> Result<Socket, Error> {
    let url = upstream.url("follow");
    let url = format!("ws{}", url.strip_prefix("http").unwrap_or(&url));
    let uri = url.parse().map_err(|_| Error::Link(format!("{url} is not an address")))?;
    let mut request = ClientRequestBuilder::new(uri).with_sub_protocol(frame::SUBPROTOCOL);
    if let Some(token) = &upstream.token {
        request = request.with_header("Authorization", token.header().await?);
    }
    let limits = WebSocketConfig::default()
        .max_message_size(Some(frame::MAX_FRAME))
        .max_frame_size(Some(frame::MAX_FRAME))
        .read_buffer_size(frame::MAX_INLINE_PACK)
        .write_buffer_size(0);
    let base = upstream.base.as_str();
    let distrust = |source: &(dyn std::error::Error + 'static)| distrust::of(source, base);
    let stream = dial(upstream).await.map_err(|source| {
        let why = distrust(&source);
        Error::Link(why.unwrap_or_else(|| format!("cannot connect to {base}: {source}")))
    })?;
    let opened = client_async_with_config(request, stream, Some(limits)).await;
    // Whether our own certificate is believed is only heard now.
    let (socket, _) = opened.map_err(|source| match distrust(&source) {
        Some(why) => Error::Link(why),
        None => fault_of(&source),
    })?;
    Ok(socket)
}

/// Opens the byte stream to an upstream: the one place where a link's transport is chosen.
async fn dial(upstream: &Upstream) -> io::Result<Either<TcpStream, TlsStream<TcpStream>>> {
    let base = &upstream.base;
    let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, base.port_or_known_default().unwrap_or(80))).await?;
    stream.set_nodelay(true)?;
    if base.scheme() != "https" {
        return Ok(Either::Left(stream));
    }
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::clone(&upstream.tls));
    Ok(Either::Right(connector.connect(name, stream).await?))
}

/// The upstream names the version that it speaks.
fn other_protocol(answer: &http::Response<Option<Vec<u8>>>) -> Error {
    let named = answer.headers().get(http::header::SEC_WEBSOCKET_PROTOCOL);
    let upstream = named.and_then(|name| frame::version_of(name.to_str().ok()?));
    Error::Fault(match upstream {
        Some(upstream) => Fault::Protocol { upstream, follower: frame::PROTOCOL },
        None => Fault::NotDepsync { answer: "426, naming no version of ours".to_owned() },
    })
}

/// The name of what went wrong, where it has one.
fn fault_of(source: &tungstenite::Error) -> Error {
    let not_depsync = |answer: String| Error::Fault(Fault::NotDepsync { answer });
    match source {
        tungstenite::Error::Http(answer) => match answer.status().as_u16() {
            401 | 403 => Error::Fault(Fault::WrongToken),
            426 => other_protocol(answer),
            404 => not_depsync("404: no such address, or no such feed".to_owned()),
            503 => Error::Link("the upstream is starting, stopping or too busy (503)".to_owned()),
            status => not_depsync(status.to_string()),
        },
        tungstenite::Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(
            SubProtocolError::NoSubProtocol | SubProtocolError::InvalidSubProtocol,
        )) => not_depsync(format!("a WebSocket that does not speak {}", frame::SUBPROTOCOL)),
        tungstenite::Error::Protocol(error @ ProtocolError::HttparseError(_)) => {
            not_depsync(error.to_string())
        }
        other => Error::Link(format!("the connection is lost: {other}")),
    }
}
