//! Hidden states of all windows, in memory or on disk.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::numeric::with_slice;

/// One stream: for each window its hidden states `[tokens, hidden]`, f32.
pub(super) struct Stream {
    hidden: usize,
    lengths: Vec<usize>,
    storage: Storage,
}

enum Storage {
    Memory(Vec<Mutex<Vec<f32>>>),
    Disk { file: File, path: PathBuf, offsets: Vec<u64> },
}

impl Stream {
    /// An empty stream for windows of these lengths; on disk at `spill`, where one is given.
    pub(super) fn new(lengths: Vec<usize>, hidden: usize, spill: Option<&Path>) -> Result<Self> {
        let storage = match spill {
            None => Storage::Memory(lengths.iter().map(|_| Mutex::default()).collect()),
            Some(path) => {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .open(path)
                    .map_err(|e| Error::io(path, "create", e))?;
                Storage::Disk { file, path: path.to_owned(), offsets: offsets(&lengths, hidden) }
            }
        };
        Ok(Self { hidden, lengths, storage })
    }

    /// Number of windows.
    pub(super) fn windows(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of all values.
    pub(super) fn bytes(&self) -> u64 {
        self.lengths.iter().map(|n| (n * self.hidden * 4) as u64).sum()
    }

    /// The hidden states of a window.
    pub(super) fn get(&self, window: usize, device: &Device) -> Result<Tensor> {
        let shape = (self.lengths[window], self.hidden);
        let data = self.values(window)?;
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?.to_device(device)?)
    }

    fn values(&self, window: usize) -> Result<Vec<f32>> {
        match &self.storage {
            Storage::Memory(slots) => Ok(slots[window].lock().map_err(|_| Error::internal("a thread panicked in a stream"))?.clone()),
            Storage::Disk { file, path, offsets } => {
                let mut bytes = vec![0; self.lengths[window] * self.hidden * 4];
                file.read_exact_at(&mut bytes, offsets[window]).map_err(|e| Error::io(path, "read", e))?;
                Ok(bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
            }
        }
    }

    /// Shows the hidden states of a window.
    pub(super) fn read<T>(&self, window: usize, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
        Ok(look(&self.values(window)?))
    }

    /// Replaces the hidden states of a window.
    pub(super) fn set(&self, window: usize, x: &Tensor) -> Result<()> {
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        with_slice::<f32, _>(&x, |x| self.store(window, x))
    }

    fn store(&self, window: usize, x: &[f32]) -> Result<()> {
        if x.len() != self.lengths[window] * self.hidden {
            return Err(Error::internal(format!("window {window} of a stream has {} values", x.len())));
        }
        match &self.storage {
            Storage::Memory(slots) => {
                let mut slot = slots[window].lock().map_err(|_| Error::internal("a thread panicked in a stream"))?;
                slot.clear();
                slot.extend_from_slice(x);
                Ok(())
            }
            Storage::Disk { file, path, offsets } => {
                let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
                file.write_all_at(&bytes, offsets[window]).map_err(|e| Error::io(path, "write", e))
            }
        }
    }

    /// Writes the stream to `path`, durably, and returns the hash of what was written.
    pub(super) fn save(&self, path: &Path) -> Result<String> {
        let temporary = path.with_extension("tmp~");
        let file = File::create(&temporary).map_err(|e| Error::io(&temporary, "create", e))?;
        let mut hasher = blake3::Hasher::new();
        let mut position = 0;
        for window in 0..self.windows() {
            let bytes: Vec<u8> = self.values(window)?.iter().flat_map(|v| v.to_le_bytes()).collect();
            hasher.update(&bytes);
            file.write_all_at(&bytes, position).map_err(|e| Error::io(&temporary, "write", e))?;
            position += bytes.len() as u64;
        }
        file.sync_all().map_err(|e| Error::io(&temporary, "sync", e))?;
        std::fs::rename(&temporary, path).map_err(|e| Error::io(path, "rename into place", e))?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Fills the stream from `path`, checking the hash.
    pub(super) fn load(&self, path: &Path, hash: &str) -> Result<()> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let mut hasher = blake3::Hasher::new();
        let mut position = 0;
        for window in 0..self.windows() {
            let mut bytes = vec![0; self.lengths[window] * self.hidden * 4];
            file.read_exact_at(&mut bytes, position).map_err(|e| Error::io(path, "read", e))?;
            hasher.update(&bytes);
            position += bytes.len() as u64;
            let values: Vec<f32> = bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
            self.store(window, &values)?;
        }
        if hasher.finalize().to_hex().as_str() != hash {
            return Err(Error::input("resume::damaged", format!("`{}` is not what the journal says was written", path.display()))
                .hint("start over with `--overwrite`"));
        }
        Ok(())
    }
}

fn offsets(lengths: &[usize], hidden: usize) -> Vec<u64> {
    lengths
        .iter()
        .scan(0, |next, n| {
            let at = *next;
            *next += (n * hidden * 4) as u64;
            Some(at)
        })
        .collect()
}
