//! Every route with every role and with none, as `docs/access.md` says it.

use super::*;
use crate::{
    bus::Learned,
    model::{Pass, PassSecret, Role, Scope, day_of},
    serve::{
        need::{COMMANDS, ROUTES},
        passes::Told,
    },
};

/// A row of the table: a method, a path with its variables filled in, and who gets through.
struct Row {
    method: String,
    pattern: String,
    path: String,
    allowed: Vec<bool>,
}

fn table() -> Vec<Row> {
    let text = include_str!("../../../docs/access.md");
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let mut table = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let pattern = cells[1].trim_matches('`').to_owned();
        let path = [("{feed}", "apps"), ("{path}", "a"), ("{commit}", &"0".repeat(40))];
        let path = path.into_iter().chain([("{file}", "app.js")]).collect::<Vec<_>>();
        let path =
            path.iter().fold(pattern.clone(), |path, (name, value)| path.replace(name, value));
        let path = path.replace("{range}", "0..1").replace("{sha256}", &"0".repeat(64));
        let path = path.replace("{base}", &"1".repeat(64)).replace("{id}", "1");
        let allowed: Vec<bool> = cells[2..].iter().map(|cell| *cell == "yes").collect();
        assert_eq!(allowed.len(), 5, "{row}");
        for method in cells[0].split(", ") {
            let (method, allowed) = (method.to_owned(), allowed.clone());
            table.push(Row { method, pattern: pattern.clone(), path: path.clone(), allowed });
        }
    }
    table
}

impl World {
    fn locked() -> World {
        let mut world = World::new(Freshness::Lease, Stale::Serve);
        Arc::get_mut(&mut world.edge).unwrap().access.open_reading = false;
        world
    }

    fn token(&self, role: Role, feed: Option<&str>) -> String {
        let feed = feed.map(|feed| feed.parse().unwrap());
        let scope = Scope { role, feed, region: None };
        let made = self.edge.access.decisions.create_token(scope, None, crate::sys::now().into());
        made.unwrap().unwrap().secret
    }

    async fn status(&self, method: &str, path: &str, token: Option<&str>) -> u16 {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(Body::empty()).unwrap()).await.status().as_u16()
    }

    /// The status of a request with a token that nobody knows.
    async fn guess(&self, method: &str, path: &str, host: u8) -> u16 {
        let token = "Bearer depsync_unknown";
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let mut request = request.header("authorization", token).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer(SocketAddr::from(([10, 0, 8, host], 4000))));
        self.send(request).await.status().as_u16()
    }
}

#[tokio::test]
async fn every_role_gets_through_where_the_table_says_so() {
    let world = World::locked();
    let roles = Role::ALL.map(|role| world.token(role, None));
    let tokens: Vec<Option<&str>> =
        std::iter::once(None).chain(roles.iter().map(|token| Some(token.as_str()))).collect();
    let table = table();
    assert!(table.len() > 40, "{}", table.len());
    let mut guesses = 0_u8;
    for Row { method, path, allowed, .. } in &table {
        for (token, allowed) in tokens.iter().zip(allowed) {
            let status = world.status(method, path, *token).await;
            let refused = if token.is_none() { 401 } else { 403 };
            assert_eq!(status != refused && status != 401, *allowed, "{method} {path}: {status}");
        }
        // From another address each time: guessing is answered ever later.
        guesses += 1;
        let unknown = world.guess(method, path, guesses).await;
        assert_eq!(unknown, 401, "{method} {path}: a wrong token is never as good as none");
    }
}

#[tokio::test]
async fn a_token_for_one_feed_is_good_for_nothing_else() {
    let world = World::locked();
    let (ours, others) =
        (world.token(Role::Admin, Some("apps")), world.token(Role::Admin, Some("other")));
    for Row { method, path, pattern, allowed } in &table() {
        if allowed[0] {
            continue;
        }
        assert_eq!(world.status(method, path, Some(&others)).await, 403, "{method} {path}");
        let status = world.status(method, path, Some(&ours)).await;
        assert_eq!(status == 403, !pattern.contains("{feed}"), "{method} {path}: {status}");
    }
}

#[tokio::test]
async fn what_is_not_in_the_table_is_not_there() {
    let world = World::locked();
    let writer = world.token(Role::Writer, None);
    for path in ["/v1/feeds/apps/secrets", "/v2", "//livez", "/v1/feeds/apps/../tokens"] {
        for token in [None, Some(writer.as_str())] {
            assert_eq!(world.status("GET", path, token).await, 404, "{path}");
            assert_eq!(world.status("POST", path, token).await, 404, "{path}");
        }
    }
}

