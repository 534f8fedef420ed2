//! Whether one tensor can be quantized as asked: a pure function of the part of the scheme, what is asked, and the tensor's shape.
//!
//! What cannot be is refused with the reason and with the *nearest* valid choice as data: the fewest keys to change, and to what. A refusal
//! comes from one rule; each rule knows ways around itself, and the nearest choice is found by following them, fewest first.

use std::fmt;

use super::quant::{Broken, check};
use super::raw::{RawGranularity, RawQuant, RawRange, RawReduce, RawScale, RawScaleRounding, RawTiming};
use crate::error::Error;
use crate::granularity::Shape;
use crate::registry::Registry;
use crate::scheme::{FloatKind, QuantSpec};

/// A part of the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Weights of the linear layers.
    Weights,
    /// The weight of the output head.
    Head,
    /// The token embedding.
    Embed,
    /// Inputs of the linear layers.
    Inputs,
    /// Outputs of the linear layers.
    Outputs,
    /// Queries of attention.
    Queries,
    /// Keys as cached.
    Keys,
    /// Values as cached.
    Values,
    /// Attention probabilities.
    Probs,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 9] =
        [Self::Weights, Self::Head, Self::Embed, Self::Inputs, Self::Outputs, Self::Queries, Self::Keys, Self::Values, Self::Probs];

    /// Its key in `[scheme]`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Head => "head",
            Self::Embed => "embed",
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
            Self::Queries => "queries",
            Self::Keys => "keys",
            Self::Values => "values",
            Self::Probs => "probs",
        }
    }

    /// Whether it is known before the model runs.
    pub fn is_weight(self) -> bool {
        matches!(self, Self::Weights | Self::Head | Self::Embed)
    }

    /// Whether its columns are attention heads side by side.
    pub fn has_heads(self) -> bool {
        matches!(self, Self::Queries | Self::Keys | Self::Values)
    }
}

/// What the answer depends on beside what is asked.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    /// Output channels, where it is a weight.
    pub rows: usize,
    /// Input channels of a weight, channels of an activation.
    pub cols: usize,
    /// Channels of an attention head.
    pub head_dim: usize,
    /// What stands for the group `"auto:N"`.
    pub auto: u32,
    /// The float type that scales are stored in.
    pub stored: FloatKind,
}

impl Tensor {
    /// What granularities are asked about.
    pub(super) fn shape(&self, part: Part, timing: RawTiming) -> Shape {
        Shape {
            rows: part.is_weight().then_some(self.rows),
            cols: self.cols,
            head: part.has_heads().then_some(self.head_dim),
            // A cast has no parameters that would have to be known beforehand.
            dynamic: !part.is_weight() && timing != RawTiming::Static,
        }
    }
}

/// One key of a part of the scheme, and what it becomes; `None` leaves it out.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// `format`
    Format(String),
    /// `granularity`
    Granularity(Option<RawGranularity>),
    /// `symmetric`
    Symmetric(bool),
    /// `range`
    Range(Option<RawRange>),
    /// `scale`
    Scale(Option<RawScale>),
    /// `scale-rounding`
    ScaleRounding(Option<RawScaleRounding>),
    /// `timing`
    Timing(RawTiming),
    /// `reduce`
    Reduce(RawReduce),
    /// `rescale`
    Rescale(f64),
    /// `min-threshold`
    MinThreshold(f64),
}

impl Change {
    /// The key.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Format(_) => "format",
            Self::Granularity(_) => "granularity",
            Self::Symmetric(_) => "symmetric",
            Self::Range(_) => "range",
            Self::Scale(_) => "scale",
            Self::ScaleRounding(_) => "scale-rounding",
            Self::Timing(_) => "timing",
            Self::Reduce(_) => "reduce",
            Self::Rescale(_) => "rescale",
            Self::MinThreshold(_) => "min-threshold",
        }
    }

    /// Makes it.
    pub fn apply(&self, quant: &mut RawQuant) {
        match self.clone() {
            Self::Format(v) => quant.format = v,
            Self::Granularity(v) => quant.granularity = v,
            Self::Symmetric(v) => quant.symmetric = v,
            Self::Range(v) => quant.range = v,
            Self::Scale(v) => quant.scale = v,
            Self::ScaleRounding(v) => quant.scale_rounding = v,
            Self::Timing(v) => quant.timing = v,
            Self::Reduce(v) => quant.reduce = v,
            Self::Rescale(v) => quant.rescale = v,
            Self::MinThreshold(v) => quant.min_threshold = v,
        }
    }

    /// What the key becomes, as TOML; `None` if it is left out.
    fn value(&self) -> Option<toml::Value> {
        let made = match self {
            Self::Format(v) => toml::Value::try_from(v),
            Self::Granularity(v) => toml::Value::try_from(v.as_ref()?),
            Self::Symmetric(v) => toml::Value::try_from(v),
            Self::Range(v) => toml::Value::try_from(v.as_ref()?),
            Self::Scale(v) => toml::Value::try_from(v.as_ref()?),
            Self::ScaleRounding(v) => toml::Value::try_from(v.as_ref()?),
            Self::Timing(v) => toml::Value::try_from(v),
            Self::Reduce(v) => toml::Value::try_from(v),
            Self::Rescale(v) | Self::MinThreshold(v) => toml::Value::try_from(v),
        };
        made.ok()
    }
}

