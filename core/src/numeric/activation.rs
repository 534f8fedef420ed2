//! The pointwise non-linearities of feed-forward layers.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::host::{Real, for_real, on_host, tensor, with_slice};
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

    #[inline(always)]
    fn apply<R: Real>(self, x: R) -> R {
        let (one, half) = (R::of(1.0), R::of(0.5));
        match self {
            Self::Silu => x / (one + (-x).exp_fast()),
            Self::Gelu => half * x * (one + Real::erf(x * R::of(std::f64::consts::FRAC_1_SQRT_2))),
            Self::GeluTanh => {
                let inner = R::of((2.0 / std::f64::consts::PI).sqrt()) * (x + R::of(0.044_715) * x * x * x);
                half * x * (one + Real::tanh(inner))
            }
            Self::Relu => {
                if x > R::of(0.0) {
                    x
                } else {
                    R::of(0.0)
                }
            }
        }
    }
}

/// `f(x)`, any shape.
///
/// # Errors
/// None on the CPU.
pub fn activate(f: Activation, x: &Tensor) -> Result<Tensor> {
    if !on_host(&[x]) {
        return composed(f, x);
    }
    for_real!(x, R => with_slice::<R, _>(x, |s| {
        let mut y = s.to_vec();
        pulp::Arch::new().dispatch(|| for v in &mut y { *v = f.apply(*v); });
        tensor(y, x.shape().clone())
    }))
}

/// `f(gate) ⊙ up`, equal shapes.
///
/// # Errors
/// If the shapes differ.
pub fn activate_gated(f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if !on_host(&[gate, up]) || gate.dims() != up.dims() {
        return Ok((composed(f, gate)? * up)?);
    }
    for_real!(gate, R => with_slice::<R, _>(gate, |g| with_slice::<R, _>(up, |u| {
        let mut y = g.to_vec();
        pulp::Arch::new().dispatch(|| for (v, u) in y.iter_mut().zip(u) { *v = f.apply(*v) * *u; });
        tensor(y, gate.shape().clone())
    })))
}

fn composed(f: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match f {
        Activation::Silu => x.silu()?,
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Relu => x.relu()?,
    })
}
