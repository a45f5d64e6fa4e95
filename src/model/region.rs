//! Which region a client belongs to: the table behind `region.xml`.
//!
//! Regions are told apart by address ranges or by resource groups, never by both in one table. The
//! most specific range wins. Nesting is flattened when the table is built, so a look-up is one binary
//! search over sorted, disjoint segments; an IPv4-mapped address is looked up as IPv4.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    RegionName,
    region_range::{AddrRange, Family, number},
};

/// The most runs in one table: some tens of megabytes while it is built.
const MAX_TABLE_PIECES: usize = 1 << 20;

/// A region as an operator describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its name, once in a table.
    pub name: RegionName,
    /// Who belongs to it.
    pub members: Vec<Member>,
}

/// Who belongs to a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// Clients with an address in this range.
    Range(AddrRange),
    /// Clients that name this resource group.
    Group(String),
}

/// Why regions make no table; `region` and `member` are positions in the lists that were given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TableFault {
    /// The position of the region.
    pub region: usize,
    /// The position of the member in it; none when the region itself is at fault.
    pub member: Option<usize>,
    reason: String,
}

/// The table of all regions. The default one is empty: no client is led anywhere.
#[derive(Debug, Clone, Default)]
pub struct RegionTable {
    regions: Vec<Region>,
    v4: Segments<u32>,
    v6: Segments<u128>,
    groups: BTreeMap<String, usize>,
}

impl RegionTable {
    /// Builds the table.
    ///
    /// # Errors
    /// A name twice, ranges and groups mixed, ranges that overlap without nesting, the same range or
    /// group in two regions, more than 1,048,576 runs.
    pub fn build(regions: Vec<Region>) -> Result<Self, TableFault> {
        names_are_unique(&regions)?;
        one_kind_only(&regions)?;
        let groups = collect_groups(&regions)?;
        let pieces = collect_pieces(&regions)?;
        let (v4, v6): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|p| p.family == Family::V4);
        let v4 = Segments::new(&flatten(v4, &regions)?);
        let v6 = Segments::new(&flatten(v6, &regions)?);
        Ok(RegionTable { regions, v4, v6, groups })
    }

    /// The region that this address belongs to.
    #[must_use]
    pub fn of_address(&self, addr: IpAddr) -> Option<&RegionName> {
        let owner = match number(addr) {
            (Family::V4, n) => self.v4.owner(&u32::try_from(n).ok()?),
            (Family::V6, n) => self.v6.owner(&n),
        };
        owner.map(|at| &self.regions[at].name)
    }

    /// The region that this resource group belongs to.
    #[must_use]
    pub fn of_group(&self, group: &str) -> Option<&RegionName> {
        self.groups.get(group).map(|&at| &self.regions[at].name)
    }

    /// Whether regions are told apart by resource groups.
    #[must_use]
    pub fn by_group(&self) -> bool {
        !self.groups.is_empty()
    }

    /// The regions as given.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether the table has a region of this name.
    #[must_use]
    pub fn has(&self, name: &RegionName) -> bool {
        self.regions.iter().any(|region| region.name == *name)
    }
}

/// Who owns each address: `owners[i]` from `starts[i]` up to the next start.
#[derive(Debug, Clone, Default)]
struct Segments<A> {
    starts: Vec<A>,
    owners: Vec<Option<usize>>,
}

impl<A: Ord + TryFrom<u128>> Segments<A> {
    /// `cuts` are in rising order; one beyond the address space ends nothing that a look-up can reach.
    fn new(cuts: &[(u128, Option<usize>)]) -> Self {
        let known = |&(at, owner): &(u128, Option<usize>)| Some((A::try_from(at).ok()?, owner));
        let (starts, owners) = cuts.iter().filter_map(known).unzip();
        Segments { starts, owners }
    }

    fn owner(&self, addr: &A) -> Option<usize> {
        let after = self.starts.partition_point(|start| start <= addr);
        self.owners[after.checked_sub(1)?]
    }
}

/// One run of one range, with what decides its rank among others.
struct Piece {
    family: Family,
    first: u128,
    last: u128,
    /// Of the whole range: of two equal runs, that of the smaller range is the more specific.
    extent: u128,
    region: usize,
    member: usize,
}

fn fault(region: usize, member: Option<usize>, reason: String) -> TableFault {
    TableFault { region, member, reason }
}

fn names_are_unique(regions: &[Region]) -> Result<(), TableFault> {
    let mut seen = BTreeSet::new();
    match regions.iter().position(|region| !seen.insert(&region.name)) {
        None => Ok(()),
        Some(at) => {
            let reason = format!("the region \"{}\" is there twice", regions[at].name);
            Err(fault(at, None, reason))
        }
    }
}

