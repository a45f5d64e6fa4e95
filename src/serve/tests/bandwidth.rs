//! Limits: shown, changed while bodies are under way, refused when wrong.

use axum::{body::Body, response::Response};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Put, TOKEN, World, body, bytes, header, request};

async fn put(world: &World, limits: &Value) -> Response {
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", &*bearer)];
    world.send(request("PUT", "/v1/bandwidth", &headers, Body::from(limits.to_string()))).await
}

#[tokio::test]
async fn limits_are_changed_as_a_whole_or_not_at_all() {
    let world = World::primary();
    let good = json!({
        "total": "50MB/s", "per_client": "10MB/s", "max_downloads": 7,
        "networks": [{ "cidr": "10.20.0.0/16", "limit": "1MB/s" }, { "region": "eu", "limit": "2MB/s" }],
        "windows": [{ "start": "* * * * * *", "for_ms": 2000, "timezone": "Europe/Berlin", "total": "5MB/s" }],
    });
    assert_eq!(put(&world, &good).await.status(), StatusCode::OK);
    let shown = world.json("/v1/bandwidth").await;
    assert_eq!(shown["limits"]["total"], "50MB/s");
    assert_eq!(shown["limits"]["networks"], good["networks"]);
    assert_eq!(shown["limits"]["windows"][0]["timezone"], "Europe/Berlin");
    assert_eq!(shown["in_force"]["total"], "5MB/s", "a window that is always open");
    assert_eq!(shown["in_force"]["per_client"], "10MB/s");
    for (wrong, status, part) in [
        (json!({ "total": "0MB/s" }), 400, "zero"),
        (json!({ "total": "-1MB/s" }), 400, "positive"),
        (json!({ "total": "10Mb/s" }), 400, "unit"),
        (json!({ "totl": "10MB/s" }), 400, "totl"),
        (json!({ "max_downloads": 0 }), 422, "max_downloads"),
        (json!({ "networks": [{ "region": "nowhere", "limit": "1MB/s" }] }), 422, "nowhere"),
        (json!({ "networks": [{ "limit": "1MB/s" }] }), 422, "cidr"),
        (json!({ "windows": [{ "start": "0 0 0 30 2 *", "for_ms": 1 }] }), 422, "never fires"),
        (json!({ "windows": [{ "start": "0 0 8 * * 1-5", "for_ms": 1 }] }), 422, "by name"),
        (json!({ "windows": [{ "start": "0 0 8 * * *", "for_ms": 0 }] }), 422, "open for"),
    ] {
        let answer = put(&world, &wrong).await;
        assert_eq!(answer.status(), status, "{wrong}");
        let said = String::from_utf8(body(answer).await.to_vec()).unwrap();
        assert!(said.contains(part), "{wrong}: {said}");
        assert_eq!(world.json("/v1/bandwidth").await["limits"], shown["limits"], "{wrong}");
    }
    let request = request("PUT", "/v1/bandwidth", &[], Body::from("{}"));
    assert_eq!(world.send(request).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn downloads_beyond_the_queue_are_told_to_come_again() {
    let world = World::primary();
    let content = bytes(600_000);
    world.publish(&[("blob", Put::Blob(&content)), ("object", Put::Object(&content))]);
    assert_eq!(put(&world, &json!({ "max_downloads": 2, "max_queue": 0 })).await.status(), 200);
    let (first, second) =
        (world.get("files/blob", &[]).await, world.get("files/object", &[]).await);
    let refused = world.get("files/blob", &[]).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&refused, "retry-after").is_empty());
    let head = world.send(request("HEAD", "files/blob", &[], Body::empty())).await;
    assert_eq!(head.status(), StatusCode::OK, "it sends nothing");
    assert_eq!(world.json("/v1/bandwidth").await["sending"], 2);
    assert_eq!(body(first).await, content[..]);
    assert_eq!(world.get("files/blob", &[]).await.status(), StatusCode::OK);
    drop(second);
    let shown = world.json("/v1/bandwidth").await;
    assert_eq!((&shown["sending"], &shown["refused"]), (&json!(0), &json!(1)));
    let page = world.get("/metrics", &[]).await;
    let page = String::from_utf8(body(page).await.to_vec()).unwrap();
    assert!(page.contains("depsync_downloads_refused_total 1"), "{page}");
}
