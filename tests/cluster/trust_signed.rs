//! Signatures on real processes: stock programs accept them, and nothing else is checked out, whatever
//! happens on the way.

use std::{fs, path::PathBuf, process::Command};

use crate::{
    guarded::{Authority, Guarded, PRIMARY, arrives, mirror},
    proxy::Proxy,
    world::{Node, World, depsync, eventually, feed, git, noise},
};

/// A key of its own, and the line that believes it.
fn key(world: &World, name: &str) -> (PathBuf, String) {
    let path = world.path(name);
    let made = depsync(&["key", "create", path.to_str().unwrap(), "--name", name]);
    assert!(made.status.success(), "{made:?}");
    (path, String::from_utf8(made.stdout).unwrap())
}

#[test]
fn stock_git_and_ssh_keygen_accept_our_signatures() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let (key, line) = key(&world, "hub-1");
    let signed = format!("{PRIMARY}sign_with = \"{}\"\n", key.display());
    let hub = Guarded::start(&world, &authority, "hub", &signed);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    let repository = hub.folder.join("state/feeds/apps/git");
    eventually("it is committed", || {
        let head = repository.join("refs/heads/main");
        if head.exists() { Ok(()) } else { Err(hub.log()) }
    });
    let trusted = world.path("allowed_signers");
    fs::write(&trusted, &line).unwrap();
    let allowed = format!("gpg.ssh.allowedSignersFile={}", trusted.display());
    let verify = ["-c", &allowed, "verify-commit", "-v", "main"];
    let verified = git(&repository, &verify);
    assert!(verified.status.success(), "{verified:?}");
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(said.contains("Good \"git\" signature for hub-1"), "{said}");
    assert!(git(&repository, &["fsck", "--full", "--strict"]).status.success());

    // The same by ssh-keygen alone, on what git shows.
    let commit = git(&repository, &["cat-file", "commit", "main"]).stdout;
    let commit = String::from_utf8(commit).unwrap();
    let (before, rest) = commit.split_once("gpgsig ").unwrap();
    let (pem, after) = rest.split_once("-----END SSH SIGNATURE-----\n").unwrap();
    let pem = format!("{pem}-----END SSH SIGNATURE-----\n").replace("\n ", "\n");
    fs::write(world.path("commit.sig"), pem).unwrap();
    fs::write(world.path("commit"), format!("{before}{after}")).unwrap();
    let check = |file: &str| {
        Command::new("ssh-keygen")
            .args(["-Y", "verify", "-n", "git", "-I", "hub-1", "-f"])
            .arg(&trusted)
            .arg("-s")
            .arg(world.path("commit.sig"))
            .stdin(fs::File::open(world.path(file)).unwrap())
            .output()
            .unwrap()
    };
    let verified = check("commit");
    assert!(verified.status.success(), "{verified:?}");
    fs::write(world.path("other"), format!("{before}{after}.")).unwrap();
    assert!(!check("other").status.success());
}

#[test]
fn what_no_trusted_key_has_signed_is_not_checked_out() {
    let world = World::new();
    let authority = Authority::new(&world, "ca");
    let ((ours, line), (theirs, other)) = (key(&world, "ours"), key(&world, "theirs"));
    let signing = world.path("signing.key");
    fs::copy(&ours, &signing).unwrap();
    let signed = format!("{PRIMARY}sign_with = \"{}\"\n", signing.display());
    let hub = Guarded::start(&world, &authority, "hub", &signed);
    let (_, token) = hub.token("eu", &["--role", "mirror", "--region", "edge-1"]);
    let trusted = world.path("allowed_signers");
    fs::write(&trusted, &line).unwrap();
    let config = format!("{}trusted_keys = \"{}\"\n", mirror(&hub, &token), trusted.display());
    let region = Guarded::start(&world, &authority, "eu", &config);
    fs::write(hub.folder.join("dir/a.txt"), "one").unwrap();
    arrives(&region, "one");

    // Somebody commits with another key: the old release stays, and both say why.
    fs::copy(&theirs, &signing).unwrap();
    fs::write(hub.folder.join("dir/a.txt"), "two").unwrap();
    eventually("the region refuses it", || {
        if region.log().contains("which is not in") { Ok(()) } else { Err(region.log()) }
    });
    assert_eq!(fs::read_to_string(region.folder.join("dir/a.txt")).unwrap(), "one");
    eventually("the primary hears of it", || {
        let nodes = String::from_utf8(hub.admin(&["nodes", "--json"]).stdout).unwrap();
        if nodes.contains("which is not in") { Ok(()) } else { Err(nodes) }
    });

    // Once the key is believed it goes on.
    fs::write(&trusted, format!("{line}{other}")).unwrap();
    fs::write(hub.folder.join("dir/b.txt"), "three").unwrap();
    arrives(&region, "two");
}

/// How often a log says one of these.
fn told(node: &Node, words: &[&str]) -> usize {
    let log = node.log_text();
    log.lines().filter(|line| words.iter().any(|word| line.contains(word))).count()
}

#[test]
fn what_is_changed_on_the_way_is_refused_and_told_and_the_old_release_stays() {
    let world = World::new();
    let (ours, line) = key(&world, "ours");
    let trusted = world.path("allowed_signers");
    fs::write(&trusted, &line).unwrap();
    let signed = format!("name = \"default\"\nsign_with = {ours:?}");
    let mut hub = world.configured("hub", "", &signed);
    hub.start();
    let link = Proxy::to(&hub);
    let mirrored = format!("upstream = {:?}\ntrusted_keys = {trusted:?}", link.url());
    let mut eu = world.configured("eu", "region = { name = \"eu\" }", &mirrored);
    eu.start();
    let mut large = noise(1, 2_000_000);
    let put = |name: &str, bytes: &[u8]| fs::write(hub.dir.join(name), bytes).unwrap();
    let lies = |name: &str| fs::read(eu.dir.join(name)).unwrap_or_default();
    put("large", &large);
    put("small", b"old");
    eventually("it begins", || {
        if lies("large") == large && lies("small") == b"old" { Ok(()) } else { Err(eu.log_text()) }
    });

    // Each of them for as long as somebody changes every one that comes: after so many bytes, which is in
    // the announcement, in a pack of its own, in an object (which comes whole), in a delta.
    let pack = noise(2, 200_000);
    let fresh = noise(3, 2_000_000);
    large[1_000_000..1_060_000].copy_from_slice(&noise(4, 60_000));
    let cases: [(&str, &[u8], u64, &[&str]); 4] = [
        ("small", b"new", 400, &["is not believed", "cannot be read"]),
        ("pack", &pack, 100_000, &["is damaged", "refused"]),
        ("fresh", &fresh, 1_000_000, &["is damaged", "refused", "it is fetched whole"]),
        ("large", &large, 30_000, &["is damaged", "refused", "it is fetched whole"]),
    ];
    for (name, bytes, after, words) in cases {
        let (old, before) = (lies(name), told(&eu, words));
        link.flip(after);
        put(name, bytes);
        eventually(&format!("{name} is refused"), || {
            if told(&eu, words) > before {
                return Ok(());
            }
            let seen = lies(name);
            assert!(seen == old || seen == bytes, "{name} is neither the old nor the new");
            if !link.is_to_flip() {
                link.flip(after);
            }
            Err(format!("{}\n{}", eu.log_text(), feed(&eu)))
        });
        eventually(&format!("{name} comes as it is"), || {
            if lies(name) == bytes { Ok(()) } else { Err(eu.log_text()) }
        });
    }
    eu.fsck();
}
