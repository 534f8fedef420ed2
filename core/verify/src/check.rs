//! One pass over every tensor: hashes for the record, differences from another checkpoint, numbers that are none.

use crate::checkpoint::{Checkpoint, Entry, Form};
use crate::error::{Error, Finding, Result};
use crate::matrix::Row;
use crate::report::Difference;
use crate::rows::Rows;

/// Bytes that are hashed at once, about.
const PIECE: usize = 1 << 16;

/// Numbers on the way into a hash.
#[derive(Default)]
struct Numbers {
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
    count: u64,
}

impl Numbers {
    fn add(&mut self, numbers: &[f32]) {
        // −0 + 0 is 0.
        self.bytes.extend(numbers.iter().flat_map(|x| (x + 0.0).to_le_bytes()));
        self.count += numbers.len() as u64;
        if self.bytes.len() >= PIECE {
            self.hasher.update(&self.bytes);
            self.bytes.clear();
        }
    }

    fn finish(mut self) -> String {
        self.hasher.update(&self.bytes);
        self.hasher.finalize().to_hex().to_string()
    }
}

/// The hash of some numbers.
pub(crate) fn hash(numbers: &[f32]) -> String {
    let mut all = Numbers::default();
    all.add(numbers);
    all.finish()
}

/// What one pass over a tensor gives.
pub(crate) struct Pass {
    pub values: String,
    /// The hash of its steps, where it has codes that tell.
    pub codes: Option<String>,
    /// The hash of what its scales are multiples of, where that is stored and its values do not tell it.
    pub global: Option<String>,
    pub against: Option<Difference>,
    pub findings: Vec<Finding>,
}

/// Goes over a tensor, and over the same one of another checkpoint.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn pass(name: &str, entry: &Entry, here: &Checkpoint, other: Option<(&Entry, &Checkpoint)>) -> Result<Pass> {
    let Some(mut rows) = Rows::open(entry, &here.store)? else { return bytes(entry, here, other) };
    let mut theirs = match other {
        Some((theirs, _)) if theirs.shape != entry.shape => {
            return Err(Error::new("shape", format!("`{name}` is {:?} here and {:?} there", entry.shape, theirs.shape)));
        }
        Some((theirs, checkpoint)) => match Rows::open(theirs, &checkpoint.store) {
            Ok(Some(rows)) => Some(rows),
            Ok(None) => return Err(Error::new("tensor", format!("`{name}` holds numbers here, and bytes that are none there"))),
            Err(e) => return Err(Error::new(e.code, format!("there: {e}"))),
        },
        None => None,
    };
    let (mut values, mut steps) = (Numbers::default(), Numbers::default());
    let mut difference = theirs.is_some().then(Difference::default);
    let (mut row, mut their_row, mut findings) = (Row::default(), Row::default(), Vec::new());
    let mut codes_there = true;
    for r in 0..rows.count {
        rows.read(r, &mut row)?;
        values.add(&row.values);
        steps.add(&row.steps);
        if findings.is_empty()
            && let Some(c) = row.values.iter().position(|v| !v.is_finite())
        {
            findings.push(Finding::of("not-finite", name, format!("`{name}` holds {} at [{r}, {c}]", row.values[c])));
        }
        if let (Some(theirs), Some(difference)) = (&mut theirs, &mut difference) {
            theirs.read(r, &mut their_row)?;
            codes_there &= !their_row.steps.is_empty() && !row.steps.is_empty();
            difference.add(r, &row, &their_row);
        }
    }
    let all = (rows.count * rows.width) as u64;
    let codes = (matches!(entry.form, Form::Coded(_)) && steps.count == all).then(|| steps.finish());
    if let Some(difference) = &mut difference {
        difference.codes_equal = codes_there.then_some(difference.codes_differing == 0);
    }
    let global = if let Form::Coded(load) = &entry.form { load.global(&here.store)? } else { None };
    Ok(Pass { values: values.finish(), codes, global: global.map(|g| hash(&[g])), against: difference, findings })
}

/// Tensors without numbers: their bytes.
fn bytes(entry: &Entry, here: &Checkpoint, other: Option<(&Entry, &Checkpoint)>) -> Result<Pass> {
    let read = |entry: &Entry, checkpoint: &Checkpoint| match &entry.form {
        Form::Bytes(name) => checkpoint.store.bytes(checkpoint.store.require(name)?).map(Some),
        _ => Ok(None),
    };
    let ours = read(entry, here)?.unwrap_or_default();
    let against = match other {
        Some((entry, checkpoint)) => {
            let differing = u64::from(read(entry, checkpoint)?.as_deref() != Some(&ours));
            Some(Difference { differing, ..Difference::default() })
        }
        None => None,
    };
    Ok(Pass { values: blake3::hash(&ours).to_hex().to_string(), codes: None, global: None, against, findings: Vec::new() })
}
