//! The native form: codes, scales and zero points as the run found them, losslessly.
//!
//! Per quantized module `M` (a linear's stored name): `M.codes` `U8 [out, row bytes]`, codes minus the grid's smallest, packed as dense
//! little-endian bit streams, a row on whole bytes; `M.scale` `F32 [tile rows, tile columns]`; `M.zero` of the same shape where the
//! format has zero points, `I32` or, for float zero points, `F32`; `M.global` `F32 [1]` where scales have two levels (`M.scale` is their
//! product); `M.group_index` `I32 [in]` where groups do not run in storage order. Weights are `[out, in]` here whatever the source's
//! layout. Where a low-rank branch runs beside the codes, on the input as it is before it is rounded, `M.branch_b` is `[out, rank]` and
//! `M.branch_a` `[rank, in]`, in the float type that the list of branches says; layers that read the same input may share the `branch_a`
//! of one of them. Where the input of `M` is multiplied by a vector, that is `M.multiplier` `F32 [in]`, which layers that read the same
//! input share. Everything else keeps its stored name, and its bytes unless a pass has changed it. `quantization_config` in `config.json`
//! lists the modules and their specs, and the places at which activations are rounded, rotated or multiplied, under
//! `quant_method = "qfw"`.

mod container;
mod reader;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use reader::{NativeReader, Stock};

pub use super::dequantized::{Dequantized, ReadRounded, VirtualWeight};
use super::formats::ContainerRecord;
use super::{StoredDtype, TensorDecl, TensorSource};
use crate::algorithm::Rounded;
use crate::error::{Error, Result};
use crate::numeric::{Codes, pack_row, packed_row_bytes, unpack_row, with_units};
use crate::plan::{PlannedActivation, PlannedBranch};
use crate::scheme::{QParams, QuantSpec, ScaleForm, TileLayout, Zero};

/// What the tensors of a quantized module are called.
const SUFFIXES: [&str; 5] = ["codes", "scale", "zero", "global", "group_index"];

/// What the tensors of a branch are called: it reads with the first, and writes with the second.
const BRANCH: [&str; 2] = ["branch_a", "branch_b"];

/// What the names of tensors begin with that are parameters of activations.
const ACTIVATIONS: &str = "qfw.activations.";

/// A quantized module of a native checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NativeSite {
    /// Role path, such as `blocks.0.attn.q`.
    pub site: String,
    /// Stored name of the module.
    pub module: String,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// The source stores the transpose.
    pub transposed: bool,
    /// How it is quantized.
    pub spec: QuantSpec,
}

/// Bytes of the tensors of one quantized module, ready to be stored.
pub struct NativeTensors {
    /// Name, dtype, shape, bytes.
    pub tensors: Vec<(TensorDecl, Vec<u8>)>,
}

/// The tensors of a module that is stored, with an index of its groups if they do not run in storage order.
fn declare_site(site: &NativeSite, group_index: bool) -> Vec<TensorDecl> {
    let (rows, cols) = site.shape;
    let (tr, tc) = site.spec.granularity.layout(rows, cols).grid();
    let decl = |suffix: &str, dtype, shape: Vec<usize>| TensorDecl { name: format!("{}.{suffix}", site.module), dtype, shape };
    let mut decls = vec![
        decl("codes", StoredDtype::U8, vec![rows, packed_row_bytes(cols, site.spec.bits, 1)]),
        decl("scale", StoredDtype::F32, vec![tr, tc]),
    ];
    match site.spec.grid.zero() {
        Zero::None | Zero::Fixed(_) => {}
        Zero::Integer => decls.push(decl("zero", StoredDtype::I32, vec![tr, tc])),
        Zero::Float => decls.push(decl("zero", StoredDtype::F32, vec![tr, tc])),
    }
    if site.spec.scale == ScaleForm::TwoLevel {
        decls.push(decl("global", StoredDtype::F32, vec![1]));
    }
    if group_index {
        decls.push(decl("group_index", StoredDtype::I32, vec![cols]));
    }
    decls
}

/// The stored tensors of a rounded module.
pub fn encode_site(site: &NativeSite, rounded: &Rounded) -> NativeTensors {
    let params = &rounded.params;
    let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let bytes = |decl: &TensorDecl| match decl.name.rsplit('.').next() {
        Some("codes") => packed_codes(site, rounded),
        Some("scale") => floats(&params.scale),
        Some("zero") if decl.dtype == StoredDtype::I32 => params.zero.iter().flat_map(|z| (*z as i32).to_le_bytes()).collect(),
        Some("zero") => floats(&params.zero),
        Some("global") => floats(&[params.global.unwrap_or(1.0)]),
        _ => rounded.group_index.iter().flatten().flat_map(|g| g.to_le_bytes()).collect(),
    };
    let decls = declare_site(site, rounded.group_index.is_some());
    let with_bytes = |decl| {
        let bytes = bytes(&decl);
        (decl, bytes)
    };
    NativeTensors { tensors: decls.into_iter().map(with_bytes).collect() }
}

fn packed_codes(site: &NativeSite, rounded: &Rounded) -> Vec<u8> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let mut packed = Vec::with_capacity(rows * packed_row_bytes(cols, bits, 1));
    with_units!(&rounded.codes.data, data => for row in data.chunks_exact(cols) {
        pack_row(row, bits, 1, &mut packed);
    });
    packed
}

