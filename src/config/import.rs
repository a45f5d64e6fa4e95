//! `import`: from the files of what people used before to a `depsync.toml`.
//!
//! The three conversions are pure: a text, what the operator said, and what is around give a text or all
//! that is missing. What cannot be carried over is told, never guessed; no secret is carried. [`read`] is
//! the thin shell that looks at the disk.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    BaseUrl, DEFAULT_LISTEN, Error, carbon_xml,
    draft::{self, Draft},
    nodes_list, place, region_xml, rs_xml,
};
use crate::model::RegionName;

/// A poll may be so long; see `poll` in depsync.toml.
const LONGEST_POLL: u64 = 86_400;
/// Lines about unknown elements of one file; it is another kind of file then.
const MAX_UNKNOWN: usize = 100;

/// What the operator said, where the file does not.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// The deployment directory.
    pub dir: Option<PathBuf>,
    /// The node to mirror from.
    pub upstream: Option<BaseUrl>,
    /// The region that the node serves.
    pub name: Option<RegionName>,
}

/// What a conversion may ask about this machine.
pub struct Around<'a> {
    /// The host's name.
    pub host: &'a str,
    /// What `${x}` stands for.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Whether there is such a directory.
    pub is_dir: &'a dyn Fn(&Path) -> bool,
}

/// Whose files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `carbon.xml` of a WSO2 server.
    Carbon,
    /// `rs.xml` and `region.xml` of EGO.
    Ego,
    /// `nodes-list.txt` of the rsync recipe.
    NodesList,
}

/// Reads the file, or the usual one, and converts it.
///
/// # Errors
/// When it cannot be read, or something is missing: all of that, a line each.
pub fn read(kind: Kind, file: Option<&Path>, given: &Given) -> Result<String, Error> {
    let file = match file {
        Some(file) => std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
        None => usual_file(kind)?,
    };
    let text = read_text(&file)?;
    let host = place::host_name();
    let home =
        file.ancestors().nth(3).filter(|home| file.starts_with(home.join("repository/conf")));
    let variable = |name: &str| match (name, home) {
        ("carbon.home", Some(home)) => home.to_str().map(ToOwned::to_owned),
        _ => place::variable(name)
            .or_else(|| place::variable(&name.to_uppercase().replace('.', "_"))),
    };
    let around = Around { host: &host, variable: &variable, is_dir: &|path| path.is_dir() };
    match kind {
        Kind::Carbon => carbon(&text, &file, given, &around),
        Kind::NodesList => nodes_list(&text, &file, given, &around),
        Kind::Ego => {
            let table = region_table(&file);
            let table = table.as_deref().map(|path| Ok((read_text(path)?, path))).transpose()?;
            let table = table.as_ref().map(|(text, path)| (text.as_str(), *path));
            ego(&text, &file, table, given, &around)
        }
    }
}

/// Where these files lie at home.
fn usual_file(kind: Kind) -> Result<PathBuf, Error> {
    let root = |name: &str, rest: &str| {
        let unset = || Error::of([format!("name the file; or set {name}, to look below it")]);
        place::variable(name).map(|root| Path::new(&root).join(rest)).ok_or_else(unset)
    };
    match kind {
        Kind::Carbon => root("CARBON_HOME", "repository/conf/carbon.xml"),
        Kind::Ego => root("EGO_CONFDIR", "eservice/esc/conf/services/rs.xml"),
        Kind::NodesList => Ok(PathBuf::from("nodes-list.txt")),
    }
}

/// The region table that belongs to an `rs.xml`, where there is one: beside the file, or else EGO's.
fn region_table(rs: &Path) -> Option<PathBuf> {
    let home = place::variable("EGO_CONFDIR");
    let home = home.map(|home| Path::new(&home).join("../../eservice/rs/conf/region.xml"));
    let candidates = [rs.with_file_name("region.xml")].into_iter().chain(home);
    candidates.filter_map(|path| path.canonicalize().ok()).find(|path| path.is_file())
}

