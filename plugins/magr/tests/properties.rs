//! `magr` against its definition in f64, and what holds for any input.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use qfw_core::algorithm::{Conditioned, Event};
use qfw_core::scheme::Granularity;
use qfw_core::topology::Role;
use serde_json::{Value, json};

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;

use layer::{Layer, numbers, spec, wide};

const ROWS: usize = 7;
const COLS: usize = 48;
const TOKENS: usize = 192;

struct Problem {
    layer: Layer,
    weight: Vec<f32>,
    /// Row-major, both triangles, as the library has it.
    h: Vec<f64>,
}

impl Problem {
    fn new(layer: Layer) -> Self {
        Self { weight: layer.weight.clone(), h: wide(&layer.gram()), layer }
    }
}

/// Inputs that span `rank` directions only, plus noise.
fn problem(seed: u64, rank: usize, noise: f64) -> Problem {
    let mut uniform = numbers(seed);
    let weight = (0..ROWS * COLS).map(|_| uniform() as f32).collect();
    let basis: Vec<f64> = (0..rank * COLS).map(|_| uniform()).collect();
    let mut x = Vec::new();
    for _ in 0..TOKENS {
        let factors: Vec<f64> = (0..rank).map(|_| uniform()).collect();
        x.extend((0..COLS).map(|j| (0..rank).map(|r| factors[r] * basis[r * COLS + j]).sum::<f64>() + noise * uniform()));
    }
    Problem::new(Layer { rows: ROWS, cols: COLS, weight, original: None, quantized: x.clone(), reference: x })
}

fn conditioned(p: &Problem, granularity: Granularity, options: &Value) -> qfw_core::Result<Conditioned> {
    p.layer.condition(&qfw_magr::RECORD, Role::MlpDown, &spec("int4", granularity, true), options)
}

/// The largest eigenvalue by many steps of power iteration.
fn sigma(h: &[f64]) -> f64 {
    let mut v = vec![1.0; COLS];
    let mut norm = 0.0;
    for _ in 0..5000 {
        let product: Vec<f64> = (0..COLS).map(|i| (0..COLS).map(|j| h[i * COLS + j] * v[j]).sum()).collect();
        norm = product.iter().map(|x: &f64| x * x).sum::<f64>().sqrt();
        v = product.iter().map(|x| x / norm).collect();
    }
    norm
}

/// `½‖X̄(w − w₀)‖² + t·Σ‖w_range‖_∞` over all rows.
fn objective(p: &Problem, w: &[f64], range: usize, t: f64) -> f64 {
    let sigma = sigma(&p.h);
    let mut sum = 0.0;
    for r in 0..ROWS {
        let d: Vec<f64> = (0..COLS).map(|j| w[r * COLS + j] - f64::from(p.weight[r * COLS + j])).collect();
        for i in 0..COLS {
            for j in 0..COLS {
                sum += 0.5 * d[i] * p.h[i * COLS + j] / sigma * d[j];
            }
        }
        sum += w[r * COLS..][..COLS].chunks(range).map(|x| t * x.iter().fold(0.0f64, |m, v| m.max(v.abs()))).sum::<f64>();
    }
    sum
}

/// The method of the paper in f64: plain proximal gradient steps with the projection on the ℓ₁ ball by sorting.
fn reference(p: &Problem, range: usize, t: f64, steps: usize) -> Vec<f64> {
    let sigma = sigma(&p.h);
    let original: Vec<f64> = p.weight.iter().map(|w| f64::from(*w)).collect();
    let mut w = original.clone();
    for _ in 0..steps {
        let mut v = w.clone();
        for r in 0..ROWS {
            for j in 0..COLS {
                v[r * COLS + j] -= (0..COLS).map(|i| (w[r * COLS + i] - original[r * COLS + i]) * p.h[i * COLS + j] / sigma).sum::<f64>();
            }
        }
        for part in v.chunks_mut(range) {
            let mut sorted: Vec<f64> = part.iter().map(|x| x.abs() / t).collect();
            let inside = sorted.iter().sum::<f64>() <= 1.0;
            sorted.sort_by(|a, b| b.total_cmp(a));
            let (mut sum, mut theta) = (0.0, 0.0);
            for (k, x) in sorted.iter().enumerate() {
                sum += x;
                if *x > (sum - 1.0) / (k + 1) as f64 {
                    theta = (sum - 1.0) / (k + 1) as f64;
                }
            }
            for x in part.iter_mut() {
                let projected = if inside { *x / t } else { x.signum() * (x.abs() / t - theta).max(0.0) };
                *x -= t * projected;
            }
        }
        w = v;
    }
    w
}

