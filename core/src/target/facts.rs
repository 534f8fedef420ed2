//! What rules can speak of: the facts of a plan, and of each way in which one of its linears is quantized.

use std::collections::BTreeMap;
use std::fmt;

use crate::plan::{Plan, PlannedActivation, PlannedSite};
use crate::scheme::{Extent, FloatVariant, Grid, QuantSpec, ScaleForm, Timing, Zero};
use crate::topology::{Role, SiteId};

/// What a fact can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any name.
    Name,
    /// One of these.
    One(&'static [&'static str]),
    /// Yes or no.
    Flag,
    /// A whole number.
    Number,
}

/// A fact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Text(String),
    Flag(bool),
    Number(i64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(t) => f.write_str(t),
            Self::Flag(b) => write!(f, "{b}"),
            Self::Number(n) => write!(f, "{n}"),
        }
    }
}

/// Every key that a rule may use, what it can be, and what it says.
pub(super) const KEYS: [(&str, Kind, &str); 20] = [
    ("container", Kind::Name, "output format"),
    ("architecture", Kind::Name, "`model_type` of the model"),
    ("weights", Kind::One(&["none", "int", "fp8", "nvfp4", "mxfp4", "mxfp8", "other"]), "numbers of the weights"),
    ("bits", Kind::Number, "bits of a weight's code; 16 where none is quantized"),
    ("symmetric", Kind::Flag, "weights have no zero points"),
    ("granularity", Kind::One(&["none", "tensor", "channel", "group", "block"]), "which weights share a scale"),
    ("group", Kind::Number, "inputs that share a scale; 0 is all"),
    ("role", Kind::One(&["none", "layer", "head", "embed"]), "what the linear is"),
    ("inputs", Kind::One(&["kept", "static", "dynamic"]), "how the linear's inputs are rounded"),
    ("input-numbers", Kind::One(&["none", "int8", "fp8", "other"]), "numbers of the inputs"),
    ("input-granularity", Kind::One(&["none", "tensor", "token", "group", "other"]), "which inputs share a scale"),
    ("cache", Kind::One(&["kept", "int8", "fp8", "other"]), "how keys and values are rounded"),
    ("other-activations", Kind::Flag, "outputs, queries or probabilities are rounded"),
    ("act-order", Kind::Flag, "groups do not run in storage order"),
    ("online-rotations", Kind::Flag, "activations are rotated while the model runs"),
    ("multipliers", Kind::Flag, "activations are multiplied by a vector while the model runs"),
    ("branches", Kind::Flag, "low-rank branches run beside the codes"),
    ("mixed-widths", Kind::Flag, "quantized layers have more than one width"),
    ("kept-layers", Kind::Flag, "some layers of the blocks are not quantized"),
    ("head-quantized", Kind::Flag, "the head is quantized"),
];

pub(super) type Facts = BTreeMap<String, Value>;

/// One quantized linear, or the model if there is none.
pub(super) struct Case {
    pub facts: Facts,
    /// Its role path.
    pub site: Option<String>,
}

/// The cases of what `plan` writes as `format`.
pub(super) fn cases(plan: &Plan, format: &str) -> Vec<Case> {
    let whole = of_plan(plan, format);
    let quantized = plan.sites.iter().filter_map(|s| Some((s, s.weights.as_ref()?)));
    let cases: Vec<Case> = quantized
        .map(|(s, spec)| Case {
            facts: whole.iter().chain(&of_site(plan, s, spec)).map(|(k, v)| (k.clone(), v.clone())).collect(),
            site: Some(s.site.clone()),
        })
        .collect();
    if !cases.is_empty() {
        return cases;
    }
    vec![Case { facts: whole.into_iter().chain(plain()).collect(), site: None }]
}

fn text(s: impl Into<String>) -> Value {
    Value::Text(s.into())
}

