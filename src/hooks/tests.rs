//! Every rule of a run, with small scripts in temporary directories.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::model::{FeedName, Label, Oid, RegionName, RelPath};

/// A deployment directory, a spool and a directory of hooks.
pub(super) struct Place {
    base: TempDir,
    feed: FeedName,
    node: Label,
    region: RegionName,
    stop: AtomicBool,
}

impl Place {
    pub(super) fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for name in ["deploy", "hooks"] {
            fs::create_dir(base.path().join(name)).unwrap();
            set_mode(&base.path().join(name), 0o755);
        }
        Self {
            base,
            feed: "apps".parse().unwrap(),
            node: "hub \"1\"".parse().unwrap(),
            region: "eu-west".parse().unwrap(),
            stop: AtomicBool::new(false),
        }
    }

    pub(super) fn deploy(&self) -> PathBuf {
        self.base.path().join("deploy")
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.base.path().join("hooks")
    }

    fn hooks(&self) -> Hooks {
        Hooks::open(Some(&self.dir()))
    }

    pub(super) fn changes(&self, changes: &[(char, &[u8])]) -> Changes {
        let paths: Vec<_> =
            changes.iter().map(|(status, path)| (*status, RelPath::parse(path).unwrap())).collect();
        let records = paths.iter().map(|(status, path)| (*status, path));
        Changes::write(&self.base.path().join("spool"), records).unwrap()
    }

    pub(super) fn occasion<'a>(&'a self, dir: &'a Path, changes: &'a Changes) -> Occasion<'a> {
        Occasion {
            dir,
            feed: &self.feed,
            node: &self.node,
            region: Some(&self.region),
            commit: Some(Oid::from_bytes([0xab; 20])),
            previous: Some(Oid::from_bytes([1; 20])),
            changes: Some(changes),
            reason: "2 deletions\nwait",
        }
    }

    /// Puts the script in place as `hook`, and runs it.
    fn run(&self, hook: Hook, body: &str) -> Report {
        self.run_with(&self.hooks(), hook, body)
    }

    fn run_with(&self, hooks: &Hooks, hook: Hook, body: &str) -> Report {
        write_script(&self.dir().join(hook.name()), body);
        self.run_present(hooks, hook, &self.changes(&[('A', b"a.war"), ('D', b"b.war")]))
    }

    /// Runs what lies there as `hook`.
    pub(super) fn run_present(&self, hooks: &Hooks, hook: Hook, changes: &Changes) -> Report {
        hooks.run(hook, &self.occasion(&self.deploy(), changes), &self.stop)
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Written by another process: a test that starts one at this moment would inherit our open file,
/// and the kernel does not execute what is open for writing.
fn write_script(path: &Path, body: &str) {
    let text =
        if body.starts_with("#!") { body.to_owned() } else { format!("#!/bin/sh\n{body}\n") };
    let script = r#"printf %s "$2" >"$1.new" && chmod 755 "$1.new" && mv -f "$1.new" "$1""#;
    let mut command = Command::new("sh");
    assert!(command.args(["-c", script, "sh"]).arg(path).arg(text).status().unwrap().success());
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} in 30 s");
        thread::park_timeout(Duration::from_millis(5));
    }
}

