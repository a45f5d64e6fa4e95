//! A bad link: a TCP proxy in front of a node, which delays, limits, stalls, cuts, refuses, doubles,
//! damages and counts what passes.
//!
//! `down` is what the node behind it sends, `up` what it is sent. Everything can be changed while
//! connections are open, and holds for all of them together. It knows nothing of what it carries: a
//! bit is flipped wherever the offset falls, or behind the bytes that are named.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::world::Node;

/// Bytes that are handed on at once.
const BLOCK: usize = 64 * 1024;
/// Blocks on the way through one direction of one connection.
const BLOCKS: usize = 16;
/// How soon a changed setting is seen.
const LOOK: Duration = Duration::from_millis(5);

/// A proxy on a port of the kernel's choice, until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    link: Arc<Link>,
}

/// What all connections share.
struct Link {
    target: SocketAddr,
    state: Mutex<State>,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Both ends of each open connection.
    open: Vec<[TcpStream; 2]>,
    refuse: bool,
    stall: bool,
    /// Everything goes up on a second connection as well, whose answers nobody hears.
    double: bool,
    delay: Duration,
    down: Way,
    up: Way,
    /// Bytes still to come down before everything is cut.
    cut_after: Option<u64>,
    cuts: u32,
}

/// One direction.
#[derive(Default)]
struct Way {
    passed: u64,
    /// Bytes a second; none: as many as come.
    limit: Option<u64>,
    /// When the link is free for the next bytes.
    free_at: Option<Instant>,
    /// Counted from when it was set.
    flip_at: Option<u64>,
    /// Where these bytes come next, these bits flip in the one behind them.
    flip_behind: Option<(Vec<u8>, u8)>,
}

#[derive(Clone, Copy)]
enum Direction {
    Down,
    Up,
}

impl Proxy {
    /// In front of a node that has started.
    pub fn to(node: &Node) -> Self {
        let url = node.url();
        Self::to_address(url.strip_prefix("http://").unwrap().parse().unwrap())
    }

    pub fn to_address(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let link = Link { target, state: Mutex::default(), closed: AtomicBool::new(false) };
        let link = Arc::new(link);
        let accepting = Arc::clone(&link);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, link }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends all connections now; new ones are taken.
    pub fn cut(&self) {
        self.link.state().cut();
    }

    /// Ends all connections once so many more bytes have come down.
    pub fn cut_after(&self, bytes: u64) {
        self.link.state().cut_after = Some(bytes);
    }

    /// How often everything was cut.
    pub fn cuts(&self) -> u32 {
        self.link.state().cuts
    }

    /// Whether new connections end at once. Those that are open stay.
    pub fn refuse(&self, refuse: bool) {
        self.link.state().refuse = refuse;
    }

    /// Whether connections stay open and nothing passes.
    pub fn stall(&self, stall: bool) {
        self.link.state().stall = stall;
    }

    /// How long everything is on its way, each way.
    pub fn delay(&self, delay: Duration) {
        self.link.state().delay = delay;
    }

    /// Bytes a second that come down, over all connections; none: as many as there are.
    pub fn limit(&self, bytes: Option<u64>) {
        self.link.state().down.limit = bytes;
    }

    /// Flips a bit of the byte that comes down after so many others.
    pub fn flip(&self, after: u64) {
        self.link.state().down.flip_at = Some(after);
    }

    /// Flips bits of the byte behind the next `bytes` that come down.
    pub fn flip_behind(&self, bytes: &str, bits: u8) {
        self.link.state().down.flip_behind = Some((bytes.as_bytes().to_vec(), bits));
    }

    /// Whether a bit that was to be flipped still waits for its byte.
    pub fn is_to_flip(&self) -> bool {
        let state = self.link.state();
        state.down.flip_at.is_some() || state.down.flip_behind.is_some()
    }

    /// Whether all that a new connection sends arrives twice, on two connections.
    pub fn double(&self, double: bool) {
        self.link.state().double = double;
    }

    /// Bytes that came down so far.
    pub fn down(&self) -> u64 {
        self.link.state().down.passed
    }

    /// Bytes that went up so far.
    pub fn up(&self) -> u64 {
        self.link.state().up.passed
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.link.closed.store(true, SeqCst);
        self.cut();
        drop(TcpStream::connect(self.address)); // wakes the one who accepts
    }
}

impl Link {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets some of `block` pass: at most what the limit lets through in a moment.
    fn pass(&self, direction: Direction, block: &mut [u8]) -> Passed {
        let now = Instant::now();
        let mut state = self.state();
        if state.stall || self.closed.load(SeqCst) {
            return Passed::Wait;
        }
        let cut_after = state.cut_after.filter(|_| matches!(direction, Direction::Down));
        let way = match direction {
            Direction::Down => &mut state.down,
            Direction::Up => &mut state.up,
        };
        if way.limit.is_some() && way.free_at.is_some_and(|free| free > now) {
            return Passed::Wait;
        }
        let most = way.limit.map_or(u64::MAX, |limit| (limit / 50).max(1));
        let size = (block.len() as u64).min(most).min(cut_after.unwrap_or(u64::MAX));
        let busy = way.limit.map(|limit| Duration::from_secs_f64(size as f64 / limit as f64));
        way.free_at = busy.map(|busy| way.free_at.unwrap_or(now).max(now - LOOK) + busy);
        way.passed += size;
        if let Some(at) = &mut way.flip_at {
            match usize::try_from(*at).ok().filter(|_| *at < size) {
                Some(here) => {
                    block[here] ^= 1;
                    way.flip_at = None;
                }
                None => *at -= size,
            }
        }
        way.flip_here(&mut block[..size as usize]);
        let Some(left) = cut_after else { return Passed::Bytes(size) };
        state.cut_after = Some(left - size);
        if left == size { Passed::Last(size) } else { Passed::Bytes(size) }
    }
}

