//! `git clone` and `git fetch` over smart HTTP, read only: git's own `upload-pack` does the talking.
//!
//! Git runs on the feed's bare repository with an empty environment and no configuration but that
//! repository's and ours. Protocol 2 gives any object whose id is named, so the older ones are spoken,
//! which give only what the published head leads to; every client of today speaks them. Git speaks as
//! fast as the client listens, and it and all that it starts live no longer than the request.

use std::{
    future::pending,
    io::{self, Read},
    pin::Pin,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use flate2::read::GzDecoder;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Uri, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdout, Command},
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};

use super::{
    Edge,
    edge::Feed,
    error::{Answer, Fault},
};
use crate::model::Traffic;

/// Each is a process that may use a core.
pub(super) const MAX_GITS: usize = 8;
/// A client names at most some 16,000 commits that it has, in 50 bytes each.
const MAX_REQUEST: usize = 4 << 20;
/// For a request to come, which is short, and for git to say something, which it does every 5 s.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// What a pipe holds.
const PIECE: usize = 64 << 10;
/// Bytes of git's complaint that are passed on.
const COMPLAINT: u64 = 2 << 10;

const CONFIGURATION: [&str; 4] = [
    // Whoever its files belong to (a restored backup, a container's volume), the repository is ours.
    // Git believes this on the command line, and would not in the repository's own configuration.
    "safe.directory=*",
    // Our own marks are nobody's business.
    "uploadpack.hideRefs=refs",
    "uploadpack.hideRefs=!refs/heads/main",
    "pack.threads=1",
];

/// `GET /git/{feed}.git/info/refs?service=git-upload-pack`
pub(super) async fn refs(State(edge): State<Arc<Edge>>, parts: Parts) -> Response {
    as_text(advertise(&edge, &parts).await)
}

/// `POST /git/{feed}.git/git-upload-pack`
pub(super) async fn upload_pack(State(edge): State<Arc<Edge>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    as_text(converse(&edge, &parts, body).await)
}

/// `POST /git/{feed}.git/git-receive-pack`
pub(super) async fn receive_pack() -> Response {
    as_text(Err(read_only()))
}

async fn advertise(edge: &Edge, parts: &Parts) -> Answer {
    let feed = repository(edge, &parts.uri)?;
    let mut asked = parts.uri.query().unwrap_or_default().split('&');
    match asked.find_map(|pair| pair.strip_prefix("service=")) {
        Some("git-upload-pack") => {}
        Some("git-receive-pack") => return Err(read_only()),
        _ => return Err(Fault::forbidden("only git's smart protocol is spoken here")),
    }
    let slot = slot(edge)?;
    let version = protocol(&parts.headers);
    let mut talk = Talk::start(feed, &["--advertise-refs"], version, slot)?;
    let said = talk.first(|complaint| Fault::internal(&io::Error::other(complaint))).await?;
    let first = Bytes::from([b"001e# service=git-upload-pack\n0000", &said[..]].concat());
    Ok(answer(edge, parts, "application/x-git-upload-pack-advertisement", first, talk))
}

async fn converse(edge: &Edge, parts: &Parts, body: Body) -> Answer {
    let feed = repository(edge, &parts.uri)?;
    let slot = slot(edge)?;
    // Gathered before git starts: it is short, and a faulty one gets an answer of its own.
    let request = gather(body, MAX_REQUEST).await?;
    let request = match parts.headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => request,
        Some(b"gzip" | b"x-gzip") => edge.blocking.run(move || inflate(&request)).await?,
        Some(_) => return Err(Fault::malformed("a body is taken as it is, or as gzip")),
    };
    let mut talk = Talk::start(feed, &[], protocol(&parts.headers), slot)?;
    talk.tell(request);
    let first = talk.first(Fault::malformed).await?;
    Ok(answer(edge, parts, "application/x-git-upload-pack-result", first, talk))
}

