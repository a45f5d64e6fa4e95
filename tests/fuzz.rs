//! What comes from outside, mangled: the corpora in `fuzz/corpus`, and what is made of them.
//!
//! The same targets run under cargo-fuzz. Here each seed is taken as it is and then changed in many ways,
//! by a generator whose numbers are the same in every run. `DEPSYNC_FUZZ_SECONDS=600` goes on for so long
//! for each target, from another start each time, and says how many inputs were tried; what breaks is
//! kept beside the corpus and printed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by them, and one is told by a variable how long to run"
)]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use depsync::store::{
    chunks::Cuts,
    delta,
    recipe::{Recipe, Side},
};

/// Inputs for each target in a normal run.
const NORMAL: u64 = 3_000;
const LONGEST: usize = 8_192;

/// Marsaglia's xorshift64.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % (end.max(1) as u64)).unwrap()
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    // A target whose seeds are all made here has no folder: git keeps no empty ones.
    let mut files: Vec<_> = match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(fault) => panic!("{target}: {fault}"),
    };
    files.sort();
    let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    if target == "deltas" {
        seeds.push(a_delta());
    }
    assert!(!seeds.is_empty(), "{target} has no seeds");
    seeds
}

/// A sound one: some bytes kept, some new, some moved.
fn a_delta() -> Vec<u8> {
    let base = targets::base_bytes();
    let new = [&base[..100_000], &[7; 100], &base[150_000..]].concat();
    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        file
    };
    let (base, new) = (file(&base), file(&new));
    let cuts = |file| Cuts::of(file).unwrap();
    let (old_cuts, new_cuts) = (cuts(&base), cuts(&new));
    let recipe = Recipe::between(
        Side { file: &base, cuts: &old_cuts },
        Side { file: &new, cuts: &new_cuts },
    );
    let mut out = Vec::new();
    if let Some(recipe) = recipe.unwrap() {
        delta::encode(&targets::delta_header(), &recipe, &new, &mut out).unwrap();
    }
    out
}

/// One to eight changes: bits, bytes, runs, cuts, pieces of another seed, words of the formats.
fn mangle(seeds: &[Vec<u8>], numbers: &mut Numbers) -> Vec<u8> {
    const WORDS: [&[u8]; 16] = [
        b"..",
        b"/",
        b"\0",
        b"\xff\xff\xff\xff",
        b"0",
        b"-",
        b"18446744073709551616",
        b"{}",
        b"[[",
        b"<Region>",
        b"&amp;",
        b"\"",
        b"I0",
        b".git",
        b"40000 ",
        b"\xc3\x28",
    ];
    let mut data = seeds[numbers.below(seeds.len())].clone();
    for _ in 0..=numbers.below(8) {
        let at = numbers.below(data.len() + 1);
        match numbers.below(8) {
            0 if at < data.len() => data[at] ^= 1 << numbers.below(8),
            1 if at < data.len() => data[at] = numbers.next().to_le_bytes()[0],
            2 => data.truncate(at),
            3 => {
                let end = (at + numbers.below(64)).min(data.len());
                data.drain(at..end);
            }
            4 => {
                let end = (at + numbers.below(256)).min(data.len());
                let run = data[at..end].to_vec();
                data.splice(at..at, run);
            }
            5 => {
                let other = &seeds[numbers.below(seeds.len())];
                let from = numbers.below(other.len() + 1);
                let end = (from + numbers.below(256)).min(other.len());
                data.splice(at..at, other[from..end].iter().copied());
            }
            6 => data
                .splice(at..at, WORDS[numbers.below(WORDS.len())].iter().copied())
                .for_each(drop),
            _ => data.insert(at, numbers.next().to_le_bytes()[0]),
        }
    }
    data.truncate(LONGEST);
    data
}

/// Runs one input; what breaks is kept.
fn try_one(name: &str, target: targets::Target, data: &[u8]) {
    let ran = std::panic::catch_unwind(|| target(data));
    if ran.is_err() {
        let found = std::env::temp_dir().join(format!("depsync-fuzz-{name}"));
        fs::write(&found, data).unwrap();
        panic!("{name} breaks on {} ({} bytes)", found.display(), data.len());
    }
}

fn run(name: &str) {
    let (_, target) = targets::TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let seeds = corpus(name);
    for seed in &seeds {
        try_one(name, target, seed);
    }
    let seconds = std::env::var("DEPSYNC_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let start = match until {
        None => 0x9e37_79b9_7f4a_7c15,
        Some(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() | 1,
    };
    let mut numbers = Numbers(start);
    let mut tried = 0_u64;
    while until.map_or(tried < NORMAL, |until| Instant::now() < until) {
        try_one(name, target, &mangle(&seeds, &mut numbers));
        tried += 1;
    }
    println!("{name}: {tried} inputs, from {start:#x}");
}

/// Otherwise the target would see nothing but refusals.
#[test]
fn the_sound_ones_among_the_seeds_get_through() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/packs");
    let takes = |name: &str| targets::takes_pack(&fs::read(folder.join(name)).unwrap());
    assert_eq!(["plain", "up", "git"].map(takes), [true, false, false]);
    assert!(!a_delta().is_empty());
}

#[test]
fn frames() {
    run("frames");
}

#[test]
fn packs() {
    run("packs");
}

#[test]
fn deltas() {
    run("deltas");
}

#[test]
fn region_xml() {
    run("region_xml");
}

#[test]
fn rs_xml() {
    run("rs_xml");
}

#[test]
fn carbon_xml() {
    run("carbon_xml");
}

#[test]
fn ranges() {
    run("ranges");
}

#[test]
fn paths() {
    run("paths");
}
