//! `Y = X Wᵀ + b`.

use candle_core::{DType, Tensor};

use super::activation::{Activation, activate_gated, activate_in_place};
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

/// `[x W₁ᵀ + b₁, x W₂ᵀ + b₂, …]`, bit for bit as [`Matrix::apply`] computes each: an input that is rounded is rounded once for all of them.
///
/// # Errors
/// As [`Matrix::apply`].
pub fn linears<const N: usize>(x: &Tensor, layers: [(&Matrix, Option<&Tensor>); N]) -> Result<[Tensor; N]> {
    let results = match rounded(x, layers.map(|(w, _)| w)) {
        None => layers.map(|(w, b)| w.apply(x, b)).into_iter().collect::<Result<Vec<_>>>()?,
        Some(all) => {
            let t = x.dim(0)?;
            let mut results = all.map(|panels| vec![0.0; t * panels.shape().0]);
            with_slice::<f32, _>(&x.detach(), |x| {
                Bf16Panels::products(all, x, t, Onto::Replace, results.each_mut().map(Vec::as_mut_slice));
                Ok(())
            })?;
            let mut tensors = Vec::with_capacity(N);
            for ((y, (weight, bias)), panels) in results.into_iter().zip(layers).zip(all) {
                let y = tensor(with_bias(y, bias)?, (t, panels.shape().0))?;
                tensors.push(if let Matrix::Traced(traced) = weight { traced.follow(x, y, bias.is_some())? } else { y });
            }
            tensors
        }
    };
    results.try_into().map_err(|_| Error::internal("as many results as layers"))
}

/// `f(x Gᵀ + b_G) ⊙ (x Uᵀ + b_U)`, bit for bit as the verbs one after the other compute it: rounded weights are multiplied a part of their
/// rows after the other, so that neither product is ever stored whole.
///
/// # Errors
/// As [`Matrix::apply`], or if the shapes of the two differ.
pub fn gated_linears(f: Activation, x: &Tensor, [gate, up]: [(&Matrix, Option<&Tensor>); 2]) -> Result<Tensor> {
    let plain = |(weight, bias): (&Matrix, Option<&Tensor>)| matches!(weight, Matrix::Bf16(_)) && bias.is_none();
    let Some([g, u]) = rounded(x, [gate.0, up.0]).filter(|[g, u]| g.shape() == u.shape() && plain(gate) && plain(up)) else {
        let [gate, up] = linears(x, [gate, up])?;
        return activate_gated(f, &gate, &up);
    };
    let (t, o) = (x.dim(0)?, g.shape().0);
    let mut y = vec![0.0; t * o];
    with_slice::<f32, _>(x, |x| {
        Bf16Panels::combined(g, u, x, t, &mut y, |gate, up| activate_in_place(f, gate, up));
        Ok(())
    })?;
    tensor(y, (t, o))
}

/// These weights as panels, if all of them are rounded, and `x` is an input that they can be multiplied with.
fn rounded<'a, const N: usize>(x: &Tensor, weights: [&'a Matrix; N]) -> Option<[&'a Bf16Panels; N]> {
    let panels = |w: &'a Matrix| match w {
        Matrix::Bf16(panels) => Some(panels).filter(|_| !x.track_op()),
        Matrix::Traced(traced) => traced.rounded(),
        Matrix::Plain(_) => None,
    };
    let fits = |p: &&Bf16Panels| x.dims2().is_ok_and(|(_, i)| i == p.shape().1);
    let all: Vec<&Bf16Panels> = weights.into_iter().map_while(|w| panels(w).filter(fits)).collect();
    all.try_into().ok().filter(|_| on_host(&[&x.detach()]) && x.dtype() == DType::F32)
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
    tensor(with_bias(y, bias)?, (t, o))
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
        tensor(with_bias(y, bias)?, (t, o))
    })
}

fn product<R: Real>(x: &[R], w: &[R], (t, o, i): (usize, usize, usize)) -> Vec<R> {
    let mut y = vec![R::of(0.0); t * o];
    gemm((t, o, i), Onto::Replace, &mut y, o, x, Transpose::No, i, w, Transpose::Yes, i);
    y
}

