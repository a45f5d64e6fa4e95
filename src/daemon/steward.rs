//! One feed's stage, and what changes which stage that is: promotion, demotion, fencing, pauses.
//!
//! Exactly one stage runs on a feed at any time: the old one has ended before the next one starts.
//! Each decision is durable before it is in force, so that a restart with the same configuration
//! goes on as what the node had become. Followers keep their connections throughout.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use reqwest::Url;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Error, Node, contact, feed::Feed, stages::on_thread};
use crate::{
    bus::{Answer, Decision, Nats},
    config::{FeedSettings, Role},
    ledger::decisions::{self, Act, Pause, RootMark},
    model::{FeedName, Head, Target},
    origin, replica, sys,
};

/// Decisions that may wait.
const QUEUE: usize = 16;
/// Pauses of one feed that are kept.
const MAX_PAUSES: usize = 10_000;

/// Looks after one feed.
pub(super) struct Steward {
    node: Arc<Node>,
    feed: usize,
    address: SocketAddr,
    nats: Option<Nats>,
}

/// What comes after the stage that runs.
enum Change {
    Promote(Answer),
    Demote { upstream: Option<String>, answer: Option<Answer> },
}

/// What this node is to a feed: as decided, at the first start as configured.
pub(super) fn role(settings: &FeedSettings, decided: &decisions::Feed) -> Role {
    match decided.role {
        Some(decisions::Role::Primary) => Role::Primary,
        Some(decisions::Role::Region) => Role::Region,
        None => settings.role,
    }
}

/// Who is to stay where it is.
pub(super) fn paused(decided: &decisions::Feed) -> Vec<Target> {
    decided.pauses.iter().map(|pause| pause.target.clone()).collect()
}

impl Steward {
    /// Notes what the node is to the feed; no stage runs before [`Steward::run`].
    pub(super) fn new(
        node: Arc<Node>,
        feed: usize,
        address: SocketAddr,
        nats: Option<Nats>,
    ) -> Result<Self, Error> {
        let steward = Steward { node, feed, address, nats };
        steward.remember_role()?;
        steward.show_role();
        Ok(steward)
    }

    fn feed(&self) -> &Feed {
        &self.node.feeds[self.feed]
    }

    fn name(&self) -> &FeedName {
        &self.feed().settings.name
    }

    fn decided(&self) -> decisions::Feed {
        self.node.decisions.feed(self.name())
    }

    fn role(&self) -> Role {
        role(&self.feed().settings, &self.decided())
    }

    /// Before a stage runs: whoever asks or joins at once is answered as by what this node will be.
    fn show_role(&self) {
        let primary = self.role() == Role::Primary;
        self.feed().desk.state.send_modify(|state| state.primary = primary);
    }

    /// The configuration says what a node is at its first start; ownership is state from then on.
    fn remember_role(&self) -> Result<(), Error> {
        let configured = match self.feed().settings.role {
            Role::Primary => decisions::Role::Primary,
            Role::Region => decisions::Role::Region,
        };
        let update = |kept: &mut decisions::Feed| *kept.role.get_or_insert(configured);
        let kept = self.node.decisions.update_feed(self.name(), update)?;
        if kept != configured {
            let (feed, kept) = (self.name(), format!("{kept:?}").to_lowercase());
            tracing::warn!(%feed, "this node is the feed's {kept}, as was decided since its first start, whatever the configuration says");
        }
        Ok(())
    }

