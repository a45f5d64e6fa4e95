//! The HTTP client of the talking commands: where the daemon is, which token to show, and errors
//! that tell a person what to do.
//!
//! The token of this machine's daemon is shown to this machine only, unless it was named; no token
//! ever follows a redirect to another origin.

use std::{
    future::Future, net::IpAddr, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue, LOCATION},
    redirect::Policy,
};
use serde_json::Value;

use crate::{
    config::{self, BaseUrl},
    tls,
};

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an answer may make no progress: a region may have to fetch what it is asked for.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// From the primary to a region and, where the link has expired, back and there again.
const MAX_REDIRECTS: usize = 5;
/// Pages of 1,000 that one command asks for; where there are more, the answer keeps its `next`.
const MAX_PAGES: usize = 100;
/// An answer that is read into memory: a page of a list is far smaller.
const MAX_ANSWER: usize = 64 << 20;

/// Which daemon a command talks to, and who it is there.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The node to talk to
    #[arg(long, value_name = "URL", default_value_t = this_machine())]
    url: BaseUrl,
    /// A file with the token to show there
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The CA that the node's certificate is from, where this machine does not believe it
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A certificate to show to a node that asks for one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// State directory of this machine's daemon, whose admin.token is shown otherwise
    #[arg(long, value_name = "DIR", conflicts_with = "token_file")]
    state: Option<PathBuf>,
}

impl Connection {
    /// Whom it believes there, and what it shows.
    fn terms(&self) -> tls::Terms {
        let pair = self.cert.clone().zip(self.key.clone());
        let identity = pair.map(|(cert, key)| tls::Identity { cert, key });
        tls::Terms { identity, ca: self.ca.clone(), pins: Vec::new() }
    }
}

#[cfg(test)]
impl Connection {
    pub(super) fn with_state(url: &str, state: &std::path::Path) -> Self {
        Connection {
            url: url.parse().unwrap(),
            token_file: None,
            ca: None,
            cert: None,
            key: None,
            state: Some(state.to_owned()),
        }
    }
}

/// An answer of a node that is no success, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    message: String,
}

/// A node to talk to.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<HeaderValue>,
}

impl Client {
    /// Reads the token; connects to nobody yet.
    pub(super) fn new(connection: &Connection) -> Result<Self> {
        let base = Url::parse(connection.url.as_str())?;
        let token = token(connection, &base)?;
        Ok(Self { http: http(None, connection.terms(), STALL_TIMEOUT)?, base, token })
    }

    /// A client of requests that the node may take this long to answer, besides.
    pub(super) fn patient(connection: &Connection, more: Duration) -> Result<Self> {
        let http = http(None, connection.terms(), STALL_TIMEOUT + more)?;
        Ok(Self { http, ..Self::new(connection)? })
    }

    /// A client of a node that asks for no token, which sees it come from this address.
    pub(super) fn from_address(address: IpAddr, base: &BaseUrl) -> Result<Self> {
        let http = http(Some(address), tls::Terms::default(), STALL_TIMEOUT)?;
        Ok(Self { http, base: Url::parse(base.as_str())?, token: None })
    }

    /// Absolute URL of a path and query on this node.
    pub(super) fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).with_context(|| format!("{path} is not a path of a URL"))
    }

    /// The JSON that lies at a URL.
    pub(super) async fn get(&self, url: Url) -> Result<Value> {
        json(self.send(Method::GET, url, |request| request).await?).await
    }

    /// The JSON that lies at a URL, also where the answer has one of these statuses.
    pub(super) async fn ask(&self, url: Url, also: &[StatusCode]) -> Result<Value> {
        let mut request = self.http.get(url.clone());
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        let answer = request.send().await.map_err(|error| unreachable(&url, &error))?;
        if also.contains(&answer.status()) {
            return json(answer).await;
        }
        json(self.success(answer).await?).await
    }

    /// All pages of a list, as the first one with the items of the others behind its own.
    pub(super) async fn list(&self, path: &str, name: &str) -> Result<Value> {
        let mut whole = Value::Null;
        let mut after: Option<String> = None;
        for _ in 0..MAX_PAGES {
            let mut url = self.url(path)?;
            url.query_pairs_mut().append_pair("limit", "1000");
            if let Some(after) = &after {
                url.query_pairs_mut().append_pair("after", after);
            }
            let mut page = self.get(url).await?;
            after = page["next"].as_str().map(ToOwned::to_owned);
            match whole[name].as_array_mut() {
                Some(items) => items.extend(page[name].as_array().into_iter().flatten().cloned()),
                None => whole = page.take(),
            }
            if after.is_none() {
                break;
            }
        }
        if let Some(whole) = whole.as_object_mut() {
            whole.remove("next");
            whole.extend(after.map(|after| ("next".to_owned(), after.into())));
        }
        Ok(whole)
    }

    /// Asks for an action.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let url = self.url(path)?;
        json(self.send(Method::POST, url, |request| request.json(body)).await?).await
    }

    /// Sends a request, following redirects; `with` completes each one, so that a body can be sent
    /// again. An answer that is no success is an error.
    pub(super) async fn send(
        &self,
        method: Method,
        mut url: Url,
        with: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = with(self.http.request(method.clone(), url.clone()));
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.base.origin())
            {
                request = request.header(AUTHORIZATION, token);
            }
            let answer = request.send().await.map_err(|error| unreachable(&url, &error))?;
            let Some(next) = redirect(&answer)? else { return self.success(answer).await };
            url = next;
        }
        bail!("{} and others send each other more than {MAX_REDIRECTS} redirects", self.base)
    }

    async fn success(&self, answer: Response) -> Result<Response> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let origin = answer.url().origin().ascii_serialization();
        let text = answer.text().await.unwrap_or_default();
        let told: Option<Value> = serde_json::from_str(&text).ok();
        let message = told.as_ref().and_then(|told| told["message"].as_str());
        let Some(message) = message else {
            bail!("{origin} answers {status}; is it a depsync node?");
        };
        if status == StatusCode::UNAUTHORIZED && origin != self.base.origin().ascii_serialization()
        {
            bail!(
                "the request was sent on to {origin}: {message}; ask there, with --url and its token"
            );
        }
        if status == StatusCode::UNAUTHORIZED && self.token.is_none() {
            bail!("{message}; name a token with --token-file, or the daemon's state with --state");
        }
        Err(Refused { status, message: message.to_owned() }.into())
    }
}

