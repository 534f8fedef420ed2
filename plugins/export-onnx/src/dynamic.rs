//! Activations whose scales are found at each call: the arithmetic of core's ranges, in operators of ONNX.
//!
//! Along a token's channels, or a stretch of them, with `c` the divisor that the scheme has for the largest magnitude:
//!
//! ```text
//! symmetric    s = max|x| / c                                  y = s·clip(round(x/s), lo, hi)
//! floats       s = max|x| / (largest value)                    y = s·float(x/s)
//! affine       s = (max(x, 0) − min(x, 0)) / (hi − lo)         y = s·(clip(round(x/s) + z, lo, hi) − z)
//!              z = clip(round(lo − min(x, 0)/s), lo, hi)
//! ```
//!
//! Scales are rounded to the float type that the scheme has for them, and never vanish. `Round` is half to even, as here.

use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{Convention, Extent, FloatKind, FloatVariant, Grid, ScaleForm, Zero};

use crate::graph::{Graph, Value};
use crate::message::{Attribute, Kind};

/// How such activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dynamic {
    /// Channels that share a scale, where those are not all.
    stretch: Option<u32>,
    grid: Rule,
    /// What scales are rounded to.
    scale: FloatKind,
    /// Factor on ranges, and what they are at least.
    rescale: f32,
    least: f32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Symmetric { lo: i32, hi: i32, divisor: f32 },
    Affine { lo: i32, hi: i32 },
    Float { kind: Kind, largest: f32 },
}

impl Dynamic {
    /// How the activations of a place are rounded, if operators of ONNX can say it.
    pub(crate) fn of(a: &PlannedActivation) -> Option<Self> {
        let spec = &a.spec;
        let (Extent::Of(1), ScaleForm::Float(scale)) = (spec.granularity.rows, spec.scale) else { return None };
        let stretch = match spec.granularity.cols {
            Extent::All => None,
            Extent::Of(n) if n > 1 && a.part != "probs" => Some(n),
            Extent::Of(_) => return None,
        };
        let grid = match &spec.grid {
            Grid::Int { lo, hi, zero: Zero::None } => {
                let half = (1_u32 << (spec.bits - 1)) as f32;
                let divisor = match spec.convention {
                    Convention::PowB1 => half,
                    Convention::PowB1m1 | Convention::Narrow => half - 1.0,
                    Convention::HalfRange => half - 0.5,
                    Convention::SignedFull => return None,
                };
                Rule::Symmetric { lo: *lo, hi: *hi, divisor }
            }
            Grid::Int { lo, hi, zero: Zero::Integer } => Rule::Affine { lo: *lo, hi: *hi },
            Grid::Float(f) => {
                let kind = match (f.shape(), f.variant()) {
                    ((4, 3), FloatVariant::Ocp) => Kind::Float8E4M3Fn,
                    ((5, 2), FloatVariant::Ocp) => Kind::Float8E5M2,
                    _ => return None,
                };
                Rule::Float { kind, largest: f.largest() }
            }
            _ => return None,
        };
        Some(Self { stretch, grid, scale, rescale: spec.rescale, least: spec.min_threshold })
    }

    /// The nodes that round `x`, `[…, channels]`.
    pub(crate) fn nodes(self, graph: &mut Graph, at: &str, x: &str) -> Value {
        let Some(n) = self.stretch else { return self.rounded(graph, at, x) };
        let (split, joined) = (graph.ints(&[0, 0, -1, i64::from(n)]), graph.ints(&[0, 0, -1]));
        let stretches = graph.op(at, "Reshape", &[x, &split], Vec::new());
        let rounded = self.rounded(graph, at, &stretches);
        graph.op(at, "Reshape", &[&rounded, &joined], Vec::new())
    }