fn is_alive(pid: &str) -> bool {
    // In a container nobody may reap an orphan: a zombie is dead.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

#[test]
fn exit_codes_mean_what_the_contract_says() {
    let place = Place::new();
    for (hook, body, outcome) in [
        (Hook::PreCommit, "exit 0", Outcome::Passed),
        (Hook::PreCommit, "exit 75", Outcome::Retry),
        (Hook::PreCommit, "exit 3", Outcome::Vetoed { code: 3, paths: vec![] }),
        (Hook::PreCheckout, "exit 1", Outcome::Vetoed { code: 1, paths: vec![] }),
        (Hook::PostCheckout, "exit 75", Outcome::Retry),
        (Hook::PostCheckout, "exit 4", Outcome::Failed("it exited with code 4".to_owned())),
        (Hook::OnHeld, "kill -9 $$", Outcome::Failed("it was ended by signal 9".to_owned())),
        (Hook::PreCommit, "kill -9 $$", Outcome::Failed("it was ended by signal 9".to_owned())),
    ] {
        let report = place.run(hook, body);
        assert_eq!(report.outcome, outcome, "{hook}: {body}");
        assert_eq!(report.output, Output::default());
    }
    assert_eq!(place.run(Hook::PostCommit, "exit 0").outcome.end(), End::Passed);
}

#[test]
fn without_a_hook_or_a_directory_the_work_goes_on() {
    let place = Place::new();
    let changes = place.changes(&[]);
    for hooks in [place.hooks(), Hooks::open(None)] {
        let report = place.run_present(&hooks, Hook::PreCommit, &changes);
        assert_eq!(report.outcome, Outcome::Absent);
        assert_eq!(hooks.list(), []);
    }
}

#[test]
fn a_hook_that_others_could_have_written_is_refused() {
    let place = Place::new();
    let path = place.dir().join("pre-commit");
    let state = || place.run_present(&place.hooks(), Hook::PreCommit, &place.changes(&[])).outcome;
    write_script(&path, "exit 0");
    for (mode, expected) in [
        (0o755, Outcome::Passed),
        (0o644, Outcome::Refused(Refusal::NotExecutable(path.clone()))),
        (0o775, Outcome::Refused(Refusal::WritableByOthers(path.clone()))),
        (0o757, Outcome::Refused(Refusal::WritableByOthers(path.clone()))),
        (0o700, Outcome::Passed),
    ] {
        set_mode(&path, mode);
        assert_eq!(state(), expected, "{mode:o}");
    }
    for mode in [0o775, 0o777, 0o1777] {
        set_mode(&place.dir(), mode);
        assert_eq!(state(), Outcome::Refused(Refusal::WritableByOthers(place.dir())), "{mode:o}");
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(state(), Outcome::Refused(_)), "somebody may have taken it away");
    set_mode(&place.dir(), 0o755);
    assert_eq!(state(), Outcome::Absent);
    fs::create_dir(&path).unwrap();
    assert_eq!(state(), Outcome::Refused(Refusal::NotAFile(path.clone())));
    assert_eq!(place.hooks().list(), [(Hook::PreCommit, Err(Refusal::NotAFile(path)))]);
    fs::remove_dir_all(place.dir()).unwrap();
    assert!(matches!(state(), Outcome::Refused(Refusal::NoDirectory { .. })));
}

#[test]
fn another_users_hook_is_refused() {
    let place = Place::new();
    let path = place.dir().join("pre-commit");
    write_script(&path, "exit 0");
    // Only root can give a file away; as another user there is nothing to see.
    if std::os::unix::fs::chown(&path, Some(12345), None).is_ok() {
        let refusal = Refusal::ForeignOwner { path, owner: 12345 };
        assert_eq!(place.hooks().find(Hook::PreCommit), Err(refusal));
    }
}

#[test]
fn a_link_is_as_good_as_what_it_leads_to() {
    let place = Place::new();
    let shared = place.base.path().join("shared");
    fs::create_dir(&shared).unwrap();
    set_mode(&shared, 0o755);
    write_script(&shared.join("check"), "exit 0");
    let link = place.dir().join("pre-commit");
    symlink(shared.join("check"), &link).unwrap();
    assert_eq!(place.hooks().find(Hook::PreCommit), Ok(Some(link)));
    set_mode(&shared, 0o777);
    assert!(matches!(place.hooks().find(Hook::PreCommit), Err(Refusal::WritableByOthers(_))));
    fs::remove_dir_all(shared).unwrap();
    assert!(matches!(place.hooks().find(Hook::PreCommit), Err(Refusal::Unreadable { .. })));
}

#[test]
fn the_environment_is_exactly_the_documented_one() {
    let place = Place::new();
    let changes = place.changes(&[]);
    write_script(&place.dir().join("post-commit"), "#!/bin/cat /proc/self/environ\n");
    let environment = |occasion: &Occasion<'_>| -> Vec<String> {
        let report = place.hooks().run(Hook::PostCommit, occasion, &place.stop);
        assert_eq!(report.outcome, Outcome::Passed);
        let text = report.output.text.split("#!").next().unwrap();
        let mut lines: Vec<_> =
            text.split(char::REPLACEMENT_CHARACTER).map(str::to_owned).collect();
        lines.retain(|line| !line.is_empty());
        lines.sort();
        lines
    };
    let deploy = place.deploy();
    let full = place.occasion(&deploy, &changes);
    let expected = [
        format!("DEPSYNC_CHANGES={}", changes.path().display()),
        format!("DEPSYNC_COMMIT={}", "ab".repeat(20)),
        "DEPSYNC_FEED=apps".to_owned(),
        "DEPSYNC_NODE=hub \"1\"".to_owned(),
        format!("DEPSYNC_PREVIOUS={}", "01".repeat(20)),
        "DEPSYNC_REASON=2 deletions wait".to_owned(),
        "DEPSYNC_REGION=eu-west".to_owned(),
        "LANG=C.UTF-8".to_owned(),
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
    ];
    assert_eq!(environment(&full), expected);
    let bare = Occasion {
        region: None,
        commit: None,
        previous: None,
        changes: None,
        reason: "\0",
        ..full
    };
    let empty = environment(&bare);
    for line in
        ["DEPSYNC_CHANGES=/dev/null", "DEPSYNC_COMMIT=", "DEPSYNC_PREVIOUS=", "DEPSYNC_REGION="]
    {
        assert!(empty.contains(&line.to_owned()), "{line} in {empty:?}");
    }
}

