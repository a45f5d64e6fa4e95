//! `import`: from the files of what people used before to a `depsync.toml`.
//!
//! The three conversions are pure: a text, what the operator said, and what is around give a text or all
//! that is missing. What cannot be carried over is told, never guessed; no secret is carried. [`read`] is
//! the thin shell that looks at the disk; here is also what the three have in common.

mod carbon;
mod ego;
mod nodes;

use std::path::{Path, PathBuf};

pub use self::{carbon::carbon, ego::ego, nodes::nodes_list};
use super::{BaseUrl, Error, draft, place, region_xml};
use crate::model::RegionName;

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

#[cfg(test)]
mod tests;
