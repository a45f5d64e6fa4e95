//! `GET /v1/feeds/{feed}/follow`: the upstream's end of a follower's WebSocket.
//!
//! Each follower has one slot, the newest head: a slow one skips, nothing piles up, and it delays
//! nobody else. A commit's pack travels inside when it is small and its parent is what the follower
//! heard of last. A connection that is silent, or takes nothing, for 20 s is closed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::ws::{Message, WebSocket, WebSocketUpgrade},
    response::Response,
};
use http::{HeaderMap, header};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{access::Caller, passes::Told};
use crate::{
    bus::{
        self, Board, Desk, Trust, TurnedAway,
        frame::{
            self, Announce, Fault, FromFollower, FromUpstream, HEARTBEAT, Heartbeat, Hello,
            MAX_FRAME, OLDEST_PROTOCOL, PROTOCOL, SILENCE, SUBPROTOCOL, Standing, Welcome,
        },
    },
    model::{Head, Label, NodeId, Oid, RegionName},
    store::Published,
    sys,
};

/// How long a follower may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// What a follower may know, apart from what it was told already.
type TellTrust = Box<dyn Fn(&Desk, &NodeId, &mut Told) -> Option<Trust> + Send + Sync>;

/// What a follower is told of this node.
pub(super) struct Host {
    /// Our identity.
    pub(super) node: NodeId,
    /// Our name for people.
    pub(super) label: Label,
    /// Whether the region table has an entry of that name.
    pub(super) knows_region: Box<dyn Fn(&RegionName) -> bool + Send + Sync>,
    /// Whether the token that a follower showed is still good.
    pub(super) still_in: Box<dyn Fn(&Caller) -> bool + Send + Sync>,
    /// What a follower may know of who may read; none: nobody is asked here.
    pub(super) trust: TellTrust,
    /// Remembers who was turned away.
    pub(super) board: Board,
    /// Ends every connection.
    pub(super) stop: CancellationToken,
}

impl Host {
    /// Says once, and shows from then on, that somebody could not be talked with.
    pub(super) fn turn_away(&self, who: &str, feed: &str, fault: &Fault) {
        let feed: String = feed.chars().take(80).collect();
        let caller = TurnedAway { who: who.to_owned(), feed, fault: fault.clone(), at: sys::now() };
        if self.board.turn_away(caller) {
            warn!(who, "turned away: {fault}");
        }
    }
}

/// Who connects.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// Its address as we see it.
    pub(super) peer: SocketAddr,
    /// Who it is, by the token that it showed.
    pub(super) caller: Caller,
}

/// Answers a follower's upgrade and talks with it until one side ends that.
pub(super) fn follow(
    desk: Arc<Desk>,
    visitor: Visitor,
    host: Arc<Host>,
    upgrade: WebSocketUpgrade,
) -> Response {
    upgraded(upgrade, async move |mut socket| {
        let ended = host.stop.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            () = serve(&desk, visitor, &host, &mut socket) => {}
        }
        close(socket).await;
    })
}

/// Answers an upgrade only to say, in a frame, why there will be no conversation: a client does not
/// get to see the body of a refused upgrade.
pub(super) fn refuse(fault: Fault, upgrade: WebSocketUpgrade) -> Response {
    upgraded(upgrade, async move |mut socket| {
        // It is going anyway.
        let _ = say(&mut socket, &FromUpstream::Fault(fault)).await;
        close(socket).await;
    })
}

/// What keeps us from talking with whoever offers these subprotocols; none: nothing does.
pub(super) fn offers(headers: &HeaderMap) -> Option<Fault> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> =
        lists.filter_map(|list| list.to_str().ok()).flat_map(|list| list.split(',')).collect();
    if offered.is_empty() || offered.iter().any(|name| name.trim() == SUBPROTOCOL) {
        return None;
    }
    match offered.iter().find_map(|name| frame::version_of(name)) {
        Some(follower) => Some(Fault::Protocol { upstream: PROTOCOL, follower }),
        None => Some(Fault::NotDepsync { answer: offered.concat().chars().take(80).collect() }),
    }
}

