//! What stock git and git-lfs are told, line by line; that they understand it, scenarios show.

use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Put, World, body, bytes, header, request, sha256};

const REFS: &str = "/git/apps.git/info/refs?service=git-upload-pack";
const BATCH: &str = "/git/apps.git/info/lfs/objects/batch";

async fn text(response: Response) -> String {
    String::from_utf8_lossy(&body(response).await).into_owned()
}

async fn post(world: &World, path: &str, sent: impl Into<Body>) -> Response {
    world.send(request("POST", path, &[], sent.into())).await
}

#[tokio::test]
async fn only_the_published_line_is_advertised() {
    let world = World::primary();
    let commit = world.publish(&[("a", Put::Blob(b"one"))]);
    world.desk.store.set_checked_out(commit).unwrap();
    let old = world.get(REFS, &[]).await;
    assert_eq!(header(&old, "content-type"), "application/x-git-upload-pack-advertisement");
    let old = text(old).await;
    assert!(old.starts_with("001e# service=git-upload-pack\n0000"), "{old}");
    let names: Vec<&str> = old
        .lines()
        .filter_map(|line| line.split_once(&*commit.to_string()))
        .map(|(_, name)| name.split('\0').next().unwrap_or_default().trim())
        .collect();
    assert_eq!(names, ["HEAD", "refs/heads/main"], "{old}");

    let new = text(world.get(REFS, &[("git-protocol", "version=2")]).await).await;
    assert_eq!(new, old, "protocol 2 would give whatever is named");
}

async fn post_with(world: &World, headers: &[(&str, &str)], sent: &'static str) -> Response {
    world.send(request("POST", "/git/apps.git/git-upload-pack", headers, sent.into())).await
}

#[tokio::test]
async fn what_is_not_done_is_said_in_plain_text() {
    let world = World::primary();
    for (path, status, said) in [
        ("/git/apps.git/info/refs?service=git-receive-pack", 403, "read only"),
        ("/git/apps.git/info/refs", 403, "smart protocol"),
        ("/git/other.git/info/refs?service=git-upload-pack", 404, "there is: apps"),
        ("/git/apps/info/refs?service=git-upload-pack", 404, "/git/{feed}.git"),
    ] {
        let response = world.get(path, &[]).await;
        assert_eq!(response.status(), status, "{path}");
        assert!(header(&response, "content-type").starts_with("text/plain"), "{path}");
        let text = text(response).await;
        assert!(text.contains(said), "{path}: {text}");
    }
    let pushed = post(&world, "/git/apps.git/git-receive-pack", "0000").await;
    assert_eq!(pushed.status(), StatusCode::FORBIDDEN);
    for (headers, sent) in [
        (&[("content-encoding", "gzip")][..], "0000"),
        (&[("content-encoding", "br")], "0000"),
        (&[], "what is this?"),
    ] {
        let response = post_with(&world, headers, sent).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{headers:?} {sent}");
    }
    let large = post(&world, "/git/apps.git/git-upload-pack", bytes((4 << 20) + 1)).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn so_many_clones_at_once_and_no_more() {
    let world = World::primary();
    let all = world.edge.gits.try_acquire_many(8).unwrap();
    let response = world.get(REFS, &[]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&response, "retry-after"), "10");
    drop(all);
    let response = world.get(REFS, &[]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(world.edge.gits.available_permits(), 7, "git lives as long as its answer");
    drop(response);
    assert_eq!(world.edge.gits.available_permits(), 8);
}

#[tokio::test]
async fn a_batch_says_where_each_object_is_or_why_it_is_not() {
    let world = World::primary();
    let content = bytes(600_000);
    world.publish(&[("a", Put::Object(&content))]);
    let (id, other) = (sha256(&content), sha256(b"other"));
    let asked = json!({
        "operation": "download", "transfers": ["lfs-standalone-file", "basic"],
        "ref": { "name": "refs/heads/main" }, "hash_algo": "sha256",
        "objects": [
            { "oid": id, "size": 600_000 }, { "oid": id, "size": 1 },
            { "oid": other, "size": 5 }, { "oid": "../../x", "size": 5 },
        ],
    });
    let response = post(&world, BATCH, asked.to_string()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "content-type"), "application/vnd.git-lfs+json");
    let answer: Value = serde_json::from_slice(&body(response).await).unwrap();
    assert_eq!((&answer["transfer"], &answer["hash_algo"]), (&json!("basic"), &json!("sha256")));
    let codes: Vec<&Value> = answer["objects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|object| &object["error"]["code"])
        .collect();
    assert_eq!(codes, [&Value::Null, &json!(422), &json!(404), &json!(422)]);
    let href = answer["objects"][0]["actions"]["download"]["href"].as_str().unwrap();
    let path = href.strip_prefix("http://127.0.0.1:7873").unwrap();
    let rest = world.get(path, &[("range", "bytes=1000-")]).await;
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(body(rest).await, content[1000..]);
}

#[tokio::test]
async fn git_lfs_hears_what_is_refused_in_its_own_way() {
    let world = World::primary();
    let many = vec![json!({ "oid": "0", "size": 1 }); 1001];
    for (sent, status) in [
        (json!({ "operation": "upload", "objects": [] }), 403),
        (json!({ "operation": "download", "objects": [], "hash_algo": "sha512" }), 409),
        (json!({ "operation": "download", "objects": many }), 413),
        (json!({ "operation": "download" }), 400),
        (json!({ "operation": "download", "objects": [{ "oid": "0", "size": -1 }] }), 400),
    ] {
        let response = post(&world, BATCH, sent.to_string()).await;
        assert_eq!(response.status(), status, "{sent:.80}");
        assert_eq!(header(&response, "content-type"), "application/vnd.git-lfs+json");
        let answer: Value = serde_json::from_slice(&body(response).await).unwrap();
        assert!(answer["message"].is_string(), "{answer}");
    }
    assert_eq!(world.get("/git/apps.git/info/lfs/locks", &[]).await.status(), 404);
    assert_eq!(post(&world, "/git/apps.git/info/lfs/locks/verify", "{}").await.status(), 404);
}
