//! The work that every system does, and how long it takes until every mirror has the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    systems::{Place, Started, System},
    wire::Wire,
};

/// When a system counts as having lost a change.
const LIMIT: Duration = Duration::from_secs(400);
/// Between two rounds, so that each change is a lone one.
const REST: Duration = Duration::from_millis(400);
/// Files of one folder of the tree.
const PER_FOLDER: usize = 100;
pub(crate) const CHANGE: usize = 64 << 10;

/// One thing to measure in a race.
#[derive(Clone, Copy)]
pub(crate) enum Case {
    /// From the start of all processes until every mirror has the tree.
    First,
    /// A new file of this many bytes.
    File(usize),
    /// 64 KiB changed inside a file of this many bytes.
    Delta(usize),
    /// That many small files at once.
    Burst(usize),
    /// A folder of 100 files removed.
    Delete,
    /// A mirror comes back after that many commits.
    CatchUp(usize),
    /// The hub's peak memory after all before.
    Memory,
}

/// A race: a system, the tree's files, the mirrors.
#[derive(Clone, Copy)]
pub(crate) struct Race {
    pub(crate) system: System,
    pub(crate) files: usize,
    pub(crate) mirrors: usize,
    pub(crate) rounds: usize,
}

/// What was measured.
#[derive(Clone, Serialize)]
pub(crate) struct Measure {
    pub(crate) system: &'static str,
    pub(crate) files: usize,
    pub(crate) mirrors: usize,
    pub(crate) case: String,
    /// Seconds, or megabytes where the case is memory; one for each round that arrived.
    pub(crate) values: Vec<f64>,
    /// What the hub sent in a round, to all mirrors together, on average.
    pub(crate) sent: Option<u64>,
    /// Rounds that never arrived.
    pub(crate) lost: usize,
}

impl Measure {
    pub(crate) fn median(&self) -> Option<f64> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

impl Case {
    pub(crate) fn name(self) -> String {
        match self {
            Case::First => "first sync".into(),
            Case::File(size) => format!("new file of {}", size_name(size)),
            Case::Delta(size) => format!("64 KiB changed in {}", size_name(size)),
            Case::Burst(count) => format!("{count} files at once"),
            Case::Delete => "folder of 100 files deleted".into(),
            Case::CatchUp(commits) => format!("catch-up after {commits} commits"),
            Case::Memory => "hub's peak memory".into(),
        }
    }
}

pub(crate) fn size_name(size: usize) -> String {
    match size {
        0..1_000_000 => format!("{} KB", size / 1000),
        1_000_000..1_000_000_000 => format!("{} MB", size / 1_000_000),
        _ => format!("{} GB", size / 1_000_000_000),
    }
}

/// A race under way.
struct Course {
    race: Race,
    wire: Wire,
    place: Place,
    started: Started,
    begun: Instant,
}

/// Runs one system through the cases, in a new folder below `within`, which stays: what is being
/// removed would slow whoever is measured next.
pub(crate) fn run(race: Race, within: &Path, cases: &[Case]) -> Vec<Measure> {
    let work = tempfile::Builder::new().prefix("race-").tempdir_in(within);
    let work = work.expect("a work folder").keep();
    let place = Place {
        source: work.join("source"),
        targets: (1..=race.mirrors).map(|host| work.join(format!("target{host}"))).collect(),
        work,
    };
    for folder in place.targets.iter().chain([&place.source]) {
        fs::create_dir_all(folder).expect("a folder");
    }
    plant(&place.source, race.files);
    // What is still on its way to the disk would slow whoever comes first.
    Command::new("sync").status().expect("sync runs");
    let mut wire = Wire::new(race.mirrors + 1);
    let begun = Instant::now();
    let started = race.system.start(&mut wire, &place);
    let mut course = Course { race, wire, place, started, begun };
    let first = course.first();
    // Watchers settle, and a change that arrives says that the first sync is over for all.
    std::thread::park_timeout(Duration::from_secs(3));
    course.warm_up();
    let mut measures = Vec::new();
    for case in cases {
        let measure = match *case {
            Case::First => course.measure(Case::First, vec![first], None),
            Case::File(size) => course.new_files(size),
            Case::Delta(size) => course.deltas(size),
            Case::Burst(count) => course.burst(count),
            Case::Delete => course.delete(),
            Case::CatchUp(commits) => course.catch_up(commits),
            Case::Memory => {
                let megabytes = course.wire.usage(course.started.hub).1;
                course.measure(Case::Memory, vec![Some(megabytes)], None)
            }
        };
        eprintln!(
            "  {:18} {:7} files, {:3} mirrors: {:32} median {:9.4} ({} lost){}",
            measure.system,
            measure.files,
            measure.mirrors,
            measure.case,
            measure.median().unwrap_or(f64::NAN),
            measure.lost,
            measure.sent.map(|sent| format!(", hub sent {sent}")).unwrap_or_default(),
        );
        measures.push(measure);
    }
    measures
}

impl Course {
    fn measure(&self, case: Case, rounds: Vec<Option<f64>>, sent: Option<u64>) -> Measure {
        Measure {
            system: self.race.system.name(),
            files: self.race.files,
            mirrors: self.race.mirrors,
            case: case.name(),
            lost: rounds.iter().filter(|round| round.is_none()).count(),
            values: rounds.into_iter().flatten().collect(),
            sent,
        }
    }