fn upgraded<F, Fut>(upgrade: WebSocketUpgrade, talk: F) -> Response
where
    F: FnOnce(WebSocket) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MAX_FRAME)
        .max_frame_size(MAX_FRAME)
        .read_buffer_size(8 * 1024) // followers send little, and there may be thousands
        .write_buffer_size(0)
        .on_upgrade(talk)
}

/// The other side is gone, or takes nothing any more.
struct Gone;

async fn serve(desk: &Desk, visitor: Visitor, host: &Host, socket: &mut WebSocket) {
    let Some(hello) = greet(socket).await else { return };
    let (node, label) = (hello.node.clone(), hello.label.clone());
    let feed = &desk.feed;
    let mut heads = desk.head.subscribe();
    let url = hello.url.clone().or_else(|| hello.port.map(|port| url_of(visitor.peer.ip(), port)));
    let token = visitor.caller.token().map(ToOwned::to_owned);
    let registered = understood(&hello)
        .and_then(|()| in_its_region(hello.clone(), &visitor.caller))
        .and_then(|hello| desk.register(bus::Caller { hello, url, token }));
    let (connection, standing) = match registered {
        Ok(registered) => registered,
        Err(fault) => {
            host.turn_away(&format!("{label} ({node})"), feed.as_str(), &fault);
            let _ = say(socket, &FromUpstream::Fault(fault)).await; // it is going anyway
            return;
        }
    };
    info!(%feed, %node, %label, ?standing, "a node follows");
    let mut trusted = Told::default();
    // The head is let go before the rest of the desk is looked at: no lock inside another.
    let head = heads.borrow_and_update().as_ref().map(|published| published.head);
    let mut welcome = welcome(desk, host, &hello, standing, head);
    welcome.trust = (host.trust)(desk, &node, &mut trusted);
    welcome.session = host.board.session(connection).filter(|_| hello.nats);
    if welcome.session.is_some() {
        // From here on it is heard over NATS, or it falls silent.
        let _ = say(socket, &FromUpstream::Welcome(welcome)).await;
        return;
    }
    let told = welcome.head.map(|head| head.commit);
    let region = hello.region.clone();
    let is_still_in = || (host.still_in)(&visitor.caller);
    let trust = |told: &mut Told| (host.trust)(desk, &node, told);
    let mut talk = Talk {
        desk,
        node: &node,
        region,
        connection,
        standing,
        told,
        is_still_in: &is_still_in,
        trusted,
        trust: &trust,
    };
    if say(socket, &FromUpstream::Welcome(welcome)).await.is_ok() {
        talk.run(socket, &mut heads).await;
    }
    desk.gone(&node, connection);
    info!(%feed, %node, %label, "a node is gone");
}

async fn greet(socket: &mut WebSocket) -> Option<Hello> {
    let Ok(Some(Ok(Message::Text(text)))) = timeout(HELLO, socket.recv()).await else {
        return None;
    };
    match frame::decode(&text) {
        Ok(FromFollower::Hello(hello)) => Some(hello),
        _ => None,
    }
}

fn understood(hello: &Hello) -> Result<(), Fault> {
    match hello.protocol {
        OLDEST_PROTOCOL..=PROTOCOL => Ok(()),
        follower => Err(Fault::Protocol { upstream: PROTOCOL, follower }),
    }
}

/// A token names the regions that its holder may stand for. One that names none mirrors, and nobody
/// is led to it; one that names others is not this node's.
fn in_its_region(hello: Hello, caller: &Caller) -> Result<Hello, Fault> {
    match &hello.region {
        Some(region) if !caller.may_serve(region) => match caller {
            Caller::Holder(token) if token.scope.region.is_some() => Err(Fault::WrongToken),
            _ => Ok(Hello { region: None, ..hello }),
        },
        _ => Ok(hello),
    }
}

