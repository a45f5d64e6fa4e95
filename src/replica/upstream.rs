//! The node that a mirror follows, as an HTTP client sees it.
//!
//! Knows addresses and the token, and turns answers other than a success into errors that say what
//! to do. Time-outs are by lack of progress alone: a slow link may take as long as it needs.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::{
    bus::frame::{self, Fault},
    model::{FeedName, Head, Oid},
    replica::{Error, distrust},
};

/// A transfer that brings nothing for this long is broken off and tried again.
const STALL: Duration = Duration::from_secs(60);
/// The longest body of an error or of a feed's facts that is read.
const MAX_BODY: usize = 64 * 1024;

/// Where the token lies that lets us in. It is read anew for each use, so that it can be exchanged
/// while the mirror runs, and never kept, printed or logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// Names the file.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        TokenFile(path)
    }

    /// The value of the `Authorization` header.
    pub(super) async fn header(&self) -> Result<String, Error> {
        let fault = |why: String| Error::Token { path: self.0.clone(), why };
        let about = tokio::fs::metadata(&self.0).await.map_err(|error| fault(error.to_string()))?;
        if about.permissions().mode() & 0o077 != 0 {
            return Err(fault("others than its owner may read it; `chmod 600` it".to_owned()));
        }
        let text = tokio::fs::read_to_string(&self.0).await;
        let text = text.map_err(|error| fault(error.to_string()))?;
        match text.trim() {
            token if token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic()) => {
                Err(fault("it does not hold one token alone".to_owned()))
            }
            token => Ok(format!("Bearer {token}")),
        }
    }
}

/// One feed at one upstream.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    pub(super) base: Url,
    pub(super) feed: FeedName,
    pub(super) token: Option<TokenFile>,
    pub(super) http: reqwest::Client,
    /// How `https` is spoken on what is not HTTP.
    pub(super) tls: Arc<rustls::ClientConfig>,
}

#[derive(Deserialize)]
struct FeedFacts {
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    commit: Option<Oid>,
    #[serde(default)]
    bytes: u64,
}

#[derive(Deserialize, Default)]
struct Refused {
    #[serde(default)]
    error: String,
    #[serde(default)]
    message: String,
}

impl Upstream {
    /// The address of something of the feed; empty: of the feed itself.
    pub(super) fn url(&self, what: &str) -> String {
        let base = self.base.as_str().trim_end_matches('/');
        let slash = if what.is_empty() { "" } else { "/" };
        format!("{base}/v1/feeds/{}{slash}{what}", self.feed)
    }

    /// A request for something of the feed.
    pub(super) fn get(&self, what: &str) -> RequestBuilder {
        self.http.get(self.url(what))
    }

    /// The feed's head there.
    pub(super) async fn head(&self) -> Result<Option<Head>, Error> {
        self.head_telling(None).await
    }

    /// The feed's head there. It hears what we have: a primary of an older epoch learns by this that
    /// it is one, though nobody follows it any more.
    pub(super) async fn head_telling(&self, have: Option<Head>) -> Result<Option<Head>, Error> {
        let mut request = self.get("");
        if let Some(have) = have {
            request = request.header(frame::HEAD_HEADER, frame::head_to_text(&have));
        }
        let facts = self.facts(request).await?;
        Ok(match (facts.epoch, facts.seq, facts.commit) {
            (Some(epoch), Some(seq), Some(commit)) => Some(Head { epoch, seq, commit }),
            _ => None,
        })
    }

    /// The bytes of all files that the feed holds there.
    pub(super) async fn bytes(&self) -> Result<u64, Error> {
        Ok(self.facts(self.get("")).await?.bytes)
    }

    async fn facts(&self, request: RequestBuilder) -> Result<FeedFacts, Error> {
        let answer = self.send(request).await?;
        let body = self.body(answer).await?;
        serde_json::from_slice(&body).map_err(|_| {
            Error::Fault(Fault::NotDepsync {
                answer: "a feed's facts that cannot be read".to_owned(),
            })
        })
    }

    /// Sends a request; anything but a success is an error that says what the upstream said.
    pub(super) async fn send(&self, mut request: RequestBuilder) -> Result<Response, Error> {
        if let Some(token) = &self.token {
            request = request.header(http::header::AUTHORIZATION, token.header().await?);
        }
        let answer = tokio::time::timeout(STALL, request.send()).await;
        let answer = answer.map_err(|_| self.stalled())?.map_err(|source| self.lost(source))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(Error::Fault(Fault::WrongToken));
        }
        let url = answer.url().to_string();
        let body = self.body(answer).await.unwrap_or_default();
        let Refused { error, message } = serde_json::from_slice(&body).unwrap_or_default();
        Err(Error::Answer { url, status: status.as_u16(), code: error, message })
    }

    /// The next bytes of a body; none at its end.
    pub(super) async fn chunk(&self, answer: &mut Response) -> Result<Option<Bytes>, Error> {
        let chunk = tokio::time::timeout(STALL, answer.chunk()).await;
        chunk.map_err(|_| self.stalled())?.map_err(|source| self.lost(source))
    }

    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut answer).await? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(Error::Fault(Fault::NotDepsync {
                    answer: "a body without end".to_owned(),
                }));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn stalled(&self) -> Error {
        Error::Stalled { url: self.base.to_string() }
    }

    fn lost(&self, source: reqwest::Error) -> Error {
        let url = self.base.to_string();
        match distrust::of(&source, &url) {
            Some(why) => Error::Link(why),
            None => Error::Lost { url, source: Box::new(source.without_url()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(base: &str) -> Upstream {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (feed, http) = (FeedName::default(), reqwest::Client::new());
        let tls = crate::tls::Client::load(crate::tls::Terms::default()).unwrap();
        let tls = Arc::new(tls.config());
        Upstream { base: base.parse().unwrap(), feed, token: None, http, tls }
    }

    #[test]
    fn addresses_lie_below_the_base() {
        for base in ["http://hub:7873", "http://hub:7873/", "http://hub:7873/sync"] {
            let base = base.trim_end_matches('/');
            assert_eq!(upstream(base).url(""), format!("{base}/v1/feeds/default"));
            assert_eq!(upstream(base).url("follow"), format!("{base}/v1/feeds/default/follow"));
        }
    }

    #[tokio::test]
    async fn a_token_is_read_when_it_is_used_and_from_a_file_of_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hub.token");
        let token = TokenFile::new(path.clone());
        assert!(token.header().await.is_err());
        for (text, mode, expected) in [
            ("depsync_a\n", 0o600, Some("Bearer depsync_a")),
            ("depsync_b", 0o400, Some("Bearer depsync_b")),
            ("depsync_b", 0o640, None),
            ("", 0o600, None),
            ("two words", 0o600, None),
        ] {
            let _ = std::fs::remove_file(&path);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let header = token.header().await;
            assert_eq!(header.as_deref().ok(), expected, "{text:?} {mode:o}");
            let shown = header.map_or_else(|error| error.to_string(), |_| String::new());
            assert!(text.is_empty() || !shown.contains(text), "{shown}");
        }
    }
}
