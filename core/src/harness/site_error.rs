//! How far a rounded weight is from what it was.

use crate::numeric::gram_energy;
use crate::statistic::Gram;

/// `‖W − Ŵ‖ / ‖W‖`
pub(super) fn weight_error(w: &[f32], decoded: &[f32]) -> f64 {
    let mut error = WeightError::default();
    error.add(w, decoded);
    error.relative()
}

/// `‖W − Ŵ‖²` and `‖W‖²`, over parts of a weight.
#[derive(Clone, Copy, Default)]
pub(super) struct WeightError {
    error: f64,
    norm: f64,
}

impl WeightError {
    /// Adds a part.
    pub(super) fn add(&mut self, w: &[f32], decoded: &[f32]) {
        for (a, b) in w.iter().zip(decoded) {
            let d = f64::from(a - b);
            self.error += d * d;
            self.norm += f64::from(*a) * f64::from(*a);
        }
    }

    /// `‖W − Ŵ‖ / ‖W‖`
    pub(super) fn relative(self) -> f64 {
        if self.norm > 0.0 { (self.error / self.norm).sqrt() } else { 0.0 }
    }
}

/// `√(tr ΔHΔᵀ / tr WHWᵀ)` from the lower triangle of `H`.
pub(super) fn output_error(w: &[f32], decoded: &[f32], gram: &Gram) -> f64 {
    let delta: Vec<f32> = w.iter().zip(decoded).map(|(a, b)| a - b).collect();
    let norm = gram_energy(w, &gram.lower, gram.n);
    if norm > 0.0 { (gram_energy(&delta, &gram.lower, gram.n).max(0.0) / norm).sqrt() } else { 0.0 }
}
