//! The mirror's end of the WebSocket: says hello, hands on what it hears, sends what it is given.
//!
//! It decides nothing. It ends when the upstream is silent for 20 s, when a frame cannot be read,
//! or when the upstream says why it will not talk; what comes then is up to `follow`.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{mpsc, watch},
    time::timeout,
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

use crate::{
    bus::{
        frame::{
            self, Announce, Fault, FromFollower, FromUpstream, Heartbeat, Hello, Progress, Pulse,
            Welcome,
        },
        roster::SILENCE,
    },
    replica::{Error, upstream::Upstream},
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
#[derive(Debug)]
pub(super) struct Line {
    /// Where it puts what it hears.
    pub(super) heard: mpsc::Sender<Heard>,
    /// What it is to send.
    pub(super) outbox: mpsc::Receiver<FromFollower>,
    /// What we have now.
    pub(super) pulse: watch::Receiver<Pulse>,
    /// How far a fetch is.
    pub(super) progress: watch::Receiver<Option<Progress>>,
}

/// Talks with the upstream until that ends, and says why it ended.
pub(super) async fn converse(upstream: Upstream, hello: Hello, mut line: Line) {
    let Err(reason) = talk(&upstream, hello, &mut line).await;
    let _ = line.heard.send(Heard::Ended(reason)).await; // the stage is ending: nobody to tell
}

async fn talk(
    upstream: &Upstream,
    hello: Hello,
    line: &mut Line,
) -> Result<std::convert::Infallible, Error> {
    let greeting = async {
        let mut socket = open(upstream).await?;
        send(&mut socket, &FromFollower::Hello(hello)).await?;
        Ok::<_, Error>(socket)
    };
    let socket = timeout(CONNECT, greeting).await;
    let mut socket = socket.map_err(|_| Error::Silent { url: upstream.base.to_string() })??;
    loop {
        tokio::select! {
            frame = timeout(SILENCE, socket.next()) => {
                let frame = frame.map_err(|_| Error::Silent { url: upstream.base.to_string() })?;
                let Some(heard) = read(frame, upstream)? else { continue };
                if matches!(heard, Heard::Heartbeat(_)) {
                    answer(&mut socket, line).await?;
                }
                line.heard.send(heard).await.map_err(|_| Error::Stopped)?;
            }
            frame = line.outbox.recv() => {
                send(&mut socket, &frame.ok_or(Error::Stopped)?).await?;
            }
        }
    }
}

/// The answer to a heartbeat: what we have, and how far a fetch is.
async fn answer<S>(socket: &mut WebSocketStream<S>, line: &mut Line) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let pulse = line.pulse.borrow_and_update().clone();
    send(socket, &FromFollower::Heartbeat(pulse)).await?;
    let progress = *line.progress.borrow_and_update();
    match progress {
        Some(progress) => send(socket, &FromFollower::Progress(progress)).await,
        None => Ok(()),
    }
}

async fn send<S>(socket: &mut WebSocketStream<S>, frame: &FromFollower) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
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
        FromUpstream::Unknown => Ok(None),
    }
}

/// Opens a connection and closes it again.
pub(super) async fn try_open(upstream: &Upstream) -> Result<(), Error> {
    let opened = timeout(CONNECT, open(upstream)).await;
    opened.map_err(|_| Error::Silent { url: upstream.base.to_string() })??;
    Ok(())
}

async fn open(
    upstream: &Upstream,
) -> Result<WebSocketStream<impl AsyncRead + AsyncWrite + Unpin>, Error> {
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
    let stream = dial(upstream)
        .await
        .map_err(|source| Error::Link(format!("cannot connect to {}: {source}", upstream.base)))?;
    let (socket, _) = client_async_with_config(request, stream, Some(limits))
        .await
        .map_err(|source| fault_of(&source))?;
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
