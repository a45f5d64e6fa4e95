//! What each finding comes to, and that each that is not well says what to do.

use std::{fs, io};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    checks::{Finding, Verdict, examine},
    facts::{self, Facts, Feed, Inotify, Node, Port, State},
};
use crate::{
    config::{self, Consent},
    daemon::Survey,
    sys::{FileSystem, LeaseError, Space},
};

const LOCAL: FileSystem = FileSystem { network: false, fat: false, name: "local" };

fn feed() -> Feed {
    Feed {
        name: "apps".to_owned(),
        dir: "/srv/apps".into(),
        is_primary: true,
        events: true,
        folders: 100,
        kind: Ok(LOCAL),
        fault: None,
        lease: Some(Ok(())),
        has_foreign: false,
    }
}

fn node() -> Node {
    let space = Ok(Space { free: 100 << 30, total: 200 << 30 });
    Node {
        state: State { dir: "/var/lib/depsync".into(), fault: None, space, floor: 2 << 30 },
        port: ("127.0.0.1:7873".parse().unwrap(), Port::Free),
        feeds: vec![feed()],
        certificates: vec![("/c".into(), Ok(day(400)))],
        secrets: vec![("/k".into(), Ok(0o600))],
        survey: Survey { is_running: false, tokens: Ok(vec![("t".to_owned(), day(300))]) },
        upstreams: None,
        bus: None,
    }
}

fn day(days: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::days(days)
}

fn facts(node: Node) -> Facts {
    let limits = Inotify { watches: Some(1000), instances: Some(128), queued: Some(16_384) };
    Facts {
        now: day(0),
        user: "depsync".to_owned(),
        may_lease: true,
        inotify: limits,
        clock_is_kept: Some(true),
        programs: [("git", Some("git version 2".into())), ("git-lfs", Some("git-lfs/3".into()))],
        node: Some(node),
    }
}

fn not_ok(facts: &Facts) -> Vec<Finding> {
    let found = examine(facts);
    assert!(found.len() > 5);
    found.into_iter().filter(|finding| finding.verdict > Verdict::Ok).collect()
}

#[test]
fn a_machine_as_it_should_be_is_clean() {
    assert!(not_ok(&facts(node())).is_empty());
    let bare = Facts { node: None, ..facts(node()) };
    assert!(examine(&bare).iter().all(|finding| finding.verdict == Verdict::Ok));
}

/// A change of what was found, and the one thing that is said then.
type Case = (fn(&mut Facts), &'static str, Verdict, &'static str);

fn with(change: fn(&mut Node), facts: &mut Facts) {
    change(facts.node.as_mut().unwrap());
}

const CASES: &[Case] = &[
    (|f| f.programs[0].1 = None, "git", Verdict::Warn, "cannot clone"),
    (|f| f.programs[1].1 = None, "git-lfs", Verdict::Warn, "not installed"),
    (|f| f.clock_is_kept = Some(false), "clock", Verdict::Warn, "nothing keeps it right"),
    (|f| f.inotify.watches = Some(99), "inotify", Verdict::Warn, "the rest is scanned"),
    (|f| f.inotify.watches = Some(120), "inotify", Verdict::Warn, "of 120 that a user may watch"),
    (|f| f.inotify.queued = Some(16), "inotify", Verdict::Warn, "max_queued_events is 16"),
    (|f| f.inotify.instances = Some(8), "inotify", Verdict::Warn, "max_user_instances is 8"),
    (
        |f| {
            f.may_lease = false;
            with(|node| node.feeds[0].has_foreign = true, f);
        },
        "leases",
        Verdict::Warn,
        "files of others lie there, on which depsync has no leases",
    ),
    (
        |f| with(|node| node.feeds[0].lease = Some(Err(LeaseError::Unavailable)), f),
        "leases",
        Verdict::Warn,
        "the file system has no leases",
    ),
    (
        |f| {
            with(
                |node| node.feeds[0].kind = Ok(FileSystem { network: true, name: "nfs", ..LOCAL }),
                f,
            );
        },
        "file-system",
        Verdict::Warn,
        "is on nfs",
    ),
    (
        |f| {
            let vfat = FileSystem { fat: true, name: "vfat", ..LOCAL };
            f.node.as_mut().unwrap().feeds[0].kind = Ok(vfat);
        },
        "file-system",
        Verdict::Warn,
        "steps of up to 2 s",
    ),
    (
        |f| with(|node| node.feeds[0].fault = Some("/srv/apps: denied".to_owned()), f),
        "permissions",
        Verdict::Fail,
        "as depsync",
    ),
    (
        |f| with(|node| node.state.fault = Some("/var: denied".to_owned()), f),
        "permissions",
        Verdict::Fail,
        "state directory",
    ),
    (
        |f| with(|node| node.state.space = Ok(Space { free: 1 << 30, total: 1 << 40 }), f),
        "free-space",
        Verdict::Fail,
        "1.00 GiB free",
    ),
    (
        |f| with(|node| node.state.space = Ok(Space { free: 3 << 30, total: 1 << 40 }), f),
        "free-space",
        Verdict::Warn,
        "3.00 GiB free",
    ),
    (
        |f| with(|node| node.port.1 = Port::Taken(io::ErrorKind::AddrInUse.into()), f),
        "port",
        Verdict::Fail,
        "127.0.0.1:7873",
    ),
    (|f| with(|node| node.secrets[0].1 = Ok(0o640), f), "secrets", Verdict::Fail, "has mode 640"),
    (
        |f| with(|node| node.certificates[0].1 = Ok(day(0)), f),
        "certificates",
        Verdict::Fail,
        "ended 1970-01-01",
    ),
    (
        |f| with(|node| node.certificates[0].1 = Ok(day(14)), f),
        "certificates",
        Verdict::Warn,
        "ends 1970-01-15",
    ),
    (
        |f| with(|node| node.survey.tokens = Ok(vec![("t".to_owned(), day(1))]), f),
        "tokens",
        Verdict::Warn,
        "token t ends 1970-01-02",
    ),
    (
        |f| with(|node| node.upstreams = Some(Err("no CA".to_owned())), f),
        "upstreams",
        Verdict::Fail,
        "no CA",
    ),
    (
        |f| with(|node| node.bus = Some(Err("NATS at nats://b:4222 is away".to_owned())), f),
        "nats",
        Verdict::Fail,
        "b:4222 is away",
    ),
];

