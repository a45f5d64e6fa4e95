//! From what was found to what it means: each check a verdict, what is so, and what to do about it.
//!
//! Pure. A *fail* keeps the daemon from starting or from doing its work; a *warn* is what will hurt later
//! or slows it down; both say what to do.

use chrono::{DateTime, TimeDelta, Utc};

use super::facts::{Facts, Feed, Inotify, MAX_FOLDERS, Node, Port, State};
use crate::sys::{FileSystem, LeaseError};

/// What a check came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Debug)]
pub(super) struct Finding {
    /// Which; stable, for programs.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What is so.
    pub(super) said: String,
    /// What to do about it; where there is nothing to do, none.
    pub(super) advice: Option<String>,
}

fn ok(check: &'static str, said: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Ok, said: said.into(), advice: None }
}

fn warn(check: &'static str, said: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { check, verdict: Verdict::Warn, said: said.into(), advice: Some(advice.into()) }
}

fn fail(check: &'static str, said: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { verdict: Verdict::Fail, ..warn(check, said, advice) }
}

/// A certificate or token that ends within so many days is told of.
const SOON: i64 = 14;
/// Below this the kernel forgets events in bursts, and everything is scanned again.
const FEW_EVENTS: u64 = 16_384;
/// A daemon takes one for each feed; others of the same user take theirs.
const FEW_INSTANCES: u64 = 64;

/// All checks, in the order in which they are read.
pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(node) = &facts.node {
        found.extend(node.feeds.iter().flat_map(|feed| of_feed(feed, facts)));
        found.push(permissions_of_state(&node.state, facts));
        found.push(free_space(&node.state));
        found.push(port(node));
        found.extend(node.secrets.iter().map(|(file, mode)| secret(file, mode)));
        found.extend(node.certificates.iter().map(|(file, end)| certificate(file, end, facts.now)));
        found.extend(tokens(node, facts.now));
        found.extend(upstreams(node));
        found.extend(bus(node));
    }
    found.extend(inotify(&facts.inotify, facts.node.as_ref()));
    found.push(clock(facts));
    found.extend(facts.programs.iter().map(|(name, version)| program(name, version.as_deref())));
    found
}

fn of_feed(feed: &Feed, facts: &Facts) -> Vec<Finding> {
    let mut found = vec![permissions(feed, facts)];
    if feed.is_primary && feed.fault.is_none() {
        found.push(file_system(feed));
        found.push(leases(feed, facts));
    }
    found
}

fn permissions(feed: &Feed, facts: &Facts) -> Finding {
    let dir = feed.dir.display();
    match &feed.fault {
        None => ok("permissions", format!("feed {}: {dir} can be read and written", feed.name)),
        Some(fault) => fail(
            "permissions",
            format!("feed {}: {fault}, as {}", feed.name, facts.user),
            format!("give it to the daemon's user: chown -R {} {dir}", facts.user),
        ),
    }
}

fn file_system(feed: &Feed) -> Finding {
    let check = "file-system";
    let about = format!("feed {}: {}", feed.name, feed.dir.display());
    match &feed.kind {
        Err(error) => fail(check, format!("{about}: {error}"), "see that the directory is mounted"),
        Ok(FileSystem { network: true, name, .. }) => warn(
            check,
            format!("{about} is on {name}, which others can change without an event here"),
            "it is scanned every `poll`; changes are seen at once where the folder is on a local disk of \
             the host that writes it",
        ),
        Ok(FileSystem { fat: true, name, .. }) => warn(
            check,
            format!("{about} is on {name}, whose times are steps of up to 2 s"),
            "files are read twice; a file system with exact times is better",
        ),
        Ok(_) => ok(check, format!("{about} is on a local file system with events")),
    }
}

fn leases(feed: &Feed, facts: &Facts) -> Finding {
    let check = "leases";
    let about = format!("feed {}", feed.name);
    let rest = "files are published once they were quiet for settle.quiet";
    match &feed.lease {
        None => warn(check, format!("{about}: no file could be made to try a lease"), rest),
        Some(Err(LeaseError::Unavailable)) => warn(
            check,
            format!("{about}: the file system has no leases; {rest}"),
            "a local file system has them: ext4, xfs, btrfs",
        ),
        Some(_) if feed.has_foreign && !facts.may_lease => warn(
            check,
            format!(
                "{about}: files of others lie there, on which {} has no leases; {rest}",
                facts.user
            ),
            "give the daemon CAP_LEASE, as the unit does, or run it as their owner; run `doctor` as the \
             daemon runs",
        ),
        Some(_) => {
            ok(check, format!("{about}: whether a file is still being written is known at once"))
        }
    }
}