impl Way {
    /// Flips bits behind the bytes that are waited for, where they are here.
    fn flip_here(&mut self, block: &mut [u8]) {
        let Some((bytes, bits)) = &self.flip_behind else { return };
        let found = block.windows(bytes.len()).position(|here| here == bytes);
        if let Some(byte) = found.and_then(|at| block.get_mut(at + bytes.len())) {
            *byte ^= bits;
            self.flip_behind = None;
        }
    }
}

enum Passed {
    Bytes(u64),
    /// These, and then the link is cut.
    Last(u64),
    Wait,
}

impl State {
    fn cut(&mut self) {
        self.cuts += 1;
        self.cut_after = None;
        for stream in self.open.drain(..).flatten() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn accept(listener: &TcpListener, link: &Arc<Link>) {
    for client in listener.incoming() {
        if link.closed.load(SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if link.state().refuse {
            continue;
        }
        let Ok(server) = TcpStream::connect(link.target) else { continue };
        join(link, &client, &server);
    }
}

/// Starts what carries the bytes of a connection.
fn join(link: &Arc<Link>, client: &TcpStream, server: &TcpStream) {
    for stream in [client, server] {
        stream.set_nodelay(true).unwrap();
    }
    let copy = |stream: &TcpStream| stream.try_clone().unwrap();
    let mut second = second(link);
    let mut state = link.state();
    state.open.push([copy(client), copy(server)]);
    state.open.extend(second.as_ref().map(|second| [copy(second), copy(second)]));
    drop(state);
    for (direction, from, to) in
        [(Direction::Down, copy(server), copy(client)), (Direction::Up, copy(client), copy(server))]
    {
        let (send, receive) = sync_channel(BLOCKS);
        let also = second.take_if(|_| matches!(direction, Direction::Up));
        thread::spawn(move || take(from, &send, also));
        let link = Arc::clone(link);
        thread::spawn(move || hand_on(&link, direction, &receive, to));
    }
}

/// A second connection to the same, where connections are to come twice: its answers are read and
/// dropped.
fn second(link: &Link) -> Option<TcpStream> {
    let is_wanted = link.state().double;
    let second = is_wanted.then(|| TcpStream::connect(link.target).ok())??;
    let mut answers = second.try_clone().ok()?;
    thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
    Some(second)
}

fn take(mut from: TcpStream, to: &SyncSender<(Instant, Vec<u8>)>, mut also: Option<TcpStream>) {
    let mut block = vec![0; BLOCK];
    while let Ok(size) = from.read(&mut block) {
        if size == 0 || to.send((Instant::now(), block[..size].to_vec())).is_err() {
            break;
        }
        also = also.filter(|mut also| also.write_all(&block[..size]).is_ok());
    }
    if let Some(also) = also {
        also.shutdown(Shutdown::Write).ok();
    }
}

fn hand_on(
    link: &Link,
    direction: Direction,
    from: &Receiver<(Instant, Vec<u8>)>,
    mut to: TcpStream,
) {
    while let Ok((came, mut block)) = from.recv() {
        let due = came + link.state().delay;
        while let Some(wait) = due.checked_duration_since(Instant::now()).filter(|w| !w.is_zero()) {
            thread::park_timeout(wait);
        }
        let mut rest = &mut block[..];
        while !rest.is_empty() {
            let passed = link.pass(direction, rest);
            let (Passed::Bytes(size) | Passed::Last(size)) = passed else {
                if link.closed.load(SeqCst) {
                    return;
                }
                thread::park_timeout(LOOK);
                continue;
            };
            let (now, later) = std::mem::take(&mut rest).split_at_mut(size as usize);
            let written = to.write_all(now);
            if matches!(passed, Passed::Last(_)) {
                link.state().cut();
            }
            if written.is_err() {
                to.shutdown(Shutdown::Both).ok();
                return;
            }
            rest = later;
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

mod tests {
    use super::*;

    /// A server that answers each connection with the same bytes, a number of times.
    fn server(bytes: &'static [u8], connections: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().take(connections) {
                let mut stream = stream.unwrap();
                thread::spawn(move || stream.write_all(bytes));
            }
        });
        address
    }

    fn read(proxy: &Proxy) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut stream = TcpStream::connect(proxy.address).unwrap();
        stream.read_to_end(&mut bytes).ok();
        bytes
    }

    #[test]
    fn a_proxy_passes_flips_cuts_refuses_and_counts() {
        let proxy = Proxy::to_address(server(&[7; 200_000], 4));
        assert_eq!(read(&proxy), [7; 200_000]);
        assert_eq!(proxy.down(), 200_000);

        proxy.flip(150_000);
        let flipped = read(&proxy);
        assert_eq!(flipped.iter().filter(|byte| **byte != 7).count(), 1);
        assert_eq!(flipped[150_000], 6);
        assert!(!proxy.is_to_flip());

        proxy.cut_after(1234);
        assert_eq!(read(&proxy).len(), 1234);
        crate::world::eventually("it was cut", || match proxy.cuts() {
            1 => Ok(()),
            cuts => Err(format!("{cuts} cuts")),
        });

        proxy.refuse(true);
        assert!(read(&proxy).is_empty());
        proxy.refuse(false);
        proxy.limit(Some(400_000));
        proxy.delay(Duration::from_millis(100));
        let start = Instant::now();
        assert_eq!(read(&proxy).len(), 200_000);
        assert!(start.elapsed() >= Duration::from_millis(500), "{:?}", start.elapsed());
    }
}
