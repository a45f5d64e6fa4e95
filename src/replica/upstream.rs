//! The node that a mirror follows, as an HTTP client sees it.
//!
//! Knows addresses and the token, and turns answers other than a success into errors that say what
//! to do. Time-outs are by lack of progress alone: a slow link may take as long as it needs.

use std::{fmt, time::Duration};

use bytes::Bytes;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::{
    bus::frame::Fault,
    model::{FeedName, Head, Oid},
    replica::Error,
};

/// A transfer that brings nothing for this long is broken off and tried again.
const STALL: Duration = Duration::from_secs(60);
/// The longest body of an error or of a feed's facts that is read.
const MAX_BODY: usize = 64 * 1024;

/// What lets us in; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes the text of a token.
    pub fn new(text: impl Into<String>) -> Self {
        Token(text.into())
    }

    /// The value of the `Authorization` header.
    pub(super) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// One feed at one upstream.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    pub(super) base: Url,
    pub(super) feed: FeedName,
    pub(super) token: Option<Token>,
    pub(super) http: reqwest::Client,
}

#[derive(Deserialize)]
struct FeedFacts {
    #[serde(default)]
    epoch: Option<u64>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    commit: Option<Oid>,
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
        let request = self.http.get(self.url(what));
        match &self.token {
            Some(token) => request.header(http::header::AUTHORIZATION, token.header()),
            None => request,
        }
    }

    /// The feed's head there.
    pub(super) async fn head(&self) -> Result<Option<Head>, Error> {
        let answer = self.send(self.get("")).await?;
        let body = self.body(answer).await?;
        let facts: FeedFacts = serde_json::from_slice(&body).map_err(|_| {
            Error::Fault(Fault::NotDepsync {
                answer: "a feed's facts that cannot be read".to_owned(),
            })
        })?;
        Ok(match (facts.epoch, facts.seq, facts.commit) {
            (Some(epoch), Some(seq), Some(commit)) => Some(Head { epoch, seq, commit }),
            _ => None,
        })
    }

    /// Sends a request; anything but a success is an error that says what the upstream said.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Error> {
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
        Error::Lost { url: self.base.to_string(), source: Box::new(source.without_url()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(base: &str) -> Upstream {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (feed, http) = (FeedName::default(), reqwest::Client::new());
        Upstream { base: base.parse().unwrap(), feed, token: Some(Token::new("hush")), http }
    }

    #[test]
    fn addresses_lie_below_the_base() {
        for base in ["http://hub:7873", "http://hub:7873/", "http://hub:7873/sync"] {
            let base = base.trim_end_matches('/');
            assert_eq!(upstream(base).url(""), format!("{base}/v1/feeds/default"));
            assert_eq!(upstream(base).url("follow"), format!("{base}/v1/feeds/default/follow"));
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        assert!(!format!("{:?}", upstream("http://hub")).contains("hush"));
    }
}