/// Step by step the same as the paper's iteration.
#[test]
fn plain_steps_are_those_of_the_paper() {
    for (granularity, range) in [(Granularity::channel(), COLS), (Granularity::group(16), 16)] {
        let p = problem(3, 6, 0.05);
        let options = json!({ "solver": "plain", "iterations": 20, "tolerance": 0.0, "alpha": 0.02 });
        let got = conditioned(&p, granularity, &options).unwrap();
        for (a, b) in got.weight.iter().zip(reference(&p, range, 0.02, 20)) {
            // The step is 1/σ with σ bounded from above instead of exact.
            assert!((f64::from(*a) - b).abs() < 2e-4, "{a} {b}");
        }
    }
}

/// With momentum it gets at least as far as the paper's 200 steps, in objective.
#[test]
fn momentum_reaches_the_minimum_sooner() {
    for seed in 0..6 {
        for (granularity, range) in [(Granularity::channel(), COLS), (Granularity::group(16), 16)] {
            let p = problem(seed, 6, 0.05);
            let slow = objective(&p, &reference(&p, range, 0.01, 200), range, 0.01);
            let options = json!({ "iterations": 40, "tolerance": 0.0, "alpha": 0.01 });
            let fast = objective(&p, &wide(&conditioned(&p, granularity.clone(), &options).unwrap().weight), range, 0.01);
            assert!(fast <= slow * (1.0 + 1e-4), "{seed} {granularity}: {fast} {slow}");
        }
    }
}

/// The two meanings of `alpha` differ by `σ_max(H)/‖H‖₁`.
#[test]
fn alpha_of_brevitas_is_that_of_the_paper_times_a_factor() {
    let p = problem(5, 6, 0.1);
    let one_norm = (0..COLS).map(|i| (0..COLS).map(|j| p.h[i * COLS + j].abs()).sum::<f64>()).fold(0.0, f64::max);
    let steps = json!({ "iterations": 30, "tolerance": 0.0, "alpha": 0.05, "alpha-mode": "brevitas" });
    let brevitas = conditioned(&p, Granularity::channel(), &steps).unwrap().weight;
    let paper = json!({ "iterations": 30, "tolerance": 0.0, "alpha": 0.05 * sigma(&p.h) / one_norm });
    let paper = conditioned(&p, Granularity::channel(), &paper).unwrap().weight;
    assert!(brevitas.iter().zip(&paper).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn where_there_is_no_input_there_is_no_solution() {
    let mut p = problem(5, 6, 0.1);
    p.layer.quantized.fill(0.0);
    let error = conditioned(&p, Granularity::channel(), &json!({})).err().unwrap();
    assert_eq!(error.code(), "magr::no-input");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Every step lowers the objective or leaves it, the largest magnitudes do not grow, and outputs stay close.
    #[test]
    fn the_objective_never_rises(seed in 0u64..1000, rank in 1usize..COLS, grouped: bool, momentum: bool, alpha in 1e-5f64..0.1) {
        let p = problem(seed, rank, 0.02);
        let (granularity, range) = if grouped { (Granularity::group(16), 16) } else { (Granularity::channel(), COLS) };
        let solver = if momentum { "accelerated" } else { "plain" };
        let mut last = objective(&p, &wide(&p.weight), range, alpha);
        let start = last;
        for steps in [1, 2, 5, 20] {
            let options = json!({ "iterations": steps, "tolerance": 0.0, "alpha": alpha, "solver": solver });
            let Conditioned { weight, events, .. } = conditioned(&p, granularity.clone(), &options).unwrap();
            let now = objective(&p, &wide(&weight), range, alpha);
            prop_assert!(now <= last + 1e-6 * start, "{steps} steps: {now} after {last}");
            last = now;
            let Event::Shrunk { magnitude, effective_rank } = events[0] else { panic!("{events:?}") };
            prop_assert!(magnitude <= 1.0 + 1e-5, "{magnitude}");
            prop_assert!((1.0 - 1e-6..=COLS as f64).contains(&effective_rank), "{effective_rank}");
        }
    }
}
