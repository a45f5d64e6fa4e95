//! What the daemon writes for machines: one JSON object a line, with the commit where there is one.

use std::fs;

use serde_json::Value;

use crate::world::{Node, World, eventually};

fn lines(node: &Node) -> Vec<Value> {
    let text = node.log_text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    whole.lines().map(parse).collect()
}

#[test]
fn a_version_is_followed_by_its_commit_from_node_to_node() {
    let world = World::new();
    let json = ["--log-format", "json"];
    let hub = world.primary_with("hub", &json);
    let eu = world.region_with("eu", &hub, &json);
    fs::write(hub.dir.join("a.txt"), "one").unwrap();
    let commit = eventually("it is published", || match hub.commit() {
        commit if commit.len() == 40 => Ok(commit),
        other => Err(other),
    });
    for node in [&hub, &eu] {
        let line = eventually(&format!("{} says so", node.name), || {
            let found = lines(node).into_iter().find(|line| line["commit"] == commit.as_str());
            found.ok_or_else(|| node.log_text())
        });
        for field in ["timestamp", "level", "message", "feed"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {line}");
        }
        assert_eq!(line["seq"], 1, "{line}");
    }
    for line in lines(&hub).iter().chain(&lines(&eu)) {
        let short = line["commit"].as_str().is_some_and(|commit| commit.len() != 40);
        assert!(!short, "a commit is written out: {line}");
    }
}
