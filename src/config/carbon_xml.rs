//! The reader of a WSO2 server's `carbon.xml`: what its deployment synchroniser does, and where.
//!
//! As the server reads it: dotted local names below the root, namespaces ignored, the first value wins.
//! What means nothing here is kept with its line, to be told. `${x}` stays as it is written. No entity
//! beyond XML's own, no DTD and nothing outside the file is ever resolved.

use std::path::Path;

use quick_xml::{Reader, events::Event};

use super::region_xml::{self, Error};

const BLOCK: &str = "DeploymentSynchronizer";
/// Elements inside each other; the server's own file has eight.
const MAX_DEPTH: usize = 64;
/// Keys of the block that are told of; the server knows about a dozen.
const MAX_KEYS: usize = 1_000;

/// What a `carbon.xml` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Carbon {
    /// Whether the synchroniser is switched on.
    pub(super) enabled: bool,
    /// Whether this server commits what changes in its directory.
    pub(super) auto_commit: bool,
    /// Whether it brings itself up to date.
    pub(super) auto_checkout: bool,
    /// `AutoSyncPeriod`, in seconds.
    pub(super) sync_period: Option<u64>,
    /// The deployment directory as it is written, perhaps with `${x}` in it.
    pub(super) location: Option<String>,
    /// What else the block says, in its order.
    pub(super) others: Vec<Key>,
}

/// A key of the block, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Key {
    /// In the file, counted from 1.
    pub(super) line: usize,
    /// Its local name, dotted below the block.
    pub(super) name: String,
    /// Trimmed.
    pub(super) value: String,
}

/// Reads the text of a `carbon.xml`; `file` is for messages.
///
/// # Errors
/// When it is not well-formed, has no synchroniser, or says of it what cannot be.
pub(super) fn parse(text: &str, file: &Path) -> Result<Carbon, Error> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let wrong = |(at, reason)| region_xml::wrong(text, file, at, reason);
    let mut carbon = Carbon::default();
    let mut seen: Vec<String> = Vec::new();
    for Leaf { at, path, value } in leaves(text).map_err(wrong)? {
        if seen.contains(&path) {
            continue;
        }
        if seen.len() == MAX_KEYS {
            return Err(wrong((at, format!("there are more than {MAX_KEYS} keys"))));
        }
        let line = region_xml::line(text, at);
        carbon.take(&path, value, line).map_err(|reason| wrong((at, reason)))?;
        seen.push(path);
    }
    if seen.iter().any(|path| in_block(path).is_some()) {
        return Ok(carbon);
    }
    Err(wrong((
        0,
        format!("there is no <{BLOCK}>; if it stands in a comment, take it out of that"),
    )))
}

impl Carbon {
    fn take(&mut self, path: &str, value: String, line: usize) -> Result<(), String> {
        match (path, in_block(path)) {
            ("Axis2Config.RepositoryLocation", _) => self.location = Some(value),
            (_, Some("Enabled")) => self.enabled = truth(&value),
            (_, Some("AutoCommit")) => self.auto_commit = truth(&value),
            (_, Some("AutoCheckout")) => self.auto_checkout = truth(&value),
            (_, Some("AutoSyncPeriod")) => {
                let bad = || format!("AutoSyncPeriod: \"{value}\" is not a number of seconds");
                self.sync_period = Some(value.parse().map_err(|_| bad())?);
            }
            (_, Some(name)) if !name.is_empty() => {
                self.others.push(Key { line, name: name.to_owned(), value });
            }
            _ => {}
        }
        Ok(())
    }
}

/// A path's rest below the block; empty: the block itself. None: it lies elsewhere.
fn in_block(path: &str) -> Option<&str> {
    let rest = path.strip_prefix(BLOCK)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}

/// As the server reads it: whatever is not "true" is false.
fn truth(value: &str) -> bool {
    value.eq_ignore_ascii_case("true")
}

/// A byte position, and what is wrong there.
type Wrong = (usize, String);

/// An element with text in it, by its dotted path below the root.
struct Leaf {
    at: usize,
    path: String,
    value: String,
}