fn permissions_of_state(state: &State, facts: &Facts) -> Finding {
    let dir = state.dir.display();
    match &state.fault {
        None => ok("permissions", format!("state directory {dir} can be written")),
        Some(fault) => fail(
            "permissions",
            format!("state directory {dir}: {fault}, as {}", facts.user),
            format!("make it, for the daemon's user: install -d -m 700 -o {} {dir}", facts.user),
        ),
    }
}

fn free_space(state: &State) -> Finding {
    let check = "free-space";
    let dir = state.dir.display();
    let size = |bytes: u64| indicatif::HumanBytes(bytes).to_string();
    match &state.space {
        Err(error) => fail(check, format!("{dir}: {error}"), "see that its file system is mounted"),
        Ok(space) => {
            let said = format!(
                "{dir}: {} free of {}, {} are to stay free",
                size(space.free),
                size(space.total),
                size(state.floor)
            );
            match space.free {
                free if free < state.floor => {
                    fail(check, said, "nothing is taken in now: make room, or lower `min_free`")
                }
                free if free < state.floor.saturating_mul(2) => {
                    warn(check, said, "make room: little more is taken in")
                }
                _ => ok(check, said),
            }
        }
    }
}

fn port(node: &Node) -> Finding {
    let (listen, tried) = &node.port;
    let running = node.survey.is_running;
    match tried {
        Port::Free if running => ok("port", format!("the daemon runs, and {listen} is free")),
        Port::Free => ok("port", format!("{listen} is free")),
        Port::Taken(error) if error.kind() == std::io::ErrorKind::AddrInUse && running => {
            ok("port", format!("the daemon listens at {listen}"))
        }
        Port::Taken(error) => {
            let advice = match error.kind() {
                std::io::ErrorKind::AddrInUse => {
                    format!(
                        "see who has it with `ss -ltnp sport = :{}`, or choose another `listen`",
                        listen.port()
                    )
                }
                std::io::ErrorKind::PermissionDenied => {
                    "choose a port from 1024 on, or give the daemon CAP_NET_BIND_SERVICE".to_owned()
                }
                _ => "name an address of this machine in `listen`".to_owned(),
            };
            fail("port", format!("{listen}: {error}"), advice)
        }
    }
}

fn secret(file: &std::path::Path, mode: &Result<u32, String>) -> Finding {
    let name = file.display();
    match mode {
        Err(error) => fail(
            "secrets",
            format!("{name}: {error}"),
            "make it, readable for the daemon's user alone",
        ),
        Ok(mode) if mode & 0o077 != 0 => fail(
            "secrets",
            format!("{name} has mode {mode:03o}: others can read it"),
            format!("chmod 600 {name}"),
        ),
        Ok(_) => ok("secrets", format!("{name} is for its owner alone")),
    }
}

fn certificate(
    file: &std::path::Path,
    end: &Result<DateTime<Utc>, String>,
    now: DateTime<Utc>,
) -> Finding {
    let check = "certificates";
    let name = file.display();
    let renew = "renew it; the daemon takes it up by itself when the file changes";
    match end {
        Err(error) => fail(check, error.clone(), "it is PEM: the certificate, then those above it"),
        Ok(end) if *end <= now => fail(check, format!("{name} ended {}", day(end)), renew),
        Ok(end) if *end - now <= TimeDelta::days(SOON) => {
            warn(check, format!("{name} ends {}", day(end)), renew)
        }
        Ok(end) => ok(check, format!("{name} is good until {}", day(end))),
    }
}

fn day(time: &DateTime<Utc>) -> impl std::fmt::Display {
    time.format("%Y-%m-%d")
}

