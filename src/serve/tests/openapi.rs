//! The description of the API is complete: every route of the table, and every status and parameter
//! that any test of the edge sees.

use axum::{body::Body, response::Response};
use http::{Request, StatusCode};
use serde_json::Value;

use super::{World, body, header};
use crate::serve::openapi::{known, value};

/// Called with every request of every test here and what it was answered.
pub(super) fn check(request: &(String, http::Uri), answer: &Response) {
    let (method, uri) = request;
    let (path, status) = (uri.path(), answer.status().as_u16());
    let Some((statuses, parameters)) = known(method, path) else {
        let undescribed = [400, 401, 403, 404, 405, 421, 429];
        let of_git = path.starts_with("/git/");
        assert!(
            of_git || undescribed.contains(&status),
            "{method} {path} is not described: {status}"
        );
        return;
    };
    assert!(statuses.contains(&status), "{method} {path}: {status} is not described");
    if answer.status().is_success() {
        let names =
            uri.query().unwrap_or_default().split('&').map(|it| it.split('=').next().unwrap());
        for name in names.filter(|name| !name.is_empty()) {
            assert!(parameters.contains(&name), "{method} {path}: ?{name}= is not described");
        }
    }
}

#[tokio::test]
async fn the_description_is_there_for_anybody() {
    let world = World::primary();
    let request = Request::get("/v1/openapi.json").body(Body::empty()).unwrap();
    let answer = world.send(request).await;
    assert_eq!(
        (answer.status(), header(&answer, "content-type")),
        (StatusCode::OK, "application/json")
    );
    let document: Value = serde_json::from_slice(&body(answer).await).unwrap();
    assert_eq!(document["info"]["title"], "depsync");
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
}

#[test]
fn every_route_of_the_table_is_described_and_no_other() {
    let document = value();
    let paths = document["paths"].as_object().unwrap();
    let mut described: Vec<String> = Vec::new();
    for (path, operations) in paths {
        for method in operations.as_object().unwrap().keys() {
            described.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    let text = include_str!("../../../docs/access.md");
    let mut listed: Vec<String> = Vec::new();
    for row in text.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let path =
            cells[1].trim_matches('`').split('?').next().unwrap().replace("{path}.tar", "{path}");
        listed.extend(cells[0].split(", ").map(|method| format!("{method} {path}")));
    }
    described.sort();
    listed.sort();
    assert_eq!(described, listed);
}

#[test]
fn every_operation_says_what_it_is_who_may_ask_and_what_its_variables_are() {
    let document = value();
    let mut names = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let place = format!("{method} {path}");
            assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 8), "{place}");
            assert!(operation["description"].as_str().unwrap().contains("Needs "), "{place}");
            let no_token = operation["description"].as_str().unwrap().contains("no token");
            assert_eq!(operation["security"].is_null(), no_token, "{place}");
            names.push(operation["operationId"].as_str().unwrap().to_owned());
            let variables = path.split('{').skip(1).map(|part| part.split('}').next().unwrap());
            for variable in variables {
                let of_path = |it: &&Value| it["in"] == "path" && it["name"] == variable;
                let parameters = operation["parameters"].as_array().unwrap();
                let found = parameters.iter().find(of_path).unwrap_or_else(|| panic!("{place}"));
                assert_eq!(found["required"], true, "{place}");
            }
            let answers = operation["responses"].as_object().unwrap();
            let well = answers.keys().any(|status| status.starts_with('2') || status == "101");
            assert!(well && answers.values().all(|it| it["description"].is_string()), "{place}");
        }
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "each operation has a name of its own");
}
