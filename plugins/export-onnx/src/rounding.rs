//! Activations that are rounded with fixed scales: `QuantizeLinear`, then `Clip` where the grid is narrower than its type, then
//! `DequantizeLinear`; with scales found at each call: see `dynamic.rs`.
//!
//! `QuantizeLinear` computes `saturate(round(x/s) + z)`, half to even, as our integers do. Source: ONNX, `docs/Operators.md`. It rounds to
//! floats of 8 bits as well, but onnxruntime 1.31 makes an operator for integers of a product between two `DequantizeLinear`, whatever they
//! hold, and then fails to load the graph: floats are cast instead, `s·float(x/s)`.

use qfw_core::numeric::pack_row;
use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{Extent, FloatVariant, Grid, QParams, Timing, Zero};
use qfw_core::{Error, Result};

use crate::dynamic::{Dynamic, cast};
use crate::form::Form;
use crate::graph::{Graph, Value};
use crate::message::{Attribute, Kind};

/// How activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rounding {
    Fixed(Fixed),
    Dynamic(Dynamic),
}

/// What they are rounded to with fixed scales: codes without zero points in a signed type, or less the grid's smallest in an unsigned one.
///
/// A signed type with zero points would do as well, but onnxruntime 1.31 fails to load graphs in which it moves such a pair past a
/// `Reshape`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    kind: Kind,
    clip: Option<(i32, i32)>,
    /// What is subtracted from zero points, where there are any.
    zeros: Option<i32>,
}

/// What the activations of a place become in a form.
///
/// # Errors
/// If that cannot be said, with the nearest that can.
pub(crate) fn rounding(form: Form, a: &PlannedActivation) -> Result<Rounding> {
    let refuse = |why: &str, hint: &str| Err(Error::plan("plan::container", format!("`{}`: {why}", a.place)).hint(hint));
    let spec = &a.spec;
    if spec.timing != Timing::Static {
        let fixed = format!("set `scheme.{}.timing = \"static\"`", a.part);
        if matches!(form, Form::Qdq | Form::Qcdq) {
            let why = format!("QuantizeLinear has fixed scales, and {} are {spec}", a.part);
            return refuse(&why, &format!("{fixed}, or use `--format onnx`"));
        }
        return match Dynamic::of(a).filter(|_| spec.timing == Timing::Dynamic) {
            Some(dynamic) => Ok(Rounding::Dynamic(dynamic)),
            None => refuse(
                &format!("a graph rounds to int8 or fp8 with scales that it finds for each token, and not to {spec}"),
                &format!("set `scheme.{}.granularity = \"token\"`, {fixed}, or use `--format qfw`", a.part),
            ),
        };
    }
    if !matches!(spec.granularity.cols, Extent::All | Extent::Of(1)) {
        let why = format!("QuantizeLinear has one scale for all channels or one for each, and not {spec}");
        return refuse(&why, &format!("set `scheme.{}.granularity = \"tensor\"`, or use `--format qfw`", a.part));
    }
    if a.part == "probs" && spec.granularity.cols != Extent::All {
        return refuse("attention weights have no channels", "set `scheme.probs.granularity = \"tensor\"`");
    }
    let nearest = format!("use int8 or fp8 in `scheme.{}`, or `--format qfw`", a.part);
    match &spec.grid {
        Grid::Int { lo, hi, zero } if spec.bits <= 8 && *zero != Zero::Float => {
            let bits = if form == Form::Qdq && spec.bits <= 4 { 4 } else { 8 };
            let signed = *zero == Zero::None && *lo < 0;
            let (first, last) = if signed { (*lo, *hi) } else { (0, hi - lo) };
            let (kind, least, most) = match (bits, signed) {
                (4, true) => (Kind::Int4, -8, 7),
                (4, false) => (Kind::Uint4, 0, 15),
                (_, true) => (Kind::Int8, -128, 127),
                (_, false) => (Kind::Uint8, 0, 255),
            };
            let narrow = (first, last) != (least, most);
            if narrow && form == Form::Qdq {
                let why = format!("{spec} is narrower than the types of QuantizeLinear");
                return refuse(&why, "use `--format onnx-qcdq`, which clips, or int8");
            }
            Ok(Rounding::Fixed(Fixed { kind, clip: narrow.then_some((first, last)), zeros: (!signed).then_some(*lo) }))
        }
        Grid::Float(f) => {
            let kind = match (f.shape(), f.variant()) {
                ((4, 3), FloatVariant::Ocp) => Kind::Float8E4M3Fn,
                ((5, 2), FloatVariant::Ocp) => Kind::Float8E5M2,
                _ => return refuse(&format!("a graph does not round to {}", spec.format), &nearest),
            };
            if matches!(form, Form::Qdq | Form::Qcdq) {
                let why = format!("onnxruntime does not load graphs in which QuantizeLinear rounds {} to {}", a.part, spec.format);
                return refuse(&why, "use `--format onnx`, which casts, or int8");
            }
            Ok(Rounding::Fixed(Fixed { kind, clip: None, zeros: None }))
        }
        _ => refuse(&format!("QuantizeLinear does not round to {spec}"), &nearest),
    }
}

impl Fixed {
    /// The nodes that round `x`, `[…, channels]`. `name` is that of the parameters.
    pub(crate) fn nodes(self, graph: &mut Graph, at: &str, name: &str, x: &str, params: &QParams) -> Value {
        let dims: &[usize] = if params.scale.len() == 1 { &[] } else { &[params.scale.len()] };
        let along = || if dims.is_empty() { Vec::new() } else { vec![Attribute::int("axis", -1)] };
        let bytes = params.scale.iter().flat_map(|s| s.to_le_bytes()).collect();
        let scale = graph.constant(format!("{name}.scale"), Kind::Float, dims, bytes);
        if matches!(self.kind, Kind::Float8E4M3Fn | Kind::Float8E5M2) {
            return cast(graph, at, self.kind, x, &scale);
        }
        let zero = self.zeros.map(|lo| {
            let units: Vec<u8> = params.zero.iter().map(|z| (*z as i32 - lo) as u8).collect();
            let mut bytes = Vec::new();
            pack_row(&units, self.kind.bits() as u8, 1, &mut bytes);
            graph.constant(format!("{name}.zero"), self.kind, dims, bytes)
        });
        let with = |codes: &str| [Some(codes.to_owned()), Some(scale.clone()), zero.clone()].into_iter().flatten().collect::<Vec<_>>();
        let typed = if zero.is_some() { Vec::new() } else { vec![Attribute::int("output_dtype", self.kind as i64)] };
        let mut codes = graph.op(at, "QuantizeLinear", &refs(&with(x)), [along(), typed].concat());
        if let Some((lo, hi)) = self.clip {
            codes = clipped(graph, at, self.kind, &codes, (lo, hi));
        }
        graph.op(at, "DequantizeLinear", &refs(&with(&codes)), along())
    }
}

fn refs(values: &[Value]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

/// Codes of a byte, clipped.
pub(crate) fn clipped(graph: &mut Graph, at: &str, kind: Kind, codes: &str, (lo, hi): (i32, i32)) -> Value {
    let mut bound = |x: i32| graph.constant(format!("constant.{x}.{kind:?}").to_lowercase(), kind, &[], vec![x as u8]);
    let (lo, hi) = (bound(lo), bound(hi));
    graph.op(at, "Clip", &[codes, &lo, &hi], Vec::new())
}
