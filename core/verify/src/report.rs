//! What checking tells.

use std::path::PathBuf;

use serde::Serialize;

use crate::error::Finding;
use crate::matrix::Row;

/// How the values of a tensor differ from those of another checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Values that differ.
    pub differing: u64,
    /// The largest magnitude of a difference.
    pub largest: f64,
    /// Row and column of the first value that differs.
    pub first: Option<Position>,
    /// Row and column of the value that differs most.
    pub worst: Option<Position>,
    /// Whether all codes say the same without their scales; nothing where one side has no codes.
    pub codes_equal: Option<bool>,
    /// Codes that differ.
    #[serde(skip)]
    pub(crate) codes_differing: u64,
}

/// A value in both checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Position {
    /// Output, or the index along the first axis.
    pub row: usize,
    /// Input, or the index along the other axes.
    pub column: usize,
    /// The value here.
    pub here: f32,
    /// The value there.
    pub there: f32,
}

impl Difference {
    /// Counts row `r`.
    pub(crate) fn add(&mut self, r: usize, here: &Row, there: &Row) {
        self.codes_differing += here.steps.iter().zip(&there.steps).filter(|(a, b)| a != b).count() as u64;
        if here.values == there.values {
            return;
        }
        for (column, (a, b)) in here.values.iter().zip(&there.values).enumerate() {
            if a == b || a.is_nan() && b.is_nan() {
                continue;
            }
            let by = (f64::from(*a) - f64::from(*b)).abs();
            let position = || Some(Position { row: r, column, here: *a, there: *b });
            self.differing += 1;
            if self.first.is_none() {
                self.first = position();
            }
            // What is no number is the worst there is.
            let by = if by.is_nan() { f64::MAX } else { by.min(f64::MAX) };
            if self.worst.is_none() || by > self.largest {
                self.largest = by;
                self.worst = position();
            }
        }
    }
}

/// One tensor of the model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name in the float model.
    pub name: String,
    /// Outputs and inputs, or the shape as the model has it.
    pub shape: Vec<usize>,
    /// It is stored as codes.
    pub quantized: bool,
    /// Whether its values are those that the run recorded; nothing where nothing was.
    pub as_recorded: Option<bool>,
    /// Whether its codes are; nothing where it has none.
    pub codes_as_recorded: Option<bool>,
    /// How it differs from the other checkpoint, where there is one.
    pub against: Option<Difference>,
}

impl TensorReport {
    /// Whether it is known to be other than it should be.
    pub fn differs(&self) -> bool {
        self.as_recorded == Some(false) || self.codes_as_recorded == Some(false) || self.against.as_ref().is_some_and(|d| d.differing > 0)
    }
}

/// What was checked, and what was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was checked.
    pub path: PathBuf,
    /// How it is quantized: a `quant_method`, `gguf` or `none`.
    pub container: String,
    /// The record that it was compared with.
    pub record: Option<PathBuf>,
    /// Everything is as it should be.
    pub equal: bool,
    /// Whether all codes are those of the record and of the other checkpoint; nothing where neither has any.
    pub codes_equal: Option<bool>,
    /// Every tensor, by name.
    pub tensors: Vec<TensorReport>,
    /// What is wrong, in the order found.
    pub findings: Vec<Finding>,
    /// Tensors that nothing here says anything about.
    pub unchecked: Vec<String>,
    /// Buffers that this format leaves out.
    pub left_out: Vec<String>,
    /// The architecture is known here, so that names and shapes were checked against the configuration.
    pub known_architecture: bool,
}
