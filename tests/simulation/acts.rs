//! What happens to nodes and to the network between them, and what only a person decides.

use super::*;

impl World {
    pub(super) fn start_node(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.tell(|_| format!("n{node} starts"));
        let (now, limit, seed) = (self.now, self.plan.limit, self.seed);
        self.nodes[node].start(now, limit, seed, &self.history);
        let run = self.nodes[node].run;
        if self.nodes[node].owns {
            self.later(Duration::from_secs(60), Happening::Rescan { node, run });
            self.attend(node);
        } else {
            self.feed(node, Event::Ticked);
        }
    }

    pub(super) fn crash(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.tell(|_| format!("n{node} dies"));
        for job in self.nodes[node].sending.broken_off() {
            let after = self.random.millis(1, 5_000);
            self.later(after, Happening::Lost { mirror: job.mirror, run: job.run });
        }
        self.nodes[node].stop();
        for link in 0..self.links.len() {
            let Link { follower, upstream, follower_open, upstream_open, .. } = self.links[link];
            if ![follower, upstream].contains(&node) || !(follower_open || upstream_open) {
                continue;
            }
            let at_follower = upstream == node;
            let ends = &mut self.links[link];
            if at_follower {
                ends.upstream_open = false
            } else {
                ends.follower_open = false
            }
            self.tell_other_end(link, at_follower);
        }
    }

    /// A connection was closed: the other end hears that, or falls silent without a word.
    pub(super) fn tell_other_end(&mut self, link: usize, at_follower: bool) {
        let ends = &self.links[link];
        let passes = !ends.dead && !self.is_cut(ends.follower, ends.upstream);
        if passes && self.random.percent(70) {
            let after = self.delay();
            self.later(after, Happening::Closed { link, at_follower });
        }
        self.links[link].dead = true;
    }

    pub(super) fn act(&mut self, act: Act) {
        if self.calm {
            return;
        }
        self.tell(|_| format!("{act:?}"));
        let owner = self.nodes.iter().position(|node| node.owns).unwrap_or(0);
        match act {
            Act::Rename(path) => {
                let content = self.whole();
                self.nodes[owner].folder.files.insert(path, File { content, open: false });
                self.touch(owner, path);
            }
            Act::Write(path, lasts) => {
                let pieces = 1 + self.random.below(6) as u32;
                // Slower than it may be quiet, and nobody could tell that it is not finished.
                let every = (lasts / pieces).min(Duration::from_millis(1_500));
                self.later(
                    Duration::ZERO,
                    Happening::Piece { node: owner, path, left: pieces, every },
                );
            }
            Act::Remove(path) => {
                self.nodes[owner].folder.files.remove(&path);
                self.touch(owner, path);
            }
            Act::RemoveMost(share, within) => {
                let all: Vec<Path> = self.nodes[owner].folder.files.keys().copied().collect();
                for path in all {
                    if self.random.percent(share) {
                        let at = self.random.millis(0, within.as_millis() as u64 + 1);
                        self.later(at, Happening::Gone { node: owner, path });
                    }
                }
            }
            Act::Crash(node, away) => {
                self.crash(node);
                self.later(away, Happening::Start(node));
            }
            Act::Cut(a, b, lasts) if a != b => {
                let cut = (a.min(b), a.max(b));
                self.cuts.push(cut);
                for link in &mut self.links {
                    let ends = (link.follower.min(link.upstream), link.follower.max(link.upstream));
                    link.dead |= ends == cut;
                }
                self.later(lasts, Happening::Heal(cut.0, cut.1));
            }
            Act::Cut(..) => {}
            Act::Drop(node) => {
                if let Some(link) = self.nodes[node].mirror().and_then(|mirror| mirror.link) {
                    self.end_at_follower(link, "dropped");
                }
            }
            Act::Pause(node) => {
                let target = Target::Node(self.nodes[node].id.clone());
                self.nodes.iter_mut().for_each(|it| it.paused.push(target.clone()));
            }
            Act::Limit(random) => {
                let rate = depsync::model::Rate::new(20_000 + random % 300_000);
                self.plan.limit = self.plan.limit.and(rate);
                for node in 0..self.nodes.len() {
                    self.nodes[node].sending.limit(self.now, self.plan.limit);
                    self.pump(node, self.nodes[node].run);
                }
            }
            Act::Sync(node) if self.nodes[node].mirror().is_some() => {
                self.feed(node, Event::SyncRequested);
            }
            Act::Sync(_) => {}
            Act::Promote(node) => {
                self.crash(0);
                self.promote(node);
                self.later(Duration::from_secs(5), Happening::Start(0));
            }
            Act::Restore(steps) => self.restore(steps),
        }
    }

