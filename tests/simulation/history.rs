//! Every commit that anybody ever made: what is in it, and what it stands on.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use depsync::model::{Head, Oid};

/// A path, by its number; and a content, by its.
pub type Path = u16;
pub type Content = u32;
pub type Tree = BTreeMap<Path, Content>;

/// A commit as all nodes see it.
pub struct Commit {
    pub head: Head,
    pub parent: Option<Oid>,
    pub tree: Rc<Tree>,
}

#[derive(Default)]
pub struct History {
    commits: HashMap<Oid, Commit>,
}

impl History {
    /// A commit that nobody has yet.
    pub fn make(&mut self, parent: Option<Head>, epoch: u64, tree: Rc<Tree>) -> Head {
        let number = self.commits.len() as u64 + 1;
        let mut id = [0xc0; 20];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let head = Head {
            epoch,
            seq: parent.map_or(1, |parent| parent.seq + 1),
            commit: Oid::from_bytes(id),
        };
        let parent = parent.map(|parent| parent.commit);
        self.commits.insert(head.commit, Commit { head, parent, tree });
        head
    }

    pub fn get(&self, commit: Oid) -> &Commit {
        &self.commits[&commit]
    }

    pub fn tree(&self, head: Option<Head>) -> Rc<Tree> {
        head.map_or_else(Rc::default, |head| Rc::clone(&self.get(head.commit).tree))
    }

    /// Whether `head` stands on `base`, or is it.
    pub fn descends(&self, head: Head, base: Option<Head>) -> bool {
        let Some(base) = base else { return true };
        let mut at = Some(head.commit);
        while let Some(commit) = at {
            if commit == base.commit {
                return true;
            }
            at = self.get(commit).parent;
        }
        false
    }

    /// The commit so many before a head, or the first.
    pub fn back(&self, head: Head, steps: usize) -> Head {
        let mut at = head;
        for _ in 0..steps {
            let Some(parent) = self.get(at.commit).parent else { break };
            at = self.get(parent).head;
        }
        at
    }
}
