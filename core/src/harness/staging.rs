//! An output directory that is filled elsewhere first.
//!
//! Files are written below `OUT/.qfw`, and moved from there once all of them are there: those that make the others loadable last. What goes
//! wrong before that leaves OUT as it was.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::export::{USED, is_empty, not_empty, ours, remove_dir, sweep};
use super::journal;
use crate::checkpoint::rename_file;
use crate::error::{Error, Result};
use crate::registry::Registry;

/// An output directory under work.
pub(crate) struct Staging {
    out: PathBuf,
    /// There was nothing at all.
    fresh: bool,
    placed: bool,
    _lock: File,
}

impl Staging {
    /// Begins to fill `out`, which has to be empty or missing unless it may be overwritten.
    ///
    /// # Errors
    /// If it may not be filled.
    pub(crate) fn begin(out: &Path, overwrite: bool) -> Result<Self> {
        if !is_empty(out)? {
            if !overwrite {
                return Err(not_empty(out, ""));
            }
            ours(out)?;
        }
        let fresh = !out.exists();
        let lock = journal::lock(out)?;
        let staging = Self { out: out.to_owned(), fresh, placed: false, _lock: lock };
        remove_dir(&staging.dir())?;
        let dir = staging.dir();
        std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
        Ok(staging)
    }

    /// Where files are written.
    pub(crate) fn dir(&self) -> PathBuf {
        self.out.join(journal::DIR).join("out")
    }

    /// Moves everything into place, and removes what was there before.
    ///
    /// # Errors
    /// If a file cannot be moved; what is in OUT then is no whole model, and does not look like one.
    pub(crate) fn place(mut self, registry: &Registry) -> Result<()> {
        // From here on OUT is not what it was.
        self.placed = true;
        sweep(&self.out, registry)?;
        let dir = self.dir();
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&dir).map_err(|e| Error::io(&dir, "list", e))? {
            entries.push(entry.map_err(|e| Error::io(&dir, "list", e))?.file_name());
        }
        let loadable = |name: &std::ffi::OsString| {
            let path = Path::new(name);
            path == Path::new("config.json") || path.extension().is_some_and(|e| e == "gguf" || e == "onnx")
        };
        entries.sort_by_key(|name| (loadable(name), name.clone()));
        for name in entries {
            rename_file(&dir.join(&name), &self.out.join(&name))?;
        }
        let (work, used) = (self.out.join(journal::DIR), self.out.join(USED));
        remove_dir(&used)?;
        std::fs::rename(&work, &used).map_err(|e| Error::io(&work, "rename", e))?;
        remove_dir(&used)
    }
}

impl Drop for Staging {
    /// What was not placed goes. Failures here have no one to tell, and leave a work directory that the next run replaces.
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        let _ = std::fs::remove_dir_all(self.out.join(journal::DIR));
        if self.fresh {
            let _ = std::fs::remove_dir(&self.out);
        }
    }
}
