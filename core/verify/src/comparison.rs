//! A checkpoint beside what it should be: the record of a run, another checkpoint, or both.

use std::path::{Component, Path, PathBuf};

use crate::check;
use crate::checkpoint::{Checkpoint, Entry, Form};
use crate::error::Finding;
use crate::family::{BUFFERS, short};
use crate::record::{Fingerprint, Record};
use crate::report::{Report, TensorReport};

/// What is compared, and what has been found so far.
pub(crate) struct Comparison {
    here: Checkpoint,
    there: Option<Checkpoint>,
    record: Option<Record>,
    tensors: Vec<TensorReport>,
    findings: Vec<Finding>,
    unchecked: Vec<String>,
    left_out: Vec<String>,
}

impl Comparison {
    pub(crate) fn new(mut here: Checkpoint, mut there: Option<Checkpoint>, record: Option<Record>) -> Self {
        let mut findings = std::mem::take(&mut here.findings);
        // What is wrong with the other one is no news of this one, and has to be known to judge it.
        let others = there.as_mut().map(|t| std::mem::take(&mut t.findings)).unwrap_or_default();
        findings.extend(others.into_iter().map(|f| Finding { message: format!("in the other checkpoint: {}", f.message), ..f }));
        Self { here, there, record, tensors: Vec::new(), findings, unchecked: Vec::new(), left_out: Vec::new() }
    }

    /// Goes over everything.
    pub(crate) fn report(mut self, path: &Path, record: Option<PathBuf>) -> Report {
        let entries = std::mem::take(&mut self.here.entries);
        for (name, entry) in &entries {
            // What belongs to no tensor of the model is checked if anybody says what it should be.
            let said = self.record.as_ref().is_some_and(|r| r.tensors.contains_key(name));
            let there = self.there.as_ref().is_some_and(|t| t.entries.contains_key(name));
            if !said && !there && self.told_elsewhere(name) {
                continue;
            }
            if !self.here.aside.contains(name) || said || there {
                self.tensor(name, entry);
            } else {
                self.unchecked.push(name.clone());
            }
        }
        self.here.entries = entries;
        self.missing();
        if let Some(record) = self.record.take() {
            self.activations(&record);
            self.files(&record);
        }
        let of_tensor = |t: &TensorReport| [t.codes_as_recorded, t.against.as_ref().and_then(|d| d.codes_equal)];
        let codes: Vec<bool> = self.tensors.iter().flat_map(of_tensor).flatten().collect();
        Report {
            path: path.to_owned(),
            container: self.here.container,
            record,
            equal: self.findings.is_empty() && !self.tensors.iter().any(TensorReport::differs),
            codes_equal: (!codes.is_empty()).then(|| codes.into_iter().all(|c| c)),
            tensors: self.tensors,
            findings: self.findings,
            unchecked: self.unchecked,
            left_out: self.left_out,
            known_architecture: self.here.known,
        }
    }

    /// Whether somebody says what another copy of a tensor should be. Copies are equal.
    fn told_elsewhere(&self, name: &str) -> bool {
        let said = |n: &String| self.record.as_ref().is_some_and(|r| r.tensors.contains_key(n));
        let there = |n: &String| self.there.as_ref().is_some_and(|t| t.entries.contains_key(n));
        self.here.copies.get(name).is_some_and(|others| others.iter().any(|n| said(n) || there(n)))
    }