/// The feed that is named in `/git/{feed}.git/…`.
pub(super) fn repository<'e>(edge: &'e Edge, uri: &Uri) -> Result<&'e Arc<Feed>, Fault> {
    let name = uri.path().split('/').nth(2).unwrap_or_default();
    match name.strip_suffix(".git") {
        Some(name) => edge.feed(name),
        None => Err(Fault::not_found("no_such_route", "a repository is /git/{feed}.git")),
    }
}

/// Takes in a short body, whole.
pub(super) async fn gather(body: Body, limit: usize) -> Result<Bytes, Fault> {
    match timeout(STALL_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Fault::too_large(limit as u64)),
        Ok(Err(error)) => Err(Fault::malformed(format!("the body broke off: {error}"))),
        Err(_) => Err(Fault::malformed(format!("the body did not come in {STALL_TIMEOUT:?}"))),
    }
}

fn inflate(body: &[u8]) -> Result<Bytes, Fault> {
    let mut plain = Vec::new();
    GzDecoder::new(body)
        .take(MAX_REQUEST as u64 + 1)
        .read_to_end(&mut plain)
        .map_err(|error| Fault::malformed(format!("the body is no gzip: {error}")))?;
    if plain.len() > MAX_REQUEST {
        return Err(Fault::too_large(MAX_REQUEST as u64));
    }
    Ok(plain.into())
}

/// The protocol that both sides speak, 0 or 1; what is set besides in `Git-Protocol` is passed over.
fn protocol(headers: &HeaderMap) -> u8 {
    let asked = headers.get("git-protocol").and_then(|value| value.to_str().ok());
    u8::from(asked.unwrap_or_default().split(':').any(|pair| pair == "version=1"))
}

fn slot(edge: &Edge) -> Result<OwnedSemaphorePermit, Fault> {
    let taken = Arc::clone(&edge.gits).try_acquire_owned();
    taken.map_err(|_| Fault::unavailable("too many clones are being sent; try again", 10))
}

fn read_only() -> Fault {
    Fault::forbidden(
        "feeds are read only for git: put files into the primary's folder, or use `depsync put`",
    )
}

/// A fault as plain text, which git shows to its user.
fn as_text(answer: Answer) -> Response {
    answer.unwrap_or_else(|fault| fault.with_body(|fault| format!("{}\n", fault.message())))
}

/// What git says, as it comes.
fn answer(edge: &Edge, parts: &Parts, mime: &'static str, first: Bytes, talk: Talk) -> Response {
    let rest = stream::try_unfold(talk, async |mut talk| match talk.next().await {
        Ok(Some(piece)) => Ok(Some((piece, talk))),
        Ok(None) => {
            // The client has been told in git's own words.
            if let Some(complaint) = talk.complaint().await {
                tracing::warn!("git upload-pack failed: {complaint}");
            }
            Ok(None)
        }
        Err(fault) => Err(io::Error::other(fault.message().to_owned())),
    });
    let said = stream::iter([Ok(first)]).chain(rest);
    let receiver = edge.receiver(parts, Traffic::Downloads);
    let body = edge.throttled(Body::from_stream(said), receiver);
    let headers = [(header::CONTENT_TYPE, mime), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::new(body)).into_response()
}

/// One git, and what it is still to be told.
struct Talk {
    git: Process,
    said: ChildStdout,
    telling: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    _slot: OwnedSemaphorePermit,
}

