//! Deltas to send: how a mirror makes one object out of another that it has.
//!
//! Each is made once, however many ask, from the cuts that were kept when the objects came in, and
//! stays in `spool/` for a while; that one is not worth it stays known as an empty file. The same
//! pair always gives the same bytes, so a transfer resumes even after its delta was made again. Cuts
//! lie in `cuts/` beside `git/`, as objects do: a cache, made anew where they are missing or damaged.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{
    Error, Result, Store,
    chunks::Cuts,
    delta::{self, Header},
    objects::shelf,
    pack,
    recipe::{Recipe, Side},
};
use crate::model::ObjectId;

/// Most bytes of deltas in `spool/`: those of a release with many artifacts, for mirrors that come
/// within the hour.
const KEPT: u64 = 1 << 30;

/// How their names end.
pub(super) const ENDING: &str = ".delta";

/// A delta ready to be served, on disk. It may be dropped while nobody has it open: then ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The CRC-32 at its end, part of its `ETag`.
    pub checksum: u32,
}

impl DeltaFile {
    /// None when there is no such file. An empty one says that there is nothing to send.
    fn at(path: &Path) -> Result<Option<Self>> {
        let file = match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", path))?,
        };
        let mut checksum = [0; 4];
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        if size > 0 {
            let at = size.saturating_sub(4);
            file.read_exact_at(&mut checksum, at).map_err(Error::io("read", path))?;
        }
        let checksum = u32::from_le_bytes(checksum);
        Ok(Some(Self { path: path.to_owned(), size, checksum }))
    }
}

impl Store {
    /// The delta that makes `result` out of `base`. None when one of them is not here, or when it
    /// would save less than a fifth.
    ///
    /// # Errors
    /// When the objects cannot be read or `spool/` not written.
    pub fn delta(&self, base: &ObjectId, result: &ObjectId) -> Result<Option<DeltaFile>> {
        let name = format!("{base}-{result}{ENDING}");
        let path = self.spool.join(&name);
        let _turn = self.building.turn(&name);
        let known = match DeltaFile::at(&path)? {
            None => self.make_delta(base, result, &path)?,
            known => known,
        };
        Ok(known.filter(|delta| delta.size > 0))
    }

    fn make_delta(
        &self,
        base: &ObjectId,
        result: &ObjectId,
        path: &Path,
    ) -> Result<Option<DeltaFile>> {
        let (Some(old), Some(new)) = (self.open_object(base)?, self.open_object(result)?) else {
            return Ok(None);
        };
        let (old_cuts, new_cuts) = (self.cuts(base, &old)?, self.cuts(result, &new)?);
        let old = Side { file: &old, cuts: &old_cuts };
        let side = Side { file: &new, cuts: &new_cuts };
        let recipe = Recipe::between(old, side).map_err(Error::io("compare objects for", path))?;
        let file = pack::temporary(&self.spool)?;
        if let Some(recipe) = recipe {
            let header = Header { base: *base, result: *result, size: recipe.size() };
            delta::encode(&header, &recipe, &new, BufWriter::new(file.as_file()))
                .map_err(Error::io("write", path))?;
        }
        file.persist(path).map_err(|e| Error::io("move in", path)(e.error))?;
        self.building.count_delta();
        self.drop_oldest_deltas(path)?;
        DeltaFile::at(path)
    }

    /// Takes note of a delta that came from the upstream and gave its object: whoever follows us
    /// gets the same bytes, and nothing is made.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn keep_delta(&self, base: &ObjectId, result: &ObjectId, came: &Path) -> Result<()> {
        let path = self.spool.join(format!("{base}-{result}{ENDING}"));
        fs::rename(came, &path).map_err(Error::io("move in", &path))?;
        self.drop_oldest_deltas(&path)
    }

    /// Where an object may be cut: as kept, or found out now and kept.
    fn cuts(&self, id: &ObjectId, mut file: &File) -> Result<Cuts> {
        let path = cuts_path(&self.git, id);
        let size = file.metadata().map_err(Error::io("read", &self.object_path(id)))?.len();
        let kept = fs::read(&path).ok().and_then(|bytes| Cuts::decode(&bytes));
        if let Some(kept) = kept.filter(|cuts| cuts.size() == size) {
            return Ok(kept);
        }
        let cuts = file.rewind().and_then(|()| Cuts::of(file));
        let cuts = cuts.map_err(Error::io("read", &self.object_path(id)))?;
        self.keep_cuts(id, &cuts)?;
        Ok(cuts)
    }

    /// Keeps the cuts of an object. Not synced: damage shows when they are read.
    pub(super) fn keep_cuts(&self, id: &ObjectId, cuts: &Cuts) -> Result<()> {
        let path = cuts_path(&self.git, id);
        let folder = path.parent().expect("cuts lie in a folder");
        fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
        let file = pack::write_temporary(&self.spool, &cuts.encode())?;
        file.persist(&path).map(drop).map_err(|e| Error::io("move in", &path)(e.error))
    }

    /// Removes the cuts of an object that is removed.
    ///
    /// # Errors
    /// When they are there and cannot be removed.
    pub fn forget_cuts(&self, id: &ObjectId) -> Result<()> {
        remove(&cuts_path(&self.git, id))
    }

    /// Keeps the newest deltas in `spool/`, and `new` in any case.
    fn drop_oldest_deltas(&self, new: &Path) -> Result<()> {
        let mut deltas = Vec::new();
        for entry in fs::read_dir(&self.spool).map_err(Error::io("list", &self.spool))? {
            let path = entry.map_err(Error::io("list", &self.spool))?.path();
            let is_delta = path.to_str().is_some_and(|name| name.ends_with(ENDING));
            // One that another thread has just removed does not count.
            if is_delta
                && path != new
                && let Ok(about) = path.metadata()
            {
                let made = about.modified().map_err(Error::io("read", &path))?;
                deltas.push((made, about.len(), path));
            }
        }
        deltas.sort();
        let mut kept = 0;
        for (_, size, path) in deltas.into_iter().rev() {
            kept += size;
            if kept > KEPT {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

fn cuts_path(git: &Path, id: &ObjectId) -> PathBuf {
    shelf(&git.with_file_name("cuts"), id)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::io("remove", path)),
    }
}

/// Removes the cuts of objects that are not here: one that lost its object in a kill, or by hand.
pub(super) fn sweep_cuts(git: &Path) -> Result<()> {
    for path in files_below(&git.with_file_name("cuts"), 2)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.parse::<ObjectId>().ok());
        if id.is_none_or(|id| !super::objects::object_path(git, &id).exists()) {
            remove(&path)?;
        }
    }
    Ok(())
}

/// What lies so many folders below; nothing where the first one is missing.
fn files_below(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if depth == 0 {
            found.push(path);
        } else if path.is_dir() {
            found.extend(files_below(&path, depth - 1)?);
        }
    }
    Ok(found)
}