    /// One tensor.
    fn tensor(&mut self, name: &str, entry: &Entry) {
        let said = self.record.as_ref().and_then(|r| recorded(r, name));
        let other = self.there.as_ref().and_then(|t| t.find(name).map(|n| (&t.entries[n], t)));
        let known: Vec<&str> = self.findings.iter().filter(|f| f.tensor.as_deref() == Some(name)).map(|f| f.code).collect();
        let mut find = |code, message| {
            // What the tensor's name alone has told is told once.
            if !(code == "extra" && known.contains(&code)) {
                self.findings.push(Finding::of(code, name, message));
            }
        };
        if said.is_none() && self.record.is_some() {
            find("extra", format!("`{name}` is there, and the run did not write it"));
        }
        if other.is_none() && self.there.is_some() {
            find("extra", format!("`{name}` is here, and not in the other checkpoint"));
        }
        if said.is_none() && other.is_none() {
            self.unchecked.push(name.to_owned());
        }
        if let Some(said) = said.filter(|s| s.shape != entry.shape) {
            find("shape", format!("`{name}` is {:?}, and the run wrote {:?}", entry.shape, said.shape));
        }
        match check::pass(name, entry, &self.here, other) {
            Ok(pass) => {
                if let (Some(said), Some(global)) = (said.and_then(|s| s.global.as_ref()), &pass.global)
                    && said != global
                {
                    find("tensor", format!("what all scales of `{name}` are multiples of is not what the run wrote"));
                }
                self.findings.extend(pass.findings);
                self.tensors.push(TensorReport {
                    name: name.to_owned(),
                    shape: entry.shape.clone(),
                    quantized: matches!(entry.form, Form::Coded(_)),
                    as_recorded: said.map(|s| s.values == pass.values),
                    codes_as_recorded: said.and_then(|s| Some(*s.codes.as_ref()? == pass.codes?)),
                    against: pass.against,
                });
            }
            Err(e) => find(if e.code == "shape" { "shape" } else { "tensor" }, e.message),
        }
    }

    /// Tensors that are known of and not here.
    fn missing(&mut self) {
        let recorded = self.record.iter().flat_map(|r| r.tensors.keys());
        let there_again = |t: &Checkpoint, n: &String| t.copies.get(n).is_some_and(|c| c.iter().any(|o| self.here.find(o).is_some()));
        let others = self.there.iter().flat_map(|t| t.entries.keys().filter(move |n| !there_again(t, n)));
        let mut absent: Vec<&String> = recorded.chain(others).filter(|n| self.here.find(n).is_none()).collect();
        absent.sort();
        absent.dedup();
        for name in absent {
            if ["gguf", "onnx", "shark"].contains(&self.here.container.as_str()) && BUFFERS.iter().any(|b| name.ends_with(b)) {
                self.left_out.push(name.clone());
            } else if !self.here.broken(name) && !self.findings.iter().any(|f| f.tensor.as_ref() == Some(name)) {
                self.findings.push(Finding::of("missing", name, format!("`{name}` is missing")));
            }
        }
    }

    /// Scales of activations.
    fn activations(&mut self, record: &Record) {
        let mut find = |name: &str, what: &str| {
            self.findings.push(Finding::of("activation", name, format!("the scales of `{name}` {what}")));
        };
        for (name, said) in &record.activations {
            match self.here.activations.get(name) {
                Some(a) if check::hash(&a.numbers) == *said || a.enough.is_some_and(|n| check::hash(&a.numbers[..n]) == *said) => {}
                Some(_) => find(name, "are not those that the run recorded"),
                None => find(name, "are missing"),
            }
        }
        for name in self.here.activations.keys().filter(|n| !record.activations.contains_key(*n)) {
            find(name, "are there, and the run did not write them");
        }
    }

    /// Files beside the weights.
    fn files(&mut self, record: &Record) {
        let mut find = |message: String| self.findings.push(Finding::new("side-file", message));
        for (name, said) in &record.files {
            // A name, not a way out of the directory.
            if Path::new(name).components().any(|c| !matches!(c, Component::Normal(_))) {
                find(format!("`{name}` in the record is no file beside it"));
                continue;
            }
            match std::fs::read(self.here.dir.join(name)) {
                Ok(bytes) if blake3::hash(&bytes).to_hex().as_str() == said => {}
                Ok(_) => find(format!("`{name}` is not what the run wrote")),
                Err(e) => find(format!("`{name}` cannot be read: {e}")),
            }
        }
    }
}

/// What the run recorded of a tensor, by its name or by that without the module around the model.
fn recorded<'a>(record: &'a Record, name: &str) -> Option<&'a Fingerprint> {
    let exact = record.tensors.get(name);
    exact.or_else(|| record.tensors.iter().find(|(k, _)| short(k) == short(name)).map(|(_, f)| f))
}
