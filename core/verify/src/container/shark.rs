//! Quantized matrices of a dataset of sharktank, from its own `dequant`.
//!
//! | layout | value | planes |
//! |---|---|---|
//! | `TensorScaledLayout` | `(q − m)·d` | `qs` `[n, k]` of bytes; `d` and `m` `[]` or `[n, 1]` |
//! | `BlockScaledLayout` | `d·q` | `qs` `[n, k/g, g]` of bytes, `d` `[n, k/g, 1]` |
//! | `BlockScaledI4Layout` | `d·u + m` | `qs` `[n, k/g, g/2]`, the first of two in the low bits; `d`, `m` `[n, k/g, 1]` |
//! | `BlockScaledFp4Layout` | `v·2^(d−127)` | the same of e2m1, `d` of bytes |
//!
//! Source: sharktank 3.8.0, `types/layouts.py` and `types/layout_utils.py`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::dtype::{Dtype, e2m1, e4m3, e4m3_fnuz, e5m2, e5m2_fnuz, e8m0};
use crate::error::{Error, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers};
use crate::store::{Store, Tensor};

/// A matrix in one of the layouts.
pub(crate) struct Planar {
    /// Name in the dataset.
    name: String,
    shape: (usize, usize),
    layout: String,
    /// Entries by plane.
    planes: BTreeMap<String, String>,
}

impl Planar {
    /// The matrix that the dataset says a tensor is.
    ///
    /// # Errors
    /// If it says something else.
    pub(crate) fn of(name: &str, said: &Value) -> Result<Self> {
        let malformed = |what: &str| Error::tensor(format!("what the dataset says of `{name}` has no {what} that is known"));
        let sides: Option<Vec<usize>> =
            said["shape"].as_array().and_then(|s| s.iter().map(|d| d.as_u64().and_then(|d| usize::try_from(d).ok())).collect());
        let Some([rows, cols]) = sides.as_deref().filter(|s| !s.contains(&0)) else { return Err(malformed("`shape`")) };
        let layout = said["layout_type"].as_str().ok_or_else(|| malformed("`layout_type`"))?.to_owned();
        let said_of = &said["layout_metadata"];
        let known = match layout.as_str() {
            "TensorScaledLayout" => said_of["dtype"] == "float32",
            "BlockScaledLayout" => true,
            "BlockScaledI4Layout" => said_of["signed"] == false,
            "BlockScaledFp4Layout" => said_of["block_size"] == 32 && said_of["use_fe8m0_scale"] == true,
            _ => false,
        };
        if !known {
            return Err(malformed("`layout_type` with a `layout_metadata`"));
        }
        let planes = serde_json::from_value(said["raw_tensors"].clone()).map_err(|_| malformed("`raw_tensors`"))?;
        Ok(Self { name: name.to_owned(), shape: (*rows, *cols), layout, planes })
    }

    fn plane<'a>(&self, name: &str, store: &'a Store) -> Result<&'a Tensor> {
        let entry = self.planes.get(name).ok_or_else(|| Error::tensor(format!("`{}` has no plane `{name}`", self.name)))?;
        store.require(entry)
    }

    /// The numbers of a plane, of this shape.
    fn numbers(&self, name: &str, shape: &[usize], store: &Store) -> Result<Vec<f32>> {
        let tensor = self.plane(name, store)?;
        store.expect(&tensor.name, &Dtype::F32, shape)?;
        store.floats(&tensor.name)
    }

    /// Columns of a block, by the shape of its codes, so many to a byte.
    fn block(&self, to_a_byte: usize, store: &Store) -> Result<usize> {
        let (qs, (rows, cols)) = (self.plane("qs", store)?, self.shape);
        let size = qs.shape.last().copied().unwrap_or(0).saturating_mul(to_a_byte);
        if size == 0 || !cols.is_multiple_of(size) || qs.shape != [rows, cols / size, size / to_a_byte] {
            return Err(Error::tensor(format!("`{}` is {:?}, and {rows} x {cols} in blocks is something else", qs.name, qs.shape)));
        }
        Ok(size)
    }
}

/// What each byte of a type counts.
fn bytes(tensor: &Tensor) -> Result<Vec<f32>> {
    let all = |f: &dyn Fn(u8) -> f32| Ok((0..=255u8).map(f).collect());
    match &tensor.dtype {
        Dtype::Int(1) => all(&|c| f32::from(c as i8)),
        Dtype::Uint(1) => Ok(integers(8, 0)),
        Dtype::E4m3 => all(&e4m3),
        Dtype::Other(name, _) if name == "float8_e4m3fnuz" => all(&e4m3_fnuz),
        Dtype::Other(name, _) if name == "float8_e5m2" => all(&e5m2),
        Dtype::Other(name, _) if name == "float8_e5m2fnuz" => all(&e5m2_fnuz),
        other => Err(Error::tensor(format!("`{}` is {other}, and codes are bytes", tensor.name))),
    }
}

impl Load for Planar {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, _: &Store) -> Vec<String> {
        let read: &[&str] = match self.layout.as_str() {
            "TensorScaledLayout" | "BlockScaledI4Layout" => &["d", "qs", "m"],
            _ => &["d", "qs"],
        };
        read.iter().filter_map(|plane| self.planes.get(*plane).cloned()).collect()
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let (rows, cols) = self.shape;
        let qs = self.plane("qs", store)?;
        let stored = store.bytes(qs)?;
        let halves = || stored.iter().flat_map(|b| [u16::from(b & 15), u16::from(b >> 4)]).collect::<Vec<u16>>();
        let whole = || stored.iter().map(|b| u16::from(*b)).collect::<Vec<u16>>();
        let blocks = |size: usize| [rows, cols / size, 1];
        let (codes, table, tiles, scale, zero, arithmetic) = match self.layout.as_str() {
            "TensorScaledLayout" => {
                store.expect(&qs.name, &qs.dtype, &[rows, cols])?;
                let shape = self.plane("d", store)?.shape.clone();
                let tall = if shape.is_empty() { rows } else { 1 };
                let each: &[usize] = if shape.is_empty() { &[] } else { &[rows, 1] };
                let scale = self.numbers("d", each, store)?;
                let zero = if self.planes.contains_key("m") { self.numbers("m", &shape, store)? } else { vec![0.0; scale.len()] };
                (whole(), bytes(qs)?, Tiles::new(cols, tall, cols), scale, zero, Arithmetic::Scaled)
            }
            "BlockScaledLayout" => {
                let size = self.block(1, store)?;
                let scale = self.numbers("d", &blocks(size), store)?;
                let zero = vec![0.0; scale.len()];
                (whole(), bytes(qs)?, Tiles::new(cols, 1, size), scale, zero, Arithmetic::Scaled)
            }
            "BlockScaledI4Layout" => {
                let size = self.block(2, store)?;
                let (scale, minima) = (self.numbers("d", &blocks(size), store)?, self.numbers("m", &blocks(size), store)?);
                (halves(), integers(4, 0), Tiles::new(cols, 1, size), scale, minima, Arithmetic::Minimum)
            }
            _ => {
                let size = self.block(2, store)?;
                let d = store.expect(&self.plane("d", store)?.name, &Dtype::Uint(1), &blocks(size))?;
                let scale: Vec<f32> = store.bytes(d)?.into_iter().map(e8m0).collect();
                let zero = vec![0.0; scale.len()];
                (halves(), (0..16u8).map(e2m1).collect(), Tiles::new(cols, 1, size), scale, zero, Arithmetic::Scaled)
            }
        };
        Matrix { rows, cols, codes, table, tiles, scale, zero, arithmetic }.checked(&self.name)
    }
}
