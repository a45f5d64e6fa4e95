//! A WSO2 server's `carbon.xml`: who committed becomes the primary, who checked out a region.
//!
//! Keys of the synchroniser without a counterpart are told with their lines, and what to do about them.

use std::path::{Path, PathBuf};

use super::{Around, Dirs, Given, Missing, listen, region, unusable};
use crate::config::{
    DEFAULT_LISTEN, Error, carbon_xml,
    draft::{self, Draft},
};

/// A poll may be so long; see `poll` in depsync.toml.
const LONGEST_POLL: u64 = 86_400;

/// Converts a `carbon.xml`.
///
/// # Errors
/// When it has no synchroniser, is not well-formed, or names no directory or no upstream and the operator
/// does not either.
pub fn carbon(
    text: &str,
    file: &Path,
    given: &Given,
    around: &Around<'_>,
) -> Result<String, Error> {
    let carbon = carbon_xml::parse(text, file).map_err(|error| Error::of([error.to_string()]))?;
    let mut missing = Missing::default();
    let dir = given.dir.clone().or_else(|| {
        let said = match carbon.location.as_deref().map(|location| resolved(location, around)) {
            Some(Ok(dir)) if dir.is_absolute() => return Some(dir),
            Some(Ok(dir)) => format!("its RepositoryLocation, {}, is relative", dir.display()),
            Some(Err(variable)) => format!("nothing here says what ${{{variable}}} is"),
            None => "it names no deployment directory".to_owned(),
        };
        missing.add(file, &said, "name the directory with --dir DIR");
        None
    });
    let said = (!carbon.auto_commit).then_some("this server takes in what another one commits");
    missing.upstream(file, given, said);
    missing.checked()?;
    let dirs = Dirs::new(dir.unwrap_or_default(), around);
    let mut draft = Draft { origin: file.display().to_string(), ..Draft::default() };
    draft.notes = carbon_notes(&carbon, given, &dirs);
    draft.keys = vec![listen(DEFAULT_LISTEN)];
    if let Some(secs) = carbon.sync_period {
        let poll = secs.clamp(1, LONGEST_POLL);
        draft.keys.push(draft::text("poll", format!("{poll}s"), "its AutoSyncPeriod"));
    }
    let upstream = given.upstream.as_ref();
    draft.region = upstream.map(|_| region(given, around));
    draft.feeds = dirs.feeds(upstream).map_err(unusable(file))?;
    draft.written()
}

/// A path with `${x}` put in; the name of what nobody knows.
fn resolved(mut text: &str, around: &Around<'_>) -> Result<PathBuf, String> {
    let mut whole = String::new();
    while let Some((before, rest)) = text.split_once("${") {
        let (name, after) = rest.split_once('}').ok_or_else(|| rest.to_owned())?;
        whole.push_str(before);
        whole.push_str(&(around.variable)(name).ok_or_else(|| name.to_owned())?);
        text = after;
    }
    whole.push_str(text);
    // Without slashes that mean nothing.
    Ok(Path::new(&whole).components().collect())
}

fn carbon_notes(carbon: &carbon_xml::Carbon, given: &Given, dirs: &Dirs) -> Vec<String> {
    let mut notes = Vec::new();
    if !carbon.enabled {
        notes.push("the synchroniser is switched off there (Enabled): here it is on".to_owned());
    }
    match (carbon.auto_commit, carbon.auto_checkout, &given.upstream) {
        (true, _, Some(_)) => notes.push(
            "AutoCommit: one node owns the feed, and --upstream says that it is another; who works \
             here uploads with `depsync put`"
                .to_owned(),
        ),
        (true, ..) => notes.push(
            "AutoCommit: this node owns the feed. Where several servers commit, choose one; import \
             the others' files with --upstream and its URL"
                .to_owned(),
        ),
        (false, false, _) => notes.push(
            "neither AutoCommit nor AutoCheckout is on there; it becomes a region, which takes in \
             what the upstream has"
                .to_owned(),
        ),
        _ => {}
    }
    for key in &carbon.others {
        notes.push(format!("line {}: {}", key.line, not_used(key, dirs)));
    }
    if carbon.sync_period.is_some_and(|secs| !(1..=LONGEST_POLL).contains(&secs)) {
        notes.push(format!("AutoSyncPeriod is brought between 1 and {LONGEST_POLL} s"));
    }
    notes
}

/// Why a key of the synchroniser has no counterpart, and what to do about it.
fn not_used(key: &carbon_xml::Key, dirs: &Dirs) -> String {
    let carbon_xml::Key { name, value, .. } = key;
    let dir = dirs.server.display();
    match name.as_str() {
        "RepositoryType" => format!(
            "RepositoryType {value}: not carried over, since the primary holds the repository. To \
             bring the old content in, put it once into {dir} at the primary: with svn, `svn export \
             --force URL DIR`; with git, `git archive HEAD | tar -x -C DIR` in a clone; from a \
             registry, by the server's own checkout"
        ),
        "SvnUrl" | "GitUrl" | "GitRepoUrl" => {
            format!("{name} {}: where the old content is", without_user(value))
        }
        "UseEventing" => "UseEventing: not needed, every change is announced at once".to_owned(),
        "MandatoryRepositoryUpdateInterval" => {
            "MandatoryRepositoryUpdateInterval: not needed, since heartbeats carry the head"
                .to_owned()
        }
        "SvnUrlAppendTenantId" => {
            "SvnUrlAppendTenantId: not needed, a tenant is a folder of the feed".to_owned()
        }
        name if ["user", "password"].iter().any(|word| name.to_lowercase().contains(word)) => {
            format!("{name}: not carried over; nodes let each other in by tokens (`depsync token`)")
        }
        name => format!("{name} is not used"),
    }
}

/// A URL without the name and the password in it.
fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => url.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_without_who_logs_in() {
        for (url, told) in [
            ("https://me:secret@svn.example/x@y", "https://svn.example/x@y"),
            ("svn.example", "svn.example"),
            ("git@host:x", "host:x"),
        ] {
            assert_eq!(without_user(url), told);
        }
    }
}
