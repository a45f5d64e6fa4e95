//! Whether every region has a head, and which has not: what `wait` answers from.
//!
//! Regions that are known count, also while they are away; whoever stands by, is paused, or waits
//! by the operator's own wish is listed and not waited for. Plain data, made from what was heard.

use serde::Serialize;

use crate::model::{Head, Label, NodeId, RegionName};

/// Where every region stands with one head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// They have verified it, or a later one.
    pub verified: Vec<Member>,
    /// They have not.
    pub lacking: Vec<Member>,
    /// They have not, and nobody waits for them.
    pub excused: Vec<Member>,
}

/// A node of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its region.
    pub region: Option<RegionName>,
    /// Its identity.
    pub node: NodeId,
    /// Its name for people, where it was heard.
    pub label: Option<Label>,
    /// Why it lacks the head, or is not waited for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Verdict {
    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lacking.is_empty()
    }

    /// Who lacks it, for people.
    #[must_use]
    pub fn lacks(&self) -> String {
        let name = |member: &Member| match (&member.region, &member.label) {
            (Some(region), _) => format!("{region} ({})", member.why),
            (None, Some(label)) => format!("{label} ({})", member.why),
            (None, None) => format!("{} ({})", member.node, member.why),
        };
        self.lacking.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Puts a member where it belongs; `excuse` is why nobody waits for it.
    pub(super) fn add(
        &mut self,
        member: Member,
        have: Option<&Head>,
        head: &Head,
        excuse: Option<String>,
    ) {
        if has(have, head) {
            self.verified.push(Member { why: String::new(), ..member });
        } else if let Some(why) = excuse {
            self.excused.push(Member { why, ..member });
        } else {
            self.lacking.push(member);
        }
    }
}

/// Whether who has `have` has `head`, or has had it before.
pub(super) fn has(have: Option<&Head>, head: &Head) -> bool {
    have.is_some_and(|have| have == head || (have.epoch, have.seq) > (head.epoch, head.seq))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Oid;

    #[test]
    fn a_later_head_counts_and_another_of_the_same_number_does_not() {
        let head = |epoch, seq, commit| Head { epoch, seq, commit: Oid::from_bytes([commit; 20]) };
        for (have, reached) in [
            (head(1, 5, 1), true),
            (head(1, 5, 2), false),
            (head(1, 4, 1), false),
            (head(1, 6, 2), true),
            (head(2, 1, 3), true),
        ] {
            assert_eq!(has(Some(&have), &head(1, 5, 1)), reached, "{have:?}");
        }
    }
}