impl Talk {
    fn start(
        feed: &Feed,
        options: &[&str],
        version: u8,
        slot: OwnedSemaphorePermit,
    ) -> Result<Self, Fault> {
        let mut command = Command::new("git");
        for setting in CONFIGURATION {
            command.args(["-c", setting]);
        }
        command
            .args(["upload-pack", "--stateless-rpc", "--strict"])
            .args(options)
            .arg(".")
            .current_dir(feed.desk.store.git_dir())
            .env_clear()
            // Git and its helpers are found where the daemon's surroundings say.
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_PROTOCOL", format!("version={version}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| cannot_start(&error))?;
        let said = child.stdout.take().expect("it was asked for");
        Ok(Talk { git: Process(child), said, telling: None, _slot: slot })
    }

    /// Tells git all that it will hear, while it speaks.
    fn tell(&mut self, request: Bytes) {
        let mut to = self.git.0.stdin.take().expect("it was asked for, and git is told once");
        self.telling = Some(Box::pin(async move {
            // A git that does not listen to the end says itself why.
            to.write_all(&request).await.ok();
        }));
    }

    /// What git says first. One that fails without a word is a fault.
    async fn first(&mut self, fault: impl FnOnce(String) -> Fault) -> Result<Bytes, Fault> {
        match self.next().await? {
            Some(piece) => Ok(piece),
            None => match self.complaint().await {
                None => Ok(Bytes::new()),
                Some(complaint) => Err(fault(complaint)),
            },
        }
    }

    /// What git says next; none: that was all.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let mut piece = BytesMut::with_capacity(PIECE);
        loop {
            let telling = async {
                match &mut self.telling {
                    Some(telling) => telling.await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = telling => self.telling = None,
                read = self.said.read_buf(&mut piece) => {
                    let read = read.map_err(|error| Fault::internal(&error))?;
                    return Ok((read > 0).then(|| piece.freeze()));
                }
                () = sleep(STALL_TIMEOUT) => {
                    return Err(Fault::internal(&io::Error::other("git makes no progress")));
                }
            }
        }
    }

    /// Waits for git's end; none: it was a good one.
    async fn complaint(&mut self) -> Option<String> {
        self.telling = None;
        let git = &mut self.git.0;
        let status = match timeout(STALL_TIMEOUT, git.wait()).await {
            Ok(Ok(status)) if status.success() => return None,
            Ok(Ok(status)) => status,
            Ok(Err(error)) => return Some(error.to_string()),
            Err(_) => return Some("it did not end".to_owned()),
        };
        let mut complaint = Vec::new();
        if let Some(from) = git.stderr.take() {
            let mut from = from.take(COMPLAINT);
            timeout(STALL_TIMEOUT, from.read_to_end(&mut complaint)).await.ok();
        }
        match String::from_utf8_lossy(&complaint).trim() {
            "" => Some(status.to_string()),
            complaint => Some(complaint.to_owned()),
        }
    }
}

fn cannot_start(error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::NotFound {
        return Fault::not_implemented(
            "clones need git, which is not on the PATH of the daemon at this node; \
             install it there, or download over /v1/feeds",
        );
    }
    Fault::internal(&io::Error::other(format!("cannot start git: {error}")))
}

/// A git and all that it has started; dropped, they are killed.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // There is no id once it was waited for, so the group is not somebody else's.
        let leader = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(leader) = leader {
            kill_process_group(leader, Signal::KILL).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn of_git_protocol_only_the_version_is_believed() {
        for (header, version) in [
            ("version=2", 0),
            ("version=1", 1),
            ("version=1:version=2", 1),
            ("other:version=1:x=y", 1),
            ("version=3", 0),
            ("version=02", 0),
            ("", 0),
        ] {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static("git-protocol"),
                header.parse().unwrap(),
            )]);
            assert_eq!(protocol(&headers), version, "{header}");
        }
        assert_eq!(protocol(&HeaderMap::new()), 0);
    }

    #[test]
    fn a_deflated_request_is_bounded_by_what_it_becomes() {
        let deflated = |size: usize| {
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(&vec![b'0'; size]).unwrap();
            gzip.finish().unwrap()
        };
        assert_eq!(inflate(&deflated(MAX_REQUEST)).unwrap().len(), MAX_REQUEST);
        assert_eq!(inflate(&deflated(MAX_REQUEST + 1)).unwrap_err().status(), 413);
        let whole = deflated(1000);
        assert_eq!(inflate(&whole[..whole.len() - 4]).unwrap_err().status(), 400);
        assert_eq!(inflate(b"0000").unwrap_err().status(), 400);
    }
}
