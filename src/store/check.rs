//! Integrity: what of a store is damaged or missing, and its removal from where it would be used.
//!
//! Checking changes nothing. What is found damaged is put into `spool/` as `damaged-…`, after what
//! can still be read of it was saved; what is then missing comes back from elsewhere
//! ([`Store::restore_history`], [`Store::object_writer`], [`Store::restore_object`]), and only bytes
//! that have the right id are ever taken.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use sha1::{Digest, Sha1};

use super::{
    Commit, Error, Result, Store,
    arrived::Arrived,
    db::Type,
    diff::Delta,
    durable,
    pack::{self, PackWriter},
    packs::{self, Form, StoredPack},
    retain::{Going, stop_unless},
    sound,
};
use crate::model::{Content, Entry, Kind, ObjectId, Oid, Retention, Subset};

/// How many of a kind are named; there may be as many as there are objects.
const NAMED: usize = 1000;

/// A file of the store that can be checked by itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A pack with its index.
    Pack(PathBuf),
    /// A large object.
    Object(ObjectId),
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Files whose bytes are wrong, with why.
    pub damaged: Vec<(Part, String)>,
    /// Git objects that the history refers to and that cannot be read.
    pub history: Vec<Oid>,
    /// Objects that kept versions refer to and that are not here, with their sizes.
    pub objects: Vec<(ObjectId, u64)>,
    /// Commits whose trees were followed.
    pub commits: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

impl Findings {
    /// Whether all is as it must be.
    pub fn is_sound(&self) -> bool {
        self.count() == 0
    }

    /// How much is wrong.
    pub fn count(&self) -> usize {
        self.damaged.len() + self.history.len() + self.objects.len()
    }
}

