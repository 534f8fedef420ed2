//! What weights were multiplied with, and the gradients of what came out: all that their own gradients need.
//!
//! `Y = X Wᵀ + b`: `∂W = Gᵀ X`, `∂b = Σ G` over tokens, both summed over windows, each with a [`Record`] of its own, in their order. Where
//! products are of rounded numbers, only what is rounded is kept, laid out for that product while it is at hand.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, TensorId, Var};

use super::super::bf16::{Bf16Left, Bf16Right, Bf16Unit, sum_across};
use super::super::gemm::{Onto, Transpose, gemm};
use super::super::host::{Real, for_real, tensor, with_slice};
use super::step2;
use crate::error::{Error, Result};

/// The products of one window, by slot: one for each weight that is trained.
#[derive(Debug)]
pub struct Record {
    /// What makes candle follow products whose input is frozen.
    root: Var,
    products: Mutex<Vec<Option<Arc<Product>>>>,
    /// Inputs that are laid out: several weights may read one.
    inputs: Mutex<Vec<(TensorId, Arc<Bf16Right>)>>,
}

/// The input of a product.
#[derive(Clone, Debug)]
pub(in super::super) enum Input {
    Plain(Tensor),
    Rounded(Bf16Unit, Arc<Bf16Right>),
}

/// A product: its input and the gradient of its result.
#[derive(Debug)]
struct Product {
    operands: Operands,
    /// `Σ G`, where there is a bias.
    of_bias: Option<Tensor>,
}

#[derive(Debug)]
enum Operands {
    Plain { x: Tensor, g: Tensor },
    Rounded { x: Arc<Bf16Right>, g: Bf16Left },
}

impl Record {
    /// An empty record for `slots` weights.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn new(slots: usize) -> Result<Self> {
        let products = (0..slots).map(|_| None).collect();
        Ok(Self { root: Var::new(0f32, &Device::Cpu)?, products: Mutex::new(products), inputs: Mutex::default() })
    }

    /// What a recorded product depends on besides its input.
    pub(in super::super) fn root(&self) -> &Tensor {
        self.root.as_tensor()
    }

    /// An input, as it is kept where a unit rounds it, or none does.
    pub(in super::super) fn input(&self, x: &Tensor, unit: Option<Bf16Unit>) -> Result<Input> {
        let Some(unit) = unit else { return Ok(Input::Plain(x.detach())) };
        let mut inputs = self.inputs.lock().map_err(|_| panicked())?;
        let laid = match inputs.iter().find(|(id, _)| *id == x.id()) {
            Some((_, laid)) => Arc::clone(laid),
            None => {
                let laid = with_slice::<f32, _>(&x.detach(), |v| Ok(Arc::new(Bf16Right::new(unit, v, x.dim(1)?))))?;
                inputs.push((x.id(), Arc::clone(&laid)));
                laid
            }
        };
        Ok(Input::Rounded(unit, laid))
    }

    /// Records the input of a product and the gradient of its result, to which a bias was added or not.
    pub(in super::super) fn add(&self, slot: usize, x: &Input, g: &Tensor, biased: bool) -> Result<()> {
        let operands = match x {
            Input::Plain(x) => Operands::Plain { x: x.clone(), g: g.clone() },
            Input::Rounded(unit, x) => {
                let g = with_slice::<f32, _>(g, |v| Ok(Bf16Left::new(*unit, v, g.dim(1)?)))?;
                Operands::Rounded { x: Arc::clone(x), g }
            }
        };
        let of_bias = if biased { Some(over_tokens(g)?) } else { None };
        let mut products = self.products.lock().map_err(|_| panicked())?;
        match products.get_mut(slot) {
            Some(free @ None) => *free = Some(Arc::new(Product { operands, of_bias })),
            Some(Some(_)) => return Err(Error::internal("a weight took part twice in one forward pass")),
            None => return Err(Error::internal("a product was recorded in a slot that is not there")),
        }
        Ok(())
    }

    /// `x`, whose gradient `then` sees on the way back.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn watch(&self, x: &Tensor, then: impl Fn(&Tensor) -> Result<()> + Send + Sync + 'static) -> Result<Tensor> {
        step2((self.root(), self.root()), x.detach().copy()?, move |g| {
            then(g)?;
            Ok([None, None])
        })
    }

    fn product(&self, slot: usize) -> Result<Arc<Product>> {
        let product = self.products.lock().map_err(|_| panicked())?.get(slot).cloned().flatten();
        product.ok_or_else(|| Error::internal(format!("weight {slot} takes part in nothing that the loss depends on")))
    }
}

fn panicked() -> Error {
    Error::internal("a thread panicked during a backward pass")
}

/// `Σ g` over its rows.
fn over_tokens(g: &Tensor) -> Result<Tensor> {
    let width = g.dim(1)?;
    for_real!(g, R => with_slice::<R, _>(g, |g| {
        let mut sum = vec![R::of(0.0); width];
        g.chunks_exact(width.max(1)).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, g)| *s += *g));
        tensor(sum, width)
    }))
}

/// Adds the gradient of the bias beside the weight in `slot`, summed over `windows` in their order, to `out`.
///
/// # Errors
/// If the weight took no part in one of them, or was multiplied without a bias.
pub fn bias_gradient<R: Real>(windows: &[Arc<Record>], slot: usize, out: &mut [R]) -> Result<()> {
    for record in windows {
        let product = record.product(slot)?;
        let sum = product.of_bias.as_ref().ok_or_else(|| Error::internal(format!("weight {slot} has no bias")))?;
        with_slice::<R, _>(sum, |g| {
            out.iter_mut().zip(g).for_each(|(o, g)| *o += *g);
            Ok(())
        })?;
    }
    Ok(())
}

/// Rows `rows` of the gradient of the weight in `slot`, row-major, summed over `windows` in their order; onto what `out` holds, unless they
/// are the `first`. Where products are of rounded numbers, the first of the rows is a multiple of 32.
///
/// # Errors
/// If the weight took no part in one of them, or in products of another float type.
pub fn weight_gradient<R: Real>(windows: &[Arc<Record>], slot: usize, rows: Range<usize>, out: &mut [R], first: bool) -> Result<()> {
    let products = windows.iter().map(|record| record.product(slot)).collect::<Result<Vec<_>>>()?;
    let mut rounded = Vec::new();
    for (i, product) in products.iter().enumerate() {
        let onto = if first && i == 0 { Onto::Replace } else { Onto::Add };
        let (x, g) = match &product.operands {
            Operands::Plain { x, g } => (x, g),
            Operands::Rounded { x, g } => {
                rounded.push((g, &**x));
                continue;
            }
        };
        let ((t, columns), width) = (x.dims2()?, g.dim(1)?);
        with_slice::<R, _>(x, |x| {
            with_slice::<R, _>(g, |g| {
                let size = (rows.len(), columns, t);
                gemm(size, onto, out, columns, &g[rows.start..], Transpose::Yes, width, x, Transpose::No, columns);
                Ok(())
            })
        })?;
    }
    if rounded.is_empty() {
        return Ok(());
    }
    let out = R::as_f32(out).filter(|_| rounded.len() == products.len());
    let out = out.ok_or_else(|| Error::internal(format!("weight {slot} took part in products of two kinds")))?;
    sum_across(&rounded, rows, if first { Onto::Replace } else { Onto::Add }, out);
    Ok(())
}
