//! Lists in pages: `?limit=` and `?after=`, and `next` where there is more.

use axum::extract::Query;
use http::Uri;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::error::Fault;
use crate::model::RelPath;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// What a request asks of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    /// The `next` of the page before.
    pub(super) after: Option<String>,
}

/// A page, and the key to ask for the next one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Paged<T> {
    pub(super) items: Vec<T>,
    pub(super) next: Option<String>,
}

impl Page {
    /// What the query says; 100 items unless it says otherwise.
    pub(super) fn of(uri: &Uri) -> Result<Self, Fault> {
        let Query(page) = Query::<Page>::try_from_uri(uri)
            .map_err(|error| Fault::malformed(format!("the query cannot be read: {error}")))?;
        if page.limit.is_some_and(|limit| !(1..=MAX_LIMIT).contains(&limit)) {
            return Err(Fault::malformed("limit is a number from 1 to 1,000"));
        }
        Ok(page)
    }

    /// The first page, and as much as fits.
    pub(super) fn largest() -> Self {
        Page { limit: Some(MAX_LIMIT), after: None }
    }

    /// How many items at most.
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// Cuts this page out of items that come in the order of their keys, or whose keys stay: where
    /// the key to go on after has gone, the next greater one is taken.
    pub(super) fn cut<T>(&self, items: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let start = self.after.as_ref().map_or(0, |after| {
            let same = items.iter().position(|item| key(item) == *after).map(|at| at + 1);
            let beyond = || items.iter().position(|item| key(item) > *after);
            same.or_else(beyond).unwrap_or(items.len())
        });
        let mut rest = items.into_iter().skip(start);
        let page: Vec<T> = rest.by_ref().take(self.limit()).collect();
        let next = rest.next().and(page.last()).map(&key);
        Paged { items: page, next }
    }
}

impl<T: Serialize> Paged<T> {
    /// `{name: […], "next": …}`; `next` is absent on the last page.
    pub(super) fn json(self, name: &str) -> Value {
        let mut object = Map::from_iter([(name.to_owned(), json!(self.items))]);
        object.extend(self.next.map(|next| ("next".to_owned(), Value::from(next))));
        Value::Object(object)
    }
}

/// A path in JSON: lossy text, and the bytes in base64 where they are not UTF-8.
#[derive(Debug, Serialize)]
pub(super) struct PathField {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_b64: Option<String>,
}

impl From<&RelPath> for PathField {
    fn from(path: &RelPath) -> Self {
        PathField { path: path.to_text().into_owned(), path_b64: base64_if_needed(path.as_bytes()) }
    }
}

/// Base64 of bytes that are not UTF-8.
pub(super) fn base64_if_needed(bytes: &[u8]) -> Option<String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    std::str::from_utf8(bytes).is_err().then(|| STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another() {
        let page = |query: &str| Page::of(&format!("/?{query}").parse().unwrap());
        let cut = |query: &str| {
            page(query).unwrap().cut(vec!["a", "b", "d", "e", "f"], ToString::to_string)
        };
        let paged = |items: &[&'static str], next: Option<&str>| Paged {
            items: items.to_vec(),
            next: next.map(str::to_owned),
        };
        assert_eq!(cut("limit=2"), paged(&["a", "b"], Some("b")));
        assert_eq!(cut("limit=2&after=b"), paged(&["d", "e"], Some("e")));
        assert_eq!(cut("limit=2&after=c"), paged(&["d", "e"], Some("e")));
        assert_eq!(cut("limit=2&after=e"), paged(&["f"], None));
        assert_eq!(cut("limit=5"), paged(&["a", "b", "d", "e", "f"], None));
        assert_eq!(cut("after=g"), paged(&[], None));
        for bad in ["limit=0", "limit=1001", "limit=x", "limit=-1"] {
            assert!(page(bad).is_err(), "{bad}");
        }
    }
}
