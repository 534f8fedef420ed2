//! From the raw spec of one tensor to the resolved one: names looked up, defaults filled in, what cannot be refused.

use serde_json::{Value, json};

use super::raw::{RawConvention, RawGranularity, RawGroup, RawQuant, RawReduce, RawScale, RawScaleRounding, RawTiming, RawZeroPoint};
use crate::error::{Error, Result};
use crate::format::{Ask, QuantFormat};
use crate::granularity::Shape;
use crate::registry::Registry;
use crate::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, PowerRounding, QuantSpec, Reducer, ScaleForm, Timing};

/// Resolves `raw` for a tensor of `shape`. `auto` is the size that stands for `group = "auto:N"`; `stored` the float type of scales.
///
/// # Errors
/// For unknown names, and for combinations that mean nothing.
pub(super) fn resolve(raw: &RawQuant, registry: &Registry, shape: &Shape, auto: u32, stored: FloatKind) -> Result<QuantSpec> {
    let refuse = |message: String, hint: &str| Err(Error::plan("plan::unsupported", message).hint(hint));
    let format = registry.format(&raw.format)?;
    let id = format.id();
    let timing = match raw.timing {
        RawTiming::Static => Timing::Static,
        RawTiming::Dynamic => Timing::Dynamic,
        RawTiming::Cast => Timing::Cast,
    };
    if timing == Timing::Dynamic && shape.rows.is_some() {
        return refuse("weights cannot be quantized dynamically".to_owned(), "leave `timing` out, or set it to \"static\"");
    }
    let convention = match raw.convention {
        RawConvention::PowB1 => Convention::PowB1,
        RawConvention::PowB1m1 => Convention::PowB1m1,
        RawConvention::HalfRange => Convention::HalfRange,
        RawConvention::Narrow => Convention::Narrow,
        RawConvention::SignedFull => Convention::SignedFull,
    };
    let ask = Ask {
        symmetric: raw.symmetric,
        convention,
        float_zero: raw.zero_point == RawZeroPoint::Float,
        power_of_two: power_of_two(raw)?,
        stored,
    };
    let meaning = format.resolve(&ask)?;
    if raw.scale == Some(RawScale::Float) && !matches!(meaning.scale, ScaleForm::Float(_)) {
        return refuse(format!("`{id}` is defined with scales of its own, not floats"), "leave `scale` out");
    }
    let mut scale = meaning.scale;
    if timing == Timing::Cast {
        if !matches!(meaning.grid, Grid::Float(_)) || !matches!(scale, ScaleForm::Float(_)) {
            return refuse(format!("`{id}` cannot be cast to: its codes need a scale"), "use a float format such as float-ocp-e4m3");
        }
        scale = ScaleForm::One;
    }
    let granularity = granularity(raw, registry, &*format, shape, auto, timing)?;
    let (observer, options) = match &raw.range {
        Some(range) => (range.id.as_str(), serde_json::to_value(&range.options).map_err(|e| Error::internal(e.to_string()))?),
        None => (format.observer().unwrap_or("minmax"), json!({})),
    };
    let (built, options) = registry.build_observer(observer, &options)?;
    let activation = shape.rows.is_none();
    if activation && !built.chooses_ranges() {
        return refuse(format!("observer `{observer}` is for weights: it chooses parameters, not ranges"), "use minmax, percentile or mse");
    }
    built.suits(&meaning.grid, scale)?;
    if timing == Timing::Dynamic && observer != "minmax" {
        return refuse(
            format!("dynamic ranges are those of the values themselves, not of observer `{observer}`"),
            "leave `range` out, or set `timing = \"static\"`",
        );
    }
    Ok(QuantSpec {
        format: id,
        bits: format.bits(),
        grid: meaning.grid,
        granularity,
        symmetric: meaning.symmetric,
        convention: meaning.convention,
        observer: ObserverChoice { id: observer.to_owned(), options },
        timing,
        reduce: reducer(raw.reduce)?,
        rescale: raw.rescale as f32,
        min_threshold: raw.min_threshold as f32,
        scale,
    })
}

fn power_of_two(raw: &RawQuant) -> Result<Option<PowerRounding>> {
    let rounding = raw.scale_rounding.map(|r| match r {
        RawScaleRounding::Floor => PowerRounding::Floor,
        RawScaleRounding::Ceil => PowerRounding::Ceil,
        RawScaleRounding::Round => PowerRounding::Round,
    });
    match (raw.scale, rounding) {
        (Some(RawScale::Po2), r) => Ok(Some(r.unwrap_or(PowerRounding::Ceil))),
        (Some(RawScale::Float), Some(_)) => {
            Err(Error::config("config::invalid", "`scale-rounding` is for powers of two, but `scale` is \"float\"")
                .hint("leave one of them out"))
        }
        // Formats that are powers of two by themselves can be told how to round; for others it says nothing.
        (_, r) => Ok(r),
    }
}

fn granularity(
    raw: &RawQuant,
    registry: &Registry,
    format: &dyn QuantFormat,
    shape: &Shape,
    auto: u32,
    timing: Timing,
) -> Result<Granularity> {
    let own = format.granularity();
    let Some(asked) = &raw.granularity else {
        let default = match (own, shape.rows, timing, shape.head) {
            (Some(own), ..) => return Ok(own),
            (_, Some(_), ..) => "channel",
            (_, None, Timing::Dynamic, Some(_)) => "head",
            (_, None, Timing::Dynamic, None) => "token",
            _ => "tensor",
        };
        return registry.granularity(default, shape, &Value::Null);
    };
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
    let asked = registry.granularity(id, shape, &value)?;
    match own {
        Some(own) if own != asked => {
            Err(Error::plan("plan::unsupported", format!("`{}` is defined in runs: {own}, not {asked}", format.id()))
                .hint("leave `granularity` out"))
        }
        _ => Ok(asked),
    }
}

fn reducer(raw: RawReduce) -> Result<Reducer> {
    Ok(match raw {
        RawReduce::Mean => Reducer::Mean,
        RawReduce::Max => Reducer::Max,
        RawReduce::Concat => Reducer::Concat,
        RawReduce::Ema(c) if c > 0.0 && c <= 1.0 => Reducer::Ema(c as f32),
        RawReduce::Ema(c) => {
            return Err(Error::config("config::invalid", format!("`reduce` has the moving average {c}"))
                .hint("the share of a new window lies above 0 and is at most 1; 0.01 is usual"));
        }
    })
}
