//! Stock git reads what the store writes.

use super::*;
use crate::model::Oid;

fn odd_names(draft: &mut Draft<'_>) {
    for name in [b"a b".as_slice(), b"new\nline", b"\xff\xfe", b"\"q\"", b"=", &[b'n'; 255]] {
        put_file(draft, name, name);
        put_file(draft, [name, b"/x"].concat(), b"below: makes the name a folder");
        put_file(draft, [b"folder/", name].concat(), name);
    }
}

#[test]
fn git_finds_no_fault_in_a_history() {
    let world = World::new();
    world.put(&[("a", "1"), ("b/c", "2"), ("b.txt", "3"), ("b/d/e", "4")]);
    world.commit(odd_names);
    world.commit(|draft| {
        let blob = draft.add_blob(b"../a").unwrap();
        draft.put(&path("b/link"), Entry { kind: Kind::Symlink { blob }, meta: Meta::default() });
        let blob = draft.add_blob(b"#!").unwrap();
        let kind = Kind::File { blob, executable: true };
        draft.put(&path("bin/run"), Entry { kind, meta: meta(0o755) });
        draft.put(&path("empty/inner"), folder(0o2750));
        draft.remove(&path("b/d"));
    });
    assert_eq!(world.git(&["fsck", "--strict", "--full"]), "");
    let log = world.git(&["log", "--format=%H %an %s", "main"]);
    let ours = world.store.log(world.head().commit, 10).unwrap();
    let line = |c: &Commit| format!("{} {} {}", c.id, c.author, c.subject);
    let ours: Vec<_> = ours.iter().map(line).collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), ours);
    for index in std::fs::read_dir(world.dir.path().join("git/objects/pack")).unwrap() {
        let index = index.unwrap().path();
        if index.extension().is_some_and(|ending| ending == "idx") {
            world.git(&["verify-pack", index.to_str().unwrap()]);
        }
    }
}

#[test]
fn git_lists_the_same_tree() {
    let world = World::new();
    world.commit(odd_names);
    world.put(&[("z/y/x", "1"), ("z.y", "2"), ("z-y", "3"), ("z/y.x", "4")]);
    let mut ours = Vec::new();
    let visit = &mut |at: RelPath, entry: Entry| {
        if let Kind::File { blob, .. } = entry.kind {
            ours.push(format!("{blob} {}", String::from_utf8_lossy(at.as_bytes())));
        }
    };
    world.store.walk(world.head().commit, visit).unwrap();
    let gits = world.git(&["ls-tree", "-r", "-z", "main"]);
    let lines = gits.split_terminator('\0').filter(|line| !line.contains("\t.depsync/"));
    let mut gits: Vec<_> =
        lines.map(|line| line["100644 blob ".len()..].replace('\t', " ")).collect();
    gits.sort();
    ours.sort();
    assert_eq!(ours, gits);
}

#[test]
fn git_sees_the_same_difference() {
    let world = World::new();
    world.put(&[("a/1", "x"), ("a/2", "x"), ("a.b", "x"), ("c", "x"), ("t/f", "x"), ("u", "x")]);
    let from = world.head().commit;
    world.commit(|draft| {
        put_file(draft, "a/2", b"other");
        put_file(draft, "a/3", b"new");
        put_file(draft, "u/was/file", b"new");
        draft.remove(&path("t"));
        put_file(draft, "t", b"was a folder");
        draft.remove(&path("c"));
    });
    let to = world.head().commit;
    let mut ours = world.store.diff(Some(from), to).unwrap();
    assert!(ours.is_sorted_by(|a, b| a.path < b.path));
    let side = |e: &Option<Entry>| e.as_ref().is_some_and(|entry| !entry.kind.is_dir());
    let mut lines = Vec::new();
    ours.retain(|change| side(&change.before) || side(&change.after));
    for change in &ours {
        let status = match (side(&change.before), side(&change.after)) {
            (true, true) => 'M',
            (true, false) => 'D',
            _ => 'A',
        };
        lines.push(format!("{status}\t{}", change.path));
    }
    let (from, to) = (from.to_string(), to.to_string());
    let gits = world.git(&["diff", "--no-renames", "--name-status", &from, &to]);
    let mut gits: Vec<_> = gits.lines().filter(|line| !line.contains(".depsync")).collect();
    gits.sort_by_key(|line| &line[2..]);
    assert_eq!(lines, gits);
}

#[test]
fn a_large_import_goes_through_a_file() {
    let world = World::new();
    let mut encoder = Encoder::default();
    let published = world.commit(|draft| {
        for n in 0..600 {
            let blob = draft.add_packed(&encoder.blob(&noise(n, 20_000))).unwrap();
            let kind = Kind::File { blob, executable: false };
            draft.put(&path(format!("{}/{n}", n % 7)), Entry { kind, meta: meta(0o644) });
        }
    });
    assert!(published.pack.is_none());
    assert_eq!(world.git(&["fsck", "--strict", "--full"]), "");
    assert_eq!(world.store.totals(published.head.commit).unwrap(), (600, 600 * 20_000));
    let blob: Oid = world.git(&["rev-parse", "main:3/10"]).trim().parse().unwrap();
    assert_eq!(world.store.read_blob(blob).unwrap(), noise(10, 20_000));
}
