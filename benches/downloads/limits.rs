//! How well limits are kept on real connections, and what two thousand slow clients cost.
//!
//! Clients are told apart by their address, so each gets one of its own in 127.0.0.0/8.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use crate::{
    limit, noise, published, seconds,
    world::{Node, World},
};

const MB: f64 = 1e6;
const SLOW_CLIENTS: u32 = 2000;

/// A client: from its own address, with some connections, perhaps slow by itself.
#[derive(Clone)]
struct Client {
    address: Ipv4Addr,
    connections: usize,
    /// Bytes a second that it takes over all its connections; none: as many as come.
    takes: Option<f64>,
    path: String,
    received: Arc<AtomicU64>,
}

impl Client {
    fn new(number: u32, connections: usize, takes: Option<f64>, path: &str) -> Self {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 16, 1)) + number);
        Client { address, connections, takes, path: path.to_owned(), received: Arc::default() }
    }

    async fn connect(&self, server: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        // What a slow client does not take stays at the server and not in buffers on the way.
        if self.takes.is_some() {
            socket.set_recv_buffer_size(64 << 10)?;
        }
        socket.bind(SocketAddr::from((self.address, 0)))?;
        let mut stream = socket.connect(server).await?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {server}\r\n\r\n", self.path);
        stream.write_all(request.as_bytes()).await?;
        Ok(stream)
    }

    /// Downloads again and again on one connection.
    async fn download(self, server: SocketAddr) -> std::io::Result<()> {
        let mut block = vec![0; 64 << 10];
        let started = Instant::now();
        let pace = self.takes.map(|takes| takes / self.connections as f64);
        let mut mine = 0.0;
        loop {
            let mut stream = self.connect(server).await?;
            loop {
                if let Some(pace) = pace {
                    let due = started + Duration::from_secs_f64(mine / pace);
                    tokio::time::sleep_until(due.into()).await;
                }
                let wait =
                    tokio::time::timeout(Duration::from_millis(500), stream.read(&mut block));
                // The file has an end and the connection has none: silence says that it came.
                match wait.await {
                    Ok(Ok(0)) | Err(_) => break,
                    Ok(read) => {
                        let read = read?;
                        mine += read as f64;
                        self.received.fetch_add(read as u64, Relaxed);
                    }
                }
            }
        }
    }
}

/// Bytes that each client receives per second, after some time to get going.
async fn measure(node: &Node, clients: &[Client], [settle, span]: [Duration; 2]) -> Vec<f64> {
    let address = node.url();
    let server = address.trim_start_matches("http://").parse().expect("an address");
    let mut all = JoinSet::new();
    for client in clients {
        for _ in 0..client.connections {
            all.spawn(client.clone().download(server));
        }
    }
    tokio::time::sleep(settle).await;
    let before: Vec<u64> = clients.iter().map(|client| client.received.load(Relaxed)).collect();
    let started = Instant::now();
    tokio::time::sleep(span).await;
    let took = started.elapsed().as_secs_f64();
    let came = clients
        .iter()
        .zip(before)
        .map(|(client, before)| (client.received.load(Relaxed) - before) as f64 / took);
    let came = came.collect();
    all.shutdown().await;
    came
}

/// Each client's share by its own wish: who wants less than an even share gets that, the others
/// share the rest evenly.
fn entitled(total: f64, wishes: &[Option<f64>]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wishes.len()).collect();
    let wish = |at: usize| wishes[at].unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| wish(*a).total_cmp(&wish(*b)));
    let (mut left, mut shares) = (total, vec![0.0; wishes.len()]);
    for (done, at) in order.iter().enumerate() {
        shares[*at] = wish(*at).min(left / (wishes.len() - done) as f64);
        left -= shares[*at];
    }
    shares
}

