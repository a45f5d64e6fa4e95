//! What a person and a program see of a node: every `--json` as it is documented, text differences, a view
//! that goes on.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    oracle::wait_equal,
    world::{DEPSYNC, World, done, eventually},
};

/// All names of keys in a value; what a node names itself (hooks) is left out.
fn names(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                found.insert(name.clone());
                if name != "hooks" {
                    names(value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}

/// What the document says of a command, with what it says before all and of nodes.
fn documented(command: &str) -> String {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/json.md");
    let text = fs::read_to_string(file).unwrap();
    let mut parts = text.split("\n## ");
    let mut said = parts.next().unwrap().to_owned();
    for part in parts {
        let (heading, body) = part.split_once('\n').unwrap();
        let with = |name: &str| heading.split(", ").any(|one| one == name);
        if with(command) || (command == "status" && with("nodes")) {
            said.push_str(body);
        }
    }
    said
}

#[test]
fn what_json_says_is_documented() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("a.txt"), "one\n").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait"]);
    let out = world.path("out");
    let out = out.to_str().unwrap();
    fs::write(out, "uploaded").unwrap();
    let commands: &[&[&str]] = &[
        &["put", out, "default/b.txt", "--wait"],
        &["status"],
        &["nodes"],
        &["regions"],
        &["locate", "default/a.txt"],
        &["log"],
        &["diff"],
        &["ls"],
        &["runs"],
        &["audit"],
        &["sync"],
        &["wait"],
        &["hold"],
        &["release"],
        &["gc"],
        &["fsck"],
        &["token create", "--role", "reader"],
        &["token list"],
        &["get", "default/a.txt", "-o", out],
        &["rm", "default/b.txt"],
    ];
    for words in commands {
        let name = words[0];
        let whole: Vec<&str> = name.split(' ').chain(words[1..].iter().copied()).collect();
        let printed = hub.command(&[&whole[..], &["--json"]].concat());
        assert!(printed.status.success(), "{name}: {printed:?}");
        let value: Value = serde_json::from_slice(&printed.stdout).unwrap();
        let mut found = BTreeSet::new();
        names(&value, &mut found);
        assert!(!found.is_empty(), "{name} says nothing");
        let document = documented(name);
        let missing: Vec<_> =
            found.iter().filter(|name| !document.contains(&format!("`{name}`"))).collect();
        assert!(missing.is_empty(), "{name}: docs/json.md does not know {missing:?}");
    }
    // At a region `status` says more.
    let mut found = BTreeSet::new();
    names(&serde_json::from_slice(&eu.command(&["status", "--json"]).stdout).unwrap(), &mut found);
    let document = documented("status");
    found.retain(|name| !document.contains(&format!("`{name}`")));
    assert!(found.is_empty(), "status at a region: docs/json.md does not know {found:?}");
}

#[test]
fn a_difference_of_texts_is_shown_by_lines() {
    let world = World::new();
    let hub = world.primary("hub");
    let text = |line: &str| format!("a\nb\nc\nd\n{line}\ne\nf\ng\nh\n");
    fs::write(hub.dir.join("x.conf"), text("port = 1")).unwrap();
    done(&hub, &["sync"]);
    fs::write(hub.dir.join("x.conf"), text("port = 2")).unwrap();
    done(&hub, &["sync"]);
    let said = done(&hub, &["diff", "--patch"]);
    assert!(
        said.contains("M x.conf\n@@ -2,7 +2,7 @@\n b\n c\n d\n-port = 1\n+port = 2\n e"),
        "{said}"
    );
    assert!(!said.contains('\u{1b}'), "colours in a pipe: {said}");
    // What is kept no more is told as that, and what comes after it is shown.
    let before = hub.get("/v1/feeds/default")["commit"].as_str().unwrap().to_owned();
    fs::write(hub.dir.join("x.conf"), text("port = 3")).unwrap();
    fs::write(hub.dir.join("y.conf"), "new\n").unwrap();
    done(&hub, &["sync"]);
    done(&hub, &["revoke", &before]);
    let said = eventually("the order is known", || {
        let said = done(&hub, &["diff", "--patch", &format!("{before}..")]);
        if said.contains("-port = 2") { Err(said) } else { Ok(said) }
    });
    let gone = format!(
        "  a text of {} bytes, before: content that is kept no more",
        text("port = 3").len()
    );
    assert!(said.starts_with(&format!("M x.conf\n{gone}\nA y.conf\n@@")), "{said}");
    // What is no text is told by its size; a link is not followed.
    fs::write(hub.dir.join("x.bin"), b"a\0b").unwrap();
    std::os::unix::fs::symlink("x.conf", hub.dir.join("link")).unwrap();
    done(&hub, &["sync"]);
    let said = done(&hub, &["diff", "--patch", ".."]);
    assert!(said.contains("A x.bin\n  3 bytes, before: nothing"), "{said}");
    assert!(said.contains("A link\n  a link, before: nothing"), "{said}");
}

#[test]
fn a_view_goes_on_until_it_is_ended() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut watch = Command::new(DEPSYNC)
        .args(["status", "--watch", "--url", &hub.url()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut until = |part: &str| {
        let found = lines.by_ref().map(Result::unwrap).find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("the view ended without {part}"))
    };
    until("nothing, 0 files");
    fs::write(hub.dir.join("a.txt"), "one").unwrap();
    let line = until("1 file");
    assert!(!line.contains('\u{1b}'), "{line}");
    let stopped = Command::new("kill").args(["-INT", &watch.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    let status = eventually("the view ends", || {
        watch.try_wait().unwrap().ok_or_else(|| "it goes on".to_owned())
    });
    assert!(status.success(), "{status}");
}
