//! The rules of the house, read from the sources: who may name whom, and how a file begins.
//!
//! Imports run downwards only, each foreign crate has one room, `unsafe` has one file, every file
//! says what it is for. A rule that stands only in a document is broken within a month.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each room, and the rooms that it may name. `cli`, `daemon` and `main` stand above all others.
const ROOMS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["daemon", "config", "model", "signing", "sys", "tls"]),
    (
        "daemon",
        &[
            "origin", "replica", "serve", "upkeep", "bus", "hooks", "disk", "store", "ledger",
            "config", "model", "signing", "sys", "tls",
        ],
    ),
    ("config", &["model"]),
    ("origin", &["bus", "hooks", "disk", "store", "ledger", "model", "sys"]),
    ("replica", &["bus", "hooks", "disk", "store", "ledger", "model", "signing", "sys", "tls"]),
    ("serve", &["bus", "hooks", "disk", "store", "ledger", "model", "sys", "tls"]),
    ("upkeep", &["bus", "disk", "store", "ledger", "model", "sys"]),
    ("bus", &["store", "model", "sys"]),
    ("hooks", &["model", "sys"]),
    ("disk", &["model", "sys"]),
    ("store", &["model", "signing", "sys"]),
    ("ledger", &["model", "sys"]),
    ("model", &[]),
    ("signing", &[]),
    ("sys", &[]),
    ("tls", &["model"]),
];

/// Crates that do not leave one room.
const AT_HOME: &[(&str, &str)] = &[
    ("git2", "store"),
    ("inotify", "disk"),
    ("axum", "serve"),
    ("rusqlite", "ledger"),
    ("quick_xml", "config"),
];

/// A file of more lines has two subjects.
const MAX_LINES: usize = 900;

struct Source {
    path: PathBuf,
    /// Names from `src` down, without the suffix and without `mod`.
    module: Vec<String>,
    text: String,
    /// The text without comments and literals.
    code: String,
}

impl Source {
    fn room(&self) -> &str {
        &self.module[0]
    }
}

#[expect(clippy::unwrap_used, reason = "a source that cannot be read fails the test")]
fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![src.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|suffix| suffix == "rs") {
                let inside = path.strip_prefix(&src).unwrap().with_extension("");
                let names = inside.iter().map(|name| name.to_str().unwrap().to_owned());
                let module = names.filter(|name| name != "mod").collect();
                let text = fs::read_to_string(&path).unwrap();
                let code = code_of(&text);
                sources.push(Source { path, module, text, code });
            }
        }
    }
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

