//! What two objects share: a recipe makes the new one out of stretches of the old and of its own.
//!
//! The cuts of both show which chunks are equal; only where they leave a gap are the bytes of both
//! files read, so the cost follows what changed. A gap is cut again, finer; in what that leaves, the
//! neighbours' *shifts* (how far bytes moved from new to old) are tried on every byte, which trims a
//! change exactly and finds what is equal between many small ones, as time stamps in an archive.
//! A recipe is bounded in memory and proves nothing: the SHA-256 of its result does.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use super::chunks::{Chunk, Cuts, Cutter};

/// Equal bytes in the middle of a gap that are worth an instruction of their own, which takes about
/// six bytes and the one behind it two.
const MIN_RUN: u64 = 16;

/// A gap larger than this is cut again, finer.
const FINER_FROM: u64 = 1024;

/// How far into a gap it is cut again: the first stretch, and on to the second if the first had
/// anything. Without an end, two objects that share nothing would be read whole to say so.
const FINER_REACH: [u64; 2] = [4 << 20, 128 << 20];

/// Of objects without an equal chunk, so much is looked at for anything else that they share: nearly all
/// of them are strangers, and a mirror waits for the answer.
const SAMPLE: u64 = 1 << 20;

/// How far into a gap the shift of each neighbour is tried.
const REACH: u64 = 16 << 20;

/// Once a recipe has this many copies (12 MiB), gaps are only trimmed at their edges.
const MANY_COPIES: usize = 1 << 19;

/// What an instruction counts for when a recipe is judged, bytes.
const COPY_COST: u64 = 8;

/// Read at a time, from each file.
const BLOCK: usize = 64 << 10;

/// An object as a recipe needs it.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its bytes.
    pub file: &'a File,
    /// Its cuts.
    pub cuts: &'a Cuts,
}

/// Bytes of the new object that lie in the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Where, in the new object.
    pub(super) to: u64,
    /// Where, in the old object.
    pub(super) from: u64,
    pub(super) len: u64,
}

/// The copies that make most of a new object, in its order, none overlapping another there. What
/// lies between them comes from the new object itself.
#[derive(Debug)]
pub struct Recipe {
    pub(super) copies: Vec<Stretch>,
    size: u64,
}

impl Recipe {
    /// Finds out how to make `new` out of `old`. None when that would save less than a fifth of it.
    ///
    /// # Errors
    /// A file cannot be read, or is shorter than its cuts say.
    pub fn between(old: Side<'_>, new: Side<'_>) -> io::Result<Option<Self>> {
        let mut matcher = Matcher::new(old, new);
        let mut before = Stretch { to: 0, from: 0, len: 0 };
        let end = Stretch { to: new.cuts.size(), from: old.cuts.size(), len: 0 };
        let shared = shared(old.cuts.chunks(), new.cuts.chunks());
        if shared.is_empty() && !matcher.are_related()? {
            return Ok(None);
        }
        for after in shared.into_iter().chain([end]) {
            matcher.bridge(before, after)?;
            before = after;
        }
        let recipe = Self { copies: matcher.copies.0, size: new.cuts.size() };
        Ok(recipe.is_worth_it().then_some(recipe))
    }

    /// Bytes of the new object.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that do not come from the old object.
    pub fn literal_bytes(&self) -> u64 {
        self.size - self.copies.iter().map(|copy| copy.len).sum::<u64>()
    }

    fn is_worth_it(&self) -> bool {
        let cost = self.literal_bytes() + COPY_COST * self.copies.len() as u64;
        cost <= self.size / 5 * 4
    }
}

impl Stretch {
    /// What to add to an offset in the new object for that in the old one.
    fn shift(&self) -> i64 {
        self.from.wrapping_sub(self.to).cast_signed()
    }

    /// What lies between this one and a later one, in the new object and in the old.
    fn gap_to(&self, after: &Self) -> (Range<u64>, Range<u64>) {
        (self.to + self.len..after.to, self.from + self.len..after.from)
    }

    fn shifted(run: &Range<u64>, shift: i64) -> Self {
        Self { to: run.start, from: run.start.wrapping_add_signed(shift), len: len(run) }
    }
}

/// Copies in the new object's order; those that continue one another are one.
#[derive(Default)]
struct Copies(Vec<Stretch>);

impl Copies {
    fn push(&mut self, copy: Stretch) {
        match self.0.last_mut() {
            Some(last) if last.to + last.len == copy.to && last.shift() == copy.shift() => {
                last.len += copy.len;
            }
            _ if copy.len > 0 => self.0.push(copy),
            _ => {}
        }
    }

    fn are_many(&self) -> bool {
        self.0.len() >= MANY_COPIES
    }
}