#[test]
fn the_documentation_names_every_route() {
    let table = table();
    let has = |path: &str| {
        let segment = |a: &str, b: &str| a == b || (a.starts_with('{') && b.starts_with('{'));
        let fits = |row: &Row| {
            let (mut ours, mut theirs) = (path.split('/'), row.pattern.split('/'));
            loop {
                match (ours.next(), theirs.next()) {
                    (Some(a), _) if a.starts_with("{*") => return true,
                    (Some(a), Some(b)) if segment(a, b) => {}
                    (Some("{repository}"), Some("{feed}.git")) | (None, None) => return true,
                    _ => return false,
                }
            }
        };
        table.iter().any(fits)
    };
    for (path, ..) in ROUTES {
        assert!(has(path), "{path} is not in docs/access.md");
    }
    for command in COMMANDS {
        assert!(
            has(&format!("/v1/feeds/{{feed}}/{command}")),
            "{command} is not in docs/access.md"
        );
    }
}

/// A request of a client that has an address.
async fn from_outside(world: &World, method: &str, path: &str, token: &str, body: &str) -> u16 {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(body.to_owned()))
        .unwrap();
    request.extensions_mut().insert(Peer(SocketAddr::from(([10, 0, 9, 1], 4000))));
    world.send(request).await.status().as_u16()
}

