//! One entry of a region: a range of addresses as an operator writes it, and the runs that it means.
//!
//! Forms: CIDR (`10.20.0.0/16`, `2001:db8::/32`), fields (`192.168.1-10.*`), first-last
//! (`10.9.0.1-10.9.3.255`), one address. A range is a list of disjoint runs in rising order; an
//! IPv4-mapped IPv6 range is the IPv4 range that it maps. Never more runs than 65,536.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

/// The most runs that one range may expand to: every `a.b.x.y-z` of a fixed `x`, and still little memory.
const MAX_PIECES: usize = 65_536;

/// Why a text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a range of addresses: {reason}")]
pub struct BadRange {
    text: String,
    reason: &'static str,
}

/// Which of the two address spaces an address lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    /// IPv4, and IPv6 addresses that map one.
    V4,
    /// IPv6.
    V6,
}

/// Addresses from first to last, both within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The first address as a number.
    pub(super) first: u128,
    /// The last address as a number.
    pub(super) last: u128,
}

/// A range of addresses, with the text that it was written as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddrRange {
    text: String,
    family: Family,
    runs: Vec<Run>,
}

/// An address as a number in its space; an IPv4-mapped one counts as IPv4.
#[must_use]
pub(super) fn number(addr: IpAddr) -> (Family, u128) {
    match addr.to_canonical() {
        IpAddr::V4(v4) => (Family::V4, u128::from(v4.to_bits())),
        IpAddr::V6(v6) => (Family::V6, v6.to_bits()),
    }
}

impl AddrRange {
    /// The space that it lies in.
    #[must_use]
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Its runs: disjoint, rising, at least one.
    #[must_use]
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many addresses it holds, less one (so that all of IPv6 fits).
    #[must_use]
    pub(super) fn extent(&self) -> u128 {
        let addresses = |run: &Run| run.last - run.first;
        self.runs.iter().map(addresses).fold(self.runs.len() as u128 - 1, u128::saturating_add)
    }
}

impl FromStr for AddrRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let text = text.trim();
        let (family, runs) = parse(text)
            .map_err(|reason| BadRange { text: text.chars().take(80).collect(), reason })?;
        Ok(AddrRange { text: text.to_owned(), family, runs })
    }
}

impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

type Parsed = Result<(Family, Vec<Run>), &'static str>;

fn parse(text: &str) -> Parsed {
    if text.contains('/') {
        let net: IpNet = text.parse().map_err(|_| "its CIDR form is wrong")?;
        return between(net.network(), net.broadcast());
    }
    if let Some((first, last)) = text.split_once('-')
        && let (Ok(first), Ok(last)) = (first.trim().parse(), last.trim().parse())
    {
        return between(first, last);
    }
    if let Ok(addr) = text.parse() {
        return between(addr, addr);
    }
    if text.contains(':') {
        return Err("an IPv6 range is written as CIDR, first-last or one address");
    }
    Ok((Family::V4, expand(fields(text)?)?))
}

/// A range whose ends lie in one space. One that begins in IPv6 and covers the mapped block stays IPv6.
fn between(first: IpAddr, last: IpAddr) -> Parsed {
    let mapped = |addr| matches!(addr, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some());
    let ((family, first_number), (last_family, last_number)) = (number(first), number(last));
    if first.is_ipv4() != last.is_ipv4() {
        return Err("its ends are of two address families");
    }
    if mapped(first) != mapped(last) {
        let bits = |addr| match addr {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        return run(Family::V6, bits(first), bits(last));
    }
    debug_assert_eq!(family, last_family, "both plain or both mapped");
    run(family, first_number, last_number)
}

fn run(family: Family, first: u128, last: u128) -> Parsed {
    if first > last {
        return Err("its first address is after its last");
    }
    Ok((family, vec![Run { first, last }]))
}

/// Lowest and highest value of each of the four fields.
fn fields(text: &str) -> Result<[(u8, u8); 4], &'static str> {
    let mut fields = [(0, 0); 4];
    let mut parts = text.split('.');
    for field in &mut fields {
        *field = parse_field(parts.next().ok_or("it has fewer than four fields")?)?;
    }
    if parts.next().is_some() {
        return Err("it has more than four fields");
    }
    Ok(fields)
}