    /// The primary's state and folder are those of an older day.
    pub(super) fn restore(&mut self, steps: usize) {
        let Some(head) = self.nodes[0].fetched.filter(|_| self.nodes[0].owns) else { return };
        self.crash(0);
        let old = self.history.back(head, steps);
        let tree = self.history.tree(Some(old));
        let node = &mut self.nodes[0];
        node.fetched = Some(old);
        node.kept.held.clear();
        let file =
            |(path, content): (&Path, &Content)| (*path, File { content: *content, open: false });
        node.folder.files = tree.iter().map(file).collect();
        self.later(Duration::from_secs(1), Happening::Start(0));
    }

    /// As `depsync promote`: refused until what was fetched is checked out.
    pub(super) fn promote(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let is_whole = it.owns || (it.fetched == it.have && it.dir.is_some());
        let Some(head) = it.fetched.filter(|_| it.up && is_whole) else { return };
        let above = it.roster.highest_epoch().max(it.epoch).max(head.epoch);
        it.epoch = above + 1;
        self.tell(|world| format!("n{node} is promoted to epoch {}", world.nodes[node].epoch));
        let tree = self.history.tree(Some(head));
        self.crash(node);
        let it = &mut self.nodes[node];
        if !it.owns {
            it.owns = true;
            it.folder.files = tree.iter().map(closed).collect();
        }
        self.start_node(node);
        let (epoch, run) = (self.nodes[node].epoch, self.nodes[node].run);
        let new = self.history.make(Some(head), epoch, tree);
        self.committed(node, run, new, &[], &[]);
    }

    /// As `depsync demote --upstream`.
    pub(super) fn demote(&mut self, node: usize, owner: usize) {
        self.tell(|_| format!("n{node} is demoted, and follows n{owner}"));
        self.crash(node);
        let it = &mut self.nodes[node];
        it.owns = false;
        it.upstreams = vec![owner];
        it.have = it.fetched;
        // What it has not published goes aside with the first checkout.
        it.dir = None;
        self.start_node(node);
    }

    pub(super) fn calm_down(&mut self) {
        self.tell(|_| "from here on nothing fails".to_owned());
        self.calm = true;
        self.cuts.clear();
        for node in 0..self.nodes.len() {
            self.nodes[node].paused.clear();
            let open: Vec<Path> = self.nodes[node].folder.files.keys().copied().collect();
            for path in open {
                if self.nodes[node].folder.files[&path].open {
                    let content = self.whole();
                    self.nodes[node].folder.files.insert(path, File { content, open: false });
                    self.touch(node, path);
                }
            }
            self.start_node(node);
        }
        self.later(Duration::from_secs(40), Happening::Operator);
    }

    /// Somebody looks, and decides what only a person may.
    pub(super) fn operate(&mut self) {
        let owner = |world: &Self| {
            let owners = world.nodes.iter().filter(|node| node.owns);
            owners.max_by_key(|node| node.epoch).map_or(0, |node| node.number)
        };
        let first = owner(self);
        let refuses = |node: &Node| match &node.part {
            Part::Mirror(mirror) => mirror.follow.summary().state == "refused",
            _ => false,
        };
        if self.is_refused(first) || self.nodes.iter().any(refuses) {
            self.promote(first);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].owns && node != first {
                self.demote(node, first);
            }
        }
        let now = self.now;
        if let Some(primary) = self.nodes[first].primary()
            && !primary.kept.held.is_empty()
        {
            primary.approve(now);
            self.attend(first);
        }
        self.later(Duration::from_secs(45), Happening::Operator);
    }
}
