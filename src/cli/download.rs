//! Bringing one file: redirects, resuming, checking, and the target replaced in one step.
//!
//! Partial content lies beside the target under the SHA-256 that it is going to have, so whatever
//! ends a transfer, the next one goes on from there, and never mixes two versions. The target is
//! replaced by rename after the whole was checked and is durable.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ETAG, HeaderMap, IF_RANGE, RANGE},
};
use sha2::{Digest, Sha256};

use super::client::{Client, root_cause};
use crate::model::ObjectId;

/// How often a transfer that broke off is taken up again without having brought anything.
const FRUITLESS_TRIES: u32 = 3;
/// Before the next try, longer from one to the next: a node may be starting again.
const PAUSE: Duration = Duration::from_millis(300);
/// Names of temporary files begin with this; nothing of that name is ever published.
const PARTIAL: &str = ".depsync-tmp-";

/// One file to bring.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) url: Url,
    pub(super) to: &'a Path,
}

/// What was brought.
pub(super) struct Done {
    pub(super) bytes: u64,
    pub(super) sha256: ObjectId,
    /// Who served it.
    pub(super) from: String,
    /// How many bytes were there already.
    pub(super) resumed_at: u64,
    /// The commit whose version it is.
    pub(super) commit: Option<String>,
}

/// How one transfer ended.
enum Ended {
    Whole(Done),
    /// It broke off, and is worth another try.
    Broken(anyhow::Error),
}

impl Download<'_> {
    pub(super) async fn run(&self) -> Result<Done> {
        let mut partial = self.earlier().await?;
        let mut fruitless = 0;
        loop {
            let before = partial.as_ref().map_or(0, |partial| partial.size);
            match self.transfer(&mut partial).await? {
                Ended::Whole(done) => return Ok(done),
                Ended::Broken(error) => {
                    let after = partial.as_ref().map_or(0, |partial| partial.size);
                    fruitless = if after > before { 0 } else { fruitless + 1 };
                    if fruitless == FRUITLESS_TRIES {
                        let hint = "what was brought is kept; the same command goes on from there";
                        return Err(error.context(hint));
                    }
                    tokio::time::sleep(PAUSE * fruitless).await;
                }
            }
        }
    }

    /// What an earlier transfer of the same content left.
    async fn earlier(&self) -> Result<Option<Partial>> {
        if !has_partials(folder_of(self.to)) {
            return Ok(None);
        }
        let answer = self.client.send(Method::HEAD, self.url.clone(), |request| request).await?;
        let sha256 = promised(answer.headers(), &self.url)?;
        if !partial_path(self.to, &sha256).exists() {
            return Ok(None);
        }
        Partial::open(self.to, sha256).map(Some)
    }

    async fn transfer(&self, partial: &mut Option<Partial>) -> Result<Ended> {
        let range = partial.as_ref().filter(|partial| partial.size > 0);
        let range = range
            .map(|partial| (format!("bytes={}-", partial.size), format!("\"{}\"", partial.sha256)));
        let answer = self.client.send(Method::GET, self.url.clone(), |request| match &range {
            Some((range, etag)) => request.header(RANGE, range).header(IF_RANGE, etag),
            None => request,
        });
        let mut answer = match answer.await {
            Ok(answer) => answer,
            // The first question is answered or it is not; only what had begun is taken up again.
            Err(error) if partial.is_some() => return Ok(Ended::Broken(error)),
            Err(error) => return Err(error),
        };
        let sha256 = promised(answer.headers(), answer.url())?;
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
            && partial.as_ref().is_some_and(|partial| partial.sha256 == sha256);
        if !goes_on {
            // Another version than before, or a node that knows no ranges.
            if let Some(stale) = partial.take() {
                stale.discard()?;
            }
            let mut fresh = Partial::open(self.to, sha256)?;
            fresh.restart()?;
            *partial = Some(fresh);
        }
        let file = partial.as_mut().expect("it goes on, or was made above");
        let resumed_at = file.size;
        if let Err(error) = receive(&mut answer, file).await {
            return Ok(Ended::Broken(error));
        }
        let done = Done {
            bytes: file.size,
            sha256,
            from: answer.url().origin().ascii_serialization(),
            resumed_at,
            commit: header(answer.headers(), "x-depsync-commit").map(ToOwned::to_owned),
        };
        let whole = partial.take().expect("it was filled above");
        whole.finish(self.to)?;
        Ok(Ended::Whole(done))
    }
}