/// Where a daemon on this machine listens unless told otherwise.
fn this_machine() -> BaseUrl {
    format!("http://{}", config::DEFAULT_LISTEN).parse().expect("it is the URL of a node")
}

/// Runs a command's requests to their end.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("cannot start")?.block_on(work)
}

/// A client that follows no redirect by itself, and leaves proxies out: nodes are near.
fn http(from: Option<IpAddr>, terms: tls::Terms, stall: Duration) -> Result<reqwest::Client> {
    // A second one would only be refused.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::Client::load(terms)?.config())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(stall)
        .redirect(Policy::none())
        .no_proxy()
        .local_address(from)
        .user_agent(concat!("depsync/", env!("CARGO_PKG_VERSION")));
    client.build().context("cannot make an HTTP client")
}

fn token(connection: &Connection, base: &Url) -> Result<Option<HeaderValue>> {
    let (path, must) = match (&connection.token_file, &connection.state) {
        (Some(file), _) => (file.clone(), true),
        (None, Some(state)) => (state.join("admin.token"), true),
        (None, None) if is_loopback(base) => {
            (config::default_state_dir().join("admin.token"), false)
        }
        (None, None) => return Ok(None),
    };
    if std::fs::metadata(&path).is_ok_and(|about| about.permissions().mode() & 0o077 != 0) {
        bail!("{} can be read by others than its owner; `chmod 600` it", path.display());
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(_) if !must => return Ok(None),
        Err(error) => bail!("cannot read the token in {}: {error}", path.display()),
    };
    let mut header = HeaderValue::try_from(format!("Bearer {}", text.trim()))
        .map_err(|_| anyhow!("{} does not hold a token", path.display()))?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

fn redirect(answer: &Response) -> Result<Option<Url>> {
    if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
        return Ok(None);
    }
    let to = answer.headers().get(LOCATION).and_then(|to| to.to_str().ok());
    let to = to.with_context(|| format!("{} redirects to nowhere", answer.url()))?;
    Ok(Some(answer.url().join(to).with_context(|| format!("{} redirects to {to}", answer.url()))?))
}

fn unreachable(url: &Url, error: &reqwest::Error) -> anyhow::Error {
    let origin = url.origin().ascii_serialization();
    let why = root_cause(error);
    if error.is_connect() && is_loopback(url) {
        return anyhow!(
            "no daemon answers at {origin}: {why}; start one with `depsync primary DIR` or \
             `depsync run`, or name another with --url"
        );
    }
    if error.is_connect() {
        return anyhow!("{origin} cannot be reached: {why}");
    }
    anyhow!("talking to {origin} failed: {why}")
}

/// The innermost cause: what the system said.
pub(super) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// A body of JSON, of bounded size; none: null.
async fn json(mut answer: Response) -> Result<Value> {
    let url = answer.url().clone();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&url, &error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            bail!("{url} answers with more than {MAX_ANSWER} bytes");
        }
        body.extend_from_slice(&chunk);
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body)
        .with_context(|| format!("{url} does not answer in JSON; is it a depsync node?"))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn connection(url: &str) -> Connection {
        let url = url.parse().unwrap();
        Connection { url, token_file: None, ca: None, cert: None, key: None, state: None }
    }

    #[test]
    fn the_token_of_this_machine_stays_on_this_machine() {
        let state = tempfile::tempdir().unwrap();
        let token = state.path().join("admin.token");
        std::fs::write(&token, "secret\n").unwrap();
        let mode = |mode| std::fs::set_permissions(&token, Permissions::from_mode(mode)).unwrap();
        mode(0o600);
        for (url, here) in [
            ("http://127.0.0.1:7873", true),
            ("http://127.9.9.9:1", true),
            ("http://[::1]:7873", true),
            ("http://localhost:7873", true),
            ("http://localhost.example:7873", false),
            ("http://10.0.0.1:7873", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), here, "{url}");
        }
        let far = connection("http://10.0.0.1:7873");
        assert!(Client::new(&far).unwrap().token.is_none());
        let named = Connection { state: Some(state.path().to_owned()), ..far };
        assert_eq!(Client::new(&named).unwrap().token.unwrap(), "Bearer secret");
        mode(0o644);
        assert!(Client::new(&named).err().unwrap().to_string().contains("chmod 600"));
    }

    #[test]
    fn a_daemon_that_is_not_there_is_told_in_words() {
        // A port that was free a moment ago: nobody listens.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let client = Client::new(&connection(&format!("http://127.0.0.1:{port}"))).unwrap();
        let said = block_on(client.list("/v1/feeds", "feeds")).unwrap_err().to_string();
        assert!(
            said.starts_with(&format!("no daemon answers at http://127.0.0.1:{port}")),
            "{said}"
        );
        assert!(said.contains("depsync primary DIR"), "{said}");
    }
}
