//! The server's loop: accepts, bounds, serves, and lets go.
//!
//! So many connections at once: more wait in the kernel's queue; more of one address are closed. A head
//! must come within its time, and a client that takes no byte for a minute is let go. At the stop
//! requests under way may finish for a while; what is left then is cut off. No task outlives the loop.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Edge, error::Error, failures::network_of, front::Front};
use crate::{sys, tls};

/// A few hundred kilobytes each at most.
const MAX_CONNECTIONS: usize = 4096;
/// For a request's head, and for what is written ahead of a slow client.
const BUFFER: usize = 32 << 10;
/// What the kernel holds of an answer and has not sent: beyond it a slow client would be given what
/// others wait for. Far more is under way on a fast link, since what is sent does not count.
const UNSENT: u32 = 128 << 10;
/// For a request's head, and for a connection without a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// For a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// For any progress in sending.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// For requests under way at the stop.
const DRAIN: Duration = Duration::from_secs(10);
/// After a failure to accept: out of file descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whatever may be wrong with a body.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The other end of a request's connection, among its extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves until `stop`, then drains.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<tls::Server>>,
    front: Arc<Front>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let crowd = Arc::new(Crowd::default());
    let mut connections = JoinSet::new();
    while let Some(accepted) = stop.run_until_cancelled(accept(&listener, &slots)).await {
        let (stream, peer, slot) = accepted?;
        let Some(place) = crowd.enter(peer.ip(), places_for(peer.ip(), &front.edge)) else {
            front.edge.metrics.turned_away();
            tracing::debug!(%peer, "closed: its address has as many connections as it may");
            continue;
        };
        let talk = greet(stream, tls.clone(), peer, Arc::clone(&front), stop.clone());
        connections.spawn(async move {
            talk.await;
            drop((slot, place));
        });
        while let Some(ended) = connections.try_join_next() {
            report(ended);
        }
        front.edge.metrics.set_connections(connections.len());
    }
    drop(listener);
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::info!("{} connections are cut off", connections.len());
        connections.shutdown().await;
    }
    Ok(())
}

/// How many connections each address has open, so that none takes them all.
#[derive(Default)]
struct Crowd(Mutex<HashMap<IpAddr, usize>>);

/// One of them, until it is dropped.
struct Standing {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

/// This machine, and proxies that are listed, speak for many.
fn places_for(address: IpAddr, edge: &Edge) -> usize {
    let is_exempt = address.to_canonical().is_loopback() || edge.is_proxy(address);
    if is_exempt { usize::MAX } else { edge.pace.max_connections() }
}

impl Crowd {
    /// None: it has as many as it may.
    fn enter(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Standing> {
        let address = network_of(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Standing { crowd: Arc::clone(self), address })
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut open = self.crowd.0.lock().unwrap_or_else(PoisonError::into_inner);
        match open.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(open.remove(&self.address)),
        }
    }
}

type Slot = tokio::sync::OwnedSemaphorePermit;

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Result<(TcpStream, SocketAddr, Slot), Error> {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the slots are never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Ok((stream, peer, slot)),
            Err(error) if is_broken(&error) => return Err(Error::Listen(error)),
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the listening socket itself is of no use any more.
fn is_broken(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let broken = [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP];
    broken.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a request's handler panicked: {error}");
    }
}

/// Speaks TLS first, where this node has a certificate.
async fn greet(
    stream: TcpStream,
    tls: Option<Arc<tls::Server>>,
    peer: SocketAddr,
    front: Arc<Front>,
    stop: CancellationToken,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "cannot set TCP_NODELAY: {error}");
    }
    if let Err(error) = sys::limit_unsent(&stream, UNSENT) {
        tracing::debug!(%peer, "cannot set TCP_NOTSENT_LOWAT: {error}");
    }
    let Some(tls) = tls else { return connection(stream, peer, front, stop).await };
    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => connection(stream, peer, front, stop).await,
        Ok(Err(error)) => tracing::debug!(%peer, "no TLS: {error}"),
        Err(_) => tracing::debug!(%peer, "no TLS within {HANDSHAKE_TIMEOUT:?}"),
    }
}

async fn connection<S>(stream: S, peer: SocketAddr, front: Arc<Front>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        Arc::clone(&front).answer(Peer(peer), request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(Stalling::new(stream)), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut ending = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = stop.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, "the connection ended: {error}");
    }
}

/// A stream whose writing fails once it has made no progress for too long.
struct Stalling<S> {
    stream: S,
    /// Set while a write waits.
    until: Option<Pin<Box<Sleep>>>,
}

impl<S> Stalling<S> {
    fn new(stream: S) -> Self {
        Stalling { stream, until: None }
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        progress: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.until = None;
            return progress;
        }
        let until = self.until.get_or_insert_with(|| {
            Box::pin(tokio::time::sleep_until(Instant::now() + STALL_TIMEOUT))
        });
        match until.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch(cx, progress)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.watch(cx, progress)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_gives_them_back() {
        let crowd = Arc::new(Crowd::default());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let enter = |text: &str| crowd.enter(address(text), 2);
        let (first, second) = (enter("2001:db8::1").unwrap(), enter("2001:db8::ffff:1").unwrap());
        assert!(enter("2001:db8::2").is_none(), "a /64 counts as one");
        let other = enter("10.0.0.1").unwrap();
        drop(first);
        let third = enter("2001:db8::3").unwrap();
        assert!(enter("2001:db8::4").is_none());
        drop((second, third, other));
        assert!(crowd.0.lock().unwrap().is_empty(), "who has gone is forgotten");
    }
}
