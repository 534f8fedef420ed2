//! The pointwise non-linearities of feed-forward layers.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::elementwise::{PART, part_by_part};
use super::gradient::{activate_backward, activate_gated_backward, step1, step2, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use super::vectorize::{Kernel, vectorize};
use crate::error::{Error, Result, did_you_mean};

/// A pointwise non-linearity, by the name model configurations use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(x)`
    Silu,
    /// `x·Φ(x)`, exact
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`]
    GeluTanh,
    /// `max(x, 0)`
    Relu,
}

impl Activation {
    const NAMES: [(&'static str, Self); 8] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_accurate", Self::GeluTanh),
        ("relu", Self::Relu),
    ];

    /// The activation of that name in a `config.json`.
    ///
    /// # Errors
    /// If the name is unknown; the message lists the known ones.
    pub fn parse(name: &str) -> Result<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, a)| *a).ok_or_else(|| {
            let known = Self::NAMES.map(|(n, _)| n);
            Error::input("model::activation", format!("unknown activation `{name}`{}", did_you_mean(name, known)))
                .hint(format!("known activations: {}", known.join(", ")))
        })
    }
}

/// A loop over one of the functions.
pub(super) trait OverPointwise {
    fn each<F: Pointwise>(self);
}

impl Activation {
    /// Runs `over` with this function: one dispatch for a whole loop.
    #[inline(always)]
    pub(super) fn with(self, over: impl OverPointwise) {
        match self {
            Self::Silu => over.each::<Silu>(),
            Self::Gelu => over.each::<Gelu>(),
            Self::GeluTanh => over.each::<GeluTanh>(),
            Self::Relu => over.each::<Relu>(),
        }
    }
}

/// The functions themselves, as types, so that the loop over each is compiled on its own.
pub(super) trait Pointwise {
    fn at<R: Real>(x: R) -> R;
    /// The derivative.
    fn slope<R: Real>(x: R) -> R;
}

struct Silu;
struct Gelu;
struct GeluTanh;
struct Relu;

impl Pointwise for Silu {
    #[inline(always)]
    fn at<R: Real>(x: R) -> R {
        x / (R::of(1.0) + (-x).exp_fast())
    }

    /// `σ + x·σ·(1 − σ)`
    #[inline(always)]
    fn slope<R: Real>(x: R) -> R {
        let sigma = R::of(1.0) / (R::of(1.0) + (-x).exp_fast());
        sigma * (R::of(1.0) + x * (R::of(1.0) - sigma))
    }
}

impl Pointwise for Gelu {
    #[inline(always)]
    fn at<R: Real>(x: R) -> R {
        R::of(0.5) * x * (R::of(1.0) + Real::erf(x * R::of(std::f64::consts::FRAC_1_SQRT_2)))
    }

    /// `Φ(x) + x·φ(x)`
    #[inline(always)]
    fn slope<R: Real>(x: R) -> R {
        let below = R::of(0.5) * (R::of(1.0) + Real::erf(x * R::of(std::f64::consts::FRAC_1_SQRT_2)));
        let density = (R::of(-0.5) * x * x).exp_fast() * R::of(1.0 / (2.0 * std::f64::consts::PI).sqrt());
        below + x * density
    }
}

impl Pointwise for GeluTanh {
    /// With `tanh u = 1 − 2/(e^{2u} + 1)`: `½x(1 + tanh u) = x − x/(e^{2u} + 1)`.
    #[inline(always)]
    fn at<R: Real>(x: R) -> R {
        let u = R::of((2.0 / std::f64::consts::PI).sqrt()) * (x + R::of(0.044_715) * x * x * x);
        x - x / ((u + u).exp_fast() + R::of(1.0))
    }

    /// `1 − σ + x·σ·(1 − σ)·2u′` with `σ = 1/(e^{2u} + 1)`
    #[inline(always)]
    fn slope<R: Real>(x: R) -> R {
        let root = R::of((2.0 / std::f64::consts::PI).sqrt());
        let u = root * (x + R::of(0.044_715) * x * x * x);
        let steep = root * (R::of(1.0) + R::of(3.0 * 0.044_715) * x * x);
        let sigma = R::of(1.0) / ((u + u).exp_fast() + R::of(1.0));
        R::of(1.0) - sigma + x * sigma * (R::of(1.0) - sigma) * (steep + steep)
    }
}

impl Pointwise for Relu {
    #[inline(always)]
    fn at<R: Real>(x: R) -> R {
        if x > R::of(0.0) { x } else { R::of(0.0) }
    }

    #[inline(always)]
    fn slope<R: Real>(x: R) -> R {
        if x > R::of(0.0) { R::of(1.0) } else { R::of(0.0) }
    }
}

/// `y ← f(y)`, or `y ← f(y) ⊙ u`.
struct InPlace<'a, R> {
    f: Activation,
    y: &'a mut [R],
    factor: Option<&'a [R]>,
}

impl<R: Real> OverPointwise for InPlace<'_, R> {
    #[inline(always)]
    fn each<F: Pointwise>(self) {
        match self.factor {
            None => self.y.iter_mut().for_each(|y| *y = F::at(*y)),
            Some(u) => self.y.iter_mut().zip(u).for_each(|(y, u)| *y = F::at(*y) * *u),
        }
    }
}

impl<R: Real> Kernel for InPlace<'_, R> {
    type Output = ();
    #[inline(always)]
    fn run<S: pulp::Simd>(self, _: S) {
        self.f.with(self);
    }
}

/// `f(x)`, any shape.
///
/// # Errors
/// None on the CPU.
pub fn activate(f: Activation, x: &Tensor) -> Result<Tensor> {
    if traced(&[x], &[]) {
        let frozen = x.detach();
        let value = activate(f, &frozen)?;
        return step1(x, value, move |g| activate_backward(f, &frozen, g));
    }
    if !on_host(&[x]) {
        return composed(f, x);
    }
    for_real!(x, R => with_slice::<R, _>(x, |s| {
        tensor(part_by_part(s, PART, |_, y| vectorize(InPlace { f, y, factor: None })), x.shape().clone())
    }))
}

/// `f(gate) ⊙ up`, equal shapes.
///
/// # Errors
/// If the shapes differ.
pub fn activate_gated(f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() == up.dims() && traced(&[gate, up], &[]) {
        let frozen = (gate.detach(), up.detach());
        let value = activate_gated(f, &frozen.0, &frozen.1)?;
        let tracked = [gate, up].map(Tensor::track_op);
        return step2((gate, up), value, move |g| {
            let (dx, du) = activate_gated_backward(f, &frozen.0, &frozen.1, g)?;
            Ok([tracked[0].then_some(dx), tracked[1].then_some(du)])
        });
    }
    if !on_host(&[gate, up]) || gate.dims() != up.dims() {
        return Ok((composed(f, gate)? * up)?);
    }
    for_real!(gate, R => with_slice::<R, _>(gate, |g| with_slice::<R, _>(up, |u| {
        tensor(part_by_part(g, PART, |at, y| activate_in_place(f, y, &u[at..][..y.len()])), gate.shape().clone())
    })))
}

/// `gate ← f(gate) ⊙ up`
pub(super) fn activate_in_place<R: Real>(f: Activation, gate: &mut [R], up: &[R]) {
    vectorize(InPlace { f, y: gate, factor: Some(up) });
}

fn composed(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
    })
}
