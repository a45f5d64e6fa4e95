//! `get`: a file or a folder of a feed, from the nearest node that has it.
//!
//! What is brought is whole and has the content that the node promised, or the target is untouched.
//! A folder comes in one version. With `--watch` it is kept fresh until the command is stopped.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use reqwest::Url;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    client::{Client, Connection, block_on},
    download::{self, Done, Download},
    target::{self, FeedFolder},
};
use crate::model::{FeedName, ObjectId, Oid, RelPath};

/// Between two looks of `--watch` where looking fails, at most.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// What to bring, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    from: FeedFolder,
    /// Where to put it [default: its own name, here]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Exactly the version of this commit, 40 hex digits
    #[arg(long, value_name = "COMMIT")]
    at: Option<Oid>,
    /// Ask this node or region, or `primary`, instead of the one that is nearest
    #[arg(long, value_name = "NAME")]
    via: Option<String>,
    /// The resource group of this host, where regions go by these
    #[arg(long, value_name = "GROUP")]
    resource_group: Option<String>,
    /// A folder with all that it holds, into the directory that `--output` names
    #[arg(long)]
    recursive: bool,
    /// Keep it fresh: bring every newer version, until stopped
    #[arg(long, conflicts_with = "at")]
    watch: bool,
    /// Seconds between two looks for a newer version
    #[arg(long, value_name = "SECONDS", default_value_t = 5, requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What lies in a folder of one version.
struct Listed {
    path: RelPath,
    kind: String,
    /// Of a symlink.
    target: Option<String>,
}

