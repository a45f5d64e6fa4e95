//! Says in time which tokens are about to end: 14, 3 and 1 days ahead, once each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::{
    ledger::{Decisions, tokens::Token},
    sys,
};

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(60);
/// How many days ahead.
const AHEAD: [i64; 3] = [1, 3, 14];

/// Looks at once, and then now and then, until `stop`.
pub(super) async fn watch(decisions: Arc<Decisions>, stop: CancellationToken) -> Result<(), Error> {
    let mut warned = HashMap::new();
    loop {
        for (id, end) in due(&decisions.get().tokens, sys::now().into(), &mut warned) {
            tracing::warn!(token = %id, %end, "a token is about to end; make another, hand it out, and revoke this one");
        }
        if stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return Ok(());
        }
    }
}

/// Those that have come within another mark since they were last warned of.
fn due(
    tokens: &[Token],
    now: DateTime<Utc>,
    warned: &mut HashMap<String, i64>,
) -> Vec<(String, DateTime<Utc>)> {
    warned.retain(|id, _| tokens.iter().any(|token| token.id == *id));
    let mut due = Vec::new();
    for token in tokens {
        let Some(end) = token.expires.filter(|end| *end > now) else { continue };
        let left = end - now;
        let mark = AHEAD.into_iter().find(|days| left <= TimeDelta::days(*days));
        let Some(mark) = mark else { continue };
        if warned.get(&token.id).is_none_or(|before| mark < *before) {
            warned.insert(token.id.clone(), mark);
            due.push((token.id.clone(), end));
        }
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectId, Role, Scope};

    #[test]
    fn each_mark_is_told_once() {
        let start = DateTime::UNIX_EPOCH;
        let token = |id: &str, days: Option<i64>| Token {
            id: id.to_owned(),
            hash: ObjectId::from_bytes([0; 32]),
            scope: Scope { role: Role::Reader, feed: None, region: None },
            created: start,
            expires: days.map(|days| start + TimeDelta::days(days)),
        };
        let tokens = [token("a", Some(20)), token("b", Some(40)), token("c", None)];
        let mut warned = HashMap::new();
        let mut told = |day: i64| {
            let due = due(&tokens, start + TimeDelta::days(day), &mut warned);
            due.into_iter().map(|(id, _)| id).collect::<Vec<_>>().concat()
        };
        let days = [0, 5, 6, 7, 16, 17, 18, 19, 20, 26, 40, 41].map(&mut told);
        assert_eq!(days, ["", "", "a", "", "", "a", "", "a", "", "b", "", ""]);
    }

    #[test]
    fn a_daemon_that_starts_late_tells_the_nearest_mark_only() {
        let now = DateTime::UNIX_EPOCH;
        let scope = Scope { role: Role::Reader, feed: None, region: None };
        let expires = Some(now + TimeDelta::hours(5));
        let hash = ObjectId::from_bytes([0; 32]);
        let token = Token { id: "a".to_owned(), hash, scope, created: now, expires };
        let mut warned = HashMap::new();
        assert_eq!(due(std::slice::from_ref(&token), now, &mut warned).len(), 1);
        assert_eq!(due(&[token], now, &mut warned).len(), 0);
        due(&[], now, &mut warned);
        assert!(warned.is_empty(), "a revoked one is forgotten");
    }
}
