//! `GET /v1/openapi.json`: the description of all that this node answers.
//!
//! It is built from one table (`operations`), beside which stands what all routes have in common: who
//! may ask, from `need`; what a missing token answers; parameters that mean the same everywhere. Tests
//! hold it complete: every route, and every parameter and status that any other test sees, is in it.

mod operations;

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use http::Method;
use utoipa::openapi::{
    Components, ComponentsBuilder, Content, ContentBuilder, Info, License, ObjectBuilder, OpenApi,
    OpenApiBuilder, Paths, Ref, Required, ResponseBuilder,
    path::{HttpMethod, Operation as Described, OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::{RequestBody, RequestBodyBuilder},
    schema::{ArrayBuilder, Schema, Type},
    security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    tag::TagBuilder,
};

use super::{error::Answer, need};
use crate::model::{Need, Role};
use operations::{Body, Field, OPERATIONS, Operation};

/// Built once.
static DOCUMENT: LazyLock<String> =
    LazyLock::new(|| document().to_json().expect("a document of plain texts can be written"));

/// The description as JSON.
pub(super) async fn show() -> Answer {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, DOCUMENT.as_str()).into_response())
}

/// What variables in paths mean.
const VARIABLES: &[(&str, &str)] = &[
    ("feed", "A feed's name."),
    ("path", "A path in the feed: percent-encoded bytes; empty for its root."),
    ("commit", "The 40 hex digits of a published commit."),
    ("range", "Two commits as `a..b`; the first may be `0`: from nothing."),
    ("sha256", "An object's name: the 64 hex digits of its SHA-256."),
    ("base", "The object that the delta is made from, likewise."),
    ("id", "The identity of a node, or of a token."),
    ("file", "A part of the console."),
];

const ABOUT: &str = "Keeps deployment directories identical across regions. Lists take `limit` (100, \
    at most 1,000) and `after`, and answer `next` where there is more. A path that is not UTF-8 has \
    `path_b64` beside the lossy `path`. Times are RFC 3339, sizes bytes, durations milliseconds with \
    `_ms`. Errors are `{\"error\": code, \"message\": text}`. Who may ask what is in docs/access.md.";

const TAGS: &[(&str, &str)] = &[
    ("content", "Files: downloading, uploading, browsing."),
    ("history", "Versions and what changed in them."),
    ("control", "Commands to a feed."),
    ("fleet", "Nodes, regions, who serves whom."),
    ("operation", "Limits, runs, tokens, live events."),
    ("health", "Health and metrics."),
    ("replication", "What mirrors ask."),
    ("git", "What stock git and git-lfs ask."),
    ("console", "The console."),
];

fn document() -> OpenApi {
    let mut paths = Paths::new();
    for operation in OPERATIONS {
        let (path, method) = (operation.path, operation.method);
        paths.add_path_operation(path, vec![http_method(method)], described(operation));
    }
    let mut info = Info::new("depsync", env!("CARGO_PKG_VERSION"));
    info.description = Some(ABOUT.to_owned());
    info.license = Some(License::new(env!("CARGO_PKG_LICENSE")));
    let tag = |(name, text): &(&str, &str)| {
        TagBuilder::new().name(*name).description(Some(*text)).build()
    };
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components()))
        .tags(Some(TAGS.iter().map(tag)))
        .build()
}

fn http_method(method: &str) -> HttpMethod {
    match method {
        "PUT" => HttpMethod::Put,
        "POST" => HttpMethod::Post,
        "DELETE" => HttpMethod::Delete,
        _ => HttpMethod::Get,
    }
}

fn components() -> Components {
    let text =
        |about: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(about));
    let error = ObjectBuilder::new()
        .property("error", text("One word for programs."))
        .required("error")
        .property("message", text("What failed, on what, why, and what can be done."))
        .required("message");
    let bearer = Http::builder().scheme(HttpAuthScheme::Bearer);
    let basic = Http::builder()
        .scheme(HttpAuthScheme::Basic)
        .description(Some("The token is the password; any user name."));
    ComponentsBuilder::new()
        .schema("Error", error)
        .security_scheme("bearer", SecurityScheme::Http(bearer.build()))
        .security_scheme("basic", SecurityScheme::Http(basic.build()))
        .build()
}

/// What a route needs, by the table that the daemon itself goes by.
fn need_of(operation: &Operation) -> Need {
    let method = Method::try_from(operation.method).unwrap_or(Method::GET);
    need::need(&method, operation.path).unwrap_or(Need::Admin)
}