impl GetArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        if self.from.path.is_root() && !self.recursive {
            bail!("a whole feed is a folder: say --recursive");
        }
        let target = self.target()?;
        block_on(async {
            if self.watch {
                self.keep_fresh(&client, &target).await
            } else {
                self.once(&client, &target).await
            }
        })
    }

    async fn once(&self, client: &Client, target: &Path) -> Result<()> {
        if self.recursive {
            return self.folder(client, target).await.map(|_| ());
        }
        let done = self.download(client, &self.from.path, target, self.at).run().await?;
        self.tell(target, &done);
        Ok(())
    }

    fn tell(&self, target: &Path, done: &Done) {
        if self.json {
            let answer = json!({
                "path": target.to_string_lossy(),
                "bytes": done.bytes,
                "sha256": done.sha256.to_string(),
                "from": done.from,
                "resumed_at": done.resumed_at,
                "commit": done.commit,
            });
            println!("{answer:#}");
        } else {
            println!("{}: {} bytes from {}", target.display(), done.bytes, done.from);
        }
    }

    /// Looks again and again; a look that fails is said, and the next one comes later.
    async fn keep_fresh(&self, client: &Client, target: &Path) -> Result<()> {
        let interval = Duration::from_secs(self.interval);
        let mut pause = interval;
        let mut have = if self.recursive { None } else { digest_of(target) };
        let mut at = None;
        loop {
            let looked = if self.recursive {
                self.newer_folder(client, target, &mut at).await
            } else {
                self.newer_file(client, target, &mut have).await
            };
            pause = match looked {
                Ok(()) => interval,
                Err(error) => {
                    eprintln!("depsync: {error:#}; looking again");
                    (pause * 2).min(MAX_PAUSE)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn newer_file(
        &self,
        client: &Client,
        target: &Path,
        have: &mut Option<ObjectId>,
    ) -> Result<()> {
        let download = self.download(client, &self.from.path, target, None);
        if *have == Some(download.promised().await?) {
            return Ok(());
        }
        let done = download.run().await?;
        self.tell(target, &done);
        *have = Some(done.sha256);
        Ok(())
    }

    async fn newer_folder(
        &self,
        client: &Client,
        target: &Path,
        at: &mut Option<Oid>,
    ) -> Result<()> {
        if at.is_none() || *at != Some(newest(client, &self.from.feed).await?) {
            *at = Some(self.folder(client, target).await?);
        }
        Ok(())
    }

    /// Brings a folder in one version; says which.
    async fn folder(&self, client: &Client, target: &Path) -> Result<Oid> {
        let commit = match self.at {
            Some(commit) => commit,
            None => newest(client, &self.from.feed).await?,
        };
        make_folder(target)?;
        let mut todo = vec![self.from.path.clone()];
        let (mut files, mut bytes) = (0_u64, 0);
        while let Some(folder) = todo.pop() {
            for item in self.list(client, commit, &folder).await? {
                let to = target.join(below(&self.from.path, &item.path));
                match (&*item.kind, &item.target) {
                    ("folder", _) => {
                        make_folder(&to)?;
                        todo.push(item.path);
                    }
                    ("symlink", Some(leads_to)) => make_link(&to, leads_to)?,
                    _ => {
                        let done =
                            self.download(client, &item.path, &to, Some(commit)).run().await?;
                        (files, bytes) = (files + 1, bytes + done.bytes);
                    }
                }
            }
        }
        if self.json {
            let path = target.to_string_lossy();
            println!(
                "{:#}",
                json!({ "path": path, "files": files, "bytes": bytes, "commit": commit })
            );
        } else {
            println!("{}: {files} files, {bytes} bytes of {commit}", target.display());
        }
        Ok(commit)
    }

    async fn list(&self, client: &Client, commit: Oid, folder: &RelPath) -> Result<Vec<Listed>> {
        let (feed, path) = (&self.from.feed, target::encoded(folder));
        let listing =
            client.list(&format!("/v1/feeds/{feed}/tree/{commit}/{path}"), "entries").await?;
        let entries = listing["entries"].as_array().context("the node lists no entries")?;
        let item = |entry: &Value| {
            let name = match entry["name_b64"].as_str() {
                Some(raw) => BASE64_STANDARD.decode(raw)?,
                None => entry["name"].as_str().unwrap_or_default().as_bytes().to_vec(),
            };
            Ok(Listed {
                path: folder.join(&name)?,
                kind: entry["type"].as_str().unwrap_or_default().to_owned(),
                target: entry["target"].as_str().map(ToOwned::to_owned),
            })
        };
        entries.iter().map(item).collect()
    }

    /// One file: from the nearest node, and where that fails from the one that was asked. A certain
    /// version of it is served by that one; one that is the newest anywhere.
    fn download<'a>(
        &self,
        client: &'a Client,
        path: &RelPath,
        to: &'a Path,
        commit: Option<Oid>,
    ) -> Download<'a> {
        let newest = self.url(client, "files", path);
        let exact = commit.map(|commit| self.url(client, &format!("at/{commit}"), path));
        let mut at_primary = newest.clone();
        at_primary.query_pairs_mut().append_pair("via", "primary");
        let mut wished = newest;
        for (name, value) in [("via", &self.via), ("resource_group", &self.resource_group)] {
            if let Some(value) = value {
                wished.query_pairs_mut().append_pair(name, value);
            }
        }
        let urls = match (exact, self.at.is_some(), self.via.is_some()) {
            (Some(exact), true, _) => vec![exact],
            (Some(exact), false, _) => vec![wished, exact],
            (None, _, true) => vec![wished],
            (None, _, false) => vec![wished, at_primary],
        };
        Download { client, urls, to, commit }
    }

    fn url(&self, client: &Client, between: &str, path: &RelPath) -> Url {
        let (feed, path) = (&self.from.feed, target::encoded(path));
        client.url(&format!("/v1/feeds/{feed}/{between}/{path}")).expect("its parts are encoded")
    }

    fn target(&self) -> Result<PathBuf> {
        let name = Path::new(OsStr::from_bytes(self.from.path.name()));
        let target = match &self.output {
            None if self.from.path.is_root() => PathBuf::from(self.from.feed.as_str()),
            None => name.to_owned(),
            Some(output) if output.is_dir() && !self.recursive => output.join(name),
            Some(output) => output.clone(),
        };
        let folder = download::folder_of(&target);
        if !folder.is_dir() {
            bail!("{} is not a directory that a file can be put into", folder.display());
        }
        Ok(target)
    }
}

/// The newest commit of a feed.
async fn newest(client: &Client, feed: &FeedName) -> Result<Oid> {
    let answer = client.get(client.url(&format!("/v1/feeds/{feed}"))?).await?;
    let commit = answer["commit"].as_str().context("nothing is published in this feed yet")?;
    Ok(commit.parse()?)
}

/// Where a path of the feed lies below the folder that is brought.
fn below<'p>(folder: &RelPath, path: &'p RelPath) -> &'p Path {
    let whole = path.as_path();
    whole.strip_prefix(folder.as_path()).unwrap_or(whole)
}

/// A directory that is one: through a link that lies in its place nothing is written.
fn make_folder(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => bail!("{} is in the way of a directory; remove it", path.display()),
        Err(_) => fs::create_dir(path).with_context(|| format!("cannot make {}", path.display())),
    }
}

fn make_link(path: &Path, leads_to: &str) -> Result<()> {
    if fs::read_link(path).is_ok_and(|found| found == Path::new(leads_to)) {
        return Ok(());
    }
    let temporary =
        download::folder_of(path).join(format!(".depsync-tmp-link-{}", std::process::id()));
    let made = symlink(leads_to, &temporary).and_then(|()| fs::rename(&temporary, path));
    made.with_context(|| format!("cannot make the link {}", path.display()))
}

/// The SHA-256 of a file that is there.
fn digest_of(path: &Path) -> Option<ObjectId> {
    let mut hash = Sha256::new();
    download::hash_rest(&mut File::open(path).ok()?, &mut hash).ok()?;
    Some(ObjectId::from_bytes(hash.finalize().into()))
}