fn keyed<const N: usize>(facts: [(&str, Value); N]) -> Facts {
    facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

fn of_plan(plan: &Plan, format: &str) -> Facts {
    let head = SiteId::global(Role::Head).to_string();
    let quantized = || plan.sites.iter().filter(|s| s.weights.is_some());
    let mut widths: Vec<u8> = quantized().filter_map(|s| Some(s.weights.as_ref()?.bits)).collect();
    widths.sort_unstable();
    widths.dedup();
    let kept = plan.sites.iter().any(|s| s.weights.is_none() && s.site != head && !s.is_embedding());
    let part = |names: &[&str]| plan.activations.iter().find(|a| names.contains(&a.part.as_str()));
    keyed([
        ("container", text(format)),
        ("architecture", text(&plan.model_type)),
        ("cache", text(part(&["keys", "values"]).map_or("kept", |a| numbers(&a.spec)))),
        ("other-activations", Value::Flag(part(&["outputs", "queries", "probs"]).is_some())),
        ("act-order", Value::Flag(plan.unordered().is_some())),
        ("online-rotations", Value::Flag(plan.online().iter().any(|step| step.rotation().is_some()))),
        ("multipliers", Value::Flag(plan.online().iter().any(|step| step.rotation().is_none()))),
        ("branches", Value::Flag(!plan.branches.is_empty())),
        ("mixed-widths", Value::Flag(widths.len() > 1)),
        ("kept-layers", Value::Flag(kept && quantized().next().is_some())),
        ("head-quantized", Value::Flag(quantized().any(|s| s.site == head))),
    ])
}

/// The facts of a model without quantized linears.
fn plain() -> Facts {
    keyed([
        ("weights", text("none")),
        ("bits", Value::Number(16)),
        ("symmetric", Value::Flag(true)),
        ("granularity", text("none")),
        ("group", Value::Number(0)),
        ("role", text("none")),
        ("inputs", text("kept")),
        ("input-numbers", text("none")),
        ("input-granularity", text("none")),
    ])
}

fn of_site(plan: &Plan, site: &PlannedSite, spec: &QuantSpec) -> Facts {
    let role = if site.is_embedding() {
        "embed"
    } else if site.site == SiteId::global(Role::Head).to_string() {
        "head"
    } else {
        "layer"
    };
    let input = plan.activations.iter().find(|a| a.part == "inputs" && a.modules.contains(&site.module));
    let (granularity, group) = match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::All, Extent::All) => ("tensor", 0),
        (Extent::Of(1), Extent::All) => ("channel", 0),
        (Extent::Of(1), Extent::Of(g)) => ("group", i64::from(g)),
        (_, Extent::Of(g)) => ("block", i64::from(g)),
        (_, Extent::All) => ("block", 0),
    };
    keyed([
        ("weights", text(weights(spec))),
        ("bits", Value::Number(i64::from(spec.bits))),
        ("symmetric", Value::Flag(!matches!(spec.grid.zero(), Zero::Integer | Zero::Float))),
        ("granularity", text(granularity)),
        ("group", Value::Number(group)),
        ("role", text(role)),
        ("inputs", text(input.map_or("kept", |a| if a.spec.timing == Timing::Dynamic { "dynamic" } else { "static" }))),
        ("input-numbers", text(input.map_or("none", |a| numbers(&a.spec)))),
        ("input-granularity", text(input.map_or("none", together))),
    ])
}

fn is_e4m3(grid: &Grid) -> bool {
    matches!(grid, Grid::Float(f) if f.shape() == (4, 3) && f.variant() == FloatVariant::Ocp)
}

fn weights(spec: &QuantSpec) -> &'static str {
    match (&spec.grid, spec.scale) {
        (Grid::Int { .. }, _) => "int",
        (Grid::Float(f), ScaleForm::TwoLevel) if f.shape() == (2, 1) => "nvfp4",
        (Grid::Float(f), ScaleForm::PowerOfTwo { .. }) if f.shape() == (2, 1) => "mxfp4",
        (grid, ScaleForm::PowerOfTwo { .. }) if is_e4m3(grid) => "mxfp8",
        (grid, ScaleForm::Float(_)) if is_e4m3(grid) => "fp8",
        _ => "other",
    }
}

fn numbers(spec: &QuantSpec) -> &'static str {
    match &spec.grid {
        Grid::Int { .. } if spec.bits == 8 => "int8",
        grid if is_e4m3(grid) => "fp8",
        _ => "other",
    }
}

fn together(input: &PlannedActivation) -> &'static str {
    match (input.spec.granularity.rows, input.spec.granularity.cols) {
        (Extent::All, Extent::All) => "tensor",
        (Extent::Of(1), Extent::All) => "token",
        (_, Extent::Of(_)) => "group",
        _ => "other",
    }
}

/// What a case is, for those whom no rule tells anything.
pub(super) fn in_words(facts: &Facts) -> String {
    let of = |key: &str| facts.get(key).map(ToString::to_string).unwrap_or_default();
    let mut words = vec![of("weights")];
    if of("weights") == "int" {
        words = vec![format!("int{}", of("bits")), if of("symmetric") == "true" { "symmetric" } else { "affine" }.to_owned()];
    }
    words.push(of("granularity"));
    if of("group") != "0" {
        words.push(of("group"));
    }
    if of("role") != "layer" {
        words.push(format!("of the {}", of("role")));
    }
    if of("inputs") != "kept" {
        words.push(format!("with {} inputs in {}", of("inputs"), of("input-numbers")));
    }
    if of("multipliers") == "true" {
        words.push("and multipliers".to_owned());
    }
    if of("branches") == "true" {
        words.push("and branches".to_owned());
    }
    format!("{} in `{}` of a `{}` model", words.join(" "), of("container"), of("architecture"))
}
