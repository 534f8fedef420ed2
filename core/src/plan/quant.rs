//! From the raw spec of one tensor to the resolved one: names looked up, defaults filled in, what means nothing refused.
//!
//! One rule after the other. A rule that is broken says why, and which changes of single keys are ways around it, the mildest first.

use serde_json::{Value, json};

use super::cell::{Change, Part, Refusal, Tensor, judge};
use super::raw::{
    RawConvention, RawGranularity, RawGroup, RawQuant, RawRange, RawReduce, RawScale, RawScaleRounding, RawTiming, RawZeroPoint,
};
use crate::error::{Error, Result};
use crate::format::{Ask, Meaning, QuantFormat};
use crate::granularity::Shape;
use crate::registry::Registry;
use crate::scheme::{Convention, Extent, Granularity, Grid, ObserverChoice, PowerRounding, QuantSpec, Reducer, ScaleForm, Timing};

/// A broken rule: why, and the ways around it.
pub(super) struct Broken {
    pub(super) error: Error,
    pub(super) ways: Vec<Change>,
}

impl From<Error> for Broken {
    /// A failure that no choice of keys mends.
    fn from(error: Error) -> Self {
        Self { error, ways: Vec::new() }
    }
}

fn broken(message: impl Into<String>, hint: &str, ways: Vec<Change>) -> Broken {
    Broken { error: Error::plan("plan::unsupported", message).hint(hint), ways }
}

fn minmax() -> Change {
    Change::Range(Some(RawRange::default()))
}

/// Resolves `raw` for a tensor.
///
/// # Errors
/// For unknown names, and for combinations that mean nothing; the hint names the nearest valid choice.
pub(super) fn resolve(part: Part, raw: &RawQuant, tensor: &Tensor, registry: &Registry) -> Result<QuantSpec> {
    judge(part, raw, tensor, registry).map_err(|Refusal { error, .. }| error)
}

/// The rules.
pub(super) fn check(part: Part, raw: &RawQuant, tensor: &Tensor, registry: &Registry) -> Result<QuantSpec, Broken> {
    // One format of each kind, whichever goes with the other keys.
    let known = || ["int8", "float-ocp-e4m3", "mxint8"].map(|id| Change::Format(id.to_owned())).to_vec();
    let format = registry.format(&raw.format).map_err(|error| Broken { error, ways: known() })?;
    let id = format.id();
    let timing = match raw.timing {
        RawTiming::Static => Timing::Static,
        RawTiming::Dynamic => Timing::Dynamic,
        RawTiming::Cast => Timing::Cast,
    };
    if timing == Timing::Dynamic && part.is_weight() {
        return Err(broken(
            "weights cannot be quantized dynamically",
            "leave `timing` out, or set it to \"static\"",
            vec![Change::Timing(RawTiming::Static)],
        ));
    }
    let meaning = meaning(part, raw, tensor, &*format)?;
    let granularity = granularity(part, raw, registry, &*format, tensor)?;
    let observer = observer(part, raw, registry, &*format, &meaning)?;
    let (rescale, min_threshold) = factors(raw)?;
    Ok(QuantSpec {
        format: id,
        bits: format.bits(),
        grid: meaning.grid,
        granularity,
        symmetric: meaning.symmetric,
        convention: meaning.convention,
        observer,
        timing,
        reduce: reducer(raw.reduce)?,
        rescale,
        min_threshold,
        scale: meaning.scale,
    })
}

/// An integer format of the same width: it has every option.
fn integers(format: &dyn QuantFormat) -> Change {
    Change::Format(format!("int{}", format.bits().clamp(2, 16)))
}

