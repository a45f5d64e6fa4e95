//! The rsync recipe's `nodes-list.txt`: the primary's file, or that of one of the list's nodes.
//!
//! What it prints to be pasted into a shell is quoted.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Around, Dirs, Given, Missing, listen, region, region_name, unusable};
use crate::{
    config::{BaseUrl, DEFAULT_LISTEN, Error, draft::Draft, nodes_list as list},
    model::RegionName,
};

/// Converts a `nodes-list.txt`: the primary's file, with what makes each of the list's nodes a region; or,
/// given a region's name, that node's own file.
///
/// # Errors
/// When it names no place, or the operator names no directory, no such region or no upstream.
pub fn nodes_list(
    text: &str,
    file: &Path,
    given: &Given,
    around: &Around<'_>,
) -> Result<String, Error> {
    let read = list::parse(text).map_err(unusable(file))?;
    let regions = named(&read.places);
    let origin = file.display().to_string();
    let mut draft = Draft { origin, keys: vec![listen(DEFAULT_LISTEN)], ..Draft::default() };
    let mut missing = Missing::default();
    let dir = match &given.name {
        None => primary_of_list(file, given, &mut missing),
        Some(name) => {
            let found = regions.iter().find(|(region, _)| region == name.as_str());
            region_of_list(file, name, found.map(|(_, place)| *place), given, &mut missing)
        }
    };
    missing.checked()?;
    let dirs = Dirs::new(dir, around);
    let upstream = given.upstream.as_ref().filter(|_| given.name.is_some());
    if given.name.is_none() {
        draft.notes = nodes_of_list(&read, &regions, &dirs, given, around);
    }
    draft.region = upstream.map(|_| region(given, around));
    draft.feeds = dirs.feeds(upstream).map_err(unusable(file))?;
    draft.written()
}

/// The directory that the recipe copies from, which the list does not name.
fn primary_of_list(file: &Path, given: &Given, missing: &mut Missing) -> PathBuf {
    if given.dir.is_none() {
        let what = "it names where the recipe copies to, not from where";
        missing.add(file, what, "name the directory with --dir DIR");
    }
    given.dir.clone().unwrap_or_default()
}

/// The directory that the recipe copies to at one node.
fn region_of_list(
    file: &Path,
    name: &RegionName,
    place: Option<&list::Place>,
    given: &Given,
    missing: &mut Missing,
) -> PathBuf {
    let said = format!("{name} takes in what the recipe's host has");
    missing.upstream(file, given, Some(&said));
    if let Some(dir) = &given.dir {
        return dir.clone();
    }
    match place {
        Some(place) if place.path.starts_with('/') => Path::new(&place.path).components().collect(),
        Some(place) => {
            let what = format!("{} is meant from somebody's home", place.path);
            missing.add(file, &what, "name the directory with --dir DIR");
            PathBuf::new()
        }
        None => {
            let what = format!("no place of it is called {name}");
            missing.add(file, &what, "name one of its hosts, or the directory with --dir DIR");
            PathBuf::new()
        }
    }
}

/// Each place under the name of its region: its host's, with a number where that is taken.
fn named(places: &[list::Place]) -> Vec<(String, &list::Place)> {
    let mut seen = BTreeMap::<String, usize>::new();
    let mut named = Vec::with_capacity(places.len());
    for place in places {
        let name = region_name(&place.host);
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        named.push((if *count == 1 { name } else { format!("{name}-{count}") }, place));
    }
    named
}

/// What makes each node of the list a region.
fn nodes_of_list(
    list: &list::NodesList,
    regions: &[(String, &list::Place)],
    dirs: &Dirs,
    given: &Given,
    around: &Around<'_>,
) -> Vec<String> {
    let port = DEFAULT_LISTEN.rsplit(':').next().unwrap_or_default();
    let here = format!("http://{}:{port}", region_name(around.host));
    let url = given.upstream.as_ref().map_or(here.as_str(), BaseUrl::as_str);
    let feed = dirs.name();
    let mut notes = vec![
        "the list's nodes are not pushed to: each runs a region, which fetches. For them this node listens \
         beyond loopback: change `listen`, with [tls], tokens and https below, or with --insecure"
            .to_owned(),
    ];
    for (name, place) in regions {
        let user = place.user.as_ref().map(|user| format!(", as {user}")).unwrap_or_default();
        notes.push(format!(
            "line {}: at {}{user}: depsync region {} --feed {feed} --upstream {url} --name {name}",
            place.line,
            place.host,
            quoted(&place.path)
        ));
    }
    if dirs.tenants.is_some() {
        notes.push(
            "the tenants' folder is a second feed: for both at one node, `depsync import nodes-list \
             --name REGION --upstream URL` there"
                .to_owned(),
        );
    }
    for (line, word) in &list.others {
        notes.push(format!("line {line}: {word} is no place as in user@host:path"));
    }
    notes
}

/// A path as a shell takes it for one word; a home at its beginning is still found.
fn quoted(path: &str) -> String {
    let is_plain =
        |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "~/._-".contains(c));
    match path.split_once('/') {
        _ if is_plain(path) => path.to_owned(),
        Some((home, rest)) if home.starts_with('~') && is_plain(home) => {
            format!("{home}/{}", quoted(rest))
        }
        _ => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_pasted_is_one_word() {
        for (path, word) in [
            ("~/as/worker-1_a.b", "~/as/worker-1_a.b"),
            ("/srv/$(id)", "'/srv/$(id)'"),
            ("/srv/it's;x", r"'/srv/it'\''s;x'"),
            ("~deploy/a&b", "~deploy/'a&b'"),
            ("~$x/a", "'~$x/a'"),
        ] {
            assert_eq!(quoted(path), word);
        }
    }
}
