//! What the scenarios of the origin share: full scale on demand, what is published, and waiting for it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use serde_json::Value;

use crate::{
    oracle::{Item, contents},
    world::{DEADLINE, Node, World, eventually, eventually_within},
};

/// A real web application archive's format: a jar of Debian's.
pub const JAR: &str = "/usr/share/java/tomcat10-catalina.jar";

/// The long form only where it was asked for.
pub fn scale<T>(reduced: T, full: T) -> T {
    if std::env::var_os("DEPSYNC_FULL").is_some() { full } else { reduced }
}

/// How long a condition may take: full forms import and compare many files.
pub fn patience() -> Duration {
    scale(DEADLINE, 10 * DEADLINE)
}

/// The pace of somebody else who writes: part of the story, never a way to wait for us.
pub fn pace(millis: u64) {
    std::thread::park_timeout(Duration::from_millis(millis));
}

/// Runs a program to its end; it must succeed.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

/// Whether this is root, and not of a container without the rights that a test needs: else that test
/// says so and ends.
pub fn may(what: &str, program: &str, arguments: &[&str]) -> bool {
    let tried = Command::new(program).args(arguments).output();
    let may = tried.as_ref().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("left out, since this machine does not let us {what}: {tried:?}");
    }
    may
}

/// Files of `count` folders with ten files each.
pub fn tree(dir: &Path, files: usize) {
    for number in 0..files {
        let folder = dir.join(format!("d{}/e{}", number / 100, number / 10 % 10));
        if number % 10 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("f{number}")), format!("content of {number}\n")).unwrap();
    }
}

/// A file that is being written, slowly.
pub struct Writer(File);

impl Writer {
    pub fn create(path: &Path) -> Self {
        Writer(File::create(path).unwrap())
    }

    pub fn append(path: &Path) -> Self {
        Writer(File::options().append(true).open(path).unwrap())
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn file(&self) -> &File {
        &self.0
    }
}

impl Node {
    /// The feed as `/v1/feeds/default` describes it.
    pub fn feed(&self) -> Value {
        self.get("/v1/feeds/default")
    }

    /// Waits for `check` of the feed's description to answer.
    pub fn feed_is<T>(&self, what: &str, check: impl Fn(&Value) -> Option<T>) -> T {
        eventually_within(patience(), what, || {
            let feed = self.try_get("/v1/feeds/default")?;
            check(&feed).ok_or_else(|| feed.to_string())
        })
    }

    /// The reason why a path is held; none when it is not.
    pub fn held(&self, path: &str) -> Option<String> {
        let feed = self.feed();
        let held = feed["held"].as_array().unwrap().iter().find(|held| held["path"] == path)?;
        assert!(held["since"].is_string(), "{held}");
        Some(held["reason"].as_str().unwrap().to_owned())
    }

    /// Waits for a path to be held, and says why it is.
    pub fn wait_held(&self, path: &str) -> String {
        eventually(&format!("{path} is held"), || {
            self.held(path).ok_or_else(|| self.feed().to_string())
        })
    }

    /// How many commits there are.
    pub fn commits(&self) -> u64 {
        self.feed()["seq"].as_u64().unwrap_or(0)
    }

    /// Does something while the daemon stands still: then it sees all of it at once.
    pub fn meanwhile(&self, change: impl FnOnce()) {
        run("kill", &["-STOP", &self.pid().to_string()]);
        eventually("every thread stands still", || {
            let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            let stat = |task: &Path| fs::read_to_string(task.join("stat")).unwrap_or_default();
            let mut stands = tasks.map(|task| stat(&task.unwrap().path()).contains(") T "));
            if stands.all(|stands| stands) { Ok(()) } else { Err(String::new()) }
        });
        change();
        run("kill", &["-CONT", &self.pid().to_string()]);
    }