async fn receive(answer: &mut Response, file: &mut Partial) -> Result<()> {
    let total = answer.content_length().map(|rest| file.size + rest);
    let bar = progress(file.size, total);
    loop {
        let chunk = answer.chunk().await;
        let chunk =
            chunk.map_err(|error| anyhow!("the transfer broke off: {}", root_cause(&error)))?;
        let Some(chunk) = chunk else { break };
        file.write(&chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    match total {
        Some(total) if file.size < total => bail!("the transfer broke off at {}", file.size),
        _ => Ok(()),
    }
}

/// A bar where somebody watches.
fn progress(at: u64, total: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = match total {
        Some(total) => ProgressBar::new(total).with_style(
            ProgressStyle::with_template(
                "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}",
            )
            .expect("the template is a constant"),
        ),
        None => ProgressBar::new_spinner(),
    };
    bar.set_position(at);
    bar.reset_eta();
    bar
}

/// The SHA-256 that the node promises of the whole content.
fn promised(headers: &HeaderMap, url: &Url) -> Result<ObjectId> {
    let digest = header(headers, "repr-digest").and_then(|digest| {
        let encoded = digest.split(',').find_map(|one| one.trim().strip_prefix("sha-256=:"))?;
        let bytes = BASE64_STANDARD.decode(encoded.strip_suffix(':')?).ok()?;
        ObjectId::try_from(&*bytes).ok()
    });
    let etag = || header(headers, ETAG.as_str())?.trim_matches('"').parse().ok();
    digest.or_else(etag).with_context(|| {
        format!("{url} is no file of a depsync node: it promises no SHA-256 (a folder is listed by `depsync ls`)")
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The folder that holds a path.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn has_partials(folder: &Path) -> bool {
    let ours = |name: &OsStr| name.as_encoded_bytes().starts_with(PARTIAL.as_bytes());
    fs::read_dir(folder).is_ok_and(|names| names.flatten().any(|entry| ours(&entry.file_name())))
}

fn partial_path(target: &Path, sha256: &ObjectId) -> PathBuf {
    folder_of(target).join(format!("{PARTIAL}{sha256}"))
}

/// Adds the rest of a file to a hash; says how many bytes these were.
pub(super) fn hash_rest(file: &mut File, hash: &mut Sha256) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            read => {
                hash.update(&buffer[..read]);
                size += read as u64;
            }
        }
    }
}

/// Content on its way, hashed as it comes.
struct Partial {
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    sha256: ObjectId,
}

impl Partial {
    /// Opens what is there already, or makes it; one process at a time.
    fn open(target: &Path, sha256: ObjectId) -> Result<Self> {
        let path = partial_path(target, &sha256);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file =
            options.open(&path).with_context(|| format!("cannot write {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!("another `depsync get` is bringing the same content: {}", path.display());
        }
        let mut hash = Sha256::new();
        let size = hash_rest(&mut file, &mut hash)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { path, file, hash, size, sha256 })
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hash = Sha256::new();
        self.size = 0;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes);
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn discard(self) -> Result<()> {
        let removed = fs::remove_file(&self.path);
        removed.with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// Puts it in the target's place, if it is what was promised.
    fn finish(self, target: &Path) -> Result<()> {
        let found = ObjectId::from_bytes(self.hash.clone().finalize().into());
        if found != self.sha256 {
            let promised = self.sha256;
            self.discard()?;
            bail!("what came has the SHA-256 {found}, promised was {promised}; try again");
        }
        let failed = || format!("cannot put {} in place", target.display());
        self.file.sync_all().with_context(failed)?;
        fs::rename(&self.path, target).with_context(failed)?;
        let folder = File::open(folder_of(target)).with_context(failed)?;
        folder.sync_all().with_context(failed)
    }
}
