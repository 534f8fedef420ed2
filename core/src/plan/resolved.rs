//! The resolved plan: plain data, immutable, printable, and what a resumed run is compared with.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PlannedBranch;
use super::rewrites;
use crate::algorithm::Phase;
use crate::checkpoint::native::NativeSite;
use crate::error::{Error, Result};
use crate::numeric::Bf16Unit;
use crate::scheme::QuantSpec;
use crate::topology::{Linear, OnlineStep, Place, Rewrite, Role, SiteId};

/// Which activations travel from block to block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Propagate {
    /// Those of the original model.
    Reference,
    /// Those of the model quantized so far.
    Quantized,
    /// Both.
    Both,
}

/// What is rounded between two collecting sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sequence {
    /// All sites of a block at once.
    Block,
    /// One parallel group after the other, each on activations that have seen the rounding of the groups before it.
    Layer,
}

/// What happens to a site that an algorithm cannot solve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// It is rounded to nearest, and the event is recorded.
    Rtn,
    /// The run stops.
    Error,
}

/// What the matrix products of the sweeps round their operands to. Sums are in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Products {
    /// Nothing.
    #[default]
    F32,
    /// bf16, to nearest.
    Bf16,
}

impl Products {
    /// What does the rounding, if any is to be done; `there` is the unit of this CPU.
    ///
    /// # Errors
    /// If it is to be done and there is none.
    pub fn unit(self, there: Option<Bf16Unit>) -> Result<Option<Bf16Unit>> {
        match self {
            Self::F32 => Ok(None),
            Self::Bf16 if there.is_some() => Ok(there),
            Self::Bf16 => {
                let message = format!("`products` is `bf16`, but this CPU has no `{}` instructions", Bf16Unit::FEATURE);
                Err(Error::plan("plan::no-bf16", message).hint("set it to `f32` or `auto`; a slow imitation of bf16 is not offered"))
            }
        }
    }
}

/// One linear of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlannedSite {
    /// Role path.
    pub site: String,
    /// Stored name of the module.
    pub module: String,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// The source stores the transpose.
    pub transposed: bool,
    /// What it becomes; `None` keeps it.
    pub weights: Option<QuantSpec>,
}

impl PlannedSite {
    /// Whether it is the token embedding, which no pass works on: it is rounded to nearest.
    pub fn is_embedding(&self) -> bool {
        self.site == SiteId::global(Role::Embed).to_string()
    }
}

/// A place where activations are rounded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlannedActivation {
    /// The place.
    pub place: Place,
    /// The part of the scheme that says so: `inputs`, `outputs`, `queries`, `keys`, `values` or `probs`.
    pub part: String,
    /// Stored names of the linears it was planned for: those that read an input, or that write anything else.
    pub modules: Vec<String>,
    /// How they are rounded.
    pub spec: QuantSpec,
}

/// One pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlannedPass {
    /// Id of the algorithm.
    pub algo: String,
    /// Its phase.
    pub phase: Phase,
    /// Version of its crate.
    pub version: String,
    /// The plugin that it was loaded from, with its version and hash; nothing where it is part of the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
    /// Its options, defaults filled in.
    pub options: Value,
    /// Its groups do not run in storage order.
    pub group_index: bool,
    /// Role paths of the sites it works on; of a transform those that read its regions and are to be quantized.
    pub sites: Vec<String>,
    /// Ids of the regions that a transform works on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
}

/// The calibration data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CalibrationPlan {
    /// Windows.
    pub samples: usize,
    /// Tokens per window.
    pub seq_len: usize,
    /// Tokens in all.
    pub tokens: usize,
    /// Hash of the sampled ids.
    pub hash: String,
    /// Seed of the sampling.
    pub seed: u64,
}

/// How the block loop runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct HarnessPlan {
    /// Order inside a block.
    pub sequence: Sequence,
    /// Streams kept.
    pub propagate: Propagate,
    /// Operands of the sweeps' products. Plans from before there was a choice say nothing: f32.
    #[serde(default)]
    pub products: Products,
    /// On unsolvable sites.
    pub on_failure: Failure,
    /// Seed of every random choice.
    pub seed: u64,
    /// Device kind.
    pub device: String,
    /// Instruction set of the kernels; results of different ones may differ in the last bits.
    pub instructions: String,
}

/// What is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OutputPlan {
    /// Container ids.
    pub formats: Vec<String>,
    /// Largest shard in bytes.
    pub max_shard: u64,
    /// Whether the native shards stay.
    pub keep_native: bool,
}

/// The checkpoint that is written as another container, where nothing is quantized on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PlannedOrigin {
    /// What it is in: the id of a container, or what the files are called.
    pub container: String,
    /// Groups of some of its layers do not run in storage order.
    pub group_index: bool,
}