#[tokio::test]
async fn who_acts_is_written_down_with_what_they_asked_for_and_how_it_ended() {
    let world = World::locked();
    let admin = world.token(Role::Admin, None);
    let reader = world.token(Role::Reader, None);
    let wish = r#"{"role":"reader"}"#;
    assert_eq!(from_outside(&world, "POST", "/v1/tokens", &admin, wish).await, 201);
    assert_eq!(from_outside(&world, "GET", "/v1/feeds", &reader, "").await, 200);
    assert_eq!(from_outside(&world, "DELETE", "/v1/feeds/apps/files/a", &reader, "").await, 403);

    let request = Request::get("/v1/audit").header("authorization", format!("Bearer {admin}"));
    let answer = body(world.send(request.body(Body::empty()).unwrap()).await).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let acts = answer["acts"].as_array().unwrap();
    assert_eq!(acts.len(), 2, "reading is no act: {acts:?}");
    let fields = |at: usize| {
        ["action", "who", "from", "detail"].map(|key| acts[at][key].as_str().unwrap_or_default())
    };
    let decided = world.edge.access.decisions.get();
    let (id, refused) = (&decided.tokens[0].id, format!("token {}", decided.tokens[1].id));
    assert_eq!(fields(1), ["POST /v1/tokens", &format!("token {id}"), "10.0.9.1", wish]);
    assert_eq!((&acts[0]["status"], &acts[1]["status"]), (&403.into(), &201.into()));
    assert_eq!(fields(0)[..2], ["DELETE /v1/feeds/apps/files/a", &refused]);
    let file = std::fs::read_to_string(world.dir.path().join("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 2);
    assert!(!file.contains(&admin) && !file.contains(&reader), "no secret is written");

    let request = Request::get("/v1/tokens").header("authorization", format!("Bearer {admin}"));
    let answer = body(world.send(request.body(Body::empty()).unwrap()).await).await;
    let tokens: Value = serde_json::from_slice(&answer).unwrap();
    let used = |at: usize| tokens["tokens"][at]["last_used"].is_string();
    assert_eq!([used(0), used(1), used(2)], [true, true, false], "{tokens}");
}

#[tokio::test]
async fn guessing_takes_ever_longer_and_fills_no_disk() {
    let world = World::locked();
    let began = std::time::Instant::now();
    for guess in 0..5 {
        let token = format!("depsync_{guess}");
        assert_eq!(from_outside(&world, "GET", "/v1/feeds", &token, "").await, 401);
    }
    assert!(began.elapsed().as_millis() >= 300, "{:?}", began.elapsed());
    let file = std::fs::read_to_string(world.dir.path().join("audit.jsonl")).unwrap();
    assert_eq!(file.lines().count(), 3, "the first, the second and the fourth");
    let reader = world.token(Role::Reader, None);
    assert_eq!(from_outside(&world, "GET", "/v1/feeds", &reader, "").await, 200);
}

/// A region `eu` whose upstream has given it the keys of today and tomorrow.
fn region_with_keys(secret: &PassSecret, ahead: i64) -> World {
    let mut world = World::region();
    let edge = Arc::get_mut(&mut world.edge).unwrap();
    edge.access.open_reading = false;
    edge.region = Some("eu".parse().unwrap());
    let now = now_secs();
    let keys = secret.keys(&"apps".parse().unwrap(), &"eu".parse().unwrap(), now).to_vec();
    let learned = Learned { ahead_ms: 1000 * ahead, keys, readers: Vec::new() };
    world.desk.learned.send_replace(learned);
    world
}

fn now_secs() -> u64 {
    crate::sys::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn a_pass_opens_one_file_at_one_region_until_it_ends() {
    let secret = PassSecret::new([9; 32]);
    let world = region_with_keys(&secret, 0);
    let commit = world.publish(&[("a b", Put::Blob(b"hello")), ("c", Put::Blob(b"other"))]);
    let (feed, region) = ("apps".parse().unwrap(), "eu".parse().unwrap());
    let path = RelPath::parse(b"a b").unwrap();
    let expires = now_secs() + 600;
    let pass = Pass { feed: &feed, commit, path: &path, region: &region, expires };
    let query = secret.key(&feed, &region, day_of(expires)).query(&pass);
    let status = async |path: String| world.get(&path, &[]).await.status().as_u16();

    let signed = world.get(&format!("at/{commit}/a%20b?{query}"), &[]).await;
    assert_eq!(signed.status().as_u16(), 200);
    assert_eq!(body(signed).await, "hello");
    // The client sends along the token that it showed at the primary, which is not known here.
    let elsewhere = [("authorization", "Bearer depsync_elsewhere")];
    assert_eq!(world.get(&format!("at/{commit}/a%20b?{query}"), &elsewhere).await.status(), 200);
    for refused in [
        format!("at/{commit}/a%20b"),
        format!("at/{commit}/c?{query}"),
        format!("at/{commit}/?{query}"),
        format!("files/a%20b?{query}"),
        format!("log?{query}"),
        format!("at/{commit}/a%20b?{}", query.replace("exp=", "exp=1")),
        format!("at/{commit}/a%20b?exp={expires}&sig={}", "0".repeat(64)),
        format!("at/{commit}/a%20b?exp=x&sig="),
    ] {
        assert_eq!(status(refused.clone()).await, 401, "{refused}");
    }
    let put = request("PUT", &format!("at/{commit}/a%20b?{query}"), &[], Body::empty());
    assert_eq!(world.send(put).await.status(), 401, "a pass is for reading");

    let late = region_with_keys(&secret, 601);
    let answer = late.get(&format!("at/{commit}/a%20b?{query}"), &[]).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT, "by the upstream's clock it ended");
    let back = format!("http://hub.example:7873/v1/feeds/apps/at/{commit}/a%20b");
    assert_eq!(header(&answer, "location"), back);
}

#[tokio::test]
async fn a_redirect_of_a_primary_that_asks_for_tokens_is_signed_for_its_region() {
    let mut world = World::primary();
    let secret = PassSecret::new([9; 32]);
    Arc::get_mut(&mut world.edge).unwrap().pass_secret = Some(secret.clone());
    let commit = world.publish(&[("a", Put::Blob(b"hello"))]);
    world.mirror("http://eu.example:1");
    let answer = world.get("files/a?via=eu", &[]).await;
    assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
    let location = header(&answer, "location").to_owned();
    let start = format!("http://eu.example:1/v1/feeds/apps/at/{commit}/a?exp=");
    let (expires, signature) = location.strip_prefix(&start).unwrap().split_once("&sig=").unwrap();
    let expires: u64 = expires.parse().unwrap();
    assert!((890..=900).contains(&(expires - now_secs())));
    let (feed, region) = ("apps".parse().unwrap(), "eu".parse().unwrap());
    let path = RelPath::parse(b"a").unwrap();
    let pass = Pass { feed: &feed, commit, path: &path, region: &region, expires };
    assert!(secret.key(&feed, &region, day_of(expires)).signed(&pass, signature));

    // What a node is told: the keys of its own region, once, and who may read.
    let node: NodeId = "node-eu".parse().unwrap();
    let reader = world.token(Role::Reader, None);
    let _ = (world.token(Role::Writer, None), world.token(Role::Reader, Some("other")));
    let mut told = Told::default();
    let trust = world.edge.trust(&world.desk, &node, &mut told).unwrap();
    let regions: Vec<_> = trust.keys.unwrap().into_iter().map(|key| key.region).collect();
    assert_eq!(regions, [region.clone(), region]);
    assert_eq!(trust.readers.unwrap().len(), 1, "only who may read this feed");
    let again = world.edge.trust(&world.desk, &node, &mut told).unwrap();
    assert_eq!((again.keys, again.readers), (None, None));
    let id = world.edge.access.decisions.get().tokens[0].id.clone();
    assert!(!reader.is_empty() && world.edge.access.decisions.revoke_token(&id).unwrap());
    let after = world.edge.trust(&world.desk, &node, &mut told).unwrap();
    assert_eq!(after.readers, Some(Vec::new()), "a revoked one is taken back");
    let stranger = "someone".parse().unwrap();
    let keys = world.edge.trust(&world.desk, &stranger, &mut Told::default()).unwrap().keys;
    assert_eq!(keys, Some(Vec::new()));
}
