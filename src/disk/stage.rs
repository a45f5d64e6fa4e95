//! Everything new is written hidden, with its final metadata, before anything visible changes.
//!
//! A file or link for a folder that is there lies beside its place under a temporary name; one for a
//! folder that is being built lies in it under its own. Content that is in place already is not
//! written again. Nothing here renames anything.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
};

use rustix::fs::{AtFlags, OFlags};

use super::{
    Error, FileKind, Keep, Placing, Result, Source, TEMPORARY,
    compare::bytes,
    folders::{Folder, Folders, Inside, join},
    judge::{self, Seen, Verdict},
    metadata,
    root::remove_at,
    together::{self, FEW},
    tree::At,
};
use crate::{
    model::{Change, Entry, Kind, RelPath},
    sys,
};

/// From how many files on a second thread helps: below, starting it costs more.
const PARALLEL_FROM: usize = 512;

/// How many files one thread takes at a time.
const CHUNK: usize = 256;

/// Called after each change to the disk; an error stops the placing there and then. A test's way to
/// be killed at any point.
pub(super) type Pulse<'a> = &'a mut dyn FnMut() -> io::Result<()>;

/// A file or link of the new tree.
#[derive(Debug, Clone, Copy)]
pub(super) struct New<'a> {
    pub change: &'a Change,
    pub entry: &'a Entry,
}

/// What is to be done once the journal is durable.
#[derive(Debug)]
pub(super) enum Op<'a> {
    /// A folder built whole at `staged` takes its name.
    Enter { path: RelPath, staged: RelPath, inside: Inside },
    /// A file or link staged in its own folder takes its name.
    Replace { new: New<'a>, staged: RelPath, bytes: u64, seen: Seen },
    /// The content is there already: only metadata is set. Also for folders, last of all.
    Touch { path: &'a RelPath, entry: &'a Entry },
    /// The old entry goes.
    Delete { path: &'a RelPath, before: &'a Entry },
}

/// What staging came to.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub ops: Vec<Op<'a>>,
    pub faults: Vec<(RelPath, String)>,
    pub notes: Vec<(RelPath, String)>,
    /// Temporaries beside their place.
    pub temporaries: Vec<RelPath>,
    /// What lies within each topmost new folder.
    pub inside: BTreeMap<RelPath, Inside>,
    /// The files written, while they are few: to be synced one by one.
    pub files: Vec<File>,
    /// There is no room for what is new.
    full: Option<io::Error>,
}

impl Batch<'_> {
    fn append(&mut self, mut other: Self) {
        self.ops.append(&mut other.ops);
        self.faults.append(&mut other.faults);
        self.notes.append(&mut other.notes);
        self.temporaries.append(&mut other.temporaries);
        self.files.append(&mut other.files);
        self.full = self.full.take().or(other.full);
        for (top, inside) in other.inside {
            self.inside.entry(top).or_default().add(inside);
        }
    }
}

/// Some files for one folder.
struct Chunk<'a> {
    folder: RelPath,
    /// The topmost new folder that it is part of; none: the folder is there.
    top: Option<RelPath>,
    files: Vec<New<'a>>,
}

