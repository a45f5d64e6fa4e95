//! One feed, opened: its repository, its directory, and what the stages share of it.

use std::{net::TcpListener, sync::Arc, time::Duration};

use super::{Error, kept, steward};
use crate::{
    bus::Desk,
    config::{self, Checkout, FeedSettings, Settings},
    disk::{self, Aside, CurrentRoot, Releases, Root},
    hooks::Hooks,
    ledger::{Decisions, state_dir::StateDir},
    model::{FeedName, RelPath},
    origin, replica, serve,
    signing::{self, Signer, Trusted},
    store::{self, Store},
    sys,
};

/// One feed, opened.
pub(super) struct Feed {
    pub(super) settings: FeedSettings,
    pub(super) desk: Arc<Desk>,
    pub(super) root: Option<Arc<CurrentRoot>>,
}

impl Feed {
    pub(super) fn open(
        settings: &FeedSettings,
        state: &StateDir,
        decisions: &Decisions,
        min_free: Option<u64>,
    ) -> Result<Self, Error> {
        let feed = settings.name.clone();
        let role = steward::role(settings, &decisions.feed(&feed));
        let root = settings.dir_as(role).map(open_root).transpose();
        let root = root.map_err(|source| Error::Directory { feed: feed.clone(), source })?;
        let unusable = |source| Error::Key { feed: feed.clone(), source };
        let keys = keys(settings).map_err(unusable)?;
        let at = state.feed(&feed);
        let store = match role {
            config::Role::Primary => Store::open(&at),
            config::Role::Region => Store::open_mirror(&at),
        };
        let store = store.map_err(|source| Error::Store { feed: feed.clone(), source })?;
        let store = Arc::new(store.with_keys(keys).with_floor(min_free));
        let decided = decisions.feed(&feed);
        let (orders, paused) = (kept::orders(&decided, &store), steward::paused(&decided));
        let desk = Arc::new(Desk::new(feed, store, decided.bindings));
        desk.orders.send_replace(orders);
        desk.paused.send_replace(paused);
        Ok(Self { settings: settings.clone(), desk, root })
    }

    /// Removes what killed uploads and checkouts left in the directory, and what has lain aside for
    /// long enough; says what it drops.
    pub(super) fn tidy(&self, state: &StateDir) -> Result<(), Error> {
        let Some(root) = &self.root else { return Ok(()) };
        let feed = &self.settings.name;
        let failed = |source| Error::Directory { feed: feed.clone(), source };
        let mut aside = Aside::new(&state.feed(feed).join("aside"));
        let swept = root.get().sweep(&mut aside).map_err(failed)?;
        if swept.removed > 0 || !swept.set_aside.is_empty() {
            let (removed, set_aside) = (swept.removed, swept.set_aside.len());
            tracing::info!(%feed, removed, set_aside, "tidied up after a run that was cut off");
        }
        let keep = Duration::from_secs(86_400 * disk::KEEP_DAYS);
        for dropped in aside.trim(sys::now(), keep, disk::MAX_BYTES).map_err(failed)? {
            let (files, bytes) = (dropped.notes.len(), dropped.bytes);
            tracing::info!(%feed, files, bytes, "dropped what had lain aside for long");
        }
        Ok(())
    }

    /// The releases of a feed that is checked out so.
    pub(super) fn snapshot(&self, state: &StateDir) -> Result<Option<replica::Snapshot>, Error> {
        let Checkout::Snapshot { link, releases, hard_link } = &self.settings.mirror.checkout
        else {
            return Ok(None);
        };
        let feed = self.settings.name.clone();
        let opened = Releases::open(&state.feed(&feed).join("releases"), link);
        let opened = opened.map_err(|source| Error::Directory { feed, source })?;
        let (link, keep) = (link.clone(), *releases);
        Ok(Some(replica::Snapshot { releases: opened, link, keep, hard_link: *hard_link }))
    }

    pub(super) fn hooks(&self) -> Hooks {
        Hooks::open(self.settings.hooks.as_deref())
    }

    /// Where uploads go, while the feed is owned here.
    pub(super) fn intake(&self) -> Option<(FeedName, serve::Intake)> {
        let profile = self.settings.primary.as_ref()?.profile;
        let root = Arc::clone(self.root.as_ref()?);
        let watched = Arc::clone(&root);
        let left_out =
            Box::new(move |path: &RelPath| origin::left_out(&watched.get(), profile, path));
        Some((self.settings.name.clone(), serve::Intake { root, left_out }))
    }
}

/// Whether the port and the directories can be had: a first start that is refused leaves no state
/// directory behind.
pub(super) fn try_start(settings: &Settings) -> Result<(), Error> {
    let address = settings.listen;
    TcpListener::bind(address).map_err(|source| Error::Listen { address, source })?;
    for feed in &settings.feeds {
        let root = feed.dir().map(open_root).transpose();
        root.map_err(|source| Error::Directory { feed: feed.name.clone(), source })?;
    }
    Ok(())
}

fn keys(settings: &FeedSettings) -> Result<store::Keys, signing::Error> {
    let signer = settings.sign_with.as_deref().map(Signer::open).transpose()?;
    let trusted = settings.trusted_keys.as_deref().map(Trusted::open).transpose()?;
    Ok(store::Keys { signer, trusted })
}

fn open_root(dir: &std::path::Path) -> Result<Arc<CurrentRoot>, disk::Error> {
    let root = Root::open(dir)?;
    root.lock()?;
    Ok(Arc::new(CurrentRoot::new(root)))
}
