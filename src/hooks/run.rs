//! One run of one hook: what it is told, and what its answer means.
//!
//! The hook sees the deployment directory as working directory, an environment of exactly the
//! variables below, and nothing on its standard input. Whatever it does is data: an [`Outcome`],
//! never an error and never a panic.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus},
    sync::atomic::AtomicBool,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    Changes, End, Hook, Hooks, Refusal,
    process::{self, Captured, Ending, Finished},
};
use crate::model::{FeedName, Label, Oid, RegionName, RelPath};

/// The exit code that asks for another run later: `EX_TEMPFAIL` of `sysexits.h`.
const TRY_AGAIN: i32 = 75;

/// A fixed one: a hook behaves the same whoever started the daemon.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest reason, in characters: a variable has to fit the kernel's 128 KiB.
const MAX_REASON: usize = 4096;

/// What a hook is run for. What is absent, the hook finds as an empty variable.
#[derive(Debug, Clone, Copy)]
pub struct Occasion<'a> {
    /// The deployment directory.
    pub dir: &'a Path,
    /// The feed.
    pub feed: &'a FeedName,
    /// This node.
    pub node: &'a Label,
    /// This node's region, at a region.
    pub region: Option<&'a RegionName>,
    /// The commit that it is about.
    pub commit: Option<Oid>,
    /// The commit that the changes are counted from.
    pub previous: Option<Oid>,
    /// The changes; without them the hook reads an empty list.
    pub changes: Option<&'a Changes>,
    /// What waits, or what failed, in words: for `on-held` and `on-failure`, else empty.
    pub reason: &'a str,
}

/// A run and what it came to.
#[derive(Debug)]
pub struct Report {
    /// What its end means.
    pub outcome: Outcome,
    /// What it said.
    pub output: Output,
    /// How long it took.
    pub took: Duration,
}

/// What a hook's end means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There is no such hook: go on, and record nothing.
    Absent,
    /// Go on.
    Passed,
    /// A pre-hook says no.
    Vetoed {
        /// Its exit code.
        code: i32,
        /// `pre-commit` only: just these paths of the commit are refused. Empty: all of it.
        paths: Vec<RelPath>,
    },
    /// It asks for another run later.
    Retry,
    /// It took too long and was killed, with its process group.
    TimedOut,
    /// The daemon stops: it was killed, and has not had its run.
    Stopped,
    /// It must not be run.
    Refused(Refusal),
    /// It could not be started, was killed by a signal or, a hook that cannot veto, exited with
    /// another code than 0 and 75: which of these.
    Failed(String),
}

impl Outcome {
    /// What the schedule makes of it.
    #[must_use]
    pub fn end(&self) -> End {
        match self {
            Outcome::Absent | Outcome::Passed => End::Passed,
            Outcome::Vetoed { .. } | Outcome::TimedOut | Outcome::Failed(_) => End::Failed,
            Outcome::Retry | Outcome::Stopped => End::Retry,
            Outcome::Refused(_) => End::Refused,
        }
    }
}

impl Report {
    /// Why the hook did not pass, for people; none when it did, or is not there.
    #[must_use]
    pub fn reason(&self) -> Option<String> {
        let why = match &self.outcome {
            Outcome::Absent | Outcome::Passed => return None,
            Outcome::Vetoed { code, .. } => format!("it refuses, with exit code {code}"),
            Outcome::Retry => "it asks to be run again later".to_owned(),
            Outcome::TimedOut => "it took too long and was ended".to_owned(),
            Outcome::Stopped => "it was ended, since the daemon stops".to_owned(),
            Outcome::Refused(refusal) => refusal.to_string(),
            Outcome::Failed(why) => why.clone(),
        };
        match self.output.text.trim() {
            "" => Some(why),
            said => Some(format!("{why}: {said}")),
        }
    }
}

/// What a hook said, for people: its output, then its error output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// The text, without what would steer a terminal; other bytes than UTF-8 are replaced.
    pub text: String,
    /// There was more, and it was dropped.
    pub truncated: bool,
}

impl Hooks {
    /// Runs `hook` to its end, if there is one. Blocks; `stop` ends it early.
    #[must_use]
    pub fn run(&self, hook: Hook, occasion: &Occasion<'_>, stop: &AtomicBool) -> Report {
        let started = Instant::now();
        let (outcome, output) = self.attempt(hook, occasion, stop);
        Report { outcome, output, took: started.elapsed() }
    }

