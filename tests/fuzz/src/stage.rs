//! A directory that an input is put into: a copy of a sound checkpoint, in memory where the system has such a place.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where temporary directories are fastest. `TMPDIR` says it to those who want them elsewhere.
fn place() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if std::env::var_os("TMPDIR").is_none() && memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}

/// A directory of one's own.
#[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
pub(crate) fn directory() -> TempDir {
    tempfile::Builder::new().prefix("qfw-fuzz-").tempdir_in(place()).expect("a temporary directory can be made")
}

/// A directory whose files an input replaces.
pub(crate) struct Stage {
    dir: TempDir,
}

impl Stage {
    /// An empty one.
    pub(crate) fn empty() -> Self {
        Self { dir: directory() }
    }

    /// A copy of the files of `base`.
    #[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
    pub(crate) fn copy(base: &Path) -> Self {
        let stage = Self::empty();
        for (name, bytes) in files(base) {
            if let Some(inside) = Path::new(&name).parent() {
                std::fs::create_dir_all(stage.dir.path().join(inside)).expect("a directory can be made");
            }
            stage.put(&name, &bytes);
        }
        stage
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file.
    #[allow(clippy::expect_used, reason = "a fuzzer without a place to write cannot go on")]
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.path().join(name), bytes).expect("a file can be written");
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let _ = std::fs::remove_file(self.dir.path().join(name));
    }
}

/// The files of `dir` and of the directories in it, with their bytes.
#[allow(clippy::expect_used, reason = "what was just written can be read")]
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the base can be listed") {
        let path = entry.expect("the base can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            all.push((name, std::fs::read(&path).expect("the base can be read")));
        }
    }
    all.sort();
    all
}
