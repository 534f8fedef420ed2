//! `Y = X Wᵀ + b`.

use candle_core::{DType, Tensor};

use super::bf16::{Bf16Panels, Bf16Unit};
use super::gemm::{Onto, Transpose, gemm};
use super::gradient::{Traced, backward, step1, traced};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use crate::error::{Error, Result};

/// The weight `[O, I]` of a linear layer, ready for products.
#[derive(Clone, Debug)]
pub enum Matrix {
    /// As it is; products are in its own float type.
    Plain(Tensor),
    /// Rounded to bf16, for inputs that are rounded too.
    Bf16(Bf16Panels),
    /// Under training.
    Traced(Traced),
}

impl Matrix {
    /// A weight, rounded if there is a unit for it and the weight is one that our kernels run on in f32.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn new(weight: Tensor, bf16: Option<Bf16Unit>) -> Result<Self> {
        let shape = weight.dims2()?;
        match bf16 {
            Some(unit) if on_host(&[&weight]) && weight.dtype() == DType::F32 => {
                with_slice::<f32, _>(&weight, |w| Ok(Self::Bf16(Bf16Panels::new(unit, w, shape))))
            }
            _ => Ok(Self::Plain(weight)),
        }
    }

    /// `x` `[T, I]`, `bias` `[O]` → `[T, O]`.
    ///
    /// # Errors
    /// If the shapes do not fit, or the weight is rounded and `x` is not a plain f32 tensor of the CPU.
    pub fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        match self {
            Self::Plain(weight) => linear(x, weight, bias),
            Self::Traced(traced) => traced.apply(x, bias),
            Self::Bf16(panels) => linear_bf16(x, panels, bias),
        }
    }
}

/// As [`linear`], of a rounded weight.
pub(super) fn linear_bf16(x: &Tensor, panels: &Bf16Panels, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((t, i), (o, i2)) = (x.dims2()?, panels.shape());
    if i != i2 || !on_host(&[x]) || x.dtype() != DType::F32 {
        return Err(Error::internal(format!("linear: the rounded weight is {o}x{i2}, the input {:?} {:?}", x.dims(), x.dtype())));
    }
    let mut y = vec![0.0; t * o];
    with_slice::<f32, _>(x, |x| {
        panels.product(x, t, Onto::Replace, &mut y);
        Ok(())
    })?;
    let y = match bias {
        Some(b) => with_slice::<f32, _>(b, |b| Ok(with_bias(y, b)))?,
        None => y,
    };
    tensor(y, (t, o))
}

/// `x` `[T, I]`, `weight` `[O, I]`, `bias` `[O]` → `[T, O]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((t, i), (o, i2)) = (x.dims2()?, weight.dims2()?);
    if i != i2 {
        return Err(Error::internal(format!("linear: input has {i} channels, the weight {i2}")));
    }
    if !bias.is_some_and(Tensor::track_op) && traced(&[x], &[weight]) {
        let (value, weight) = (linear(&x.detach(), weight, bias)?, weight.clone());
        return step1(x, value, move |g| backward(g, &weight));
    }
    if !on_host(&[x, weight]) || bias.is_some_and(Tensor::track_op) {
        let y = x.matmul(&weight.t()?)?;
        return Ok(if let Some(b) = bias { y.broadcast_add(b)? } else { y });
    }
    for_real!(x, R => {
        let y = with_slice::<R, _>(x, |x| with_slice::<R, _>(weight, |w| Ok(product(x, w, (t, o, i)))))?;
        let y = match bias {
            Some(b) => with_slice::<R, _>(b, |b| Ok(with_bias(y, b)))?,
            None => y,
        };
        tensor(y, (t, o))
    })
}

fn product<R: Real>(x: &[R], w: &[R], (t, o, i): (usize, usize, usize)) -> Vec<R> {
    let mut y = vec![R::of(0.0); t * o];
    gemm((t, o, i), Onto::Replace, &mut y, o, x, Transpose::No, i, w, Transpose::Yes, i);
    y
}

fn with_bias<R: Real>(mut y: Vec<R>, b: &[R]) -> Vec<R> {
    for row in y.chunks_exact_mut(b.len()) {
        for (y, b) in row.iter_mut().zip(b) {
            *y += *b;
        }
    }
    y
}
