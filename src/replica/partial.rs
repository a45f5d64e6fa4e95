//! A pack or delta that is being downloaded: a file in `spool/` that a later try goes on with.
//!
//! Beside it lies what it is the beginning of (entity tag and size), without which it is worth
//! nothing. Nothing is synced: what a power cut leaves is checked when it is taken in.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use http::header::{CONTENT_RANGE, ETAG};
use reqwest::Response;
use tokio::io::{AsyncSeekExt, AsyncWriteExt, BufWriter};

use crate::replica::Error;

/// What our partial downloads in `spool/` begin with.
const PARTIAL: &str = "fetch-";
/// How what lies beside a partial file ends.
const MARK: &str = ".etag";
/// Bytes that are written at once.
const BLOCK: usize = 256 * 1024;

/// A download under way, and beside it what it is the beginning of.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    file: BufWriter<tokio::fs::File>,
    pub(super) offset: u64,
    mark: Option<Mark>,
}

/// Which version a partial file is the beginning of, and its whole size.
struct Mark {
    etag: String,
    total: u64,
}

impl Partial {
    /// Opens what an earlier try has left of what is asked for by this name.
    pub(super) async fn open(spool: &Path, what: &str) -> Result<Self, Error> {
        let path = spool.join(file_of(what));
        let failed = |source| Error::Spool { path: path.clone(), source };
        let mark = fs::read_to_string(mark_of(&path)).ok().and_then(|text| Mark::parse(&text));
        let mut options = tokio::fs::OpenOptions::new();
        let mut file =
            options.create(true).truncate(false).write(true).open(&path).await.map_err(failed)?;
        let offset = file.seek(io::SeekFrom::End(0)).await.map_err(failed)?;
        let file = BufWriter::with_capacity(BLOCK, file);
        let mut partial = Partial { path, file, offset, mark };
        if partial.mark.as_ref().is_none_or(|mark| offset > mark.total) {
            partial.start_again().await?;
        }
        Ok(partial)
    }

    /// The entity tag of what a file that holds something is the beginning of.
    pub(super) fn etag(&self) -> Option<&str> {
        self.mark.as_ref().filter(|_| self.offset > 0).map(|mark| mark.etag.as_str())
    }

    /// Whether nothing is lacking.
    pub(super) fn is_whole(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.total > 0 && mark.total == self.offset)
    }

    /// Whether an answer goes on where we are.
    pub(super) fn continues(&self, answer: &Response) -> bool {
        let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        range.is_some_and(|range| range.starts_with(&format!("bytes {}-", self.offset)))
    }

    pub(super) async fn start_again(&mut self) -> Result<(), Error> {
        let emptied = async {
            self.file.get_mut().set_len(0).await?;
            self.file.seek(io::SeekFrom::Start(0)).await
        };
        emptied.await.map_err(spool(&self.path))?;
        self.offset = 0;
        self.mark = None;
        Ok(())
    }

    /// Notes what is coming, so that a later try can go on with it.
    pub(super) async fn remember(&mut self, answer: &Response, total: u64) -> Result<(), Error> {
        let path = mark_of(&self.path);
        let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let written = match etag.filter(|etag| etag.starts_with('"')) {
            Some(etag) => tokio::fs::write(&path, format!("{etag}\n{total}\n")).await,
            None => match tokio::fs::remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        written.map_err(spool(&path))
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes).await.map_err(spool(&self.path))
    }

    pub(super) async fn finish(mut self) -> Result<PathBuf, Error> {
        self.file.flush().await.map_err(spool(&self.path))?;
        Ok(self.path)
    }

    /// Removes a pack that was taken in, or is damaged.
    pub(super) fn remove(path: &Path) -> Result<(), Error> {
        for path in [mark_of(path), path.to_owned()] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::Spool { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let (etag, total) = text.strip_suffix('\n')?.split_once('\n')?;
        Some(Mark { etag: etag.to_owned(), total: total.parse().ok()? })
    }
}

fn mark_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(MARK);
    name.into()
}

/// The file that a download of this name goes into.
pub(super) fn file_of(what: &str) -> String {
    format!("{PARTIAL}{}", what.replace('/', "-"))
}

/// Removes what is left of other downloads than these: a fetch finishes the want that it began, so
/// nothing else is of use any more.
pub(super) fn sweep(spool: &Path, wanted: &HashSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(spool)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let of = name.strip_suffix(MARK).unwrap_or(name);
        if name.starts_with(PARTIAL) && !wanted.contains(of) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

pub(super) fn spool(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Spool { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_partial_pack_is_gone_on_with_only_when_it_is_known_what_it_is() {
        let spool = tempfile::tempdir().unwrap();
        let path = spool.path().join("fetch-0..1");
        for (mark, offset) in
            [(Some("\"v1\"\n9\n"), 4), (Some("\"v1\"\n3\n"), 0), (Some("\"v1\""), 0), (None, 0)]
        {
            fs::write(&path, b"PACK").unwrap();
            Partial::remove(&mark_of(&path)).unwrap();
            if let Some(mark) = mark {
                fs::write(mark_of(&path), mark).unwrap();
            }
            let partial = Partial::open(spool.path(), "0..1").await.unwrap();
            assert_eq!(partial.offset, offset, "{mark:?}");
            assert_eq!(fs::metadata(&path).unwrap().len(), offset);
        }
    }

    #[test]
    fn what_nobody_wants_any_more_is_removed() {
        let spool = tempfile::tempdir().unwrap();
        for name in ["fetch-0..1", "fetch-0..1.etag", "fetch-0..2", "fetch-0..2.etag", "pack-7"] {
            fs::write(spool.path().join(name), b"x").unwrap();
        }
        sweep(spool.path(), &HashSet::from([file_of("0..2")])).unwrap();
        let mut left: Vec<_> =
            fs::read_dir(spool.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["fetch-0..2", "fetch-0..2.etag", "pack-7"]);
    }
}
