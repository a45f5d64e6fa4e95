//! Random changes against a plain map of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What a feed holds, the naive way.
type Model = BTreeMap<RelPath, Entry>;

#[derive(Debug, Clone)]
enum Op {
    File(RelPath, u8, u32),
    Link(RelPath, u8),
    Folder(RelPath, u32),
    Remove(RelPath),
    Commit,
}

fn any_path() -> impl Strategy<Value = RelPath> {
    let name = prop::sample::select(vec!["a", "b", "a.b", "a-"]);
    prop::collection::vec(name, 1..4).prop_map(|names| path(names.join("/")))
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any_path(), 0..4u8, 0o640..0o643u32).prop_map(|(p, c, m)| Op::File(p, c, m)),
        1 => (any_path(), 0..3u8).prop_map(|(p, c)| Op::Link(p, c)),
        2 => (any_path(), 0o750..0o752u32).prop_map(|(p, m)| Op::Folder(p, m)),
        3 => any_path().prop_map(Op::Remove),
        2 => Just(Op::Commit),
    ]
}

fn clear(model: &mut Model, at: &RelPath) {
    model.retain(|path, _| !path.is_within(at));
}

fn apply(model: &mut Model, at: &RelPath, entry: Entry) {
    if !entry.kind.is_dir() {
        clear(model, at);
    }
    model.insert(at.clone(), entry);
}

/// What was stated to be a file is none when, in the end, something lies below it.
fn settle(model: &mut Model) {
    let paths: Vec<_> = model.keys().cloned().collect();
    let holds = |at: &RelPath| paths.iter().any(|path| path != at && path.is_within(at));
    model.retain(|path, entry| entry.kind.is_dir() || !holds(path));
}

fn with_folders(model: &Model) -> Model {
    let mut whole = model.clone();
    for path in model.keys() {
        for above in std::iter::successors(path.parent(), RelPath::parent) {
            if !above.is_root() {
                let folder = Entry { kind: Kind::Dir, meta: Meta::default() };
                whole.entry(above).or_insert(folder);
            }
        }
    }
    whole
}

fn naive_diff(from: &Model, to: &Model) -> Vec<Change> {
    let mut paths: Vec<_> = from.keys().chain(to.keys()).cloned().collect();
    paths.sort();
    paths.dedup();
    let change = |path: RelPath| {
        let (before, after) = (from.get(&path).cloned(), to.get(&path).cloned());
        Change { path, before, after }
    };
    paths.into_iter().map(change).filter(|change| change.before != change.after).collect()
}

fn as_model(store: &Store, commit: Oid) -> Model {
    let mut model = Model::new();
    store.walk(commit, &mut |path, entry| drop(model.insert(path, entry))).unwrap();
    model
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changes_give_the_tree_of_a_naive_rebuild(ops in prop::collection::vec(any_op(), 1..60)) {
        let world = World::new();
        let mut model = Model::new();
        let mut published: Vec<(Oid, Model)> = Vec::new();
        let mut draft = world.store.draft().unwrap();
        for op in ops.into_iter().chain([Op::Commit]) {
            match op {
                Op::File(at, content, mode) => {
                    let blob = draft.add_blob(&[content]).unwrap();
                    let entry = Entry { kind: Kind::File { blob, executable: mode & 1 > 0 }, meta: meta(mode) };
                    draft.put(&at, entry.clone());
                    apply(&mut model, &at, entry);
                }
                Op::Link(at, target) => {
                    let blob = draft.add_blob(&[target, b'l']).unwrap();
                    let entry = Entry { kind: Kind::Symlink { blob }, meta: Meta::default() };
                    draft.put(&at, entry.clone());
                    apply(&mut model, &at, entry);
                }
                Op::Folder(at, mode) => {
                    draft.put(&at, folder(mode));
                    apply(&mut model, &at, folder(mode));
                }
                Op::Remove(at) => {
                    draft.remove(&at);
                    clear(&mut model, &at);
                }
                Op::Commit => {
                    settle(&mut model);
                    let whole = with_folders(&model);
                    let before = published.last().map_or(Model::new(), |(_, model)| model.clone());
                    let made = std::mem::replace(&mut draft, world.store.draft().unwrap());
                    if let Some(prepared) = made.finish(&by(1)).unwrap() {
                        prop_assert_eq!(prepared.changes(&world.store).unwrap(), naive_diff(&before, &whole));
                        let head = world.store.publish(prepared).unwrap().head;
                        prop_assert_eq!(&as_model(&world.store, head.commit), &whole);
                        published.push((head.commit, whole));
                    } else {
                        prop_assert_eq!(naive_diff(&before, &whole), vec![]);
                    }
                    draft = world.store.draft().unwrap();
                }
            }
        }
        drop(draft);
        for (commit, model) in &published {
            for (other, from) in &published {
                prop_assert_eq!(world.store.diff(Some(*other), *commit).unwrap(), naive_diff(from, model));
            }
            for (path, entry) in model {
                prop_assert_eq!(world.store.entry(*commit, path).unwrap(), Some(entry.clone()));
            }
        }
    }
}