#[test]
fn it_runs_in_the_deployment_directory_with_nothing_of_ours() {
    let place = Place::new();
    let ours = File::open(place.dir()).unwrap();
    let body = r#"pwd -P; read -r line || echo "no input"; for fd in /proc/$$/fd/*; do readlink "$fd" || :; done"#;
    let report = place.run(Hook::PostCheckout, body);
    drop(ours);
    let deploy = place.deploy().canonicalize().unwrap();
    let mut lines = report.output.text.lines();
    assert_eq!(lines.next(), deploy.to_str());
    assert_eq!(lines.next(), Some("no input"));
    assert_eq!(lines.next(), Some("/dev/null"), "{}", report.output.text);
    let dir = place.dir().canonicalize().unwrap();
    assert!(lines.all(|line| Path::new(line) != dir), "{}", report.output.text);
}

#[test]
fn the_changes_file_takes_any_name() {
    let place = Place::new();
    let changes = place.changes(&[('A', b"new\nline"), ('M', b"\xff\xfe/x"), ('D', b"-rf *")]);
    let expected = b"A\0new\nline\0M\0\xff\xfe/x\0D\0-rf *\0";
    assert_eq!(fs::read(changes.path()).unwrap(), expected);
    write_script(&place.dir().join("post-commit"), "cp \"$DEPSYNC_CHANGES\" seen");
    let report = place.run_present(&place.hooks(), Hook::PostCommit, &changes);
    assert_eq!(report.outcome, Outcome::Passed, "{}", report.output.text);
    assert_eq!(fs::read(place.deploy().join("seen")).unwrap(), expected);
    let path = changes.path().to_owned();
    drop(changes);
    assert!(!path.exists());
}

