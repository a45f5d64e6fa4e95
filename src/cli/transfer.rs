//! `put` and `rm`: one file of a feed, uploaded or removed, and waited for where that is wished.
//!
//! The content's SHA-256 goes with it, so what arrives is what was sent, or nothing.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
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
    download,
    target::FeedPath,
};
use crate::model::ObjectId;

/// Arguments of `put`.
#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// The file to upload
    file: PathBuf,
    /// Where it goes, as in default/webapps/shop.war
    #[arg(value_name = "FEED/PATH")]
    to: FeedPath,
    #[command(flatten)]
    wait: WaitArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

/// What a change is waited for.
#[derive(Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait until it is committed, or verified at every region
    #[arg(long, value_name = "FOR", num_args = 0..=1, default_missing_value = "regions",
          value_parser = ["commit", "regions"])]
    wait: Option<String>,
    /// How long to wait, as in 60s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", requires = "wait")]
    timeout: String,
}

impl WaitArgs {
    /// The longest that a node waits.
    const LONGEST: Duration = Duration::from_secs(3_600);

    fn client(&self, connection: &Connection) -> Result<Client> {
        match self.wait {
            Some(_) => Client::patient(connection, Self::LONGEST),
            None => Client::new(connection),
        }
    }

    fn add_to(&self, mut url: Url) -> Url {
        if let Some(wait) = &self.wait {
            url.query_pairs_mut().append_pair("wait", wait).append_pair("timeout", &self.timeout);
        }
        url
    }
}

impl PutArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = self.wait.client(&self.connection)?;
        let (digest, size) = digest_of(&self.file)?;
        let url = client.url(&format!("/v1/feeds/{}", self.to.in_url("files/")))?;
        let url = self.wait.add_to(url);
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
    #[command(flatten)]
    wait: WaitArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connection: Connection,
}

impl RmArgs {
    pub(super) fn run(self) -> Result<()> {
        let client = self.wait.client(&self.connection)?;
        let url = client.url(&format!("/v1/feeds/{}", self.path.in_url("files/")))?;
        let url = self.wait.add_to(url);
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
