//! The same work over the same wire, for depsync and for what people use today, on this machine in one run.
//!
//! `cargo bench --bench race` runs what README's table says and writes it there; `-- growth` draws how
//! each case grows. The raw figures, the table and the plots are kept in `benches/results/`. Needs root
//! (hosts are network namespaces), lsyncd, rsync, syncthing, inotify-tools, git and python3. A machine's
//! speed drifts: ratios of one run count, never single times. `ROUNDS` and `FULL=1` change the scale.
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]
#![expect(clippy::cast_precision_loss, reason = "figures for people, far below 2^52")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints its figures")]

#[path = "race/cases.rs"]
mod cases;
#[path = "race/plot.rs"]
mod plot;
#[path = "race/systems.rs"]
mod systems;
#[path = "race/wire.rs"]
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

use cases::{CHANGE, Case, Measure, Race, size_name};
use systems::System;

/// What the figures are held against: where they were taken, what of it is compared, and how much of
/// the other one's it may be.
struct Goal {
    case: Case,
    files: usize,
    mirrors: usize,
    rival: System,
    compared: Compared,
    at_most: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Compared {
    Value,
    Sent,
}

const MANY: usize = 100_000;
const FEW: usize = 1_000;
const BIG: usize = 100_000_000;
const COMMITS: usize = 500;

const fn goal(case: Case, at: (usize, usize), rival: System, at_most: f64) -> Goal {
    Goal { case, files: at.0, mirrors: at.1, rival, compared: Compared::Value, at_most }
}

const GOALS: [Goal; 9] = [
    goal(Case::File(1000), (MANY, 2), System::Lsyncd, 0.10),
    goal(Case::File(10_000_000), (MANY, 2), System::Lsyncd, 0.40),
    goal(Case::Delta(BIG), (MANY, 2), System::Lsyncd, 0.5),
    Goal { compared: Compared::Sent, ..goal(Case::Delta(BIG), (MANY, 2), System::Lsyncd, 0.62) },
    goal(Case::Burst(2000), (FEW, 20), System::Lsyncd, 0.10),
    goal(Case::First, (MANY, 2), System::Lsyncd, 1.0),
    goal(Case::Delete, (MANY, 2), System::Lsyncd, 0.3),
    goal(Case::Memory, (MANY, 2), System::Syncthing, 0.25),
    goal(Case::CatchUp(COMMITS), (FEW, 2), System::GitScript, 0.3),
];

fn main() {
    let growth = std::env::args().any(|word| word == "growth");
    let results = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    fs::create_dir_all(&results).expect("the folder can be made");
    let within = tempfile::tempdir().expect("a folder for all that is raced with");
    let run = |system, files, mirrors, cases: &[Case]| {
        cases::run(Race { system, files, mirrors, rounds: rounds() }, within.path(), cases)
    };
    if growth { grow(&results, &run) } else { table(&results, &run) }
}

fn rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15)
}

/// Lets a system with so many files and mirrors run through the cases.
type Run<'a> = dyn Fn(System, usize, usize, &[Case]) -> Vec<Measure> + 'a;

fn table(results: &Path, race: &Run) {
    let wide = [
        Case::First,
        Case::File(1000),
        Case::File(10_000_000),
        Case::Delta(BIG),
        Case::Delete,
        Case::Memory,
    ];
    let mut measures = Vec::new();
    for system in [System::Depsync, System::Lsyncd] {
        measures.extend(race(system, MANY, 2, &wide));
    }
    measures.extend(race(
        System::Syncthing,
        MANY,
        2,
        &[Case::First, Case::File(1000), Case::Memory],
    ));
    for system in [System::Depsync, System::Lsyncd] {
        measures.extend(race(system, FEW, 20, &[Case::Burst(2000)]));
    }
    for system in [System::Depsync, System::GitScript] {
        measures.extend(race(system, FEW, 2, &[Case::CatchUp(COMMITS)]));
    }
    keep(results, "table.json", &measures);
    let table = rendered(&measures);
    fs::write(results.join("table.md"), &table).expect("it can be written");
    into_readme(&table);
    println!("{table}");
}

fn keep(results: &Path, name: &str, measures: &[Measure]) {
    let text = serde_json::to_string_pretty(measures).expect("plain data");
    fs::write(results.join(name), text + "\n").expect("it can be written");
}

fn found<'a>(measures: &'a [Measure], system: System, goal: &Goal) -> Option<&'a Measure> {
    measures.iter().find(|measure| {
        measure.system == system.name()
            && (measure.files, measure.mirrors) == (goal.files, goal.mirrors)
            && measure.case == goal.case.name()
    })
}

