//! The primary's folder: how it is changed, and what becomes of that.

use super::*;

impl World {
    /// Somebody changed a path: the kernel says so a little later, if it does.
    pub(super) fn touch(&mut self, node: usize, path: Path) {
        let run = self.nodes[node].run;
        if self.nodes[node].primary().is_none() {
            return;
        }
        let after = self.random.millis(0, 3);
        if self.random.percent(4) && !self.calm {
            // The queue was full: everything is looked at.
            self.later(after + Duration::from_millis(500), Happening::Rescan { node, run });
        } else {
            self.later(after, Happening::Touched { node, run, path });
        }
    }

    /// A file that is written: each piece is torn, but for the last.
    pub(super) fn piece(&mut self, node: usize, path: Path, left: u32, every: Duration) {
        let is_calm = self.calm;
        let content = if left == 0 || is_calm { self.whole() } else { self.whole() + 1 };
        let open = left > 0 && !is_calm;
        self.nodes[node].folder.files.insert(path, File { content, open });
        self.touch(node, path);
        if open {
            self.later(every, Happening::Piece { node, path, left: left - 1, every });
        }
    }

    pub(super) fn rescan(&mut self, node: usize, run: u64) {
        if self.nodes[node].run != run {
            return;
        }
        let head = self.history.tree(self.nodes[node].fetched);
        let all: BTreeSet<Path> =
            self.nodes[node].folder.files.keys().chain(head.keys()).copied().collect();
        for path in all {
            let here = self.nodes[node].folder.files.get(&path).map(|file| file.content);
            if here != head.get(&path).copied()
                && let Some(primary) = self.nodes[node].primary()
            {
                primary.found(path);
            }
        }
        self.later(Duration::from_secs(60), Happening::Rescan { node, run });
        self.attend(node);
    }

    /// Somebody who follows is ahead of this node, or on another line: nothing may be published.
    pub(super) fn is_refused(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        let ahead = it.roster.ahead_of(self.now, it.fetched.as_ref());
        ahead.is_some_and(|known| known.fetched.is_none_or(|have| have.epoch >= it.epoch))
    }

    pub(super) fn attend(&mut self, node: usize) {
        let refused = self.is_refused(node);
        let (now, slow) = (self.now, self.plan.slow);
        let it = &mut self.nodes[node];
        let run = it.run;
        let mut tasks = Vec::new();
        if let Part::Primary(primary) = &mut it.part {
            let stands = (&it.folder, it.fetched, it.epoch);
            let chance = (&mut self.history, &mut self.random);
            tasks = primary.work(now, stands, refused, chance, slow);
        }
        for task in tasks {
            match task {
                Task::Read { path, saw, lasts } => {
                    self.later(lasts, Happening::Read { node, run, path, saw });
                }
                Task::Commit { head, deleted, arrived, lasts } => {
                    self.later(lasts, Happening::Commit { node, run, head, deleted, arrived });
                }
            }
        }
        let due = self.nodes[node].deadline(now);
        // Somebody is ahead: that is looked at again in a while.
        let due = due.map(|at| if refused { at.max(now + Duration::from_secs(1)) } else { at });
        if let Some(at) = due
            && self.nodes[node].wake_at.is_none_or(|known| at < known)
        {
            self.nodes[node].wake_at = Some(at);
            self.at(at, Happening::Wake(node));
        }
    }

    pub(super) fn was_read(&mut self, node: usize, run: u64, path: Path, saw: Option<File>) {
        if self.nodes[node].run != run {
            return;
        }
        let head = self.history.tree(self.nodes[node].fetched);
        let now = self.now;
        let it = &mut self.nodes[node];
        if let Part::Primary(primary) = &mut it.part {
            primary.was_read(now, path, saw, &it.folder, &head);
        }
        self.attend(node);
    }

    /// A commit is durable: from here on others hear of it.
    pub(super) fn committed(
        &mut self,
        node: usize,
        run: u64,
        head: Head,
        deleted: &[Path],
        arrived: &[(Path, Content)],
    ) {
        if self.nodes[node].run != run {
            return; // the process died before: nobody has heard of it
        }
        let commit = self.history.get(head.commit);
        assert!(commit.tree.values().all(|content| content % 2 == 0), "a torn file is in history");
        let before = self.nodes[node].fetched;
        assert_eq!(commit.parent, before.map(|head| head.commit), "one line");
        self.tell(|_| format!("n{node} publishes {} of epoch {}", head.seq, head.epoch));
        let files = self.history.tree(before).len();
        let now = self.now;
        self.nodes[node].fetched = Some(head);
        self.nodes[node].have = Some(head);
        let it = &mut self.nodes[node];
        if let Part::Primary(primary) = &mut it.part {
            primary.published(now, before, files, (deleted, arrived));
            let tree = self.history.tree(Some(head));
            for (path, saw) in primary.take_late() {
                primary.was_read(now, path, saw, &it.folder, &tree);
            }
        }
        self.post(node, head);
        self.attend(node);
    }

    /// Whoever follows is to hear of a head that is durable here.
    pub(super) fn post(&mut self, node: usize, head: Head) {
        assert_eq!(self.nodes[node].fetched, Some(head), "announced means fetchable");
        self.nodes[node].roster.posted(self.now, head);
        for link in 0..self.links.len() {
            if self.links[link].upstream == node && self.links[link].upstream_open {
                let after = self.random.millis(0, 3);
                self.later(after, Happening::Announce(link));
            }
        }
    }
}
