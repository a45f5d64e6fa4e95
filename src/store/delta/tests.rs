//! Round trips, sizes that the design promises, one old delta, and deltas that lie.

use std::ops::Range;

use proptest::prelude::*;
use tempfile::tempfile;

use super::*;
use crate::store::{
    chunks::{Cuts, Cutter},
    recipe::Side,
};

/// Bytes that do not compress (splitmix64).
pub(in crate::store) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    });
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(words.next().expect("words are endless").to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn header(size: u64) -> Header {
    let id = |byte| ObjectId::from_bytes([byte; 32]);
    Header { base: id(0x11), result: id(0x22), size }
}

fn cuts(bytes: &[u8]) -> Cuts {
    let mut cutter = Cutter::default();
    cutter.push(bytes);
    cutter.finish()
}

/// The delta between two contents, proved by applying it; none when it is not worth it.
fn delta(old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let (old_file, new_file) = (file(old), file(new));
    let recipe = Recipe::between(
        Side { file: &old_file, cuts: &cuts(old) },
        Side { file: &new_file, cuts: &cuts(new) },
    );
    let recipe = recipe.unwrap()?;
    let header = header(new.len() as u64);
    let (mut delta, mut made) = (Vec::new(), Vec::new());
    encode(&header, &recipe, &new_file, &mut delta).unwrap();
    apply(&header, &old_file, &delta[..], &mut made).unwrap();
    assert!(made == new, "the delta makes other bytes");
    Some(delta)
}

fn delta_size(old: &[u8], new: &[u8]) -> usize {
    delta(old, new).expect("it saves more than a fifth").len()
}

#[test]
fn an_overwritten_stretch_costs_its_own_bytes() {
    let old = noise(1, 20_000_000);
    let mut new = old.clone();
    new[12_345_678..][..65_536].copy_from_slice(&noise(2, 65_536));
    assert!(delta_size(&old, &new) <= 65_536 + 200);
}

#[test]
fn bytes_inserted_removed_or_moved_cost_little() {
    let old = noise(3, 2_000_000);
    let insert = |at: usize| [&old[..at], b"inserted", &old[at..]].concat();
    for at in [0, 1, 1000, 1_000_000, old.len()] {
        assert!(delta_size(&old, &insert(at)) < 200, "inserted at {at}");
    }
    assert!(delta_size(&old, &[&old[..500], &old[9000..]].concat()) < 200);
    assert!(delta_size(&old, &old) < 150);
    assert!(delta_size(&old, &old[..1_500_000]) < 150);
    let (head, tail) = old.split_at(700_001);
    assert!(delta_size(&old, &[tail, head].concat()) < 200);
}

#[test]
fn repeated_content_is_found() {
    let (old, new) = (vec![0; 3_000_000], vec![0; 5_000_000]);
    assert!(delta_size(&old, &new) < 300);
    let text = "the same line over and over\n".repeat(100_000);
    assert!(delta_size(text.as_bytes(), &text.as_bytes()[..2_000_000]) < 200);
}

#[test]
fn what_is_new_is_deflated_where_that_helps() {
    let old = noise(4, 2_000_000);
    let new = [&old[..], "a line that comes again\n".repeat(10_000).as_bytes()].concat();
    assert!(delta_size(&old, &new) < 3000);
}

/// Members as in a jar: a header with a stamp, then bytes that do not compress; a directory that
/// says where each begins ends it.
fn archive(stamp: u32, changed: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for member in 0..1000 {
        let name = format!("org/example/deployment/some/package/Class{member}.class");
        let offset = u32::try_from(bytes.len()).unwrap();
        let mut content = noise(member as u64, 300 + member * 7 % 4000);
        if changed(member) {
            content.splice(100..120, *b"changed here, and longer");
        }
        for into in [&mut bytes, &mut directory] {
            into.extend(b"PK\x03\x04\x14\x00\x08\x08\x08\x00");
            into.extend(stamp.to_le_bytes());
            into.extend(name.bytes());
        }
        directory.extend(offset.to_le_bytes());
        bytes.extend(content);
    }
    bytes.extend(directory);
    bytes
}

#[test]
fn an_archive_built_again_costs_what_changed() {
    let old = archive(1, |_| false);
    assert!(delta_size(&old, &archive(1, |member| member == 500)) < 6000);
    assert!(delta_size(&old, &archive(0xabcd, |_| false)) < 8000);
    assert!(delta_size(&old, &archive(0xabcd, |member| member % 10 == 0)) < 60_000);
}

#[test]
fn large_files_without_an_equal_chunk_may_be_related() {
    let body = noise(7, 6 << 20);
    let stamped = |stamp: u8, front: &[u8]| {
        let records = body.chunks(1000).flat_map(|record| record.iter().copied().chain([stamp; 4]));
        front.iter().copied().chain(records).collect::<Vec<u8>>()
    };
    let (old, new) = (stamped(1, b""), stamped(2, b"in front"));
    assert!(delta_size(&old, &new) < new.len() / 5);
    assert_eq!(delta(&old, &noise(8, old.len())), None, "strangers");
}

#[test]
fn what_saves_less_than_a_fifth_is_not_worth_it() {
    let old = noise(5, 1_000_000);
    assert!(delta(&old, &noise(6, 1_000_000)).is_none());
    assert!(delta(&[], &old).is_none());
    assert!(delta(&old, &[&old[..150_000], &noise(7, 850_000)].concat()).is_none());
    assert!(delta(&old, &[&old[..250_000], &noise(7, 750_000)].concat()).is_some());
}

/// Written by hand from the format's description: a block of instructions as they are, which ends
/// inside one, and a deflated one.
const VERSION_1: &str = "\
    647364656c746101111111111111111111111111111111111111111111111111111111111111111122222222\
    222222222222222222222222222222222222222222222222222222227b000000000000000700000007000000\
    1500067265643d53000000090000006359c09897485d080000000000e7bab014";

fn version_1() -> Vec<u8> {
    let digits = VERSION_1.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn a_delta_of_version_1_is_read() {
    let base = file(b"The quick brown fox jumps over the lazy dog.\n");
    let mut made = Vec::new();
    apply(&header(123), &base, &version_1()[..], &mut made).unwrap();
    let result = format!("The quick red fox jumps over the lazy dog.\n{}", "na".repeat(40));
    assert_eq!(made, result.as_bytes());
}

/// Applies what may be anything, and sees that nothing is made beyond what was asked for.
fn try_apply(expected: &Header, base: &[u8], delta: &[u8]) -> Result<()> {
    let mut made = Vec::new();
    let result = apply(expected, &file(base), delta, &mut made);
    assert!(made.len() as u64 <= expected.size);
    result
}

fn refused(expected: &Header, base: &[u8], delta: &[u8]) -> bool {
    match try_apply(expected, base, delta) {
        Err(error) => error.class() == Class::Corrupt,
        Ok(()) => false,
    }
}

#[test]
fn a_damaged_delta_is_refused() {
    let base = b"The quick brown fox jumps over the lazy dog.\n";
    let (good, header) = (version_1(), header(123));
    for at in 0..good.len() {
        assert!(refused(&header, base, &good[..at]), "cut at {at}");
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(refused(&header, base, &bad), "byte {at}, bit {bit}");
        }
    }
    assert!(refused(&header, base, &[&good[..], b"x"].concat()));
    assert!(refused(&header, &base[..40], &good), "a base that is too short");
    let other = ObjectId::from_bytes([0x33; 32]);
    for expected in [
        Header { size: 122, ..header },
        Header { base: other, ..header },
        Header { result: other, ..header },
    ] {
        assert!(refused(&expected, base, &good));
    }
}

/// The length that a block states, and its bytes as sent.
type Block<'a> = (u32, &'a [u8]);

