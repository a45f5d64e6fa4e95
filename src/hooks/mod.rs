//! Running what the operator put in place: the executables of a feed's `hooks` directory.
//!
//! [`Hooks`] finds them, and refuses what others could have written; [`Hooks::run`] runs one in a
//! process group of its own, with bounds on its time and its output, and says what it came to;
//! [`Schedule`] decides when, and how often; [`Lane`] is the thread that does both; [`Mark`] keeps
//! what a hook was last done with.
//! Always: a pre-hook that cannot be run blocks, never passes. Nothing here logs, knows a store or
//! a ledger, or touches the deployment directory. The contract with a hook is `hooks/README.md`.

mod changes;
mod find;
mod lane;
mod mark;
mod process;
mod run;
mod schedule;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::{fmt, io, path::PathBuf};

pub use changes::Changes;
pub use find::{Hooks, Refusal};
pub use lane::Lane;
pub use mark::{Mark, Verdict};
pub use process::Limits;
pub use run::{Occasion, Outcome, Output, Report};
pub use schedule::{Backoff, Effect, End, Event, Run, Schedule};

use crate::model::Class;

/// The hooks that there are; the names are those of their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Before a commit is published: may refuse it, or single paths of it.
    PreCommit,
    /// After a commit was published.
    PostCommit,
    /// Before a commit is checked out: may refuse it.
    PreCheckout,
    /// After a commit was checked out.
    PostCheckout,
    /// When changes wait for a decision.
    OnHeld,
    /// When something failed that does not mend itself.
    OnFailure,
}

impl Hook {
    /// All of them, in the order of a change's way.
    pub const ALL: [Hook; 6] = [
        Hook::PreCommit,
        Hook::PostCommit,
        Hook::PreCheckout,
        Hook::PostCheckout,
        Hook::OnHeld,
        Hook::OnFailure,
    ];

    /// The name of its file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hook::PreCommit => "pre-commit",
            Hook::PostCommit => "post-commit",
            Hook::PreCheckout => "pre-checkout",
            Hook::PostCheckout => "post-checkout",
            Hook::OnHeld => "on-held",
            Hook::OnFailure => "on-failure",
        }
    }

    /// Whether what it says decides if the work goes on.
    #[must_use]
    pub fn may_veto(self) -> bool {
        matches!(self, Hook::PreCommit | Hook::PreCheckout)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What keeps a hook from being run at all. What a hook does is never an error: see [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of changes could not be written.
    #[error("cannot write the hooks' list of changes in {}: {source}; make room there", dir.display())]
    Changes {
        /// The spool.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// What the caller should do: room can be made.
    #[must_use]
    pub fn class(&self) -> Class {
        let Error::Changes { .. } = self;
        Class::Transient
    }
}
