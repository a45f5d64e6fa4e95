//! Tokens: what lets others in. Only hashes are kept, so whoever reads the file cannot use it.
//!
//! A token is shown once, when it is made. It is looked up by the hash of what was offered, compared
//! in constant time with every hash there is; one that has expired is as good as none. Several may be
//! valid for the same thing at once, so that they can be exchanged without an outage.

use std::{fmt, io};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Decisions, Error, Result};
use crate::model::{ObjectId, Scope};

/// More than anyone hands out; each costs a hash comparison with every request.
pub const MAX_TOKENS: usize = 1_000;
/// So that a secret scanner, and a person, can tell what it is.
const PREFIX: &str = "depsync_";
/// Random bytes in a token.
const SECRET: usize = 32;
/// Random bytes in a token's id.
const ID: usize = 4;

/// A token, without the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Its name, for people and for `revoke`.
    pub id: String,
    /// SHA-256 of the secret.
    pub hash: ObjectId,
    /// What it is good for.
    pub scope: Scope,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// From when on it is refused; none: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<DateTime<Utc>>,
}

/// Why no token was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_TOKENS} tokens already; revoke those that nobody uses")]
pub struct TooMany;

/// A token that was just made, with its secret.
pub struct Made {
    /// What is kept.
    pub token: Token,
    /// What is shown once.
    pub secret: String,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.token.fmt(f)
    }
}

impl Token {
    /// Whether it is refused for its age.
    #[must_use]
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }
}

impl Decisions {
    /// Makes a token; durable when it returns.
    ///
    /// # Errors
    /// When there are too many, the system has no random numbers, or the file cannot be written.
    pub fn create_token(
        &self,
        scope: Scope,
        expires: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Result<std::result::Result<Made, TooMany>> {
        let random =
            |source| Error::Io { what: "make a token for", path: self.path().into(), source };
        let secret =
            format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes::<SECRET>().map_err(random)?));
        let id = bytes::<ID>().map_err(random)?.map(|byte| format!("{byte:02x}")).concat();
        let token = Token { id, hash: hash(secret.as_bytes()), scope, created: now, expires };
        self.update(|doc| {
            // What has expired is of no use to anybody; it makes room first.
            if doc.tokens.len() >= MAX_TOKENS {
                doc.tokens.retain(|token| !token.is_expired(now));
            }
            if doc.tokens.len() >= MAX_TOKENS {
                return Err(TooMany);
            }
            doc.tokens.push(token.clone());
            Ok(Made { token, secret })
        })
    }

    /// Refuses a token from now on; false when there is none of that id.
    ///
    /// # Errors
    /// When the file cannot be written: then it is still good.
    pub fn revoke_token(&self, id: &str) -> Result<bool> {
        self.update(|doc| {
            let before = doc.tokens.len();
            doc.tokens.retain(|token| token.id != id);
            doc.tokens.len() < before
        })
    }

    /// The valid token whose secret was offered: one of this node's, or a reader's of the upstream of
    /// a feed that is mirrored here.
    #[must_use]
    pub fn token(&self, secret: &[u8], now: DateTime<Utc>) -> Option<Token> {
        let offered = hash(secret);
        let doc = self.get();
        let learned = doc.feeds.values().flat_map(|feed| &feed.readers);
        // All are looked at: how long it takes does not tell which one nearly fitted.
        let found = doc.tokens.iter().chain(learned).fold(None, |found, token| {
            let fits = bool::from(token.hash.as_bytes().ct_eq(offered.as_bytes()));
            if fits { found.or(Some(token)) } else { found }
        });
        found.filter(|token| !token.is_expired(now)).cloned()
    }
}

fn hash(secret: &[u8]) -> ObjectId {
    ObjectId::from_bytes(Sha256::digest(secret).into())
}

fn bytes<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{model::Role, sys};

    fn reader() -> Scope {
        Scope { role: Role::Reader, feed: None, region: None }
    }

    #[test]
    fn a_token_lets_in_until_it_is_revoked_or_old_and_its_secret_is_kept_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("decisions.json");
        let decisions = Decisions::load(&path).unwrap();
        let now: DateTime<Utc> = sys::now().into();
        let end: DateTime<Utc> = now + Duration::from_secs(60);
        let first = decisions.create_token(reader(), None, now).unwrap().unwrap();
        let second = decisions.create_token(reader(), Some(end), now).unwrap().unwrap();
        assert_ne!(first.secret, second.secret);
        assert!(first.secret.len() >= 40 && !format!("{first:?}").contains(&first.secret));
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&first.secret));

        let again = Decisions::load(&path).unwrap();
        assert_eq!(again.token(first.secret.as_bytes(), now), Some(first.token.clone()));
        assert_eq!(again.token(second.secret.as_bytes(), now), Some(second.token.clone()));
        assert_eq!(again.token(second.secret.as_bytes(), end), None, "it has expired");
        for wrong in ["", "x", &first.secret[1..], &format!("{} ", first.secret)] {
            assert_eq!(again.token(wrong.as_bytes(), now), None, "{wrong}");
        }
        assert!(again.revoke_token(&first.token.id).unwrap());
        assert!(!again.revoke_token(&first.token.id).unwrap());
        assert_eq!(again.token(first.secret.as_bytes(), now), None);
    }

    #[test]
    fn there_is_a_bound_and_expired_ones_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let decisions = Decisions::load(&folder.path().join("decisions.json")).unwrap();
        let now: DateTime<Utc> = sys::now().into();
        decisions.create_token(reader(), Some(now), now).unwrap().unwrap();
        decisions
            .update(|doc| {
                let old = doc.tokens[0].clone();
                let lasting = Token { expires: None, ..old.clone() };
                doc.tokens = vec![lasting; MAX_TOKENS - 1];
                doc.tokens.push(old);
            })
            .unwrap();
        decisions.create_token(reader(), None, now).unwrap().unwrap();
        assert!(decisions.create_token(reader(), None, now).unwrap().is_err());
        assert_eq!(decisions.get().tokens.len(), MAX_TOKENS);
    }
}
