//! Each bad input and the lines that it must give; and what good input comes to.

use std::{fs, time::Duration};

use super::*;
use crate::model::Profile;

/// A folder with a deployment directory `apps` in it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("apps")).unwrap();
    place
}

fn load(place: &Path, text: &str) -> Result<Settings, String> {
    let path = place.join("depsync.toml");
    fs::write(&path, text).unwrap();
    let said = |error: Error| {
        error.to_string().replace(&format!("{}/", place.canonicalize().unwrap().display()), "")
    };
    from_file(&path, Consent::default()).map_err(said)
}

/// A configuration without faults, to which a case adds one.
fn around(node: &str, feed: &str) -> String {
    format!("state_dir = \"state\"\n{node}\n[[feed]]\ndir = \"apps\"\n{feed}\n")
}

/// Keys before the feed, keys of the feed, and how the one line begins that is said of them.
const FAULTS: &[(&str, &str, &str)] = &[
    ("lisen = \"x\"", "", "depsync.toml:2: unknown key `lisen`, expected one of `node`, `listen`"),
    (
        "listen = 7873",
        "",
        "depsync.toml:2: listen: invalid type: integer `7873`, expected a string",
    ),
    ("listen = \"hub\"", "", "depsync.toml:2: listen: \"hub\" is not an address and a port"),
    (
        "listen = \"0.0.0.0:7873\"",
        "",
        "depsync.toml:2: listen: 0.0.0.0:7873 can be reached from other machines",
    ),
    (
        "advertise = \"hub:7873\"",
        "",
        "depsync.toml:2: advertise: \"hub:7873\" is not the URL of a node",
    ),
    (
        "advertise = \"http://hub/x\"",
        "",
        "depsync.toml:2: advertise: \"http://hub/x\" is not the URL of a node",
    ),
    ("node = \"\"", "", "depsync.toml:2: node: \"\" is not a node name"),
    ("poll = \"60\"", "", "depsync.toml:2: poll: \"60\" is not a duration"),
    ("poll = \"1ms\"", "", "depsync.toml:2: poll: \"1ms\" is not between 1s and 86400s"),
    (
        "proxies = [\"10.0.0.0/24\", \"ten\"]",
        "",
        "depsync.toml:2: proxies: \"ten\" is not an address or a network",
    ),
    ("proxies = [10]", "", "depsync.toml:2: proxies: invalid type: integer `10`"),
    ("regions = \"none.xml\"", "", "depsync.toml: regions: cannot read none.xml"),
    ("[region]\nname = \"a b\"", "", "depsync.toml:3: region.name: \"a b\" is not a region name"),
    (
        "[bandwidth]\ntotal = \"10MB\"",
        "",
        "depsync.toml:3: bandwidth.total: \"10MB\" is not a rate",
    ),
    (
        "[bandwidth]\ntotal = \"0MB/s\"",
        "",
        "depsync.toml:3: bandwidth.total: \"0MB/s\" is not a rate",
    ),
    (
        "[bandwidth]\nreplication = \"-5MB/s\"",
        "",
        "depsync.toml:3: bandwidth.replication: \"-5MB/s\" is not a rate: it does not begin with",
    ),
    (
        "[bandwidth]\nper_client = \"5Mb/s\"",
        "",
        "depsync.toml:3: bandwidth.per_client: \"5Mb/s\" is not a rate: its unit is none of",
    ),
    (
        "[bandwidth]\nmax_downloads = 0",
        "",
        "depsync.toml:3: bandwidth.max_downloads: 0 is not between",
    ),
    (
        "[[bandwidth.network]]\nregion = \"mars\"\nlimit = \"1MB/s\"",
        "",
        "depsync.toml: bandwidth.network: there is no region \"mars\"",
    ),
    (
        "[[bandwidth.network]]\nlimit = \"1MB/s\"",
        "",
        "depsync.toml:3: bandwidth.network: a network is named",
    ),
    (
        "[[bandwidth.window]]\nstart = \"0 0 0 30 2 *\"\nfor = \"1h\"",
        "",
        "depsync.toml:3: bandwidth.window: \"0 0 0 30 2 *\" is not a cron expression: it never fires",
    ),
    (
        "[[bandwidth.window]]\nstart = \"0 0 8 * * 1-5\"\nfor = \"1h\"",
        "",
        "depsync.toml:3: bandwidth.window: \"0 0 8 * * 1-5\" is not a cron expression: days",
    ),
    (
        "[[bandwidth.window]]\nstart = \"0 0 8 * * *\"",
        "",
        "depsync.toml:3: bandwidth.window: it has no \"for\"",
    ),
    ("[region]\nfreshness = \"new\"", "", "depsync.toml:3: region.freshness: \"new\" is no way"),
    ("rs = \"none.xml\"", "", "depsync.toml:2: rs: cannot read none.xml"),
    ("[tls]\ncert = \"x\"", "", "depsync.toml:3: tls: a certificate and its key come together"),
    (
        "[tls]\nclient_ca = \"x\"",
        "",
        "depsync.toml:3: tls: clients show certificates to a node that",
    ),
    ("[limits]\nrequests_per_token = 0", "", "depsync.toml:3: limits.requests_per_token: 0 is not"),
    (
        "",
        "client_key = \"x\"",
        "depsync.toml:5: feed[0].client_cert: a certificate and its key come",
    ),
    ("", "pin = \"sha256/x\"", "depsync.toml:5: pin: \"sha256/x\" is not the hash of a key"),
    ("", "pin = []", "depsync.toml:5: pin: it names no key"),
    (
        "region = { name = \"eu\" }",
        "upstream = \"http://hub:1\"\npin = \"sha256/BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"",
        "depsync.toml:6: pin: http://hub:1 shows no key: only https has one to pin",
    ),
    ("", "name = \"a/b\"", "depsync.toml:5: name: \"a/b\" is not a feed name"),
    ("", "sheep = 3", "depsync.toml:5: unknown key `sheep`"),
    ("", "watch = \"polling\"", "depsync.toml:5: watch: \"polling\" is not a way to watch"),
    ("", "profile = \"jboss\"", "depsync.toml:5: profile: there is no profile \"jboss\": tomcat,"),
    ("", "large_file = \"65MiB\"", "depsync.toml:5: large_file: \"65MiB\" is more than 64MiB"),
    ("min_free = \"much\"", "", "depsync.toml:2: min_free: \"much\" is not a size"),
    (
        "[maintenance]\nschedule = \"daily\"",
        "",
        "depsync.toml:3: maintenance.schedule: \"daily\" is not a cron expression",
    ),
    ("", "large_file = \"big\"", "depsync.toml:5: large_file: \"big\" is not a size"),
    ("", "metadata = [\"acl\"]", "depsync.toml:5: metadata: \"acl\" cannot be kept"),
    (
        "",
        "checkout = \"sideways\"",
        "depsync.toml:5: checkout: \"sideways\" is not a way to check out",
    ),
    (
        "region.name = \"eu\"",
        "upstream = \"hub\"",
        "depsync.toml:5: upstream: \"hub\" is not the URL of a node",
    ),
    ("", "upstream = \"http://hub:7873\"", "depsync.toml:5: region.name: a feed has an upstream"),
    (
        "",
        "[feed.guard]\nmax_delete_percent = 101",
        "depsync.toml:6: guard.max_delete_percent: 101 is not",
    ),
    (
        "",
        "[feed.guard]\nmin_delete_files = 0",
        "depsync.toml:6: guard.min_delete_files: it is at least 1",
    ),
    (
        "",
        "[feed.guard]\nwindow = \"soon\"",
        "depsync.toml:6: guard.window: \"soon\" is not a duration",
    ),
    (
        "",
        "[feed.settle]\nquiet = \"2h\"",
        "depsync.toml:6: settle.quiet: \"2h\" is not between 0ns and 3600s",
    ),
    (
        "",
        "[[feed]]\ndir = \"apps\"",
        "depsync.toml: name: another feed is called \"default\" already",
    ),
    ("", "[[feed]]\nname = \"b\"", "depsync.toml:6: feed[1].dir: feed \"b\" has no dir"),
    (
        "",
        "[[feed]]\nname = \"b\"\ndir = \"apps\"",
        "depsync.toml: dir: apps is the directory of feed \"default\" and of feed \"b\"",
    ),
    ("node = ", "", "depsync.toml:2: "),
];

