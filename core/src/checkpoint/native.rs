//! The native form: codes, scales and zero points as the run found them, losslessly.
//!
//! Per quantized module `M` (a linear's stored name): `M.codes` `U8 [out, row bytes]`, codes minus the grid's smallest, packed as dense
//! little-endian bit streams, a row on whole bytes; `M.scale` `F32 [tile rows, tile columns]`; `M.zero` of the same shape where the
//! format has zero points, `I32` or, for float zero points, `F32`; `M.global` `F32 [1]` where scales have two levels (`M.scale` is their
//! product); `M.group_index` `I32 [in]` where groups do not run in storage order. Weights are `[out, in]` here whatever the source's
//! layout. Where a low-rank branch runs beside the codes, on the input as it is before it is rounded, `M.branch_b` is `[out, rank]` and
//! `M.branch_a` `[rank, in]`, in the float type that the list of branches says; layers that read the same input may share the `branch_a`
//! of one of them. Everything else keeps its stored name, and its bytes unless a pass has changed it. `quantization_config` in `config.json`
//! lists the modules and their specs, and the places at which activations are rounded or rotated, under `quant_method = "qfw"`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::formats::{Container, ContainerRecord, Verdict};
use super::{ContainerWriter, StoredDtype, TensorDecl, TensorInfo, TensorSource, open_tensors};
use crate::algorithm::Rounded;
use crate::error::{Error, Result};
use crate::model::{ActivationQuant, StoredBranch};
use crate::numeric::{Codes, decode, pack_row, packed_row_bytes, transpose, unpack_row, with_units};
use crate::plan::{Plan, PlannedActivation, PlannedBranch};
use crate::scheme::{QParams, QuantSpec, ScaleForm, TileLayout, Timing, Zero};
use crate::topology::{OnlineRotation, Topology};

/// What the tensors of a quantized module are called.
const SUFFIXES: [&str; 5] = ["codes", "scale", "zero", "global", "group_index"];

/// What the tensors of a branch are called: it reads with the first, and writes with the second.
const BRANCH: [&str; 2] = ["branch_a", "branch_b"];

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