#[test]
fn each_fault_is_one_finding_that_says_what_to_do() {
    for (change, check, verdict, part) in CASES {
        let mut facts = facts(node());
        change(&mut facts);
        let found = not_ok(&facts);
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        assert_eq!((found[0].check, found[0].verdict), (*check, *verdict), "{part}");
        assert!(found[0].said.contains(part), "{part}: {found:?}");
        assert!(found[0].advice.is_some(), "{part}");
    }
}

#[test]
fn the_port_of_a_running_daemon_is_its_own() {
    let mut node = node();
    node.port.1 = Port::Taken(io::ErrorKind::AddrInUse.into());
    node.survey.is_running = true;
    assert!(not_ok(&facts(node)).is_empty());
}

/// What is found where this is the configuration, with relative paths below a folder.
fn gathered(folder: &std::path::Path, text: &str) -> Node {
    let file = folder.join("depsync.toml");
    let head = "state_dir = \"state\"\nlisten = \"127.0.0.1:0\"\n[region]\nname = \"eu\"\n";
    fs::write(&file, format!("{head}{text}")).unwrap();
    let settings = config::from_file(&file, Consent::default()).unwrap();
    facts::gather(Some(&settings), false).node.unwrap()
}

#[test]
fn a_release_is_never_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let text = "[[feed]]\nname = \"apps\"\ndir = \"site/current\"\ncheckout = \"snapshot\"\n\
                upstream = \"http://127.0.0.1:1\"\n";
    let site = folder.path().join("site");
    fs::create_dir(&site).unwrap();
    let release = folder.path().join("release");
    for exists in [false, true] {
        if exists {
            fs::create_dir_all(release.join("a/b")).unwrap();
            std::os::unix::fs::symlink(&release, site.join("current")).unwrap();
        }
        let feed = gathered(folder.path(), text).feeds.remove(0);
        assert_eq!((&feed.fault, feed.folders), (&None, 0), "{feed:?}");
        assert!(feed.lease.is_none(), "a file was made in a release");
        assert_eq!(feed.dir, site);
    }
}

#[test]
fn every_certificate_and_key_is_looked_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let feed = |name: &str| {
        fs::create_dir(folder.path().join(name)).unwrap();
        format!(
            "[[feed]]\nname = {name:?}\ndir = {name:?}\nupstream = \"http://127.0.0.1:1\"\n\
             client_cert = \"edge.crt\"\nclient_key = \"edge.key\"\ntoken_file = \"{name}.token\"\n"
        )
    };
    let tls =
        "[tls]\ncert = \"hub.crt\"\nkey = \"hub.key\"\nca = \"ca.crt\"\nclient_ca = \"ca.crt\"\n";
    let node = gathered(folder.path(), &format!("{}{}{tls}", feed("a"), feed("b")));
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let certificates: Vec<_> = node.certificates.iter().map(|(file, _)| name(file)).collect();
    assert_eq!(certificates, ["ca.crt", "edge.crt", "hub.crt"]);
    let secrets: Vec<_> = node.secrets.iter().map(|(file, _)| name(file)).collect();
    assert_eq!(secrets, ["a.token", "b.token", "edge.key", "hub.key"]);
}
