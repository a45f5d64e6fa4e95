//! The commands a person types: one file for each group, each a struct that clap fills and `run`.
//!
//! A command prints what it found on stdout, for people or with `--json` for programs, and what
//! went wrong on stderr as `depsync: …`. Exit codes: 0; 1 failed; 2 the command line cannot be
//! read; 78 a configuration, directory, state or port that cannot be used.

mod audit;
mod check;
mod client;
mod control;
mod demo;
mod doctor;
mod download;
#[cfg(test)]
mod download_tests;
mod fleet;
mod get;
mod history;
mod import;
mod import_bar;
mod key;
mod manual;
mod orders;
mod paint;
mod patch;
mod runs;
mod serve;
mod status;
mod table;
mod target;
mod token;
mod transfer;
mod upkeep;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{config, daemon};

/// Keeps deployment directories identical across a cluster and its regions, backed by git.
#[derive(Debug, Parser)]
#[command(name = "depsync", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a directory and publish its changes
    Primary(serve::PrimaryArgs),
    /// Mirror a directory from its upstream and serve a region's compute hosts
    Region(serve::RegionArgs),
    /// Run any mix of feeds from a configuration file
    Run(serve::RunArgs),
    /// Read a configuration file and say what is wrong with it; changes nothing
    Check(check::CheckArgs),
    /// Print a configuration file made from those of what was used before
    Import(import::ImportArgs),
    /// Look at this machine as a node needs it, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Show it: a primary and two regions on this machine, with real artifacts
    Demo(demo::DemoArgs),
    /// Show the feeds of a node, what waits in them, and who mirrors them
    Status(status::StatusArgs),
    /// List every node below this one, feed by feed
    Nodes(status::ViewArgs),
    /// Show the region table, and who serves each region
    Regions(status::ViewArgs),
    /// Say who would serve a client, and why
    Locate(status::LocateArgs),
    /// List commits, the newest first
    Log(history::LogArgs),
    /// List what changed between two commits
    Diff(history::DiffArgs),
    /// List a folder of any version
    Ls(history::LsArgs),
    /// Look now: a primary for changes, a region for a newer head
    Sync(fleet::SyncArgs),
    /// Wait until every region has verified a commit, or say which have not
    Wait(fleet::WaitArgs),
    /// Let nodes stay where they are
    Pause(fleet::WhomArgs),
    /// Let them go on
    Resume(fleet::WhomArgs),
    /// Make this node the primary of a feed, in an epoch above all others
    Promote(fleet::PromoteArgs),
    /// Make this node a region of a feed
    Demote(fleet::DemoteArgs),
    /// Forget a node that is gone for good
    Forget(fleet::ForgetArgs),
    /// Gather changes, and publish nothing until `release`
    Hold(control::FeedCommandArgs),
    /// Publish what `hold` gathered, as one commit
    Release(control::FeedCommandArgs),
    /// Publish what is held
    Approve(control::ApproveArgs),
    /// Put back what held deletions removed
    Reject(control::RejectArgs),
    /// Remove what no kept version needs, now
    Gc(upkeep::UpkeepArgs),
    /// Check the repository and the directory, and repair
    Fsck(upkeep::UpkeepArgs),
    /// Download a file or a folder of a feed
    Get(get::GetArgs),
    /// Bring an older state back, as a new commit, and freeze the feed until `release`
    Rollback(orders::CommitArgs),
    /// Keep nodes at a commit
    Pin(orders::PinArgs),
    /// Let pinned nodes go to the newest commit again
    Unpin(orders::UnpinArgs),
    /// Take a commit out of use: nobody checks it out, or is given it, any more
    Revoke(orders::CommitArgs),
    /// Upload a file into a feed
    Put(transfer::PutArgs),
    /// Remove a file from a feed
    Rm(transfer::RmArgs),
    /// Show who did what, from where, and how it ended
    Audit(audit::AuditArgs),
    /// Show what this node did: commits, fetches, checkouts, and what came of them
    Runs(runs::RunsArgs),
    /// Make a key to sign commits with
    Key(key::KeyArgs),
    /// Make, list and revoke the tokens that let others in
    Token(token::TokenArgs),
    /// Print what a shell needs to complete commands and options
    Completions(manual::CompletionsArgs),
    /// Write the manual pages into a folder
    Man(manual::ManArgs),
}

impl Command {
    fn run(self) -> Result<(), Error> {
        match self {
            Command::Primary(args) => args.run()?,
            Command::Region(args) => args.run()?,
            Command::Run(args) => args.run()?,
            Command::Check(args) => args.run()?,
            Command::Import(args) => args.run()?,
            Command::Doctor(args) => args.run()?,
            Command::Demo(args) => args.run()?,
            Command::Status(args) => args.run()?,
            Command::Nodes(args) => args.nodes()?,
            Command::Regions(args) => args.regions()?,
            Command::Locate(args) => args.run()?,
            Command::Log(args) => args.run()?,
            Command::Diff(args) => args.run()?,
            Command::Ls(args) => args.run()?,
            Command::Wait(args) => args.run()?,
            Command::Pause(args) => args.run("pause", "stays where it is")?,
            Command::Resume(args) => args.run("resume", "goes on")?,
            Command::Promote(args) => args.run()?,
            Command::Demote(args) => args.run()?,
            Command::Forget(args) => args.run()?,
            Command::Sync(args) => args.run()?,
            Command::Hold(args) => args.run("hold", "held until `depsync release`")?,
            Command::Release(args) => args.run("release", "released")?,
            Command::Approve(args) => args.run()?,
            Command::Reject(args) => args.run()?,
            Command::Rollback(args) => {
                args.run("rollback", "rolled back, and frozen until `depsync release`")?;
            }
            Command::Pin(args) => args.run()?,
            Command::Unpin(args) => args.run()?,
            Command::Revoke(args) => args.run("revoke", "revoked")?,
            Command::Gc(args) => args.gc()?,
            Command::Fsck(args) => args.fsck()?,
            Command::Get(args) => args.run()?,
            Command::Put(args) => args.run()?,
            Command::Rm(args) => args.run()?,
            Command::Audit(args) => args.run()?,
            Command::Runs(args) => args.run()?,
            Command::Key(args) => args.run()?,
            Command::Token(args) => args.run()?,
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run()?,
        }
        Ok(())
    }
}

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A configuration that cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The daemon stopped.
    #[error(transparent)]
    Daemon(Box<daemon::Error>),
    /// Anything else.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

impl From<daemon::Error> for Error {
    fn from(error: daemon::Error) -> Self {
        Error::Daemon(Box::new(error))
    }
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Error::Config(_) => config::Error::EXIT_CODE,
            Error::Daemon(error) => error.exit_code(),
            Error::Failed(_) => 1,
        }
    }
}

/// What clap says, in one line; help and version as they are.
fn unreadable(error: &clap::Error) -> ExitCode {
    let text = error.to_string();
    match text.lines().next().and_then(|line| line.strip_prefix("error: ")) {
        Some(line) if error.use_stderr() => eprintln!("depsync: {line}; see `depsync --help`"),
        _ => error.exit(),
    }
    ExitCode::from(2)
}

/// Reads the command line, runs the command, says what went wrong.
#[must_use]
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return unreadable(&error),
    };
    let Err(error) = command.run() else { return ExitCode::SUCCESS };
    for line in error.to_string().lines() {
        eprintln!("depsync: {line}");
    }
    ExitCode::from(error.exit_code())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