/// The stored tensors of a rounded module.
pub fn encode_site(site: &NativeSite, rounded: &Rounded) -> NativeTensors {
    let (rows, cols) = site.shape;
    let bits = site.spec.bits;
    let row_bytes = packed_row_bytes(cols, bits, 1);
    let mut packed = Vec::with_capacity(rows * row_bytes);
    with_units!(&rounded.codes.data, data => for row in data.chunks_exact(cols) {
        pack_row(row, bits, 1, &mut packed);
    });
    let (tr, tc) = rounded.params.layout.grid();
    let decl = |suffix: &str, dtype, shape: Vec<usize>| TensorDecl { name: format!("{}.{suffix}", site.module), dtype, shape };
    let mut tensors = vec![
        (decl("codes", StoredDtype::U8, vec![rows, row_bytes]), packed),
        (decl("scale", StoredDtype::F32, vec![tr, tc]), rounded.params.scale.iter().flat_map(|s| s.to_le_bytes()).collect()),
    ];
    let zero = &rounded.params.zero;
    match site.spec.grid.zero() {
        Zero::None | Zero::Fixed(_) => {}
        Zero::Integer => {
            tensors.push((decl("zero", StoredDtype::I32, vec![tr, tc]), zero.iter().flat_map(|z| (*z as i32).to_le_bytes()).collect()));
        }
        Zero::Float => tensors.push((decl("zero", StoredDtype::F32, vec![tr, tc]), zero.iter().flat_map(|z| z.to_le_bytes()).collect())),
    }
    if let Some(global) = rounded.params.global {
        tensors.push((decl("global", StoredDtype::F32, vec![1]), global.to_le_bytes().to_vec()));
    }
    if let Some(index) = &rounded.group_index {
        tensors.push((decl("group_index", StoredDtype::I32, vec![cols]), index.iter().flat_map(|g| g.to_le_bytes()).collect()));
    }
    NativeTensors { tensors }
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
    format!("qfw.activations.{}.{}.{suffix}", activation.place, activation.part)
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

/// A finished native checkpoint, for exporters: quantized modules by role, everything else by stored name.
pub struct NativeReader {
    /// The original checkpoint's tensors.
    pub source: Arc<dyn TensorSource>,
    /// The quantized modules, in order of execution.
    pub sites: Vec<NativeSite>,
    /// The rounded activations, in order of execution.
    pub activations: Vec<PlannedActivation>,
    /// The configuration of the model, for containers that store tensors by it; null if nobody gave one.
    pub config: Value,
    /// The branches beside the codes, in the order of the sites.
    pub branches: Vec<PlannedBranch>,
    /// The rotations that are carried out while the model runs.
    pub rotations: Vec<OnlineRotation>,
    shards: BTreeMap<String, PathBuf>,
    changed: BTreeMap<String, PathBuf>,
}

impl NativeReader {
    /// A reader over block shards: `shards` maps each module, and each place of static activations, to the file that holds it, and
    /// `changed` each tensor of the source that the run has changed without making codes of it.
    pub fn new(
        source: Arc<dyn TensorSource>,
        sites: Vec<NativeSite>,
        activations: Vec<PlannedActivation>,
        shards: BTreeMap<String, PathBuf>,
        changed: BTreeMap<String, PathBuf>,
    ) -> Self {
        Self { source, sites, activations, config: Value::Null, branches: Vec::new(), rotations: Vec::new(), shards, changed }
    }

    /// The same with the configuration of the model.
    #[must_use]
    pub fn with_config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    /// The same with what the model computes beside the codes.
    #[must_use]
    pub fn with_extras(mut self, branches: Vec<PlannedBranch>, rotations: Vec<OnlineRotation>) -> Self {
        (self.branches, self.rotations) = (branches, rotations);
        self
    }

    /// The factors of a branch: `A`, `[rank, in]`, and `B`, `[out, rank]`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn branch(&self, branch: &PlannedBranch) -> Result<[Vec<f32>; 2]> {
        let (rank, rows) = (branch.rank, branch.shape.0);
        let read = |module: &str, suffix: &str, rows: usize| -> Result<Vec<f32>> {
            let mut out = Vec::new();
            self.shard(module)?.read_f32(&format!("{module}.{suffix}"), 0..rows, &mut out)?;
            Ok(out)
        };
        Ok([read(&branch.a, BRANCH[0], rank)?, read(&branch.module, BRANCH[1], rows)?])
    }

    /// The parameters of activations, where they are static.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn activation_params(&self, activation: &PlannedActivation) -> Result<Option<QParams>> {
        if activation.spec.timing != Timing::Static {
            return Ok(None);
        }
        let place = activation.place;
        let shard = self.shards.get(&place.to_string()).ok_or_else(|| Error::internal(format!("no native shard holds `{place}`")))?;
        decode_activation(activation, &*open_tensors(shard)?).map(Some)
    }

    /// Codes and parameters of a module.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn rounded(&self, site: &NativeSite) -> Result<Rounded> {
        decode_site(site, &*self.open(site)?)
    }

    /// What scales of two levels have in common, without the codes beside it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn global(&self, site: &NativeSite) -> Result<Option<f32>> {
        if site.spec.scale != ScaleForm::TwoLevel {
            return Ok(None);
        }
        let bytes = exact_bytes(&*self.open(site)?, &format!("{}.global", site.module), 4)?;
        Ok(bytes.first_chunk().map(|w| f32::from_le_bytes(*w)))
    }

    /// The tensors of branches, with their values.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn branches(&self) -> Result<Vec<(TensorInfo, Vec<f32>)>> {
        let mut out = Vec::new();
        for site in &self.sites {
            let shard = self.open(site)?;
            for name in BRANCH.map(|suffix| format!("{}.{suffix}", site.module)) {
                let Some(info) = shard.info(&name) else { continue };
                let mut values = Vec::new();
                shard.read_f32(&name, 0..info.shape.first().copied().unwrap_or(0), &mut values)?;
                out.push((info.clone(), values));
            }
        }
        Ok(out)
    }

    fn open(&self, site: &NativeSite) -> Result<Arc<dyn TensorSource>> {
        self.shard(&site.module)
    }

    fn shard(&self, module: &str) -> Result<Arc<dyn TensorSource>> {
        open_tensors(self.shards.get(module).ok_or_else(|| Error::internal(format!("no native shard holds `{module}`")))?)
    }

    /// The tensors that are no codes, in the order of their names: those that pass through unchanged, and those that a pass has changed.
    pub fn plain(&self) -> Vec<&TensorInfo> {
        let replaced: BTreeSet<String> = self.sites.iter().map(|s| format!("{}.weight", s.module)).collect();
        self.source.names().iter().filter(|n| !replaced.contains(*n)).filter_map(|n| self.source.info(n)).collect()
    }

    /// Where one of them can be read, in parts if need be.
    ///
    /// # Errors
    /// If the shard that holds it cannot be opened.
    pub fn plain_source(&self, name: &str) -> Result<Arc<dyn TensorSource>> {
        self.changed.get(name).map_or_else(|| Ok(Arc::clone(&self.source)), |shard| open_tensors(shard))
    }

    /// Copies one of them.
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn copy_plain(&self, name: &str, out: &mut dyn ContainerWriter) -> Result<()> {
        out.write(name, &self.plain_source(name)?.read_bytes(name)?)
    }
}