    /// Waits until it holds at every mirror; none: it never did.
    fn everywhere(&self, since: Instant, mut there: impl FnMut(&Path) -> bool) -> Option<f64> {
        let mut missing: Vec<&PathBuf> = self.place.targets.iter().collect();
        loop {
            missing.retain(|target| !there(target));
            if missing.is_empty() {
                return Some(since.elapsed().as_secs_f64());
            }
            if since.elapsed() > LIMIT {
                return None;
            }
            // Two cores: whoever spins here takes one from those that are measured.
            std::thread::park_timeout(Duration::from_micros(300));
        }
    }

    fn first(&self) -> Option<f64> {
        // Folders that are whole are not counted again: counting must not slow what is measured.
        let mut whole = vec![0; self.place.targets.len()];
        let folders = self.race.files.div_ceil(PER_FOLDER);
        self.everywhere(self.begun, |target| {
            let index = self.place.targets.iter().position(|other| other == target);
            let done = &mut whole[index.expect("one of them")];
            while *done < folders {
                let wanted = PER_FOLDER.min(self.race.files - *done * PER_FOLDER);
                if count(&target.join(folder(*done))) < wanted {
                    std::thread::park_timeout(Duration::from_millis(20));
                    return false;
                }
                *done += 1;
            }
            true
        })
    }

    fn warm_up(&self) {
        let name = format!("{}/warm-up", folder(0));
        let data = bytes(1000, 7);
        fs::write(self.place.source.join(&name), &data).expect("the file can be written");
        self.everywhere(Instant::now(), |target| same(&target.join(&name), &data));
    }

    fn new_files(&self, size: usize) -> Measure {
        let rounds = self.race.rounds;
        let before = self.wire.sent(0);
        let mut values = Vec::new();
        for round in 0..rounds {
            std::thread::park_timeout(REST);
            let data = bytes(size, round as u64);
            let name = format!("{}/new-{size}-{round}.bin", folder(0));
            fs::write(self.place.source.join(&name), &data).expect("the file can be written");
            let closed = Instant::now();
            values.push(self.everywhere(closed, |target| same(&target.join(&name), &data)));
        }
        let sent = (self.wire.sent(0) - before) / rounds as u64;
        self.measure(Case::File(size), values, Some(sent))
    }

    fn deltas(&self, size: usize) -> Measure {
        let rounds = self.race.rounds;
        let mut data = bytes(size, 99);
        let path = self.place.source.join(format!("delta-{size}.war"));
        let name = path.file_name().expect("a name").to_owned();
        fs::write(&path, &data).expect("the file can be written");
        self.everywhere(Instant::now(), |target| same(&target.join(&name), &data));
        let (mut values, mut sent) = (Vec::new(), 0);
        for round in 0..rounds {
            std::thread::park_timeout(Duration::from_secs(2));
            let at = size / 2 + round * CHANGE;
            data[at..at + CHANGE].copy_from_slice(&bytes(CHANGE, 1000 + round as u64));
            let before = self.wire.sent(0);
            fs::write(&path, &data).expect("the file can be written");
            let closed = Instant::now();
            values.push(self.everywhere(closed, |target| same(&target.join(&name), &data)));
            // What is still said after the bytes have arrived counts too.
            std::thread::park_timeout(Duration::from_secs(1));
            sent += self.wire.sent(0) - before;
        }
        self.measure(Case::Delta(size), values, Some(sent / rounds as u64))
    }

