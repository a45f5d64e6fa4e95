//! What must hold at every step, and what all come to in the end.

use super::*;

impl World {
    /// Nobody is said to have what it has not, and one live node serves a region.
    pub(super) fn check_roster(&self, node: usize) {
        let it = &self.nodes[node];
        let Some(head) = it.fetched.filter(|_| it.up) else { return };
        let verdict = it.roster.verdict(self.now, &head, &it.paused);
        let lacking = it.roster.lacking(self.now, &head, &it.paused, None);
        assert_eq!(lacking.is_none(), verdict.is_complete(), "both say the same");
        for member in &verdict.verified {
            let known = self.nodes.iter().find(|node| node.id == member.node).expect("it exists");
            let at = |head: Head| (head.epoch, head.seq);
            let has = known.have.is_some_and(|have| at(have) >= at(head));
            assert!(has, "{} is said to have verified {}", member.node, head.seq);
        }
        let mut serving = BTreeSet::new();
        for follower in it.roster.followers() {
            use depsync::bus::frame::Standing::Serving;
            if follower.standing == Serving && follower.is_live(self.now) {
                assert!(serving.insert(&follower.hello.region), "two serve one region");
            }
        }
    }

    /// What keeps the fleet from being at rest and equal.
    pub(super) fn unequal(&self) -> Option<String> {
        let owners: Vec<&Node> = self.nodes.iter().filter(|node| node.owns).collect();
        let [owner] = owners[..] else {
            return Some("more than one node owns the feed".to_owned());
        };
        let Part::Primary(primary) = &owner.part else { return Some("no primary".to_owned()) };
        let folder: Tree =
            owner.folder.files.iter().map(|(path, file)| (*path, file.content)).collect();
        let head = owner.fetched;
        if !primary.is_at_rest() || folder != *self.history.tree(head) {
            return Some("the primary has not published all".to_owned());
        }
        for node in self.nodes.iter().filter(|node| !node.owns) {
            let Part::Mirror(mirror) = &node.part else { return Some("a node is down".to_owned()) };
            let summary = mirror.follow.summary();
            let is_equal = node.have == head && node.dir == Some(self.history.tree(head));
            if !is_equal || summary.state != "idle" {
                let Node { number, have, fetched, .. } = node;
                return Some(format!("n{number}: have {have:?}, fetched {fetched:?}, {summary:?}"));
            }
        }
        let head = head?;
        let verdict = owner.roster.verdict(self.now, &head, &[]);
        (!verdict.is_complete()).then(|| format!("the primary misses {}", verdict.lacks()))
    }
}
