//! The follower's end: hears what its upstream announces, and says what became of it.
//!
//! Begun once the upstream has taken the hello in. After each new connection to the server the head
//! that is kept there is looked at, so that what was announced meanwhile is not waited for.

use std::time::Duration;

use async_nats::{Subscriber, jetstream::kv};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Error, HEADS, NODES, NOTICES, Nats, Said, head_key, part, subject};
use crate::{
    bus::{
        frame::{
            self, Announce, BadFrame, FromFollower, FromUpstream, Heartbeat, Session, Standing,
        },
        report::Below,
    },
    model::{FeedName, Head, NodeId, RegionName},
};

/// A server that is away for longer is told of; a restart is not.
const RESTART: Duration = Duration::from_secs(5);
/// How often it is looked whether the server is there.
const CHECK: Duration = Duration::from_secs(1);

/// A follower that has said hello.
#[derive(Debug, Clone)]
pub struct Attendant {
    /// Its upstream.
    pub upstream: NodeId,
    /// The feed's name there.
    pub feed: FeedName,
    /// Who it is.
    pub node: NodeId,
    /// The region that it names.
    pub region: Option<RegionName>,
    /// As the upstream has answered.
    pub session: Session,
    /// What it is to its region.
    pub standing: Standing,
    /// The head that it was told of.
    pub head: Option<Head>,
    /// Whether the upstream asks for tokens, and has told of readers.
    pub trusted: bool,
}

/// What came from the upstream.
#[derive(Debug)]
pub enum Told {
    /// A new head, with its pack when that is small.
    Announce(Announce, Option<Bytes>),
    /// A sign of life.
    Heartbeat(Heartbeat),
    /// The upstream does not know us any more, or what we are has changed: it wants to hear hello.
    HelloAgain,
}

/// Why nothing more can be heard.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The server is away.
    #[error(transparent)]
    Nats(#[from] Error),
    /// What came is no frame.
    #[error(transparent)]
    Frame(#[from] BadFrame),
}

/// The follower's end of a conversation.
pub struct Attendance {
    nats: Nats,
    who: Attendant,
    announced: Subscriber,
    notices: Subscriber,
    connected: watch::Receiver<u64>,
    /// The head that is kept there is to be looked at.
    look: bool,
    /// Since when the server is away, and when that is looked at.
    away: Option<Instant>,
    check_at: Instant,
}

impl Nats {
    /// Begins to hear what the upstream says from now on.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn attend(&self, who: Attendant) -> Result<Attendance, Error> {
        let key = head_key(&who.upstream, &who.feed);
        let announced = self.subscribe(subject(HEADS, &key)).await?;
        let notices = format!("{NOTICES}.{key}.{}", part(who.node.as_str()));
        let notices = self.subscribe(notices).await?;
        let mut connected = self.connected.clone();
        connected.borrow_and_update();
        let (nats, check_at) = (self.clone(), Instant::now() + CHECK);
        let (look, away) = (true, None);
        Ok(Attendance { nats, who, announced, notices, connected, look, away, check_at })
    }
}

impl Attendance {
    /// What comes next. Nothing is lost when it is not waited for to its end.
    ///
    /// # Errors
    /// When the server is away for longer than a restart takes, or something else is said there.
    pub async fn hear(&mut self) -> Result<Told, Lost> {
        loop {
            if self.look {
                let kept = self.kept().await;
                self.look = false;
                if let Some(told) = kept {
                    return Ok(told);
                }
            }
            let message = tokio::select! {
                message = self.announced.next() => message,
                notice = self.notices.next() => match notice {
                    Some(_) => return Ok(Told::HelloAgain),
                    None => None,
                },
                Ok(()) = self.connected.changed() => {
                    self.look = true;
                    continue;
                }
                () = sleep_until(self.check_at) => {
                    self.check()?;
                    continue;
                }
            };
            let message = message.ok_or_else(|| self.nats.away("the subscription has ended"))?;
            if let Some(told) = self.read(message.payload)? {
                return Ok(told);
            }
        }
    }

