//! What has been finished, durably: the contract of resume.
//!
//! `OUT/.qfw/journal.json` holds the plan, its signature and one entry per finished block; it is replaced whole, after the block's
//! shard and streams are on disk. Finished blocks are a prefix of the plan's blocks.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::prelude::{LEARNING, PreludeEntry};
use super::report::SiteReport;
use crate::checkpoint::replace_file;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// A finished block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlockEntry {
    /// The block; the number of blocks stands for the head.
    pub(super) block: u32,
    /// Hash of its shard, if it has one.
    pub(super) shard: Option<String>,
    /// Hash of each stream behind it.
    pub(super) streams: BTreeMap<String, String>,
    /// What happened to its sites.
    pub(super) sites: Vec<SiteReport>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    signature: String,
    plan: Plan,
    /// What was learned before the first block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prelude: Option<PreludeEntry>,
    blocks: Vec<BlockEntry>,
}

/// The work directory below OUT; it is there as long as the run is unfinished.
pub(super) const DIR: &str = ".qfw";

/// The journal in it.
pub(super) const FILE: &str = "journal.json";

/// Makes the work directory under `out` and takes its lock, which is held as long as the file is open.
pub(super) fn lock(out: &Path) -> Result<File> {
    let dir = out.join(DIR);
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, "open", e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(Error::config("run::locked", format!("another run is working on `{}`", out.display()))
                .hint("wait for it, or choose another output directory"))
        }
        Err(std::fs::TryLockError::Error(e)) => Err(Error::io(&path, "lock", e)),
    }
}

/// The work directory of a run.
pub(super) struct Journal {
    dir: PathBuf,
    stored: Stored,
    _lock: File,
}

impl Journal {
    /// Opens or creates the work directory under `out` and takes its lock. With `resume`, work under the same plan goes on.
    pub(super) fn open(out: &Path, plan: &Plan, resume: bool) -> Result<Self> {
        let lock = lock(out)?;
        let dir = out.join(DIR);
        let path = dir.join(FILE);
        let fresh = Stored { signature: plan.signature(), plan: plan.clone(), prelude: None, blocks: Vec::new() };
        let goes_on = resume && path.exists();
        let stored = if goes_on { Self::reread(&path, plan)? } else { fresh };
        let journal = Self { dir, stored, _lock: lock };
        if journal.stored.blocks.is_empty() && journal.stored.prelude.is_none() {
            journal.clear_work(goes_on)?;
        }
        journal.write()?;
        Ok(journal)
    }

    fn reread(path: &Path, plan: &Plan) -> Result<Stored> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
        let stored: Stored = serde_json::from_slice(&text).map_err(|e| {
            Error::input("resume::damaged", format!("`{}` cannot be read: {e}", path.display())).hint("start over with `--overwrite`")
        })?;
        if stored.signature != plan.signature() {
            return Err(different(&stored.plan, plan));
        }
        let prefix = stored.blocks.iter().enumerate().all(|(i, b)| b.block as usize == i);
        if !prefix {
            return Err(Error::input("resume::damaged", format!("`{}` does not list a prefix of the blocks", path.display()))
                .hint("start over with `--overwrite`"));
        }
        Ok(stored)
    }

    /// Removes what a run has left that finished nothing, but for what it has learned so far where that goes on.
    fn clear_work(&self, goes_on: bool) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir).map_err(|e| Error::io(&self.dir, "list", e))? {
            let path = entry.map_err(|e| Error::io(&self.dir, "list", e))?.path();
            let stays = path.ends_with("lock") || (goes_on && path.ends_with(LEARNING));
            if !stays && path.is_file() {
                std::fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", e))?;
            }
        }
        Ok(())
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.stored).map_err(|e| Error::internal(e.to_string()))?;
        replace_file(&self.dir.join(FILE), &text)
    }

    /// The work directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was learned before the first block.
    pub(super) fn prelude(&self) -> Option<&PreludeEntry> {
        self.stored.prelude.as_ref()
    }

    /// Records what was learned before the first block. Its file is on disk already.
    pub(super) fn finish_prelude(&mut self, entry: PreludeEntry) -> Result<()> {
        self.stored.prelude = Some(entry);
        self.write()
    }

    /// Finished blocks.
    pub(super) fn blocks(&self) -> &[BlockEntry] {
        &self.stored.blocks
    }

    /// Records a finished block. Its files are on disk already.
    pub(super) fn finish_block(&mut self, entry: BlockEntry) -> Result<()> {
        self.stored.blocks.push(entry);
        self.write()
    }

    /// The shard of a block.
    pub(super) fn shard(&self, block: u32) -> PathBuf {
        self.dir.join(format!("block-{block:05}.safetensors"))
    }

    /// A stream as it stands behind `blocks` blocks.
    pub(super) fn stream(&self, name: &str, blocks: u32) -> PathBuf {
        self.dir.join(format!("stream-{name}-{blocks:05}.f32"))
    }
}

/// The error for a resume under another plan.
pub(super) fn different(there: &Plan, here: &Plan) -> Error {
    let differences = there.differences(here);
    let shown: Vec<&str> = differences.iter().take(8).map(String::as_str).collect();
    let more = differences.len().saturating_sub(shown.len());
    let tail = if more > 0 { format!("; and {more} more") } else { String::new() };
    Error::config("resume::different-plan", format!("the output directory holds work under a different plan: {}{tail}", shown.join("; ")))
        .hint("repeat the original command, choose another output directory, or start over with `--overwrite`")
}

/// Hash of a file.
pub(super) fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io(path, "read", e))?;
    Ok(hasher.finalize().to_hex().to_string())
}
