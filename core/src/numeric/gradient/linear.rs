//! `Y = X Wᵀ + b` under training: `∂X = G W`, and `∂W = Gᵀ X` from what is recorded.

use std::sync::Arc;

use candle_core::Tensor;

use super::super::bf16::{Bf16Panels, Bf16Unit};
use super::super::gemm::{Onto, Transpose, gemm};
use super::super::host::{Real, for_real, tensor, with_slice};
use super::super::linear::{Matrix, linear_bf16};
use super::record::Record;
use super::{step1, step2};
use crate::error::{Error, Result};

/// A weight `[O, I]`, ready for products forwards and backwards.
#[derive(Clone, Debug)]
pub struct Factor {
    forward: Matrix,
    /// For products with `W` instead of `Wᵀ`; `None`: those run on the plain weight.
    backward: Option<Bf16Panels>,
}

/// A weight whose products are followed.
#[derive(Clone, Debug)]
pub struct Traced {
    factor: Arc<Factor>,
    record: Arc<Record>,
    /// Where its products are recorded, if it is trained.
    slot: Option<usize>,
}

impl Factor {
    /// A weight; products are of numbers rounded to bf16 where a unit is given.
    ///
    /// # Errors
    /// If it is not a matrix.
    pub fn new(weight: Tensor, bf16: Option<Bf16Unit>) -> Result<Self> {
        let (o, i) = weight.dims2()?;
        let forward = Matrix::new(weight.clone(), bf16)?;
        let backward = match (&forward, bf16) {
            (Matrix::Bf16(_), Some(unit)) => Some(with_slice::<f32, _>(&weight, |w| Ok(Bf16Panels::of_transpose(unit, w, (o, i))))?),
            _ => None,
        };
        Ok(Self { forward, backward })
    }

    /// Output channels.
    pub(super) fn rows(&self) -> Result<usize> {
        match &self.forward {
            Matrix::Plain(weight) => Ok(weight.dim(0)?),
            Matrix::Bf16(panels) => Ok(panels.shape().0),
            Matrix::Traced(_) => Err(Error::internal("a weight under training inside another")),
        }
    }

    /// `X Wᵀ`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward.apply(x, None)
    }

    /// `G W`
    pub(super) fn backward(&self, g: &Tensor) -> Result<Tensor> {
        match (&self.forward, &self.backward) {
            (Matrix::Plain(weight), _) => backward(g, weight),
            (_, Some(panels)) => linear_bf16(g, panels, None),
            _ => Err(Error::internal("a weight that has no way back")),
        }
    }
}

/// `G W` for a plain weight `[O, I]`.
pub(in super::super) fn backward(g: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let ((t, o), i) = (g.dims2()?, weight.dim(1)?);
    for_real!(weight, R => with_slice::<R, _>(g, |g| with_slice::<R, _>(weight, |w| {
        let mut dx = vec![R::of(0.0); t * i];
        gemm((t, i, o), Onto::Replace, &mut dx, i, g, Transpose::No, o, w, Transpose::No, i);
        tensor(dx, (t, i))
    })))
}

impl Traced {
    /// The weight, its products recorded in `slot` where it is trained.
    pub fn new(factor: Arc<Factor>, record: Arc<Record>, slot: Option<usize>) -> Self {
        Self { factor, record, slot }
    }

    /// As [`Matrix::apply`].
    pub(in super::super) fn apply(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let value = self.factor.forward.apply(&x.detach(), bias)?;
        self.follow(x, value, bias.is_some())
    }

    /// The weight as panels, if it is rounded.
    pub(in super::super) fn rounded(&self) -> Option<&Bf16Panels> {
        if let Matrix::Bf16(panels) = &self.factor.forward { Some(panels) } else { None }
    }

    /// Leaves behind how `value`, which is what [`Self::apply`] makes of `x` with a bias or without, runs backwards.
    pub(in super::super) fn follow(&self, x: &Tensor, value: Tensor, biased: bool) -> Result<Tensor> {
        let (factor, tracked) = (Arc::clone(&self.factor), x.track_op());
        let Some(slot) = self.slot else {
            return if tracked { step1(x, value, move |g| factor.backward(g)) } else { Ok(value) };
        };
        let record = Arc::clone(&self.record);
        let input = record.input(x, self.rounded().map(Bf16Panels::unit))?;
        step2((x, self.record.root()), value, move |g| {
            let dx = if tracked { Some(factor.backward(g)?) } else { None };
            record.add(slot, &input, g, biased)?;
            Ok([dx, None])
        })
    }
}