/// Everything that decides the bytes of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plan {
    /// Version of this structure.
    pub version: u32,
    /// Version of the program.
    pub qfw: String,
    /// `model_type`.
    pub model_type: String,
    /// Its architecture is unknown: `sites` are the matrices found, and may not be all linears that a reader would see.
    pub tensorwise: bool,
    /// Hash of the source checkpoint's configuration and headers.
    pub model_hash: String,
    /// Decoder blocks.
    pub blocks: u32,
    /// Every linear, in order of execution.
    pub sites: Vec<PlannedSite>,
    /// Every rounded activation, in order of execution.
    pub activations: Vec<PlannedActivation>,
    /// Where the codes come from, if no pass makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<PlannedOrigin>,
    /// Passes, in order.
    pub passes: Vec<PlannedPass>,
    /// What they do to the whole model before its first block is read, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewrites: Vec<Rewrite>,
    /// Branches beside the codes, in the order of the sites.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub branches: Vec<PlannedBranch>,
    /// The calibration data, where a pass needs any.
    pub calibration: Option<CalibrationPlan>,
    /// How the block loop runs.
    pub harness: HarnessPlan,
    /// What is written.
    pub output: OutputPlan,
}

impl Plan {
    /// Hash of the whole plan.
    pub fn signature(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// The sites that will be quantized, as the native form records them.
    pub fn native_sites(&self) -> Vec<NativeSite> {
        self.sites
            .iter()
            .filter_map(|s| {
                Some(NativeSite {
                    site: s.site.clone(),
                    module: s.module.clone(),
                    shape: s.shape,
                    transposed: s.transposed,
                    spec: s.weights.clone()?,
                })
            })
            .collect()
    }

    /// Who makes groups that do not run in storage order, as the subject of a sentence, if there are any.
    pub fn unordered(&self) -> Option<String> {
        let pass = self.passes.iter().find(|p| p.group_index).map(|p| format!("pass `{}` makes groups", p.algo));
        pass.or_else(|| self.origin.as_ref().filter(|o| o.group_index).map(|_| "the checkpoint has groups".to_owned()))
    }

    /// What is done to activations while the model runs.
    pub fn online(&self) -> Vec<OnlineStep> {
        rewrites::online(&self.rewrites)
    }

    /// How the input of a linear is rounded, if it is.
    pub fn input_of(&self, linear: &Linear) -> Option<&QuantSpec> {
        input_of(&self.activations, linear)
    }

    /// Dotted paths at which two plans differ, with both values.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let (a, b) = (serde_json::to_value(self).unwrap_or_default(), serde_json::to_value(other).unwrap_or_default());
        let mut out = Vec::new();
        differ("", &a, &b, &mut out);
        out
    }

    /// The branch beside a site, if it has one.
    pub fn branch(&self, site: SiteId) -> Option<&PlannedBranch> {
        let site = site.to_string();
        self.branches.iter().find(|b| b.site == site)
    }

    /// Bits of all quantized weights: codes, scales, zero points and branches.
    pub fn quantized_bits(&self) -> f64 {
        let of_site = |s: &PlannedSite| Some(s.weights.as_ref()?.bits_per_weight(s.shape.0, s.shape.1) * (s.shape.0 * s.shape.1) as f64);
        self.sites.iter().filter_map(of_site).sum::<f64>() + self.branches.iter().map(PlannedBranch::bits).sum::<f64>()
    }

    /// Average bits per quantized weight, scales, zero points and branches included; `None` if nothing is quantized.
    pub fn bits_per_weight(&self) -> Option<f64> {
        let count: usize = self.sites.iter().filter(|s| s.weights.is_some()).map(|s| s.shape.0 * s.shape.1).sum();
        (count > 0).then(|| self.quantized_bits() / count as f64)
    }
}

/// See [`Plan::input_of`].
pub(super) fn input_of<'a>(activations: &'a [PlannedActivation], linear: &Linear) -> Option<&'a QuantSpec> {
    let place = Place { block: linear.site.block, port: linear.input };
    activations.iter().find(|a| a.place == place && a.part == "inputs").map(|a| &a.spec)
}

fn differ(path: &str, a: &Value, b: &Value, out: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, x) in a {
                differ(&join(key), x, b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (x, y)) in a.iter().zip(b).enumerate() {
                differ(&join(&i.to_string()), x, y, out);
            }
        }
        _ if a == b => {}
        _ => out.push(format!("{path}: {} there, {} here", brief(a), brief(b))),
    }
}

fn brief(v: &Value) -> String {
    let text = v.to_string();
    if text.chars().count() <= 60 { text } else { format!("{}…", text.chars().take(57).collect::<String>()) }
}

