//! Why two nodes cannot talk: the faults that have a name at both ends.
//!
//! Each is a frame, a state of the follower and an entry in the upstream's list; its text says what the
//! operator can do. None of them mends itself: they are tried again slowly.

use serde::{Deserialize, Serialize};

use crate::model::FeedName;

/// Feeds that a fault lists, so that no frame comes near its bound.
const MAX_FEEDS: usize = 200;

/// Why an upstream and a follower cannot talk; it has a name at both ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Fault {
    /// The upstream does not accept the token, or wants one.
    #[error(
        "the upstream does not accept our token; make one there with `depsync token` and name its file in token_file"
    )]
    WrongToken,
    /// Something else answers at that address.
    #[error("what answers there is not a depsync server ({answer}); check the upstream's address")]
    NotDepsync {
        /// What it answered.
        answer: String,
    },
    /// The upstream has no feed of that name.
    #[error("the upstream has no feed \"{feed}\"; it has: {}", list(.feeds))]
    NoSuchFeed {
        /// What was asked for.
        feed: String,
        /// What there is.
        #[serde(default)]
        feeds: Vec<FeedName>,
    },
    /// The two speak versions that do not meet.
    #[error(
        "the upstream speaks protocol {upstream} and the follower {follower}; bring the older one up to date"
    )]
    Protocol {
        /// The upstream's version.
        upstream: u32,
        /// The follower's version.
        follower: u32,
    },
    /// The upstream has as many followers as it takes.
    #[error("the upstream takes no more followers")]
    Full,
    /// Of a newer program.
    #[error(
        "the upstream refused for a reason that this version does not know; bring it up to date"
    )]
    #[serde(other)]
    Unknown,
}

impl Fault {
    /// That there is no such feed, with the first of those there are.
    pub fn no_such_feed(feed: &str, feeds: impl IntoIterator<Item = FeedName>) -> Self {
        let feed = feed.chars().take(80).collect();
        Fault::NoSuchFeed { feed, feeds: feeds.into_iter().take(MAX_FEEDS).collect() }
    }
}

fn list(feeds: &[FeedName]) -> String {
    match feeds {
        [] => "none".to_owned(),
        _ => feeds.iter().map(FeedName::as_str).collect::<Vec<_>>().join(", "),
    }
}