    fn burst(&self, count_of: usize) -> Measure {
        let mut values = Vec::new();
        for round in 0..self.race.rounds.div_ceil(5) {
            std::thread::park_timeout(REST);
            let name = format!("burst-{round}");
            let into = self.place.source.join(&name);
            let begun = Instant::now();
            fs::create_dir(&into).expect("a new folder");
            for number in 0..count_of {
                fs::write(into.join(number.to_string()), number.to_string().repeat(50))
                    .expect("the file can be written");
            }
            let last = (count_of - 1).to_string();
            values.push(self.everywhere(begun, |target| {
                let folder = target.join(&name);
                if !same(&folder.join(&last), last.repeat(50).as_bytes())
                    || count(&folder) < count_of
                {
                    std::thread::park_timeout(Duration::from_millis(10));
                    return false;
                }
                true
            }));
        }
        self.measure(Case::Burst(count_of), values, None)
    }

    fn delete(&self) -> Measure {
        let mut values = Vec::new();
        for round in 0..self.race.rounds {
            std::thread::park_timeout(REST);
            let name = folder(1 + round);
            let begun = Instant::now();
            fs::remove_dir_all(self.place.source.join(&name)).expect("it can be removed");
            values.push(self.everywhere(begun, |target| !target.join(&name).exists()));
        }
        self.measure(Case::Delete, values, None)
    }

    fn catch_up(&mut self, commits: usize) -> Measure {
        let mirror = self.started.mirrors[0];
        self.wire.stop(mirror);
        let mut last = String::new();
        for number in 0..commits {
            last = format!("{number} ").repeat(100);
            let before = self.head();
            fs::write(self.place.source.join("counted.txt"), &last).expect("it can be written");
            let written = Instant::now();
            while self.head() == before && written.elapsed() < LIMIT {
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
        // It starts again and again from where it was stopped.
        let kept = self.place.work.join("kept");
        let folders = ["target1", "state1"].map(|name| self.place.work.join(name));
        let folders: Vec<_> = folders.iter().filter(|folder| folder.exists()).collect();
        let keep = |folder: &Path| kept.join(folder.file_name().expect("it has a name"));
        for folder in &folders {
            mirror_folder(folder, &keep(folder));
        }
        let rounds = (0..self.race.rounds).map(|round| {
            if round > 0 {
                self.wire.stop(self.started.mirrors[0]);
                for folder in &folders {
                    mirror_folder(&keep(folder), folder);
                }
                Command::new("sync").status().expect("sync runs");
            }
            let begun = Instant::now();
            self.started.mirrors[0] = self.race.system.mirror(&mut self.wire, &self.place, 1);
            self.everywhere(begun, |target| same(&target.join("counted.txt"), last.as_bytes()))
        });
        let rounds = rounds.collect();
        self.measure(Case::CatchUp(commits), rounds, None)
    }

    /// What the hub's ref says, where it has one.
    fn head(&self) -> String {
        let file = match self.race.system {
            System::Depsync => "state0/feeds/default/git/refs/heads/main",
            _ => "hub.git/refs/heads/master",
        };
        fs::read_to_string(self.place.work.join(file)).unwrap_or_default()
    }
}

/// Makes a folder hold what another one does, and stay the same folder.
fn mirror_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    let from = format!("{}/", from.display());
    let done = Command::new("rsync").args(["-a", "--delete", &from]).arg(to).status();
    assert!(done.is_ok_and(|status| status.success()), "{from} is copied");
}

fn folder(number: usize) -> String {
    format!("svc{:03}/mod{:03}", number / 10, number)
}

fn plant(root: &Path, files: usize) {
    for number in 0..files {
        let into = root.join(folder(number / PER_FOLDER));
        if number % PER_FOLDER == 0 {
            fs::create_dir_all(&into).expect("a folder");
        }
        let line = format!("<x id=\"{number}\">{}</x>\n", number.wrapping_mul(0x9E37_79B9));
        fs::write(into.join(format!("f{number}.xml")), line.repeat(1 + number * 7919 % 60))
            .expect("the file can be written");
    }
}

/// Bytes that nothing can press, other ones for each seed.
fn bytes(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut words = Vec::with_capacity(size + 8);
    while words.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        words.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    words.truncate(size);
    words
}

/// Files whose name is not hidden.
fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b".")).count()
}

fn same(path: &Path, data: &[u8]) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() == data.len() as u64)
        && fs::read(path).is_ok_and(|found| found == data)
}
