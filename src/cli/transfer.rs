//! `get`, `put` and `rm`: one file of a feed, from or to a node.
//!
//! What is brought is whole and has the content that the node promised, or the target is untouched.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::Args;
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio_util::io::ReaderStream;

use super::{
    client::{Client, Connection, block_on},
    download::{self, Download},
    target::FeedPath,
};
use crate::model::{ObjectId, Oid};

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// What to bring, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    from: FeedPath,
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
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl GetArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let target = self.target()?;
        let download = Download { client: &client, url: self.url(&client)?, to: &target };
        let done = block_on(download.run())?;
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
        Ok(())
    }

    fn url(&self, client: &Client) -> Result<Url> {
        let between = self.at.map_or("files/".to_owned(), |commit| format!("at/{commit}/"));
        let mut url = client.url(&format!("/v1/feeds/{}", self.from.in_url(&between)))?;
        let wishes = [("via", &self.via), ("resource_group", &self.resource_group)];
        for (name, value) in wishes {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        Ok(url)
    }

    fn target(&self) -> Result<PathBuf> {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

        let name = Path::new(OsStr::from_bytes(self.from.path.name()));
        let target = match &self.output {
            None => name.to_owned(),
            Some(output) if output.is_dir() => output.join(name),
            Some(output) => output.clone(),
        };
        let folder = download::folder_of(&target);
        if !folder.is_dir() {
            bail!("{} is not a directory that a file can be put into", folder.display());
        }
        Ok(target)
    }
}

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// The file to upload
    file: PathBuf,
    /// Where it goes, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    to: FeedPath,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl PutArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let (digest, size) = digest_of(&self.file)?;
        let url = client.url(&format!("/v1/feeds/{}", self.to.in_url("files/")))?;
        let sent = async {
            // Opened again for each request, since a region sends us on to the primary.
            let body = || {
                std::fs::File::open(&self.file).map(|file| {
                    Body::wrap_stream(ReaderStream::new(tokio::fs::File::from_std(file)))
                })
            };
            body().with_context(|| format!("cannot read {}", self.file.display()))?;
            let request = client.send(Method::PUT, url, |request| {
                let request = request
                    .header(CONTENT_LENGTH, size)
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header("Repr-Digest", repr_digest(&digest));
                match body() {
                    Ok(body) => request.body(body),
                    Err(_) => request,
                }
            });
            request.await
        };
        block_on(sent)?;
        if self.json {
            println!(
                "{:#}",
                json!({ "path": self.to.path.to_text(), "bytes": size, "sha256": digest })
            );
        } else {
            println!("{}: {size} bytes, sha256 {digest}", self.to);
        }
        Ok(())
    }
}

/// The SHA-256 and the size of a regular file.
fn digest_of(path: &Path) -> Result<(ObjectId, u64)> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        bail!("{} is not a regular file", path.display());
    }
    let mut hash = Sha256::new();
    let size = download::hash_rest(&mut file, &mut hash)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok((ObjectId::from_bytes(hash.finalize().into()), size))
}

fn repr_digest(digest: &ObjectId) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(digest.as_bytes()))
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// What to remove, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    path: FeedPath,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl RmArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let url = client.url(&format!("/v1/feeds/{}", self.path.in_url("files/")))?;
        let answer = block_on(client.send(Method::DELETE, url, |request| request))?;
        let held = answer.status() == StatusCode::ACCEPTED;
        if self.json {
            println!("{:#}", json!({ "path": self.path.path.to_text(), "held": held }));
        } else if held {
            println!("{}: removed in the primary's directory, and held for approval", self.path);
        } else {
            println!("{}: removed", self.path);
        }
        Ok(())
    }
}