fn welcome(
    desk: &Desk,
    host: &Host,
    hello: &Hello,
    standing: Standing,
    head: Option<Head>,
) -> Welcome {
    Welcome {
        protocol: PROTOCOL,
        node: host.node.clone(),
        label: host.label.clone(),
        head,
        profile: desk.profile.borrow().clone(),
        standing,
        paused: desk.is_paused(&hello.node, hello.region.as_ref()),
        spread_ms: millis(desk.spread()),
        orders: desk.orders.borrow().clone(),
        trust: None,
        warning: warning(host, hello.region.as_ref(), standing),
        session: None,
    }
}

fn warning(host: &Host, region: Option<&RegionName>, standing: Standing) -> Option<String> {
    let region = region?;
    if standing == Standing::Standby {
        return Some(format!(
            "another live node serves the region {region}; this one stands by, and mirrors meanwhile"
        ));
    }
    let unknown = !(host.knows_region)(region);
    unknown.then(|| {
        format!("the upstream's region.xml has no region {region}: no client will be led here")
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn url_of(address: IpAddr, port: u16) -> String {
    format!("http://{}", SocketAddr::new(address.to_canonical(), port))
}

/// A conversation under way.
struct Talk<'a> {
    desk: &'a Desk,
    node: &'a NodeId,
    region: Option<RegionName>,
    connection: u64,
    standing: Standing,
    /// The head that the follower was last told of: it will have that once it has worked it off.
    told: Option<Oid>,
    /// Whether its token is still good: a revoked one ends the conversation within a heartbeat.
    is_still_in: &'a (dyn Fn() -> bool + Sync),
    /// What it was told of who may read.
    trusted: Told,
    trust: &'a (dyn Fn(&mut Told) -> Option<Trust> + Sync),
}

type Heads = tokio::sync::watch::Receiver<Option<Published>>;

impl Talk<'_> {
    async fn run(&mut self, socket: &mut WebSocket, heads: &mut Heads) {
        let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let (mut paused, mut orders) = (self.desk.paused.subscribe(), self.desk.orders.subscribe());
        loop {
            let went_on = tokio::select! {
                changed = heads.changed() => match changed {
                    Ok(()) => self.announce(socket, heads).await,
                    Err(_) => Err(Gone),
                },
                frame = socket.recv() => {
                    heard = Instant::now();
                    self.take(frame)
                }
                _ = beat.tick() => self.beat(socket).await,
                Ok(()) = paused.changed() => self.beat(socket).await,
                Ok(()) = orders.changed() => self.beat(socket).await,
                () = sleep_until(heard + SILENCE) => Err(Gone),
            };
            if went_on.is_err() {
                return;
            }
        }
    }

    async fn announce(&mut self, socket: &mut WebSocket, heads: &mut Heads) -> Result<(), Gone> {
        let Some(published) = heads.borrow_and_update().clone() else { return Ok(()) };
        if self.is_paused() {
            return Ok(()); // heartbeats go on, and say so
        }
        let Published { head, parent, signed, pack } = published;
        let pack = pack.filter(|_| parent == self.told);
        let feed = self.desk.feed.clone();
        let signature = signed.as_deref().map(str::to_owned);
        let announce = Announce { feed, head, parent, size: 0, signature };
        self.told = Some(head.commit);
        send(socket, Message::Binary(announce.encode(pack.as_deref()))).await
    }

    async fn beat(&mut self, socket: &mut WebSocket) -> Result<(), Gone> {
        if !(self.is_still_in)() {
            let _ = say(socket, &FromUpstream::Fault(Fault::WrongToken)).await; // it is going anyway
            return Err(Gone);
        }
        let (head, standing, paused) = (self.desk.head(), self.standing, self.is_paused());
        let spread_ms = millis(self.desk.spread());
        let orders = self.desk.orders.borrow().clone();
        let trust = (self.trust)(&mut self.trusted);
        let beat = Heartbeat {
            head,
            standing,
            paused,
            spread_ms,
            orders,
            trust,
            paused_targets: Vec::new(),
            trust_version: None,
        };
        say(socket, &FromUpstream::Heartbeat(beat)).await
    }

    fn is_paused(&self) -> bool {
        self.desk.is_paused(self.node, self.region.as_ref())
    }

    fn take(&mut self, frame: Option<Result<Message, axum::Error>>) -> Result<(), Gone> {
        let frame = match frame {
            Some(Ok(Message::Text(text))) => frame::decode(&text).map_err(|error| {
                warn!(feed = %self.desk.feed, node = %self.node, "closed: {error}");
                Gone
            })?,
            Some(Ok(Message::Binary(_) | Message::Ping(_) | Message::Pong(_))) => {
                FromFollower::Unknown
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Gone),
        };
        self.standing = self.desk.take(self.node, self.connection, frame).ok_or(Gone)?;
        Ok(())
    }
}

async fn say(socket: &mut WebSocket, frame: &FromUpstream) -> Result<(), Gone> {
    send(socket, Message::text(frame::encode(frame))).await
}

/// A frame is small: whoever has not taken it after 20 s takes nothing.
async fn send(socket: &mut WebSocket, frame: Message) -> Result<(), Gone> {
    match timeout(SILENCE, socket.send(frame)).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(Gone),
    }
}