#[test]
fn a_pre_commit_veto_names_paths() {
    let place = Place::new();
    let names = |hook, body: &str| {
        let report = place.run(hook, body);
        let Outcome::Vetoed { code: 1, paths } = report.outcome else { panic!("{report:?}") };
        (paths.iter().map(ToString::to_string).collect::<Vec<_>>(), report.output.text)
    };
    let (paths, text) = names(Hook::PreCommit, r"echo why >&2; printf 'b.war\0a.war\0'; exit 1");
    assert_eq!((paths.join(" "), text.as_str()), ("b.war a.war".to_owned(), "why\n"));
    // What is no list of the commit's paths refuses all of it.
    for body in [
        "echo a.war; exit 1",
        r"printf 'a.war\0b.war'; exit 1",
        r"printf 'a.war\0other\0'; exit 1",
        r"printf 'checking\na.war\0'; exit 1",
        r"printf 'a.war\0../b\0'; exit 1",
        r"printf 'a.war\0\0'; exit 1",
    ] {
        assert!(names(Hook::PreCommit, body).0.is_empty(), "{body}");
    }
    let (paths, text) = names(Hook::PreCommit, r"printf 'a.war\0other\0'; exit 1");
    assert!(paths.is_empty() && text.contains("not a path of the commit"), "{text}");
    assert!(names(Hook::PreCheckout, r"printf 'a.war\0'; exit 1").0.is_empty());
}

#[test]
fn output_is_bounded_and_harmless() {
    let place = Place::new();
    let report = place.run(Hook::PostCommit, "head -c 3000000 /dev/zero | tr '\\0' x; echo e >&2");
    assert_eq!(report.outcome, Outcome::Passed);
    assert_eq!(report.output.text, "x".repeat(64 * 1024) + "e\n");
    assert!(report.output.truncated);
    let report = place.run(Hook::PostCommit, r"printf '\033[2Jbad \377 tab\t\n'");
    assert_eq!(report.output.text, "\u{fffd}[2Jbad \u{fffd} tab\t\n");
    assert!(!report.output.truncated);
}

#[test]
fn what_a_hook_leaves_running_is_left_alone_and_not_waited_for() {
    let place = Place::new();
    let report = place.run(Hook::PostCheckout, "sleep 600 & echo $!");
    assert_eq!(report.outcome, Outcome::Passed);
    assert!(report.took < Duration::from_secs(60));
    let pid = report.output.text.trim();
    assert!(is_alive(pid));
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
}

/// A hook that ignores the polite request, as does what it started.
const HANG: &str = "trap '' TERM\nsleep 600 &\necho $! >pid.new\nmv pid.new pid\nwait\nsleep 600";

#[test]
fn a_time_out_kills_the_whole_group() {
    let place = Place::new();
    let pid_file = place.deploy().join("pid");
    let grace = Duration::from_millis(50);
    // On a busy machine the shell may not come to its second line in half a second.
    let timeouts = [500, 2000, 10_000, 30_000].map(Duration::from_millis);
    let pid = timeouts.into_iter().find_map(|timeout| {
        let hooks = place.hooks().with_limits(Limits { timeout, grace, ..Limits::default() });
        let report = place.run_with(&hooks, Hook::PreCheckout, HANG);
        assert_eq!(report.outcome, Outcome::TimedOut);
        assert!(report.took >= timeout + grace);
        fs::read_to_string(&pid_file).ok()
    });
    let pid = pid.unwrap();
    wait_until("end of the grandchild", || !is_alive(pid.trim()));
}

/// Starts the hook, stops the daemon once the hook has made the file `pid`, and waits.
fn run_and_stop(place: &Place, limits: Limits, body: &str) -> Report {
    let hooks = place.hooks().with_limits(limits);
    thread::scope(|scope| {
        let run = scope.spawn(|| place.run_with(&hooks, Hook::PreCommit, body));
        wait_until("start of the hook", || place.deploy().join("pid").exists());
        place.stop.store(true, Ordering::Relaxed);
        run.join().unwrap()
    })
}

#[test]
fn stopping_the_daemon_ends_the_run() {
    let place = Place::new();
    let limits = Limits { grace: Duration::from_millis(50), ..Limits::default() };
    let report = run_and_stop(&place, limits, HANG);
    assert_eq!((&report.outcome, report.outcome.end()), (&Outcome::Stopped, End::Retry));
    let pid = fs::read_to_string(place.deploy().join("pid")).unwrap();
    wait_until("end of the grandchild", || !is_alive(pid.trim()));
}