impl Store {
    /// Every file that can be checked by itself, with its size.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn parts(&self) -> Result<Vec<(Part, u64)>> {
        let packs = packs::list(&self.git.join("objects/pack"))?.into_iter();
        let packs = packs.map(|(path, size)| (Part::Pack(path), size));
        let objects = self.stored_objects()?.into_iter();
        Ok(packs.chain(objects.map(|(id, _, size)| (Part::Object(id), size))).collect())
    }

    /// The size of each pack.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn pack_sizes(&self) -> Result<Vec<u64>> {
        let packs = packs::list(&self.git.join("objects/pack"))?;
        Ok(packs.into_iter().map(|(_, size)| size).collect())
    }

    /// The size of a part; zero: it is gone.
    pub fn part_size(&self, part: &Part) -> u64 {
        let path = match part {
            Part::Pack(path) => path.clone(),
            Part::Object(id) => self.object_path(id),
        };
        path.metadata().map_or(0, |about| about.len())
    }

    /// What is wrong with the bytes of a part; none: nothing, or it is gone.
    ///
    /// # Errors
    /// When it cannot be read, which is no proof of damage, and [`Error::Interrupted`].
    pub fn check_part(&self, part: &Part, going: Going<'_>) -> Result<Option<String>> {
        match part {
            Part::Object(id) => {
                let path = self.object_path(id);
                let Some(file) = open(&path)? else { return Ok(None) };
                let found = sound::hash(&file).map_err(Error::io("read", &path))?;
                Ok((found != *id).then(|| format!("its SHA-256 is {found}")))
            }
            Part::Pack(path) if !path.exists() => Ok(None),
            Part::Pack(path) => match self.check_pack(path, going) {
                Ok(()) => Ok(None),
                Err(Error::Damaged { what, why }) => Ok(Some(format!("{what}: {why}"))),
                // Folded away meanwhile.
                Err(Error::Io { .. }) if !path.exists() => Ok(None),
                Err(e) => Err(e),
            },
        }
    }

    fn check_pack(&self, path: &Path, going: Going<'_>) -> Result<()> {
        let index = path.with_extension("idx");
        ends_in_checksum(path, going)?;
        ends_in_checksum(&index, going)?;
        let pack = StoredPack::open(path)?;
        for (id, offset) in pack.objects() {
            stop_unless(going)?;
            if pack.read(id, offset)?.form != Form::Whole(Type::Blob) {
                self.db.check(id).map_err(|e| missing_is_damage(e, id))?;
            }
        }
        Ok(())
    }

    /// What the head's history refers to and is not here: git objects of all of it, large objects
    /// of the versions inside `keep` (a mirror never had those that it skipped: there, the head), as
    /// far as they are of the part of the feed that is kept here.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; what cannot be read is a finding.
    pub fn check_history(
        &self,
        keep: &Retention,
        part: &Subset,
        going: Going<'_>,
    ) -> Result<Findings> {
        let mut found = Findings::default();
        let mut next = self.line().tip().cloned();
        let mut kept = 0;
        while let Some(commit) = next {
            stop_unless(going)?;
            found.commits += 1;
            let parent = self.parent_of(&commit).unwrap_or_default();
            let cut = commit.parent.filter(|_| parent.is_none() && !self.is_cut_off(&commit));
            found.history.extend(cut);
            if self.check_commit(&commit, parent.as_ref(), &mut found).is_err() {
                found.history.push(commit.tree);
            }
            kept += 1;
            next = parent.filter(|_| found.history.len() < NAMED);
        }
        if found.history.is_empty() && kept > 0 {
            self.check_kept((keep, part), &mut found, going)?;
        }
        Ok(found)
    }

    /// Whether what a commit brought can be read.
    fn check_commit(
        &self,
        commit: &Commit,
        parent: Option<&Commit>,
        found: &mut Findings,
    ) -> Result<()> {
        let read = |kind, id| self.db.read(kind, id);
        let delta = Delta::between(&read, parent.map(|parent| parent.tree), commit.tree)?;
        for (kind, id) in delta.new {
            if self.db.size(kind, id).is_err() && found.history.len() < NAMED {
                found.history.push(id);
            }
        }
        Ok(())
    }

    fn check_kept(
        &self,
        (keep, part): (&Retention, &Subset),
        found: &mut Findings,
        going: Going<'_>,
    ) -> Result<()> {
        let (kept, _) = self.kept(keep)?;
        let (mut newer, mut seen) = (None, HashSet::new());
        for commit in &kept {
            stop_unless(going)?;
            self.differences(newer, commit.id, &mut |change| {
                if let Some(Entry { kind: Kind::File { blob, .. }, .. }) = change.after
                    && part.holds(&change.path, false)
                    && let Content::Object { id, size } = self.content(blob)?
                    && seen.insert(id)
                    && !self.object_path(&id).exists()
                {
                    found.objects.push((id, size));
                }
                Ok(())
            })?;
            newer = Some(commit.id);
        }
        Ok(())
    }

    /// Puts a damaged part where nobody uses it; what can be read of a pack is saved before.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub fn put_away(&self, part: &Part) -> Result<()> {
        match part {
            Part::Object(id) => self.quarantine(&self.object_path(id)),
            Part::Pack(path) => {
                let saved = self.reindexed(path)?;
                if !saved {
                    self.salvage(path)?;
                }
                self.db.reopen_after(|| {
                    // Under its own name already, if only the index was damaged.
                    if saved { Ok(()) } else { self.quarantine_pack(path) }
                })?;
                self.db.forget();
                Ok(())
            }
        }
    }

    fn quarantine_pack(&self, path: &Path) -> Result<()> {
        self.quarantine(path)?;
        self.quarantine(&path.with_extension("idx"))
    }

    fn quarantine(&self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let to = self.spool.join(format!("{DAMAGED}{name}"));
        match fs::rename(path, &to) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            moved => moved.map_err(Error::io("put away", path)),
        }
    }

    /// Whether a pack is sound in itself: then it is given its index again.
    fn reindexed(&self, path: &Path) -> Result<bool> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let Ok(again) = Arrived::take(&mut file, &self.spool) else { return Ok(false) };
        let (_, index) = again.files();
        durable::sync_file(&index)?;
        self.db.reopen_after(|| durable::rename(&index, &path.with_extension("idx")))?;
        durable::sync_folder(path.parent().expect("packs lie in a folder"))?;
        Ok(true)
    }

    /// Writes what can be read of a damaged pack into a new one.
    fn salvage(&self, path: &Path) -> Result<()> {
        let Ok(old) = StoredPack::open(path) else { return Ok(()) };
        let mut new = PackWriter::new(&self.spool);
        for (id, offset) in old.objects() {
            match old.read(id, offset) {
                Ok(raw) => match raw.form {
                    Form::Whole(kind) => new.add_deflated(kind, id, raw.size, &raw.deflated)?,
                    _ => self.salvage_delta(&mut new, id)?,
                },
                Err(_) => self.salvage_delta(&mut new, id)?,
            }
        }
        let mut pack = new.finish()?;
        let index = pack.write_index(&self.spool)?;
        durable::sync_file(pack.file.path())?;
        durable::sync_file(index.path())?;
        self.move_in(&pack.checksum, pack.file.path(), index.path())
    }

    /// It may be readable by what it is a difference from, or lie in another pack as well.
    fn salvage_delta(&self, new: &mut PackWriter, id: Oid) -> Result<()> {
        let read = self.db.kind(id).and_then(|kind| Ok((kind, self.db.read(kind, id)?)));
        match read {
            Ok((kind, bytes)) if pack::hash(kind, &bytes) == id => new.add(kind, id, &bytes),
            _ => Ok(()),
        }
    }

    /// Takes in a pack from another node that holds what is missing of the history. Every object in
    /// it is hashed; no reference moves.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is damaged; else when the repository cannot be written.
    pub fn restore_history(&self, stream: &mut dyn Read) -> Result<()> {
        let new = Arrived::take(stream, &self.spool)?;
        let (pack, index) = new.files();
        durable::sync_file(&pack)?;
        durable::sync_file(&index)?;
        self.move_in(&new.checksum(), &pack, &index)?;
        self.db.reopen_after(|| Ok(()))
    }

    /// Stores blobs of the history again, where they are missing: those among `contents` that have
    /// the ids in `wanted`. Returns how many.
    ///
    /// # Errors
    /// When the repository cannot be written.
    pub fn restore_blobs(&self, wanted: &[Oid], contents: &[Vec<u8>]) -> Result<usize> {
        let mut new = PackWriter::new(&self.spool);
        let mut count = 0;
        for bytes in contents {
            let id = pack::hash(Type::Blob, bytes);
            if wanted.contains(&id) && !new.contains(id) {
                new.add(Type::Blob, id, bytes)?;
                count += 1;
            }
        }
        if count > 0 {
            let mut pack = new.finish()?;
            let index = pack.write_index(&self.spool)?;
            durable::sync_file(pack.file.path())?;
            durable::sync_file(index.path())?;
            self.move_in(&pack.checksum, pack.file.path(), index.path())?;
            self.db.reopen_after(|| Ok(()))?;
        }
        Ok(count)
    }

    /// Stores an object again from a file, if that holds it.
    ///
    /// # Errors
    /// When the file cannot be read or the store not written.
    pub fn restore_object(&self, id: &ObjectId, from: &mut File) -> Result<bool> {
        from.seek(SeekFrom::Start(0)).map_err(Error::io("read", Path::new("a file")))?;
        if sound::hash(from).map_err(Error::io("read", Path::new("a file")))? != *id {
            return Ok(false);
        }
        // What was stored is what was read then: whoever writes now makes another object.
        Ok(self.ingest(from)?.id == *id)
    }
}

