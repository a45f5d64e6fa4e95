//! When something happens again and again: a cron expression in a time zone.
//!
//! Crate `cron`: seconds first, six or seven fields. Days of the week go by name, since programs
//! disagree about their numbers (here 1 is Sunday). An expression that never fires is refused. Pure:
//! the time is what the caller says it is; a firing that a clock change skips does not happen.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

/// What fires only before this never fires again: 2026-01-01.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);

/// Why a text is no timetable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadCron {
    /// The expression.
    #[error("\"{text}\" is not a cron expression: {reason}")]
    Expression {
        /// As written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The time zone.
    #[error("\"{0}\" is not a time zone, as in Europe/Berlin or UTC")]
    Zone(String),
}

/// A cron expression in a time zone; it fires at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cron {
    schedule: cron::Schedule,
    zone: Tz,
}

impl Cron {
    /// Reads an expression; without a zone it is meant in UTC.
    ///
    /// # Errors
    /// When it cannot be read, numbers the days of the week, or never fires; or there is no such zone.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, BadCron> {
        let bad = |reason: &str| {
            let text = text.chars().take(80).collect();
            BadCron::Expression { text, reason: reason.to_owned() }
        };
        if text.split_whitespace().nth(5).is_some_and(numbers_days) {
            return Err(bad("days of the week go by name, as in MON-FRI"));
        }
        let schedule = text.trim().parse::<cron::Schedule>().map_err(|_| {
            bad("it has six fields, seconds first, as in \"0 0 8 * * MON-FRI\" for eight o'clock")
        })?;
        let zone = zone.unwrap_or("UTC");
        let zone: Tz = zone.parse().map_err(|_| BadCron::Zone(zone.chars().take(80).collect()))?;
        let cron = Cron { schedule, zone };
        let fires = cron.next_after(SystemTime::UNIX_EPOCH + EARLIEST).is_some();
        fires.then_some(cron).ok_or_else(|| bad("it never fires"))
    }

    /// The first firing after an instant; none when there is no other.
    #[must_use]
    pub fn next_after(&self, at: SystemTime) -> Option<SystemTime> {
        let at = DateTime::<Utc>::from(at).with_timezone(&self.zone);
        self.schedule.after(&at).next().map(SystemTime::from)
    }

    /// Whether it fired within `span` before an instant, or at it.
    #[must_use]
    pub fn fired_within(&self, span: Duration, at: SystemTime) -> bool {
        at.checked_sub(span).and_then(|from| self.next_after(from)).is_some_and(|fired| fired <= at)
    }

    /// The name of its time zone.
    #[must_use]
    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }
}

/// Whether a field numbers days; the number behind a slash is a step.
fn numbers_days(field: &str) -> bool {
    let days = field.split(',').map(|part| part.split('/').next().unwrap_or_default());
    days.flat_map(str::bytes).any(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.schedule.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SystemTime {
        text.parse::<DateTime<Utc>>().unwrap().into()
    }

    #[test]
    fn it_fires_by_the_clock_of_its_zone() {
        let cron = Cron::parse("0 0 8 * * MON-FRI", Some("Europe/Berlin")).unwrap();
        for (after, fires) in [
            ("2026-11-20T06:59:59Z", "2026-11-20T07:00:00Z"),
            ("2026-11-20T07:00:00Z", "2026-11-23T07:00:00Z"),
            ("2026-07-03T05:00:00Z", "2026-07-03T06:00:00Z"),
        ] {
            assert_eq!(cron.next_after(at(after)), Some(at(fires)), "{after}");
        }
        let ten_hours = Duration::from_secs(36_000);
        for (now, open) in [
            ("2026-11-20T06:59:59Z", false),
            ("2026-11-20T07:00:00Z", true),
            ("2026-11-20T16:59:59Z", true),
            ("2026-11-20T17:00:00Z", false),
            ("2026-11-21T07:30:00Z", false),
        ] {
            assert_eq!(cron.fired_within(ten_hours, at(now)), open, "{now}");
        }
    }

    #[test]
    fn what_never_fires_or_is_ambiguous_is_refused() {
        for (text, zone, part) in [
            ("0 0 0 30 2 *", None, "never fires"),
            ("0 0 0 1 1 * 2020", None, "never fires"),
            ("0 0 8 * * 1-5", None, "by name"),
            ("0 0 8 * * SUN,1", None, "by name"),
            ("0 8 * * *", None, "six fields"),
            ("", None, "six fields"),
            ("0 0 25 * * *", None, "six fields"),
            ("0 0 8 * * *", Some("Europe/Bonn"), "not a time zone"),
        ] {
            let said = Cron::parse(text, zone).unwrap_err().to_string();
            assert!(said.contains(part), "{text}: {said}");
        }
        assert!(Cron::parse("0 0 8 * * */2", None).is_ok());
        assert_eq!(Cron::parse("0 30 3 * * *", None).unwrap().zone(), "UTC");
    }
}
