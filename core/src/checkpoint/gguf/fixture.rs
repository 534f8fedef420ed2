//! GGUF bytes for tests, written by hand.

/// A file in the making. Fields are public so that a test can damage any of them.
pub(super) struct Fixture {
    pub(super) version: u32,
    pub(super) pairs: Vec<Vec<u8>>,
    pub(super) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    pub(super) alignment: usize,
}

impl Fixture {
    pub(super) fn new(architecture: &str) -> Self {
        let mut new = Self { version: 3, pairs: Vec::new(), tensors: Vec::new(), alignment: 32 };
        new.text("general.architecture", architecture);
        new
    }

    pub(super) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.pairs.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
    }

    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.raw(key, 8, &string(value));
    }

    pub(super) fn uint(&mut self, key: &str, value: u32) {
        self.raw(key, 4, &value.to_le_bytes());
    }

    pub(super) fn float(&mut self, key: &str, value: f32) {
        self.raw(key, 6, &value.to_le_bytes());
    }

    pub(super) fn bool(&mut self, key: &str, value: bool) {
        self.raw(key, 7, &[u8::from(value)]);
    }

    pub(super) fn texts(&mut self, key: &str, values: &[&str]) {
        let values = values.iter().map(|v| string(v)).collect::<Vec<_>>();
        self.list(key, 8, &values);
    }

    pub(super) fn ints(&mut self, key: &str, values: &[i32]) {
        let values = values.iter().map(|v| v.to_le_bytes().to_vec()).collect::<Vec<_>>();
        self.list(key, 5, &values);
    }

    pub(super) fn floats(&mut self, key: &str, values: &[f32]) {
        let values = values.iter().map(|v| v.to_le_bytes().to_vec()).collect::<Vec<_>>();
        self.list(key, 6, &values);
    }

    fn list(&mut self, key: &str, kind: u32, values: &[Vec<u8>]) {
        let count = values.len() as u64;
        self.raw(key, 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), &values.concat()].concat());
    }

    /// A tensor of f32 with `shape` slowest first, holding 0, 1, 2, … from `first`.
    pub(super) fn counted(&mut self, name: &str, shape: &[usize], first: f32) {
        let bytes = (0..shape.iter().product()).flat_map(|i: usize| (first + i as f32).to_le_bytes()).collect();
        self.stored(name, shape, 0, bytes);
    }

    pub(super) fn stored(&mut self, name: &str, shape: &[usize], format: u32, bytes: Vec<u8>) {
        self.tensors.push((name.to_owned(), shape.iter().rev().map(|l| *l as u64).collect(), format, bytes));
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.pairs.len() as u64).to_le_bytes());
        out.extend(self.pairs.concat());
        let mut offset = 0;
        for (name, lengths, format, bytes) in &self.tensors {
            out.extend(string(name));
            out.extend((lengths.len() as u32).to_le_bytes());
            out.extend(lengths.iter().flat_map(|l| l.to_le_bytes()));
            out.extend(format.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(self.alignment);
        }
        for (.., bytes) in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    pub(super) fn write(&self) -> Written {
        written(&self.bytes())
    }
}

/// A file that is deleted with the value.
pub(super) struct Written {
    pub(super) path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

pub(super) fn written(bytes: &[u8]) -> Written {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a writable temporary directory");
    Written { path, _directory: directory }
}

pub(super) fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}