fn with_bias<R: Real>(mut y: Vec<R>, bias: Option<&Tensor>) -> Result<Vec<R>> {
    let Some(bias) = bias else { return Ok(y) };
    with_slice::<R, _>(bias, |b| {
        for row in y.chunks_exact_mut(b.len()) {
            for (y, b) in row.iter_mut().zip(b) {
                *y += *b;
            }
        }
        Ok(())
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use candle_core::Device;

    use super::super::gradient::{Factor, Record, inner_product, walk_back, weight_gradient};
    use super::*;

    fn wave(shape: (usize, usize), f: f64) -> Tensor {
        let values = (0..shape.0 * shape.1).map(|i| ((i as f64 * f).sin() * 2.0) as f32).collect();
        Tensor::from_vec::<_, f32>(values, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn layers_together_are_the_layers_one_by_one() {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let x = wave((37, 70), 0.37);
        for unit in Bf16Unit::all().map(Some).chain([None]) {
            let [g, u, other] = [(wave((300, 70), 0.73), unit), (wave((300, 70), 0.29), unit), (wave((3, 70), 0.51), None)]
                .map(|(weight, unit)| Matrix::new(weight, unit).unwrap());
            let bias = wave((1, 300), 0.11).flatten_all().unwrap();
            for (of_gate, of_up) in [(None, None), (Some(&bias), None), (None, Some(&bias)), (Some(&bias), Some(&bias))] {
                let (gate, up) = (g.apply(&x, of_gate).unwrap(), u.apply(&x, of_up).unwrap());
                let [a, b, c] = linears(&x, [(&g, of_gate), (&u, of_up), (&other, None)]).unwrap();
                assert_eq!([bits(&a), bits(&b), bits(&c)], [bits(&gate), bits(&up), bits(&other.apply(&x, None).unwrap())]);
                let [a, b] = linears(&x, [(&g, of_gate), (&u, of_up)]).unwrap();
                assert_eq!([bits(&a), bits(&b)], [bits(&gate), bits(&up)]);
                for f in [Activation::Silu, Activation::GeluTanh] {
                    let want = activate_gated(f, &gate, &up).unwrap();
                    assert_eq!(bits(&gated_linears(f, &x, [(&g, of_gate), (&u, of_up)]).unwrap()), bits(&want));
                }
            }
            assert!(linears(&wave((2, 69), 0.1), [(&g, None), (&u, None)]).is_err());
            assert!(gated_linears(Activation::Silu, &x, [(&g, None), (&other, None)]).is_err());
        }
    }
    /// Values, and the gradients of weights and input.
    #[test]
    fn layers_under_training_share_an_input_too() {
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (x, target) = (wave((37, 70), 0.37), wave((37, 300), 0.23));
        for unit in Bf16Unit::all().map(Some).chain([None]) {
            let factors = [0.73, 0.29].map(|f| Arc::new(Factor::new(wave((300, 70), f), unit).unwrap()));
            let run = |together: bool| {
                let record = Arc::new(Record::new(2).unwrap());
                let [gate, up] = [0, 1].map(|i| Matrix::Traced(Traced::new(Arc::clone(&factors[i]), Arc::clone(&record), Some(i))));
                let (of_x, seen) = (Arc::new(Mutex::new(None)), Mutex::new(Vec::new()));
                walk_back(|| {
                    let of_x = Arc::clone(&of_x);
                    let x = record.watch(&x, move |g| {
                        *of_x.lock().unwrap() = Some(g.clone());
                        Ok(())
                    })?;
                    let layers = [(&gate, None), (&up, None)];
                    let y = if together {
                        gated_linears(Activation::Silu, &x, layers)?
                    } else {
                        activate_gated(Activation::Silu, &gate.apply(&x, None)?, &up.apply(&x, None)?)?
                    };
                    seen.lock().unwrap().extend(y.detach().flatten_all()?.to_vec1::<f32>()?);
                    inner_product(&y, &target)
                })
                .unwrap();
                let mut all = vec![bits(&seen.into_inner().unwrap())];
                for slot in 0..2 {
                    let mut w = vec![0.0f32; 300 * 70];
                    weight_gradient(&[Arc::clone(&record)], slot, 0..300, &mut w, true).unwrap();
                    all.push(bits(&w));
                }
                let of_x = of_x.lock().unwrap().take().unwrap();
                all.push(bits(&of_x.flatten_all().unwrap().to_vec1::<f32>().unwrap()));
                all
            };
            let (together, apart) = (run(true), run(false));
            assert!(together.iter().all(|part| part.iter().any(|b| *b != 0)));
            assert!(together == apart, "{unit:?}");
        }
    }
}
