//! Work that is finished, a line of JSON each: what a run that was killed goes on from.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use qfw_core::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line<T> {
    /// Hash of everything that the result depends on.
    key: String,
    /// Which it is, for people.
    name: String,
    result: T,
}

/// What is finished.
pub(crate) struct Kept<T> {
    path: PathBuf,
    by_key: BTreeMap<String, T>,
}

impl<T: Clone + Serialize + DeserializeOwned> Kept<T> {
    /// What is in the file at `path`, if there is one. A line that was cut short by a kill does not count.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let text = if path.exists() { std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))? } else { String::new() };
        let lines = text.lines().filter_map(|l| serde_json::from_str::<Line<T>>(l).ok());
        Ok(Self { path: path.to_owned(), by_key: lines.map(|l| (l.key, l.result)).collect() })
    }

    pub(crate) fn find(&self, key: &str) -> Option<T> {
        self.by_key.get(key).cloned()
    }

    /// Keeps a result, and returns it.
    pub(crate) fn add(&mut self, key: String, name: String, result: T) -> Result<T> {
        let line = Line { key, name, result };
        let text = serde_json::to_string(&line).map_err(|e| Error::internal(e.to_string()))?;
        let mut file = std::fs::File::options().create(true).append(true).open(&self.path).map_err(|e| Error::io(&self.path, "open", e))?;
        // A new line first ends one that was cut short.
        write!(file, "\n{text}\n").map_err(|e| Error::io(&self.path, "write", e))?;
        self.by_key.insert(line.key, line.result.clone());
        Ok(line.result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_work_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept.jsonl");
        let done = vec![1.5, f64::MIN_POSITIVE];
        Kept::open(&path).unwrap().add("k".to_owned(), "here".to_owned(), done.clone()).unwrap();
        // A process that was killed while it wrote.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"key\":\"cut").unwrap();
        let mut kept = Kept::open(&path).unwrap();
        kept.add("l".to_owned(), "there".to_owned(), done.clone()).unwrap();
        let kept = Kept::<Vec<f64>>::open(&path).unwrap();
        assert_eq!((kept.find("k"), kept.find("l"), kept.find("cut")), (Some(done.clone()), Some(done), None));
    }
}
