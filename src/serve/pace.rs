//! How often one client may ask: so many requests a second from an address and with a token.
//!
//! A client that was quiet may ask for ten seconds' worth at once. Who asks faster is told when to come
//! again, before anything is done for it. The table is bounded: who was quiet for so long is as good as
//! unknown, and when all are busy everybody begins anew.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{error::Fault, failures::network_of};
use crate::model::Limits;

/// For how long a client may ask at its pace in advance.
const BURST: Duration = Duration::from_secs(10);
/// Addresses and tokens that are remembered, a hundred bytes each.
const MAX_CLIENTS: usize = 16_384;

/// The requests of all clients.
pub(super) struct Pace {
    limits: Limits,
    /// When each client will have used up its share, at its pace (GCRA, ITU-T I.371).
    spent: Mutex<HashMap<Who, Instant>>,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// Of IPv6 a /64.
    Address(IpAddr),
    /// By its id.
    Token(String),
}

impl Pace {
    pub(super) fn new(limits: Limits) -> Self {
        Pace { limits, spent: Mutex::default() }
    }

    /// Connections that one address may have open.
    pub(super) fn max_connections(&self) -> usize {
        self.limits.connections_per_client
    }

    /// Counts a request from an address; a fault when it is one too many. Who is on this machine is
    /// not counted.
    pub(super) fn address(&self, address: IpAddr, now: Instant) -> Result<(), Fault> {
        if address.to_canonical().is_loopback() {
            return Ok(());
        }
        let address = network_of(address);
        let most = self.limits.requests_per_client;
        self.count(Who::Address(address), most, now).map_err(|wait| {
            let message = format!("more than {most} requests a second come from {address}");
            Fault::too_often(message, wait)
        })
    }

    /// Counts a request with a token.
    pub(super) fn with_token(&self, id: &str, now: Instant) -> Result<(), Fault> {
        let most = self.limits.requests_per_token;
        self.count(Who::Token(id.to_owned()), most, now).map_err(|wait| {
            let message = format!("more than {most} requests a second come with the token {id}");
            Fault::too_often(message, wait)
        })
    }

    fn count(&self, who: Who, a_second: u32, now: Instant) -> Result<(), Duration> {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if spent.len() >= MAX_CLIENTS && !spent.contains_key(&who) {
            spent.retain(|_, until| *until > now);
            if spent.len() >= MAX_CLIENTS {
                spent.clear();
            }
        }
        let until = spent.entry(who).or_insert(now);
        let next = (*until).max(now) + Duration::from_secs(1) / a_second.max(1);
        match next.duration_since(now).checked_sub(BURST) {
            None | Some(Duration::ZERO) => {
                *until = next;
                Ok(())
            }
            Some(wait) => Err(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(requests: u32) -> Pace {
        let limits = Limits {
            requests_per_client: requests,
            requests_per_token: 2 * requests,
            ..Limits::default()
        };
        Pace::new(limits)
    }

    #[test]
    fn who_asks_too_often_waits_and_nobody_else_does() {
        let (pace, now) = (pace(10), Instant::now());
        let (fast, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut admitted = 0;
        while pace.address(fast, now).is_ok() {
            admitted += 1;
        }
        assert_eq!(admitted, 100, "ten seconds' worth");
        assert!(pace.address(other, now).is_ok());
        assert!(pace.address([127, 0, 0, 1].into(), now).is_ok());
        let refused = pace.address(fast, now).unwrap_err();
        assert_eq!(refused.status(), 429);
        // At its pace from then on, and after a rest all at once again.
        let soon = now + Duration::from_millis(250);
        let again = (0..5).filter(|_| pace.address(fast, soon).is_ok()).count();
        assert_eq!(again, 2);
        let later = now + Duration::from_secs(60);
        assert_eq!((0..200).filter(|_| pace.address(fast, later).is_ok()).count(), 100);
    }

    #[test]
    fn a_token_is_counted_wherever_it_comes_from() {
        let (pace, now) = (pace(10), Instant::now());
        assert_eq!((0..500).filter(|_| pace.with_token("t1", now).is_ok()).count(), 200);
        assert!(pace.with_token("t2", now).is_ok());
        assert!(pace.with_token("t1", now).unwrap_err().message().contains("the token t1"));
    }

    #[test]
    fn the_table_is_bounded() {
        let (pace, now) = (pace(1), Instant::now());
        for n in 0..40_000_u32 {
            assert!(pace.address(IpAddr::V4((0x0a00_0000 + n).into()), now).is_ok());
        }
        assert!(pace.spent.lock().unwrap().len() <= MAX_CLIENTS);
        // Those that were quiet make room first.
        let busy = IpAddr::V4([11, 0, 0, 1].into());
        let later = now + Duration::from_secs(20);
        while pace.address(busy, later).is_ok() {}
        for n in (0_u32..).take(MAX_CLIENTS - 1) {
            assert!(pace.address(IpAddr::V4((0x0c00_0000 + n).into()), later).is_ok());
        }
        assert!(pace.address(busy, later).is_err(), "who is busy is still known");
    }
}
