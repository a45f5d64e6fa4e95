//! The console: one page and its parts, in the binary, served to anybody.
//!
//! They hold no data; what the page shows it asks for with the token of whoever uses it. Nothing is
//! loaded from elsewhere and no script or style stands in the page itself, so the policy sent along
//! is strict: a file's name that reads like a script stays a name.

use std::sync::LazyLock;

use axum::{extract::Path, response::IntoResponse};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use super::{
    error::{Answer, Fault},
    range,
};

/// A part of the page.
struct Part {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! parts {
    ($($name:literal: $kind:expr,)*) => {
        [$(Part { name: $name, kind: $kind, content: include_str!(concat!("console/", $name)) },)*]
    };
}

static PARTS: [Part; 16] = parts! {
    "index.html": HTML,
    "console.css": CSS,
    "icon.svg": SVG,
    "app.js": SCRIPT,
    "api.js": SCRIPT,
    "dom.js": SCRIPT,
    "dialogs.js": SCRIPT,
    "overview.js": SCRIPT,
    "feeds.js": SCRIPT,
    "files.js": SCRIPT,
    "runs.js": SCRIPT,
    "rates.js": SCRIPT,
    "times.js": SCRIPT,
    "problems.js": SCRIPT,
    "uplot.js": SCRIPT,
    "uplot.css": CSS,
};

/// One for each part: a browser asks again each time, and loads what has changed.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let start = |part: &Part| {
        let digest = Sha256::digest(part.content);
        digest.iter().take(8).fold(0_u64, |start, byte| start << 8 | u64::from(*byte))
    };
    PARTS.iter().map(|part| format!("\"{:016x}\"", start(part))).collect()
});

/// Only what comes from here may run, be shown or be asked; no other site may frame the page; text
/// never becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// `GET /`: the page.
pub(super) async fn page(headers: HeaderMap) -> Answer {
    serve("index.html", &headers)
}

/// `GET /console/{file}`: a part of it.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Answer {
    serve(&name, &headers)
}

fn serve(name: &str, headers: &HeaderMap) -> Answer {
    let found = PARTS.iter().zip(TAGS.iter()).find(|(part, _)| part.name == name);
    let (part, tag) = found.ok_or_else(Fault::no_such_route)?;
    let mut response = if range::if_none_match(headers, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        part.content.into_response()
    };
    let set = [
        (header::CONTENT_TYPE, part.kind),
        (header::ETAG, tag.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ];
    for (name, value) in set {
        let value = HeaderValue::from_str(value).map_err(|error| Fault::internal(&error))?;
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_console_is_small() {
        let bytes: usize = PARTS.iter().map(|part| part.content.len()).sum();
        assert!(bytes < 200_000, "{bytes} bytes");
    }

    #[test]
    fn every_file_of_the_folder_is_a_part_and_parts_name_only_parts() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/serve/console");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let known = PARTS.iter().any(|part| part.name == name) || name.ends_with(".LICENSE");
            assert!(known, "{name} is not served");
        }
        let ours = PARTS.iter().filter(|part| !part.name.starts_with("uplot."));
        for part in ours {
            for named in part.content.split("/console/").skip(1) {
                let name: String =
                    named.chars().take_while(|c| c.is_alphanumeric() || *c == '.').collect();
                assert!(PARTS.iter().any(|part| part.name == name), "{}: {name}", part.name);
            }
            for line in part.content.lines().filter(|line| line.contains(" from \"./")) {
                let name = line.split("\"./").nth(1).unwrap().trim_end_matches("\";");
                assert!(PARTS.iter().any(|part| part.name == name), "{}: {name}", part.name);
            }
        }
    }

    #[test]
    fn no_text_becomes_markup_and_nothing_stands_in_the_page_that_the_policy_forbids() {
        for part in PARTS.iter().filter(|part| !part.name.starts_with("uplot.")) {
            for bad in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
                assert!(!part.content.contains(bad), "{}: {bad}", part.name);
            }
        }
        let page = PARTS[0].content;
        for bad in [" style=", "<style", " onclick=", "javascript:", "http://", "https://"] {
            assert!(!page.contains(bad), "{bad}");
        }
        let inline =
            page.split("<script").skip(1).any(|script| !script.contains("src=\"/console/"));
        assert!(!inline, "a script stands in the page");
    }
}
