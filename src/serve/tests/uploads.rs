//! Uploads and removals.

use axum::{body::Body, response::Response};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{TOKEN, World, body, bytes, header, names, request, sha256};

async fn act(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    content: Body,
) -> Response {
    let bearer = format!("Bearer {TOKEN}");
    let headers: Vec<_> = headers.iter().copied().chain([("authorization", &*bearer)]).collect();
    world.send(request(method, path, &headers, content)).await
}

#[tokio::test]
async fn a_file_lies_whole_in_the_folder_when_the_answer_comes() {
    let world = World::primary();
    for (path, content) in
        [("a.txt", bytes(10)), ("deep/er/b.war", bytes(900_000)), ("empty", Vec::new())]
    {
        let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(&content)));
        let (url, sent) = (format!("files/{path}"), Body::from(content.clone()));
        let answer = act(&world, "PUT", &url, &[("repr-digest", &digest)], sent).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{path}");
        let answer: Value = serde_json::from_slice(&body(answer).await).unwrap();
        assert_eq!((&answer["path"], &answer["sha256"]), (&path.into(), &sha256(&content).into()));
        assert!(std::fs::read(world.live().join(path)).unwrap() == content);
    }
    assert_eq!(act(&world, "PUT", "files/a.txt", &[], Body::from("new")).await.status(), 201);
    assert_eq!(std::fs::read(world.live().join("a.txt")).unwrap(), b"new");
    assert_eq!(act(&world, "DELETE", "files/a.txt", &[], Body::empty()).await.status(), 204);
    assert!(!world.live().join("a.txt").exists());
    assert_eq!(act(&world, "DELETE", "files/a.txt", &[], Body::empty()).await.status(), 404);
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let world = World::primary();
    std::fs::create_dir(world.live().join("folder")).unwrap();
    std::fs::write(world.live().join("file"), "as it was").unwrap();
    std::os::unix::fs::symlink(world.dir.path(), world.live().join("link")).unwrap();
    let before = names(&world.live());
    let wrong = format!("sha-256=:{}:", STANDARD.encode([0; 32]));
    let huge = bytes((1 << 20) + 1);
    for (path, headers, content, status) in [
        ("files/file", vec![("repr-digest", &*wrong)], &b"other"[..], 422),
        ("files/new/x", vec![("repr-digest", &*wrong)], &b"other"[..], 422),
        ("files/file", vec![("repr-digest", "sha-256=:x:")], b"other", 400),
        ("files/x.tmp", vec![], b"x", 422),
        ("files/.git/config", vec![], b"x", 422),
        ("files/a/.depsync", vec![], b"x", 422),
        ("files/../escape", vec![], b"x", 400),
        ("files/..%2fescape", vec![], b"x", 400),
        ("files/a%00", vec![], b"x", 400),
        ("files/big", vec![("content-length", "1048577")], &huge, 413),
        ("files/big", vec![], &huge, 413),
        ("files/folder", vec![], b"x", 409),
        ("files/file/x", vec![], b"x", 409),
        ("files/link/x", vec![], b"x", 409),
    ] {
        let answer = act(&world, "PUT", path, &headers, Body::from(content.to_vec())).await;
        assert_eq!(answer.status(), status, "{path} {headers:?}");
    }
    // A folder that was made on the way may stay; nothing else does.
    let after: Vec<_> =
        names(&world.live()).into_iter().filter(|name| !name.ends_with("/new")).collect();
    assert_eq!(after, before);
    assert_eq!(std::fs::read(world.live().join("file")).unwrap(), b"as it was");
    assert_eq!(act(&world, "DELETE", "files/folder", &[], Body::empty()).await.status(), 409);
    assert_eq!(act(&world, "DELETE", "files/x.tmp", &[], Body::empty()).await.status(), 422);
}

#[tokio::test]
async fn a_body_that_breaks_off_leaves_nothing() {
    let world = World::primary();
    let pieces = [Ok(Bytes::from(bytes(400_000))), Err(std::io::Error::other("gone"))];
    let stream = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(act(&world, "PUT", "files/x", &[], stream).await.status(), 400);
    assert_eq!(names(&world.live()), [""; 0]);
}

