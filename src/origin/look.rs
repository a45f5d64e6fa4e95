//! Looks at touched paths and puts what it sees into the stage.
//!
//! Small files that events named are read here and now; what a scan found goes to a reading thread
//! while that has room; what becomes an object always does.

use std::time::{Duration, Instant};

use super::{
    Error, Result,
    ignore::ignore_file,
    read::{FileSeen, LARGE, Seen},
    session::Session,
    settle::{Lane, Look, Verdict},
    stage::Effect,
};
use crate::model::{Meta, RelPath};

/// Digests that wait for the commit; beyond it they are written before. They are true in any case,
/// and a first import would hold all of them.
const MAX_DIGESTS: usize = 16_384;
/// Special files that are listed; the rest is only left out.
const MAX_LEFT_OUT: usize = 100;

impl Session<'_, '_> {
    /// Looks at paths that are due, for at most `slice`; false when none was.
    pub(super) fn look(&mut self, now: Instant, slice: Duration) -> Result<bool> {
        let mut any = false;
        while let Some(done) = self.readers.done() {
            self.absorb(&done.look, done.seen)?;
            any = true;
        }
        while now.elapsed() < slice && self.report.full.is_none() {
            let Some(look) = self.settle.next(Instant::now()) else { break };
            any = true;
            if look.lane == Lane::Scan && self.readers.has_room() {
                self.readers.read(look);
                continue;
            }
            // Not even a small object: making it durable takes as long as a commit.
            let limit = self.setup.options.large_file.min(LARGE);
            match self.reader.look(&look, limit, &mut self.encoder) {
                Seen::Large(size) => self.readers.read_large(look, size),
                seen => self.absorb(&look, seen)?,
            }
        }
        Ok(any)
    }

    fn absorb(&mut self, look: &Look, seen: Seen) -> Result<()> {
        let path = &look.path;
        let now = Instant::now();
        self.report.looked += 1;
        let effect = match seen {
            Seen::Large(size) => {
                self.readers.read_large(look.clone(), size);
                return Ok(());
            }
            Seen::Later(verdict) => {
                self.settle.judged(now, path, verdict);
                return Ok(());
            }
            Seen::Gone => self.saw_nothing(path)?,
            Seen::Special => {
                self.leave_out(path, "a FIFO, socket or device");
                self.stage.saw_nothing(path)?
            }
            Seen::Dir(meta) => self.saw_dir(path, meta)?,
            // The rest of what was read already; all of it is found again.
            Seen::File(_) if self.report.full.is_some() => Effect::Same,
            Seen::File(seen) => match self.saw_file(path, &seen) {
                Err(Error::Store(error)) if error.is_full() => {
                    self.ran_full(now, &error);
                    Effect::Same
                }
                effect => effect?,
            },
        };
        self.settle.judged(now, path, Verdict::Settled);
        if effect != Effect::Same {
            self.batch.added(now);
            self.brake.changed();
        }
        if effect == Effect::Deleted {
            self.guard.deleted(now);
        }
        Ok(())
    }

    fn saw_file(&mut self, path: &RelPath, seen: &FileSeen) -> Result<Effect> {
        self.left_out.remove(path);
        if self.names.left_out(path, false).is_some()
            || (self.bad_ignore.is_some() && *path == ignore_file())
        {
            return Ok(Effect::Same);
        }
        self.came_back(path);
        let effect = self.stage.saw_file(path, seen)?;
        if let Some(import) = &mut self.import {
            import.read(seen.size);
        }
        // Before it is published: an entry counts only where the head has the same content.
        self.remember(path, seen);
        if effect == Effect::Same {
            return Ok(effect);
        }
        let draft = match &mut self.draft {
            Some(draft) => draft,
            none => none.insert(self.setup.store.draft()?),
        };
        draft.add_packed(&seen.blob)?;
        self.report.digests.extend(seen.digest);
        if self.report.digests.len() >= MAX_DIGESTS {
            self.keep_digests();
        }
        Ok(effect)
    }

    fn remember(&mut self, path: &RelPath, seen: &FileSeen) {
        if let Err(error) = self.cache.put(path, seen.cached) {
            tracing::warn!(feed = %self.setup.feed, %error, "a file will be read again");
        }
        self.flush_later();
    }

    fn saw_dir(&mut self, path: &RelPath, meta: Meta) -> Result<Effect> {
        if self.names.left_out(path, true).is_some() {
            return Ok(Effect::Same);
        }
        self.came_back(path);
        self.stage.saw_dir(path, meta)
    }

    /// Something lies where the batch says that nothing does, or below: what else does?
    fn came_back(&mut self, path: &RelPath) {
        if let Some(folder) = self.stage.is_back(path) {
            self.scan.folder(&folder);
            self.settle.touch(&folder, Lane::Event);
        }
    }

    fn saw_nothing(&mut self, path: &RelPath) -> Result<Effect> {
        self.left_out.remove(path);
        if self.stage.is_removed(path) {
            return Ok(Effect::Same);
        }
        // The topmost folder that is gone stands for all below it.
        let mut topmost = path.clone();
        while let Some(above) = topmost.parent().filter(|above| !above.is_root()) {
            match self.root.stat(&above) {
                Ok(None) => topmost = above,
                // What cannot be looked at keeps its last state.
                Ok(Some(_)) | Err(_) => break,
            }
        }
        self.stage.saw_nothing(&topmost)
    }

    /// Notes a path that no feed holds.
    pub(super) fn leave_out(&mut self, path: &RelPath, reason: &'static str) {
        if self.left_out.len() < MAX_LEFT_OUT {
            self.left_out.insert(path.clone(), reason);
        }
    }
}