    /// `depsync COMMAND`; it must succeed. Returns what it printed.
    pub fn tell(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Everything that was there is committed afterwards, or waits for somebody.
    pub fn sync(&self) {
        self.tell(&["sync"]);
    }

    /// Every path that any commit ever had, ours apart.
    pub fn ever(&self) -> Vec<String> {
        if self.commits() == 0 {
            return Vec::new();
        }
        let text = self.git(&["log", "--name-only", "--format=", "-z", "main"]);
        let mut paths: Vec<String> =
            text.split(['\0', '\n']).filter(|path| !path.is_empty()).map(str::to_owned).collect();
        paths.retain(|path| !path.starts_with(".depsync/"));
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The published bytes of a file; none when it is not there.
    pub fn published(&self, path: &str) -> Option<Vec<u8>> {
        let url = format!("{}/v1/feeds/default/files/{path}", self.url());
        let output = crate::world::curl(&["-f", &url]);
        output.status.success().then_some(output.stdout)
    }

    /// Paths and blobs of the head, as git tells them; ours apart.
    pub fn head_files(&self) -> BTreeMap<PathBuf, String> {
        let mut files = BTreeMap::new();
        if self.commits() == 0 {
            return files;
        }
        for line in self.git(&["ls-tree", "-r", "-z", "main"]).split_terminator('\0') {
            let (what, path) = line.split_once('\t').unwrap();
            if !path.starts_with(".depsync/") {
                let blob = what.split(' ').nth(2).unwrap().to_owned();
                files.insert(PathBuf::from(path), blob);
            }
        }
        files
    }

    /// Waits until git finds in the head exactly the files of the folder, with the same content;
    /// for files below the size at which they become objects, and names of UTF-8.
    pub fn wait_published(&self) {
        eventually_within(patience(), "everything is published", || self.compare_published());
    }

    /// See [`Node::wait_published`].
    pub fn compare_published(&self) -> Result<(), String> {
        // Cheap questions first, so that asking does not slow down what is asked about.
        let feed = self.try_get("/v1/feeds/default")?;
        let listed = run("find", &[self.dir.to_str().unwrap(), "!", "-type", "d", "-printf", "x"]);
        if feed["files"].as_u64() != Some(listed.stdout.len() as u64) {
            return Err(format!("of {} files: {feed}", listed.stdout.len()));
        }
        let published = self.head_files();
        let on_disk = contents(&self.dir);
        let is_file = |item: &&Item| !matches!(item, Item::Dir { .. });
        let files = on_disk.values().filter(is_file).count();
        if published.len() != files {
            return Err(format!("{} published of {files}: {}", published.len(), self.feed()));
        }
        let paths: Vec<_> =
            on_disk.iter().filter(|(_, item)| is_file(item)).map(|(path, _)| path).collect();
        let hashed = hash_objects(&self.dir, &paths);
        let differs = paths.iter().zip(hashed).find(|(path, id)| published.get(**path) != Some(id));
        differs.map_or(Ok(()), |(path, _)| Err(format!("{path:?} differs: {}", self.feed())))
    }
}

/// The ids that stock git gives to files.
fn hash_objects(dir: &Path, paths: &[&PathBuf]) -> Vec<String> {
    let list = tempfile::NamedTempFile::new().unwrap();
    let mut text = Vec::new();
    for path in paths {
        text.extend_from_slice(path.as_os_str().as_encoded_bytes());
        text.push(b'\n');
    }
    fs::write(list.path(), text).unwrap();
    let output = Command::new("git")
        .args(["hash-object", "--no-filters", "--stdin-paths"])
        .current_dir(dir)
        .stdin(File::open(list.path()).unwrap())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", "/nonexistent")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

impl World {
    /// Lets a user without rights into the world's own directory, and copies the daemon there.
    pub fn open_to(&self, user: &str) -> PathBuf {
        let own = self.path("");
        let own = own.to_str().unwrap();
        run("chown", &[user, own]);
        run("chmod", &["755", own]);
        let copy = self.path("depsync");
        if !copy.exists() {
            fs::copy(crate::world::DEPSYNC, &copy).unwrap();
        }
        copy
    }
}
