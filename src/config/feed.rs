//! `[[feed]]` as it is meant: its role, how it is watched where it is owned, how it is mirrored.
//!
//! Keys of the other role are checked like any other and then sleep: a promotion changes what a feed is
//! while the configuration stays.

use std::{path::PathBuf, time::Duration};

use toml::Spanned;

use super::{
    BaseUrl, Checkout, FeedSettings, Guard, Mirror, Primary, Role,
    convert::{DAY, Faults, SECOND, pair},
    fault::Fault,
    file,
};
use crate::model::{ByteSize, Cron, FeedName, Keep, Pin, Profile, Retention, Subset};

/// Files from this size on are stored as objects, unless the feed says otherwise.
const LARGE_FILE: u64 = 512 << 10;
/// The most that it may say: no blob of a repository is larger (the store's own bound).
const MOST_LARGE_FILE: u64 = 64 << 20;

/// That there is a feed, and none is called as another.
pub(super) fn unique_names(feeds: &[file::Feed], faults: &mut Faults) {
    let default = FeedName::default();
    let name = |feed: &file::Feed| {
        feed.name.as_ref().map_or(default.as_str().to_owned(), |name| name.get_ref().clone())
    };
    for (at, feed) in feeds.iter().enumerate() {
        if feeds[..at].iter().any(|earlier| name(earlier) == name(feed)) {
            let message = format!("another feed is called \"{}\" already", name(feed));
            faults.add(Fault::new("name", message).near(feed.name.as_ref()));
        }
    }
    if feeds.is_empty() {
        faults.add(Fault::missing("feed", "there is no [[feed]]; a node has at least one"));
    }
}

/// All of them; faults of one name it by its place.
pub(super) fn all(raw: Vec<file::Feed>, adopt: bool, faults: &mut Faults) -> Vec<FeedSettings> {
    let mut feeds = Vec::with_capacity(raw.len());
    for (at, raw) in raw.into_iter().enumerate() {
        let read = FeedSettings::try_from(raw).map_err(|faults| {
            let place = |fault: Fault| {
                let path = format!("feed[{at}].{}", fault.key);
                if fault.missing { Fault { key: path, ..fault } } else { fault }
            };
            faults.into_iter().map(place).collect()
        });
        let Some(mut feed) = faults.section(read) else { continue };
        if let Checkout::InPlace { adopt: wanted, .. } = &mut feed.mirror.checkout {
            *wanted = adopt;
        }
        feeds.push(feed);
    }
    feeds
}

impl TryFrom<file::Feed> for FeedSettings {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Feed) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let name: FeedName = faults.parse("name", raw.name.as_ref()).unwrap_or_default();
        let way = way(raw.checkout.as_ref(), &mut faults);
        let releases = releases(raw.releases.as_ref(), &mut faults);
        let hard_link = raw.link;
        let checkout_at =
            faults.read("checkout_at", raw.checkout_at.as_ref(), |text| Cron::parse(text, None));
        let known = |text: &String| match text.as_str() {
            "repair" => Ok(true),
            "report" => Ok(false),
            _ => Err(format!("\"{text}\" is no policy; there are repair and report")),
        };
        let repair = faults.read("drift", raw.drift.as_ref(), known).unwrap_or(true);
        let upstreams = upstreams(raw.upstream.as_ref(), &mut faults);
        let role = role(&raw, &mut faults);
        let shallow = shallow(raw.history.as_ref(), &mut faults);
        let keep = faults.section(Retention::try_from(raw.keep.clone())).unwrap_or_default();
        let hooks = raw.hooks.clone().map(Spanned::into_inner);
        let sign_with = raw.sign_with.clone().map(Spanned::into_inner);
        let trusted_keys = raw.trusted_keys.clone().map(Spanned::into_inner);
        let dir = raw.dir.clone().map(Spanned::into_inner);
        let token_file = raw.token_file.clone().map(Spanned::into_inner);
        let pins = pins(raw.pin.as_ref(), &upstreams, &mut faults);
        let identity = (raw.client_cert.clone(), raw.client_key.clone());
        let identity = pair("client_cert", identity, ["client_cert", "client_key"], &mut faults);
        if dir.is_none() && (way != Way::None || role == Role::Primary) {
            let message = format!("feed \"{name}\" has no dir, its deployment directory");
            faults.add(Fault::missing("dir", message).near(raw.name.as_ref()));
        }
        let upstream_feed = faults
            .parse("upstream_feed", raw.upstream_feed.as_ref())
            .unwrap_or_else(|| name.clone());
        let paths = paths(&raw.paths, way, &mut faults);
        let primary = faults.section(Primary::try_from((raw, dir.clone().unwrap_or_default())));
        let checkout = match (&dir, way) {
            (Some(dir), Way::InPlace) => Checkout::InPlace { dir: dir.clone(), adopt: false },
            (Some(dir), Way::Snapshot) => {
                Checkout::Snapshot { link: dir.clone(), releases, hard_link }
            }
            _ => Checkout::None,
        };
        let mirror = Mirror {
            upstreams,
            upstream_feed,
            token_file,
            pins,
            identity,
            shallow,
            checkout,
            checkout_at,
            repair,
            paths,
        };
        let primary = primary.filter(|_| dir.is_some());
        faults.done(FeedSettings {
            name,
            hooks,
            sign_with,
            trusted_keys,
            keep,
            role,
            primary,
            mirror,
        })
    }
}

