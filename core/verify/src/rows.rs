//! The rows of a tensor of the model, one after another, with no more of it in memory than that takes.

use crate::checkpoint::{Entry, Form};
use crate::container::gguf::stored_row;
use crate::error::{Error, Result};
use crate::matrix::{Matrix, Row};
use crate::store::{Store, Tensor};

/// Bytes that are read at once, about.
const PIECE: usize = 1 << 20;

/// What gives rows. A vector is one row.
pub(crate) struct Rows<'a> {
    pub count: usize,
    pub width: usize,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Matrix(Matrix),
    /// Rows `first ..` of a stored tensor.
    Floats {
        store: &'a Store,
        tensor: &'a Tensor,
        head: Option<usize>,
        first: usize,
        values: Vec<f32>,
    },
    /// The whole, since it is stored the other way round.
    Turned(Vec<f32>),
}

impl<'a> Rows<'a> {
    /// Opens a tensor. `None`: it holds no numbers.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn open(entry: &Entry, store: &'a Store) -> Result<Option<Self>> {
        if matches!(entry.form, Form::Bytes(_)) {
            return Ok(None);
        }
        let (count, width) = match entry.shape[..] {
            [] => (1, 1),
            [n] => (1, n),
            // Nothing is read of what is empty, however many rows it says it has.
            _ if entry.shape.contains(&0) => (0, 0),
            [rows, ..] => (rows, entry.shape[1..].iter().product()),
        };
        let kind = match &entry.form {
            Form::Coded(load) => Kind::Matrix(load.load(store)?),
            Form::Bytes(_) => return Ok(None),
            Form::Floats { tensor, turned: true, .. } => {
                let stored = store.floats(tensor)?;
                // Stored as `[width, count]`.
                Kind::Turned((0..count).flat_map(|r| (0..width).map(move |c| (r, c))).map(|(r, c)| stored[c * count + r]).collect())
            }
            Form::Floats { tensor, head, .. } => {
                let tensor = store.require(tensor)?;
                if count == 1 && head.is_some() {
                    // A vector whose elements belong to heads: each is a row of the matrix beside it.
                    let stored = store.floats(&tensor.name)?;
                    Kind::Turned((0..width).map(|i| stored[stored_row(i, *head)]).collect())
                } else {
                    Kind::Floats { store, tensor, head: *head, first: 0, values: Vec::new() }
                }
            }
        };
        Ok(Some(Self { count, width, kind }))
    }

    /// Row `r`; rows are asked for in their order.
    ///
    /// # Errors
    /// If reading fails.
    pub(crate) fn read(&mut self, r: usize, out: &mut Row) -> Result<()> {
        let width = self.width;
        match &mut self.kind {
            Kind::Matrix(matrix) => matrix.row(r, out),
            Kind::Turned(values) => set(out, &values[r * width..][..width]),
            Kind::Floats { store, tensor, head, first, values } => {
                let here = values.len().checked_div(width).unwrap_or(0);
                if r < *first || r >= *first + here {
                    // Whole heads, whose rows are in another order.
                    let step = head.unwrap_or(1);
                    let each = tensor.dtype.float_bytes().unwrap_or(1) * width.max(1);
                    let rows = (PIECE / each / step).max(1) * step;
                    *first = r / step * step;
                    let bytes = store.part(tensor, (*first * each) as u64..((*first + rows) * each) as u64)?;
                    *values = tensor.dtype.floats(&bytes).ok_or_else(|| Error::tensor(format!("`{}` holds no floats", tensor.name)))?;
                }
                let row = stored_row(r, *head) - *first;
                set(out, &values[row * width..][..width]);
            }
        }
        Ok(())
    }
}

fn set(out: &mut Row, values: &[f32]) {
    out.steps.clear();
    out.values.clear();
    out.values.extend_from_slice(values);
}
