//! What an upstream lets a mirror know, so that it can tell by itself who may read there: the keys of
//! the passes in redirects, the hashes of readers' tokens, and the upstream's clock.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::model::{ObjectId, RegionKey};

/// The part of a welcome or heartbeat that is about trust; what is absent has not changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The upstream's clock, in milliseconds since 1970.
    pub now_ms: i64,
    /// The keys of the follower's region, and of those below it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<RegionKey>>,
    /// Who may read the feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readers: Option<Vec<Reader>>,
}

/// A reader's token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// The token's id.
    pub id: String,
    /// SHA-256 of its secret.
    pub hash: ObjectId,
    /// When it was made.
    pub created: DateTime<Utc>,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<DateTime<Utc>>,
}

/// What a mirror has learned from its upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Learned {
    /// How many milliseconds the upstream's clock is ahead of ours.
    pub ahead_ms: i64,
    /// The keys of this region, and of those below it.
    pub keys: Vec<RegionKey>,
    /// Who may read the feed.
    pub readers: Vec<Reader>,
}

impl Learned {
    /// Takes in what was said; none: the upstream asks nobody for a token, and there is nothing to know.
    pub fn take(&mut self, said: Option<Trust>, now_ms: i64) {
        let Some(said) = said else {
            *self = Learned::default();
            return;
        };
        self.ahead_ms = said.now_ms.saturating_sub(now_ms);
        if let Some(keys) = said.keys {
            self.keys = keys;
        }
        if let Some(readers) = said.readers {
            self.readers = readers;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FeedName, PassSecret};

    #[test]
    fn what_is_absent_stays_and_an_open_upstream_is_forgotten() {
        let feed: FeedName = "apps".parse().unwrap();
        let keys = PassSecret::new([1; 32]).keys(&feed, &"eu".parse().unwrap(), 0).to_vec();
        let reader = Reader {
            id: "01".to_owned(),
            hash: ObjectId::from_bytes([3; 32]),
            created: DateTime::UNIX_EPOCH,
            expires: None,
        };
        let said = Trust { now_ms: 5_000, keys: Some(keys.clone()), readers: Some(vec![reader]) };
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<Trust>(&text).unwrap(), said);

        let mut learned = Learned::default();
        learned.take(Some(said), 1_000);
        assert_eq!((learned.ahead_ms, &learned.keys), (4_000, &keys));
        learned.take(Some(Trust { now_ms: 1_000, ..Trust::default() }), 2_000);
        assert_eq!((learned.ahead_ms, learned.keys.len(), learned.readers.len()), (-1_000, 2, 1));
        learned.take(None, 2_000);
        assert_eq!(learned, Learned::default());
    }
}