/// As `role` says; else a feed with an upstream is mirrored.
fn role(raw: &file::Feed, faults: &mut Faults) -> Role {
    let known = |text: &String| match text.as_str() {
        "primary" => Ok(Role::Primary),
        "region" if raw.upstream.is_none() => Err("a region has an upstream: name it".to_owned()),
        "region" => Ok(Role::Region),
        _ => Err(format!("\"{text}\" is not a role; there are primary and region")),
    };
    let usual = if raw.upstream.is_some() { Role::Region } else { Role::Primary };
    faults.read("role", raw.role.as_ref(), known).unwrap_or(usual)
}

/// At least one where there is the key; none twice.
fn upstreams(value: Option<&Spanned<file::Several>>, faults: &mut Faults) -> Vec<BaseUrl> {
    let urls = |several: &file::Several| {
        let mut urls: Vec<BaseUrl> = Vec::new();
        for text in &several.0 {
            let url = text.parse::<BaseUrl>()?;
            if urls.contains(&url) {
                return Err(format!("{url} is named twice"));
            }
            urls.push(url);
        }
        if urls.is_empty() { Err("it names no upstream".to_owned()) } else { Ok(urls) }
    };
    faults.read("upstream", value, urls).unwrap_or_default()
}

/// The keys that upstreams may have; only over TLS do they show one.
fn pins(
    value: Option<&Spanned<file::Several>>,
    upstreams: &[BaseUrl],
    faults: &mut Faults,
) -> Vec<Pin> {
    let pins = |several: &file::Several| {
        if let Some(plain) = upstreams.iter().find(|url| url.as_str().starts_with("http://")) {
            return Err(format!("{plain} shows no key: only https has one to pin"));
        }
        let pins: Result<Vec<Pin>, _> = several.0.iter().map(|text| text.parse()).collect();
        pins.and_then(
            |pins| if pins.is_empty() { Err("it names no key".to_owned()) } else { Ok(pins) },
        )
    };
    faults.read("pin", value, pins).unwrap_or_default()
}

/// Patterns of a subset; a release is always whole.
fn paths(values: &[Spanned<String>], way: Way, faults: &mut Faults) -> Vec<String> {
    let pattern = |text: &String| match way {
        Way::Snapshot => Err("releases are always of the whole feed: leave it out".to_owned()),
        Way::InPlace | Way::None => Subset::new([text]).map(|_| text.clone()),
    };
    let read = values.iter().filter_map(|value| faults.read("paths", Some(value), pattern));
    read.collect()
}

/// Whether only the head is kept.
fn shallow(value: Option<&Spanned<toml::Value>>, faults: &mut Faults) -> bool {
    let known = |value: &toml::Value| match value {
        toml::Value::String(text) if text == "full" => Ok(false),
        toml::Value::Integer(1) => Ok(true),
        other => Err(format!("{other} is not a history; there are \"full\" and 1, just the head")),
    };
    faults.read("history", value, known).unwrap_or_default()
}

impl TryFrom<file::Retained> for Retention {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Retained) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let age = [Duration::ZERO, 36_500 * DAY];
        let versions =
            |versions: &u64| if *versions > 0 { Ok(*versions) } else { Err("it is at least 1") };
        let default = Retention::default();
        let keep = Retention {
            age: faults.duration("keep.age", raw.age.as_ref(), age, default.age),
            versions: faults
                .read("keep.versions", raw.versions.as_ref(), versions)
                .unwrap_or(default.versions),
        };
        faults.done(keep)
    }
}

