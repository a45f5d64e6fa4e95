//! Who is let in, on real processes with real certificates: tokens, what they open, and who did what.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    guarded::{Authority, Guarded, PRIMARY, arrives, mirror},
    world::{World, curl, depsync, eventually, free_address, git},
};

#[test]
fn a_region_with_a_token_mirrors_over_tls_until_the_token_is_revoked() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (id, token) =
        hub.token("eu", &["--role", "mirror", "--feed", "apps", "--region", "edge-*"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    arrives(&region, "one");

    // Exchanged: the second is in the file before the first is revoked.
    let (second, other) = hub.token("eu-2", &["--role", "mirror", "--region", "edge-1"]);
    fs::rename(&other, &token).unwrap();
    assert!(hub.admin(&["token", "revoke", &id]).status.success());
    fs::write(hub.folder.join("dir/a.txt"), "two").unwrap();
    arrives(&region, "two");

    assert!(hub.admin(&["token", "revoke", &second]).status.success());
    turned_away(&region);
    let nodes = hub.admin(&["nodes"]);
    assert!(nodes.status.success(), "{nodes:?}");
}

#[test]
fn a_redirect_and_a_readers_token_of_the_hub_are_good_at_the_region() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let table = world.path("region.xml");
    let all = "<Regions><Region name=\"edge-1\"><IPRange>127.0.0.0/8</IPRange></Region></Regions>";
    fs::write(&table, all).unwrap();
    let regions = format!("regions = \"{}\"\n", table.display());
    let hub = Guarded::start_with(&world, &authority, "hub", (0, &regions, PRIMARY));
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (id, reader) = hub.token("reader", &["--role", "reader", "--feed", "apps"]);
    let port = free_address().port();
    let advertise = format!("advertise = \"https://localhost:{port}\"\n");
    let config = mirror(&hub, &token);
    let region = Guarded::start_with(&world, &authority, "eu", (port, &advertise, &config));
    arrives(&region, "one");

    let file = "/v1/feeds/apps/files/a.txt";
    let location = eventually("the hub leads there", || {
        let answer = hub.answer(&reader, file);
        let line = answer.lines().find_map(|line| line.strip_prefix("location: "));
        line.map(|line| line.trim().to_owned()).ok_or(answer)
    });
    assert!(location.contains(&format!(":{}/v1/feeds/apps/at/", region.port)), "{location}");
    let ca = authority.cert.to_str().unwrap();
    let followed = curl(&["-f", "--cacert", ca, &location]);
    assert_eq!(followed.stdout, b"one", "no token is shown there: {followed:?}");
    let bare = location.split('?').next().unwrap();
    assert!(!curl(&["-f", "--cacert", ca, bare]).status.success());
    let other = location.replace("a.txt", "b.txt");
    assert!(!curl(&["-f", "--cacert", ca, &other]).status.success());

    // Asked directly, also while the hub is away.
    let answers = |status: &'static str| {
        eventually("the region knows the reader", || {
            let found = region.status(Some(&reader), &[], file);
            if found == status { Ok(()) } else { Err(format!("{found}\n{}", region.log())) }
        });
    };
    answers("200");
    assert_eq!(region.status(Some(&reader), &[], "/v1/feeds/apps/packs/0..1"), "403");
    assert!(hub.admin(&["token", "revoke", &id]).status.success());
    answers("401");
    let (_, reader_of_all) = hub.token("second", &["--role", "reader"]);
    eventually("the region knows the second", || {
        match region.status(Some(&reader_of_all), &[], file).as_str() {
            "200" => Ok(()),
            other => Err(other.to_owned()),
        }
    });
    drop(hub);
    assert_eq!(region.status(Some(&reader_of_all), &[], file), "200", "the hub is away");
    assert_eq!(region.status(Some(&reader_of_all), &[], "/v1/nodes"), "403", "for the feed alone");
}