/// Grid and scale.
fn meaning(part: Part, raw: &RawQuant, tensor: &Tensor, format: &dyn QuantFormat) -> Result<Meaning, Broken> {
    let id = format.id();
    let convention = match raw.convention {
        RawConvention::PowB1 => Convention::PowB1,
        RawConvention::PowB1m1 => Convention::PowB1m1,
        RawConvention::HalfRange => Convention::HalfRange,
        RawConvention::Narrow => Convention::Narrow,
        RawConvention::SignedFull => Convention::SignedFull,
    };
    let rounding = raw.scale_rounding.map(|r| match r {
        RawScaleRounding::Floor => PowerRounding::Floor,
        RawScaleRounding::Ceil => PowerRounding::Ceil,
        RawScaleRounding::Round => PowerRounding::Round,
    });
    let float_zero = raw.zero_point == RawZeroPoint::Float;
    let ask = |power_of_two| Ask { symmetric: raw.symmetric, convention, float_zero, power_of_two, stored: tensor.stored };
    let resolve = |power_of_two| {
        let ways = || vec![Change::Symmetric(true), Change::Scale(None), integers(format)];
        format.resolve(&ask(power_of_two)).map_err(|error| Broken { error, ways: ways() })
    };
    let own = || vec![Change::ScaleRounding(None), Change::Scale(Some(RawScale::Po2)), integers(format)];
    let mut meaning = match (raw.scale, rounding) {
        (Some(RawScale::Po2), r) => resolve(Some(r.unwrap_or(PowerRounding::Ceil)))?,
        (Some(RawScale::Float), Some(_)) => {
            let error = Error::config("config::invalid", "`scale-rounding` is for powers of two, but `scale` is \"float\"");
            return Err(Broken { error: error.hint("leave one of them out"), ways: own() });
        }
        (None, Some(r)) => {
            // Formats that are powers of two by themselves can be told how to round.
            if !matches!(resolve(None)?.scale, ScaleForm::PowerOfTwo { .. }) {
                let why = format!("`scale-rounding` is for powers of two, but scales of `{id}` are not unless it is said");
                let ways = [own(), vec![Change::Format("mxint8".to_owned())]].concat();
                return Err(broken(why, "leave `scale-rounding` out, or set `scale = \"po2\"` too", ways));
            }
            resolve(Some(r))?
        }
        (_, None) => resolve(None)?,
    };
    if raw.scale == Some(RawScale::Float) && !matches!(meaning.scale, ScaleForm::Float(_)) {
        let why = format!("`{id}` is defined with scales of its own, not floats");
        let ways = vec![Change::Scale(None), integers(format), Change::Format("float-ocp-e4m3".to_owned())];
        return Err(broken(why, "leave `scale` out", ways));
    }
    if raw.timing == RawTiming::Cast {
        let scaled = if part.is_weight() { vec![RawTiming::Static] } else { vec![RawTiming::Dynamic, RawTiming::Static] };
        let scaled = scaled.into_iter().map(Change::Timing);
        if matches!(meaning.grid, Grid::Float(_)) && raw.scale == Some(RawScale::Po2) {
            let ways = [Change::Scale(None)].into_iter().chain(scaled).collect();
            return Err(broken("a cast has no scale, but `scale` is \"po2\"", "leave `scale` or `timing` out", ways));
        }
        if !matches!(meaning.grid, Grid::Float(_)) || !matches!(meaning.scale, ScaleForm::Float(_)) {
            let ways = [Change::Format("float-ocp-e4m3".to_owned())].into_iter().chain(scaled).collect();
            let why = format!("`{id}` cannot be cast to: its codes need a scale");
            return Err(broken(why, "set `format` to a float such as float-ocp-e4m3, or leave `timing` out", ways));
        }
        meaning.scale = ScaleForm::One;
    }
    Ok(meaning)
}

fn granularity(part: Part, raw: &RawQuant, registry: &Registry, format: &dyn QuantFormat, tensor: &Tensor) -> Result<Granularity, Broken> {
    let shape = tensor.shape(part, raw.timing);
    let own = format.granularity();
    let granularity = match (&raw.granularity, own) {
        (Some(asked), own) => {
            let asked = asked_granularity(asked, registry, &shape, tensor.auto)?;
            if let Some(own) = own.filter(|own| *own != asked) {
                let why = format!("`{}` is defined in runs: {own}, not {asked}", format.id());
                return Err(broken(why, "leave `granularity` out", vec![Change::Granularity(None), integers(format)]));
            }
            asked
        }
        (None, Some(own)) => own,
        (None, None) => {
            let default = match (part.is_weight(), raw.timing, part.has_heads()) {
                (true, ..) => "channel",
                (false, RawTiming::Dynamic, true) => "head",
                (false, RawTiming::Dynamic, false) => "token",
                (false, ..) => "tensor",
            };
            registry.granularity(default, &shape, &Value::Null)?
        }
    };
    // The columns of probabilities are the tokens attended to.
    if part == Part::Probs && raw.timing == RawTiming::Static && granularity.cols != Extent::All {
        let why = format!("static `probs` have one scale, not {granularity}: their columns are tokens, which are not known beforehand");
        let ways = vec![Change::Timing(RawTiming::Dynamic), Change::Granularity(Some(RawGranularity::Tensor)), integers(format)];
        return Err(broken(why, "set `timing = \"dynamic\"`, or `granularity = \"tensor\"`", ways));
    }
    Ok(granularity)
}