fn jain(values: &[f64]) -> f64 {
    let (sum, squares): (f64, f64) = (values.iter().sum(), values.iter().map(|v| v * v).sum());
    sum * sum / (values.len() as f64 * squares)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn hub(world: &World, bytes: usize) -> Node {
    let hub = world.primary("hub");
    fs::write(hub.dir.join("large.bin"), noise(1, bytes)).expect("a file");
    published(&hub, 1);
    hub
}

/// One download, twenty unequal ones, two classes, and a limit that is lowered.
pub(crate) fn rates() {
    let world = World::new();
    let hub = hub(&world, 2_000_000_000);
    let file = "/v1/feeds/default/files/large.bin";
    let spans = [Duration::from_secs(1), Duration::from_secs(seconds(10))];
    let runtime = runtime();
    let off = |rate: f64, wanted: f64| 100.0 * (rate / wanted - 1.0);

    limit(&hub, "{\"downloads\": \"10MB/s\"}");
    let one = [Client::new(0, 1, None, file)];
    let rate = runtime.block_on(measure(&hub, &one, spans))[0];
    println!("one at 10 MB/s: {:.3} MB/s, {:+.2} % (wanted 2 %)", rate / MB, off(rate, 10.0 * MB));

    limit(&hub, "{\"total\": \"50MB/s\"}");
    let clients: Vec<Client> = (0..20)
        .map(|number| match number % 4 {
            0 => Client::new(number, 1, Some(0.5 * MB), file),
            1 => Client::new(number, 8, None, file),
            2 => Client::new(number, 1, None, file),
            _ => Client::new(number, 3, None, file),
        })
        .collect();
    let rates = runtime.block_on(measure(&hub, &clients, spans));
    let total: f64 = rates.iter().sum();
    let wishes: Vec<_> = clients.iter().map(|client| client.takes).collect();
    let shares = entitled(50.0 * MB, &wishes);
    let fulfilled: Vec<f64> = rates.iter().zip(shares).map(|(rate, share)| rate / share).collect();
    let greedy: Vec<f64> = rates
        .iter()
        .zip(&wishes)
        .filter(|(_, wish)| wish.is_none())
        .map(|(rate, _)| *rate)
        .collect();
    println!(
        "20 unequal clients under 50 MB/s: {:.3} MB/s, {:+.2} % (wanted 2 %); Jain {:.4} of what each \
         was due, {:.4} among those that take all they get (wanted 0.98)",
        total / MB,
        off(total, 50.0 * MB),
        jain(&fulfilled),
        jain(&greedy),
    );

    let object = hub.get("/v1/feeds/default/files/")["entries"][0]["size"].clone();
    assert_eq!(object, 2_000_000_000_u64);
    let etag = crate::world::curl(&["-sI", &format!("{}{file}", hub.url())]);
    let etag = String::from_utf8_lossy(&etag.stdout).into_owned();
    let id = etag.lines().find_map(|line| line.strip_prefix("etag: \"")).expect("a tag");
    let mirror = format!("/v1/feeds/default/objects/{}", id.trim().trim_end_matches('"'));
    limit(&hub, "{\"downloads\": \"20MB/s\", \"replication\": \"10MB/s\"}");
    let both = [Client::new(1, 2, None, file), Client::new(2, 2, None, &mirror)];
    let rates = runtime.block_on(measure(&hub, &both, spans));
    println!(
        "two classes at once: {:.3} of 20 MB/s ({:+.2} %), {:.3} of 10 MB/s ({:+.2} %)",
        rates[0] / MB,
        off(rates[0], 20.0 * MB),
        rates[1] / MB,
        off(rates[1], 10.0 * MB),
    );
    lowered(&hub, &runtime, file);
}

/// What comes in each tenth of a second after a limit was lowered from 50 to 5 MB/s.
fn lowered(hub: &Node, runtime: &tokio::runtime::Runtime, file: &str) {
    limit(hub, "{\"total\": \"50MB/s\"}");
    let client = Client::new(3, 4, None, file);
    let received = Arc::clone(&client.received);
    let address = hub.url();
    let server = address.trim_start_matches("http://").parse().expect("an address");
    runtime.block_on(async {
        let mut all = JoinSet::new();
        (0..client.connections).for_each(|_| drop(all.spawn(client.clone().download(server))));
        tokio::time::sleep(Duration::from_secs(2)).await;
        limit(hub, "{\"total\": \"5MB/s\"}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (begin, started) = (received.load(Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let rate = (received.load(Relaxed) - begin) as f64 / started.elapsed().as_secs_f64();
        println!("lowered to 5 MB/s: {:.3} MB/s from the second after on", rate / MB);
        all.shutdown().await;
    });
}

fn memory(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.trim().trim_end_matches("kB").trim().parse::<f64>().expect("a number") * 1024.0
}

/// Two thousand clients that take 2 kB/s each, and one that takes what it gets: without a limit, and
/// under one of 50 MB/s, of which all is its due that the others do not take.
pub(crate) fn slow_clients() {
    let world = World::new();
    let hub = hub(&world, 2_000_000_000);
    let before = memory(hub.pid());
    let (free, _) = runtime().block_on(among_slow(&hub, None));
    let (rate, settled) = runtime().block_on(among_slow(&hub, Some(50.0 * MB)));
    println!(
        "{SLOW_CLIENTS} slow clients: peak memory {:.0} MB (before {:.0}; wanted under 200); a fast one \
         gets {:.1} MB/s without a limit, and {:.1} MB/s of 46 that are its share of 50 (nine tenths of \
         that after {settled} s)",
        memory(hub.pid()) / MB,
        before / MB,
        free / MB,
        rate / MB,
    );
}

/// What a fast client gets per second in the end, and after how many seconds nine tenths of it.
async fn among_slow(hub: &Node, total: Option<f64>) -> (f64, usize) {
    let limits = total.map_or("{}".to_owned(), |rate| format!("{{\"total\": \"{rate:.0}B/s\"}}"));
    limit(hub, &limits);
    let file = "/v1/feeds/default/files/large.bin";
    let slow = (0..SLOW_CLIENTS).map(|number| Client::new(number, 1, Some(2000.0), file));
    let fast = Client::new(SLOW_CLIENTS, 1, None, file);
    let received = Arc::clone(&fast.received);
    let address = hub.url();
    let server = address.trim_start_matches("http://").parse().expect("an address");
    let mut all = JoinSet::new();
    slow.chain([fast]).for_each(|client| drop(all.spawn(client.download(server))));
    let mut each = Vec::new();
    let (mut at, mut seen) = (Instant::now(), 0);
    // What the slow ones' own sides take unread comes first: some 300 kB each.
    for _ in 0..20 + seconds(10) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (now, total) = (Instant::now(), received.load(Relaxed));
        each.push((total - seen) as f64 / (now - at).as_secs_f64());
        (at, seen) = (now, total);
    }
    all.shutdown().await;
    let last = &each[20..];
    let rate = last.iter().sum::<f64>() / last.len() as f64;
    let settled = each.iter().position(|one| *one > 0.9 * rate).unwrap_or(each.len());
    (rate, settled + 1)
}
