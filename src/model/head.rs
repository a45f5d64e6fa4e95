//! Where a feed stands: (epoch, seq, commit), and the rule by which a follower moves.
//!
//! Order is by epoch, then seq, never by a clock. A follower moves only forward on its own line, or
//! to a higher epoch; everything else is refused and is an alarm.

use serde::{Deserialize, Serialize};

use super::Oid;

/// The newest published commit of a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Head {
    /// Who owns the feed, counted: a promotion takes a higher one.
    pub epoch: u64,
    /// The commit's number within the feed, from 1.
    pub seq: u64,
    /// The commit.
    pub commit: Oid,
}

/// What a follower at one head makes of another one that it hears of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the head that we have.
    Same,
    /// It is ahead in our epoch: right if it descends from ours, which the fetch proves.
    Forward,
    /// A higher epoch: the feed has a new owner, whose line we take.
    NewEpoch,
    /// Behind us: a primary that was restored from a backup, or an old owner. Refused.
    Behind,
    /// Our epoch and seq with another commit: two writers. Refused.
    Split,
}

impl Head {
    /// What a follower that has `have` (none: nothing yet) makes of `self`.
    #[must_use]
    pub fn step_from(&self, have: Option<&Head>) -> Step {
        let Some(have) = have else { return Step::Forward };
        match (self.epoch, self.seq).cmp(&(have.epoch, have.seq)) {
            std::cmp::Ordering::Equal if self.commit == have.commit => Step::Same,
            std::cmp::Ordering::Equal => Step::Split,
            _ if self.epoch > have.epoch => Step::NewEpoch,
            std::cmp::Ordering::Greater => Step::Forward,
            std::cmp::Ordering::Less => Step::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(epoch: u64, seq: u64, commit: u8) -> Head {
        Head { epoch, seq, commit: Oid::from_bytes([commit; 20]) }
    }

    #[test]
    fn a_follower_moves_forward_or_to_a_higher_epoch_only() {
        let have = head(2, 10, 1);
        for (other, step) in [
            (head(2, 10, 1), Step::Same),
            (head(2, 10, 2), Step::Split),
            (head(2, 11, 2), Step::Forward),
            (head(2, 9, 2), Step::Behind),
            (head(1, 99, 2), Step::Behind),
            (head(3, 4, 2), Step::NewEpoch),
        ] {
            assert_eq!(other.step_from(Some(&have)), step, "{other:?}");
        }
        assert_eq!(have.step_from(None), Step::Forward);
    }
}