    /// Runs the feed's stage, and another one after each change, until `stop`.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let (sender, mut inbox) = mpsc::channel(QUEUE);
        self.feed().desk.take_decisions(Box::new(move |it| sender.try_send(it).is_ok()));
        if self.role() == Role::Primary
            && let Some(owner) = self.other_owner().await
        {
            self.change(self.fenced_off(&owner)).await?;
        }
        loop {
            let running = stop.child_token();
            let mut stage = std::pin::pin!(self.stage(running.clone())?);
            let change = loop {
                tokio::select! {
                    ended = &mut stage => return ended,
                    Some(decision) = inbox.recv() => {
                        if let Some(change) = self.decide(decision).await {
                            break change;
                        }
                    }
                    owner = self.await_other_owner() => break self.fenced_off(&owner),
                }
            };
            running.cancel();
            stage.await?;
            self.change(change).await?;
        }
    }

    /// The stage that the feed has now.
    fn stage(
        &self,
        stop: CancellationToken,
    ) -> Result<impl Future<Output = Result<(), Error>> + use<>, Error> {
        self.show_role();
        let name = self.name().clone();
        let stage =
            if let (Role::Primary, Some(primary)) = (self.role(), &self.feed().settings.primary) {
                let store = &self.feed().desk.store;
                // At a primary the directory says what the feed is, and not the other way round.
                let ready = store.drop_unpublished().and_then(|_| store.clear_checked_out());
                ready.map_err(|source| Error::Store { feed: name.clone(), source })?;
                let failed = move |source| Error::Origin { feed: name.clone(), source };
                let setup = self.node.origin(self.feed(), primary);
                let origin = origin::start(setup).map_err(&failed)?;
                let (signal, name) = (origin.stop(), format!("origin-{}", self.name()));
                let run = move || origin.run().map_err(failed);
                Stage::Origin(on_thread(name, run, move || signal.stop(), stop)?)
            } else {
                let setup = self.node.replica(
                    self.feed(),
                    self.upstreams()?,
                    (self.address, self.nats.clone()),
                )?;
                let failed = move |source| Error::Replica { feed: name, source };
                let kept = self.node.kept(self.feed(), &stop);
                let (orders, readers) = (kept.clone().orders(), kept.readers());
                Stage::Replica(async move {
                    let mirror = async { replica::run(setup, stop).await.map_err(failed) };
                    tokio::try_join!(mirror, orders, readers).map(|_| ())
                })
            };
        Ok(async move {
            match stage {
                Stage::Origin(origin) => origin.await,
                Stage::Replica(replica) => Box::pin(replica).await,
            }
        })
    }

    /// Where the feed is mirrored from: the node that it was demoted to, and those configured.
    fn upstreams(&self) -> Result<Vec<Url>, Error> {
        let configured = self.feed().settings.mirror.upstreams.iter().map(ToString::to_string);
        let mut urls: Vec<Url> = Vec::new();
        for url in self.decided().upstream.into_iter().chain(configured) {
            let wrong = |_| Error::Upstream { feed: self.name().clone(), url: url.clone() };
            let url = Url::parse(&url).map_err(wrong)?;
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(urls)
    }

    /// Carries out what does not need another stage; the rest comes back.
    async fn decide(&self, decision: Decision) -> Option<Change> {
        match decision {
            Decision::Pause { target, by, answer } => {
                let act = Act { since: DateTime::<Utc>::from(sys::now()), by };
                let pause = Pause { target, act };
                let done = self.keep(move |feed| {
                    feed.pauses.retain(|known| known.target != pause.target);
                    feed.pauses.truncate(MAX_PAUSES - 1);
                    feed.pauses.push(pause);
                });
                tell(answer, done.await);
                None
            }
            Decision::Resume { target, answer } => {
                let resume = move |feed: &mut decisions::Feed| {
                    let before = feed.pauses.len();
                    feed.pauses.retain(|known| known.target != target);
                    feed.pauses.len() < before
                };
                let done = self.keep(resume).await.and_then(|was_paused| {
                    if was_paused { Ok(()) } else { Err("it is not paused".to_owned()) }
                });
                tell(answer, done);
                None
            }
            Decision::Promote(answer) => match self.may_promote() {
                Ok(()) => Some(Change::Promote(answer)),
                Err(why) => {
                    tell(answer, Err(why));
                    None
                }
            },
            Decision::Demote { upstream, answer } => {
                let known =
                    upstream.is_some() || self.upstreams().is_ok_and(|urls| !urls.is_empty());
                if known {
                    return Some(Change::Demote { upstream, answer: Some(answer) });
                }
                tell(
                    answer,
                    Err("name the node that owns the feed now, with --upstream".to_owned()),
                );
                None
            }
        }
    }

    /// The folder becomes the truth: it must hold what this node has, or half a version would be
    /// published.
    fn may_promote(&self) -> Result<(), String> {
        let feed = self.feed();
        if feed.root.is_none() || feed.settings.primary.is_none() {
            return Err(
                "this node keeps no checkout of the feed: rebuild its directory elsewhere, \
                        with `depsync region DIR --upstream` naming this node, and promote that one"
                    .to_owned(),
            );
        }
        if !feed.settings.mirror.paths.is_empty() && !feed.desk.state.borrow().primary {
            return Err(
                "this node keeps only a part of the feed (`paths`), and the rest would be \
                        published as removed: promote a node that keeps all of it"
                    .to_owned(),
            );
        }
        let state = feed.desk.state.borrow();
        if state.primary || (state.fetched.is_some() && state.have == state.fetched) {
            return Ok(());
        }
        Err(match state.fetched {
            None => "nothing of the feed has come here yet".to_owned(),
            Some(_) => "its newest version is not in the directory yet; wait until it is, or mend \
                        what the feed's state says"
                .to_owned(),
        })
    }

    /// Makes a decision durable, and then known.
    async fn keep<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut decisions::Feed) -> T + Send + 'static,
    ) -> Result<T, String> {
        let (decisions, name) = (Arc::clone(&self.node.decisions), self.name().clone());
        let kept = move || decisions.update_feed(&name, change);
        #[expect(clippy::disallowed_methods, reason = "a file of kilobytes, when somebody decides")]
        let kept = tokio::task::spawn_blocking(kept).await;
        let kept = kept.map_err(|panic| panic.to_string())?.map_err(|error| error.to_string())?;
        self.feed().desk.paused.send_replace(paused(&self.decided()));
        Ok(kept)
    }

    /// Changes what this node is to the feed, while no stage runs.
    async fn change(&self, change: Change) -> Result<(), Error> {
        let (answer, done) = match change {
            Change::Promote(answer) => (Some(answer), self.promote().await),
            Change::Demote { upstream, answer } => (answer, self.demote(upstream).await),
        };
        if let Err(why) = &done {
            tracing::error!(feed = %self.name(), "the feed stays what it is here: {why}");
        }
        if let Some(answer) = answer {
            tell(answer, done);
        }
        Ok(())
    }

    async fn promote(&self) -> Result<(), String> {
        let above = self.feed().desk.highest_epoch();
        // Whatever is changed there from now on is a change, and no sign of another directory.
        let root = self.feed().root.as_ref().and_then(|root| root.get().id().ok());
        let claim = move |feed: &mut decisions::Feed| {
            let mark = root.map(|id| RootMark { inode: id.inode, fsid: id.fsid });
            feed.root = mark.or(feed.root);
            feed.epoch = feed.epoch.max(above) + 1;
            feed.role = Some(decisions::Role::Primary);
            (feed.upstream, feed.demoted_at) = (None, None);
            feed.epoch
        };
        let epoch = self.keep(claim).await?;
        tracing::warn!(feed = %self.name(), epoch, "promoted: this node owns the feed");
        Ok(())
    }

    async fn demote(&self, upstream: Option<String>) -> Result<(), String> {
        let was_primary = self.role() == Role::Primary;
        let store = Arc::clone(&self.feed().desk.store);
        let head = store.head().map_err(|error| error.to_string())?;
        if was_primary {
            store.clear_checked_out().map_err(|error| error.to_string())?;
        }
        let step_down = move |feed: &mut decisions::Feed| {
            feed.role = Some(decisions::Role::Region);
            feed.upstream = upstream.or(feed.upstream.take());
            if was_primary {
                feed.demoted_at = head.map(|head| head.commit);
            }
        };
        self.keep(step_down).await?;
        tracing::warn!(feed = %self.name(), "demoted: this node mirrors the feed");
        Ok(())
    }

    fn fenced_off(&self, (url, head): &(Url, Head)) -> Change {
        tracing::error!(
            feed = %self.name(), epoch = head.epoch, commit = %head.commit,
            "{url} owns the feed in a higher epoch: this node steps down, and what it has not published is kept aside"
        );
        Change::Demote { upstream: Some(url.to_string()), answer: None }
    }

    /// Waits for a node that owns the feed in a higher epoch; for ever at a region, or where the
    /// configuration names no other node.
    async fn await_other_owner(&self) -> (Url, Head) {
        loop {
            tokio::time::sleep(self.node.settings.poll).await;
            if self.role() == Role::Primary
                && let Some(owner) = self.other_owner().await
            {
                return owner;
            }
        }
    }

    async fn other_owner(&self) -> Option<(Url, Head)> {
        let upstreams = self.upstreams().ok().filter(|urls| !urls.is_empty())?;
        let tls = self.node.tls.client_of(self.name());
        let contact = contact(&self.feed().settings.mirror, tls).ok()?;
        let heads = contact.heads(&upstreams);
        // An upstream that does not answer cannot be waited for: this node may be all there is.
        let heads = tokio::time::timeout(Duration::from_secs(5), heads).await.ok()?;
        let own = self.feed().desk.store.head().ok()?.map_or(0, |head| head.epoch);
        let own = own.max(self.decided().epoch);
        let above = heads.into_iter().filter(|(_, head)| head.epoch > own);
        above.max_by_key(|(_, head)| head.epoch)
    }
}

/// Either stage, as one future.
enum Stage<O, R> {
    Origin(O),
    Replica(R),
}

fn tell(answer: Answer, done: Result<(), String>) {
    let _ = answer.send(done); // it waits no longer: fine
}
