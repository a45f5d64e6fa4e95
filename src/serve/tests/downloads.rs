//! Downloads, redirects, listings and archives.

use std::{
    io::Read,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::body::Body;
use http::StatusCode;

use super::{Put, World, body, bytes, commit, from, header, request, sha256};
use crate::{
    bus::Request as Ask,
    model::{Freshness, RatePlan, Stale},
};

#[tokio::test]
async fn a_file_comes_whole_with_its_names() {
    let world = World::primary();
    let (small, large) = (bytes(3000), bytes(700_000));
    let commit =
        world.publish(&[("a/small.html", Put::Blob(&small)), ("large.war", Put::Object(&large))]);
    for (path, content, mime) in
        [("a/small.html", &small, "text/html"), ("large.war", &large, "application/java-archive")]
    {
        for url in [format!("files/{path}"), format!("at/{commit}/{path}")] {
            let response = world.get(&url, &[]).await;
            assert_eq!(response.status(), StatusCode::OK, "{url}");
            assert_eq!(header(&response, "etag"), format!("\"{}\"", sha256(content)));
            assert!(header(&response, "repr-digest").starts_with("sha-256=:"));
            assert!(header(&response, "content-disposition").contains("filename=\""));
            assert_eq!(header(&response, "x-depsync-commit"), commit.to_string());
            assert_eq!(header(&response, "content-type"), mime);
            assert_eq!(header(&response, "content-length"), content.len().to_string());
            assert_eq!(body(response).await, content[..], "{url}");
            let head = world.send(request("HEAD", &url, &[], Body::empty())).await;
            assert_eq!(header(&head, "content-length"), content.len().to_string());
            assert!(body(head).await.is_empty());
        }
    }
}

#[tokio::test]
async fn ranges_are_the_bytes_they_name() {
    let world = World::primary();
    let content = bytes(700_000);
    world.publish(&[("blob", Put::Blob(&content)), ("object", Put::Object(&content))]);
    let tag = format!("\"{}\"", sha256(&content));
    for path in ["files/blob", "files/object"] {
        for (range, first, end) in [
            ("bytes=0-0", 0, 1),
            ("bytes=300000-599999", 300_000, 600_000),
            ("bytes=-5", 699_995, 700_000),
        ] {
            for headers in [vec![("range", range)], vec![("range", range), ("if-range", &tag)]] {
                let response = world.get(path, &headers).await;
                assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
                let expected = format!("bytes {first}-{}/700000", end - 1);
                assert_eq!(header(&response, "content-range"), expected);
                assert_eq!(body(response).await, content[first..end], "{path} {range}");
            }
        }
        let stale = world.get(path, &[("range", "bytes=5-"), ("if-range", "\"other\"")]).await;
        assert_eq!(stale.status(), StatusCode::OK);
        assert_eq!(body(stale).await, content[..]);
        let beyond = world.get(path, &[("range", "bytes=700000-")]).await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(header(&beyond, "content-range"), "bytes */700000");
        let known = world.get(path, &[("if-none-match", &tag)]).await;
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert!(body(known).await.is_empty());
        let other = world.get(path, &[("if-match", "\"other\"")]).await;
        assert_eq!(other.status(), StatusCode::PRECONDITION_FAILED);
    }
}

#[tokio::test]
async fn an_old_version_stays_what_it_was() {
    let world = World::primary();
    let old = world.publish(&[("a", Put::Blob(b"old")), ("b", Put::Blob(b"kept"))]);
    let new = world.publish(&[("a", Put::Blob(b"new"))]);
    assert_eq!(body(world.get("files/a", &[]).await).await, "new");
    assert_eq!(body(world.get(&format!("at/{old}/a"), &[]).await).await, "old");
    assert_eq!(body(world.get(&format!("at/{new}/b"), &[]).await).await, "kept");
    let unknown = "0123456789012345678901234567890123456789";
    for (path, status) in [
        (format!("at/{unknown}/a"), 404),
        ("at/HEAD/a".to_owned(), 400),
        (format!("at/{}/a", &old.to_string()[..10]), 400),
        (format!("at/{old}/c"), 404),
        ("files/a/x".to_owned(), 404),
        ("files/a/".to_owned(), 404),
        ("/v1/feeds/none/files/a".to_owned(), 404),
    ] {
        assert_eq!(world.get(&path, &[]).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn nothing_leaks_through_a_path_or_a_link() {
    let world = World::primary();
    std::fs::write(world.dir.path().join("secret"), "secret").unwrap();
    world.publish(&[
        ("a/b/file", Put::Blob(b"inside")),
        ("a/good", Put::Link("b/file")),
        ("a/folder", Put::Link("./b/")),
        ("a/up", Put::Link("../a/folder/../b/file")),
        ("a/out", Put::Link("../../secret")),
        ("a/passwd", Put::Link("/etc/passwd")),
        ("a/loop", Put::Link("loop")),
        ("a/dangling", Put::Link("nowhere")),
        ("a/git", Put::Link("../.git/config")),
    ]);
    for path in ["files/a/good", "files/a/folder/file", "files/a/up"] {
        let response = world.get(path, &[]).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(body(response).await, "inside", "{path}");
    }
    for (path, status) in [
        ("files/a/out", 404),
        ("files/a/passwd", 404),
        ("files/a/passwd/", 404),
        ("files/a/loop", 404),
        ("files/a/dangling", 404),
        ("files/a/git", 404),
        ("files/../secret", 400),
        ("files/..%2fsecret", 400),
        ("files/a/..%2f..%2f..%2fsecret", 400),
        ("files/%2e%2e/secret", 400),
        ("files//etc/passwd", 400),
        ("files/%2fetc%2fpasswd", 400),
        ("files/a%00b", 400),
        ("files/.git/config", 404),
        ("files/.depsync/x", 404),
        ("at/../../secret", 400),
    ] {
        let response = world.get(path, &[]).await;
        assert_eq!(response.status(), status, "{path}");
        let text = String::from_utf8(body(response).await.to_vec()).unwrap();
        assert!(!text.contains("root:") && text != "secret", "{path}: {text}");
    }
}

#[tokio::test]
async fn the_primary_leads_clients_to_their_region() {
    let world = World::primary();
    let commit =
        world.publish(&[("a b/ä", Put::Blob(b"x")), ("big", Put::Object(&bytes(600_000)))]);
    let path = "files/a%20b/%C3%A4";
    let ask = |path: &str, peer, headers: &[_]| {
        let request = from(request("GET", path, headers, Body::empty()), peer);
        world.send(request)
    };
    assert_eq!(ask(path, "10.1.2.3", &[]).await.status(), StatusCode::OK, "no node: served here");
    world.mirror("http://eu.example:7873/");
    let target = format!("http://eu.example:7873/v1/feeds/apps/at/{commit}/a%20b/%C3%A4");
    for (peer, headers, query, led) in [
        ("10.1.2.3", vec![], "", true),
        ("::ffff:10.1.2.3", vec![], "", true),
        ("10.2.2.3", vec![], "", false),
        ("10.2.2.3", vec![("x-forwarded-for", "10.1.2.3")], "", false),
        ("10.0.0.5", vec![("x-forwarded-for", "6.6.6.6, 10.1.2.3")], "", true),
        ("10.0.0.5", vec![("x-forwarded-for", "10.1.2.3, 6.6.6.6")], "", false),
        ("10.2.2.3", vec![], "?via=eu", true),
        ("10.2.2.3", vec![], "?via=node-eu", true),
        ("10.1.2.3", vec![], "?via=primary", false),
        ("10.1.2.3", vec![], "?via=elsewhere", false),
    ] {
        let response = ask(&format!("{path}{query}"), peer, &headers).await;
        let expected = if led { StatusCode::TEMPORARY_REDIRECT } else { StatusCode::OK };
        assert_eq!(response.status(), expected, "{peer} {headers:?} {query}");
        if led {
            assert_eq!(header(&response, "location"), target);
            assert_eq!(header(&response, "cache-control"), "no-store");
        }
    }
    assert_eq!(ask("files/gone", "10.1.2.3", &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(ask("files/", "10.1.2.3", &[]).await.status(), StatusCode::OK, "a listing");
    let exact = ask(&format!("at/{commit}/big"), "10.1.2.3", &[]).await;
    assert_eq!(exact.status(), StatusCode::OK, "a version that is named is never led away");
}

#[tokio::test]
async fn a_region_fetches_what_a_redirect_names() {
    let (hub, world) = (World::primary(), World::region());
    let first = hub.publish(&[("a", Put::Blob(b"1"))]);
    let (store, desk) = (world.desk.store.clone(), world.desk.clone());
    world.desk.take_requests(Some(Box::new(move |ask| {
        let Ask::Fetch(_, answer) = ask else { return false };
        // The same bytes by the same node make the same commit.
        desk.post(commit(&store, &[("a", Put::Blob(b"1"))]));
        answer.send(Ok(())).is_ok()
    })));
    assert_eq!(world.get("files/a", &[]).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let response = world.get(&format!("at/{first}/a"), &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(header(&response, "cache-control").contains("immutable"));
    assert_eq!(body(response).await, "1");

    world.desk.take_requests(Some(Box::new(|ask| match ask {
        Ask::Fetch(_, answer) => answer.send(Err("the upstream is away".to_owned())).is_ok(),
        _ => false,
    })));
    let other = "0123456789012345678901234567890123456789";
    let response = world.get(&format!("at/{other}/a"), &[]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&response, "retry-after").is_empty());
}

#[tokio::test]
async fn a_region_says_how_old_its_newest_version_may_be() {
    let world = World::region();
    world.publish(&[("a", Put::Blob(b"x"))]);
    let fresh = world.get("files/a", &[]).await;
    assert_eq!((header(&fresh, "x-depsync-age"), header(&fresh, "x-depsync-stale")), ("0", ""));
    world.desk.state.send_modify(|state| {
        state.heartbeat =
            state.heartbeat.and_then(|heard| heard.checked_sub(std::time::Duration::from_secs(60)));
    });
    let stale = world.get("files/a", &[]).await;
    assert_eq!(stale.status(), StatusCode::OK);
    assert_eq!(
        (header(&stale, "x-depsync-age"), header(&stale, "x-depsync-stale")),
        ("60", "true")
    );
}

#[tokio::test]
async fn a_folder_is_listed_for_programs_and_for_people() {
    let world = World::primary();
    let large = bytes(600_000);
    let commit = world.publish(&[
        ("d/a.txt", Put::Blob(b"hello")),
        ("d/b.war", Put::Object(&large)),
        ("d/c", Put::Link("a.txt")),
        ("d/empty", Put::Folder),
        ("d/<x>", Put::Blob(b"")),
    ]);
    let listing = world.json("files/d").await;
    assert_eq!(listing["commit"], commit.to_string());
    let entries = listing["entries"].as_array().unwrap();
    let field = |name: &str, field: &str| {
        let entry = entries.iter().find(|entry| entry["name"] == name).unwrap();
        entry[field].clone()
    };
    assert_eq!(entries.len(), 5);
    assert_eq!(field("a.txt", "size"), 5);
    assert_eq!(field("a.txt", "mode"), "0640");
    assert_eq!(field("a.txt", "mtime"), "2020-09-13T12:26:40Z");
    assert_eq!(field("b.war", "size"), 600_000);
    assert_eq!(field("c", "target"), "a.txt");
    assert_eq!(field("empty", "type"), "folder");
    assert_eq!(world.json(&format!("tree/{commit}/d")).await["entries"], listing["entries"]);

    let page = world.json("files/d?limit=2").await;
    assert_eq!(page["entries"].as_array().unwrap().len(), 2);
    let next = super::super::target::encode(page["next"].as_str().unwrap().as_bytes());
    let rest = world.json(&format!("files/d/?after={next}")).await;
    assert_eq!(rest["entries"].as_array().unwrap().len(), 3);
    assert!(rest.get("next").is_none());

    let page = world.get("files/d", &[("accept", "text/html,*/*")]).await;
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let page = String::from_utf8(body(page).await.to_vec()).unwrap();
    assert!(page.contains("&lt;x&gt;") && !page.contains("<x>"), "{page}");
    assert!(page.contains("href=\"/v1/feeds/apps/files/d/%3Cx%3E\""), "{page}");
}

#[tokio::test]
async fn an_archive_holds_what_the_folder_holds() {
    let world = World::primary();
    let (large, long) = (bytes(900_000), format!("d/{}/{}", "x".repeat(120), "y".repeat(120)));
    world.publish(&[
        ("d/a.txt", Put::Blob(b"hello")),
        ("d/sub/b.war", Put::Object(&large)),
        ("d/c", Put::Link("a.txt")),
        ("d/empty", Put::Folder),
        (&long, Put::Blob(b"long")),
        ("outside", Put::Blob(b"no")),
    ]);
    let archive = body(world.get("archive/d.tar", &[]).await).await;
    let mut seen = Vec::new();
    for entry in tar::Archive::new(&*archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        match &*path {
            "a.txt" => {
                assert_eq!(content, b"hello");
                assert_eq!(entry.header().mode().unwrap(), 0o640);
                assert_eq!(entry.header().mtime().unwrap(), 1_600_000_000);
            }
            "sub/b.war" => assert!(content == large),
            "c" => assert_eq!(entry.link_name().unwrap().unwrap().to_string_lossy(), "a.txt"),
            _ => {}
        }
        seen.push(path.trim_end_matches('/').to_owned());
    }
    seen.sort();
    let long = long.strip_prefix("d/").unwrap();
    let folder = long.split('/').next().unwrap();
    assert_eq!(seen, ["a.txt", "c", "empty", "sub", "sub/b.war", folder, long]);
    assert_eq!(world.get("archive/outside.tar", &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(world.get("archive/gone.tar", &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(world.get("archive/.tar", &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_limit_holds_for_every_kind_of_download() {
    let world = World::primary();
    let content = bytes(200_000);
    world.publish(&[("blob", Put::Blob(&content)), ("object", Put::Object(&content))]);
    let total = Some("1MB/s".parse().unwrap());
    world.edge.throttle().set_plan(RatePlan { total, ..RatePlan::default() });
    let begin = std::time::Instant::now();
    let both = async {
        for path in ["files/blob", "files/object"] {
            assert_eq!(body(world.get(path, &[]).await).await, content[..]);
        }
    };
    tokio::select! { () = both => {}, () = world.edge.throttle().pace() => {} }
    assert!(begin.elapsed().as_millis() >= 290, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_made_up_commit_costs_the_upstream_one_question() {
    let world = World::region();
    world.publish(&[("a", Put::Blob(b"x"))]);
    world.desk.state.send_modify(|state| state.want = world.desk.head());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    world.desk.take_requests(Some(Box::new(move |ask| match ask {
        Ask::Fetch(_, answer) => {
            count.fetch_add(1, Relaxed);
            answer.send(Err("the upstream has no such commit".to_owned())).is_ok()
        }
        _ => false,
    })));
    let made_up = "at/0123456789012345678901234567890123456789/a";
    for _ in 0..5 {
        assert_eq!(world.get(made_up, &[]).await.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(asked.load(Relaxed), 1);
    let new = world.publish(&[("a", Put::Blob(b"y"))]);
    world.desk.state.send_modify(|state| state.want = world.desk.head());
    assert_eq!(world.get(made_up, &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(asked.load(Relaxed), 2, "after a release it may be known");
    assert_eq!(world.get(&format!("at/{new}/a"), &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_region_that_asks_serves_what_its_upstream_has_now() {
    let world = World::region_with(Freshness::Ask, Stale::Serve);
    world.publish(&[("a", Put::Blob(b"old"))]);
    let (store, desk) = (world.desk.store.clone(), world.desk.clone());
    let upstream = Arc::new(Mutex::new(Some(commit(&store, &[("a", Put::Blob(b"new"))]))));
    world.desk.take_requests(Some(Box::new(move |ask| match ask {
        Ask::Sync(answer) => {
            let Some(published) = upstream.lock().unwrap().take() else {
                return answer.send(Err("away".to_owned())).is_ok();
            };
            desk.state.send_modify(|state| state.want = Some(published.head));
            desk.post(published);
            answer.send(Ok(())).is_ok()
        }
        _ => false,
    })));
    let fresh = world.get("files/a", &[]).await;
    assert_eq!((header(&fresh, "x-depsync-age"), header(&fresh, "x-depsync-stale")), ("0", ""));
    assert_eq!(body(fresh).await, "new");
    let stale = world.get("files/a", &[]).await;
    assert_eq!(header(&stale, "x-depsync-stale"), "true", "the upstream is away");
    assert_eq!(body(stale).await, "new");
}

#[tokio::test]
async fn a_region_that_must_not_be_stale_refuses_without_its_upstream() {
    let world = World::region_with(Freshness::Lease, Stale::Refuse);
    let commit = world.publish(&[("a", Put::Blob(b"x"))]);
    assert_eq!(world.get("files/a", &[]).await.status(), StatusCode::OK);
    world.desk.state.send_modify(|state| state.heartbeat = None);
    let refused = world.get("files/a", &[]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&refused, "retry-after").is_empty());
    assert_eq!(world.get("archive/.tar", &[]).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let exact = world.get(&format!("at/{commit}/a"), &[]).await;
    assert_eq!(exact.status(), StatusCode::OK, "a version that is named is never stale");
}
