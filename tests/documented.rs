//! Every command, option, key of the configuration and `--json` is documented.
//!
//! `docs/commands.md` is made from the commands themselves: `UPDATE_DOCS=1 cargo test --test documented`
//! writes it again. Routes and metrics are compared with their documents where they are served.
#![expect(clippy::panic, clippy::unwrap_used, reason = "a test fails by them")]

use std::{collections::BTreeSet, fmt::Write, fs, path::PathBuf};

use clap::{Arg, Command, CommandFactory};
use depsync::{
    cli::Cli,
    config::{self, Consent},
};

fn document(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Options of every command that talks to a node; they stand once, at the top.
const CONNECTION: [&str; 6] = ["url", "token-file", "ca", "cert", "key", "state"];

fn commands() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// Every command that does something, with its whole name.
fn leaves(command: &Command, name: &str, found: &mut Vec<(String, Command)>) {
    let mut inner = command.get_subcommands().peekable();
    if inner.peek().is_none() {
        found.push((name.to_owned(), command.clone()));
    }
    for inner in inner {
        leaves(inner, &format!("{name} {}", inner.get_name()), found);
    }
}

fn all() -> Vec<(String, Command)> {
    let mut found = Vec::new();
    leaves(&commands(), "depsync", &mut found);
    assert!(found.len() > 35, "the commands were not found");
    found
}

fn talks(command: &Command) -> bool {
    command.get_arguments().any(|argument| argument.get_long() == Some("url"))
}

/// What is not the same everywhere.
fn arguments(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_connection =
        |argument: &Arg| argument.get_long().is_some_and(|name| CONNECTION.contains(&name));
    let leave_out = talks(command);
    command.get_arguments().filter(move |argument| {
        let everywhere = ["help", "version"].contains(&argument.get_id().as_str());
        !everywhere && (!leave_out || !is_connection(argument))
    })
}

/// A row: how it is written, what it does, what there is to choose from, what it is by default.
fn row(argument: &Arg) -> String {
    let value = argument
        .get_value_names()
        .map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let takes = argument.get_num_args().is_some_and(|range| range.takes_values());
    let value = value.filter(|_| takes).unwrap_or_default();
    let mut name = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (_, Some(long)) => format!("--{long}"),
        _ => String::new(),
    };
    if !value.is_empty() {
        name = if name.is_empty() { value } else { format!("{name} {value}") };
    }
    let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    assert!(!help.is_empty(), "{name} has no help");
    let choices: Vec<String> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set() && takes)
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}`: {help}", value.get_name()),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !choices.is_empty() {
        let _ = write!(help, " ({})", choices.join("; "));
    }
    let usual: Vec<_> =
        argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if !usual.is_empty() && takes {
        let _ = write!(help, " [default: {}]", usual.join(" "));
    }
    format!(
        "| `{}` | {} |\n",
        name.replace('|', "\\|"),
        help.replace('|', "\\|").replace('\n', " ")
    )
}

fn commands_document() -> String {
    let mut out = "# Commands\n\nMade from the program itself: `depsync help COMMAND` says the same, and \
                   `depsync man DIR` writes it as\nmanual pages. `depsync completions SHELL` prints what a \
                   shell needs to complete them.\n\nCommands that talk to a node also take:\n\n| option | \
                   what |\n|---|---|\n"
        .to_owned();
    let all = all();
    let (_, status) = all.iter().find(|(name, _)| name == "depsync status").unwrap();
    for name in CONNECTION {
        let found = status.get_arguments().find(|argument| argument.get_long() == Some(name));
        out.push_str(&row(found.unwrap()));
    }
    for (name, command) in &all {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty(), "{name} says nothing of itself");
        let _ = write!(out, "\n## {name}\n\n{about}.");
        if talks(command) {
            out.push_str(" Talks to a node.");
        }
        out.push('\n');
        let rows: String = arguments(command).map(row).collect();
        if !rows.is_empty() {
            let _ = write!(out, "\n| argument | what |\n|---|---|\n{rows}");
        }
    }
    out
}

#[test]
fn every_command_and_option_is_documented() {
    let made = commands_document();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    let differs = made.lines().zip(there.lines()).find(|(made, there)| made != there);
    assert!(
        made == there,
        "docs/commands.md is not what the commands say, first here: {differs:?}; \
         `UPDATE_DOCS=1 cargo test --test documented` writes it again"
    );
}

#[test]
fn every_json_is_documented() {
    let document = document("json.md");
    let sections: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .flat_map(|names| names.split(", "))
        .collect();
    let mut missing: Vec<String> = Vec::new();
    for (name, command) in all() {
        let has_json = command.get_arguments().any(|argument| argument.get_long() == Some("json"));
        let short = name.trim_start_matches("depsync ");
        if has_json != sections.contains(short) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "docs/json.md has no section of, or one too many: {missing:?}");
}

/// The keys that are known where this text has an unknown one; none where no table may stand.
fn keys_of(text: &str) -> Option<Vec<String>> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    let said = config::from_file(file.path(), Consent::default()).unwrap_err().to_string();
    let line = said.lines().find(|line| line.contains("unknown key `not_a_key`, expected"))?;
    let (_, expected) = line.split_once(", expected")?;
    Some(expected.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect())
}

/// Every key below a table, with its whole name; `place` makes a text of what stands in that table.
fn keys(place: &dyn Fn(&str) -> String, name: &str, found: &mut Vec<String>) {
    let known = keys_of(&place("not_a_key = 1")).unwrap_or_else(|| panic!("{name} takes no keys"));
    for key in known {
        let whole = format!("{name}{key}");
        let table = |inside: &str| place(&format!("{key} = {{ {inside} }}"));
        let list = |inside: &str| place(&format!("{key} = [{{ {inside} }}]"));
        if keys_of(&table("not_a_key = 1")).is_some() {
            keys(&table, &format!("{whole}."), found);
        } else if keys_of(&list("not_a_key = 1")).is_some() {
            keys(&list, &format!("{whole}."), found);
        } else {
            found.push(whole);
        }
    }
}

/// The keys that a file names, switched on or in a comment, each with its table.
fn named(file: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut table = String::new();
    for line in file.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if line.starts_with('[') {
            table = format!("{}.", line.trim_matches(['[', ']']));
            continue;
        }
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let inside = value.strip_prefix("{ ").into_iter().flat_map(|inside| inside.split(", "));
        let inside = inside.filter_map(|pair| pair.split_once(" = "));
        found.extend(inside.map(|(name, _)| format!("{table}{key}.{name}")));
        found.insert(format!("{table}{key}"));
    }
    found
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let mut found = Vec::new();
    keys(&|inside: &str| inside.to_owned(), "", &mut found);
    for sure in ["listen", "tls.cert", "feed.guard.window", "bandwidth.window.for", "feed.keep.age"]
    {
        assert!(found.iter().any(|key| key == sure), "{sure} was not found among {found:?}");
    }
    let document = document("configuration.md");
    let sample =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf/depsync.toml"))
            .unwrap();
    let sample = named(&sample);
    let mut missing = Vec::new();
    for key in &found {
        if !document.lines().any(|line| line.starts_with(&format!("| `{key}` |"))) {
            missing.push(format!("docs/configuration.md: {key}"));
        }
        if !sample.contains(key) {
            missing.push(format!("conf/depsync.toml: {key}"));
        }
    }
    assert!(missing.is_empty(), "not documented:\n{}", missing.join("\n"));
}