    fn check(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        self.check_at = now + CHECK;
        if self.nats.is_up() {
            self.away = None;
        } else if *self.away.get_or_insert(now) + RESTART <= now {
            return Err(self.nats.away(""));
        }
        Ok(())
    }

    /// Says something. What the server does not take is said with the next heartbeat.
    ///
    /// # Errors
    /// When the server takes nothing any more.
    pub async fn say(&self, frame: FromFollower) -> Result<(), Error> {
        match frame {
            // Each node below has a key of its own, so that none takes another one's place.
            FromFollower::Below(below) => {
                for report in below.nodes {
                    let kind = format!("below.{}", part(report.node.as_str()));
                    self.keep(&kind, FromFollower::Below(Below { nodes: vec![report] })).await?;
                }
                Ok(())
            }
            FromFollower::Heartbeat(_) => self.keep("pulse", frame).await,
            FromFollower::Ack(_) => self.keep("ack", frame).await,
            FromFollower::Progress(_) => self.keep("progress", frame).await,
            FromFollower::Hello(_) | FromFollower::Unknown => Ok(()),
        }
    }

    async fn keep(&self, kind: &str, frame: FromFollower) -> Result<(), Error> {
        let Attendant { upstream, feed, node, session, standing, .. } = &self.who;
        let key = format!("{}.{}.{kind}", head_key(upstream, feed), part(node.as_str()));
        let said = Said { session: *session, standing: *standing, frame };
        self.nats.say(subject(NODES, &key), Bytes::from(frame::encode(&said))).await
    }

    /// The head that is kept there, where it is newer than what we were told.
    async fn kept(&self) -> Option<Told> {
        let key = head_key(&self.who.upstream, &self.who.feed);
        let bucket: kv::Store = self.nats.jetstream.get_key_value(HEADS).await.ok()?;
        let told = read(bucket.get(key).await.ok()??).ok()??;
        let head = match &told {
            Told::Announce(announce, _) => Some(announce.head),
            Told::Heartbeat(beat) => beat.head,
            Told::HelloAgain => None,
        };
        let at = |head: Option<Head>| head.map(|head| (head.epoch, head.seq));
        (at(head) > at(self.who.head)).then_some(())?;
        Some(self.for_us(told))
    }

    fn read(&mut self, bytes: Bytes) -> Result<Option<Told>, BadFrame> {
        let Some(told) = read(bytes)? else { return Ok(None) };
        if let Told::Announce(Announce { head, .. }, _) = &told {
            self.who.head = Some(*head);
        }
        Ok(Some(self.for_us(told)))
    }

    /// One heartbeat is for all: what of it is for us.
    fn for_us(&self, told: Told) -> Told {
        let Told::Heartbeat(beat) = told else { return told };
        if beat.trust_version.is_some_and(|version| version != self.who.session.trust_version) {
            return Told::HelloAgain;
        }
        let (node, region) = (&self.who.node, self.who.region.as_ref());
        let paused = beat.paused_targets.iter().any(|target| target.is_about(node, region));
        let (standing, trust) = (self.who.standing, beat.trust.filter(|_| self.who.trusted));
        Told::Heartbeat(Heartbeat { standing, paused, trust, ..beat })
    }
}

/// Binary or text, as over a connection of our own: text begins with a brace.
fn read(bytes: Bytes) -> Result<Option<Told>, BadFrame> {
    if bytes.first() != Some(&b'{') {
        let (announce, pack) = Announce::decode(bytes)?;
        return Ok(Some(Told::Announce(announce, pack)));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| BadFrame::Truncated)?;
    Ok(match frame::decode(text)? {
        FromUpstream::Heartbeat(beat) => Some(Told::Heartbeat(beat)),
        _ => None,
    })
}
