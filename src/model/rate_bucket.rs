//! One token bucket in virtual time.
//!
//! Tokens are bytes, kept in billionths so that no rate loses any to rounding. Taken is at most what
//! is there, so in any span of time a bucket gives no more than its rate brings and its burst.

use std::time::Duration;

use super::Rate;

/// The most that is taken at once: small enough that clients alternate often.
pub(super) const MAX_PIECE: u64 = 64 << 10;
/// The least that a bucket holds when full, so that slow rates still fill a packet or two.
const MIN_BURST: u64 = 16 << 10;
/// A bucket holds what its rate brings in this fraction of a second: a timer's slack, and little more.
const BURSTS_PER_SEC: u64 = 20;

const NANOS: u128 = 1_000_000_000;

/// A bucket that fills at a rate.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    /// What a full bucket holds, in bytes.
    burst: u64,
    /// The most that is taken at once, and what must be there before anything is.
    piece: u64,
    billionths: u128,
    filled_at: Duration,
}

impl Bucket {
    /// A bucket that is full or empty at `now`.
    pub(super) fn new(rate: Rate, now: Duration, full: bool) -> Self {
        let rate = rate.bytes_per_sec();
        let burst = (rate / BURSTS_PER_SEC).max(MIN_BURST);
        let piece = (rate / BURSTS_PER_SEC).clamp(1 << 10, MAX_PIECE);
        let billionths = if full { u128::from(burst) * NANOS } else { 0 };
        Bucket { rate, burst, piece, billionths, filled_at: now }
    }

    /// The most that is taken at once; [`Bucket::ready_at`] says when that much is there.
    pub(super) fn piece(&self) -> u64 {
        self.piece
    }

    fn at(&self, now: Duration) -> u128 {
        let nanos = now.saturating_sub(self.filled_at).as_nanos();
        (self.billionths + nanos * u128::from(self.rate)).min(u128::from(self.burst) * NANOS)
    }

    /// When a piece can be taken; none: now.
    pub(super) fn ready_at(&self, now: Duration) -> Option<Duration> {
        let lacks = (u128::from(self.piece) * NANOS).checked_sub(self.at(now))?;
        if lacks == 0 {
            return None;
        }
        let nanos = u64::try_from(lacks.div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX);
        Some(now + Duration::from_nanos(nanos))
    }

    /// Whether it holds all it can.
    pub(super) fn is_full(&self, now: Duration) -> bool {
        self.at(now) == u128::from(self.burst) * NANOS
    }

    /// Takes at most a piece that [`Bucket::ready_at`] said is there.
    pub(super) fn take(&mut self, now: Duration, bytes: u64) {
        let taken = u128::from(bytes) * NANOS;
        self.billionths =
            self.at(now).checked_sub(taken).expect("a piece was there when it was picked");
        self.filled_at = now;
    }
}