fn one_kind_only(regions: &[Region]) -> Result<(), TableFault> {
    let is_group = |member: &Member| matches!(member, Member::Group(_));
    let mut members = members(regions).map(|(region, at, member)| (region, at, is_group(member)));
    let Some((_, _, by_group)) = members.next() else { return Ok(()) };
    match members.find(|&(_, _, group)| group != by_group) {
        None => Ok(()),
        Some((region, at, _)) => {
            let reason =
                "address ranges and resource groups in one table: use one kind for all regions";
            Err(fault(region, Some(at), reason.to_owned()))
        }
    }
}

fn members(regions: &[Region]) -> impl Iterator<Item = (usize, usize, &Member)> {
    regions.iter().enumerate().flat_map(|(at, region)| {
        region.members.iter().enumerate().map(move |(member, value)| (at, member, value))
    })
}

fn collect_groups(regions: &[Region]) -> Result<BTreeMap<String, usize>, TableFault> {
    let mut groups = BTreeMap::new();
    for (region, at, member) in members(regions) {
        let Member::Group(group) = member else { continue };
        if let Some(other) = groups.insert(group.clone(), region)
            && other != region
        {
            let reason = format!("the group \"{group}\" is in \"{}\" already", regions[other].name);
            return Err(fault(region, Some(at), reason));
        }
    }
    Ok(groups)
}

fn collect_pieces(regions: &[Region]) -> Result<Vec<Piece>, TableFault> {
    let mut pieces = Vec::new();
    for (region, member, value) in members(regions) {
        let Member::Range(range) = value else { continue };
        let (family, extent) = (range.family(), range.extent());
        pieces.extend(range.runs().iter().map(|run| Piece {
            family,
            first: run.first,
            last: run.last,
            extent,
            region,
            member,
        }));
        if pieces.len() > MAX_TABLE_PIECES {
            let reason = "the ranges fall into more than 1,048,576 pieces in all".to_owned();
            return Err(fault(region, Some(member), reason));
        }
    }
    Ok(pieces)
}

/// Cuts of one address space at which the owner changes, the more specific on top.
fn flatten(
    mut pieces: Vec<Piece>,
    regions: &[Region],
) -> Result<Vec<(u128, Option<usize>)>, TableFault> {
    pieces.sort_by(|a, b| (a.first, b.last, b.extent).cmp(&(b.first, a.last, a.extent)));
    let mut cuts: Vec<(u128, Option<usize>)> = Vec::new();
    let mut open: Vec<&Piece> = Vec::new();
    for piece in &pieces {
        while let Some(ended) = open.pop_if(|top| top.last < piece.first) {
            cut(&mut cuts, ended.last + 1, open.last().map(|below| below.region));
        }
        if let Some(around) = open.last() {
            nests(piece, around, regions)?;
        }
        cut(&mut cuts, piece.first, Some(piece.region));
        open.push(piece);
    }
    while let Some(ended) = open.pop() {
        if let Some(after) = ended.last.checked_add(1) {
            cut(&mut cuts, after, open.last().map(|below| below.region));
        }
    }
    Ok(cuts)
}

fn cut(cuts: &mut Vec<(u128, Option<usize>)>, at: u128, owner: Option<usize>) {
    match cuts.last_mut() {
        Some(last) if last.0 == at => last.1 = owner,
        _ => cuts.push((at, owner)),
    }
}