/// The ways to check a mirrored feed out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    InPlace,
    Snapshot,
    None,
}

fn way(value: Option<&Spanned<String>>, faults: &mut Faults) -> Way {
    let known = |text: &String| match text.as_str() {
        "in-place" => Ok(Way::InPlace),
        "snapshot" => Ok(Way::Snapshot),
        "none" => Ok(Way::None),
        _ => {
            let all = "in-place, snapshot and none";
            Err(format!("\"{text}\" is not a way to check out; there are {all}"))
        }
    };
    faults.read("checkout", value, known).unwrap_or(Way::InPlace)
}

/// How many releases are kept unless the feed says otherwise, and at most.
const RELEASES: usize = 5;
const MOST_RELEASES: u64 = 1_000;

fn releases(value: Option<&Spanned<u64>>, faults: &mut Faults) -> usize {
    let known = |count: &u64| match count {
        1..=MOST_RELEASES => Ok(usize::try_from(*count).unwrap_or(RELEASES)),
        _ => Err(format!("{count} is not between 1 and {MOST_RELEASES}")),
    };
    faults.read("releases", value, known).unwrap_or(RELEASES)
}

impl TryFrom<(file::Feed, PathBuf)> for Primary {
    type Error = Vec<Fault>;

    fn try_from((raw, dir): (file::Feed, PathBuf)) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let within = |text: &String| match text.parse::<ByteSize>() {
            Ok(size) if size.bytes() <= MOST_LARGE_FILE => Ok(size.bytes()),
            Ok(_) => Err(format!(
                "\"{text}\" is more than 64MiB: files below it are read into memory as a whole"
            )),
            Err(error) => Err(error.to_string()),
        };
        let large_file = faults.read("large_file", raw.large_file.as_ref(), within);
        let quiet = [Duration::ZERO, 3_600 * SECOND];
        let off = raw.guard.off;
        let kept = raw.metadata.and_then(|kept| faults.section(Keep::try_from(kept)));
        let guard = faults.section(Guard::try_from(raw.guard));
        let primary = Primary {
            dir,
            profile: faults.parse::<Profile>("profile", raw.profile.as_ref()),
            events: faults.read("watch", raw.watch.as_ref(), events).unwrap_or(true),
            large_file: large_file.unwrap_or(LARGE_FILE),
            metadata: kept.unwrap_or_default(),
            quiet: faults.duration("settle.quiet", raw.settle.quiet.as_ref(), quiet, 2 * SECOND),
            guard: guard.filter(|_| !off),
        };
        faults.done(primary)
    }
}

fn events(text: &String) -> Result<bool, String> {
    match text.as_str() {
        "events" => Ok(true),
        "poll" => Ok(false),
        _ => Err(format!("\"{text}\" is not a way to watch; there are events and poll")),
    }
}

impl TryFrom<file::Kept> for Keep {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Kept) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let mut kept = Keep::NONE;
        for name in raw.0 {
            faults.read("metadata", Some(&name), |name| {
                *match name.as_str() {
                    "mode" => &mut kept.mode,
                    "mtime" => &mut kept.mtime,
                    "empty-dirs" => &mut kept.empty_dirs,
                    "owner" => &mut kept.owner,
                    "xattrs" => &mut kept.xattrs,
                    _ => {
                        let all = "mode, mtime, empty-dirs, owner, xattrs";
                        return Err(format!("\"{name}\" cannot be kept; there are {all}"));
                    }
                } = true;
                Ok(())
            });
        }
        faults.done(kept)
    }
}

impl TryFrom<file::Guard> for Guard {
    type Error = Vec<Fault>;

    fn try_from(raw: file::Guard) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        let percent = |percent: &u64| match u8::try_from(*percent) {
            Ok(percent @ 1..=100) => Ok(percent),
            _ => Err(format!("{percent} is not between 1 and 100")),
        };
        let files = |files: &u64| if *files > 0 { Ok(*files) } else { Err("it is at least 1") };
        let window = [SECOND, 7 * DAY];
        let guard = Guard {
            max_delete_percent: faults
                .read("guard.max_delete_percent", raw.max_delete_percent.as_ref(), percent)
                .unwrap_or(50),
            min_delete_files: faults
                .read("guard.min_delete_files", raw.min_delete_files.as_ref(), files)
                .unwrap_or(50),
            window: faults.duration("guard.window", raw.window.as_ref(), window, 600 * SECOND),
        };
        faults.done(guard)
    }
}