/// The copies that equal chunks give. Of several equal chunks of the old object, the one that
/// continues the copy before is taken, else the next behind it, else the first: so repeated content
/// (zeros) becomes one copy, and a copy seldom leaves its neighbourhood.
fn shared(old: &[Chunk], new: &[Chunk]) -> Vec<Stretch> {
    let span = |chunks: &[Chunk], at: usize| {
        let start = at.checked_sub(1).map_or(0, |before| chunks[before].end);
        start..chunks[at].end
    };
    let mut by_print: Vec<usize> = (0..old.len()).collect();
    by_print.sort_unstable_by_key(|&at| (old[at].print, at));
    let find_from = |print: u64, least: usize| {
        let at = by_print.partition_point(|&at| (old[at].print, at) < (print, least));
        by_print.get(at).copied().filter(|&at| old[at].print == print)
    };
    let mut copies = Copies::default();
    let mut next = 0;
    for (at, chunk) in new.iter().enumerate() {
        let continues = old.get(next).is_some_and(|candidate| candidate.print == chunk.print);
        let found = continues
            .then_some(next)
            .or_else(|| find_from(chunk.print, next))
            .or_else(|| find_from(chunk.print, 0));
        let Some(found) = found else { continue };
        let (from, to) = (span(old, found), span(new, at));
        if len(&from) == len(&to) {
            copies.push(Stretch { to: to.start, from: from.start, len: len(&to) });
            next = found + 1;
        }
    }
    copies.0
}

/// Collects the copies; finds those in the gaps that the chunks leave.
struct Matcher<'a> {
    old: Side<'a>,
    new: Side<'a>,
    old_block: Vec<u8>,
    new_block: Vec<u8>,
    copies: Copies,
}

impl<'a> Matcher<'a> {
    fn new(old: Side<'a>, new: Side<'a>) -> Self {
        let (old_block, new_block) = (vec![0; BLOCK], vec![0; BLOCK]);
        Self { old, new, old_block, new_block, copies: Copies::default() }
    }

