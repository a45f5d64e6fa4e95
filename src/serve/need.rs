//! What each route needs: the one table, walked by a test with every role and with none.
//!
//! It is looked up before a request is routed. What is not in the table is there for admins only, so
//! that a route which somebody forgets here is shut, not open. `docs/access.md` says the same for people; a
//! test compares them.

use http::Method;

use crate::model::Need;

/// A pattern of paths (`{x}`: one segment; `{*x}`: the rest, perhaps none), what reading it needs, and
/// what anything else needs.
pub(super) const ROUTES: &[(&str, Need, Need)] = &[
    // The console's page holds no data: what it shows it asks for with its user's token.
    ("/", Need::Nothing, Need::Admin),
    ("/console/{file}", Need::Nothing, Need::Admin),
    ("/v1/openapi.json", Need::Nothing, Need::Admin),
    ("/livez", Need::Nothing, Need::Admin),
    ("/readyz", Need::Nothing, Need::Admin),
    ("/healthz", Need::Read, Need::Admin),
    ("/metrics", Need::Read, Need::Admin),
    ("/v1/feeds", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/files/{*path}", Need::Read, Need::Write),
    ("/v1/feeds/{feed}/at/{commit}/{*path}", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/archive/{*path}", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/tree/{commit}/{*path}", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/log", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/diff/{range}", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/held", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/propagation", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/upkeep", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/wait", Need::Read, Need::Admin),
    ("/v1/feeds/{feed}/follow", Need::Mirror, Need::Admin),
    ("/v1/feeds/{feed}/packs/{range}", Need::Mirror, Need::Admin),
    ("/v1/feeds/{feed}/objects/{*id}", Need::Mirror, Need::Admin),
    ("/v1/node", Need::Read, Need::Admin),
    ("/v1/nodes", Need::Read, Need::Admin),
    ("/v1/nodes/{id}", Need::Read, Need::Admin),
    ("/v1/regions", Need::Read, Need::Admin),
    ("/v1/locate/{feed}/{*path}", Need::Read, Need::Admin),
    ("/v1/runs", Need::Read, Need::Admin),
    ("/v1/events", Need::Read, Need::Admin),
    ("/v1/bandwidth", Need::Read, Need::Admin),
    ("/v1/audit", Need::Admin, Need::Admin),
    ("/v1/tokens", Need::Admin, Need::Admin),
    ("/v1/tokens/{id}", Need::Admin, Need::Admin),
    // Git and git-lfs read by POST; nothing below it changes anything.
    ("/git/{repository}/{*what}", Need::Read, Need::Read),
];

/// What a feed can be told, by POST to `/v1/feeds/{feed}/…`; all of it needs an admin.
pub(super) const COMMANDS: [&str; 15] = [
    "sync", "hold", "release", "approve", "reject", "rollback", "pin", "unpin", "revoke", "pause",
    "resume", "promote", "demote", "gc", "fsck",
];

/// What a request needs; none where no such route is known.
pub(super) fn need(method: &Method, path: &str) -> Option<Need> {
    if command_of(path).is_some_and(|name| COMMANDS.contains(&name)) {
        return Some(if method.is_safe() { Need::Read } else { Need::Admin });
    }
    let (_, reading, acting) = ROUTES.iter().find(|(pattern, ..)| matches(pattern, path))?;
    Some(if method.is_safe() { *reading } else { *acting })
}

/// Whether the body of a request is a file.
pub(super) fn is_upload(method: &Method, path: &str) -> bool {
    *method == Method::PUT && need(method, path) == Some(Need::Write)
}

fn command_of(path: &str) -> Option<&str> {
    let (_, command) = path.strip_prefix("/v1/feeds/")?.split_once('/')?;
    Some(command)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, path) = (without_slash(pattern), without_slash(path));
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        if wanted.starts_with("{*") {
            return true;
        }
        match segments.next() {
            Some(segment) if wanted == segment => {}
            Some(segment) if wanted.starts_with('{') && !segment.is_empty() => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}

/// The feed that a request is about; none where it is about the whole node.
pub(super) fn feed_of(path: &str) -> Option<&str> {
    let mut segments = path.split('/').skip(1);
    match (segments.next()?, segments.next()?) {
        ("git", repository) => repository.strip_suffix(".git"),
        ("v1", "feeds" | "locate") => segments.next().filter(|feed| !feed.is_empty()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_what_its_route_says() {
        let (get, put, post) = (Method::GET, Method::PUT, Method::POST);
        for (method, path, expected, feed) in [
            (&get, "/", Some(Need::Nothing), None),
            (&get, "/console/app.js", Some(Need::Nothing), None),
            (&get, "/console/a/b", None, None),
            (&get, "/livez", Some(Need::Nothing), None),
            (&get, "/v1/feeds", Some(Need::Read), None),
            (&get, "/v1/feeds/", Some(Need::Read), None),
            (&get, "/v1/feeds/apps", Some(Need::Read), Some("apps")),
            (&get, "/v1/feeds/apps/files", Some(Need::Read), Some("apps")),
            (&get, "/v1/feeds/apps/files/", Some(Need::Read), Some("apps")),
            (&get, "/v1/feeds/apps/files/a/b", Some(Need::Read), Some("apps")),
            (&Method::HEAD, "/v1/feeds/apps/files/a", Some(Need::Read), Some("apps")),
            (&put, "/v1/feeds/apps/files/a/b", Some(Need::Write), Some("apps")),
            (&Method::DELETE, "/v1/feeds/apps/files/a", Some(Need::Write), Some("apps")),
            (&put, "/v1/feeds/apps/at/0/a", Some(Need::Admin), Some("apps")),
            (&get, "/v1/feeds/apps/follow", Some(Need::Mirror), Some("apps")),
            (&get, "/v1/feeds/apps/objects/1/from/2", Some(Need::Mirror), Some("apps")),
            (&post, "/v1/feeds/apps/rollback", Some(Need::Admin), Some("apps")),
            (&get, "/v1/feeds/apps/rollback", Some(Need::Read), Some("apps")),
            (&post, "/v1/feeds/apps/nothing-known", None, Some("apps")),
            (&get, "/v1/locate/apps/a/b", Some(Need::Read), Some("apps")),
            (&Method::DELETE, "/v1/nodes/1", Some(Need::Admin), None),
            (&post, "/git/apps.git/git-upload-pack", Some(Need::Read), Some("apps")),
            (&get, "/git/apps.git/info/refs", Some(Need::Read), Some("apps")),
            (&get, "/git/apps/info/refs", Some(Need::Read), None),
            (&get, "//livez", None, None),
            (&get, "/v1//feeds", None, None),
        ] {
            assert_eq!((need(method, path), feed_of(path)), (expected, feed), "{method} {path}");
        }
    }

    #[test]
    fn every_route_is_in_the_table() {
        let literals = include_str!("mod.rs").split('"').skip(1).step_by(2);
        let routes = literals.filter(|text| text.starts_with('/') && !text.starts_with("/{*"));
        let mut count = 0;
        for route in routes {
            let below = route.starts_with("/v1") || route.starts_with("/git") || {
                ROUTES.iter().any(|(pattern, ..)| *pattern == route)
            };
            let path = if below { route.to_owned() } else { format!("/v1/feeds/x{route}") };
            let path = path.replace("{{", "{").replace("}}", "}").replace("{at}", "");
            assert!(need(&Method::GET, &path).is_some(), "{route} is not in the table");
            count += 1;
        }
        assert!(count > 20, "{count} routes were found");
    }
}