fn parse_field(text: &str) -> Result<(u8, u8), &'static str> {
    if text == "*" {
        return Ok((0, 255));
    }
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (parse_number(low)?, parse_number(high)?),
        None => (parse_number(text)?, parse_number(text)?),
    };
    if low > high { Err("a field's range falls") } else { Ok((low, high)) }
}

fn parse_number(text: &str) -> Result<u8, &'static str> {
    let plain =
        text.bytes().all(|c| c.is_ascii_digit()) && !(text.len() > 1 && text.starts_with('0'));
    let number = if plain { text.parse().ok() } else { None };
    number.ok_or("a field is a number from 0 to 255, a range of two, or *")
}

/// The runs of four fields: whole fields at the end join the one before them into one run.
fn expand(fields: [(u8, u8); 4]) -> Result<Vec<Run>, &'static str> {
    let joined = fields.iter().rposition(|&field| field != (0, 255)).unwrap_or(0);
    let width = |&(low, high): &(u8, u8)| usize::from(high - low) + 1;
    if fields[..joined].iter().map(width).product::<usize>() > MAX_PIECES {
        return Err("it falls into more than 65,536 pieces");
    }
    let below = 256_u128.pow(u32::try_from(3 - joined).expect("joined is at most 3"));
    let mut prefixes = vec![0_u128];
    for &(low, high) in &fields[..joined] {
        prefixes = prefixes
            .iter()
            .flat_map(|prefix| (low..=high).map(move |value| prefix << 8 | u128::from(value)))
            .collect();
    }
    let (low, high) = fields[joined];
    Ok(prefixes
        .iter()
        .map(|prefix| Run {
            first: (prefix << 8 | u128::from(low)) * below,
            last: ((prefix << 8 | u128::from(high)) + 1) * below - 1,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(text: &str) -> Vec<(String, String)> {
        let range: AddrRange = text.parse().unwrap();
        let show = |n: u128| match range.family() {
            Family::V4 => IpAddr::V4(u32::try_from(n).unwrap().into()).to_string(),
            Family::V6 => IpAddr::V6(n.into()).to_string(),
        };
        range.runs().iter().map(|run| (show(run.first), show(run.last))).collect()
    }

    #[test]
    fn every_form_means_its_runs() {
        for (text, first, last) in [
            ("10.20.0.0/16", "10.20.0.0", "10.20.255.255"),
            ("10.20.7.9/16", "10.20.0.0", "10.20.255.255"),
            ("0.0.0.0/0", "0.0.0.0", "255.255.255.255"),
            ("192.168.1-10.*", "192.168.1.0", "192.168.10.255"),
            ("*.*.*.*", "0.0.0.0", "255.255.255.255"),
            ("10.9.0.1-10.9.3.255", "10.9.0.1", "10.9.3.255"),
            ("1.2.3.4-5", "1.2.3.4", "1.2.3.5"),
            (" 1.2.3.4 ", "1.2.3.4", "1.2.3.4"),
            ("2001:db8::/32", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
            ("fe80::1-fe80::9", "fe80::1", "fe80::9"),
            ("::ffff:10.0.0.0/104", "10.0.0.0", "10.255.255.255"),
            ("::/0", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(ends(text), [(first.to_owned(), last.to_owned())], "{text}");
        }
    }

    #[test]
    fn fields_that_make_no_single_run_are_expanded() {
        let runs = ends("10.*.5.1-9");
        assert_eq!(runs.len(), 256);
        assert_eq!(runs[255], ("10.255.5.1".to_owned(), "10.255.5.9".to_owned()));
        assert_eq!("*.*.5.*".parse::<AddrRange>().unwrap().runs().len(), MAX_PIECES);
        assert_eq!("10.*.5.1-9".parse::<AddrRange>().unwrap().extent(), 256 * 9 - 1);
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in [
            "",
            "10",
            "10.0.0",
            "10.0.0.0.0",
            "10.0.0.256",
            "10.0.0.01",
            "10.0.0.9-1",
            "10.0.0.-1",
            "10.0.0.0/33",
            "10.0.0.9-10.0.0.1",
            "10.0.0.1-::1",
            "*.*.*.5",
            "::g",
            "2001:*::1",
            "+1.2.3.4",
            "::ffff:10.0.0.1-10.0.0.9",
        ] {
            assert!(bad.parse::<AddrRange>().is_err(), "{bad}");
        }
    }
}