/// Writes the files of one placing.
pub(super) struct Stage<'a> {
    p: &'a Placing<'a>,
    run: String,
    numbers: AtomicU64,
    /// So little is written that it is synced one by one; more is synced as a whole.
    is_small: bool,
    pub folders: Folders<'a>,
    pub batch: Batch<'a>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(p: &'a Placing<'a>) -> Result<Self> {
        let random = getrandom::u32().map_err(io::Error::other);
        let random = random.map_err(Error::io("name temporaries in", p.root.path()))?;
        let run = format!("{random:08x}");
        let folders = Folders::new(p, &run);
        Ok(Stage {
            p,
            run,
            numbers: AtomicU64::new(0),
            is_small: false,
            folders,
            batch: Batch::default(),
        })
    }

    /// Stages all that is new. Faults of single paths are data; but where there is no room, nothing
    /// must become visible, since what fits would be a mixture of two releases.
    pub(super) fn fill(&mut self, pulse: Pulse<'_>) -> Result<()> {
        let failed = |source| Error::io("stage files in", self.p.root.path())(source);
        self.folders.make(&mut self.batch, pulse).map_err(failed)?;
        let chunks = self.chunks();
        let files: usize = chunks.iter().map(|chunk| chunk.files.len()).sum();
        self.is_small = files + self.folders.staged().count() <= FEW;
        if files >= PARALLEL_FROM {
            let staged = self.run_parallel(&chunks);
            self.batch.append(staged);
        } else {
            let mut staged = Batch::default();
            let mut run = Ok(());
            for chunk in &chunks {
                run = self.run_chunk(chunk, &mut staged, pulse);
                if run.is_err() || staged.full.is_some() {
                    break;
                }
            }
            self.batch.append(staged);
            run.map_err(failed)?;
        }
        if let Some(full) = self.batch.full.take() {
            return Err(failed(full));
        }
        self.folders.finish(&mut self.batch);
        Ok(())
    }

    /// Makes what was staged durable, and with it what is named.
    pub(super) fn sync(&self, written: &[File], with: &[&File]) -> io::Result<()> {
        let with = with.iter().map(|file| file.as_fd());
        if !self.is_small {
            self.folders.sync_file_systems()?;
            return together::sync(&with.collect::<Vec<_>>());
        }
        let folders = self.folders.staged().chain(self.folders.wrappers());
        let folders = folders.map(|at| self.p.root.folder(at));
        let folders = folders.collect::<io::Result<Vec<_>>>()?;
        let folders = folders.iter().map(AsFd::as_fd);
        let all = with.chain(written.iter().map(File::as_fd)).chain(folders);
        together::sync(&all.collect::<Vec<_>>())
    }

    fn chunks(&self) -> Vec<Chunk<'a>> {
        let mut by_folder: BTreeMap<RelPath, Vec<New<'a>>> = BTreeMap::new();
        for change in self.p.changes {
            let (Some(entry), Some(parent)) = (&change.after, change.path.parent()) else {
                continue;
            };
            if !entry.kind.is_dir() {
                by_folder.entry(parent).or_default().push(New { change, entry });
            }
        }
        let mut chunks = Vec::new();
        for (parent, files) in by_folder {
            let (folder, top) = match self.folders.get(&parent) {
                Folder::Failed => continue,
                Folder::Staged(at, top) => (at.clone(), Some(top.clone())),
                Folder::There => (parent, None),
            };
            chunks.extend(files.chunks(CHUNK).map(|files| Chunk {
                folder: folder.clone(),
                top: top.clone(),
                files: files.to_vec(),
            }));
        }
        chunks
    }

    fn run_parallel(&self, chunks: &[Chunk<'a>]) -> Batch<'a> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut batch = Batch::default();
            while batch.full.is_none()
                && let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed))
            {
                // Only a pulse fails, and here there is none.
                let _ = self.run_chunk(chunk, &mut batch, &mut || Ok(()));
            }
            batch
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mut batch = work();
            batch.append(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            batch
        })
    }

    fn run_chunk(
        &self,
        chunk: &Chunk<'a>,
        batch: &mut Batch<'a>,
        pulse: Pulse<'_>,
    ) -> io::Result<()> {
        let folder = match self.p.root.folder(&chunk.folder) {
            Ok(folder) => folder,
            Err(error) => {
                let fault = format!("its folder cannot be opened: {error}");
                let paths = chunk.files.iter().map(|new| new.change.path.clone());
                batch.faults.extend(paths.map(|path| (path, fault.clone())));
                return Ok(());
            }
        };
        for new in &chunk.files {
            let staged = match &chunk.top {
                Some(top) => self.build(folder.as_fd(), *new, top, batch),
                None => self.stage(folder.as_fd(), *new, batch),
            };
            if let Err(error) = staged {
                if is_full(&error) {
                    batch.full = Some(error);
                    return Ok(());
                }
                batch
                    .faults
                    .push((new.change.path.clone(), format!("it cannot be written: {error}")));
            }
            pulse()?;
        }
        Ok(())
    }

    /// Writes an entry into a folder that is being built, under its final name.
    fn build(
        &self,
        folder: BorrowedFd<'_>,
        new: New<'a>,
        top: &RelPath,
        batch: &mut Batch<'a>,
    ) -> io::Result<()> {
        let bytes = self.write(At { folder, name: new.change.path.name() }, new, batch)?;
        let one = Inside { entries: 1, bytes, replaces: false };
        batch.inside.entry(top.clone()).or_default().add(one);
        Ok(())
    }

    /// Writes an entry beside its place, unless its content lies there already.
    fn stage(&self, folder: BorrowedFd<'_>, new: New<'a>, batch: &mut Batch<'a>) -> io::Result<()> {
        let path = &new.change.path;
        let seen = judge::look(self.p, folder, new.change)?;
        if seen.verdict == Verdict::New {
            batch.ops.push(Op::Touch { path, entry: new.entry });
            return Ok(());
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY}{}-{number}", self.run);
        let staged = join(&path.parent().unwrap_or_default(), name.as_bytes())?;
        let bytes = self.write(At { folder, name: name.as_bytes() }, new, batch)?;
        batch.temporaries.push(staged.clone());
        batch.ops.push(Op::Replace { new, staged, bytes, seen });
        Ok(())
    }

    fn write(&self, at: At<'_>, new: New<'a>, batch: &mut Batch<'a>) -> io::Result<u64> {
        let (Kind::File { blob, .. } | Kind::Symlink { blob }) = new.entry.kind else {
            return Ok(0);
        };
        let source = (self.p.source)(blob)?;
        let written = match new.entry.kind {
            Kind::Symlink { .. } => write_link(at, new.entry, self.p.keep, source),
            _ => write_file(at, new.entry, self.p.keep, source).map(|(file, written)| {
                if self.is_small {
                    batch.files.push(file);
                }
                written
            }),
        };
        let (bytes, note) = written.inspect_err(|_| {
            // Half a file is of no use; where it was not even made, there is none.
            let _ = remove_at(at.folder, at.name, FileKind::File);
        })?;
        batch.notes.extend(note.map(|note| (new.change.path.clone(), note)));
        Ok(bytes)
    }
}

