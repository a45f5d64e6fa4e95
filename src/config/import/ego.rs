//! EGO's `rs.xml`, and its `region.xml` where that is one that we can read.

use std::path::Path;

use super::{Around, Dirs, Given, Missing, listen, region, unusable};
use crate::config::{
    DEFAULT_LISTEN, Error,
    draft::{self, Draft},
    region_xml, rs_xml,
};

/// Lines about unknown elements of one file; it is another kind of file then.
const MAX_UNKNOWN: usize = 100;

/// Converts EGO's `rs.xml`, and its `region.xml` where there is one.
///
/// # Errors
/// When one is not well-formed, or the operator names no directory.
pub fn ego(
    text: &str,
    file: &Path,
    table: Option<(&str, &Path)>,
    given: &Given,
    around: &Around<'_>,
) -> Result<String, Error> {
    let rs = rs_xml::parse(text, file).map_err(|error| Error::of([error.to_string()]))?;
    let mut missing = Missing::default();
    if given.dir.is_none() {
        missing.add(file, "it names no deployment directory", "name it with --dir DIR");
    }
    missing.upstream(file, given, None);
    missing.checked()?;
    let mut draft =
        Draft { origin: file.display().to_string(), notes: rs.unused, ..Draft::default() };
    let address = rs.port.map_or(DEFAULT_LISTEN.to_owned(), |port| format!("127.0.0.1:{port}"));
    draft.keys.push(listen(&address));
    if let Some(dir) = &rs.state_dir {
        let key = draft::path("state_dir", dir, "its RS_STORAGE_DIR; best an empty folder");
        draft.keys.push(key.map_err(unusable(file))?);
    }
    if let Some((text, path)) = table {
        match region_xml::parse(text, path) {
            Ok(_) => draft.keys.push(draft::path("regions", path, "").map_err(unusable(path))?),
            Err(error) => draft.notes.extend(unknown_elements(text, path, &error)),
        }
    }
    let upstream = given.upstream.as_ref();
    draft.region = upstream.map(|_| region(given, around));
    let dirs = Dirs::new(given.dir.clone().unwrap_or_default(), around);
    draft.feeds = dirs.feeds(upstream).map_err(unusable(file))?;
    let rate = rs.downloads.map(|rate| rate.to_string());
    draft
        .bandwidth
        .extend(rate.map(|rate| draft::text("downloads", rate, "its DEPSYNC_DOWNLOAD_RATE")));
    let most = rs.max_downloads;
    draft
        .bandwidth
        .extend(most.map(|most| draft::number("max_downloads", most, "its RS_MAX_DOWNLOADS")));
    draft.written()
}

/// Why a table of regions is left out, and what in it is not known.
fn unknown_elements(text: &str, path: &Path, error: &region_xml::Error) -> Vec<String> {
    let name = path.display();
    let mut notes = vec![format!(
        "{error}: the table of regions is left out; write it as conf/region.xml shows, and name it \
         with `regions`"
    )];
    for (line, element) in region_xml::unknown(text).take(MAX_UNKNOWN) {
        notes.push(format!("{name}:{line}: <{element}> is not known"));
    }
    notes
}
