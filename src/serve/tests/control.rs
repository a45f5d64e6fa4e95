//! Feeds, history, commands, nodes and health.

use axum::body::Body;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Put, TOKEN, World, body, header, request};
use crate::{
    bus::{Approval, Cause, Held, Request as Ask},
    ledger::{Kind, NewRun},
    model::RelPath,
};

#[tokio::test]
async fn a_feed_says_where_it_stands() {
    let world = World::primary();
    let empty = world.json("/v1/feeds/apps").await;
    assert_eq!((&empty["commit"], &empty["files"]), (&Value::Null, &json!(0)));
    let commit =
        world.publish(&[("a", Put::Blob(b"hello")), ("b/c", Put::Object(&super::bytes(600_000)))]);
    world.desk.state.send_modify(|state| {
        let path = RelPath::parse(b"x\xff").unwrap();
        let since = std::time::UNIX_EPOCH;
        let (cause, reason) = (Cause::Writing, "still open".to_owned());
        state.held = vec![Held { path, cause, reason, since, decision: true }];
    });
    let feed = world.json("/v1/feeds/apps/").await;
    assert_eq!(feed["commit"], commit.to_string());
    assert_eq!((&feed["epoch"], &feed["seq"]), (&json!(1), &json!(1)));
    assert_eq!((&feed["files"], &feed["bytes"]), (&json!(2), &json!(600_005)));
    assert_eq!(feed["role"], "primary");
    assert_eq!(world.json("/v1/feeds").await["feeds"], json!([feed]));
    let held = world.json("held").await;
    assert_eq!(held["held"][0]["path_b64"], "eP8=");
    assert_eq!(held["held"][0]["since"], "1970-01-01T00:00:00Z");
}