#[test]
fn a_faulty_key_gives_one_line_with_its_place() {
    let place = place();
    for (node, feed, line) in FAULTS {
        let said = load(place.path(), &around(node, feed)).unwrap_err();
        assert!(said.starts_with(line), "{node}{feed}\n  said     {said}\n  expected {line}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(
        load(place.path(), "").unwrap_err(),
        "depsync.toml: feed: there is no [[feed]]; a node has at least one"
    );
}

#[test]
fn all_faults_are_told_together_in_their_order() {
    let place = place();
    let text = "lisen = 1\nadvertise = 2\nnode = \"\\u0000\"\npoll = \"x\"\n[[feed]]\nnmae = \"a\"\n\
                dir = 7\nlarge_file = \"?\"\n[[feed]]\nname = \"b\"\nguard.window = \"?\"\n";
    let said = load(place.path(), text).unwrap_err();
    let places: Vec<&str> = said.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        [1, 2, 3, 4, 6, 7, 8, 10, 11].map(|line| format!("depsync.toml:{line}")),
        "{said}"
    );
}

#[test]
fn directories_are_looked_at_before_anything_is_made() {
    let place = place();
    let at = |name: &str| place.path().join(name);
    fs::create_dir_all(at("apps/inner")).unwrap();
    fs::write(at("file"), "").unwrap();
    std::os::unix::fs::symlink(at("apps"), at("link")).unwrap();
    for (state, dir, line) in [
        ("state", "gone", "dir: gone of feed \"default\" does not exist; make it first"),
        ("state", "file", "dir: file of feed \"default\" is not a directory"),
        ("file", "apps", "state_dir: file is not a directory"),
        (
            "apps/state",
            "apps",
            "state_dir: apps/state lies inside the directory of feed \"default\", apps",
        ),
        ("link/a/b", "apps", "state_dir: link/a/b lies inside the directory"),
        (
            "apps",
            "apps/inner",
            "state_dir: apps holds the directory of feed \"default\", apps/inner",
        ),
    ] {
        let text = format!("state_dir = \"{state}\"\n[[feed]]\ndir = \"{dir}\"\n");
        let said = load(place.path(), &text).unwrap_err();
        assert!(said.starts_with(&format!("depsync.toml: {line}")), "{said}\n  expected {line}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    for (dir, more, line) in [
        ("apps/inner", "", "lies inside that of feed \"default\""),
        ("link", "", "is the directory of feed \"default\" and of feed \"b\""),
        (
            "link",
            "upstream = \"http://127.0.0.1:1\"",
            "is both the primary's and a region's directory",
        ),
    ] {
        let text = around(
            "region.name = \"eu\"",
            &format!("[[feed]]\nname = \"b\"\ndir = \"{dir}\"\n{more}"),
        );
        let said = load(place.path(), &text).unwrap_err();
        assert!(said.contains(line), "{said}\n  expected {line}");
    }
    let names = fs::read_dir(place.path()).unwrap().count();
    assert_eq!(names, 4, "apps, file, link and depsync.toml; nothing else was made");
}

#[test]
fn good_input_means_what_it_says() {
    let place = place();
    for dir in ["mirror", "state"] {
        fs::create_dir(place.path().join(dir)).unwrap();
    }
    let text = r#"
        node = "hub 1"
        listen = "localhost:0"
        advertise = "https://hub.example:7873/"
        state_dir = "state"
        proxies = ["10.0.0.0/24", "::1"]
        poll = "5m"
        min_free = "1GB"
        [maintenance]
        schedule = "0 30 3 * * *"
        [region]
        name = "eu-west"
        [bandwidth]
        per_client = "10MB/s"
        [[feed]]
        name = "apps"
        dir = "apps"
        profile = "wso2"
        large_file = "1MiB"
        metadata = ["mtime", "owner"]
        upstream_feed = "sleeps"
        [feed.settle]
        quiet = "500ms"
        [feed.guard]
        off = true
        [[feed]]
        name = "conf"
        dir = "mirror"
        upstream = "http://hub:7873"
        upstream_feed = "settings"
        profile = "karaf"
        [[feed]]
        name = "backup"
        upstream = "http://hub:7873"
        checkout = "none"
    "#;
    let settings = load(place.path(), text).unwrap();
    assert_eq!(settings.node.as_str(), "hub 1");
    assert_eq!(settings.listen.to_string(), "127.0.0.1:0");
    assert_eq!(settings.advertise.unwrap().as_str(), "https://hub.example:7873");
    assert_eq!(settings.state_dir, place.path().join("state"));
    assert_eq!((settings.proxies.len(), settings.poll), (2, Duration::from_secs(300)));
    assert_eq!(settings.bandwidth.limits.per_client.unwrap().bytes_per_sec(), 10_000_000);
    assert_eq!(settings.min_free, Some(1_000_000_000));
    assert!(settings.maintenance.is_some());
    let [apps, conf, backup] = &settings.feeds[..] else { panic!("three feeds") };
    assert_eq!(apps.role, Role::Primary);
    let primary = apps.primary.as_ref().unwrap();
    assert_eq!(primary.profile, Some(Profile::Wso2));
    assert_eq!((primary.large_file, primary.quiet), (1 << 20, Duration::from_millis(500)));
    assert_eq!(
        primary.metadata,
        crate::model::Keep { mtime: true, owner: true, ..crate::model::Keep::NONE }
    );
    assert_eq!(primary.guard, None);
    assert_eq!(conf.role, Role::Region);
    let mirror = &conf.mirror;
    assert_eq!(mirror.upstream_feed.as_str(), "settings");
    assert_eq!(conf.dir(), Some(&*place.path().join("mirror")));
    assert_eq!(backup.dir(), None);
}

#[test]
fn flags_are_a_short_form_of_a_file() {
    let place = place();
    let flags = |feed: &str, listen: &str, name: Option<&str>| Flags {
        dir: place.path().join("apps"),
        feed: Some(feed.to_owned()),
        listen: Some(listen.to_owned()),
        state: Some(place.path().join("state")),
        upstreams: name.map(|_| "http://127.0.0.1:7873".to_owned()).into_iter().collect(),
        name: name.map(ToOwned::to_owned),
        ..Flags::default()
    };
    let consent = Consent { adopt: true, ..Consent::default() };
    let region = from_flags(flags("apps", "127.0.0.1:0", Some("eu-west")), consent).unwrap();
    assert_eq!(region.node.as_str(), "eu-west");
    assert_eq!(region.feeds[0].role, Role::Region);
    let mirror = &region.feeds[0].mirror;
    assert!(matches!(mirror.checkout, Checkout::InPlace { adopt: true, .. }));

    let primary = from_flags(flags("apps", "127.0.0.1:0", None), Consent::default()).unwrap();
    assert_eq!(primary.feeds[0].role, Role::Primary);
    let primary = primary.feeds[0].primary.as_ref().unwrap();
    assert_eq!(
        primary.guard,
        Some(Guard {
            max_delete_percent: 50,
            min_delete_files: 50,
            window: Duration::from_secs(600)
        })
    );

    let said = from_flags(flags("a b", "[::]:7873", Some("")), Consent::default()).unwrap_err();
    let said = said.to_string();
    let starts: Vec<&str> = said.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(starts, ["--listen", "--name", "--feed"], "{said}");

    let open = Consent { insecure: true, ..Consent::default() };
    assert!(from_flags(flags("apps", "[::]:7873", None), open).is_ok());
}

#[test]
fn the_samples_are_good() {
    let conf = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let text = fs::read_to_string(conf.join("depsync.toml")).unwrap();
    let read = file::read(&text).unwrap();
    assert_eq!(read.faults, []);
    // Its directories are not here, so nothing looks at them.
    let settings = convert::settings(read.file, &[], Consent::default()).unwrap();
    assert_eq!(settings.feeds.len(), 2);
    assert_eq!(region_xml::read(&conf.join("region.xml")).unwrap().regions().len(), 2);
}

#[test]
fn a_service_profile_completes_the_file_which_wins() {
    let place = place();
    let variable = |name: &str, value: &str| {
        format!("<ego:EnvironmentVariable name=\"{name}\">{value}</ego:EnvironmentVariable>\n")
    };
    let variables = [
        variable("REPOSITORY_SERVICE_PORT", "8099"),
        variable("RS_STORAGE_DIR", place.path().join("rs").to_str().unwrap()),
        variable("RS_MAX_DOWNLOADS", "20"),
        variable("DEPSYNC_DOWNLOAD_RATE", "5MB/s"),
        variable("RS_LOG_LEVEL", "INFO"),
    ];
    let ego = "http://www.platform.com/ego/2005/05/schema";
    let xml = format!(
        "<sc:S xmlns:sc=\"{ego}/sc\" xmlns:ego=\"{ego}\"><sc:ActivityDescription>\
         <ego:ActivitySpecification>\n{}</ego:ActivitySpecification></sc:ActivityDescription></sc:S>",
        variables.concat()
    );
    fs::write(place.path().join("rs.xml"), xml).unwrap();
    let text = "rs = \"rs.xml\"\n[bandwidth]\nmax_downloads = 3\n[[feed]]\ndir = \"apps\"\n";
    let settings = load(place.path(), text).unwrap();
    assert_eq!(settings.listen.to_string(), "127.0.0.1:8099");
    assert_eq!(settings.state_dir, place.path().join("rs"));
    assert_eq!(settings.bandwidth.max_downloads, Some(3));
    assert_eq!(settings.bandwidth.limits.downloads, Some("5MB/s".parse().unwrap()));
    assert_eq!(settings.unused.len(), 1);
    assert!(
        settings.unused[0].ends_with("rs.xml:6: RS_LOG_LEVEL is not used"),
        "{:?}",
        settings.unused
    );
}

#[test]
fn what_may_change_is_read_again_and_what_is_wrong_is_not_taken() {
    let place = place();
    let text = "[bandwidth]\ntotal = \"1MB/s\"\n[[feed]]\ndir = \"apps\"\n";
    let settings = load(place.path(), &format!("state_dir = \"state\"\n{text}")).unwrap();
    let path = place.path().join("depsync.toml");
    fs::write(&path, text.replace("1MB/s", "2MB/s")).unwrap();
    let total = live(&settings).unwrap().bandwidth.limits.total;
    assert_eq!(total, Some("2MB/s".parse().unwrap()));
    fs::write(&path, text.replace("1MB/s", "fast")).unwrap();
    assert!(live(&settings).unwrap_err().to_string().contains("bandwidth.total"));
}
