//! What lies in a folder, read independently of the code under test, and how two folders differ.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::Read,
    os::unix::{
        ffi::OsStringExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::world::eventually;

/// One entry: its type with its content, its permission bits, and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    File { sha256: String, mode: u32, mtime: (i64, i64) },
    Link(PathBuf),
    Dir { mode: u32 },
}

/// All that lies below `root`, but for our own hidden temporaries.
pub fn contents(root: &Path) -> BTreeMap<PathBuf, Item> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        // A folder may go while it is read: the comparison tells.
        for entry in fs::read_dir(root.join(&dir)).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            if entry.file_name().into_vec().starts_with(b".depsync-tmp-") {
                continue;
            }
            let path = dir.join(entry.file_name());
            let Some(item) = item(&root.join(&path)) else { continue };
            if matches!(item, Item::Dir { .. }) {
                todo.push(path.clone());
            }
            found.insert(path, item);
        }
    }
    found
}

fn item(path: &Path) -> Option<Item> {
    let metadata = fs::symlink_metadata(path).ok()?;
    let mode = metadata.permissions().mode() & 0o7777;
    Some(match metadata.file_type() {
        kind if kind.is_symlink() => Item::Link(fs::read_link(path).ok()?),
        kind if kind.is_dir() => Item::Dir { mode },
        _ => {
            let sha256 = sha256(path)?;
            Item::File { sha256, mode, mtime: (metadata.mtime(), metadata.mtime_nsec()) }
        }
    })
}

/// SHA-256 of a file, in hex.
pub fn sha256(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let mut hasher = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).ok()? {
            0 => break,
            count => hasher.update(&block[..count]),
        }
    }
    Some(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Says how `mirror` differs from `primary`; equal folders give `Ok`.
pub fn compare(primary: &Path, mirror: &Path) -> Result<(), String> {
    let (want, have) = (contents(primary), contents(mirror));
    let mut lines = Vec::new();
    for path in want.keys().chain(have.keys().filter(|path| !want.contains_key(*path))) {
        let (a, b) = (want.get(path), have.get(path));
        if a != b {
            lines.push(format!("{path:?}: {a:?} / {b:?}"));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    let count = lines.len();
    lines.truncate(10);
    Err(format!("{count} differences:\n{}", lines.join("\n")))
}

/// Waits until every mirror is equal to the primary's folder.
pub fn wait_equal(primary: &Path, mirrors: &[&Path]) {
    for mirror in mirrors {
        eventually(&format!("{} is equal", mirror.display()), || compare(primary, mirror));
    }
}

/// A name of raw bytes.
pub fn raw(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}