fn described(operation: &Operation) -> Described {
    let need = need_of(operation);
    let roles: Vec<&str> =
        Role::ALL.into_iter().filter(|role| role.allows(need)).map(Role::as_str).collect();
    let who = match need {
        Need::Nothing => "Needs no token.".to_owned(),
        _ => format!("Needs the token of one of: {}.", roles.join(", ")),
    };
    let name = operation_id(operation);
    let mut described = OperationBuilder::new()
        .tag(operation.tag)
        .operation_id(Some(name))
        .summary(Some(operation.summary))
        .description(Some(format!("{} {who}", operation.details).trim().to_owned()))
        .request_body(request_body(&operation.body));
    for (name, about) in VARIABLES.iter().filter(|(name, _)| has_variable(operation.path, name)) {
        described = described.parameter(parameter(name, about, ParameterIn::Path));
    }
    for (name, about) in operation.query {
        described = described.parameter(parameter(name, about, ParameterIn::Query));
    }
    for (name, about) in operation.headers {
        described = described.parameter(parameter(name, about, ParameterIn::Header));
    }
    for (status, about) in answers(operation, need) {
        described = described.response(status.to_string(), answer(operation, status, about));
    }
    if need != Need::Nothing {
        for scheme in ["bearer", "basic"] {
            described = described.security(SecurityRequirement::new(scheme, [""; 0]));
        }
    }
    described.build()
}

fn has_variable(path: &str, name: &str) -> bool {
    path.contains(&format!("{{{name}}}"))
}

/// `get_v1_feeds_feed_log`
fn operation_id(operation: &Operation) -> String {
    let words = operation.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty());
    let method = operation.method.to_lowercase();
    std::iter::once(method.as_str()).chain(words).collect::<Vec<_>>().join("_")
}

fn parameter(name: &str, about: &str, place: ParameterIn) -> ParameterBuilder {
    let required =
        if matches!(place, ParameterIn::Path) { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(about))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
}

/// What an operation answers, with what all of its kind do.
fn answers(operation: &Operation, need: Need) -> Vec<(u16, &'static str)> {
    let mut answers = operation.answers.to_vec();
    let mut add = |status, about| {
        if answers.iter().all(|(known, _)| *known != status) {
            answers.push((status, about));
        }
    };
    add(421, "The host is not this node, or the page that acts is another site's.");
    add(401, "The token is missing, not known, expired or revoked.");
    add(
        429,
        "Too many requests of this address or token, or too many wrong tokens; see Retry-After.",
    );
    if need != Need::Nothing {
        add(403, "The token's role or feed is not enough.");
    }
    if !operation.query.is_empty() || !matches!(operation.body, Body::None) {
        add(400, "The request cannot be read: a parameter, or the body.");
    }
    if has_variable(operation.path, "feed") {
        add(404, "There is no such feed here, or what was named is not in it.");
    }
    if operation.path.starts_with("/v1/feeds/{feed}") {
        add(503, "Not now: this node has not got it yet.");
    }
    if !matches!(operation.body, Body::None) {
        add(413, "The body is too large.");
    }
    if operation.tag != "console" && need != Need::Nothing {
        add(500, "A failure of this node; the log says more.");
    }
    answers.sort_unstable();
    answers
}

fn answer(operation: &Operation, status: u16, about: &str) -> ResponseBuilder {
    let response = ResponseBuilder::new().description(about);
    match status {
        204 | 304 | 307 | 101 => response,
        200 | 201 | 202 | 206 => response.content(operation.kind, Content::default()),
        503 if operation.path.ends_with('z') => {
            response.content("application/json", Content::default())
        }
        _ => {
            let error = Content::new(Some(Ref::from_schema_name("Error")));
            response.content("application/json", error)
        }
    }
}

fn request_body(body: &Body) -> Option<RequestBody> {
    let (kind, content): (&str, ContentBuilder) = match body {
        Body::None => return None,
        Body::Bytes(kind) => (*kind, ContentBuilder::new()),
        Body::Fields(fields) => {
            let mut object = ObjectBuilder::new();
            for Field { name, kind, about } in *fields {
                object = object.property(*name, schema_of(kind, about));
            }
            ("application/json", ContentBuilder::new().schema(Some(object)))
        }
    };
    Some(RequestBodyBuilder::new().content(kind, content.build()).build())
}

fn schema_of(kind: &str, about: &str) -> Schema {
    let one = |kind| ObjectBuilder::new().schema_type(kind).description(Some(about));
    match kind {
        "boolean" => one(Type::Boolean).into(),
        "integer" => one(Type::Integer).into(),
        "array" => ArrayBuilder::new().items(ObjectBuilder::new()).description(Some(about)).into(),
        _ => one(Type::String).into(),
    }
}

/// The statuses and the query parameters of a request that the description names; none: it does not
/// know the path.
#[cfg(test)]
pub(super) fn known(method: &str, path: &str) -> Option<(Vec<u16>, Vec<&'static str>)> {
    let operation = operations::find(method, path)?;
    let statuses =
        answers(operation, need_of(operation)).iter().map(|(status, _)| *status).collect();
    Some((statuses, operation.query.iter().map(|(name, _)| *name).collect()))
}

/// The description, for tests.
#[cfg(test)]
pub(super) fn value() -> serde_json::Value {
    serde_json::from_str(&DOCUMENT).expect("it is JSON")
}
