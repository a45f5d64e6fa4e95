//! Who may do what: the checks that come before everything else.
//!
//! On loopback reading is free and acting needs the admin token; a `Host` that is neither loopback
//! nor our own, and an acting request with a foreign `Origin`, are turned away, so that no web page
//! can use a browser on this machine against the daemon. With `insecure` nothing is asked for.

use std::{fmt, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, Uri, header};
use subtle::ConstantTimeEq;

use super::error::Fault;

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
#[derive(Debug, Clone)]
pub struct Access {
    /// Ask for nothing.
    pub insecure: bool,
    /// What acting needs.
    pub admin_token: Secret,
    /// Host names, without port, that are ours besides those of loopback.
    pub own_hosts: Vec<String>,
}

impl Access {
    /// Checks a request before it is routed.
    pub(super) fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Fault> {
        if self.insecure {
            return Ok(());
        }
        self.check_host(uri, headers)?;
        if method.is_safe() {
            return Ok(());
        }
        self.check_origin(headers)?;
        // Git and git-lfs read by POST; nothing below it acts.
        if uri.path().starts_with("/git/") {
            return Ok(());
        }
        self.check_token(headers)
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

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Fault> {
        let Some(offered) = headers.get(header::AUTHORIZATION) else {
            return Err(Fault::unauthorized(
                "acting needs a token: send `Authorization: Bearer`, the token is in admin.token of the state directory",
            ));
        };
        if token_of(offered.as_bytes()).is_some_and(|token| self.admin_token.is(&token)) {
            return Ok(());
        }
        Err(Fault::unauthorized("the token is not the one in admin.token of the state directory"))
    }

    fn is_ours(&self, host: &str) -> bool {
        let loopback = |host: &str| match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(addr) => addr.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        loopback(host) || self.own_hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
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

    fn status(insecure: bool, method: &str, uri: &str, headers: &[(&str, &str)]) -> u16 {
        let access = Access {
            insecure,
            admin_token: Secret::new("s3cret".to_owned()),
            own_hosts: vec!["hub.example".to_owned()],
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let checked = access.check(&method.parse().unwrap(), &uri.parse().unwrap(), &map);
        checked.map_or_else(|fault| fault.status().as_u16(), |()| 200)
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
            assert_eq!(status(false, "GET", "/", &[("host", host)]), expected, "{host}");
            assert_eq!(status(true, "GET", "/", &[("host", host)]), 200, "{host}");
        }
        assert_eq!(status(false, "GET", "http://evil.example/x", &[("host", "localhost")]), 421);
        assert_eq!(status(false, "GET", "/", &[]), 200);
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
                assert_eq!(status(false, method, "/", &headers), expected, "{headers:?}");
            }
            assert_eq!(status(true, "PUT", "/", &headers), 200);
        }
    }

    #[test]
    fn git_reads_by_post() {
        for (uri, headers, expected) in [
            ("/git/apps.git/git-upload-pack", &[][..], 200),
            ("/git/apps.git/git-upload-pack", &[("origin", "https://evil.example")], 421),
            ("/git/apps.git/git-upload-pack", &[("host", "evil.example")], 421),
            ("/git", &[], 401),
            ("/v1/git/apps.git/git-upload-pack", &[], 401),
            ("//git/apps.git/git-upload-pack", &[], 401),
        ] {
            assert_eq!(status(false, "POST", uri, headers), expected, "{uri} {headers:?}");
        }
    }

    #[test]
    fn an_empty_token_opens_nothing_and_a_secret_is_not_printed() {
        let access = Access {
            insecure: false,
            admin_token: Secret::new(String::new()),
            own_hosts: Vec::new(),
        };
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, "Bearer ".parse().unwrap())]);
        assert!(access.check(&Method::POST, &Uri::from_static("/"), &headers).is_err());
        assert!(!format!("{:?}", Secret::new("hidden".to_owned())).contains("hidden"));
    }
}
