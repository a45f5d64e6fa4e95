//! Bringing one file: redirects, resuming, checking, and the target replaced in one step.
//!
//! What is large comes in pieces, several at once, of exactly one version, and is written in order.
//! Partial content lies beside the target under the SHA-256 that it is going to have, so whatever
//! ends a transfer, the next one goes on from there, and never mixes two versions. The target is
//! replaced by rename after the whole was checked and is durable.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ETAG, HeaderMap, IF_RANGE, RANGE},
};
use sha2::{Digest, Sha256};

use super::client::{Client, root_cause};
use crate::model::{ObjectId, Oid};

/// How often a transfer that broke off is taken up again without having brought anything.
const FRUITLESS_TRIES: u32 = 3;
/// Before the next try, longer from one to the next: a node may be starting again.
const PAUSE: Duration = Duration::from_millis(300);
/// What one request asks for, and how many are under way at once: so much is held in memory.
const PIECE: u64 = 4 << 20;
const PIECES: usize = 4;
/// Names of temporary files begin with this; nothing of that name is ever published.
const PARTIAL: &str = ".depsync-tmp-";

/// One file to bring.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    /// Where it is, the best place first: whoever fails is followed by the next one, in turn.
    pub(super) urls: Vec<Url>,
    pub(super) to: &'a Path,
    /// The commit whose version it must be; none: whichever is the newest.
    pub(super) commit: Option<Oid>,
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
        let mut partial = None;
        let (mut fruitless, mut turn) = (0, 0);
        let mut first: Option<anyhow::Error> = None;
        loop {
            let url = &self.urls[turn % self.urls.len()];
            if turn == 0 {
                partial = self.earlier(url).await.unwrap_or_default();
            }
            let before = partial.as_ref().map_or(0, |partial| partial.size);
            turn += 1;
            let error = match self.transfer(url, &mut partial).await {
                Ok(Ended::Whole(done)) => return Ok(done),
                Ok(Ended::Broken(error)) => error,
                // The first question is answered or it is not: the next place is asked, once.
                Err(error) if turn < self.urls.len() => {
                    first = Some(error);
                    continue;
                }
                Err(error) => return Err(first.unwrap_or(error)),
            };
            let after = partial.as_ref().map_or(0, |partial| partial.size);
            fruitless = if after > before { 0 } else { fruitless + 1 };
            if fruitless == FRUITLESS_TRIES {
                let hint = "what was brought is kept; the same command goes on from there";
                return Err(error.context(hint));
            }
            tokio::time::sleep(PAUSE * fruitless).await;
        }
    }

    /// The SHA-256 of what lies there now.
    pub(super) async fn promised(&self) -> Result<ObjectId> {
        let url = self.urls[0].clone();
        let answer = self.client.send(Method::HEAD, url, |request| request).await?;
        promised(answer.headers(), answer.url())
    }

    /// What an earlier transfer of the same content left.
    async fn earlier(&self, url: &Url) -> Result<Option<Partial>> {
        if !has_partials(folder_of(self.to)) {
            return Ok(None);
        }
        let answer = self.client.send(Method::HEAD, url.clone(), |request| request).await?;
        let sha256 = promised(answer.headers(), url)?;
        let size = header(answer.headers(), "content-length").and_then(|size| size.parse().ok());
        if !partial_path(self.to, &sha256).exists() {
            return Ok(None);
        }
        let mut left = Partial::open(self.to, sha256)?;
        // Of what lies here whole, and was not put in place, there is nothing more to ask for.
        if size.is_some_and(|size: u64| left.size >= size) {
            left.restart()?;
        }
        Ok(Some(left))
    }

    async fn transfer(&self, url: &Url, partial: &mut Option<Partial>) -> Result<Ended> {
        let have = partial.as_ref().map_or(0, |partial| partial.size);
        let tag = partial.as_ref().filter(|_| have > 0).map(|partial| partial.sha256);
        let mut answer = match self.piece(url, have..have + PIECE, tag).await {
            Ok(answer) => answer,
            Err(error) if partial.is_some() => return Ok(Ended::Broken(error)),
            Err(error) => return Err(error),
        };
        let commit = header(answer.headers(), "x-depsync-commit").map(ToOwned::to_owned);
        if let Some(wanted) = self.commit
            && commit.as_ref().is_some_and(|commit| *commit != wanted.to_string())
        {
            return Err(anyhow!("{} has another version meanwhile", answer.url()));
        }
        let sha256 = promised(answer.headers(), answer.url())?;
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT;
        if !(goes_on && partial.as_ref().is_none_or(|partial| partial.sha256 == sha256)) {
            // Another version than before, or a node that knows no ranges.
            if let Some(stale) = partial.take() {
                stale.discard()?;
            }
            if goes_on && have > 0 {
                let error = anyhow!("{} sent a part of another version", answer.url());
                return Ok(Ended::Broken(error));
            }
        }
        if partial.is_none() {
            let mut fresh = Partial::open(self.to, sha256)?;
            fresh.restart()?;
            *partial = Some(fresh);
        }
        let file = partial.as_mut().expect("it goes on, or was made above");
        let resumed_at = file.size;
        let total = total(&answer, file.size);
        let bar = progress(file.size, total);
        let rest = exact(answer.url(), commit.as_deref());
        let came = match receive(&mut answer, file, &bar).await {
            Ok(()) => self.rest(&rest, file, total, &bar).await,
            Err(error) => Err(error),
        };
        bar.finish_and_clear();
        if let Err(error) = came {
            return Ok(Ended::Broken(error));
        }
        let from = answer.url().origin().ascii_serialization();
        let done = Done { bytes: file.size, sha256, from, resumed_at, commit };
        let whole = partial.take().expect("it was filled above");
        whole.finish(self.to)?;
        Ok(Ended::Whole(done))
    }

    /// Asks for a piece of a file, of this content only where some of it is here.
    async fn piece(&self, url: &Url, bytes: Range<u64>, tag: Option<ObjectId>) -> Result<Response> {
        let range = format!("bytes={}-{}", bytes.start, bytes.end - 1);
        let sent = self.client.send(Method::GET, url.clone(), |request| {
            let request = request.header(RANGE, &range);
            match tag {
                Some(tag) => request.header(IF_RANGE, format!("\"{tag}\"")),
                None => request,
            }
        });
        sent.await
    }

    /// Brings what is missing after the first piece, several at once, and writes them in order.
    async fn rest(
        &self,
        url: &Url,
        file: &mut Partial,
        total: Option<u64>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let Some(total) = total else { return Ok(()) };
        let (begin, sha256) = (file.size, file.sha256);
        let starts = (begin..total).step_by(usize::try_from(PIECE)?);
        let pieces = futures_util::stream::iter(starts).map(async |start| {
            let bytes = start..(start + PIECE).min(total);
            let answer = self.piece(url, bytes.clone(), Some(sha256)).await?;
            whole_piece(answer, sha256, bytes.end - bytes.start).await
        });
        let mut pieces = std::pin::pin!(pieces.buffered(PIECES));
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            file.write(&piece)?;
            bar.inc(piece.len() as u64);
        }
        if file.size < total {
            bail!("the transfer broke off at {}", file.size);
        }
        Ok(())
    }
}

