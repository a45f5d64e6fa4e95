//! A look at the disk before anything is changed: the directories that a configuration names.
//!
//! Compares real paths, so a link into a watched folder is seen through. Looks only: what does not
//! exist yet (the state directory) is judged by the part of its path that does. The region table is
//! read here, once.

use std::path::{Path, PathBuf};

use super::{
    Checkout, Error, FeedSettings, Role, Settings,
    fault::{Fault, Source},
    region_xml,
};
use crate::model::{RegionName, RegionTable};

/// The settings, if the directories that they name can be used.
pub(super) fn checked(mut settings: Settings, source: &Source<'_>) -> Result<Settings, Error> {
    let mut faults = Vec::new();
    let dirs: Vec<Watched<'_>> = settings
        .feeds
        .iter()
        .filter_map(|feed| Watched::of(feed).map_err(|fault| faults.extend(fault)).ok())
        .collect();
    faults.extend(state_fault(&settings.state_dir, &dirs));
    for (at, dir) in dirs.iter().enumerate() {
        faults.extend(dirs[..at].iter().find_map(|earlier| dir.clash(earlier)));
    }
    faults.extend(dirs.iter().filter_map(Watched::hooks_fault));
    faults.extend(settings.feeds.iter().filter_map(link_fault));
    match region_table(&settings) {
        Ok(table) => settings.region_table = table,
        Err(fault) => faults.push(fault),
    }
    if faults.is_empty() { Ok(settings) } else { Err(Error::new(source, &faults)) }
}

/// The region table, in which each region that has a limit must be.
pub(super) fn region_table(settings: &Settings) -> Result<RegionTable, Fault> {
    let read = settings.regions.as_deref().map(region_xml::read).transpose();
    let table = read.map_err(|error| Fault::new("regions", error))?.unwrap_or_default();
    let known = |name: &RegionName| table.has(name) || settings.region.as_ref() == Some(name);
    match settings.bandwidth.unknown_region(known) {
        None => Ok(table),
        Some(name) => {
            let message = format!("there is no region \"{name}\" in the region table");
            Err(Fault::new("bandwidth.network", message))
        }
    }
}

/// A feed's directory as it really is.
struct Watched<'a> {
    feed: &'a FeedSettings,
    real: PathBuf,
}

impl<'a> Watched<'a> {
    /// None, as an error without a fault, for a feed that has no directory.
    fn of(feed: &'a FeedSettings) -> Result<Self, Option<Fault>> {
        let dir = feed.dir().ok_or(None)?;
        let fault = |message: String| {
            Some(Fault::new(
                "dir",
                format!("{} of feed \"{}\" {message}", dir.display(), feed.name),
            ))
        };
        let real = dir.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => fault("does not exist; make it first".to_owned()),
            _ => fault(format!("cannot be opened: {error}")),
        })?;
        if !real.is_dir() {
            return Err(fault(
                "is not a directory; name the one that holds the feed's files".to_owned(),
            ));
        }
        Ok(Self { feed, real })
    }

    /// Hooks that lie in the directory would be published, and written by whoever may deploy.
    fn hooks_fault(&self) -> Option<Fault> {
        let hooks = real_path(self.feed.hooks.as_deref()?);
        let (path, feed, folder) = (hooks.display(), &self.feed.name, self.real.display());
        let message = format!(
            "{path} lies inside the directory of feed \"{feed}\", {folder}: whoever may deploy could \
             run programs as this daemon; choose one outside"
        );
        hooks.starts_with(&self.real).then(|| Fault::new("hooks", message))
    }

    fn clash(&self, earlier: &Watched<'_>) -> Option<Fault> {
        let (this, that) = (&self.feed.name, &earlier.feed.name);
        let path = self.real.display();
        let message = if self.real == earlier.real {
            let mirrors = |feed: &FeedSettings| feed.role == Role::Region;
            if mirrors(self.feed) == mirrors(earlier.feed) {
                format!("{path} is the directory of feed \"{that}\" and of feed \"{this}\"")
            } else {
                format!(
                    "{path} is both the primary's and a region's directory (feeds \"{that}\" and \
                     \"{this}\"); a region needs one of its own"
                )
            }
        } else if self.real.starts_with(&earlier.real) {
            format!(
                "{path} of feed \"{this}\" lies inside that of feed \"{that}\"; keep them apart"
            )
        } else if earlier.real.starts_with(&self.real) {
            format!("{path} of feed \"{this}\" holds that of feed \"{that}\"; keep them apart")
        } else {
            return None;
        };
        Some(Fault::new("dir", message))
    }
}

/// The link to a release is made by us: only what is none, or nothing, may lie there.
fn link_fault(feed: &FeedSettings) -> Option<Fault> {
    let (Role::Region, Checkout::Snapshot { link, .. }) = (feed.role, &feed.mirror.checkout) else {
        return None;
    };
    let (path, feed) = (link.display(), &feed.name);
    if !link.parent().is_some_and(Path::is_dir) {
        let message = format!("the folder in which {path} of feed \"{feed}\" lies does not exist");
        return Some(Fault::new("dir", format!("{message}; make it first")));
    }
    let found = link.symlink_metadata().ok().filter(|found| !found.is_symlink())?;
    let what = if found.is_dir() { "a directory" } else { "a file" };
    let message = format!(
        "{path} of feed \"{feed}\" is {what}, and a link to the current release belongs there; move \
         it away, or name another path"
    );
    Some(Fault::new("dir", message))
}

fn state_fault(state: &Path, dirs: &[Watched<'_>]) -> Option<Fault> {
    let fault = |message| Some(Fault::new("state_dir", message));
    let path = state.display();
    let real = real_path(state);
    if real.exists() && !real.is_dir() {
        return fault(format!("{path} is not a directory; the state is kept in one"));
    }
    let near = |dir: &&Watched<'_>| real.starts_with(&dir.real) || dir.real.starts_with(&real);
    let dir = dirs.iter().find(near)?;
    let (feed, folder) = (&dir.feed.name, dir.real.display());
    if real.starts_with(&dir.real) {
        return fault(format!(
            "{path} lies inside the directory of feed \"{feed}\", {folder}; it would be published: \
             choose another with --state or state_dir"
        ));
    }
    fault(format!(
        "{path} holds the directory of feed \"{feed}\", {folder}; choose another with --state or \
         state_dir"
    ))
}

/// The real path of what may not exist yet.
fn real_path(path: &Path) -> PathBuf {
    let known = path.ancestors().find_map(|known| Some((known, known.canonicalize().ok()?)));
    match known {
        Some((known, real)) => match path.strip_prefix(known) {
            Ok(rest) if rest.as_os_str().is_empty() => real,
            Ok(rest) => real.join(rest),
            Err(_) => path.to_owned(),
        },
        None => path.to_owned(),
    }
}
