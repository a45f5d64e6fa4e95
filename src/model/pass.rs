//! The signature at the end of a redirect: what lets its holder read one file at one region for a
//! quarter of an hour.
//!
//! HMAC-SHA256 (RFC 2104) under a key for one feed, one region and one day, over the version of this
//! form, feed, commit, region, expiry and path. The primary derives the keys from a secret of its
//! own; a region is given its own keys and learns nothing of any other's.

use std::{fmt, time::Duration};

use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{FeedName, ObjectId, Oid, RegionName, RelPath};

/// For how long a redirect may be followed.
pub const LASTS: Duration = Duration::from_secs(15 * 60);
/// A key is for one day of the upstream's clock.
const DAY: u64 = 86_400;
/// The version of the form that is signed.
const FORM: &str = "depsync-pass-1";

/// A key for one feed at one region on one day. Never printed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PassKey(ObjectId);

/// A key as it is handed to a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionKey {
    /// The region that it is for.
    pub region: RegionName,
    /// The day of the upstream's clock, counted from 1970.
    pub day: u64,
    /// The key.
    pub key: PassKey,
}

/// What a signature is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass<'a> {
    /// The feed, by its name at the region.
    pub feed: &'a FeedName,
    /// The version.
    pub commit: Oid,
    /// The file.
    pub path: &'a RelPath,
    /// The region.
    pub region: &'a RegionName,
    /// Until when, in seconds since 1970 by the upstream's clock.
    pub expires: u64,
}

/// What a primary derives all its keys from. Never printed.
#[derive(Clone)]
pub struct PassSecret([u8; 32]);

impl PassSecret {
    /// A secret of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key of a feed, by its name at the primary, at a region on a day.
    #[must_use]
    pub fn key(&self, feed: &FeedName, region: &RegionName, day: u64) -> PassKey {
        let day = day.to_string();
        PassKey(mac(&self.0, &["depsync-pass-key-1", feed.as_str(), region.as_str(), &day], b""))
    }

    /// The keys that a region needs now: of this day and the next, for passes that outlast midnight.
    #[must_use]
    pub fn keys(&self, feed: &FeedName, region: &RegionName, now: u64) -> [RegionKey; 2] {
        [day_of(now), day_of(now) + 1].map(|day| RegionKey {
            region: region.clone(),
            day,
            key: self.key(feed, region, day),
        })
    }
}

/// The day whose key signs what ends at a time.
#[must_use]
pub fn day_of(expires: u64) -> u64 {
    expires / DAY
}

impl PassKey {
    /// What a redirect ends in: `exp=…&sig=…`.
    #[must_use]
    pub fn query(&self, pass: &Pass<'_>) -> String {
        format!("exp={}&sig={}", pass.expires, self.sign(pass))
    }

    /// Whether a signature, in hex, is the one of this pass. Takes as long when it is not.
    #[must_use]
    pub fn signed(&self, pass: &Pass<'_>, signature: &str) -> bool {
        let Ok(offered) = signature.parse::<ObjectId>() else { return false };
        let expected = self.sign(pass);
        bool::from(subtle::ConstantTimeEq::ct_eq(&expected.as_bytes()[..], &offered.as_bytes()[..]))
    }

    fn sign(&self, pass: &Pass<'_>) -> ObjectId {
        let (commit, expires) = (pass.commit.to_string(), pass.expires.to_string());
        let parts = [FORM, pass.feed.as_str(), &commit, pass.region.as_str(), &expires];
        mac(self.0.as_bytes(), &parts, pass.path.as_bytes())
    }
}

/// None of the parts holds a NUL, so no two lists of them give the same bytes.
fn mac(key: &[u8], parts: &[&str], last: &[u8]) -> ObjectId {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length will do");
    for part in parts {
        mac.update(part.as_bytes());
        mac.update(b"\0");
    }
    mac.update(last);
    ObjectId::from_bytes(mac.finalize().into_bytes().into())
}

impl fmt::Debug for PassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl fmt::Debug for PassSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_good_for_exactly_what_it_names() {
        let (feed, other) = ("apps".parse().unwrap(), "other".parse().unwrap());
        let (eu, us) = ("eu".parse().unwrap(), "us".parse().unwrap());
        let path = RelPath::parse(b"a/b").unwrap();
        let elsewhere = RelPath::parse(b"a/c").unwrap();
        let commit = Oid::from_bytes([1; 20]);
        let pass = Pass { feed: &feed, commit, path: &path, region: &eu, expires: 90_000 };
        let secret = PassSecret::new([7; 32]);
        let key = secret.key(&feed, &eu, day_of(pass.expires));
        let query = key.query(&pass);
        let signature = query.strip_prefix("exp=90000&sig=").unwrap();
        assert_eq!(signature.len(), 64);
        assert!(key.signed(&pass, signature));
        for wrong in [
            Pass { feed: &other, ..pass },
            Pass { commit: Oid::from_bytes([2; 20]), ..pass },
            Pass { path: &elsewhere, ..pass },
            Pass { region: &us, ..pass },
            Pass { expires: 90_001, ..pass },
        ] {
            assert!(!key.signed(&wrong, signature), "{wrong:?}");
        }
        for (feed, region, day) in [(&feed, &eu, 2), (&feed, &us, 1), (&other, &eu, 1)] {
            assert!(!secret.key(feed, region, day).signed(&pass, signature));
        }
        for wrong in
            ["", "00", &signature[1..], &signature.to_uppercase(), &format!("{signature}0")]
        {
            assert!(!key.signed(&pass, wrong), "{wrong}");
        }
        let printed = format!("{secret:?} {key:?}");
        assert_eq!(printed, "… …");
    }

    #[test]
    fn a_region_is_given_the_keys_of_today_and_tomorrow() {
        let (feed, eu) = ("apps".parse().unwrap(), "eu".parse().unwrap());
        let secret = PassSecret::new([7; 32]);
        let keys = secret.keys(&feed, &eu, 3 * DAY - 1);
        assert_eq!(keys.each_ref().map(|key| key.day), [2, 3]);
        assert_eq!(keys[1].key, secret.key(&feed, &eu, 3));
        let text = serde_json::to_string(&keys[0]).unwrap();
        assert_eq!(serde_json::from_str::<RegionKey>(&text).unwrap(), keys[0]);
    }
}