struct Native;

impl Container for Native {
    fn accepts(&self, _: &Plan) -> Verdict {
        Verdict::Exact
    }

    fn holds_branches(&self) -> bool {
        true
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        let mut out = Vec::new();
        for site in &native.sites {
            let shard = native.open(site)?;
            for suffix in SUFFIXES.into_iter().chain(BRANCH) {
                if let Some(info) = shard.info(&format!("{}.{suffix}", site.module)) {
                    out.push(TensorDecl { name: info.name.clone(), dtype: info.dtype.clone(), shape: info.shape.clone() });
                }
            }
        }
        for a in &native.activations {
            if let Some(params) = native.activation_params(a)? {
                out.extend(encode_activation(a, &params).into_iter().map(|(decl, _)| decl));
            }
        }
        for info in native.plain() {
            out.push(TensorDecl { name: info.name.clone(), dtype: info.dtype.clone(), shape: info.shape.clone() });
        }
        Ok(out)
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        for site in &native.sites {
            let shard = native.open(site)?;
            for suffix in SUFFIXES.into_iter().chain(BRANCH) {
                let name = format!("{}.{suffix}", site.module);
                if shard.info(&name).is_some() {
                    out.write(&name, &shard.read_bytes(&name)?)?;
                }
            }
        }
        for a in &native.activations {
            if let Some(params) = native.activation_params(a)? {
                encode_activation(a, &params).iter().try_for_each(|(decl, bytes)| out.write(&decl.name, bytes))?;
            }
        }
        for info in native.plain() {
            native.copy_plain(&info.name, out)?;
        }
        Ok(())
    }

    fn quantization_config(&self, plan: &Plan) -> Result<Value> {
        let mut config = json!({ "quant_method": "qfw", "version": 1, "modules": plan.native_sites(), "activations": plan.activations });
        let rotations = plan.online();
        if !rotations.is_empty() {
            config["rotations"] = json!(rotations);
        }
        if !plan.branches.is_empty() {
            config["branches"] = json!(plan.branches);
        }
        Ok(config)
    }

    fn claims(&self, quantization_config: &Value) -> bool {
        quantization_config.get("quant_method").and_then(Value::as_str) == Some("qfw")
    }

    fn read(&self, config: &Value, _: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        let bad = |e: String| Error::input("checkpoint::malformed", format!("`quantization_config` in config.json: {e}"));
        if config.get("version").and_then(Value::as_u64) != Some(1) {
            return Err(bad("unknown version of the native form".to_owned()).hint("it was written by a newer qfw"));
        }
        let sites: Vec<NativeSite> =
            serde_json::from_value(config.get("modules").cloned().unwrap_or(Value::Null)).map_err(|e| bad(e.to_string()))?;
        let virtual_weights = sites
            .into_iter()
            .map(|site| {
                let shape = if site.transposed { vec![site.shape.1, site.shape.0] } else { vec![site.shape.0, site.shape.1] };
                let hidden = SUFFIXES.map(|s| format!("{}.{s}", site.module)).to_vec();
                let info = VirtualWeight { name: format!("{}.weight", site.module), shape, hidden };
                let read: ReadRounded = Box::new(move |tensors| Ok((site.clone(), decode_site(&site, tensors)?)));
                (info, read)
            })
            .collect();
        Ok(Arc::new(Dequantized::new(tensors, virtual_weights)))
    }

    fn activations(&self, config: &Value, tensors: &dyn TensorSource, _: &Topology) -> Result<Vec<ActivationQuant>> {
        let Some(planned) = config.get("activations") else { return Ok(Vec::new()) };
        let planned: Vec<PlannedActivation> = serde_json::from_value(planned.clone())
            .map_err(|e| Error::input("checkpoint::malformed", format!("`quantization_config.activations` in config.json: {e}")))?;
        let quant = |a: PlannedActivation| {
            let params = if a.spec.timing == Timing::Static { Some(decode_activation(&a, tensors)?) } else { None };
            ActivationQuant::new(a.place, a.spec, params)
        };
        planned.into_iter().map(quant).collect()
    }

    fn rotations(&self, config: &Value, _: &Topology) -> Result<Vec<OnlineRotation>> {
        let Some(rotations) = config.get("rotations") else { return Ok(Vec::new()) };
        serde_json::from_value(rotations.clone())
            .map_err(|e| Error::input("checkpoint::malformed", format!("`quantization_config.rotations` in config.json: {e}")))
    }

