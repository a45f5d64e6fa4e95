//! How fast a repository grows: a sample an hour, kept for a week, in `growth` beside it.
//!
//! A line is seconds since 1970 and bytes. What cannot be read is begun anew: it is only a forecast.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// The samples of the last week, the oldest first.
pub(super) struct Growth {
    path: PathBuf,
    samples: Vec<(u64, u64)>,
}

impl Growth {
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_default();
        let sample = |line: &str| {
            let (at, bytes) = line.split_once(' ')?;
            Some((at.parse().ok()?, bytes.parse().ok()?))
        };
        let samples = text.lines().filter_map(sample).collect();
        Growth { path: path.to_owned(), samples }
    }

    /// Takes a sample, if it is time for one.
    pub(super) fn note(&mut self, now: u64, bytes: u64) -> io::Result<()> {
        // A clock that was set back begins anew.
        self.samples.retain(|(at, _)| *at <= now && now - at <= WEEK);
        if self.samples.last().is_some_and(|(at, _)| now - at < HOUR) {
            return Ok(());
        }
        self.samples.push((now, bytes));
        let line = |lines: String, (at, bytes): &_| lines + &format!("{at} {bytes}\n");
        let lines = self.samples.iter().fold(String::new(), line);
        fs::write(&self.path, lines)
    }

    /// Bytes in a day; none before there are samples of an hour.
    pub(super) fn per_day(&self, now: u64, bytes: u64) -> Option<u64> {
        let (at, before) = self.samples.first()?;
        let span = now.checked_sub(*at).filter(|span| *span >= HOUR)?;
        let grown = u128::from(bytes.saturating_sub(*before)) * u128::from(DAY);
        u64::try_from(grown / u128::from(span)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_that_of_the_last_week() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("growth");
        let mut growth = Growth::read(&path);
        assert_eq!(growth.per_day(0, 5), None);
        for hour in 0..400 {
            growth.note(hour * HOUR, hour * 1000).unwrap();
            growth.note(hour * HOUR + 60, 0).unwrap();
        }
        let mut again = Growth::read(&path);
        assert_eq!(again.samples.len(), 169);
        assert_eq!(again.per_day(400 * HOUR, 400_000), Some(24_000));
        assert_eq!(again.per_day(400 * HOUR, 0), Some(0), "it shrank");
        again.note(10 * HOUR, 7).unwrap();
        assert_eq!(again.samples, [(10 * HOUR, 7)], "the clock was set back");
    }
}
