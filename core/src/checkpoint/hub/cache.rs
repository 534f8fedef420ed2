//! The cache on disk, as Hugging Face's own tools lay it out.
//!
//! ```text
//! models--ORG--NAME/refs/REVISION           the commit that a branch or tag named last
//!                   snapshots/COMMIT/PATH   links to contents
//!                   blobs/HASH              contents, by the hash that the Hub lists
//!                   blobs/HASH.incomplete   the same while they arrive
//! .locks/models--ORG--NAME/HASH.lock        held by who fetches them
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::choose::Listed;
use super::failure::Failure;
use super::{HubId, Kind};

/// The part of the cache that belongs to one repository.
pub(super) struct Cached {
    root: PathBuf,
    locks: PathBuf,
}

impl Cached {
    pub(super) fn new(cache: &Path, kind: Kind, id: &HubId) -> Self {
        let kinds = match kind {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        };
        let folder = format!("{kinds}--{}--{}", id.owner, id.name);
        Self { root: cache.join(&folder), locks: cache.join(".locks").join(folder) }
    }

    /// Where files of `commit` lie.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that `revision` named last, or that it is, if anything of it is here.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let named = fs::read_to_string(self.root.join("refs").join(revision)).ok().map(|text| text.trim().to_owned());
        named.into_iter().chain([revision.to_owned()]).find(|commit| !commit.is_empty() && self.snapshot(commit).is_dir())
    }

    /// Keeps in mind what `revision` names. Writes nothing where that is known: a cache that is shared may be read-only.
    pub(super) fn remember(&self, revision: &str, commit: &str) -> Result<(), Failure> {
        let file = self.root.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&file).is_ok_and(|known| known.trim() == commit) {
            return Ok(());
        }
        made(file.parent())?;
        fs::write(&file, commit).map_err(|e| Failure::Disk(file, e))
    }

    /// Whether the snapshot has `file`, whole.
    pub(super) fn holds(&self, commit: &str, file: &Listed) -> bool {
        length(&self.snapshot(commit).join(&file.path)) == Some(file.size)
    }

    pub(super) fn blob(&self, file: &Listed) -> PathBuf {
        self.root.join("blobs").join(&file.hash)
    }

    /// Waits until nobody else fetches these contents. Held until the file is dropped, or its process dies.
    pub(super) fn lock(&self, file: &Listed) -> Result<File, Failure> {
        let path = self.locks.join(format!("{}.lock", file.hash));
        made(path.parent())?;
        made(self.blob(file).parent())?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Failure::Disk(path, e))?;
        // Some network file systems have no locks: there, two downloads at once are the user's own affair.
        while lock.lock().is_err_and(|e| e.kind() == io::ErrorKind::Interrupted) {}
        Ok(lock)
    }

    /// Puts contents that are there into the snapshot.
    pub(super) fn link(&self, commit: &str, file: &Listed) -> Result<(), Failure> {
        let path = self.snapshot(commit).join(&file.path);
        made(path.parent())?;
        let up = "../".repeat(2 + file.path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{}", file.hash));
        let placed = match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            // Where there are no links, contents lie in the snapshot itself.
            _ => symlink(&target, &path).or_else(|_| fs::rename(self.blob(file), &path)),
        };
        placed.map_err(|e| Failure::Disk(path, e))
    }
}

/// The length of a file, behind links.
pub(super) fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|m| m.len())
}

fn made(directory: Option<&Path>) -> Result<(), Failure> {
    directory.map_or(Ok(()), |path| fs::create_dir_all(path).map_err(|e| Failure::Disk(path.to_owned(), e)))
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Links need a right that users of Windows seldom have.
#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
