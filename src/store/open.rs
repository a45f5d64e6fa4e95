//! Opening a store: makes what is not there, and sweeps what a kill has left.
//!
//! The daemon's own lock proves that nobody else is here, so every lock and temporary file is stale.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    Class, Error, Keys, Result, Store,
    arrived::Arrived,
    check::DAMAGED,
    db::Db,
    durable,
    log::Line,
    object_writer::PARTIAL,
    objects::object_path,
    pack::TEMPORARY,
    public::Public,
    refs,
    retain::Fresh,
    send::Building,
    send_delta::{ENDING as DELTA, sweep_cuts},
};
use crate::{model::Oid, sys};

/// No maintenance but ours, and nothing that depends on the machine.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n\
                      [gc]\n\tauto = 0\n";
const FOLDERS: [&str; 6] = [
    "git/objects/pack",
    "git/objects/info",
    "git/refs/heads",
    "git/refs/depsync",
    "git/lfs/objects",
    "spool",
];

impl Store {
    /// Opens, or makes, the repository below `<state>/feeds/<feed>`.
    ///
    /// # Errors
    /// When it cannot be read or written, or the head is damaged.
    pub fn open(dir: &Path) -> Result<Store> {
        let (store, head) = Store::open_headless(dir)?;
        if let Some(head) = head {
            *store.line() = Line::new(Some(store.db.commit(head)?));
        }
        Ok(store)
    }

    /// As `open`, for a mirror: where the head cannot be read there is none, and it is fetched anew.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn open_mirror(dir: &Path) -> Result<Store> {
        let (store, head) = Store::open_headless(dir)?;
        match head.map(|head| store.db.commit(head)) {
            None => {}
            Some(Ok(head)) => *store.line() = Line::new(Some(head)),
            Some(Err(Error::Missing { .. } | Error::Damaged { .. })) => {
                store.alarms.fetch_add(1, Relaxed);
            }
            Some(Err(e)) => return Err(e),
        }
        Ok(store)
    }

    /// With no line yet, and the id of the head.
    fn open_headless(dir: &Path) -> Result<(Store, Option<Oid>)> {
        let (git, spool) = (dir.join("git"), dir.join("spool"));
        for folder in FOLDERS {
            durable::make_folder(&dir.join(folder))?;
        }
        complete_head(dir)?;
        sweep(dir)?;
        for (name, text) in [("config", CONFIG), ("HEAD", "ref: refs/heads/main\n")] {
            if !git.join(name).exists() {
                drop(durable::replace(&git.join(name), text.as_bytes())?);
            }
        }
        let db = Db::open(&git.join("objects"))?;
        let head = refs::read(&git, refs::MAIN)?;
        let store = Store {
            git,
            spool,
            db,
            line: Line::default().into(),
            publishing: ().into(),
            replaced: Vec::new().into(),
            folding: ().into(),
            fresh: Fresh::default(),
            public: Public::default(),
            sound: Arc::default(),
            alarms: AtomicU64::new(0),
            min_free: None,
            totals: None.into(),
            building: Building::default(),
            keys: Keys::default(),
        };
        Ok((store, head))
    }
}

/// How git's locks end, and how packs do.
const LOCK: &str = ".lock";
const PACK: &str = ".pack";
/// Part of an object that nobody came back for.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// Makes the index of the head's own pack again, where a power cut left the pack alone. Where that
/// cannot be done nothing is opened, and nothing swept: it is all that there is of the head. A damaged
/// one is put away as others are.
fn complete_head(dir: &Path) -> Result<()> {
    let git = dir.join("git");
    // What a reference says that cannot be read is told where the head is looked for.
    let Ok(Some(head)) = refs::read(&git, refs::MAIN) else { return Ok(()) };
    let pack = git.join(format!("objects/pack/pack-{head}.pack"));
    let index = pack.with_extension("idx");
    if index.exists() || !pack.exists() {
        return Ok(());
    }
    let mut file = File::open(&pack).map_err(Error::io("open", &pack))?;
    let spool = dir.join("spool");
    let again = match Arrived::take(&mut file, &spool) {
        Err(error) if error.class() == Class::Corrupt => {
            return durable::rename(&pack, &spool.join(format!("{DAMAGED}pack-{head}.pack")));
        }
        again => again?,
    };
    let made = again.files().1;
    durable::sync_all(&[&pack, &made])?;
    durable::rename(&made, &index)?;
    durable::sync_folder(&git.join("objects/pack"))
}

fn sweep(dir: &Path) -> Result<()> {
    let git = dir.join("git");
    for folder in ["", "refs/heads", "refs/depsync", "objects/pack"] {
        remove_where(&git.join(folder), |path| name_of(path).ends_with(LOCK))?;
    }
    remove_where(&git.join("objects/pack"), |path| {
        name_of(path).starts_with("tmp_") || is_half_a_pack(path)
    })?;
    remove_where(&dir.join("spool"), |path| {
        let name = name_of(path);
        // Packs and deltas to send are made again.
        (name.starts_with(DAMAGED) && is_forgotten(path))
            || name.starts_with(TEMPORARY)
            || (name.ends_with(PACK) && !name.starts_with(DAMAGED))
            || name.ends_with(DELTA)
            || is_useless_part(&git, path)
    })?;
    sweep_cuts(&git)
}

/// A kill between moving in the pack and its index.
fn is_half_a_pack(path: &Path) -> bool {
    let other = match path.extension().and_then(|ending| ending.to_str()) {
        Some("pack") => "idx",
        Some("idx") => "pack",
        _ => return false,
    };
    !path.with_extension(other).exists()
}

/// An object that has arrived needs no part of it.
fn is_useless_part(git: &Path, path: &Path) -> bool {
    let Some(id) = name_of(path).strip_suffix(PARTIAL).and_then(|id| id.parse().ok()) else {
        return false;
    };
    object_path(git, &id).exists() || is_forgotten(path)
}

fn is_forgotten(path: &Path) -> bool {
    let changed = path.metadata().and_then(|about| about.modified()).ok();
    let age = changed.and_then(|changed| sys::now().duration_since(changed).ok());
    age.is_some_and(|age| age > FORGOTTEN)
}

/// Names that are not UTF-8 are not ours.
fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn remove_where(folder: &Path, stale: impl Fn(&Path) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if !stale(&path) {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(Error::io("remove", &path))?,
        }
    }
    Ok(())
}
