//! `Y = X Wᵀ + b`.

use candle_core::Tensor;

use super::gemm::{Onto, Transpose, gemm};
use super::host::{Real, for_real, on_host, tensor, with_slice};
use crate::error::{Error, Result};

/// `x` `[T, I]`, `weight` `[O, I]`, `bias` `[O]` → `[T, O]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let ((t, i), (o, i2)) = (x.dims2()?, weight.dims2()?);
    if i != i2 {
        return Err(Error::internal(format!("linear: input has {i} channels, the weight {i2}")));
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
