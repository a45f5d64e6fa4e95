//! Stock clients: a clone by git and git-lfs holds what the primary's folder holds.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    oracle::{Item, contents, sha256, wait_equal},
    world::{Node, World, curl, eventually, noise},
};

/// Above this a file is an object.
const LARGE: usize = 1_500_000;

/// Stock git in a folder, with no configuration of anyone.
fn git_in(folder: &Path, arguments: &[&str]) -> Output {
    let mut git = Command::new("git");
    git.args(arguments).current_dir(folder).env("GIT_CONFIG_NOSYSTEM", "1");
    git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("HOME", "/nonexistent");
    git.env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null()).output().unwrap()
}

fn run(folder: &Path, arguments: &[&str]) -> String {
    let output = git_in(folder, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "git {arguments:?}: {text}");
    text
}

fn url(node: &Node) -> String {
    format!("{}/git/default.git", node.url())
}

/// A clone with all objects, and its folder.
fn clone(world: &World, node: &Node, name: &str, more: &[&str]) -> PathBuf {
    let folder = world.path(name);
    let url = url(node);
    let arguments = [more, &["clone", "-q", &url, folder.to_str().unwrap()]].concat();
    run(&world.path(""), &arguments);
    pull_objects(&folder);
    folder
}

/// Without `git lfs install`, which people run once, git-lfs puts no object in its place.
fn pull_objects(folder: &Path) {
    run(folder, &["lfs", "install", "--local"]);
    run(folder, &["lfs", "pull"]);
}

/// What git can hold of a folder: contents, links, and whether a file may be executed.
fn held_by_git(folder: &Path) -> BTreeMap<PathBuf, (String, bool)> {
    let ours = |path: &Path| path.starts_with(".git") || path.starts_with(".depsync");
    let items = contents(folder).into_iter().filter(|(path, _)| !ours(path));
    let of_git = items.filter_map(|(path, item)| match item {
        Item::File { sha256, mode, .. } => Some((path, (sha256, mode & 0o100 != 0))),
        Item::Link(target) => Some((path, (format!("-> {}", target.display()), false))),
        Item::Dir { .. } => None,
    });
    of_git.collect()
}