    fn branches(&self, config: &Value) -> Result<Vec<StoredBranch>> {
        let Some(branches) = config.get("branches") else { return Ok(Vec::new()) };
        let planned: Vec<PlannedBranch> = serde_json::from_value(branches.clone())
            .map_err(|e| Error::input("checkpoint::malformed", format!("`quantization_config.branches` in config.json: {e}")))?;
        let [a, b] = BRANCH;
        let stored =
            |p: PlannedBranch| StoredBranch { a: format!("{}.{a}", p.a), b: format!("{}.{b}", p.module), module: p.module, rank: p.rank };
        Ok(planned.into_iter().map(stored).collect())
    }
}

/// A weight that exists only as codes.
pub struct VirtualWeight {
    /// The name it appears under.
    pub name: String,
    /// Its shape as the original file had it.
    pub shape: Vec<usize>,
    /// Stored tensors that it stands for, which disappear.
    pub hidden: Vec<String>,
}

/// Reads the codes behind a virtual weight.
pub type ReadRounded = Box<dyn Fn(&dyn TensorSource) -> Result<(NativeSite, Rounded)> + Send + Sync>;

/// A name, and the codes behind it.
type Last = (String, Arc<(NativeSite, Rounded)>);

/// Tensors of a quantized checkpoint, with every quantized module presented as the float weight it stands for.
pub struct Dequantized {
    inner: Arc<dyn TensorSource>,
    weights: BTreeMap<String, (TensorInfo, ReadRounded)>,
    hidden: BTreeSet<String>,
    /// What was read last: rows of an embedding or a head are asked for a few at a time.
    last: Mutex<Option<Last>>,
}

impl Dequantized {
    /// Presents `weights` over `inner`.
    pub fn new(inner: Arc<dyn TensorSource>, weights: Vec<(VirtualWeight, ReadRounded)>) -> Self {
        let mut hidden = BTreeSet::new();
        let mut map = BTreeMap::new();
        for (w, read) in weights {
            let file = w.hidden.iter().find_map(|h| inner.info(h)).map(|i| i.file.clone()).unwrap_or_default();
            hidden.extend(w.hidden);
            let info = TensorInfo::new(w.name.clone(), StoredDtype::F32, w.shape, file);
            map.insert(w.name, (info, read));
        }
        Self { inner, weights: map, hidden, last: Mutex::default() }
    }

    /// The codes behind a weight, read unless they were the last to be.
    fn kept(&self, name: &str, read: &ReadRounded) -> Result<Arc<(NativeSite, Rounded)>> {
        let mut last = self.last.lock().map_err(|_| Error::internal("a thread panicked while it read codes"))?;
        if let Some((_, codes)) = last.as_ref().filter(|(n, _)| n == name) {
            return Ok(Arc::clone(codes));
        }
        // The old ones go first, so that never two are held.
        *last = None;
        let codes = Arc::new(read(&*self.inner)?);
        *last = Some((name.to_owned(), Arc::clone(&codes)));
        Ok(codes)
    }

    /// The codes behind a weight, if it has any.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn rounded(&self, name: &str) -> Result<Option<(NativeSite, Rounded)>> {
        self.weights.get(name).map(|(_, read)| read(&*self.inner)).transpose()
    }
}

impl TensorSource for Dequantized {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner.names().into_iter().filter(|n| !self.hidden.contains(n)).collect();
        names.extend(self.weights.keys().cloned());
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        match self.weights.get(name) {
            Some((info, _)) => Some(info),
            None if self.hidden.contains(name) => None,
            None => self.inner.info(name),
        }
    }

    fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let Some((_, read)) = self.weights.get(name) else { return self.inner.read_f32(name, rows, out) };
        let kept = self.kept(name, read)?;
        let (site, r) = &*kept;
        let (all, cols) = site.shape;
        if site.transposed {
            decode(&site.spec.grid, &r.params, &r.codes, 0..all, r.group_index.as_deref(), out);
            *out = transpose(out, all, cols)[rows.start * all..rows.end * all].to_vec();
        } else {
            decode(&site.spec.grid, &r.params, &r.codes, rows, r.group_index.as_deref(), out);
        }
        Ok(())
    }

    fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        if !self.weights.contains_key(name) {
            return self.inner.read_bytes(name);
        }
        let rows = self.weights.get(name).map_or(0, |(info, _)| info.shape[0]);
        let mut values = Vec::new();
        self.read_f32(name, 0..rows, &mut values)?;
        Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

/// The native container, for the registry.
pub const RECORD: ContainerRecord = ContainerRecord {
    id: "qfw",
    summary: "the native form: every scheme, losslessly",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    container: &Native,
};

/// Writes a shard of native tensors durably: a temporary file, flushed and synced, then renamed.
///
/// # Errors
/// If writing fails.
pub fn write_shard(path: &Path, tensors: Vec<(TensorDecl, Vec<u8>)>) -> Result<()> {
    super::write_small(path, tensors)
}
