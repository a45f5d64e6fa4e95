//! What mirrors fetch, and a server on a real port.

use std::{
    io::{Seek, Write},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use super::{Put, World, body, bytes, header, sha256};

#[tokio::test]
async fn a_pack_resumes_where_it_was() {
    let world = World::primary();
    let first = world.publish(&[("a", Put::Blob(&bytes(20_000)))]);
    let second = world.publish(&[("b", Put::Blob(&bytes(30_000)))]);
    for path in [
        format!("packs/0..{first}"),
        format!("packs/{first}..{second}"),
        format!("packs/0..{second}"),
    ] {
        let response = world.get(&path, &[]).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let tag = header(&response, "etag").to_owned();
        let whole = body(response).await;
        assert!(whole.starts_with(b"PACK"));
        let rest = world.get(&path, &[("range", "bytes=100-"), ("if-range", &tag)]).await;
        assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header(&rest, "etag"), tag);
        assert_eq!(body(rest).await, whole[100..]);
    }
    let unknown = "0123456789012345678901234567890123456789";
    for (path, status, code) in [
        (format!("packs/{unknown}..{first}"), 404, "unknown_have"),
        (format!("packs/0..{unknown}"), 404, "no_such_commit"),
        (format!("packs/0.{first}"), 400, "malformed"),
        (format!("packs/{first}..HEAD"), 400, "malformed"),
    ] {
        let response = world.get(&path, &[]).await;
        assert_eq!(response.status(), status, "{path}");
        let error: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
        assert_eq!(error["error"], code, "{path}");
    }
}

#[tokio::test]
async fn only_objects_of_published_commits_are_given() {
    let world = World::primary();
    let (old, new, unpublished) = (bytes(600_000), bytes(600_001), bytes(600_002));
    world.publish(&[("a", Put::Object(&old))]);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&unpublished).unwrap();
    file.rewind().unwrap();
    world.desk.store.ingest(&mut file).unwrap();
    let get = async |bytes: &[u8], headers: &[(&str, &str)]| {
        world.get(&format!("objects/{}", sha256(bytes)), headers).await
    };
    assert_eq!(body(get(&old, &[]).await).await, old[..]);
    assert_eq!(get(&unpublished, &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get(&new, &[]).await.status(), StatusCode::NOT_FOUND);
    world.publish(&[("a", Put::Object(&new))]);
    for content in [&old, &new] {
        let part = get(content, &[("range", "bytes=599990-")]).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(body(part).await, content[599_990..]);
    }
    world.publish(&[("b", Put::Object(&unpublished)), ("a", Put::Nothing)]);
    assert_eq!(get(&unpublished, &[]).await.status(), StatusCode::OK);
    assert_eq!(world.get("objects/xyz", &[]).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_delta_resumes_and_is_given_only_where_it_is_worth_it() {
    let world = World::primary();
    let old = bytes(600_000);
    let new = [&bytes(600_000)[..], b"more"].concat();
    let (other, unpublished) = (vec![1; 600_000], bytes(600_002));
    world.publish(&[("a", Put::Object(&old))]);
    world.publish(&[("a", Put::Object(&new)), ("b", Put::Object(&other))]);
    let from = |new: &[u8], old: &[u8]| format!("objects/{}/from/{}", sha256(new), sha256(old));
    let whole = world.get(&from(&new, &old), &[]).await;
    assert_eq!(whole.status(), StatusCode::OK);
    let tag = header(&whole, "etag").to_owned();
    let whole = body(whole).await;
    assert!(whole.starts_with(b"dsdelta") && whole.len() < 300);
    let range = [("range", "bytes=50-"), ("if-range", &*tag)];
    let rest = world.get(&from(&new, &old), &range).await;
    assert_eq!(rest.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(body(rest).await, whole[50..]);
    for (new, old) in [(&other, &old), (&unpublished, &old), (&new, &unpublished)] {
        let answer = world.get(&from(new, old), &[]).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
        let error: serde_json::Value = serde_json::from_slice(&body(answer).await).unwrap();
        assert_eq!(error["error"], "no_delta");
    }
    let odd = format!("objects/{}/from/xyz", sha256(&new));
    assert_eq!(world.get(&odd, &[]).await.status(), StatusCode::BAD_REQUEST);
}

async fn connect(world: &World) -> (TcpStream, CancellationToken, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (edge, stop) = (Arc::clone(&world.edge), CancellationToken::new());
    let mut server = tokio::task::JoinSet::new();
    let stopped = stop.clone();
    server.spawn(async move { super::super::run(listener, None, edge, stopped).await.unwrap() });
    (TcpStream::connect(addr).await.unwrap(), stop, server)
}

#[tokio::test]
async fn a_server_answers_and_stops_when_told() {
    let world = World::primary();
    world.publish(&[("a", Put::Blob(b"hello"))]);
    let (mut client, stop, mut server) = connect(&world).await;
    for _ in 0..2 {
        client
            .write_all(b"GET /v1/feeds/apps/files/a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.join_next()).await;
    ended.expect("an idle connection does not hold up the stop").unwrap().unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_transfer_under_way_ends_whole_after_the_stop() {
    let world = World::primary();
    let content = bytes(8 << 20);
    world.publish(&[("big", Put::Object(&content))]);
    let (mut client, stop, mut server) = connect(&world).await;
    client
        .write_all(b"GET /v1/feeds/apps/files/big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![0; 1000];
    client.read_exact(&mut answer).await.unwrap();
    stop.cancel();
    client.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&content));
    server.join_next().await.unwrap().unwrap();
}
