//! Who may do what: the checks that come before everything else.
//!
//! A token's role must be enough for what the route needs (`need`). Where only this machine can
//! reach the daemon, reading is free. A `Host` that is neither loopback nor our own, and an acting
//! request with a foreign `Origin`, are turned away, so that no web page can use a browser on this
//! machine against the daemon. With `insecure` nothing is asked for.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, TimeDelta, Utc};
use http::{HeaderMap, Method, Uri, header};
use subtle::ConstantTimeEq;

use super::{
    error::Fault,
    need::{self, feed_of},
};
use crate::{
    ledger::{Decisions, tokens::Token},
    model::{Need, RegionName, Role, Scope},
    sys,
};

/// The id of the token that was made at the first start.
const ADMIN: &str = "admin";

/// A text that is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being printed.
    #[must_use]
    pub fn new(text: String) -> Self {
        Secret(text)
    }

    fn is(&self, offered: &[u8]) -> bool {
        !self.0.is_empty() && bool::from(self.0.as_bytes().ct_eq(offered))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// What is asked of a request.
#[derive(Clone)]
pub struct Access {
    /// Ask for nothing.
    pub insecure: bool,
    /// Whether whoever reaches the port may read: nobody but this machine can.
    pub open_reading: bool,
    /// What opens everything, for the commands on this machine.
    pub admin_token: Secret,
    /// Where the other tokens are kept.
    pub decisions: Arc<Decisions>,
    /// Host names, without port, that are ours besides those of loopback.
    pub own_hosts: Vec<String>,
    /// When each token was last shown.
    pub uses: Arc<Uses>,
}

/// When each token was last shown, since the start.
#[derive(Debug, Default)]
pub struct Uses(Mutex<HashMap<String, Use>>);

#[derive(Debug, Clone, Copy)]
struct Use {
    last: DateTime<Utc>,
    /// When it was last worth writing down.
    told: DateTime<Utc>,
}

impl Uses {
    /// Remembers a use; whether the last one that was written down is a minute old.
    pub(super) fn is_news(&self, id: &str, now: DateTime<Utc>) -> bool {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(id) {
            None => {
                uses.insert(id.to_owned(), Use { last: now, told: now });
                true
            }
            Some(known) => {
                known.last = now;
                let news = now - known.told >= TimeDelta::minutes(1);
                if news {
                    known.told = now;
                }
                news
            }
        }
    }

    /// Remembers a use that is not worth writing down.
    fn seen(&self, id: &str, now: DateTime<Utc>) {
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = uses.get_mut(id) {
            known.last = now;
        }
    }

    /// When a token was last shown.
    pub(super) fn last(&self, id: &str) -> Option<DateTime<Utc>> {
        let uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        uses.get(id).map(|known| known.last)
    }
}

/// Who asks, as far as a token tells.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// Nobody was asked who they are, or nothing was needed.
    Anyone,
    /// The admin of this machine.
    Admin,
    /// The holder of a token.
    Holder(Token),
}

impl Caller {
    /// What it is called where something is written down.
    pub(super) fn name(&self) -> String {
        match self {
            Caller::Anyone => "anyone".to_owned(),
            Caller::Admin => "admin".to_owned(),
            Caller::Holder(token) => format!("token {}", token.id),
        }
    }

    /// What it is called, where it has shown who it is.
    pub(super) fn shown(&self) -> Option<String> {
        self.token().map(|_| self.name())
    }

    /// The id of its token, where it showed one.
    pub(super) fn token(&self) -> Option<&str> {
        match self {
            Caller::Anyone => None,
            Caller::Admin => Some(ADMIN),
            Caller::Holder(token) => Some(&token.id),
        }
    }

    /// Whether it may be another node: what that says of itself can stop a primary.
    pub(super) fn may_mirror(&self) -> bool {
        match self {
            Caller::Anyone | Caller::Admin => true,
            Caller::Holder(token) => token.scope.role.allows(Need::Mirror),
        }
    }

    /// Whether clients of a region may be led to it.
    pub(super) fn may_serve(&self, region: &RegionName) -> bool {
        match self {
            Caller::Anyone | Caller::Admin => true,
            Caller::Holder(token) => token.scope.may_serve(region),
        }
    }

    fn opens(&self, need: Need, feed: Option<&str>) -> bool {
        match self {
            Caller::Anyone => need == Need::Nothing,
            Caller::Admin => true,
            Caller::Holder(token) => token.scope.opens(need, feed),
        }
    }
}

