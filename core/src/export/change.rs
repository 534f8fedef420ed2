//! What an export does to the values: measured on every tensor before anything is written.
//!
//! With `w` what a tensor stands for in the checkpoint and `ŵ` in the container: `largest` is the largest `max|w − ŵ| / max|w|` of a
//! tensor, `rms` is `‖w − ŵ‖ / ‖w‖` over all of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::fit::{Fit, Fitted};
use super::source::Source;
use super::stock::{reader, values};
use crate::checkpoint::{Container, Verdict};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::scheme::FloatKind;

/// Values compared at a time.
const PIECE: usize = 1 << 18;

/// What the rounding of a scale or of a float to sixteen bits stays below: 2⁻⁸, half a step of bf16 at most and a little.
const ROUNDING: f64 = 1.0 / 256.0;

/// Why values change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// They do not.
    Same,
    /// Codes are kept, and what they are multiplied with, or counted from, is stored in another way.
    Scales,
    /// What was codes or blocks becomes floats.
    Floats,
    /// Codes are new.
    Rounded,
}

/// Tensors whose values change in one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Why.
    pub kind: Kind,
    /// What happens, in words.
    pub what: String,
    /// How many tensors.
    pub tensors: usize,
    /// The largest change of a value, over the largest value of its tensor.
    pub largest: f64,
    /// The root mean square of all changes, over that of all values.
    pub rms: f64,
}

impl Change {
    /// Whether it is more than the rounding of a number that stands for many, or of a float.
    pub(super) fn beyond_rounding(&self) -> bool {
        self.kind == Kind::Rounded || self.largest > ROUNDING
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, s) = (self.tensors, if self.tensors == 1 { "" } else { "s" });
        match self.kind {
            Kind::Same => write!(f, "{n} tensor{s} {}", self.what),
            _ => write!(f, "{n} tensor{s} {}: values move by {:.1e} (rms), at most by {:.1e}", self.what, self.rms, self.largest),
        }
    }
}

/// Sums over tensors that change in one way.
#[derive(Default)]
struct Sums {
    tensors: usize,
    largest: f64,
    error: f64,
    norm: f64,
}

/// The same of one tensor.
#[derive(Default)]
struct Difference {
    most: f32,
    top: f32,
    error: f64,
    norm: f64,
}

impl Difference {
    fn add(&mut self, was: &[f32], is: &[f32]) {
        for (a, b) in was.iter().zip(is) {
            let d = a - b;
            // What is no number is no small change.
            self.most = if d.is_nan() { f32::INFINITY } else { self.most.max(d.abs()) };
            self.top = self.top.max(a.abs());
            self.error += f64::from(d) * f64::from(d);
            self.norm += f64::from(*a) * f64::from(*a);
        }
    }

    fn largest(&self) -> f64 {
        match (self.most == 0.0, self.top == 0.0) {
            (true, _) => 0.0,
            (false, true) => f64::INFINITY,
            (false, false) => f64::from(self.most) / f64::from(self.top),
        }
    }
}

#[derive(Default)]
struct Table(BTreeMap<(Kind, String), Sums>);

impl Table {
    fn add(&mut self, kind: Kind, what: String, d: &Difference) {
        let sums = self.0.entry((kind, what)).or_default();
        sums.tensors += 1;
        sums.largest = sums.largest.max(d.largest());
        sums.error += d.error;
        sums.norm += d.norm;
    }
}

/// Compares what `fitted` makes of every tensor with what it was.
///
/// # Errors
/// If the container cannot hold a number, or reading fails.
pub(super) fn measure(
    source: &Source,
    container: &dyn Container,
    fitted: &Fitted,
    registry: &Registry,
) -> Result<(Vec<Change>, Vec<String>)> {
    let native = reader(source, fitted, registry)?;
    let mut table = Table::default();
    for old in source.plan.native_sites() {
        let was = values(&*source.tensors, &old)?;
        let Some(new) = native.sites.iter().find(|s| s.module == old.module) else {
            let d = as_floats(&old.module, &was, source.dtype)?;
            let what = format!("of {} written as {}", old.spec.format, source.dtype.name());
            table.add(if d.most == 0.0 { Kind::Same } else { Kind::Floats }, what, &d);
            continue;
        };
        let held = container.held(&native, new, native.rounded(new)?).map_err(|e| e.within(format!("`{}`", new.site)))?;
        let (rows, cols) = new.shape;
        let (mut d, mut is) = (Difference::default(), Vec::new());
        let step = (PIECE / cols.max(1)).max(1);
        for first in (0..rows).step_by(step) {
            let piece = first..(first + step).min(rows);
            held.values(&new.spec.grid, piece.clone(), &mut is);
            d.add(&was[piece.start * cols..piece.end * cols], &is);
        }
        let (kind, what) = match fitted.fits.get(&old.module) {
            Some(Fit::Nearest) => (Kind::Rounded, format!("of {} rounded again, to {}", old.spec, new.spec)),
            _ if d.most == 0.0 => (Kind::Same, "keep their codes and every value".to_owned()),
            _ => (Kind::Scales, "keep their codes, with scales as the format stores them".to_owned()),
        };
        table.add(kind, what, &d);
    }
    let mut was = Vec::new();
    for (name, block) in &source.blocks {
        let rows = source.tensors.require(name)?.shape.first().copied().unwrap_or(1);
        source.tensors.read_f32(name, 0..rows, &mut was)?;
        let d = as_floats(name, &was, source.dtype)?;
        let what = format!("in blocks of {block}, whose scales have scales and which no grid holds, written as {}", source.dtype.name());
        table.add(if d.most == 0.0 { Kind::Same } else { Kind::Floats }, what, &d);
    }
    let row = |((kind, what), s): ((Kind, String), Sums)| Change {
        kind,
        what,
        tensors: s.tensors,
        largest: s.largest,
        rms: if s.norm > 0.0 { (s.error / s.norm).sqrt() } else { 0.0 },
    };
    let changes: Vec<Change> = table.0.into_iter().map(row).collect();
    let scales = changes.iter().any(|c| c.kind == Kind::Scales);
    let said = match container.accepts(&fitted.plan) {
        Verdict::Changes(text) if scales => Some(text),
        _ => None,
    };
    Ok((changes, said.into_iter().collect()))
}

fn as_floats(name: &str, was: &[f32], dtype: FloatKind) -> Result<Difference> {
    let is: Vec<f32> = was.iter().map(|x| dtype.round(*x)).collect();
    if let Some((x, _)) = was.iter().zip(&is).find(|(x, y)| x.is_finite() && !y.is_finite()) {
        return Err(Error::numeric("export::overflow", format!("`{name}` holds {x}, which {} cannot hold", dtype.name()))
            .hint("give `--dtype float32` or `--dtype bfloat16`"));
    }
    let mut d = Difference::default();
    d.add(was, &is);
    Ok(d)
}
