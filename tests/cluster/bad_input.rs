//! Input that cannot be used: one line that says what and where, the exit code, nothing changed.

use std::fs;

use crate::{
    oracle::contents,
    world::{World, depsync},
};

/// Runs it: the exit code, and the words that the one line must have.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = depsync(arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{arguments:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?}: \"{word}\" is not in: {text}");
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let world = World::new();
    let folder = world.folder("folder");
    let folder = folder.to_str().unwrap();
    let state = world.path("state");
    let state = state.to_str().unwrap();
    let file = world.path("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let missing = world.path("missing");
    let missing = missing.to_str().unwrap();
    let inside = format!("{folder}/state");
    let base = ["--state", state, "--listen", "127.0.0.1:0"];
    let before = contents(world.path("").as_path());

    refused(&[&["primary", missing], &base[..]].concat(), 78, &[missing]);
    refused(&[&["primary", file], &base[..]].concat(), 78, &[file]);
    refused(
        &["primary", folder, "--state", &inside, "--listen", "127.0.0.1:0"],
        78,
        &[&inside, folder],
    );
    refused(&["primary", folder, "--state", state, "--listen", "0.0.0.0:0"], 78, &["--insecure"]);
    refused(&["primary", folder, "--state", state, "--listen", "nonsense"], 78, &["nonsense"]);
    assert_eq!(contents(world.path("").as_path()), before, "a refused start changed something");

    let hub = world.primary("hub");
    let (port, taken) = (hub.url(), hub.dir.to_str().unwrap());
    let port = port.trim_start_matches("http://");
    refused(&["primary", folder, "--state", state, "--listen", port], 78, &[port]);
    refused(&[&["primary", taken], &base[..]].concat(), 78, &[taken]);
    assert!(!fs::exists(state).unwrap(), "a refused start made the state directory");
}

#[test]
fn a_configuration_is_refused_with_all_its_faults_and_where_they_are() {
    let world = World::new();
    let (a, b) = (world.folder("a"), world.folder("a/b"));
    let config = world.path("depsync.toml");
    let state = world.path("state");
    let check = |text: String, words: &[&str]| {
        fs::write(&config, text).unwrap();
        let output = depsync(&["run", "--config", config.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        for word in words {
            assert!(said.contains(word), "\"{word}\" is not in: {said}");
        }
        assert!(!state.exists(), "a refused start made the state directory");
    };
    let head = format!("state_dir = {state:?}\nlisten = \"127.0.0.1:0\"\n");
    let feed =
        |name: &str, dir: &std::path::Path| format!("[[feed]]\nname = {name:?}\ndir = {dir:?}\n");
    check(format!("{head}colour = 1\n{}", feed("a", &a)), &["colour", "depsync.toml"]);
    check(format!("{head}{}{}", feed("a", &a), feed("b", &b)), &["inside", "a/b"]);
    check(format!("{head}{}{}", feed("a", &a), feed("b", &a)), &["\"a\"", "\"b\""]);
    check(
        format!("{head}{}large_file = \"5 parsecs\"\n", feed("a", &a)),
        &["large_file", "parsecs"],
    );
    check(format!("{head}{}{}", feed("a", &a), feed("a", &b)), &["\"a\""]);

    fs::write(
        world.path("region.xml"),
        "<Regions>\n  <Region name=\"x\"><IPRange>10.0.0.0/33</IPRange></Region>\n</Regions>",
    )
    .unwrap();
    check(
        format!("{head}regions = \"region.xml\"\n{}", feed("a", &a)),
        &["region.xml", "2:", "10.0.0.0/33"],
    );
    fs::write(world.path("region.xml"), "<Regions><Region name=\"x\">").unwrap();
    check(format!("{head}regions = \"region.xml\"\n{}", feed("a", &a)), &["region.xml"]);
}

#[test]
fn a_port_that_is_taken_and_a_state_in_use_are_said() {
    let world = World::new();
    let hub = world.primary("hub");
    let address = hub.url();
    let address = address.strip_prefix("http://").unwrap();
    let other = world.folder("other");
    let state = world.path("other.state");
    refused(
        &[
            "primary",
            other.to_str().unwrap(),
            "--state",
            state.to_str().unwrap(),
            "--listen",
            address,
        ],
        78,
        &[address],
    );
    refused(
        &[
            "primary",
            other.to_str().unwrap(),
            "--state",
            hub.state.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
        ],
        78,
        &[hub.state.to_str().unwrap()],
    );
    // The folder of the primary is nobody else's, whatever the state directory.
    refused(
        &[
            "primary",
            hub.dir.to_str().unwrap(),
            "--state",
            state.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
        ],
        78,
        &[hub.dir.to_str().unwrap()],
    );
    refused(
        &[
            "region",
            hub.dir.to_str().unwrap(),
            "--upstream",
            &hub.url(),
            "--name",
            "eu",
            "--state",
            state.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
        ],
        78,
        &[hub.dir.to_str().unwrap()],
    );
}

#[test]
fn a_path_that_leaves_the_feed_cannot_be_read_as_a_command_line() {
    refused(&["get", "default/../etc/passwd", "-o", "/dev/null"], 2, &[".."]);
    refused(&["rm", "default/a/../../b"], 2, &[".."]);
}