#[tokio::test]
async fn acting_needs_the_token() {
    let world = World::primary();
    for (method, path) in
        [("PUT", "files/x"), ("DELETE", "files/x"), ("POST", "sync"), ("POST", "approve")]
    {
        for headers in [vec![], vec![("authorization", "Bearer wrong")]] {
            let answer = world.send(request(method, path, &headers, Body::from("{}"))).await;
            assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        }
        let foreign =
            act(&world, method, path, &[("origin", "https://evil.example")], Body::empty()).await;
        assert_eq!(foreign.status(), StatusCode::MISDIRECTED_REQUEST);
    }
    assert_eq!(world.get("/v1/feeds", &[("host", "evil.example")]).await.status(), 421);
    assert_eq!(names(&world.live()), [""; 0]);
}

#[tokio::test]
async fn a_region_sends_writers_to_its_upstream() {
    let world = World::region();
    for method in ["PUT", "DELETE"] {
        let answer = act(&world, method, "files/a%20b?wait=commit", &[], Body::from("x")).await;
        assert_eq!(answer.status(), StatusCode::TEMPORARY_REDIRECT);
        let expected = "http://hub.example:7873/v1/feeds/apps/files/a%20b?wait=commit";
        assert_eq!(header(&answer, "location"), expected);
    }
    assert_eq!(names(&world.live()), [""; 0]);
}

#[tokio::test]
async fn an_upload_is_waited_for_until_it_is_published() {
    let world = World::primary();
    world.publish(&[("other", super::Put::Blob(b"x"))]);
    let publish = async {
        while !world.live().join("a.txt").exists() {
            tokio::task::yield_now().await;
        }
        world.publish(&[("a.txt", super::Put::Blob(b"old"))]);
        world.publish(&[("a.txt", super::Put::Blob(b"new"))])
    };
    let put = act(&world, "PUT", "files/a.txt?wait=commit", &[], Body::from("new"));
    let (answer, commit) = tokio::join!(put, publish);
    assert_eq!(answer.status(), StatusCode::CREATED);
    let told: Value = serde_json::from_slice(&body(answer).await).unwrap();
    assert_eq!(told["commit"], commit.to_string(), "the version that has these bytes");

    let late = act(&world, "PUT", "files/b?wait=commit&timeout=0", &[], Body::from("x")).await;
    assert_eq!(late.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(world.live().join("b").exists());
    let odd = act(&world, "PUT", "files/c?wait=ever", &[], Body::from("x")).await;
    assert_eq!(odd.status(), StatusCode::BAD_REQUEST);
    assert!(!world.live().join("c").exists());
}

#[tokio::test]
async fn a_change_that_a_region_lacks_is_named() {
    let world = World::primary();
    world.mirror("http://eu.example:7873/");
    world.publish(&[("a", super::Put::Blob(b"x"))]);
    let url = "files/a?wait=regions&timeout=0";
    let answer = act(&world, "PUT", url, &[], Body::from("x")).await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let told: Value = serde_json::from_slice(&body(answer).await).unwrap();
    assert_eq!(told["lacking"][0]["region"], "eu", "{told}");
}

#[tokio::test]
async fn a_removal_that_is_held_says_so() {
    let world = World::primary();
    world.publish(&[("a", super::Put::Blob(b"x"))]);
    std::fs::write(world.live().join("a"), "x").unwrap();
    let hold = async {
        while world.live().join("a").exists() {
            tokio::task::yield_now().await;
        }
        world.desk.state.send_modify(|state| {
            state.held = vec![crate::bus::Held {
                path: crate::model::RelPath::parse(b"a").unwrap(),
                cause: crate::bus::Cause::Deletion,
                reason: "its deletion waits".to_owned(),
                since: crate::sys::now(),
                decision: true,
            }];
        });
    };
    let (answer, ()) = tokio::join!(act(&world, "DELETE", "files/a", &[], Body::empty()), hold);
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let told: Value = serde_json::from_slice(&body(answer).await).unwrap();
    assert_eq!(told["held"], "its deletion waits");
}
