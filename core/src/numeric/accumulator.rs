//! Codes whose sums fit a narrow accumulator, whatever the inputs (AXE, arXiv:2409.17092).
//!
//! With integer inputs in `[ν, μ]`, a tile of `T` input channels of one row, the sum `p` of its positive codes and the sum `n` of its
//! negative ones, the largest partial dot product is `μp + νn` and the smallest `νp + μn`. Both stay within `±M`, `M = 2^{P−1} − 1`,
//! when every new code `q` keeps
//!
//! ```text
//! μ·p + ν·n ≤ M   and   −(ν·p + μ·n) ≤ M
//! ```
//!
//! which is arithmetic on integers, done as such: a code is clamped to what is left, and the bounds hold for every input and every order
//! of summation. (The paper clamps before it rounds, with half a step of slack for rounding to nearest. Clamping the code needs no slack
//! and holds for any rounding.)
//!
//! The clamp alone would give everything to the columns that come first. So values are first shrunk: `a ← sign(a)·max(|a| − θ, 0)` with
//! the `θ` that projects `|w/s − mean(w/s)|` of the tile onto the ℓ₁ ball of radius `Z = (2^P − 2)/(μ − ν)`.
//!
//! Zero points of inputs are taken to be handled outside the accumulator. Over `I/T` tiles an outer accumulator of
//! `P + ⌈log₂(I/T)⌉` bits suffices.

use super::codes::ROWS_PER_TASK;

/// What an accumulator leaves room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccumulatorLimit {
    /// Input channels summed in one accumulator; the last tile of a row may be shorter.
    pub tile: usize,
    /// `M`, the largest magnitude it holds.
    pub largest: i64,
    /// `ν` and `μ`: the smallest and the largest input; `ν ≤ 0 < μ`.
    pub inputs: (i64, i64),
}

impl AccumulatorLimit {
    /// For an accumulator of `bits` bits (3 to 62) over `tile` channels, and inputs of `input_bits` bits.
    pub fn new(bits: u32, tile: usize, input_bits: u32, signed: bool) -> Self {
        let inputs = if signed { (-(1 << (input_bits - 1)), (1 << (input_bits - 1)) - 1) } else { (0, (1 << input_bits) - 1) };
        Self { tile: tile.max(1), largest: (1 << (bits - 1)) - 1, inputs }
    }

    /// `Z`, the largest ℓ₁ norm of a tile of codes that sum to nothing.
    fn radius(&self) -> f64 {
        2.0 * self.largest as f64 / (self.inputs.1 - self.inputs.0) as f64
    }
}

/// Codes of a tile so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    positive: i64,
    negative: i64,
}

impl Sums {
    /// The code nearest to `code` that there is room for. Room for 0 there always is.
    pub(super) fn fit(&mut self, code: i32, limit: &AccumulatorLimit) -> i32 {
        let (nu, mu) = limit.inputs;
        let above = limit.largest - (mu * self.positive + nu * self.negative);
        let below = limit.largest + (nu * self.positive + mu * self.negative);
        // A positive code adds μq to the largest sum and νq to the smallest; a negative one νq and μq.
        let (gain, loss) = if code >= 0 { (above, below) } else { (below, above) };
        let mut room = gain / mu;
        if nu < 0 {
            room = room.min(loss / -nu);
        }
        let magnitude = i64::from(code).abs().min(room.max(0));
        if code >= 0 {
            self.positive += magnitude;
            magnitude as i32
        } else {
            self.negative -= magnitude;
            -magnitude as i32
        }
    }
}

/// The limit at work on the rows of a task.
pub(super) struct Limiter {
    pub(super) limit: AccumulatorLimit,
    /// By tile and row: `θ`.
    pub(super) thresholds: Vec<[f32; ROWS_PER_TASK]>,
    pub(super) sums: Vec<[Sums; ROWS_PER_TASK]>,
}

impl Limiter {
    /// For rows of a row-major weight; `scale` gives the scale of a row and column.
    pub(super) fn new(limit: AccumulatorLimit, weight: &[f32], cols: usize, scale: impl Fn(usize, usize) -> f32) -> Self {
        let tiles = cols.div_ceil(limit.tile);
        let mut thresholds = vec![[0.0; ROWS_PER_TASK]; tiles];
        for (r, row) in weight.chunks_exact(cols).enumerate() {
            for (t, values) in row.chunks(limit.tile).enumerate() {
                let s = f64::from(scale(r, t * limit.tile));
                let scaled: Vec<f64> = values.iter().map(|w| f64::from(*w) / s).collect();
                let mean = scaled.iter().sum::<f64>() / scaled.len() as f64;
                let centred = scaled.iter().map(|x| (x - mean).abs()).collect();
                thresholds[t][r] = (projection_threshold(centred, limit.radius()) * s.abs()) as f32;
            }
        }
        Self { limit, thresholds, sums: vec![[Sums::default(); ROWS_PER_TASK]; tiles] }
    }
}

/// The soft threshold that projects non-negative `values` onto the ℓ₁ ball of this radius; 0 inside it.
fn projection_threshold(mut values: Vec<f64>, radius: f64) -> f64 {
    if values.iter().sum::<f64>() <= radius {
        return 0.0;
    }
    values.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut threshold) = (0.0, 0.0);
    for (k, v) in values.iter().enumerate() {
        sum += v;
        let candidate = (sum - radius) / (k + 1) as f64;
        if *v <= candidate {
            break;
        }
        threshold = candidate;
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_projection_lies_on_the_ball_and_inside_it_nothing_happens() {
        assert_eq!(projection_threshold(vec![1.0, 2.0], 3.0), 0.0);
        let values = [0.5, 3.0, 2.0, 0.1];
        let t = projection_threshold(values.to_vec(), 2.0);
        let norm: f64 = values.iter().map(|v| (v - t).max(0.0)).sum();
        assert!((norm - 2.0).abs() < 1e-12, "{norm}");
    }

    /// The worst partial sums over all inputs, all subsets of the tile, and so all prefixes of all orders.
    fn worst(codes: &[i64], (nu, mu): (i64, i64)) -> (i64, i64) {
        let reach = |f: fn(i64, i64) -> i64| codes.iter().map(|q| f(f(nu * q, mu * q), 0)).sum();
        (reach(std::cmp::min), reach(std::cmp::max))
    }

    proptest! {
        #[test]
        fn no_input_and_no_order_of_summation_overflows(
            codes in prop::collection::vec(-128i32..=127, 1..40),
            bits in 3u32..24,
            input_bits in 1u32..9,
            signed in any::<bool>(),
        ) {
            let limit = AccumulatorLimit::new(bits, 64, input_bits + u32::from(signed), signed);
            let mut sums = Sums::default();
            let mut fitted = Vec::new();
            for code in &codes {
                let q = sums.fit(*code, &limit);
                prop_assert!(q.abs() <= code.abs() && q.signum() * code.signum() >= 0);
                fitted.push(i64::from(q));
                let (smallest, largest) = worst(&fitted, limit.inputs);
                prop_assert!(largest <= limit.largest && smallest >= -limit.largest, "{smallest} {largest} {:?}", limit);
            }
            // What was asked is only changed where it would not fit.
            for (i, (q, code)) in fitted.iter().zip(&codes).enumerate() {
                if *q != i64::from(*code) {
                    let mut more = fitted[..=i].to_vec();
                    more[i] += i64::from(code.signum());
                    let (smallest, largest) = worst(&more, limit.inputs);
                    prop_assert!(largest > limit.largest || smallest < -limit.largest);
                }
            }
        }
    }
}
