//! Gradients of our kernels.
//!
//! candle keeps the graph; what a step of it does, forwards and backwards, is a kernel of ours on host slices, and
//! [`walk_back`] walks it. A verb that is asked for gradients runs as it always does, and leaves behind how the gradient of its result becomes that of its operands.
//! Weights are not part of the graph: a [`Traced`](super::Matrix::Traced) matrix records what it was multiplied with and the gradient of
//! what came out ([`Record`]), and the gradient of the weight is one product over all windows, with one order of summation.
//!
//! Only the gradients that somebody needs are computed: candle's own product computes that of both operands, always.

mod activation;
mod attention;
mod cross_entropy;
mod linear;
mod norm;
mod record;
mod tape;

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, InplaceOp1, Layout, Shape, Storage, Tensor};

pub(super) use activation::{activate_backward, activate_gated_backward};
pub(super) use attention::attention_backward;
pub use cross_entropy::next_token_loss;
pub(super) use linear::backward;
pub use linear::{Factor, Traced};
pub(super) use norm::{layer_norm_backward, rms_norm_backward};
pub use record::{Record, bias_gradient, weight_gradient};
use tape::Backward;
pub use tape::backward as walk_back;

use super::host::{Real, for_real, tensor, with_slice};
use crate::error::{Error, Result};

/// Whether gradients are asked for, by `inputs` alone: all that takes part is on the CPU and of one float type, and `frozen` is frozen.
pub(super) fn traced(inputs: &[&Tensor], frozen: &[&Tensor]) -> bool {
    let host =
        |t: &&Tensor| matches!(t.device(), Device::Cpu) && matches!(t.dtype(), DType::F32 | DType::F64) && t.dtype() == inputs[0].dtype();
    inputs.iter().chain(frozen).all(host) && inputs.iter().any(|t| t.track_op()) && !frozen.iter().any(|t| t.track_op())
}

/// A value that was computed already, and how its gradient becomes that of its operands.
struct Step {
    value: Mutex<Option<CpuStorage>>,
    shape: Shape,
    backward: Backward,
}

impl Step {
    /// The numbers of `value` become the step's own: nobody else may read them.
    fn new(value: Tensor, backward: Backward) -> Result<Self> {
        let whole = {
            let (storage, layout) = value.storage_and_layout();
            let held = match &*storage {
                Storage::Cpu(CpuStorage::F32(v)) => v.len(),
                Storage::Cpu(CpuStorage::F64(v)) => v.len(),
                _ => return Err(Error::internal(format!("a step on the host was given {:?} of another device", value.dtype()))),
            };
            layout.contiguous_offsets() == Some((0, held))
        };
        let taken = Taken::default();
        (if whole { value.inplace_op1(&taken) } else { value.copy()?.inplace_op1(&taken) })?;
        Ok(Self { value: taken.0, shape: value.shape().clone(), backward })
    }

    fn forward(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let value = self.value.lock().ok().and_then(|mut v| v.take());
        let value = value.ok_or_else(|| candle_core::Error::Msg("a step of a gradient computation ran twice".to_owned()))?;
        Ok((value, self.shape.clone()))
    }

    fn back<const N: usize>(&self, gradient: &Tensor) -> candle_core::Result<[Option<Tensor>; N]> {
        let all = (self.backward)(gradient).map_err(candle_core::Error::wrap)?;
        all.try_into().map_err(|_| candle_core::Error::Msg("a step has other operands backwards than forwards".to_owned()))
    }
}

const NAME: &str = "qfw";

/// Takes the numbers out of a tensor, and leaves none.
#[derive(Default)]
struct Taken(Mutex<Option<CpuStorage>>);

impl InplaceOp1 for Taken {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        let none = if matches!(storage, CpuStorage::F64(_)) { CpuStorage::F64(Vec::new()) } else { CpuStorage::F32(Vec::new()) };
        if let Ok(mut taken) = self.0.lock() {
            *taken = Some(std::mem::replace(storage, none));
        }
        Ok(())
    }
}

impl CustomOp1 for Step {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [a] = self.back(gradient)?;
        Ok(a)
    }
}

impl CustomOp2 for Step {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [a, b] = self.back(gradient)?;
        Ok((a, b))
    }
}

impl CustomOp3 for Step {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.forward()
    }
    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [a, b, c] = self.back(gradient)?;
        Ok((a, b, c))
    }
}

/// `value`, made for this call and read by nobody else, as a function of `x`.
pub(crate) fn step1(x: &Tensor, value: Tensor, backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Result<Tensor> {
    let backward: Backward = Arc::new(move |g| Ok(vec![Some(backward(g)?)]));
    let result = x.apply_op1(Step::new(value, Arc::clone(&backward))?)?;
    tape::put(&result, &[x], backward);
    Ok(result)
}

/// The same of two operands.
pub(super) fn step2(
    (a, b): (&Tensor, &Tensor),
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let backward: Backward = Arc::new(move |g| Ok(backward(g)?.into()));
    let result = a.apply_op2(b, Step::new(value, Arc::clone(&backward))?)?;
    tape::put(&result, &[a, b], backward);
    Ok(result)
}

/// The same of three operands.
pub(super) fn step3(
    (a, b, c): (&Tensor, &Tensor, &Tensor),
    value: Tensor,
    backward: impl Fn(&Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let backward: Backward = Arc::new(move |g| Ok(backward(g)?.into()));
    let result = a.apply_op3(b, c, Step::new(value, Arc::clone(&backward))?)?;
    tape::put(&result, &[a, b, c], backward);
    Ok(result)
}

/// `Σ x·with`.
///
/// # Errors
/// If the shapes differ.
pub fn inner_product(x: &Tensor, with: &Tensor) -> Result<Tensor> {
    let sum = for_real!(x, R => with_slice::<R, _>(&x.detach(), |x| with_slice::<R, _>(with, |w| {
        Ok(x.iter().zip(w).map(|(x, w)| x.wide() * w.wide()).sum::<f64>())
    })))?;
    let value = Tensor::new(sum, &Device::Cpu)?;
    if !x.track_op() {
        return Ok(value);
    }
    let with = with.clone();
    step1(x, value.to_dtype(x.dtype())?, move |g| {
        let by = g.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        for_real!(with, R => with_slice::<R, _>(&with, |v| tensor(v.iter().map(|v| *v * R::of(by)).collect::<Vec<R>>(), with.shape().clone())))
    })
}

/// `Σ (x − target)² / n`, of as many numbers as there are, times `weight`.
///
/// # Errors
/// If the shapes differ.
pub fn squared_error(x: &Tensor, target: &Tensor, weight: f64) -> Result<Tensor> {
    let gap = for_real!(x, R => with_slice::<R, _>(&x.detach(), |x| with_slice::<R, _>(target, |t| {
        tensor(x.iter().zip(t).map(|(x, t)| *x - *t).collect::<Vec<R>>(), target.shape().clone())
    })))?;
    let factor = weight / gap.elem_count().max(1) as f64;
    let sum = for_real!(x, R => with_slice::<R, _>(&gap, |g| Ok(g.iter().map(|g| g.wide() * g.wide()).sum::<f64>())))?;
    let loss = Tensor::new(sum * factor, &Device::Cpu)?;
    if !x.track_op() {
        return Ok(loss);
    }
    // The graph is of one float type.
    let value = loss.to_dtype(x.dtype())?;
    step1(x, value, move |g| {
        let by = 2.0 * factor * g.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        for_real!(gap, R => with_slice::<R, _>(&gap, |v| tensor(v.iter().map(|v| *v * R::of(by)).collect::<Vec<R>>(), gap.shape().clone())))
    })
}