fn rendered(measures: &[Measure]) -> String {
    let mut lines = vec![
        "| case (files, mirrors) | against | depsync | theirs | ratio | wanted |\n\
         |---|---|---:|---:|---:|---:|\n"
            .to_owned(),
    ];
    for goal in &GOALS {
        let of = |system| {
            let measure = found(measures, system, goal)?;
            match goal.compared {
                Compared::Value => measure.median(),
                Compared::Sent => measure.sent.map(|sent| sent as f64),
            }
        };
        let (Some(ours), Some(theirs)) = (of(System::Depsync), of(goal.rival)) else { continue };
        let lost = found(measures, System::Depsync, goal).map_or(0, |measure| measure.lost);
        let (case, bytes) = (goal.case.name(), goal.compared == Compared::Sent);
        lines.push(format!(
            "| {case}{} ({}, {}){} | {} | {} | {} | **{:.2}** | {:.2} |\n",
            if bytes { ", bytes sent" } else { "" },
            goal.files,
            goal.mirrors,
            if lost > 0 { format!(", {lost} lost") } else { String::new() },
            goal.rival.name(),
            figure(goal, ours),
            figure(goal, theirs),
            ours / theirs,
            goal.at_most,
        ));
    }
    lines.concat()
}

fn figure(goal: &Goal, value: f64) -> String {
    match (goal.compared, goal.case) {
        (Compared::Sent, _) => format!("{:.0} kB", value / 1e3),
        (_, Case::Memory) => format!("{value:.0} MB"),
        _ if value < 1.0 => format!("{:.1} ms", value * 1e3),
        _ => format!("{value:.2} s"),
    }
}

/// Puts the table between its marks.
fn into_readme(table: &str) {
    const MARKS: [&str; 2] = ["<!-- race -->\n", "<!-- /race -->"];
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).expect("README.md is there");
    let Some((before, rest)) = text.split_once(MARKS[0]) else { return };
    let Some((_, after)) = rest.split_once(MARKS[1]) else { return };
    let text = [before, MARKS[0], table, MARKS[1], after].concat();
    fs::write(path, text).expect("README.md can be written");
}

fn grow(results: &Path, race: &Run) {
    let full = std::env::var("FULL").is_ok();
    let systems = [System::Depsync, System::Lsyncd];
    let small = Case::File(1000);
    let mut by_files: Vec<usize> = vec![1_000, 10_000, 100_000];
    let mut by_mirrors = vec![1, 2, 5, 20];
    let mut sizes = vec![1_000_000, 10_000_000, 100_000_000];
    if full {
        by_files.push(1_000_000);
        by_mirrors.extend([50, 200]);
        sizes.extend([500_000_000, 2_000_000_000]);
    }
    let mut measures = Vec::new();
    let (mut files, mut mirrors) = (Vec::new(), Vec::new());
    let (mut seconds, mut sent) = (Vec::new(), Vec::new());
    for system in systems {
        let mut line = Vec::new();
        for &count in &by_files {
            let of = race(system, count, 2, &[small]);
            line.extend(of[0].median().map(|median| (count as f64, median * 1e3)));
            measures.extend(of);
        }
        files.push((system.name().to_owned(), line));
        let mut line = Vec::new();
        for &count in &by_mirrors {
            let of = race(system, FEW, count, &[small]);
            line.extend(of[0].median().map(|median| (count as f64, median * 1e3)));
            measures.extend(of);
        }
        mirrors.push((system.name().to_owned(), line));
        let cases: Vec<Case> = sizes.iter().map(|&size| Case::Delta(size)).collect();
        let of = race(system, FEW, 2, &cases);
        let at = || sizes.iter().map(|&size| size as f64).zip(&of);
        seconds.push((
            system.name().to_owned(),
            at().filter_map(|(size, measure)| Some((size, measure.median()?))).collect(),
        ));
        sent.push((
            system.name().to_owned(),
            at().filter_map(|(size, measure)| Some((size, measure.sent? as f64))).collect(),
        ));
        measures.extend(of);
    }
    keep(results, "growth.json", &measures);
    let change = size_name(CHANGE);
    for (name, title, labels, lines) in [
        ("files", "A new file of 1 KB, by files in the tree", ("files", "ms, median"), &files),
        ("mirrors", "A new file of 1 KB, by mirrors", ("mirrors", "ms, median"), &mirrors),
        (
            "delta-seconds",
            &*format!("{change} changed in a file"),
            ("bytes of the file", "s"),
            &seconds,
        ),
        (
            "delta-bytes",
            &format!("{change} changed in a file"),
            ("bytes of the file", "bytes sent"),
            &sent,
        ),
    ] {
        let file = results.join(format!("{name}.svg"));
        fs::write(&file, plot::draw(title, labels, lines)).expect("it can be written");
        println!("{}", file.display());
    }
}