fn tokens(node: &Node, now: DateTime<Utc>) -> Vec<Finding> {
    let check = "tokens";
    let tokens = match &node.survey.tokens {
        Ok(tokens) => tokens,
        Err(error) => {
            let advice =
                "run `doctor` as the daemon's user; a damaged file comes back from a backup";
            return vec![fail(check, error.clone(), advice)];
        }
    };
    let soon = |end: &DateTime<Utc>| *end - now <= TimeDelta::days(SOON);
    let about_to_end = tokens.iter().filter(|(_, end)| soon(end)).map(|(id, end)| {
        let verb = if *end <= now { "ended" } else { "ends" };
        warn(
            check,
            format!("token {id} {verb} {}", day(end)),
            format!("make another, hand it out, then `depsync token revoke {id}`"),
        )
    });
    let found: Vec<Finding> = about_to_end.collect();
    if found.is_empty() {
        return vec![ok(check, format!("none ends within {SOON} days"))];
    }
    found
}

fn upstreams(node: &Node) -> Vec<Finding> {
    let check = "upstreams";
    match &node.upstreams {
        None => Vec::new(),
        Some(Err(error)) => vec![fail(check, error.clone(), "mend what [tls] names")],
        Some(Ok(tried)) => {
            let finding = |(feed, url, came): &crate::daemon::Tried| match came {
                Ok(_) => ok(check, format!("feed {feed}: {url} answers")),
                Err(why) => fail(
                    check,
                    format!("feed {feed}: {url}: {why}"),
                    "see that it runs and is reached from here, and that the token is one of its own",
                ),
            };
            tried.iter().map(finding).collect()
        }
    }
}

fn bus(node: &Node) -> Option<Finding> {
    let check = "nats";
    Some(match node.bus.as_ref()? {
        Ok(()) => ok(check, "the NATS server lets this node in"),
        Err(why) => fail(
            check,
            why.clone(),
            "see that it runs and is reached from here; until then each node asks for the newest \
             version every `poll`",
        ),
    })
}

fn inotify(limits: &Inotify, node: Option<&Node>) -> Vec<Finding> {
    let check = "inotify";
    let feeds = node.map_or(&[][..], |node| &node.feeds);
    let watched = feeds.iter().filter(|feed| feed.events);
    let need: usize = watched.map(|feed| feed.folders).sum();
    let more = if need >= MAX_FOLDERS { " or more" } else { "" };
    let need = need as u64;
    let sysctl = |name: &str, value: u64| {
        format!(
            "sysctl -w fs.inotify.{name}={value}, and the same line in /etc/sysctl.d/depsync.conf"
        )
    };
    let mut found = Vec::new();
    if let Some(watches) = limits.watches {
        let said = format!("folders to watch: {need}{more}, of {watches} that a user may watch");
        found.push(if need > watches {
            let advice = sysctl("max_user_watches", need.saturating_mul(2));
            warn(check, format!("{said}: the rest is scanned every `poll`"), advice)
        } else if need.saturating_mul(5) > watches.saturating_mul(4) {
            warn(check, said, sysctl("max_user_watches", need.saturating_mul(2)))
        } else {
            ok(check, said)
        });
    }
    for (name, value, least) in [
        ("max_user_instances", limits.instances, FEW_INSTANCES),
        ("max_queued_events", limits.queued, FEW_EVENTS),
    ] {
        let Some(value) = value else { continue };
        found.push(match value {
            value if value < least => {
                warn(check, format!("{name} is {value}"), sysctl(name, least))
            }
            _ => ok(check, format!("{name} is {value}")),
        });
    }
    if found.is_empty() {
        let advice = "mount /proc, or expect a scan every `poll`";
        found.push(warn(check, "the kernel does not say its limits", advice));
    }
    found
}

fn clock(facts: &Facts) -> Finding {
    let now = facts.now.format("%Y-%m-%d %H:%M:%S UTC");
    match facts.clock_is_kept {
        Some(true) => ok("clock", format!("{now}, kept right")),
        Some(false) => warn(
            "clock",
            format!("{now}, and nothing keeps it right"),
            "install systemd-timesyncd or chrony: the content never depends on it, expiry and times in \
             logs do",
        ),
        None => ok("clock", format!("{now}; whether it is kept right cannot be told here")),
    }
}

fn program(name: &'static str, version: Option<&str>) -> Finding {
    match version {
        Some(version) => ok(name, version),
        None if name == "git" => {
            warn(name, "is not installed: stock git cannot clone from this node", "apt install git")
        }
        None => warn(
            name,
            "is not installed here; clients of /git need it for large files",
            "apt install git-lfs",
        ),
    }
}