impl Access {
    /// Checks a request before it is routed, and says who asks.
    pub(super) fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Caller, Fault> {
        if self.insecure {
            return Ok(Caller::Anyone);
        }
        self.check_host(uri, headers)?;
        if !method.is_safe() {
            self.check_origin(headers)?;
        }
        let caller = self.caller(headers)?;
        let (need, feed) = (need::need(method, uri.path()), feed_of(uri.path()));
        if caller.opens(need.unwrap_or(Need::Admin), feed) || self.is_open(need) {
            return Ok(caller);
        }
        let Some(need) = need else { return Err(Fault::no_such_route()) };
        Err(match &caller {
            Caller::Holder(token) => refusal(&token.scope, need),
            _ => Fault::unauthorized(format!("{} needs a token: {HOW}", name_of(need))),
        })
    }

    /// Whether a token that was shown earlier is still good.
    pub(super) fn is_still_in(&self, caller: &Caller) -> bool {
        let Caller::Holder(token) = caller else { return true };
        self.uses.seen(&token.id, sys::now().into());
        Self::is_good(&self.decisions, &token.id)
    }

    /// Whether the token of this id is good now.
    pub fn is_good(decisions: &Decisions, token: &str) -> bool {
        let now = sys::now().into();
        let doc = decisions.get();
        token == ADMIN || doc.tokens.iter().any(|known| known.id == token && !known.is_expired(now))
    }

    fn is_open(&self, need: Option<Need>) -> bool {
        self.open_reading && matches!(need, Some(Need::Read | Need::Mirror))
    }

    /// Who shows which token; one that is not known is never as good as none.
    pub(super) fn caller(&self, headers: &HeaderMap) -> Result<Caller, Fault> {
        let Some(offered) = headers.get(header::AUTHORIZATION) else { return Ok(Caller::Anyone) };
        let Some(token) = token_of(offered.as_bytes()) else {
            return Err(Fault::unauthorized(format!("the token cannot be read: {HOW}")));
        };
        if self.admin_token.is(&token) {
            return Ok(Caller::Admin);
        }
        let known = self.decisions.token(&token, sys::now().into());
        known.map(Caller::Holder).ok_or_else(|| {
            Fault::unauthorized(
                "the token is not known here, has expired or was revoked; an admin makes another by \
                 `depsync token create`",
            )
        })
    }

    /// The target's own authority, where there is one, and every `Host` must be ours.
    fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Fault> {
        let named = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or("?"));
        let target = uri.authority().map(http::uri::Authority::as_str);
        match target.into_iter().chain(named).find(|host| !self.is_ours(host_of(host))) {
            None => Ok(()),
            Some(host) => Err(Fault::wrong_host(format!(
                "the host \"{host}\" is not this node; use a loopback address, or set `advertise`"
            ))),
        }
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Fault> {
        let ours = |origin: &str| {
            origin.split_once("://").is_some_and(|(_, host)| self.is_ours(host_of(host)))
        };
        for origin in headers.get_all(header::ORIGIN) {
            if !origin.to_str().is_ok_and(ours) {
                return Err(Fault::wrong_host("a page of another site may not act here"));
            }
        }
        Ok(())
    }