impl fmt::Display for Change {
    /// `` `timing = "static"` `` or ``no `scale` ``
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value() {
            Some(value) => write!(f, "`{} = {value}`", self.key()),
            None => write!(f, "no `{}`", self.key()),
        }
    }
}

/// Why a tensor cannot be quantized as asked.
#[derive(Debug)]
pub struct Refusal {
    /// The reason, and a hint that names the keys to change.
    pub error: Error,
    /// The fewest keys to change, and to what; never empty. With these the tensor can be quantized.
    pub nearest: Vec<Change>,
}

/// How `part` of the scheme quantizes a tensor: resolved, or refused.
///
/// # Errors
/// For unknown names, and for combinations that mean nothing.
pub fn judge(part: Part, quant: &RawQuant, tensor: &Tensor, registry: &Registry) -> Result<QuantSpec, Refusal> {
    let judge = |quant: &RawQuant| check(part, quant, tensor, registry);
    let broken = match judge(quant) {
        Ok(spec) => return Ok(spec),
        Err(broken) => broken,
    };
    let mut path = Vec::new();
    let found = (1..=MOST).any(|changes| reach(quant, &broken, changes, &judge, &mut path));
    let nearest = if found { path } else { anew(part, quant) };
    let said = format!("{} {}", broken.error, broken.error.hint_text().unwrap_or_default());
    let hint = broken.error.hint_text().unwrap_or_default();
    let hint = if nearest.iter().all(|c| said.contains(&format!("`{}", c.key()))) {
        hint.to_owned()
    } else {
        let changes = nearest.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        format!("{hint}; the nearest that works: {changes}")
    };
    Err(Refusal { error: broken.error.hint(hint), nearest })
}

/// More keys than this are changed only by starting anew.
const MOST: usize = 6;

/// Whether exactly `changes` keys changed by the ways of the rules lead from `quant` to something valid; `path` then holds them.
fn reach(
    quant: &RawQuant,
    broken: &Broken,
    changes: usize,
    judge: &dyn Fn(&RawQuant) -> Result<QuantSpec, Broken>,
    path: &mut Vec<Change>,
) -> bool {
    for way in &broken.ways {
        if path.iter().any(|made| made.key() == way.key()) {
            continue;
        }
        let mut changed = quant.clone();
        way.apply(&mut changed);
        path.push(way.clone());
        match judge(&changed) {
            Ok(_) => return true,
            Err(next) if changes > 1 && reach(&changed, &next, changes - 1, judge, path) => return true,
            Err(_) => {}
        }
        path.pop();
    }
    false
}

/// What always works, for rules of plugins that know no way out: everything as `int8` has it.
fn anew(part: Part, quant: &RawQuant) -> Vec<Change> {
    let timing = if part.is_weight() { RawTiming::Static } else { RawTiming::Dynamic };
    let all = [
        Change::Format("int8".to_owned()),
        Change::Granularity(None),
        Change::Symmetric(true),
        Change::Range(None),
        Change::Scale(None),
        Change::ScaleRounding(None),
        Change::Timing(timing),
        Change::Reduce(RawReduce::Mean),
        Change::Rescale(1.0),
        Change::MinThreshold(0.0),
    ];
    let differs = |change: &Change| {
        let mut changed = quant.clone();
        change.apply(&mut changed);
        changed != *quant
    };
    all.into_iter().filter(differs).collect()
}