#[tokio::test]
async fn history_comes_in_pages() {
    let world = World::primary();
    let commits: Vec<String> = (0..5)
        .map(|n| {
            world.publish(&[(&format!("f{n}"), Put::Blob(format!("{n}").as_bytes()))]).to_string()
        })
        .collect();
    let mut seen = Vec::new();
    let mut query = "log?limit=2".to_owned();
    loop {
        let page = world.json(&query).await;
        seen.extend(page["commits"].as_array().unwrap().iter().map(|c| c["commit"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        query = format!("log?limit=2&after={next}");
    }
    let newest_first: Vec<Value> = commits.iter().rev().cloned().map(Value::from).collect();
    assert_eq!(seen, newest_first);
    let diff = world.json(&format!("diff/{}..{}", commits[1], commits[3])).await;
    let paths: Vec<_> = diff["changes"].as_array().unwrap().iter().map(|c| &c["path"]).collect();
    assert_eq!(paths, ["f2", "f3"]);
    let all = world.json(&format!("diff/0..{}", commits[4])).await;
    assert_eq!(all["changes"].as_array().unwrap().len(), 5);
    assert_eq!(all["changes"][0]["status"], "A");
    assert_eq!(world.get("log?limit=0", &[]).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_command_reaches_the_stage_as_it_was_given() {
    let world = World::primary();
    world.desk.take_requests(Some(Box::new(|ask| {
        let (outcome, answer) = match ask {
            Ask::Sync(answer) | Ask::Hold { answer, .. } => (Ok(()), answer),
            Ask::Approve(Approval::Deletions(Some(id)), answer) if id == "7" => (Ok(()), answer),
            Ask::Approve(Approval::Path(path), answer) if path.as_bytes() == b"a/b" => {
                (Ok(()), answer)
            }
            Ask::Release(answer) | Ask::Approve(_, answer) | Ask::Reject { answer, .. } => {
                (Err("no".to_owned()), answer)
            }
            _ => return false,
        };
        answer.send(outcome).is_ok()
    })));
    let bearer = format!("Bearer {TOKEN}");
    for (command, fields, status) in [
        ("sync", "", 200),
        ("sync", "{}", 200),
        ("hold", "{}", 200),
        ("release", "{}", 409),
        ("approve", r#"{"id":"7"}"#, 200),
        ("approve", r#"{"id":"8"}"#, 409),
        ("approve", r#"{"path":"a/b"}"#, 200),
        ("approve", r#"{"path":"../b"}"#, 400),
        ("approve", r#"{"path":"a","id":"7"}"#, 400),
        ("approve", r#"{"root":true}"#, 409),
        ("approve", r#"{"what":1}"#, 400),
        ("approve", "[", 400),
        ("reject", r#"{"id":"7"}"#, 409),
    ] {
        let headers = [("authorization", &*bearer)];
        let answer = world.send(request("POST", command, &headers, Body::from(fields))).await;
        assert_eq!(answer.status(), status, "{command} {fields}");
    }
    let large = Body::from(vec![b' '; 100_000]);
    let answer = world.send(request("POST", "sync", &[("authorization", &bearer)], large)).await;
    assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn the_fleet_is_shown() {
    let world = World::primary();
    let commit = world.publish(&[("a", Put::Blob(b"x"))]);
    world.mirror("http://eu.example:7873");
    let nodes = world.json("/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["id"], "node-eu");
    assert_eq!(nodes["nodes"][0]["feeds"][0]["state"], "behind");
    let regions = world.json("/v1/regions").await;
    assert_eq!(regions["regions"][0]["name"], "eu");
    assert_eq!(regions["regions"][0]["ranges"], json!(["10.1.0.0/16"]));
    assert_eq!(regions["regions"][0]["nodes"][0]["id"], "node-eu");
    for (query, node, why) in [
        ("from=10.1.0.9", "node-eu", "address"),
        ("from=10.2.0.9", "hub-node", "no_entry"),
        ("from=10.1.0.9&via=primary", "hub-node", "via"),
    ] {
        let found = world.json(&format!("/v1/locate/apps/a?{query}")).await;
        assert_eq!((&found["node"], &found["why"]), (&json!(node), &json!(why)), "{query}");
        assert!(found["url"].as_str().unwrap().ends_with(&format!("/at/{commit}/a")));
    }
    let busy = world.send(request(
        "DELETE",
        "/v1/nodes/node-eu",
        &[("authorization", "Bearer s3cret")],
        Body::empty(),
    ));
    assert_eq!(busy.await.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn runs_come_in_pages() {
    let world = World::primary();
    for n in 0..5 {
        let mut run = NewRun::new("apps".parse().unwrap(), Kind::Commit, std::time::UNIX_EPOCH);
        run.files = n;
        run.names = vec![RelPath::parse(b"a").unwrap()];
        world.edge.ledger.add_run(&run).unwrap();
    }
    let first = world.json("/v1/runs?limit=3").await;
    assert_eq!(first["runs"][0]["files"], 4);
    assert_eq!(first["runs"][0]["started"], "1970-01-01T00:00:00Z");
    assert_eq!(first["runs"][0]["names"], json!([{ "path": "a" }]));
    let next = first["next"].as_str().unwrap();
    let rest = world.json(&format!("/v1/runs?limit=3&feed=apps&after={next}")).await;
    assert_eq!(rest["runs"].as_array().unwrap().len(), 2);
    assert!(rest.get("next").is_none());
    assert_eq!(world.json("/v1/runs?feed=other").await["runs"], json!([]));
    assert_eq!(world.get("/v1/runs?after=x", &[]).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn health_tells_the_truth() {
    let world = World::primary();
    let status = async |path: &str| world.get(path, &[]).await.status().as_u16();
    assert_eq!(
        (status("/livez").await, status("/readyz").await, status("/healthz").await),
        (200, 200, 200)
    );
    world.desk.state.send_modify(|state| state.last_error = Some("the disk is full".to_owned()));
    assert_eq!((status("/readyz").await, status("/healthz").await), (200, 503));
    let text = body(world.get("/healthz", &[]).await).await;
    assert!(String::from_utf8_lossy(&text).contains("the disk is full"));
    world.desk.state.send_modify(|state| state.state = "stopped");
    assert_eq!((status("/livez").await, status("/readyz").await), (200, 503));
    let metrics = world.get("/metrics", &[]).await;
    assert!(header(&metrics, "content-type").starts_with("text/plain; version=0.0.4"));
    let text = String::from_utf8(body(metrics).await.to_vec()).unwrap();
    assert!(text.contains("depsync_feed_failing{feed=\"apps\"} 1\n"), "{text}");
    assert!(text.contains("depsync_http_answers_total{status=\"5xx\"} 3\n"), "{text}");
}

#[tokio::test]
async fn what_is_not_served_says_so_in_json() {
    let world = World::primary();
    for (method, path, status, code) in [
        ("GET", "/nowhere", 404, "no_such_route"),
        ("GET", "/v1/feeds/none", 404, "no_such_feed"),
        ("GET", "sync", 405, "method_not_allowed"),
        ("GET", "follow", 400, "malformed"),
        ("GET", "/v1/locate/none/x", 404, "no_such_feed"),
    ] {
        let answer = world.send(request(method, path, &[], Body::empty())).await;
        assert_eq!(answer.status(), status, "{method} {path}");
        let error: Value = serde_json::from_slice(&body(answer).await).unwrap();
        assert_eq!(error["error"], code, "{method} {path}");
    }
}
