//! Learning rotations: steps along the orthogonal matrices (the Stiefel manifold).
//!
//! ```text
//! A = G·Rᵀ − R·Gᵀ              G = ∂L/∂R: the part of the gradient that rotates, skew
//! R ← (I + τD/2)⁻¹(I − τD/2)·R  Cayley's transform: orthogonal again
//!
//! cayley-sgd   D = βD + A,  τ = min(lr, 1/‖D‖₁)               SpinQuant's optimizer (Li et al. 2020, arXiv:2002.01113), solved exactly
//! adam         D = m̂/(√v̂ + ε) of the entries of A, τ = lr     each plane turns at a rate of its own; D stays skew, as A is
//! ```
//!
//! Where `R·1 = 1` has to hold, `A` is taken between the projections that drop the mean; `A·1 = 0` then, and steps leave `1` alone.

use qfw_core::algorithm::{
    Batches, LearnRotations, Learner, Learning, Objective, Resumable, RotationsContext, Start, Training, minimize_stored,
};
use qfw_core::numeric::{Onto, Transpose, cayley, gemm};
use qfw_core::{Error, Result};

use crate::options::{Learn, Optimizer, Variant};

/// Adam's averages forget at these rates.
const MOMENTS: (f64, f64) = (0.9, 0.999);
const SMALL: f64 = 1e-12;

impl LearnRotations for Learn {
    fn objective(&self) -> Objective {
        match self.variant {
            Variant::Network => Objective::Network { weights: self.weights.unwrap_or(true) },
            Variant::WeightRecon => Objective::Reconstruction,
        }
    }

    fn steps(&self) -> usize {
        self.steps
    }

    fn learn(&self, cx: &RotationsContext<'_>) -> Result<(Vec<Vec<f64>>, Learning)> {
        let batches = Batches { steps: self.steps, size: self.batch(), key: [cx.seed, u64::MAX] };
        let mut learner = Rotations::new(cx.starts, self);
        let training = First { of: cx.training, windows: self.samples.unwrap_or(usize::MAX) };
        let learning = minimize_stored(&training, &mut learner, &batches, cx.store)?;
        Ok((learner.matrices, learning))
    }
}

/// The first windows alone.
struct First<'a> {
    of: &'a dyn Training,
    windows: usize,
}

impl Training for First<'_> {
    fn windows(&self) -> usize {
        self.of.windows().min(self.windows)
    }

    fn loss(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<f64> {
        self.of.loss(windows, weights)
    }

    fn gradients(&self, windows: &[usize], weights: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        self.of.gradients(windows, weights)
    }
}

/// Rotations on their way.
#[derive(Clone)]
struct Rotations<'a> {
    matrices: Vec<Vec<f64>>,
    /// Averages of `A`, and of the squares of its entries.
    first: Vec<Vec<f64>>,
    second: Vec<Vec<f64>>,
    starts: &'a [Start],
    options: &'a Learn,
    steps: i32,
}

impl<'a> Rotations<'a> {
    fn new(starts: &'a [Start], options: &'a Learn) -> Self {
        let zeros = || starts.iter().map(|s| vec![0.0; s.size * s.size]).collect::<Vec<_>>();
        let matrices = starts.iter().map(|s| s.matrix.clone()).collect();
        let second = if options.optimizer == Optimizer::Adam { zeros() } else { vec![Vec::new(); starts.len()] };
        Self { matrices, first: zeros(), second, starts, options, steps: 0 }
    }
}

impl Resumable for Rotations<'_> {
    fn state(&self) -> Vec<&[f64]> {
        [&self.matrices, &self.first, &self.second].into_iter().flatten().map(Vec::as_slice).collect()
    }

    fn restored(&self, state: Vec<Vec<f64>>, steps: usize) -> Result<Self> {
        if !state.iter().map(Vec::len).eq(self.state().iter().map(|s| s.len())) {
            let message = "what was stored while rotations were learned is of other ones";
            return Err(Error::input("resume::damaged", message).hint("start over with `--overwrite`"));
        }
        let (mut state, n) = (state.into_iter(), self.matrices.len());
        let [matrices, first, second] = [(); 3].map(|()| state.by_ref().take(n).collect());
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        Ok(Self { matrices, first, second, steps, starts: self.starts, options: self.options })
    }
}

/// `G·Rᵀ − R·Gᵀ`, without what would move the mean where that has to stay.
fn skew(g: &[f32], r: &[f64], n: usize, keeps_mean: bool) -> Vec<f64> {
    let g: Vec<f64> = g.iter().map(|g| f64::from(*g)).collect();
    let mut product = vec![0.0; n * n];
    gemm((n, n, n), Onto::Replace, &mut product, n, &g, Transpose::No, n, r, Transpose::Yes, n);
    let mut a: Vec<f64> = (0..n * n).map(|k| product[k] - product[k % n * n + k / n]).collect();
    if keeps_mean {
        drop_mean(&mut a, n);
    }
    a
}

/// `P·A·P` with `P = I − 1·1ᵀ/n`; of a skew matrix the mean of all entries is none.
fn drop_mean(a: &mut [f64], n: usize) {
    let means: Vec<f64> = a.chunks_exact(n).map(|row| row.iter().sum::<f64>() / n as f64).collect();
    a.iter_mut().enumerate().for_each(|(k, a)| *a += means[k % n] - means[k / n]);
}

/// The largest sum of magnitudes in a column; that of a row is the same, as the matrix is skew.
fn norm(d: &[f64], n: usize) -> f64 {
    d.chunks_exact(n).map(|row| row.iter().map(|x| x.abs()).sum::<f64>()).fold(0.0, f64::max)
}

impl Learner for Rotations<'_> {
    fn weights(&self) -> Vec<Vec<f32>> {
        self.matrices.iter().map(|m| m.iter().map(|x| *x as f32).collect()).collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>], done: f64) {
        self.steps += 1;
        let lr = self.options.lr_at(done);
        let bias = (1.0 - MOMENTS.0.powi(self.steps), 1.0 - MOMENTS.1.powi(self.steps));
        for (i, start) in self.starts.iter().enumerate() {
            let (n, r) = (start.size, &mut self.matrices[i]);
            let a = skew(&gradients[i], r, n, start.keeps_mean);
            let first = &mut self.first[i];
            let step: Vec<f64> = match self.options.optimizer {
                Optimizer::CayleySgd => {
                    first.iter_mut().zip(&a).for_each(|(d, a)| *d = self.options.momentum() * *d + a);
                    let tau = lr.min(1.0 / (norm(first, n) + 1e-8));
                    first.iter().map(|d| tau * d).collect()
                }
                Optimizer::Adam => {
                    first.iter_mut().zip(&a).for_each(|(m, a)| *m = MOMENTS.0 * *m + (1.0 - MOMENTS.0) * a);
                    self.second[i].iter_mut().zip(&a).for_each(|(v, a)| *v = MOMENTS.1 * *v + (1.0 - MOMENTS.1) * a * a);
                    let entry = |(m, v): (&f64, &f64)| lr * (m / bias.0) / ((v / bias.1).sqrt() + SMALL);
                    let mut d: Vec<f64> = first.iter().zip(&self.second[i]).map(entry).collect();
                    if start.keeps_mean {
                        // Rates of their own do not keep sums at nothing.
                        drop_mean(&mut d, n);
                    }
                    d
                }
            };
            *r = cayley(&step, r, n);
        }
    }
}
