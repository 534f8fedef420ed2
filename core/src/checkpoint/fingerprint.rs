//! What a run records of what it writes, for readers that check it: `fingerprints` in `qfw.json`.
//!
//! For each format `tensors`, `activations` and `files`. A tensor has its `shape` and the BLAKE3 of its `values`; one that is quantized
//! also that of its `codes` less their zero points, and, where its scales have two levels, of the `global` one. Numbers are hashed as f32, little-endian, −0 as 0, row by row: weights of linears as
//! `[out, in]`, whatever the checkpoint's layout, everything else as it is stored. Values of codes are those that the container's own
//! arithmetic gives ([`Held`]), computed from the native form, not from what was written. Tensors without floats are hashed as they
//! are. `activations` has scales, then zero points counted from the smallest code, under `MODULE PART`. `files` has the BLAKE3 of files
//! beside the weights, and of a graph that the weights belong to.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::ContainerWriter;
use super::formats::{BranchPlace, Container};
use super::native::NativeReader;
use crate::error::{Error, Result};
use crate::numeric::transpose;
use crate::plan::Plan;
use crate::scheme::{FloatKind, Zero};

/// Values that are hashed at once, about.
const PIECE: usize = 1 << 18;

/// One format.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Fingerprints {
    tensors: BTreeMap<String, Fingerprint>,
    activations: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
}

/// One tensor.
#[derive(Debug, Serialize)]
struct Fingerprint {
    shape: Vec<usize>,
    values: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    codes: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    global: Option<String>,
}

impl Fingerprint {
    /// Of a tensor without codes.
    fn plain(shape: Vec<usize>, values: &blake3::Hasher) -> Self {
        Self { shape, values: hex(values), codes: None, global: None }
    }
}

impl Fingerprints {
    /// Of what `container` makes of a finished native checkpoint.
    ///
    /// # Errors
    /// If that cannot be read, or the container cannot hold it.
    pub(crate) fn of(container: &dyn Container, native: &NativeReader, plan: &Plan) -> Result<Self> {
        let mut out = Self::default();
        out.codes(container, native)?;
        out.plain(native, plan, container.float_type())?;
        if container.branches_lie() != BranchPlace::Nowhere {
            for (info, values) in native.branches()? {
                let (mut hash, mut bytes) = Default::default();
                add(&mut hash, &mut bytes, &values);
                out.tensors.insert(info.name, Fingerprint::plain(info.shape, &hash));
            }
        }
        let mut made = Made::default();
        for (name, shape) in container.made(native, &mut made)? {
            let hash = made.hashes.remove(&name).unwrap_or_default();
            out.tensors.insert(name, Fingerprint::plain(shape, &hash));
        }
        for a in &native.activations {
            let Some(params) = native.activation_params(a)? else { continue };
            let mut numbers = params.scale;
            if a.spec.grid.zero() == Zero::Integer {
                numbers.extend(params.zero.iter().map(|z| z - a.spec.grid.limits().0 as f32));
            }
            let (mut hash, mut bytes) = Default::default();
            add(&mut hash, &mut bytes, &numbers);
            for module in &a.modules {
                out.activations.insert(format!("{module} {}", a.part), hex(&hash));
            }
        }
        Ok(out)
    }

    /// Adds a file beside the weights.
    pub(crate) fn file(&mut self, name: String, bytes: &[u8]) {
        self.files.insert(name, blake3::hash(bytes).to_hex().to_string());
    }

    fn codes(&mut self, container: &dyn Container, native: &NativeReader) -> Result<()> {
        let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
        for site in &native.sites {
            let rounded = native.rounded(site)?;
            let global = rounded.params.global.map(|global| {
                let mut hash = blake3::Hasher::new();
                add(&mut hash, &mut bytes, &[global]);
                hex(&hash)
            });
            let held = container.held(native, site, rounded)?;
            let (rows, cols) = site.shape;
            let (mut values, mut codes) = (blake3::Hasher::new(), blake3::Hasher::new());
            let step = (PIECE / cols.max(1)).max(1);
            for first in (0..rows).step_by(step) {
                let piece = first..(first + step).min(rows);
                held.values(&site.spec.grid, piece.clone(), &mut numbers);
                add(&mut values, &mut bytes, &numbers);
                held.steps(&site.spec.grid, piece, &mut numbers);
                add(&mut codes, &mut bytes, &numbers);
            }
            // Where zero points are no integers, not every container can tell them from what it stores.
            let codes = (held.has_codes() && site.spec.grid.zero() != Zero::Float).then(|| hex(&codes));
            self.tensors
                .insert(format!("{}.weight", site.module), Fingerprint { shape: vec![rows, cols], values: hex(&values), codes, global });
        }
        Ok(())
    }

    fn plain(&mut self, native: &NativeReader, plan: &Plan, floats: Option<FloatKind>) -> Result<()> {
        let as_stored = |numbers: &mut [f32]| {
            if let Some(kind) = floats {
                numbers.iter_mut().for_each(|x| *x = kind.round(*x));
            }
        };
        let turned: BTreeSet<String> = plan.sites.iter().filter(|s| s.transposed).map(|s| format!("{}.weight", s.module)).collect();
        let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
        for info in native.plain() {
            let (name, source) = (&info.name, native.plain_source(&info.name)?);
            let mut shape = info.shape.clone();
            let mut hash = blake3::Hasher::new();
            if !info.dtype.is_float() {
                hash.update(&source.read_bytes(name)?);
            } else if turned.contains(name) && shape.len() == 2 {
                source.read_f32(name, 0..shape[0], &mut numbers)?;
                as_stored(&mut numbers);
                add(&mut hash, &mut bytes, &transpose(&numbers, shape[0], shape[1]));
                shape.reverse();
            } else {
                let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
                let step = (PIECE / cols.max(1)).max(1);
                for first in (0..rows).step_by(step) {
                    source.read_f32(name, first..(first + step).min(rows), &mut numbers)?;
                    as_stored(&mut numbers);
                    add(&mut hash, &mut bytes, &numbers);
                }
            }
            self.tensors.insert(name.clone(), Fingerprint::plain(shape, &hash));
        }
        Ok(())
    }
}

/// Hashes of tensors that a container makes.
#[derive(Default)]
struct Made {
    hashes: BTreeMap<String, blake3::Hasher>,
    bytes: Vec<u8>,
}

impl ContainerWriter for Made {
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if !bytes.len().is_multiple_of(4) {
            return Err(Error::internal(format!("`{name}` is made of f32, and {} bytes were written", bytes.len())));
        }
        let numbers: Vec<f32> = bytes.chunks_exact(4).map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
        add(self.hashes.entry(name.to_owned()).or_default(), &mut self.bytes, &numbers);
        Ok(())
    }
}

/// Adds numbers to a hash; `bytes` is scratch.
fn add(hash: &mut blake3::Hasher, bytes: &mut Vec<u8>, numbers: &[f32]) {
    bytes.clear();
    // −0 + 0 is 0.
    bytes.extend(numbers.iter().flat_map(|x| (x + 0.0).to_le_bytes()));
    hash.update(bytes);
}

fn hex(hash: &blake3::Hasher) -> String {
    hash.finalize().to_hex().to_string()
}