/// A folder with something of each kind.
fn deploy(folder: &Path) {
    fs::create_dir_all(folder.join("sites/eu")).unwrap();
    fs::write(folder.join("large.bin"), noise(1, LARGE)).unwrap();
    fs::write(folder.join("sites/eu/large.bin"), noise(2, LARGE + 1)).unwrap();
    fs::write(folder.join("empty"), "").unwrap();
    fs::write(folder.join("crlf.txt"), "a\r\nb\r\n").unwrap();
    fs::write(folder.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(folder.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../crlf.txt", folder.join("sites/link")).unwrap();
    let id = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{id}\nsize 12345\n");
    fs::write(folder.join("a-users-own.pointer"), pointer).unwrap();
}

/// Waits until the files named are published.
fn wait_published(node: &Node, files: u64) {
    eventually("published", || match node.get("/v1/feeds/default")["files"].as_u64() {
        Some(count) if count == files => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_clone_from_a_primary_and_from_a_region_is_the_folder_byte_for_byte() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    deploy(&hub.dir);
    wait_equal(&hub.dir, &[&eu.dir]);
    wait_published(&hub, 7);
    for (node, name, more) in [
        (&hub, "from-hub", &[][..]),
        (&hub, "from-hub-0", &["-c", "protocol.version=0"]),
        (&eu, "from-eu", &[]),
    ] {
        let folder = clone(&world, node, name, more);
        assert_eq!(held_by_git(&folder), held_by_git(&hub.dir), "{name}");
        assert_eq!(run(&folder, &["fsck", "--full", "--strict"]), "", "{name}");
        // Of the index it would ask for what the user's own pointer names.
        let fsck = run(&folder, &["lfs", "fsck", "HEAD"]);
        assert!(fsck.contains("Git LFS fsck OK"), "{name}: {fsck}");
        let refs = run(&folder, &["ls-remote", "origin"]);
        assert_eq!(refs.lines().count(), 2, "HEAD and refs/heads/main: {refs}");
    }
    for node in [&hub, &eu] {
        node.fsck();
        let fsck = run(&node.git_dir(), &["lfs", "fsck", "--dry-run", "refs/heads/main"]);
        assert!(fsck.contains("Git LFS fsck OK"), "{}: {fsck}", node.name);
    }

    fs::write(hub.dir.join("large.bin"), noise(3, LARGE)).unwrap();
    fs::remove_file(hub.dir.join("empty")).unwrap();
    wait_published(&hub, 6);
    wait_equal(&hub.dir, &[&eu.dir]);
    let folder = world.path("from-eu");
    run(&folder, &["fetch", "-q"]);
    run(&folder, &["reset", "-q", "--hard", "origin/main"]);
    run(&folder, &["lfs", "pull"]);
    assert_eq!(held_by_git(&folder), held_by_git(&hub.dir));
}

#[test]
fn attributes_of_the_feed_hold_in_a_clone_unless_the_clone_outranks_them() {
    let world = World::new();
    let hub = world.primary("hub");
    deploy(&hub.dir);
    let hostile = "* text=auto eol=crlf ident\n*.bin filter=lfs diff=lfs merge=lfs -text\n";
    fs::write(hub.dir.join(".gitattributes"), hostile).unwrap();
    fs::write(hub.dir.join("text"), "$Id$\nline\n").unwrap();
    wait_published(&hub, 9);
    let plain = clone(&world, &hub, "plain", &[]);
    let text = fs::read_to_string(plain.join("text")).unwrap();
    assert!(text.starts_with("$Id: ") && text.ends_with("line\r\n"), "{text:?}");
    let own = world.path("own");
    run(&world.path(""), &["clone", "-qn", &url(&hub), own.to_str().unwrap()]);
    let none = "* -text -eol -ident -filter -working-tree-encoding\n";
    fs::write(own.join(".git/info/attributes"), none).unwrap();
    run(&own, &["checkout", "-q", "main"]);
    pull_objects(&own);
    assert_eq!(held_by_git(&own), held_by_git(&hub.dir));
}

#[test]
fn an_object_goes_on_where_it_broke_off() {
    let world = World::new();
    let hub = world.primary("hub");
    let file = hub.dir.join("large.bin");
    fs::write(&file, noise(1, LARGE)).unwrap();
    wait_published(&hub, 1);
    let object = json!({ "oid": sha256(&file), "size": LARGE });
    let asked = json!({ "operation": "download", "objects": [object] }).to_string();
    let batch = curl(&["-f", "--json", &asked, &format!("{}/info/lfs/objects/batch", url(&hub))]);
    let answer: Value = serde_json::from_slice(&batch.stdout).unwrap();
    let href = answer["objects"][0]["actions"]["download"]["href"].as_str().unwrap();
    let got = world.path("got");
    fs::write(&got, &noise(1, LARGE)[..1_000_001]).unwrap();
    let resumed = curl(&["-f", "-C", "-", "-w", "%{http_code}", "-o", got.to_str().unwrap(), href]);
    assert_eq!(resumed.stdout, b"206");
    assert_eq!(sha256(&got), sha256(&file));
}

#[test]
fn what_is_not_published_cannot_be_fetched_by_name() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_published(&hub, 1);
    let git = |arguments: &[&str]| {
        let who = ["-c", "user.name=x", "-c", "user.email=x"];
        run(&hub.git_dir(), &[&who[..], arguments].concat()).trim().to_owned()
    };
    let tree = git(&["rev-parse", "refs/heads/main^{tree}"]);
    let secret = git(&["commit-tree", &tree, "-m", "not published"]);
    let folder = clone(&world, &hub, "clone", &[]);
    for version in ["0", "2"] {
        let protocol = format!("protocol.version={version}");
        let fetched = git_in(&folder, &["-c", &protocol, "fetch", "origin", &secret]);
        let text = String::from_utf8_lossy(&fetched.stderr).into_owned();
        assert!(!fetched.status.success(), "protocol {version}: {text}");
    }
    let held = git_in(&folder, &["cat-file", "-e", &secret]);
    assert!(!held.status.success(), "it came along");
}

#[test]
fn a_push_is_refused_in_words() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("a"), "a").unwrap();
    wait_published(&hub, 1);
    let before = hub.commit();
    let folder = clone(&world, &hub, "clone", &[]);
    fs::write(folder.join("a"), "b").unwrap();
    run(&folder, &["-c", "user.name=u", "-c", "user.email=u@x", "commit", "-qam", "mine"]);
    for remote in ["main", "main:other", ":main"] {
        let pushed = git_in(&folder, &["push", "origin", remote]);
        let said = String::from_utf8_lossy(&pushed.stderr);
        assert!(!pushed.status.success() && said.contains("remote: feeds are read only"), "{said}");
    }
    let upload = json!({ "operation": "upload", "objects": [{ "oid": "0", "size": 1 }] });
    let batch = format!("{}/info/lfs/objects/batch", url(&hub));
    let status =
        curl(&["--json", &upload.to_string(), "-o", "/dev/null", "-w", "%{http_code}", &batch]);
    assert_eq!(status.stdout, b"403");
    assert_eq!(hub.commit(), before);
}

#[test]
fn without_git_at_the_node_a_clone_is_told_so_and_downloads_go_on() {
    let world = World::new();
    let mut hub = world.primary("hub");
    fs::write(hub.dir.join("a"), "a").unwrap();
    wait_published(&hub, 1);
    hub.stop();
    let nowhere = format!("PATH={}", world.folder("nothing").display());
    hub.wrap = vec!["env".to_owned(), nowhere];
    hub.start();
    let refused = git_in(&world.path(""), &["clone", &url(&hub), "clone"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("remote: clones need git") && said.contains("501"), "{said}");
    let file = curl(&["-f", &format!("{}/v1/feeds/default/files/a", hub.url())]);
    assert_eq!(file.stdout, b"a");
}

#[test]
fn git_ends_when_its_client_goes_away() {
    let world = World::new();
    let hub = world.primary("hub");
    for n in 0..40 {
        fs::write(hub.dir.join(n.to_string()), noise(n, 400_000)).unwrap();
    }
    wait_published(&hub, 40);
    let request = format!("0032want {}\n00000009done\n", hub.commit());
    let mut client = Command::new("curl")
        .args(["-sS", "--limit-rate", "10k", "-o", "/dev/null", "--data-binary", &request])
        .arg(format!("{}/git-upload-pack", url(&hub)))
        .spawn()
        .unwrap();
    eventually("git runs", || {
        if gits_on(&hub.git_dir()) > 0 { Ok(()) } else { Err("no process".to_owned()) }
    });
    assert!(client.try_wait().unwrap().is_none(), "the client still listens");
    client.kill().unwrap();
    client.wait().unwrap();
    eventually("git has ended", || match gits_on(&hub.git_dir()) {
        0 => Ok(()),
        count => Err(format!("{count} processes")),
    });
}

/// Processes that work in a folder.
fn gits_on(folder: &Path) -> usize {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes
        .filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == folder))
        .count()
}
