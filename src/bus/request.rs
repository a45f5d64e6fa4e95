//! What the edge asks of the stage that owns a feed, and what people decide about the feed itself.

use tokio::sync::oneshot;

use super::frame::Ack;
use crate::model::{ObjectId, Oid, RelPath, Target};

/// Where the answer to a request goes: done, or why not. Dropped: the stage is ending.
pub type Answer = oneshot::Sender<Result<(), String>>;

/// Why an object did not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfetched {
    /// The upstream has given it up.
    Gone(String),
    /// It may come another time.
    Later(String),
}

impl Unfetched {
    /// It may come another time; why not now.
    pub fn later(why: &str) -> Self {
        Unfetched::Later(why.to_owned())
    }
}

/// What the edge may ask of the stage that owns a feed.
#[derive(Debug)]
pub enum Request {
    /// Look now: the primary scans, and answers when all is committed or waits for somebody; a
    /// region asks for the head.
    Sync(Answer),
    /// A region: make sure this commit is in the store (fetch it if need be), for a redirect that
    /// names it.
    Fetch(Oid, Answer),
    /// A region: tell the upstream, if it is there. Nobody waits for an answer.
    Report(Ack),
    /// A region: bring back what the store lacks.
    Repair {
        /// Git objects of the history.
        history: bool,
        /// Objects, with their sizes.
        objects: Vec<(ObjectId, u64)>,
        /// Where the answer goes.
        answer: Answer,
    },
    /// A region: bring one object of a published version from the upstream.
    Object {
        /// Which.
        id: ObjectId,
        /// Its bytes.
        size: u64,
        /// The version that was asked for, where it was a file of one.
        commit: Option<Oid>,
        /// Where the answer goes.
        answer: oneshot::Sender<Result<(), Unfetched>>,
    },
    /// The primary: gather changes and publish none.
    Hold {
        /// Who asks, for those who wonder.
        by: String,
        /// Where the answer goes.
        answer: Answer,
    },
    /// The primary: publish what was gathered, as one commit, once every touched path is ready.
    Release(Answer),
    /// The primary: let something pass that is held.
    Approve(Approval, Answer),
    /// The primary: put the files back whose deletion is held.
    Reject {
        /// The list that was seen; none: whatever it is.
        id: Option<String>,
        /// Where the answer goes.
        answer: Answer,
    },
    /// The primary: bring an older state back, as a new commit, and freeze the feed.
    Rollback {
        /// The commit whose tree is brought back.
        commit: Oid,
        /// Who asks, for those who wonder.
        by: String,
        /// Where the answer goes.
        answer: Answer,
    },
    /// The primary: keep nodes at a commit.
    Pin {
        /// Which.
        commit: Oid,
        /// Whom.
        target: Target,
        /// Who asks, for those who wonder.
        by: String,
        /// Where the answer goes.
        answer: Answer,
    },
    /// The primary: let them go to the newest again.
    Unpin {
        /// Whom.
        target: Target,
        /// Where the answer goes.
        answer: Answer,
    },
    /// The primary: a commit that nobody checks out any more.
    Revoke {
        /// Which.
        commit: Oid,
        /// Where the answer goes.
        answer: Answer,
    },
}

/// What is let pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Approval {
    /// The deletions that are held: the list that was seen; none: whatever it is.
    Deletions(Option<String>),
    /// An incomplete archive, as it is.
    Path(RelPath),
    /// The directory at the feed's path, though it is not the one that it was.
    Root,
}

/// What somebody decides about the feed itself, whatever this node is to it. Answered once the
/// decision is durable and in force.
#[derive(Debug)]
pub enum Decision {
    /// These nodes stay where they are.
    Pause {
        /// Who.
        target: Target,
        /// Who asks, for those who wonder.
        by: String,
        /// Where the answer goes.
        answer: Answer,
    },
    /// They go on.
    Resume {
        /// Who; as it was paused.
        target: Target,
        /// Where the answer goes.
        answer: Answer,
    },
    /// This node owns the feed from now on, in an epoch above all others.
    Promote(Answer),
    /// This node mirrors the feed from now on.
    Demote {
        /// From there; none: from where the configuration says.
        upstream: Option<String>,
        /// Where the answer goes.
        answer: Answer,
    },
}

impl Request {
    /// Answers that this cannot be done here, and why.
    pub fn refuse(self, why: &str) {
        let answer = match self {
            Request::Report(_) => return,
            Request::Object { answer, .. } => {
                let _ = answer.send(Err(Unfetched::later(why)));
                return;
            }
            Request::Sync(answer)
            | Request::Fetch(_, answer)
            | Request::Repair { answer, .. }
            | Request::Hold { answer, .. }
            | Request::Release(answer)
            | Request::Approve(_, answer)
            | Request::Reject { answer, .. }
            | Request::Rollback { answer, .. }
            | Request::Pin { answer, .. }
            | Request::Unpin { answer, .. }
            | Request::Revoke { answer, .. } => answer,
        };
        // Whoever asked may have gone.
        let _ = answer.send(Err(why.to_owned()));
    }
}