/// No room on the file system, or for this user.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Bytes written, and what could not be set.
type Written = (u64, Option<String>);

fn write_file(
    at: At<'_>,
    entry: &Entry,
    keep: Keep,
    source: Source,
) -> io::Result<(File, Written)> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = metadata::first_mode(entry, keep);
    let mut file = File::from(rustix::fs::openat(at.folder, at.name, flags, mode)?);
    let bytes = match source {
        Source::Bytes(bytes) => {
            file.write_all(&bytes)?;
            bytes.len() as u64
        }
        Source::File(source) => sys::copy(&source, &file)?,
    };
    let note = metadata::apply_to_new(file.as_fd(), entry, keep)?;
    Ok((file, (bytes, note)))
}

fn write_link(at: At<'_>, entry: &Entry, keep: Keep, source: Source) -> io::Result<Written> {
    let target = bytes(source)?;
    rustix::fs::symlinkat(target.as_slice(), at.folder, at.name)?;
    Ok((target.len() as u64, metadata::apply_to_link(at, entry, keep)))
}

/// Removes a staged file or link that has not been used. A folder under its name is somebody's that
/// was swapped out, and stays.
pub(super) fn discard(at: At<'_>) {
    let _ = rustix::fs::unlinkat(at.folder, at.name, AtFlags::empty());
}
