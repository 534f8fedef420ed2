//! Learning between two steps, in the work directory: a run that goes on loses one step.

use std::path::{Path, PathBuf};

use crate::algorithm::{Halfway, Store};
use crate::checkpoint::{ContainerWriter, SafetensorsSource, SafetensorsWriter, StoredDtype, TensorDecl, TensorSource, rename_file};
use crate::error::{Error, Result};

/// The file's name, and the same without ending.
pub(in super::super) const FILE: &str = "learning.safetensors";
const STEM: &str = "learning";

/// Where the learner of the best batch begins among the names of tensors.
const BEST: &str = "best.";
const NOW: &str = "now.";
/// The loss at first; then, if there is a best batch, its loss and how many steps lie before it.
const LOSSES: &str = "losses";
const CURVE: &str = "curve";

const DAMAGED: &str = "resume::damaged";

/// The file.
pub(super) struct OnDisk(PathBuf);

impl OnDisk {
    pub(super) fn new(work: &Path) -> Self {
        Self(work.join(FILE))
    }

    /// Steps that it is behind.
    pub(super) fn steps(&self) -> Result<usize> {
        if !self.0.exists() {
            return Ok(0);
        }
        let file = self.file()?;
        Ok(file.info(CURVE).and_then(|curve| curve.shape.first().copied()).unwrap_or(0))
    }

    fn file(&self) -> Result<SafetensorsSource> {
        SafetensorsSource::open_files(std::slice::from_ref(&self.0)).map_err(|e| Self::damaged(&e))
    }

    fn damaged(cause: &Error) -> Error {
        Error::input(DAMAGED, format!("what was learned so far cannot be read: {cause}")).hint("start over with `--overwrite`")
    }

    /// Removes the file: learning is over.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_file(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&self.0, "remove", e)),
            _ => Ok(()),
        }
    }

    fn read(&self) -> Result<Halfway<Vec<f64>>> {
        let file = self.file()?;
        let numbers = |name: &str| -> Result<Vec<f64>> {
            Ok(file.read_bytes(name)?.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect())
        };
        let state = |prefix: &str| -> Result<Vec<Vec<f64>>> {
            let names = (0..).map(|i| format!("{prefix}{i}")).take_while(|name| file.info(name).is_some());
            names.map(|name| numbers(&name)).collect()
        };
        let (initial, best) = match numbers(LOSSES)?[..] {
            [initial] => (initial, None),
            [initial, loss, steps] => (initial, Some((loss, steps as usize, state(BEST)?))),
            _ => return Err(Error::input(DAMAGED, "it does not say what was reached")),
        };
        Ok(Halfway { initial, curve: numbers(CURVE)?, now: state(NOW)?, best })
    }
}

impl Store for OnDisk {
    fn load(&self) -> Result<Option<Halfway<Vec<f64>>>> {
        if !self.0.exists() {
            return Ok(None);
        }
        self.read().map(Some).map_err(|e| if e.code() == DAMAGED { e } else { Self::damaged(&e) })
    }

    fn save(&self, Halfway { initial, curve, now, best }: &Halfway<&[f64]>) -> Result<()> {
        let mut losses = vec![*initial];
        let mut all: Vec<(String, &[f64])> = Vec::new();
        let named = |prefix: &'static str| move |(i, n)| (format!("{prefix}{i}"), n);
        all.extend(now.iter().copied().enumerate().map(named(NOW)));
        if let Some((loss, steps, state)) = best {
            losses.extend([*loss, *steps as f64]);
            all.extend(state.iter().copied().enumerate().map(named(BEST)));
        }
        all.extend([(LOSSES.to_owned(), losses.as_slice()), (CURVE.to_owned(), curve.as_slice())]);
        let decl = |(name, n): &(String, &[f64])| TensorDecl { name: name.clone(), dtype: StoredDtype::F64, shape: vec![n.len()] };
        let (dir, temporary) = (self.0.parent().unwrap_or(Path::new(".")), format!("{STEM}.tmp~"));
        let mut writer =
            SafetensorsWriter::create(dir, &temporary, &all.iter().map(decl).collect::<Vec<_>>(), u64::MAX, &Default::default())?;
        for (name, n) in &all {
            // Of large models these are gigabytes: a part at a time.
            for part in n.chunks(1 << 16) {
                writer.write(name, &part.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        writer.finish()?;
        rename_file(&dir.join(format!("{temporary}.safetensors")), &self.0)
    }
}