#[test]
fn imports_run_downwards_only() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.room() != "lib") {
        let Some((_, allowed)) = ROOMS.iter().find(|(room, _)| *room == source.room()) else {
            broken.push(format!("{}: the table of rooms does not know it", source.path.display()));
            continue;
        };
        for named in rooms_named(source) {
            if named != source.room() && !allowed.contains(&named.as_str()) {
                broken.push(format!("{} names {named}", source.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn what_has_one_home_is_named_nowhere_else() {
    let mut broken = Vec::new();
    for source in &sources() {
        let place = source.path.display();
        for (name, home) in AT_HOME {
            if source.room() != *home && names_crate(&source.code, name) {
                broken.push(format!("{place} names {name}: its home is {home}"));
            }
        }
        if source.room() != "sys" && words(&source.code).any(|word| word == "unsafe") {
            broken.push(format!("{place} says unsafe: its home is sys"));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for_and_has_one_subject() {
    let mut broken = Vec::new();
    for Source { path, text, .. } in &sources() {
        if !text.starts_with("//! ") {
            broken.push(format!("{} does not open with //!", path.display()));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            broken.push(format!("{} has {lines} lines", path.display()));
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// The rooms that a file names, by `crate::` or by `super::` up to the top.
fn rooms_named(source: &Source) -> Vec<String> {
    let to_top = "super::".repeat(source.module.len());
    let in_tests = "super::".repeat(source.module.len() + 1);
    let mut named = Vec::new();
    for top in ["crate::", "depsync::", &to_top, &in_tests] {
        for (at, _) in source.code.match_indices(top) {
            let before = source.code[..at].chars().next_back().unwrap_or(' ');
            if !is_word(before) && before != ':' {
                named.extend(first_names(&source.code[at + top.len()..]));
            }
        }
    }
    named.retain(|name| ROOMS.iter().any(|(room, _)| room == name));
    named
}

/// `a` of `a::b`, `a` and `b` of `{a::x, b::{y, z}}`.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return words(path).next().map(ToOwned::to_owned).into_iter().collect();
    };
    let mut names = Vec::new();
    let (mut depth, mut item) = (0, String::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(std::mem::take(&mut item)),
            _ => item.push(c),
        }
    }
    names.push(item);
    names.iter().filter_map(|item| words(item).next().map(ToOwned::to_owned)).collect()
}

/// Whether a path begins with a crate's name.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = &code[..at];
        let begins = !before.ends_with(|c| is_word(c) || c == ':' || c == '.');
        let after = &code[at + name.len()..];
        let imported = before.trim_end().ends_with("use") && !after.starts_with(is_word);
        begins && (after.starts_with("::") || imported)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c| !is_word(c)).filter(|word| !word.is_empty())
}

/// Rust without comments, texts and characters.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = literal(rest, code.chars().next_back().is_some_and(is_word));
        let (kept, taken) = match skipped {
            Some(length) => (" ", length),
            None => (&rest[..first.len_utf8()], first.len_utf8()),
        };
        code.push_str(kept);
        rest = &rest[taken..];
    }
    code
}

/// The length of a comment or literal that begins here.
fn literal(rest: &str, in_word: bool) -> Option<usize> {
    let until = |end: &str, from: usize| {
        rest[from..].find(end).map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return Some(until("\n", 2));
    }
    if rest.starts_with("/*") {
        return Some(until("*/", 2));
    }
    if rest.starts_with('"') {
        return Some(quoted(rest, '"'));
    }
    if !in_word && let Some(raw) = rest.strip_prefix(['r', 'b']).or(rest.strip_prefix("br")) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') && !rest.starts_with("b\"") {
            let from = rest.len() - raw.len() + hashes + 1;
            return Some(until(&format!("\"{}", "#".repeat(hashes)), from));
        }
    }
    // A character, not a lifetime: it is escaped, or ends after one.
    let mut ahead = rest.chars().skip(1);
    let escaped = ahead.next() == Some('\\');
    (rest.starts_with('\'') && (escaped || ahead.next() == Some('\''))).then(|| quoted(rest, '\''))
}

fn quoted(rest: &str, end: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == end => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

#[test]
fn the_reader_of_sources_sees_imports_and_nothing_else() {
    let source = |module: &[&str], text: &str| Source {
        path: PathBuf::from("x.rs"),
        module: module.iter().map(ToString::to_string).collect(),
        text: text.to_owned(),
        code: code_of(text),
    };
    for (module, text, named) in [
        (&["disk", "root"][..], "use crate::store::Store;", &["store"][..]),
        (
            &["disk", "root"],
            "use crate::{model::{Oid, sys}, store::x, cli};",
            &["model", "store", "cli"],
        ),
        (&["disk", "root"], "use super::super::store::Store;", &["store"]),
        (
            &["disk"],
            "use super::store::Store; fn f() { crate::ledger::open() }",
            &["ledger", "store"],
        ),
        (&["disk", "root"], "use super::store::Store; mycrate::cli::x; // crate::cli", &[]),
        (
            &["disk"],
            "let a = \"crate::cli\"; let b = r#\"\" crate::cli\"#; let c = '\"'; crate::bus",
            &["bus"],
        ),
        (
            &["disk"],
            "fn f<'a>(x: &'a str) { crate::bus::f('\\'', b'\"') } /* crate::cli */",
            &["bus"],
        ),
    ] {
        assert_eq!(rooms_named(&source(module, text)), named, "{text}");
    }
    let code =
        "use git2; use inotify::X; mygit2::x(); let inotify = axum; crate::axum::y; a.axum::<T>()";
    let named = |name| names_crate(code, name);
    assert_eq!(AT_HOME.iter().filter(|(name, _)| named(name)).count(), 2, "git2 and inotify");
}