/// `piece` begins inside `around`: it must end there too, and be more specific or of the same region.
fn nests(piece: &Piece, around: &Piece, regions: &[Region]) -> Result<(), TableFault> {
    let equal =
        (piece.first, piece.last, piece.extent) == (around.first, around.last, around.extent);
    if piece.last <= around.last && !(equal && piece.region != around.region) {
        return Ok(());
    }
    // The later one in the list is named as the culprit, the earlier one as what it collides with.
    let order = |p: &Piece| (p.region, p.member);
    let (late, early) =
        if order(piece) > order(around) { (piece, around) } else { (around, piece) };
    let text = |p: &Piece| match &regions[p.region].members[p.member] {
        Member::Range(range) => range.to_string(),
        Member::Group(group) => group.clone(),
    };
    let (range, other, name) = (text(late), text(early), &regions[early.region].name);
    let how = if equal { "is the same as" } else { "overlaps, without nesting," };
    Err(fault(
        late.region,
        Some(late.member),
        format!("the range {range} {how} {other} of \"{name}\""),
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table(regions: &[(&str, &[&str])]) -> Result<RegionTable, TableFault> {
        let member = |text: &&str| match text.strip_prefix("group ") {
            Some(group) => Member::Group(group.to_owned()),
            None => Member::Range(text.parse().unwrap()),
        };
        let region = |(name, members): &(&str, &[&str])| Region {
            name: name.parse().unwrap(),
            members: members.iter().map(member).collect(),
        };
        RegionTable::build(regions.iter().map(region).collect())
    }

    fn who(table: &RegionTable, addr: &str) -> Option<String> {
        table.of_address(addr.parse().unwrap()).map(ToString::to_string)
    }

    #[test]
    fn the_most_specific_range_wins() {
        let table = table(&[
            ("world", &["0.0.0.0/0", "::/0"]),
            ("eu", &["10.20.0.0/16", "2001:db8::/32"]),
            ("lab", &["10.20.5.*", "2001:db8:5::/48"]),
            ("host", &["10.20.5.9", "255.255.255.255"]),
        ])
        .unwrap();
        for (addr, region) in [
            ("10.20.5.9", "host"),
            ("10.20.5.8", "lab"),
            ("10.20.5.10", "lab"),
            ("10.20.6.0", "eu"),
            ("10.21.0.0", "world"),
            ("255.255.255.255", "host"),
            ("::ffff:10.20.5.9", "host"),
            ("2001:db8:5::1", "lab"),
            ("2001:db8:6::1", "eu"),
            ("ffff::", "world"),
        ] {
            assert_eq!(who(&table, addr).as_deref(), Some(region), "{addr}");
        }
    }

    #[test]
    fn ipv6_ranges_never_hold_ipv4_clients() {
        let table = table(&[("six", &["::/0"])]).unwrap();
        assert_eq!(who(&table, "10.0.0.1"), None);
        assert_eq!(who(&table, "::ffff:10.0.0.1"), None);
        assert_eq!(who(&table, "::1").as_deref(), Some("six"));
    }

    #[test]
    fn of_equal_runs_that_of_the_smaller_range_is_more_specific() {
        let table = table(&[("b", &["10.1.5.*"]), ("a", &["10.*.5.*"])]).unwrap();
        assert_eq!(who(&table, "10.1.5.7").as_deref(), Some("b"));
        assert_eq!(who(&table, "10.2.5.7").as_deref(), Some("a"));
    }

    #[test]
    fn groups_are_looked_up_by_name() {
        let table = table(&[("eu", &["group ComputeEU"]), ("us", &["group ComputeUS"])]).unwrap();
        assert!(table.by_group());
        assert_eq!(table.of_group("ComputeUS").unwrap().as_str(), "us");
        assert_eq!(table.of_group("computeus"), None);
        assert_eq!(who(&table, "10.0.0.1"), None);
    }

    #[test]
    fn what_is_ambiguous_is_refused_where_it_stands() {
        for (regions, at) in [
            (&[("a", &["10.0.0.0/8"] as &[&str]), ("a", &[])] as &[(&str, &[&str])], (1, None)),
            (&[("a", &["10.0.0.0/8"]), ("b", &["group G"])], (1, Some(0))),
            (&[("a", &["10.0.0.0/8"]), ("b", &["11.0.0.0/8", "10.0.0.0/8"])], (1, Some(1))),
            (&[("a", &["10.0.0.1-10.0.0.9"]), ("b", &["10.0.0.5-10.0.0.12"])], (1, Some(0))),
            (&[("a", &["10.0.0.5-10.0.0.12"]), ("b", &["10.0.0.1-10.0.0.9"])], (1, Some(0))),
            (&[("a", &["group G"]), ("b", &["group G"])], (1, Some(0))),
        ] {
            let fault = table(regions).unwrap_err();
            assert_eq!((fault.region, fault.member), at, "{fault}");
        }
        assert!(table(&[("a", &["10.0.0.0/8", "10.0.0.0/8"])]).is_ok());
    }

    /// A few short runs in a small space, so that they nest, touch and overlap often.
    fn runs() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
        prop::collection::vec((0_u8..4, 0_u8..40, 0_u8..20), 0..7)
    }

    /// One field of an address range, and what it holds.
    fn field() -> impl Strategy<Value = (String, u8, u8)> {
        prop_oneof![
            Just(("*".to_owned(), 0, 255)),
            any::<u8>().prop_map(|n| (n.to_string(), n, n)),
            (any::<u8>(), any::<u8>()).prop_map(|(a, b)| {
                let (low, high) = (a.min(b), a.max(b));
                (format!("{low}-{high}"), low, high)
            }),
        ]
    }

    proptest! {
        #[test]
        fn ranges_by_field_hold_what_each_field_holds(
            fields in prop::array::uniform4(field()),
            picks in prop::collection::vec(prop::array::uniform4((0_u8..5, any::<u8>())), 20),
        ) {
            let text = fields.each_ref().map(|field| field.0.clone()).join(".");
            let Ok(range) = text.parse() else {
                // Only the number of pieces can be wrong with it.
                let wide = fields.iter().rposition(|field| (field.1, field.2) != (0, 255)).unwrap();
                let width = |field: &(String, u8, u8)| usize::from(field.2 - field.1) + 1;
                prop_assert!(fields[..wide].iter().map(width).product::<usize>() > 65_536, "{}", text);
                return Ok(());
            };
            let name = "r".parse().unwrap();
            let members = vec![Member::Range(range)];
            let table = RegionTable::build(vec![Region { name, members }]).unwrap();
            for pick in picks {
                let mut octets = [0; 4];
                for ((octet, field), (kind, random)) in octets.iter_mut().zip(&fields).zip(pick) {
                    let edges = [field.1, field.2, field.1.wrapping_sub(1), field.2.wrapping_add(1)];
                    *octet = edges.get(usize::from(kind)).copied().unwrap_or(random);
                }
                let held = octets.iter().zip(&fields).all(|(n, field)| (field.1..=field.2).contains(n));
                prop_assert_eq!(table.of_address(octets.into()).is_some(), held, "{:?} in {}", octets, text);
            }
        }

        #[test]
        fn networks_nest_and_the_longest_prefix_wins(
            base in any::<u128>(),
            prefixes in prop::collection::btree_set(0_u8..=128, 1..6),
            flips in prop::collection::vec(0_u8..=128, 30),
            six in any::<bool>(),
        ) {
            let bits: u8 = if six { 128 } else { 32 };
            let four = |n: u128| u32::try_from(n >> 96).unwrap().to_be_bytes();
            let address = |n: u128| if six { IpAddr::from(n.to_be_bytes()) } else { four(n).into() };
            // What maps an IPv4 address is one.
            prop_assume!(!six || address(base).to_canonical().is_ipv6());
            let prefixes: Vec<u8> = prefixes.into_iter().filter(|prefix| *prefix <= bits).collect();
            let regions = prefixes.iter().map(|prefix| Region {
                name: format!("p{prefix}").parse().unwrap(),
                members: vec![Member::Range(format!("{}/{prefix}", address(base)).parse().unwrap())],
            });
            let table = RegionTable::build(regions.collect()).unwrap();
            for flip in flips.into_iter().filter(|flip| *flip <= bits) {
                // The first `flip` bits are the networks' own, the next one is not.
                let other = if flip == bits { base } else { base ^ (1 << (127 - flip)) };
                prop_assume!(!six || address(other).to_canonical().is_ipv6());
                let expected = prefixes.iter().filter(|prefix| **prefix <= flip).max();
                let expected = expected.map(|prefix| format!("p{prefix}"));
                prop_assert_eq!(who(&table, &address(other).to_string()), expected, "{}", flip);
            }
        }

        #[test]
        fn the_table_agrees_with_a_naive_model(runs in runs(), six in any::<bool>()) {
            let address = |n: u8| if six { format!("2001:db8::{n:x}") } else { format!("10.0.0.{n}") };
            let spans: Vec<(u8, u8, u8)> = runs.iter().map(|&(r, first, len)| (r, first, first + len)).collect();
            let regions = (0..4_u8).map(|name| Region {
                name: format!("r{name}").parse().unwrap(),
                members: spans.iter().filter(|span| span.0 == name)
                    .map(|s| Member::Range(format!("{}-{}", address(s.1), address(s.2)).parse().unwrap()))
                    .collect(),
            }).collect();
            let clash = |a: &(u8, u8, u8), b: &(u8, u8, u8)| {
                let disjoint = a.2 < b.1 || b.2 < a.1;
                let nested = (a.1 <= b.1 && b.2 <= a.2) || (b.1 <= a.1 && a.2 <= b.2);
                let same = (a.1, a.2) == (b.1, b.2);
                !disjoint && (!nested || (same && a.0 != b.0))
            };
            let clashes = spans.iter().enumerate().any(|(i, a)| spans[..i].iter().any(|b| clash(a, b)));
            let built = RegionTable::build(regions);
            prop_assert_eq!(built.is_err(), clashes);
            let Ok(table) = built else { return Ok(()) };
            for n in 0..=70 {
                let expected = spans.iter().filter(|s| s.1 <= n && n <= s.2).min_by_key(|s| s.2 - s.1);
                let expected = expected.map(|s| format!("r{}", s.0));
                prop_assert_eq!(who(&table, &address(n)), expected, "{}", n);
            }
        }
    }
}