    fn is_ours(&self, host: &str) -> bool {
        let loopback = |host: &str| match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(addr) => addr.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        loopback(host) || self.own_hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

/// How a token is shown, and where the first one is.
const HOW: &str = "send `Authorization: Bearer`; the commands on this machine use admin.token of \
                   the state directory";

fn name_of(need: Need) -> &'static str {
    match need {
        Need::Nothing | Need::Read => "reading",
        Need::Mirror => "mirroring",
        Need::Write | Need::Admin => "acting",
    }
}

fn refusal(scope: &Scope, need: Need) -> Fault {
    if scope.role.allows(need) {
        let feed = scope.feed.as_ref().map_or("", |feed| feed.as_str());
        return Fault::forbidden(format!("the token is good for the feed \"{feed}\" alone"));
    }
    let role = Role::ALL.into_iter().find(|role| role.allows(need)).unwrap_or(Role::Admin);
    Fault::forbidden(format!(
        "the token is a {}'s, and {} needs a {role}'s",
        scope.role,
        name_of(need)
    ))
}

/// The host of `host[:port]`.
fn host_of(authority: &str) -> &str {
    let port = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
    &authority[..port.unwrap_or(authority.len())]
}

/// The token of `Bearer token`, or the password of `Basic`.
fn token_of(authorization: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(authorization).ok()?;
    let (scheme, value) = text.trim().split_once(' ')?;
    let value = value.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.as_bytes().to_vec());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let pair = STANDARD.decode(value).ok()?;
    let colon = pair.iter().position(|&c| c == b':')?;
    Some(pair[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(insecure: bool, admin_token: &str) -> Access {
        let folder = tempfile::tempdir().unwrap();
        Access {
            insecure,
            open_reading: true,
            admin_token: Secret::new(admin_token.to_owned()),
            decisions: Arc::new(Decisions::load(&folder.path().join("decisions.json")).unwrap()),
            own_hosts: vec!["hub.example".to_owned()],
            uses: Arc::default(),
        }
    }

    fn status(insecure: bool, method: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let access = access(insecure, "s3cret");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let checked = access.check(&method.parse().unwrap(), &uri.parse().unwrap(), &map);
        checked.map_or_else(|fault| fault.status().as_u16(), |_| 200)
    }

    #[test]
    fn hosts_that_are_not_ours_are_turned_away() {
        for (host, expected) in [
            ("localhost", 200),
            ("LOCALHOST:7873", 200),
            ("127.0.0.1:7873", 200),
            ("127.8.8.8", 200),
            ("[::1]:7873", 200),
            ("[::1]", 200),
            ("[::ffff:127.0.0.1]", 200),
            ("hub.example:7873", 200),
            ("evil.example", 421),
            ("localhost.evil.example", 421),
            ("10.0.0.1", 421),
            ("", 421),
        ] {
            assert_eq!(status(false, "GET", "/v1/feeds", &[("host", host)]), expected, "{host}");
            assert_eq!(status(true, "GET", "/v1/feeds", &[("host", host)]), 200, "{host}");
        }
        assert_eq!(
            status(false, "GET", "http://evil.example/v1/feeds", &[("host", "localhost")]),
            421
        );
        assert_eq!(status(false, "GET", "/v1/feeds", &[]), 200);
    }

    #[test]
    fn acting_needs_the_token_and_no_foreign_page() {
        let basic = format!("Basic {}", STANDARD.encode("anyone:s3cret"));
        let wrong = format!("Basic {}", STANDARD.encode("s3cret:other"));
        for (headers, expected) in [
            (vec![], 401),
            (vec![("authorization", "Bearer s3cret")], 200),
            (vec![("authorization", "bearer  s3cret")], 200),
            (vec![("authorization", "Bearer s3cre")], 401),
            (vec![("authorization", "Bearer ")], 401),
            (vec![("authorization", "s3cret")], 401),
            (vec![("authorization", &*basic)], 200),
            (vec![("authorization", &*wrong)], 401),
            (vec![("authorization", "Basic !!")], 401),
            (vec![("authorization", "Bearer s3cret"), ("origin", "http://localhost:7873")], 200),
            (vec![("authorization", "Bearer s3cret"), ("origin", "https://evil.example")], 421),
            (vec![("authorization", "Bearer s3cret"), ("origin", "null")], 421),
        ] {
            for method in ["PUT", "POST", "DELETE"] {
                assert_eq!(
                    status(false, method, "/v1/feeds/apps/files/a", &headers),
                    expected,
                    "{headers:?}"
                );
            }
            assert_eq!(status(true, "PUT", "/x", &headers), 200);
        }
    }

    #[test]
    fn git_reads_by_post() {
        for (uri, headers, expected) in [
            ("/git/apps.git/git-upload-pack", &[][..], 200),
            ("/git/apps.git/git-upload-pack", &[("origin", "https://evil.example")], 421),
            ("/git/apps.git/git-upload-pack", &[("host", "evil.example")], 421),
            ("/git", &[], 404),
            ("/v1/git/apps.git/git-upload-pack", &[], 404),
            ("//git/apps.git/git-upload-pack", &[], 404),
        ] {
            assert_eq!(status(false, "POST", uri, headers), expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn an_empty_token_opens_nothing_and_a_secret_is_not_printed() {
        let access = access(false, "");
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer ".parse().unwrap())]);
        assert!(access.check(&Method::POST, &Uri::from_static("/v1/tokens"), &headers).is_err());
        assert!(!format!("{:?}", Secret::new("hidden".to_owned())).contains("hidden"));
    }
}
