//! git's deltas between two small objects: copies from a base, and literals.
//!
//! For trees and blobs when packs are folded; the deltas between large objects are another format
//! (`delta`). What begins and ends alike is found without looking further, which is nearly all of a
//! tree with one changed entry; the middle is looked up by blocks. Format: gitformat-pack(5).

use std::collections::HashMap;

/// Bytes of a block of the base that is looked for.
const BLOCK: usize = 16;
/// A middle shorter than this is not worth an index of the base.
const WORTH: usize = 64;
/// What one copy instruction holds in every version of git.
const COPY: usize = 0x1_0000;
/// What one literal instruction holds.
const LITERAL: usize = 0x7f;
/// Of the rolling sum; any odd number.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// The instructions that make `target` out of `base`.
pub(super) fn encode(base: &[u8], target: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    push_size(&mut out, base.len());
    push_size(&mut out, target.len());
    let same = |(a, b): &(&u8, &u8)| a == b;
    let start = base.iter().zip(target).take_while(same).count();
    let tails = base[start..].iter().rev().zip(target[start..].iter().rev());
    let end = tails.take_while(same).count();
    copy(&mut out, 0, start);
    let middle = &target[start..target.len() - end];
    if middle.len() < WORTH || base.len() < BLOCK {
        literal(&mut out, middle);
    } else {
        look_up(&mut out, base, middle);
    }
    copy(&mut out, base.len() - end, end);
    out
}

/// Encodes a stretch of the target by the blocks that it shares with the base.
fn look_up(out: &mut Vec<u8>, base: &[u8], target: &[u8]) {
    let mut blocks = HashMap::with_capacity(base.len() / BLOCK);
    for at in (0..=base.len() - BLOCK).step_by(BLOCK) {
        blocks.entry(sum(&base[at..at + BLOCK])).or_insert(at);
    }
    let highest = (1..BLOCK).fold(1_u64, |power, _| power.wrapping_mul(FACTOR));
    let (mut at, mut pending) = (0, 0);
    let mut rolling = sum(&target[..BLOCK]);
    while at + BLOCK <= target.len() {
        let found = blocks.get(&rolling).and_then(|&from| stretch(base, from, target, pending, at));
        if let Some((from, to, length)) = found {
            literal(out, &target[pending..to]);
            copy(out, from, length);
            (at, pending) = (to + length, to + length);
            if at + BLOCK <= target.len() {
                rolling = sum(&target[at..at + BLOCK]);
            }
            continue;
        }
        if let Some(&next) = target.get(at + BLOCK) {
            let gone = u64::from(target[at]).wrapping_mul(highest);
            rolling = rolling.wrapping_sub(gone).wrapping_mul(FACTOR).wrapping_add(u64::from(next));
        }
        at += 1;
    }
    literal(out, &target[pending..]);
}

fn sum(block: &[u8]) -> u64 {
    block.iter().fold(0, |sum: u64, &b| sum.wrapping_mul(FACTOR).wrapping_add(u64::from(b)))
}

/// The longest stretch that is alike around two equal blocks: its place in the base, in the target
/// (not before `least`), and its length. None when only the sums were equal.
fn stretch(
    base: &[u8],
    from: usize,
    target: &[u8],
    least: usize,
    at: usize,
) -> Option<(usize, usize, usize)> {
    let same = |(a, b): &(&u8, &u8)| a == b;
    let after = base[from..].iter().zip(&target[at..]).take_while(same).count();
    if after < BLOCK {
        return None;
    }
    let before = base[..from].iter().rev().zip(target[least..at].iter().rev());
    let before = before.take_while(same).count();
    Some((from - before, at - before, before + after))
}

fn push_size(out: &mut Vec<u8>, mut size: usize) {
    while size > 0x7f {
        out.push(0x80 | low(size & 0x7f));
        size >>= 7;
    }
    out.push(low(size));
}

fn low(number: usize) -> u8 {
    u8::try_from(number).expect("a byte, by the mask before")
}

fn literal(out: &mut Vec<u8>, bytes: &[u8]) {
    for piece in bytes.chunks(LITERAL) {
        out.push(low(piece.len()));
        out.extend_from_slice(piece);
    }
}

fn copy(out: &mut Vec<u8>, mut from: usize, mut length: usize) {
    while length > 0 {
        let piece = length.min(COPY);
        let at = out.len();
        out.push(0x80);
        for (bit, byte) in (0..4).map(|bit| (bit, low(from >> (8 * bit) & 0xff))) {
            if byte != 0 {
                out[at] |= 1 << bit;
                out.push(byte);
            }
        }
        // A whole 64 KiB is what no size at all means.
        for (bit, byte) in (0..2).map(|bit| (bit, low(piece >> (8 * bit) & 0xff))) {
            if byte != 0 {
                out[at] |= 1 << (4 + bit);
                out.push(byte);
            }
        }
        from += piece;
        length -= piece;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As git applies a delta.
    fn apply(base: &[u8], delta: &[u8]) -> Vec<u8> {
        let mut rest = delta.iter().copied();
        let mut size = || {
            let (mut size, mut shift) = (0, 0);
            loop {
                let byte = rest.next().unwrap();
                size |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    return size;
                }
            }
        };
        assert_eq!(size(), base.len());
        let target = size();
        let mut out = Vec::new();
        while let Some(op) = rest.next() {
            if op & 0x80 == 0 {
                assert_ne!(op, 0, "reserved");
                out.extend(rest.by_ref().take(usize::from(op)));
                continue;
            }
            let mut number = |bits: std::ops::Range<u32>| {
                let first = bits.start;
                bits.filter(|bit| op >> bit & 1 == 1)
                    .map(|bit| usize::from(rest.next().unwrap()) << (8 * (bit - first)))
                    .sum::<usize>()
            };
            let from = number(0..4);
            let length = match number(4..7) {
                0 => 0x1_0000,
                length => length,
            };
            out.extend_from_slice(&base[from..from + length]);
        }
        assert_eq!(out.len(), target);
        out
    }

    proptest! {
        #[test]
        fn the_target_comes_out(
            base in prop::collection::vec(0_u8..4, 0..2000),
            cuts in prop::collection::vec((0_usize..2000, 0_usize..600), 0..6),
            fresh in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut target = fresh;
            for (from, length) in cuts {
                let from = from.min(base.len());
                target.extend_from_slice(&base[from..(from + length).min(base.len())]);
            }
            prop_assert_eq!(apply(&base, &encode(&base, &target)), target);
        }
    }

    #[test]
    fn one_changed_entry_of_a_large_tree_costs_little() {
        let base: Vec<u8> =
            (0..400_000_u32).flat_map(|n| n.wrapping_mul(n).to_be_bytes()).collect();
        let mut target = base.clone();
        target[700_000..700_020].fill(7);
        let delta = encode(&base, &target);
        assert!(delta.len() < 300, "{}", delta.len());
        assert_eq!(apply(&base, &delta), target);
        let moved = [&base[800_000..], &base[..800_000]].concat();
        let delta = encode(&base, &moved);
        assert!(delta.len() < 1000, "{}", delta.len());
        assert_eq!(apply(&base, &delta), moved);
    }
}