/// The elements that say something about the synchroniser, in their order.
fn leaves(text: &str) -> Result<Vec<Leaf>, Wrong> {
    let mut xml = Reader::from_str(text);
    xml.config_mut().expand_empty_elements = true;
    let mut found: Vec<Leaf> = Vec::new();
    let mut above: Vec<String> = Vec::new();
    loop {
        let at = usize::try_from(xml.buffer_position()).unwrap_or(text.len());
        let event =
            xml.read_event().map_err(|error| (at, format!("not well-formed XML: {error}")))?;
        match event {
            Event::Start(tag) => {
                if above.len() == MAX_DEPTH {
                    return Err((at, format!("elements are nested deeper than {MAX_DEPTH}")));
                }
                above.push(tag.local_name().as_ref().to_owned());
                let path = path(&above);
                if in_block(&path).is_some() || path == "Axis2Config.RepositoryLocation" {
                    found.push(Leaf { at, path, value: String::new() });
                }
            }
            Event::End(_) => {
                above.pop();
            }
            Event::Text(part) => push(&mut found, &above, &part),
            Event::CData(part) => push(&mut found, &above, &part),
            Event::GeneralRef(part) => {
                let inside = found.last().is_some_and(|leaf| leaf.path == path(&above));
                match region_xml::reference(&part) {
                    Ok(known) => push(&mut found, &above, &known),
                    Err(reason) if inside => return Err((at, reason)),
                    Err(_) => {}
                }
            }
            Event::Eof if above.is_empty() => break,
            Event::Eof => return Err((at, "the file ends inside an element".to_owned())),
            _ => {}
        }
    }
    for leaf in &mut found {
        leaf.value = leaf.value.trim().to_owned();
    }
    Ok(found)
}

/// The dotted path below the root; of the block as a file of its own, the same.
fn path(above: &[String]) -> String {
    match above.first() {
        Some(root) if root != BLOCK => above[1..].join("."),
        _ => above.join("."),
    }
}

fn push(found: &mut [Leaf], above: &[String], text: &str) {
    if let Some(leaf) = found.last_mut().filter(|leaf| leaf.path == path(above)) {
        leaf.value.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Carbon, String> {
        super::parse(text, Path::new("carbon.xml")).map_err(|error| error.to_string())
    }

    /// As the server ships it, in its namespace.
    const SHIPPED: &str = include_str!("../../tests/data/import/carbon.xml");

    #[test]
    fn the_shipped_block_is_read() {
        let carbon = parse(SHIPPED).unwrap();
        assert!(!carbon.enabled && !carbon.auto_commit && carbon.auto_checkout);
        assert_eq!(
            carbon.location.as_deref(),
            Some("${carbon.home}/repository/deployment/server/")
        );
        let names: Vec<_> = carbon.others.iter().map(|key| key.name.as_str()).collect();
        let all = ["RepositoryType", "SvnUrl", "SvnUser", "SvnPassword", "SvnUrlAppendTenantId"];
        assert_eq!(names, all);
    }

    #[test]
    fn the_first_value_wins_and_namespaces_do_not_count() {
        let carbon = parse(
            "<c:Server xmlns:c='x'><c:DeploymentSynchronizer><Enabled> TRUE </Enabled>\n\
             <AutoSyncPeriod>6&#48;</AutoSyncPeriod><AutoSyncPeriod>x</AutoSyncPeriod>\
             <AutoCommit><![CDATA[true]]></AutoCommit><A><B>c</B></A><Empty/>\
             </c:DeploymentSynchronizer></c:Server>",
        )
        .unwrap();
        assert!(carbon.enabled && carbon.auto_commit && !carbon.auto_checkout);
        assert_eq!(carbon.sync_period, Some(60));
        assert!(carbon.others.contains(&Key { line: 2, name: "A.B".into(), value: "c".into() }));
        let beside = "<S><DeploymentSynchronizer/><DeploymentSynchronizerEnabled>true\
                      </DeploymentSynchronizerEnabled></S>";
        assert_eq!(parse(beside), Ok(Carbon::default()), "a sibling is not in the block");
        let alone =
            parse("<DeploymentSynchronizer><Enabled>true</Enabled></DeploymentSynchronizer>");
        assert!(alone.unwrap().enabled);
    }

    #[test]
    fn what_cannot_be_read_names_its_place() {
        for (text, part) in [
            ("<Server/>", "carbon.xml:1:1: there is no <DeploymentSynchronizer>"),
            ("<S><DeploymentSynchronizers>x</DeploymentSynchronizers></S>", "there is no <"),
            ("<Server><!-- <DeploymentSynchronizer/> --></Server>", "take it out"),
            ("<Server>", "ends inside an element"),
            ("<a></b>", "not well-formed"),
            ("<S><DeploymentSynchronizer>\n<AutoSyncPeriod>soon</AutoSyncPeriod>", "ends inside"),
            (
                "<DeploymentSynchronizer>\n<AutoSyncPeriod>soon</AutoSyncPeriod></DeploymentSynchronizer>",
                "carbon.xml:2:1: AutoSyncPeriod: \"soon\" is not a number",
            ),
            (
                "<DeploymentSynchronizer><SvnUrl>&x;</SvnUrl></DeploymentSynchronizer>",
                "the entity \"&x;\"",
            ),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(part), "{text}: {said}");
        }
        let deep = "<a>".repeat(100);
        assert!(parse(&deep).unwrap_err().contains("nested deeper"));
    }
}