impl fmt::Display for Plan {
    /// A table of sites grouped by what they share, the passes, the calibration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "model         {} ({} blocks)", self.model_type, self.blocks)?;
        writeln!(f, "sites")?;
        let mut rows: Vec<(String, String, usize, String)> = Vec::new();
        for s in &self.sites {
            let role = match s.site.splitn(3, '.').nth(2).filter(|_| s.site.starts_with("blocks.")) {
                // Without an architecture the stored name is all there is to know a matrix by.
                Some("linear") => numbered(&s.module),
                Some(role) => role.to_owned(),
                None => s.site.clone(),
            };
            let what = s.weights.as_ref().map_or_else(|| "keep".to_owned(), ToString::to_string);
            let shape = format!("{}x{}", s.shape.0, s.shape.1);
            match rows.iter_mut().find(|r| r.0 == role && r.1 == shape && r.3 == what) {
                Some(row) => row.2 += 1,
                None => rows.push((role, shape, 1, what)),
            }
        }
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0).max(12);
        for (role, shape, count, what) in rows {
            writeln!(f, "  {role:<width$} {shape:>12}  ×{count:<4} {what}")?;
        }
        let mut rows: Vec<(String, usize, String)> = Vec::new();
        for a in &self.activations {
            let (port, what) = (format!("{} ({})", a.place.port, a.part), a.spec.to_string());
            match rows.iter_mut().find(|r| r.0 == port && r.2 == what) {
                Some(row) => row.1 += 1,
                None => rows.push((port, 1, what)),
            }
        }
        if !rows.is_empty() {
            writeln!(f, "activations")?;
        }
        let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0).max(width + 13);
        for (port, count, what) in rows {
            writeln!(f, "  {port:<width$}  ×{count:<4} {what}")?;
        }
        for (i, p) in self.passes.iter().enumerate() {
            writeln!(
                f,
                "{} {} ({}) on {} {}  {}",
                if i == 0 { "passes       " } else { "             " },
                p.algo,
                p.phase,
                if p.regions.is_empty() { p.sites.len() } else { p.regions.len() },
                if p.regions.is_empty() { "sites" } else { "regions" },
                p.options
            )?;
        }
        for (i, (text, count)) in rewrites::in_words(&self.rewrites).into_iter().enumerate() {
            let times = if count > 1 { format!("  ×{count}") } else { String::new() };
            writeln!(f, "{} {text}{times}", if i == 0 { "first        " } else { "             " })?;
        }
        let mut rows: Vec<(String, usize)> = Vec::new();
        for b in &self.branches {
            let what = format!("of rank {} in {}{}", b.rank, b.stored.name(), if b.a == b.module { "" } else { ", A shared" });
            match rows.iter_mut().find(|r| r.0 == what) {
                Some(row) => row.1 += 1,
                None => rows.push((what, 1)),
            }
        }
        for (i, (what, count)) in rows.into_iter().enumerate() {
            writeln!(f, "{} {what}  ×{count}", if i == 0 { "branches     " } else { "             " })?;
        }
        if let Some(origin) = &self.origin {
            writeln!(f, "codes         of the checkpoint, {}", origin.container)?;
            return self.ends(f);
        }
        match &self.calibration {
            Some(c) => writeln!(f, "calibration   {} windows of {} tokens, ids {}", c.samples, c.seq_len, &c.hash[..c.hash.len().min(12)])?,
            None => writeln!(f, "calibration   none needed")?,
        }
        writeln!(f, "order         sequence {}, propagate {}", serde_plain(&self.harness.sequence), serde_plain(&self.harness.propagate))?;
        if self.harness.products == Products::Bf16 {
            writeln!(f, "products      of operands rounded to bf16, in the sweeps over calibration data")?;
        }
        self.ends(f)
    }
}

impl Plan {
    /// The last lines: how large it is, and what is written.
    fn ends(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(bits) = self.bits_per_weight() {
            let branches = if self.branches.is_empty() { "scales and zero points" } else { "scales, zero points and branches" };
            writeln!(f, "weights       {bits:.2} bits each with {branches}")?;
        }
        writeln!(f, "output        {}", self.output.formats.join(", "))
    }
}

/// A module's name with its numbers left open: `layer.7.key` is `layer.N.key`.
fn numbered(module: &str) -> String {
    let part = |p: &str| if p.bytes().all(|b| b.is_ascii_digit()) { "N".to_owned() } else { p.to_owned() };
    module.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn serde_plain<T: Serialize>(x: &T) -> String {
    serde_json::to_value(x).ok().and_then(|v| v.as_str().map(ToOwned::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_in_bf16_need_the_instructions() {
        assert!(Products::F32.unit(None).is_ok_and(|u| u.is_none()));
        let error = Products::Bf16.unit(None).unwrap_err();
        assert_eq!(error.code(), "plan::no-bf16");
        assert_eq!(error.to_string(), "`products` is `bf16`, but this CPU has no `avx512_bf16` instructions");
        assert_eq!(error.hint_text(), Some("set it to `f32` or `auto`; a slow imitation of bf16 is not offered"));
        let there = Bf16Unit::detect();
        assert_eq!(Products::Bf16.unit(there).is_ok(), there.is_some());
    }
}
