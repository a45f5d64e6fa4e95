//! What a region answers to a client that asks it for the newest version without naming one.

use std::str::FromStr;

/// How a region knows that its newest version is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freshness {
    /// Its upstream was heard a moment ago: at most that old.
    #[default]
    Lease,
    /// It asks its upstream each time: exact.
    Ask,
}

/// What a region does while its upstream is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stale {
    /// Serves what it has, and says so.
    #[default]
    Serve,
    /// Tells the client to come again.
    Refuse,
}

impl FromStr for Freshness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "lease" => Ok(Freshness::Lease),
            "ask" => Ok(Freshness::Ask),
            _ => Err(format!("\"{text}\" is no way to be fresh; there are lease and ask")),
        }
    }
}

impl FromStr for Stale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "serve" => Ok(Stale::Serve),
            "refuse" => Ok(Stale::Refuse),
            _ => Err(format!("\"{text}\" is not known; there are serve and refuse")),
        }
    }
}