#[test]
fn who_did_what_is_shown_with_where_from_and_how_it_ended() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    let (id, writer) = hub.token("writer", &["--role", "writer", "--expires", "2d"]);
    let put = hub.status(Some(&writer), &["-T", "/etc/hostname"], "/v1/feeds/apps/files/b.txt");
    assert_eq!(put, "201");
    assert_eq!(hub.status(Some(&writer), &["-X", "POST"], "/v1/feeds/apps/sync"), "403");
    let audit = hub.admin(&["audit"]);
    let audit = String::from_utf8(audit.stdout).unwrap();
    let lines: Vec<&str> = audit.lines().collect();
    assert_eq!(lines.len(), 4, "{audit}");
    assert!(lines[1].contains("403") && lines[1].contains("POST /v1/feeds/apps/sync"), "{audit}");
    let who = format!("token {id}");
    assert!(lines[2].contains(&who) && lines[2].contains("PUT /v1/feeds/apps/files/b.txt"));
    assert!(lines[2].contains("127.0.0.1") && lines[2].contains("201"), "{audit}");
    assert!(lines[3].contains("admin") && lines[3].contains("\"role\":\"writer\""), "{audit}");
    let file = fs::read_to_string(hub.folder.join("state/audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 3);
    assert!(!file.contains(fs::read_to_string(&writer).unwrap().trim()), "no secret is written");

    let tokens = String::from_utf8(hub.admin(&["token", "list"]).stdout).unwrap();
    assert!(tokens.contains("LAST USED") && tokens.contains("(in 1 days)"), "{tokens}");
}

#[test]
fn a_stolen_mirror_token_writes_nothing_and_reads_no_other_feed() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let other = "[[feed]]\nname = \"other\"\ndir = \"second\"\n";
    fs::create_dir_all(world.folder("hub").join("second")).unwrap();
    let hub = Guarded::start(&world, &authority, "hub", &format!("{PRIMARY}{other}"));
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, stolen) =
        hub.token("stolen", &["--role", "mirror", "--feed", "apps", "--region", "eu"]);
    eventually("the file is committed", || {
        match hub.status(Some(&stolen), &[], "/v1/feeds/apps/files/a.txt").as_str() {
            "200" => Ok(()),
            status => Err(status.to_owned()),
        }
    });
    for (arguments, path, expected) in [
        (&["-T", "/etc/hostname"][..], "/v1/feeds/apps/files/b.txt", "403"),
        (&["-X", "DELETE"], "/v1/feeds/apps/files/a.txt", "403"),
        (&["-X", "POST"], "/v1/feeds/apps/sync", "403"),
        (&["-X", "POST"], "/v1/tokens", "403"),
        (&[], "/v1/tokens", "403"),
        (&[], "/v1/feeds/other/files/a.txt", "403"),
        (&[], "/v1/feeds/other/packs/0..1", "403"),
        (&[], "/git/other.git/info/refs?service=git-upload-pack", "403"),
        (&[], "/v1/runs", "403"),
        (&[], "/v1/feeds/apps", "200"),
    ] {
        assert_eq!(hub.status(Some(&stolen), arguments, path), expected, "{path}");
        let nobody = hub.status(None, arguments, path);
        assert_eq!(nobody, "401", "{path} without a token");
    }
    assert_eq!(hub.status(None, &[], "/livez"), "200");
    assert_eq!(fs::read_dir(hub.folder.join("dir")).unwrap().count(), 1);

    // It names the region eu: it is not good for another one.
    let thief = Guarded::start(&world, &authority, "thief", &mirror(&hub, &stolen));
    turned_away(&thief);
    assert_eq!(fs::read_dir(thief.folder.join("dir")).unwrap().count(), 0);
}