#[test]
fn a_polite_hook_may_clean_up() {
    let place = Place::new();
    let limits = Limits { grace: Duration::from_secs(600), ..Limits::default() };
    let body = "trap 'echo cleaned; exit 0' TERM\n: >pid\nwhile :; do sleep 600 & wait; done";
    let report = run_and_stop(&place, limits, body);
    assert_eq!((report.outcome, report.output.text.as_str()), (Outcome::Stopped, "cleaned\n"));
    assert!(report.took < limits.grace, "it need not use all its grace");
}

#[test]
fn what_cannot_be_started_is_a_failure_that_says_so() {
    let place = Place::new();
    let report = place.run(Hook::PreCommit, "#!/nonexistent/interpreter\n");
    let Outcome::Failed(why) = &report.outcome else { panic!("{report:?}") };
    assert!(why.contains("pre-commit") && why.contains("No such file"), "{why}");
    write_script(&place.dir().join("pre-commit"), "exit 0");
    fs::remove_dir(place.deploy()).unwrap();
    let report = place.run_present(&place.hooks(), Hook::PreCommit, &place.changes(&[]));
    assert!(matches!(report.outcome, Outcome::Failed(_)), "{report:?}");
}

#[test]
fn a_hook_that_somebody_is_writing_is_tried_again() {
    let place = Place::new();
    let path = place.dir().join("pre-commit");
    write_script(&path, "exit 0");
    let writer = File::options().append(true).open(&path).unwrap();
    let report = place.run_present(&place.hooks(), Hook::PreCommit, &place.changes(&[]));
    drop(writer);
    assert_eq!(report.outcome, Outcome::Retry);
    assert!(report.output.text.contains("busy"), "{}", report.output.text);
}

/// Drives a lane with real runs: feeds it by `news`, until `last` is concluded.
fn attend(place: &Place, hook: Hook, last: u32, news: impl FnOnce(&Lane<u32>)) -> Vec<(u32, bool)> {
    let (lane, concluded) = (Lane::<u32>::default(), Mutex::new(Vec::new()));
    let backoff = Backoff { first: Duration::from_millis(1), ..Backoff::default() };
    let (hooks, changes, dir) = (place.hooks(), place.changes(&[]), place.deploy());
    thread::scope(|scope| {
        scope.spawn(|| {
            lane.attend(
                Schedule::new(backoff, None),
                |run, stop| {
                    let reason = run.key.to_string();
                    let occasion = Occasion { reason: &reason, ..place.occasion(&dir, &changes) };
                    hooks.run(hook, &occasion, stop).outcome.end()
                },
                |key, passed| concluded.lock().unwrap().push((*key, passed)),
            );
        });
        news(&lane);
        let done = || concluded.lock().unwrap().last().is_some_and(|(key, _)| *key == last);
        wait_until("conclusion", done);
        lane.stop();
    });
    concluded.into_inner().unwrap()
}

#[test]
fn a_lane_retries_three_times_and_then_succeeds() {
    let place = Place::new();
    let body = "echo x >>runs; [ $(wc -l <runs) -ge 4 ] || exit 75";
    write_script(&place.dir().join("post-checkout"), body);
    let concluded = attend(&place, Hook::PostCheckout, 1, |lane| lane.want(1));
    assert_eq!(concluded, [(1, true)]);
    assert_eq!(fs::read_to_string(place.deploy().join("runs")).unwrap(), "x\n".repeat(4));
}

#[test]
fn a_burst_of_fifty_runs_for_the_last_one() {
    let place = Place::new();
    let body = "echo $DEPSYNC_REASON >>runs; while [ ! -e go ]; do sleep 0.01; done";
    write_script(&place.dir().join("post-commit"), body);
    let runs = place.deploy().join("runs");
    let concluded = attend(&place, Hook::PostCommit, 50, |lane| {
        lane.want(1);
        wait_until("first run", || runs.exists());
        (2..=50).for_each(|commit| lane.want(commit));
        fs::write(place.deploy().join("go"), "").unwrap();
    });
    assert_eq!(concluded, [(1, true), (50, true)]);
    assert_eq!(fs::read_to_string(runs).unwrap(), "1\n50\n");
}
