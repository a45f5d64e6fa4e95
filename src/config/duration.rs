//! Durations as people write them: a number and one unit, `500ms`, `60s`, `10m`, `12h`, `30d`.
//!
//! A number alone is refused, since nobody could tell its unit.

use std::time::Duration;

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses a duration.
///
/// # Errors
/// With what was expected, for a sentence that names the key.
pub fn parse(text: &str) -> Result<Duration, String> {
    let fault = || {
        format!(
            "\"{text}\" is not a duration; write a whole number and ms, s, m, h or d, as in 60s"
        )
    };
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| fault())?;
    let (_, millis) =
        UNITS.into_iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(fault)?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        for (text, millis) in
            [("500ms", 500), ("60s", 60_000), ("10m", 600_000), ("1 h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("30d"), Ok(Duration::from_secs(30 * 86_400)));
        for bad in ["", "60", "s", "-1s", "1.5h", "1w", "10 minutes", "99999999999999999999s"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