fn asked_granularity(asked: &RawGranularity, registry: &Registry, shape: &Shape, auto: u32) -> Result<Granularity, Broken> {
    let (id, value) = match asked {
        RawGranularity::Tensor => ("tensor", Value::Null),
        RawGranularity::Channel => ("channel", Value::Null),
        RawGranularity::Token => ("token", Value::Null),
        RawGranularity::Head => ("head", Value::Null),
        RawGranularity::Dimension => ("dimension", Value::Null),
        RawGranularity::Group(RawGroup::Exact(n)) => ("group", json!(n.get())),
        RawGranularity::Group(RawGroup::Auto(_)) => ("group", json!(auto)),
        RawGranularity::GroupOut(n) => ("group-out", json!(n.get())),
        RawGranularity::Block([r, c]) => ("block", json!([r.get(), c.get()])),
        RawGranularity::Plugin(p) => (p.id.as_str(), serde_json::to_value(&p.options).map_err(|e| Error::internal(e.to_string()))?),
    };
    registry.granularity(id, shape, &value).map_err(|error| {
        let mut ways = vec![Change::Granularity(None)];
        let dynamic = Shape { dynamic: true, ..*shape };
        if !shape.dynamic && shape.rows.is_none() && registry.granularity(id, &dynamic, &value).is_ok() {
            ways.insert(0, Change::Timing(RawTiming::Dynamic));
        }
        Broken { error, ways }
    })
}

fn observer(
    part: Part,
    raw: &RawQuant,
    registry: &Registry,
    format: &dyn QuantFormat,
    meaning: &Meaning,
) -> Result<ObserverChoice, Broken> {
    let (id, options) = match &raw.range {
        Some(range) => (range.id.as_str(), serde_json::to_value(&range.options).map_err(|e| Error::internal(e.to_string()))?),
        None => (format.observer().unwrap_or("minmax"), json!({})),
    };
    let without = |more: Vec<Change>| [Change::Range(None), minmax()].into_iter().chain(more).collect::<Vec<_>>();
    let (built, options) = registry.build_observer(id, &options).map_err(|error| Broken { error, ways: without(Vec::new()) })?;
    if !part.is_weight() && !built.chooses_ranges() {
        let why = format!("observer `{id}` is for weights: it chooses parameters, not ranges");
        return Err(broken(why, "set `range` to minmax, percentile or mse", without(Vec::new())));
    }
    if let Err(error) = built.suits(&meaning.grid, meaning.scale) {
        let ways = without(vec![Change::Symmetric(false), Change::Scale(None), integers(format)]);
        return Err(Broken { error, ways });
    }
    if raw.timing == RawTiming::Dynamic && id != "minmax" {
        let why = format!("dynamic ranges are those of the values themselves, not of observer `{id}`");
        let hint = if raw.range.is_some() { "leave `range` out" } else { "set `range = \"minmax\"`" };
        let ways = without(vec![Change::Timing(RawTiming::Static), integers(format)]);
        return Err(broken(why, &format!("{hint}, or set `timing = \"static\"`"), ways));
    }
    Ok(ObserverChoice { id: id.to_owned(), options })
}

/// `rescale` and `min-threshold` as they are computed with.
fn factors(raw: &RawQuant) -> Result<(f32, f32), Broken> {
    let (rescale, min_threshold) = (raw.rescale as f32, raw.min_threshold as f32);
    let bad = |key: &str, value: f64, way| Broken {
        error: Error::config("config::invalid", format!("`{key}` is {value}, which is too small or too large for 32 bits"))
            .hint(format!("leave `{key}` out")),
        ways: vec![way],
    };
    if !(rescale.is_normal() && rescale > 0.0) {
        return Err(bad("rescale", raw.rescale, Change::Rescale(1.0)));
    }
    if !(min_threshold.is_finite() && min_threshold >= 0.0) {
        return Err(bad("min-threshold", raw.min_threshold, Change::MinThreshold(0.0)));
    }
    Ok((rescale, min_threshold))
}

fn reducer(raw: RawReduce) -> Result<Reducer, Broken> {
    Ok(match raw {
        RawReduce::Mean => Reducer::Mean,
        RawReduce::Max => Reducer::Max,
        RawReduce::Concat => Reducer::Concat,
        RawReduce::Ema(c) if c > 0.0 && c <= 1.0 => Reducer::Ema(c as f32),
        RawReduce::Ema(c) => {
            let error = Error::config("config::invalid", format!("`reduce` has the moving average {c}"))
                .hint("the share of a new window lies above 0 and is at most 1; 0.01 is usual");
            return Err(Broken { error, ways: vec![Change::Reduce(RawReduce::Mean)] });
        }
    })
}
