//! Who keeps showing tokens that are not known: each answer takes longer than the one before.
//!
//! Counted by address, of IPv6 by its /64, and forgotten after a quiet minute. A good token is never
//! delayed, so nobody is locked out by others behind the same address. So many wait at once; who
//! comes on top of them is turned away without a wait.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Semaphore;

/// Failures of an address are forgotten when it was quiet for so long.
const QUIET: Duration = Duration::from_secs(60);
/// Wrong tokens that cost nothing: a typing error, a rotation under way.
const FREE: u32 = 3;
/// The first delay; it doubles with each failure.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;
/// Answers that are held back at once.
const MAX_WAITING: usize = 256;

/// The failures of all addresses.
pub(super) struct Failures {
    seen: Mutex<HashMap<IpAddr, Seen>>,
    waiting: Semaphore,
}

struct Seen {
    count: u32,
    last: Instant,
}

impl Default for Failures {
    fn default() -> Self {
        Failures { seen: Mutex::default(), waiting: Semaphore::new(MAX_WAITING) }
    }
}

impl Failures {
    /// Counts one more; says how many there were lately.
    pub(super) fn add(&self, from: IpAddr, now: Instant) -> u32 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let from = network_of(from);
        if seen.len() >= MAX_ADDRESSES && !seen.contains_key(&from) {
            seen.retain(|_, seen| now.duration_since(seen.last) < QUIET);
            if seen.len() >= MAX_ADDRESSES {
                seen.clear();
            }
        }
        let entry = seen.entry(from).or_insert(Seen { count: 0, last: now });
        if now.duration_since(entry.last) >= QUIET {
            entry.count = 0;
        }
        (entry.count, entry.last) = (entry.count.saturating_add(1), now);
        entry.count
    }

    /// Holds an answer back as long as so many failures deserve; false when too many wait already.
    pub(super) async fn hold_back(&self, count: u32) -> bool {
        let delay = delay(count);
        if delay.is_zero() {
            return true;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return false };
        tokio::time::sleep(delay).await;
        true
    }
}

fn delay(count: u32) -> Duration {
    match count.checked_sub(FREE + 1) {
        None => Duration::ZERO,
        Some(doublings) => FIRST.saturating_mul(1 << doublings.min(16)).min(LONGEST),
    }
}

/// Whoever has an IPv6 address usually has a /64 of them.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_takes_longer_until_a_bound_and_none_is_for_ever() {
        let millis = [1, 3, 4, 5, 8, 9, 40, u32::MAX].map(|count| delay(count).as_millis());
        assert_eq!(millis, [0, 0, 100, 200, 1600, 2000, 2000, 2000]);
        let (failures, now) = (Failures::default(), Instant::now());
        let from = [10, 0, 0, 1].into();
        assert_eq!([0, 1, 2].map(|_| failures.add(from, now)), [1, 2, 3]);
        assert_eq!(failures.add([10, 0, 0, 2].into(), now), 1, "another address");
        assert_eq!(failures.add(from, now + QUIET), 1, "after a quiet minute");
    }

    #[test]
    fn an_ipv6_network_counts_as_one_and_the_table_is_bounded() {
        let (failures, now) = (Failures::default(), Instant::now());
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        failures.add(address("2001:db8::1"), now);
        assert_eq!(failures.add(address("2001:db8::ffff:2"), now), 2);
        assert_eq!(failures.add(address("2001:db8:0:1::1"), now), 1);
        assert_eq!(failures.add(address("::ffff:10.0.0.1"), now), 1);
        assert_eq!(failures.add(address("10.0.0.1"), now), 2);
        for n in 0..20_000_u32 {
            failures.add(IpAddr::V4((0x0a00_0000 + n).into()), now);
        }
        assert!(failures.seen.lock().unwrap().len() <= MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let failures = Failures::default();
        let all = failures.waiting.try_acquire_many(u32::try_from(MAX_WAITING).unwrap()).unwrap();
        assert!(!failures.hold_back(9).await);
        assert!(failures.hold_back(1).await, "what costs nothing never waits");
        drop(all);
        let began = Instant::now();
        assert!(failures.hold_back(FREE + 1).await);
        assert!(began.elapsed() >= FIRST);
    }
}