/// How damaged files are called in `spool/`.
pub(super) const DAMAGED: &str = "damaged-";

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some).map_err(Error::io("open", path)),
    }
}

fn missing_is_damage(e: Error, id: Oid) -> Error {
    match e {
        Error::Missing { .. } => Error::damaged(format!("object {id}"), "it cannot be read"),
        e => e,
    }
}

/// Packs and indexes end in the SHA-1 of all before.
fn ends_in_checksum(path: &Path, going: Going<'_>) -> Result<()> {
    let damaged = || Error::damaged(path.display().to_string(), "its checksum is wrong");
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let size = file.metadata().map_err(Error::io("read", path))?.len();
    let mut rest = size.checked_sub(20).ok_or_else(damaged)?;
    let (mut hasher, mut block) = (Sha1::new(), vec![0; 1 << 20]);
    while rest > 0 {
        stop_unless(going)?;
        let most = usize::try_from(rest).unwrap_or(usize::MAX).min(block.len());
        file.read_exact(&mut block[..most]).map_err(Error::io("read", path))?;
        hasher.update(&block[..most]);
        rest -= most as u64;
    }
    let mut checksum = [0; 20];
    file.read_exact(&mut checksum).map_err(Error::io("read", path))?;
    if hasher.finalize()[..] == checksum { Ok(()) } else { Err(damaged()) }
}