    fn attempt(&self, hook: Hook, occasion: &Occasion<'_>, stop: &AtomicBool) -> (Outcome, Output) {
        let silent = |outcome| (outcome, Output::default());
        let path = match self.find(hook) {
            Ok(Some(path)) => path,
            Ok(None) => return silent(Outcome::Absent),
            Err(refusal) => return silent(Outcome::Refused(refusal)),
        };
        match process::run(command(&path, occasion), &self.limits, stop) {
            Ok(finished) => judge(hook, &finished, occasion.changes),
            Err(error) => {
                let why =
                    format!("cannot run {} in {}: {error}", path.display(), occasion.dir.display());
                if mends_itself(&error) {
                    return (Outcome::Retry, Output { text: why, truncated: false });
                }
                silent(Outcome::Failed(why))
            }
        }
    }
}

/// Somebody is just writing the hook, or the machine is short of processes, memory or descriptors.
fn mends_itself(error: &io::Error) -> bool {
    let passing = [Errno::TXTBSY, Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    Errno::from_io_error(error).is_some_and(|error| passing.contains(&error))
}

fn command(hook: &Path, occasion: &Occasion<'_>) -> Command {
    let text = |commit: Option<Oid>| commit.map(|commit| commit.to_string()).unwrap_or_default();
    let mut command = Command::new(hook);
    command
        .current_dir(occasion.dir)
        .env_clear()
        .env("PATH", PATH)
        .env("LANG", "C.UTF-8")
        .env("DEPSYNC_FEED", occasion.feed.as_str())
        .env("DEPSYNC_NODE", occasion.node.as_str())
        .env("DEPSYNC_REGION", occasion.region.map_or("", RegionName::as_str))
        .env("DEPSYNC_COMMIT", text(occasion.commit))
        .env("DEPSYNC_PREVIOUS", text(occasion.previous))
        .env("DEPSYNC_CHANGES", occasion.changes.map_or(Path::new("/dev/null"), Changes::path))
        .env("DEPSYNC_REASON", one_line(occasion.reason));
    command
}

/// A reason as a variable can hold it and a script expects it: one line, no NUL, not endless.
fn one_line(reason: &str) -> String {
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect()
}

fn judge(hook: Hook, finished: &Finished, changes: Option<&Changes>) -> (Outcome, Output) {
    let mut said = Output::default();
    let status = match finished.ending {
        Ending::Exited(status) => status,
        Ending::TimedOut => return (Outcome::TimedOut, said.and_all(finished)),
        Ending::Stopped => return (Outcome::Stopped, said.and_all(finished)),
    };
    match status.code() {
        Some(0) => (Outcome::Passed, said.and_all(finished)),
        Some(TRY_AGAIN) => (Outcome::Retry, said.and_all(finished)),
        Some(code) if hook.may_veto() => {
            let names = if hook == Hook::PreCommit {
                named_paths(&finished.stdout, changes)
            } else {
                Names::None
            };
            let paths = match names {
                Names::Known(paths) => {
                    said.add(&finished.stderr);
                    return (Outcome::Vetoed { code, paths }, said);
                }
                Names::Unusable(why) => {
                    said.text = format!("the whole commit is refused, since {why}\n");
                    Vec::new()
                }
                Names::None => Vec::new(),
            };
            (Outcome::Vetoed { code, paths }, said.and_all(finished))
        }
        _ => (Outcome::Failed(describe(status)), said.and_all(finished)),
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with code {code}"),
        (None, Some(signal)) => format!("it was ended by signal {signal}"),
        (None, None) => "it ended without an exit code".to_owned(),
    }
}

/// The paths that a veto names.
enum Names {
    /// None: the output is a text.
    None,
    /// Each is one of the commit's.
    Known(Vec<RelPath>),
    /// It means to name some, but not all can be believed: refusing just the others would publish
    /// what the hook wanted held.
    Unusable(&'static str),
}

fn named_paths(stdout: &Captured, changes: Option<&Changes>) -> Names {
    if !stdout.bytes.contains(&0) {
        return Names::None;
    }
    if stdout.truncated {
        return Names::Unusable("the hook names more paths than fit its output");
    }
    let Some(list) = stdout.bytes.strip_suffix(&[0]) else {
        return Names::Unusable("the hook's last path is not ended by NUL");
    };
    let paths: Result<Vec<_>, _> = list.split(|&byte| byte == 0).map(RelPath::parse).collect();
    match paths {
        Ok(paths) if changes.is_some_and(|list| list.hold_all(&paths).unwrap_or(false)) => {
            Names::Known(paths)
        }
        _ => Names::Unusable("the hook names what is not a path of the commit"),
    }
}

impl Output {
    fn and_all(mut self, finished: &Finished) -> Self {
        self.add(&finished.stdout);
        self.add(&finished.stderr);
        self
    }

    fn add(&mut self, captured: &Captured) {
        let text = String::from_utf8_lossy(&captured.bytes);
        let harmless = |c: char| !c.is_control() || matches!(c, '\n' | '\t');
        self.text.extend(
            text.chars().map(|c| if harmless(c) { c } else { char::REPLACEMENT_CHARACTER }),
        );
        self.truncated |= captured.truncated;
    }
}