/// The size of the whole file, where the answer says it.
fn total(answer: &Response, have: u64) -> Option<u64> {
    let range = header(answer.headers(), "content-range");
    let total = range.and_then(|range| range.rsplit('/').next()?.parse().ok());
    total.or_else(|| answer.content_length().map(|rest| have + rest))
}

/// The address of exactly the version that an answer from `url` brought: a release in between must
/// not mix two. One that names its version already stays as it is.
fn exact(url: &Url, commit: Option<&str>) -> Url {
    let mut exact = url.clone();
    let parts: Vec<&str> = url.path().splitn(6, '/').collect();
    if let (["", "v1", "feeds", feed, "files", path], Some(commit)) = (&parts[..], commit)
        && commit.parse::<Oid>().is_ok()
    {
        exact.set_path(&format!("/v1/feeds/{feed}/at/{commit}/{path}"));
        exact.set_query(None);
    }
    exact
}

async fn whole_piece(mut answer: Response, sha256: ObjectId, length: u64) -> Result<Vec<u8>> {
    let same = promised(answer.headers(), answer.url())? == sha256;
    if answer.status() != StatusCode::PARTIAL_CONTENT || !same {
        bail!("{} has another version meanwhile", answer.url());
    }
    let mut piece = Vec::with_capacity(usize::try_from(length)?);
    while let Some(chunk) = next_chunk(&mut answer).await? {
        if (piece.len() + chunk.len()) as u64 > length {
            bail!("{} sent more than it was asked for", answer.url());
        }
        piece.extend_from_slice(&chunk);
    }
    if (piece.len() as u64) < length {
        bail!("the transfer broke off");
    }
    Ok(piece)
}

async fn receive(answer: &mut Response, file: &mut Partial, bar: &ProgressBar) -> Result<()> {
    let end = answer.content_length().map(|rest| file.size + rest);
    while let Some(chunk) = next_chunk(answer).await? {
        file.write(&chunk)?;
        bar.inc(chunk.len() as u64);
    }
    match end {
        Some(end) if file.size < end => bail!("the transfer broke off at {}", file.size),
        _ => Ok(()),
    }
}

async fn next_chunk(answer: &mut Response) -> Result<Option<bytes::Bytes>> {
    let chunk = answer.chunk().await;
    chunk.map_err(|error| anyhow!("the transfer broke off: {}", root_cause(&error)))
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