    /// Whether two objects without an equal chunk have anything in common: small chunks at the start, or
    /// bytes that lie as far from the start, or from the end.
    fn are_related(&mut self) -> io::Result<bool> {
        let (old, new) = (self.old.cuts.size(), self.new.cuts.size());
        if new <= 4 * SAMPLE {
            return Ok(true);
        }
        let old_cuts = fine_cuts(self.old.file, &(0..old), SAMPLE, &mut self.old_block)?;
        let new_cuts = fine_cuts(self.new.file, &(0..new), SAMPLE, &mut self.new_block)?;
        if !shared(old_cuts.chunks(), new_cuts.chunks()).is_empty() {
            return Ok(true);
        }
        let from_end = old.wrapping_sub(new).cast_signed();
        for (start, shift) in [(0, 0), (new / 2, 0), (new / 2, from_end), (new - SAMPLE, from_end)]
        {
            let runs = self.equal_runs(start..start + SAMPLE, shift, |run| len(run) >= MIN_RUN)?;
            if !runs.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds what lies between two copies, and the second one.
    fn bridge(&mut self, mut before: Stretch, after: Stretch) -> io::Result<()> {
        for after in self.finer(before, after)?.into_iter().chain([after]) {
            self.trim(before, after)?;
            self.copies.push(after);
            before = after;
        }
        Ok(())
    }

    /// The copies that smaller chunks give between two copies: for what many small insertions have
    /// moved, as in an archive with many changed members.
    fn finer(&mut self, before: Stretch, after: Stretch) -> io::Result<Vec<Stretch>> {
        let (new, old) = before.gap_to(&after);
        if old.is_empty() || len(&new) <= FINER_FROM || self.copies.are_many() {
            return Ok(Vec::new());
        }
        let mut copies = Vec::new();
        for reach in FINER_REACH {
            let old_cuts = fine_cuts(self.old.file, &old, reach, &mut self.old_block)?;
            let new_cuts = fine_cuts(self.new.file, &new, reach, &mut self.new_block)?;
            copies = shared(old_cuts.chunks(), new_cuts.chunks());
            if copies.is_empty() || len(&old).max(len(&new)) <= reach {
                break;
            }
        }
        for copy in &mut copies {
            copy.from += old.start;
            copy.to += new.start;
        }
        Ok(copies)
    }

    /// Adds the equal bytes between two copies: with the shift of the one before up to some place,
    /// and from there on with that of the one after.
    fn trim(&mut self, before: Stretch, after: Stretch) -> io::Result<()> {
        let (gap, _) = before.gap_to(&after);
        if gap.is_empty() {
            return Ok(());
        }
        let min_run = if self.copies.are_many() { u64::MAX } else { MIN_RUN };
        let (left, right) = (before.shift(), after.shift());
        let near_left = gap.start..gap.end.min(gap.start + REACH);
        let near_right = gap.start.max(gap.end.saturating_sub(REACH))..gap.end;
        // A run that touches a copy makes that one longer and costs nothing.
        let lefts =
            self.equal_runs(near_left, left, |run| len(run) >= min_run || run.start == gap.start)?;
        let rights =
            self.equal_runs(near_right, right, |run| len(run) >= min_run || run.end == gap.end)?;
        let place = best_split(gap.start, &lefts, &rights);
        for run in lefts.iter().filter(|run| run.end <= place) {
            self.copies.push(Stretch::shifted(run, left));
        }
        for run in rights.iter().filter(|run| run.end > place) {
            self.copies.push(Stretch::shifted(&(run.start.max(place)..run.end), right));
        }
        Ok(())
    }

    /// Where in `window` of the new object the old one has the same bytes, `shift` away.
    fn equal_runs(
        &mut self,
        window: Range<u64>,
        shift: i64,
        keep: impl Fn(&Range<u64>) -> bool,
    ) -> io::Result<Vec<Range<u64>>> {
        let mut runs = Vec::new();
        let mut run: Option<u64> = None;
        let window = within(window, shift, self.old.cuts.size());
        let mut at = window.start;
        while at < window.end {
            let n = usize::try_from(window.end - at).map_or(BLOCK, |left| left.min(BLOCK));
            let (old, new) = (&mut self.old_block[..n], &mut self.new_block[..n]);
            self.old.file.read_exact_at(old, at.wrapping_add_signed(shift))?;
            self.new.file.read_exact_at(new, at)?;
            for ((old, new), at) in old.iter().zip(new.iter()).zip(at..) {
                if old == new {
                    run.get_or_insert(at);
                } else if let Some(start) = run.take() {
                    runs.extend(Some(start..at).filter(&keep));
                }
            }
            at += n as u64;
        }
        runs.extend(run.map(|start| start..window.end).filter(&keep));
        Ok(runs)
    }
}

/// Cuts the first `reach` bytes of `range`.
fn fine_cuts(file: &File, range: &Range<u64>, reach: u64, block: &mut [u8]) -> io::Result<Cuts> {
    let mut cutter = Cutter::fine();
    let mut at = range.start;
    let end = range.end.min(at + reach);
    while at < end {
        let n = usize::try_from(end - at).map_or(BLOCK, |left| left.min(BLOCK));
        file.read_exact_at(&mut block[..n], at)?;
        cutter.push(&block[..n]);
        at += n as u64;
    }
    Ok(cutter.finish())
}

/// The part of `window` that, moved by `shift`, lies inside `0..size`.
fn within(window: Range<u64>, shift: i64, size: u64) -> Range<u64> {
    let start = window.start.max(0_u64.saturating_add_signed(shift.saturating_neg()));
    let end = window.end.min(size.saturating_add_signed(shift.saturating_neg()));
    start..end.max(start)
}

/// Where to change from the runs on the left to those on the right, so that most is covered: a
/// place where one on the left ends, or the start.
fn best_split(start: u64, lefts: &[Range<u64>], rights: &[Range<u64>]) -> u64 {
    let (mut best, mut won, mut lost) = ((start, 0), 0, 0);
    let mut rest = rights;
    for left in lefts {
        won += len(left);
        while let Some((first, others)) = rest.split_first().filter(|(r, _)| r.end <= left.end) {
            lost += len(first);
            rest = others;
        }
        let partly = rest.first().map_or(0, |first| left.end.saturating_sub(first.start));
        let gain = won.saturating_sub(lost + partly);
        if gain > best.1 {
            best = (left.end, gain);
        }
    }
    best.0
}

fn len(range: &Range<u64>) -> u64 {
    range.end - range.start
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ascending ranges, from the lengths of what lies between them and of themselves.
    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        prop::collection::vec((1..9_u64, 1..9_u64), 0..6).prop_map(|pairs| {
            let mut at = 0;
            pairs
                .into_iter()
                .map(|(gap, len)| {
                    let start = at + gap;
                    at = start + len;
                    start..at
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn no_other_split_covers_more(lefts in ranges(), rights in ranges()) {
            let covered = |place: u64| {
                let left: u64 = lefts.iter().map(|r| r.end.min(place).saturating_sub(r.start)).sum();
                let right: u64 = rights.iter().map(|r| r.end.saturating_sub(r.start.max(place))).sum();
                left + right
            };
            let best = best_split(0, &lefts, &rights);
            prop_assert_eq!(covered(best), (0..200).map(covered).max().unwrap());
            prop_assert!(lefts.iter().all(|run| run.end <= best || best <= run.start));
        }

        #[test]
        fn a_moved_window_stays_inside(start in 0..99_u64, n in 0..99_u64, shift in -150..150_i64, size in 0..99_u64) {
            let inside = within(start..start + n, shift, size);
            for at in start..start + n {
                let fits = at.checked_add_signed(shift).is_some_and(|from| from < size);
                prop_assert_eq!(inside.contains(&at), fits, "{}", at);
            }
        }
    }
}