/// The stored tensors of a branch, in the type the plan says. An `A` that is shared is stored with one of those who share it.
pub fn encode_branch(branch: &PlannedBranch, a: &[f32], b: &[f32]) -> Vec<(TensorDecl, Vec<u8>)> {
    let (rows, cols) = branch.shape;
    let tensor = |module: &str, suffix: &str, shape: [usize; 2], values: &[f32]| {
        let decl = TensorDecl { name: format!("{module}.{suffix}"), dtype: branch.stored.into(), shape: shape.to_vec() };
        (decl, branch.stored.bytes(values))
    };
    let of_a = (branch.a == branch.module).then(|| tensor(&branch.a, BRANCH[0], [branch.rank, cols], a));
    of_a.into_iter().chain([tensor(&branch.module, BRANCH[1], [rows, branch.rank], b)]).collect()
}

/// Reads back what [`encode_site`] stored.
///
/// # Errors
/// If a tensor is missing or malformed.
pub fn decode_site(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let (rows, cols) = site.shape;
    let bits = site.spec.bits;
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let packed = exact_bytes(tensors, &name("codes"), rows * packed_row_bytes(cols, bits, 1))?;
    let mut codes = Codes::new(&site.spec.grid, 0);
    with_units!(&mut codes.data, data => for row in packed.chunks_exact(packed_row_bytes(cols, bits, 1)) {
        unpack_row(row, cols, bits, data)?;
    });
    let words = |suffix: &str, n: usize| -> Result<Vec<[u8; 4]>> {
        let bytes = exact_bytes(tensors, &name(suffix), 4 * n)?;
        Ok(bytes.chunks_exact(4).map(|w| [w[0], w[1], w[2], w[3]]).collect())
    };
    let scale = words("scale", layout.tiles())?.into_iter().map(f32::from_le_bytes).collect();
    let zero = match site.spec.grid.zero() {
        Zero::None => vec![0.0; layout.tiles()],
        Zero::Fixed(z) => vec![z as f32; layout.tiles()],
        Zero::Integer => words("zero", layout.tiles())?.into_iter().map(|w| i32::from_le_bytes(w) as f32).collect(),
        Zero::Float => words("zero", layout.tiles())?.into_iter().map(f32::from_le_bytes).collect(),
    };
    let global = match site.spec.scale {
        ScaleForm::TwoLevel => words("global", 1)?.first().map(|w| f32::from_le_bytes(*w)),
        _ => None,
    };
    let group_index = match tensors.info(&name("group_index")) {
        Some(_) => Some(words("group_index", cols)?.into_iter().map(u32::from_le_bytes).collect::<Vec<_>>()),
        None => None,
    };
    if let Some(g) = group_index.iter().flatten().find(|g| **g as usize >= layout.grid().1) {
        return Err(Error::input("checkpoint::malformed", format!("`{}` names group {g} of {}", name("group_index"), layout.grid().1)));
    }
    Ok(Rounded { codes, params: QParams { layout, scale, zero, global }, group_index, events: Vec::new() })
}

fn exact_bytes(tensors: &dyn TensorSource, name: &str, len: usize) -> Result<Vec<u8>> {
    let bytes = tensors.read_bytes(name)?;
    if bytes.len() != len {
        return Err(Error::input("checkpoint::wrong-shape", format!("tensor `{name}` has {} bytes, expected {len}", bytes.len())));
    }
    Ok(bytes)
}

/// The stored tensors of static activation parameters: `qfw.activations.PLACE.PART.scale` and `.zero`, `F32`, one value per tile column.
/// Two parts of a scheme may meet at one place, such as outputs and values.
pub fn encode_activation(activation: &PlannedActivation, params: &QParams) -> Vec<(TensorDecl, Vec<u8>)> {
    let tensor = |suffix: &str, values: &[f32]| {
        let decl = TensorDecl { name: activation_name(activation, suffix), dtype: StoredDtype::F32, shape: vec![values.len()] };
        (decl, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    vec![tensor("scale", &params.scale), tensor("zero", &params.zero)]
}

fn activation_name(activation: &PlannedActivation, suffix: &str) -> String {
    format!("{ACTIVATIONS}{}.{}.{suffix}", activation.place, activation.part)
}

/// Reads back what [`encode_activation`] stored.
fn decode_activation(activation: &PlannedActivation, tensors: &dyn TensorSource) -> Result<QParams> {
    let read = |suffix: &str| -> Result<Vec<f32>> {
        let name = activation_name(activation, suffix);
        let n = tensors.require(&name)?.shape.first().copied().unwrap_or(0);
        let mut values = Vec::new();
        tensors.read_f32(&name, 0..n, &mut values)?;
        Ok(values)
    };
    let (scale, zero) = (read("scale")?, read("zero")?);
    if scale.is_empty() || scale.len() != zero.len() || scale.iter().any(|s| !s.is_finite() || *s == 0.0) {
        return Err(Error::input("checkpoint::malformed", format!("`{}` holds no sound scales", activation_name(activation, "scale"))));
    }
    let layout = TileLayout { rows: 1, cols: scale.len(), tile_rows: 1, tile_cols: 1 };
    Ok(QParams { layout, scale, zero, global: None })
}

/// The native container, for the registry.
pub const RECORD: ContainerRecord = ContainerRecord {
    id: "qfw",
    summary: "the native form: every scheme, losslessly",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    container: &container::Native,
};

/// Writes a shard of native tensors durably: a temporary file, flushed and synced, then renamed.
///
/// # Errors
/// If writing fails.
pub fn write_shard(path: &Path, tensors: Vec<(TensorDecl, Vec<u8>)>) -> Result<()> {
    super::write_small(path, tensors)
}