#[test]
fn h4_a_token_exchanged_during_a_transfer_disturbs_nothing_and_an_expired_one_is_named() {
    const SIZE: usize = 8_000_000;
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let slow = format!("{PRIMARY}[bandwidth]\nreplication = \"3MB/s\"\n");
    let hub = Guarded::start(&world, &authority, "hub", &slow);
    let big: Vec<u8> =
        (0..SIZE as u32 / 4).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    fs::write(hub.folder.join("dir/big.bin"), &big).unwrap();
    let (first, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (_, reader) = hub.token("reader", &["--role", "reader"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    let sent = || -> usize {
        let metrics = hub.body(&reader, "/metrics");
        let name = "depsync_sent_bytes_total{class=\"replication\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |count| count.trim().parse().unwrap())
    };
    eventually("the transfer is under way", || match sent() {
        1_000_000.. => Ok(()),
        other => Err(other.to_string()),
    });
    let (_, other) = hub.token("eu-2", &["--role", "mirror", "--region", "edge-1"]);
    fs::rename(&other, &token).unwrap();
    assert!(hub.admin(&["token", "revoke", &first]).status.success());
    assert!(sent() < SIZE, "it was over before the token was exchanged");
    eventually("the file arrives", || match fs::read(region.folder.join("dir/big.bin")) {
        Ok(have) if have == big => Ok(()),
        other => Err(format!("{:?}\n{}", other.map(|have| have.len()), region.log())),
    });
    assert!(sent() < SIZE * 5 / 4, "it began again: {}", sent());

    let (_, short) = hub.token("short", &["--role", "reader", "--expires", "1s"]);
    eventually("it has expired", || match hub.status(Some(&short), &[], "/v1/feeds").as_str() {
        "401" => Ok(()),
        other => Err(other.to_owned()),
    });
    let why = hub.body(&short, "/v1/feeds");
    assert!(why.contains("has expired or was revoked"), "{why}");
}

fn turned_away(node: &Guarded) {
    eventually("it is turned away", || {
        let log = node.log();
        if log.contains("does not accept our token") { Ok(()) } else { Err(log) }
    });
}

#[test]
fn a_region_is_taken_over_after_20_s_of_silence_and_never_by_whom_its_token_does_not_allow() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let (_, many) = hub.token("many", &["--role", "mirror", "--region", "edge-*"]);
    let (_, plain) = hub.token("plain", &["--role", "mirror"]);
    let region = Guarded::start(&world, &authority, "eu", &mirror(&hub, &token));
    arrives(&region, "one");
    let standing = |label: &str| {
        let nodes = hub.admin(&["nodes", "--json"]);
        let nodes: serde_json::Value = serde_json::from_slice(&nodes.stdout).unwrap();
        let nodes = nodes["nodes"].as_array().unwrap().clone();
        let node = nodes.iter().find(|node| node["label"] == label);
        node.map_or("absent".to_owned(), |node| node["feeds"][0]["standing"].to_string())
    };
    let becomes = |label: &str, wanted: &str| {
        eventually(&format!("{label} is {wanted}"), || match standing(label) {
            found if found == format!("{wanted:?}") => Ok(()),
            other => Err(other),
        });
    };
    // One token for many spokes, and for none that its pattern does not fit.
    let second = mirror(&hub, &many);
    let beside = second.replace("edge-1", "edge-2");
    let beside = Guarded::start(&world, &authority, "beside", &beside);
    becomes("beside", "serving");
    drop(beside);
    let hedge = second.replace("edge-1", "hedge-1");
    let hedge = Guarded::start(&world, &authority, "hedge", &hedge);
    turned_away(&hedge);
    drop(hedge);
    // Another node under the same name stands by, or is a mirror and no more.
    let second = Guarded::start(&world, &authority, "second", &second);
    let third = Guarded::start(&world, &authority, "third", &mirror(&hub, &plain));
    becomes("second", "standby");
    becomes("third", "mirror");
    // The node's own id, with another token: while the node lives, not even a good one.
    let claim = |name: &str, token: &Path| {
        let state = world.folder(name).join("state");
        fs::create_dir_all(&state).unwrap();
        fs::copy(region.folder.join("state/node"), state.join("node")).unwrap();
        Guarded::start(&world, &authority, name, &mirror(&hub, token))
    };
    for (name, token) in [("claimed", &many), ("ghost", &plain)] {
        turned_away(&claim(name, token));
    }
    assert_eq!(standing("eu"), "\"serving\"");

    let ghost = world.path("eu-node");
    fs::copy(region.folder.join("state/node"), &ghost).unwrap();
    drop(region);
    let began = Instant::now();
    eventually("the one that stands by takes over", || match standing("second").as_str() {
        "\"serving\"" => Ok(()),
        other => Err(other.to_owned()),
    });
    // It was heard for the last time up to a heartbeat before it was killed.
    assert!(began.elapsed() >= Duration::from_secs(14), "{:?}", began.elapsed());
    // Whoever shows its id now gets as far as its token.
    let state = world.folder("late").join("state");
    fs::create_dir_all(&state).unwrap();
    fs::copy(&ghost, state.join("node")).unwrap();
    let _late = Guarded::start(&world, &authority, "late", &mirror(&hub, &plain));
    becomes("late", "mirror");
    assert_eq!(standing("second"), "\"serving\"");
    assert_eq!(standing("third"), "\"mirror\"");
    drop((second, third));
}

#[test]
fn a_mirror_whose_token_names_no_region_is_never_led_to() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let (_, plain) = hub.token("plain", &["--role", "mirror"]);
    let (_, good) = hub.token("good", &["--role", "mirror", "--region", "edge-1"]);
    let (_, reader) = hub.token("reader", &["--role", "reader"]);
    let node = |name: &str, token: &Path| {
        let port = free_address().port();
        let advertise = format!("advertise = \"https://localhost:{port}\"\n");
        let config = mirror(&hub, token);
        let node = Guarded::start_with(&world, &authority, name, (port, &advertise, &config));
        arrives(&node, "one");
        node
    };
    let led = |via: &str| {
        let answer = hub.answer(&reader, &format!("/v1/feeds/apps/files/a.txt?via={via}"));
        answer.lines().find_map(|line| line.strip_prefix("location: ").map(ToOwned::to_owned))
    };
    let third = node("third", &plain);
    let id = fs::read_to_string(third.folder.join("state/node")).unwrap();
    let id = id.trim();
    let first = node("first", &good);
    eventually("the good one is led to", || match led("edge-1") {
        Some(to) if to.contains(&format!(":{}/", first.port)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // By then the other one was tried as well, and its address leads to it.
    assert_eq!(led(id), None, "it is asked for by its id");
    drop(first);
    assert!(led("edge-1").is_none_or(|to| !to.contains(&format!(":{}/", third.port))));
}

#[test]
fn what_a_hook_vetoes_is_given_to_nobody() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hooks = world.folder("hub").join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    let hook = hooks.join("pre-commit");
    fs::write(&hook, "#!/bin/sh\ntest ! -e b.txt\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!("{PRIMARY}hooks = \"hooks\"\n");
    let hub = Guarded::start(&world, &authority, "hub", &config);
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let status = |path: &str| hub.status(Some(&token), &[], path);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    eventually("the first is published", || match status("/v1/feeds/apps/files/a.txt").as_str() {
        "200" => Ok(()),
        other => Err(other.to_owned()),
    });
    let (small, large) = (hub.folder.join("dir/b.txt"), hub.folder.join("dir/c.bin"));
    fs::write(&small, "two").unwrap();
    fs::write(&large, vec![7; 600_000]).unwrap();
    eventually("it is vetoed", || {
        let feed = hub.body(&token, "/v1/feeds/apps");
        if feed.contains("pre-commit") { Ok(()) } else { Err(feed) }
    });
    let repository = hub.folder.join("state/feeds/apps/git");
    let id = git(&repository, &["hash-object", small.to_str().unwrap()]).stdout;
    let id = String::from_utf8(id).unwrap().trim().to_owned();
    assert!(!git(&repository, &["cat-file", "-e", &id]).status.success(), "it lies in git/");
    let sha256 = Command::new("sha256sum").arg(&large).output().unwrap().stdout;
    let sha256 = String::from_utf8(sha256).unwrap()[..64].to_owned();
    assert_eq!(status(&format!("/v1/feeds/apps/objects/{sha256}")), "404");
    assert_eq!(status("/v1/feeds/apps/files/b.txt"), "404");
    let header = format!("Authorization: Bearer {}", fs::read_to_string(&token).unwrap().trim());
    let clone = world.folder("clone");
    git(&clone, &["init", "-q"]);
    let fetch = |what: &str| {
        let (ca, header) =
            (format!("http.sslCAInfo={}", hub.ca.display()), format!("http.extraHeader={header}"));
        let url = format!("{}/git/apps.git", hub.url());
        git(
            &clone,
            &["-c", &ca, "-c", &header, "-c", "protocol.version=2", "fetch", "-q", &url, what],
        )
    };
    let refused = fetch(&id);
    assert!(!refused.status.success(), "{refused:?}");
    let fetched = fetch("main");
    assert!(fetched.status.success(), "{fetched:?}");
    let files = git(&clone, &["ls-tree", "--name-only", "FETCH_HEAD"]).stdout;
    assert!(
        !String::from_utf8(files).unwrap().lines().any(|name| name == "b.txt" || name == "c.bin")
    );
}

#[test]
fn one_client_asks_so_often_and_no_more() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let limits = "[limits]\nrequests_per_client = 1\nrequests_per_token = 1\n";
    let keys = "proxies = [\"127.0.0.0/8\"]\n";
    let config = format!("{PRIMARY}{limits}");
    let hub = Guarded::start_with(&world, &authority, "hub", (0, keys, &config));
    let (_, reader) = hub.token("reader", &["--role", "reader"]);
    let ask = |token: Option<&Path>, from: &str| {
        hub.status(token, &["-H", &format!("X-Forwarded-For: {from}")], "/livez")
    };
    // Ten seconds' worth at once.
    let answers: Vec<String> = (0..30).map(|_| ask(None, "10.0.0.1")).collect();
    assert!(answers[..10].iter().all(|status| status == "200"), "{answers:?}");
    assert!(answers.iter().any(|status| status == "429"), "{answers:?}");
    assert_eq!(ask(None, "10.0.0.2"), "200", "another one is not held back");
    let answers: Vec<String> =
        (0..30).map(|n| ask(Some(&reader), &format!("10.0.1.{n}"))).collect();
    assert!(answers[..10].iter().all(|status| status == "200"), "{answers:?}");
    assert!(answers.iter().any(|status| status == "429"), "{answers:?}");
    let refused = eventually("it is said when to come again", || {
        let answer = hub.answer(&reader, "/livez");
        if answer.contains(" 429 ") { Ok(answer) } else { Err(answer) }
    });
    assert!(refused.contains("retry-after: "), "{refused}");
}

#[test]
fn health_tells_of_tokens_that_end_soon_and_of_a_node_that_asks_for_none() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let hub = Guarded::start(&world, &authority, "hub", PRIMARY);
    let (id, reader) = hub.token("reader", &["--role", "reader", "--expires", "3d"]);
    let (_, far) = hub.token("far", &["--role", "reader", "--expires", "15d"]);
    for token in [&reader, &far] {
        let health = hub.body(token, "/healthz");
        assert!(
            health.contains(&format!("the token {id}, a reader's, ends in 2 days")),
            "{health}"
        );
        assert_eq!(health.matches("ends in").count(), 1, "{health}");
    }
    let metrics = hub.body(&reader, "/metrics");
    assert!(metrics.contains("depsync_insecure 0"), "{metrics}");
    let line = format!("depsync_token_expires_seconds{{token=\"{id}\",role=\"reader\"}} ");
    assert!(metrics.contains(&line), "{metrics}");

    let open = world.primary_with("open", &["--insecure"]);
    assert!(open.log_text().contains("--insecure: whoever"), "{}", open.log_text());
    let health = open.get("/healthz");
    assert!(health["warnings"][0].as_str().unwrap().starts_with("--insecure"), "{health}");
    assert_eq!(open.metric("depsync_insecure"), 1.0);
}

#[test]
fn what_is_unsafe_does_not_start() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let folder = world.folder("hub");
    fs::create_dir_all(folder.join("dir")).unwrap();
    authority.sign(&folder);
    let config = folder.join("depsync.toml");
    let listen = "listen = \"0.0.0.0:0\"\nstate_dir = \"state\"\n";
    for (tls, mode, expected) in [
        ("", 0o600, "name a certificate in [tls]"),
        ("[tls]\ncert = \"node.crt\"\n", 0o600, "name both cert and key"),
        ("[tls]\ncert = \"none.crt\"\nkey = \"node.key\"\n", 0o600, "none.crt cannot be read"),
        ("[tls]\ncert = \"node.crt\"\nkey = \"node.key\"\n", 0o644, "chmod 600"),
        ("[tls]\ncert = \"node.key\"\nkey = \"node.key\"\n", 0o600, "no certificate in PEM"),
    ] {
        fs::set_permissions(folder.join("node.key"), fs::Permissions::from_mode(mode)).unwrap();
        fs::write(&config, format!("{listen}{tls}{PRIMARY}")).unwrap();
        let output = depsync(&["run", "--config", config.to_str().unwrap()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{tls}: {text}");
        assert!(text.contains(expected), "{tls}: {text}");
    }
}