/// A delta with these blocks and a right checksum.
fn with_blocks(header: &Header, blocks: &[Block<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(header, &mut out).unwrap();
    for (raw, bytes) in blocks {
        writer.put(&raw.to_le_bytes()).unwrap();
        writer.put(&length(bytes)).unwrap();
        writer.put(bytes).unwrap();
    }
    writer.finish().unwrap();
    out
}

#[test]
fn blocks_and_instructions_that_lie_are_refused() {
    let header = header(1000);
    let mut zeros = Vec::with_capacity(1000);
    let flush = FlushCompress::Finish;
    Compress::new(Compression::best(), false).compress_vec(&[0; 500], &mut zeros, flush).unwrap();
    let cases: &[(&str, &[Block<'_>])] = &[
        ("inflates to more than it says", &[(400, &zeros)]),
        ("inflates to less than it says", &[(600, &zeros)]),
        ("has bytes behind its deflate stream", &[(500, &[&zeros[..], b"x"].concat())]),
        ("is longer than what it holds", &[(2, &[2, b'x', 2])]),
        ("is larger than a block may be", &[(u32::MAX, &zeros)]),
        ("empty instruction", &[(1, &[0])]),
        ("literal beyond the result", &[(2, &[0xd2, 0x0f])]),
        ("copy beyond the result", &[(3, &[0xd3, 0x0f, 0])]),
        ("copy from behind the base", &[(4, &[0x15, 0xd4, 3, 0])]),
        ("copy from before the base", &[(2, &[0x15, 1])]),
        (
            "number over 64 bits",
            &[(10, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2])],
        ),
        ("number without end", &[(12, &[0xff; 12])]),
        ("too few instructions", &[(3, &[2, b'x', 2])]),
        ("instructions left over", &[(5, &[0xd1, 0x0f, 0, 2, b'x'])]),
        ("block left over", &[(3, &[0xd1, 0x0f, 0]), (1, &[0])]),
    ];
    for (what, blocks) in cases {
        assert!(refused(&header, &[7; 1000], &with_blocks(&header, blocks)), "{what}");
    }
    let whole = with_blocks(&header, &[(3, &[0xd1, 0x0f, 0])]);
    assert!(try_apply(&header, &[7; 1000], &whole).is_ok(), "the last two without what is left");
}

/// One change to an object.
#[derive(Debug, Clone)]
enum Edit {
    Insert(usize, Vec<u8>),
    Remove(Range<usize>),
    Overwrite(usize, Vec<u8>),
    Move(Range<usize>, usize),
}

impl Edit {
    fn any() -> impl Strategy<Value = Self> {
        let at = 0..400_000_usize;
        let span = (at.clone(), 0..50_000_usize).prop_map(|(at, n)| at..at + n);
        let bytes = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            (any::<u64>(), 0..20_000_usize).prop_map(|(seed, n)| noise(seed, n)),
            (any::<u8>(), 0..20_000_usize).prop_map(|(byte, n)| vec![byte; n]),
        ];
        prop_oneof![
            (at.clone(), bytes.clone()).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            span.clone().prop_map(Self::Remove),
            (at.clone(), bytes).prop_map(|(at, bytes)| Self::Overwrite(at, bytes)),
            (span, at).prop_map(|(span, at)| Self::Move(span, at)),
        ]
    }

    fn apply(self, to: &mut Vec<u8>) {
        let clip = |range: Range<usize>, len: usize| range.start.min(len)..range.end.min(len);
        match self {
            Self::Insert(at, bytes) => drop(to.splice(clip(at..at, to.len()), bytes)),
            Self::Remove(range) => drop(to.drain(clip(range, to.len()))),
            Self::Overwrite(at, bytes) => {
                drop(to.splice(clip(at..at + bytes.len(), to.len()), bytes));
            }
            Self::Move(range, at) => {
                let moved: Vec<u8> = to.drain(clip(range, to.len())).collect();
                drop(to.splice(clip(at..at, to.len()), moved));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_edits_come_back(
        len in 0..400_000_usize,
        period in 1..400_000_usize,
        edits in prop::collection::vec(Edit::any(), 0..8),
    ) {
        // A short period makes content that repeats.
        let old: Vec<u8> = noise(8, period).into_iter().cycle().take(len).collect();
        let mut new = old.clone();
        for edit in edits {
            edit.apply(&mut new);
        }
        delta(&old, &new);
        delta(&new, &old);
    }

    #[test]
    fn any_instructions_end_in_a_result_or_an_error(
        size in 0..2000_u64,
        ops in prop::collection::vec((any::<bool>(), 0..300_u64, any::<i16>()), 0..20),
        tail in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = header(size);
        let mut delta = Vec::new();
        let mut writer = Writer::new(&header, &mut delta).unwrap();
        for (copy, n, distance) in ops {
            writer.varint(n << 1 | u64::from(copy)).unwrap();
            if copy {
                writer.varint(zigzag(distance.into())).unwrap();
            } else {
                writer.instruction(&noise(n, usize::try_from(n).unwrap())).unwrap();
            }
        }
        writer.instruction(&tail).unwrap();
        writer.finish().unwrap();
        prop_assert!(
            try_apply(&header, &[7; 1000], &delta).is_ok()
                || refused(&header, &[7; 1000], &delta)
        );
    }

    #[test]
    fn any_bytes_end_in_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let header = header(1000);
        prop_assert!(refused(&header, &[7; 1000], &bytes));
        let begun = [&with_blocks(&header, &[])[..80], &bytes].concat();
        prop_assert!(refused(&header, &[7; 1000], &begun));
    }
}