    /// The same along the last axis.
    fn rounded(self, graph: &mut Graph, at: &str, x: &str) -> Value {
        match self.grid {
            Rule::Symmetric { lo, hi, divisor } => {
                let scale = self.magnitude(graph, at, x, divisor);
                let codes = divided(graph, at, x, &scale);
                let codes = clipped(graph, at, &codes, lo, hi);
                graph.op(at, "Mul", &[&codes, &scale], Vec::new())
            }
            Rule::Float { kind, largest } => {
                let scale = self.magnitude(graph, at, x, largest);
                cast(graph, at, kind, x, &scale)
            }
            Rule::Affine { lo, hi } => {
                let zero = graph.float(0.0);
                let below = reduced(graph, at, "ReduceMin", x);
                let below = graph.op(at, "Min", &[&below, &zero], Vec::new());
                let above = reduced(graph, at, "ReduceMax", x);
                let above = graph.op(at, "Max", &[&above, &zero], Vec::new());
                let (below, above) = (self.rescaled(graph, at, below), self.rescaled(graph, at, above));
                let range = graph.op(at, "Sub", &[&above, &below], Vec::new());
                let scale = self.scale(graph, at, range, (hi - lo) as f32);
                let steps = graph.op(at, "Div", &[&below, &scale], Vec::new());
                let first = graph.float(lo as f32);
                let centre = graph.op(at, "Sub", &[&first, &steps], Vec::new());
                let centre = graph.op(at, "Round", &[&centre], Vec::new());
                let centre = clipped(graph, at, &centre, lo, hi);
                let codes = divided(graph, at, x, &scale);
                let codes = graph.op(at, "Add", &[&codes, &centre], Vec::new());
                let codes = clipped(graph, at, &codes, lo, hi);
                let steps = graph.op(at, "Sub", &[&codes, &centre], Vec::new());
                graph.op(at, "Mul", &[&steps, &scale], Vec::new())
            }
        }
    }

    /// The scale of the largest magnitude.
    fn magnitude(self, graph: &mut Graph, at: &str, x: &str, divisor: f32) -> Value {
        let magnitudes = graph.op(at, "Abs", &[x], Vec::new());
        let largest = reduced(graph, at, "ReduceMax", &magnitudes);
        let largest = self.rescaled(graph, at, largest);
        self.scale(graph, at, largest, divisor)
    }

    fn rescaled(self, graph: &mut Graph, at: &str, range: Value) -> Value {
        if self.rescale == 1.0 {
            return range;
        }
        let factor = graph.float(self.rescale);
        graph.op(at, "Mul", &[&range, &factor], Vec::new())
    }

    /// `range / divisor` as it would be stored.
    fn scale(self, graph: &mut Graph, at: &str, mut range: Value, divisor: f32) -> Value {
        if self.least > 0.0 {
            let least = graph.float(self.least);
            range = graph.op(at, "Max", &[&range, &least], Vec::new());
        }
        let divisor = graph.float(divisor);
        let mut scale = graph.op(at, "Div", &[&range, &divisor], Vec::new());
        let (stored, smallest) = match self.scale {
            FloatKind::F32 => (None, f32::MIN_POSITIVE),
            FloatKind::F16 => (Some(Kind::Float16), FloatKind::F16.round_scale(f32::MIN_POSITIVE)),
            FloatKind::Bf16 => (Some(Kind::Bfloat16), f32::MIN_POSITIVE),
        };
        for kind in stored.into_iter().flat_map(|kind| [kind, Kind::Float]) {
            scale = graph.op(at, "Cast", &[&scale], vec![Attribute::int("to", kind as i64)]);
        }
        let smallest = graph.float(smallest);
        graph.op(at, "Max", &[&scale, &smallest], Vec::new())
    }
}

/// `s·float(x/s)`
pub(crate) fn cast(graph: &mut Graph, at: &str, kind: Kind, x: &str, scale: &str) -> Value {
    let parts = graph.op(at, "Div", &[x, scale], Vec::new());
    let codes = graph.op(at, "Cast", &[&parts], vec![Attribute::int("to", kind as i64), Attribute::int("saturate", 1)]);
    let values = graph.op(at, "Cast", &[&codes], vec![Attribute::int("to", Kind::Float as i64)]);
    graph.op(at, "Mul", &[&values, scale], Vec::new())
}

/// A reduction along the last axis, which stays.
fn reduced(graph: &mut Graph, at: &str, op: &str, x: &str) -> Value {
    let last = graph.ints(&[-1]);
    graph.op(at, op, &[x, &last], vec![Attribute::int("keepdims", 1)])
}

fn divided(graph: &mut Graph, at: &str, x: &str, scale: &str) -> Value {
    let parts = graph.op(at, "Div", &[x, scale], Vec::new());
    graph.op(at, "Round", &[&parts], Vec::new())
}

fn clipped(graph: &mut Graph, at: &str, x: &str, lo: i32, hi: i32) -> Value {
    let (lo, hi) = (graph.float(lo as f32), graph.float(hi as f32));
    graph.op(at, "Clip", &[x, &lo, &hi], Vec::new())
}