/// Says goodbye, where there is still somebody to hear it.
async fn close(mut socket: WebSocket) {
    let _ = timeout(Duration::from_secs(1), socket.send(Message::Close(None))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let node = "hub".parse().unwrap();
        let label = "hub".parse().unwrap();
        let knows_region = Box::new(|region: &RegionName| region.as_str() == "eu");
        let still_in = Box::new(|_: &Caller| true);
        Host {
            board: Board::default(),
            node,
            label,
            knows_region,
            still_in,
            trust: Box::new(|_, _, _| None),
            stop: CancellationToken::new(),
        }
    }

    #[test]
    fn a_region_without_an_entry_is_warned() {
        let host = host();
        let (eu, us) = ("eu".parse().unwrap(), "us".parse().unwrap());
        assert_eq!(warning(&host, None, Standing::Mirror), None);
        assert_eq!(warning(&host, Some(&eu), Standing::Serving), None);
        assert!(warning(&host, Some(&us), Standing::Serving).unwrap().contains("region.xml"));
        assert!(warning(&host, Some(&eu), Standing::Standby).unwrap().contains("stands by"));
    }

    #[test]
    fn an_address_is_made_of_what_we_see() {
        for (address, url) in [
            ("10.0.0.7", "http://10.0.0.7:80"),
            ("::ffff:10.0.0.7", "http://10.0.0.7:80"),
            ("fd00::7", "http://[fd00::7]:80"),
        ] {
            assert_eq!(url_of(address.parse().unwrap(), 80), url);
        }
    }

    #[test]
    fn a_node_stands_only_for_the_regions_of_its_token() {
        let hello = r#"{"protocol":1,"node":"n","label":"n","region":"eu-7"}"#;
        let hello: Hello = serde_json::from_str(hello).unwrap();
        let holder = |region: Option<&str>| {
            let region = region.map(|region| region.parse().unwrap());
            let scope =
                crate::model::Scope { role: crate::model::Role::Mirror, feed: None, region };
            Caller::Holder(crate::ledger::tokens::Token {
                id: "1".to_owned(),
                hash: crate::model::ObjectId::from_bytes([0; 32]),
                scope,
                created: std::time::SystemTime::UNIX_EPOCH.into(),
                expires: None,
            })
        };
        for (caller, expected) in [
            (Caller::Anyone, Ok(true)),
            (holder(Some("eu-*")), Ok(true)),
            (holder(None), Ok(false)),
            (holder(Some("us")), Err(Fault::WrongToken)),
        ] {
            let region = in_its_region(hello.clone(), &caller).map(|hello| hello.region.is_some());
            assert_eq!(region, expected, "{caller:?}");
        }
    }

    #[test]
    fn versions_that_do_not_meet_are_named() {
        let hello = r#"{"protocol":9,"node":"n","label":"n"}"#;
        let hello: Hello = serde_json::from_str(hello).unwrap();
        assert_eq!(understood(&hello).unwrap_err(), Fault::Protocol { upstream: 1, follower: 9 });
        assert!(understood(&Hello { protocol: 1, ..hello }).is_ok());
    }
}
