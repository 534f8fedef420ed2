//! The `config_groups` of a stored configuration.

use std::collections::BTreeMap;

use qfw_core::Result;
use qfw_core::scheme::{FloatKind, Granularity, Grid, QuantSpec, ScaleForm, Timing};
use regex::Regex;
use serde_json::Value;

use crate::read::bad;

/// One entry.
pub(crate) struct Group {
    targets: Vec<String>,
    /// How its weights are quantized.
    pub weights: Option<Arguments>,
    /// How its inputs are rounded, as stated.
    pub input: Value,
    /// How its outputs are rounded, as stated.
    pub output: Value,
}

/// Quantization arguments.
pub(crate) struct Arguments {
    pub bits: u8,
    pub float: bool,
    pub symmetric: bool,
    pub strategy: String,
    pub group_size: Option<u32>,
    pub block: Option<(u32, u32)>,
    pub dynamic: bool,
}

impl Arguments {
    /// Reads the object called `path`.
    ///
    /// # Errors
    /// If it is malformed.
    pub(crate) fn parse(path: &str, v: &Value) -> Result<Self> {
        let need = |key: &str| bad(format!("`{path}.{key}` is missing or malformed"));
        let size = |v: &Value| v.as_u64().filter(|g| (1..=u64::from(u32::MAX)).contains(g)).map(|g| g as u32);
        let group_size = size(&v["group_size"]);
        let inferred = match (group_size, v["group_size"].as_i64()) {
            (Some(_), _) => "group",
            (None, Some(_)) => "channel",
            (None, None) => "tensor",
        };
        Ok(Self {
            bits: v["num_bits"].as_u64().filter(|b| (1..=8).contains(b)).ok_or_else(|| need("num_bits"))? as u8,
            float: match v["type"].as_str().unwrap_or("int") {
                "int" => false,
                "float" => true,
                _ => return Err(need("type")),
            },
            symmetric: v["symmetric"].as_bool().unwrap_or(true),
            strategy: v["strategy"].as_str().unwrap_or(inferred).to_owned(),
            group_size,
            block: v["block_structure"].as_array().and_then(|a| Some((size(a.first()?)?, size(a.get(1)?)?))),
            dynamic: match &v["dynamic"] {
                Value::Null => false,
                Value::Bool(dynamic) => *dynamic,
                other => return Err(bad(format!("`{path}.dynamic` is {other}")).hint("true and false can be read")),
            },
        })
    }

    /// `group` and its size, for messages.
    pub(crate) fn tiles(&self) -> String {
        format!("strategy `{}` with group size {:?} and blocks {:?}", self.strategy, self.group_size, self.block)
    }
}

/// Reads all entries.
///
/// # Errors
/// If one is malformed.
pub(crate) fn groups(config: &Value) -> Result<Vec<Group>> {
    let map = config
        .get("config_groups")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("`quantization_config` has no object `config_groups`".to_owned()))?;
    map.iter()
        .map(|(name, g)| {
            let weights = g.get("weights").filter(|w| !w.is_null());
            Ok(Group {
                targets: g["targets"].as_array().into_iter().flatten().filter_map(|t| t.as_str().map(ToOwned::to_owned)).collect(),
                weights: weights.map(|w| Arguments::parse(&format!("config_groups.{name}.weights"), w)).transpose()?,
                input: g["input_activations"].clone(),
                output: g["output_activations"].clone(),
            })
        })
        .collect()
}

/// Finds the entry of a module: by exact name, then by regular expression, then by class.
pub(crate) struct Finder<'a> {
    groups: &'a [Group],
    patterns: BTreeMap<&'a str, Regex>,
}

impl<'a> Finder<'a> {
    pub(crate) fn new(groups: &'a [Group]) -> Self {
        let patterns = groups.iter().flat_map(|g| &g.targets).filter_map(|t| {
            let pattern = t.strip_prefix("re:")?;
            Some((t.as_str(), Regex::new(&format!("^(?:{pattern})")).ok()?))
        });
        Self { groups, patterns: patterns.collect() }
    }

    /// The entry of a module that is stored quantized.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn of(&self, module: &str) -> Result<&'a Group> {
        let by = |matches: &dyn Fn(&str) -> bool| self.groups.iter().find(|g| g.targets.iter().any(|t| matches(t)));
        by(&|t| t == module)
            .or_else(|| by(&|t| self.patterns.get(t).is_some_and(|r| r.is_match(module))))
            .or_else(|| by(&|t| t == "Linear"))
            .ok_or_else(|| bad(format!("`{module}` is quantized, but no entry of `config_groups` targets it")))
    }
}

/// The scheme that arguments stand for.
pub(crate) fn spec(args: &Arguments, format: &str, grid: Grid, granularity: Granularity, scale: ScaleForm) -> QuantSpec {
    let timing = if args.dynamic { Timing::Dynamic } else { Timing::Static };
    QuantSpec { symmetric: args.symmetric, timing, ..QuantSpec::stored(format, args.bits, grid, granularity, scale) }
}

/// Scales as floats.
pub(crate) const FLOAT: ScaleForm = ScaleForm::Float(FloatKind::F32);