/// A text in UTF-8 or, as WSO2 ships it, in Latin-1.
fn read_text(file: &Path) -> Result<String, Error> {
    let wrong = |why: String| Error::of([format!("{}: {why}", file.display())]);
    let bytes = region_xml::read_bytes(file);
    let bytes = bytes.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| error.as_bytes().iter().map(|&byte| char::from(byte)).collect()))
}

/// Where a WSO2 server has its artifacts, below its home.
const SERVER: &str = "repository/deployment/server";

/// The directory of a server's artifacts, and beside it those of its tenants.
struct Dirs {
    server: PathBuf,
    tenants: Option<PathBuf>,
}

impl Dirs {
    fn new(server: PathBuf, around: &Around<'_>) -> Self {
        let repository = server.ancestors().nth(2).filter(|_| server.ends_with(SERVER));
        let tenants = repository.and_then(|repository| {
            let both = ["tenants", "tenant"].map(|name| repository.join(name));
            both.into_iter().find(|dir| (around.is_dir)(dir))
        });
        Dirs { server, tenants }
    }

    /// What the feed of the server's directory is called.
    fn name(&self) -> &'static str {
        if self.server.ends_with(SERVER) { "server" } else { "default" }
    }

    /// The feeds, with further keys for each.
    fn feeds(&self, upstream: Option<&BaseUrl>) -> Result<Vec<Vec<draft::Key>>, String> {
        let dirs = [(self.name(), Some(&self.server)), ("tenants", self.tenants.as_ref())];
        let feeds = dirs.into_iter().filter_map(|(name, dir)| Some((name, dir?)));
        let feed = |(name, dir): (&str, &PathBuf)| {
            let mut keys = vec![draft::text("name", name, ""), draft::path("dir", dir, "")?];
            if name == "server" {
                keys.push(draft::text(
                    "profile",
                    "wso2",
                    "leaves out what the server unpacks itself",
                ));
            }
            keys.extend(upstream.map(|url| draft::text("upstream", url.as_str(), "")));
            Ok(keys)
        };
        feeds.map(feed).collect()
    }
}

/// What is missing, and how to say it.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    fn add(&mut self, file: &Path, what: &str, how: &str) {
        self.0.push(format!("{}: {what}: {how}", file.display()));
    }

    /// Where a region is wanted, by what the file says or by its name, no file says whose.
    fn upstream(&mut self, file: &Path, given: &Given, said: Option<&str>) {
        let named = given.name.as_ref().map(|_| "a region mirrors another node");
        if let (Some(what), None) = (said.or(named), &given.upstream) {
            self.add(file, what, "name that with --upstream URL");
        }
    }

    fn checked(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::of(self.0)) }
    }
}

fn unusable(file: &Path) -> impl Fn(String) -> Error {
    move |why| Error::of([format!("{}: {why}", file.display())])
}

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

fn listen(address: &str) -> draft::Key {
    draft::text("listen", address, "beyond loopback with [tls] and tokens, or --insecure")
}

/// The region's name: as given, else the host's.
fn region(given: &Given, around: &Around<'_>) -> draft::Key {
    match &given.name {
        Some(name) => draft::text("name", name.as_str(), ""),
        None => {
            draft::text("name", region_name(around.host), "as this host; --name chooses another")
        }
    }
}

/// A host's name as a region's.
fn region_name(host: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = host.chars().map(|c| if fits(c) { c } else { '-' }).take(60).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "region".to_owned() } else { name.to_owned() }
}

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
    let list = nodes_list::parse(text).map_err(unusable(file))?;
    let regions = named(&list.places);
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
        draft.notes = nodes_of_list(&list, &regions, &dirs, given, around);
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
    place: Option<&nodes_list::Place>,
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
fn named(places: &[nodes_list::Place]) -> Vec<(String, &nodes_list::Place)> {
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
    list: &nodes_list::NodesList,
    regions: &[(String, &nodes_list::Place)],
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
mod tests;
