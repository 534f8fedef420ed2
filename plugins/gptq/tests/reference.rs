//! `gptq` against the textbook: the algorithm of arXiv:2210.17323 written out in f64, with the inverse formed explicitly by Gauss-Jordan
//! elimination and updated by eliminating one column after the other, so that nothing is shared with the library's factor and sweep.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use qfw_core::algorithm::{Rounded, SiteContext, Stage};
use qfw_core::format::Ask;
use qfw_core::registry::Registry;
use qfw_core::scheme::{Convention, FloatKind, Granularity, ObserverChoice, QuantSpec, Reducer, Timing};
use qfw_core::statistic::{Gram, Stat, StatKey, StatKind, Stats, Stream};
use qfw_core::topology::{Linear, PortName, Role, SiteId};
use serde_json::{Value, json};

const ROWS: usize = 5;
const COLS: usize = 24;

struct Problem {
    weight: Vec<f32>,
    /// Row-major, full.
    h: Vec<f64>,
}

fn problem(seed: u64, correlation: f64) -> Problem {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let weight = (0..ROWS * COLS).map(|_| uniform() as f32).collect();
    let mut h = vec![0.0; COLS * COLS];
    for _ in 0..3 * COLS {
        let shared = uniform();
        let x: Vec<f64> = (0..COLS).map(|j| (uniform() + correlation * shared) * (1.0 + j as f64 % 5.0)).collect();
        for i in 0..COLS {
            for j in 0..COLS {
                h[i * COLS + j] += x[i] * x[j];
            }
        }
    }
    // The library sees f32; the reference starts from the same numbers.
    h.iter_mut().for_each(|v| *v = f64::from(*v as f32));
    Problem { weight, h }
}

fn spec(registry: &Registry, granularity: Granularity, symmetric: bool) -> QuantSpec {
    let ask = Ask { symmetric, convention: Convention::HalfRange, float_zero: false, power_of_two: None, stored: FloatKind::F32 };
    let meaning = registry.format("int4").unwrap().resolve(&ask).unwrap();
    QuantSpec {
        format: "int4".to_owned(),
        bits: 4,
        grid: meaning.grid,
        granularity,
        symmetric,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options: json!({}) },
        timing: Timing::Static,
        min_threshold: 0.0,
        reduce: Reducer::Mean,
        rescale: 1.0,
        scale: meaning.scale,
    }
}

fn run(algo: &str, p: &Problem, spec: &QuantSpec, options: Value) -> Rounded {
    let mut registry = Registry::builtin().unwrap();
    registry.add_algorithm(&qfw_gptq::RECORD).unwrap();
    let site = SiteId::in_block(0, Role::MlpDown);
    let linear = Linear {
        site,
        shape: (ROWS, COLS),
        input: PortName::DownIn.into(),
        output: PortName::DownOut.into(),
        bias: false,
        module: "down".to_owned(),
        transposed: false,
    };
    let mut stats = Stats::default();
    let key = StatKey { port: linear.input, kind: StatKind::Gram, stream: Stream::Quantized };
    stats.insert(key, Stat::Gram(Arc::new(Gram::new(COLS, p.h.iter().map(|v| *v as f32).collect(), 72))));
    let (observer, _) = registry.build_observer("minmax", &json!({})).unwrap();
    let cx = SiteContext {
        linear: &linear,
        weight: &p.weight,
        original: &p.weight,
        ranged: None,
        spec,
        input: None,
        observer: &*observer,
        stats: &stats,
        stream: Stream::Quantized,
        seed: 0,
        amax: 0.0,
    };
    if algo == "rtn" {
        return cx.nearest().unwrap();
    }
    let (algorithm, _) = registry.build_algorithm(algo, &options).unwrap();
    let Stage::Round(round) = algorithm.stage() else { panic!("gptq rounds") };
    round.round(&cx).unwrap()
}

/// Inverse by Gauss-Jordan elimination.
fn inverse(h: &[f64], n: usize) -> Vec<f64> {
    let mut a = h.to_vec();
    let mut b: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect();
    for k in 0..n {
        let pivot = a[k * n + k];
        for j in 0..n {
            a[k * n + j] /= pivot;
            b[k * n + j] /= pivot;
        }
        for i in (0..n).filter(|i| *i != k) {
            let factor = a[i * n + k];
            for j in 0..n {
                a[i * n + j] -= factor * a[k * n + j];
                b[i * n + j] -= factor * b[k * n + j];
            }
        }
    }
    b
}

/// Codes (minus the smallest) of the textbook algorithm: after each column `j`, `w ← w − e_j/[H⁻¹]_jj · H⁻¹_j:`, and row and column `j`
/// leave `H⁻¹`. Also how near each row came to a tie between two codes: there f32 and f64 may part, and the rest of the row with them.
fn textbook(p: &Problem, spec: &QuantSpec, rounded: &Rounded, damp: f64, order: &[usize]) -> (Vec<u8>, Vec<f64>) {
    let n = COLS;
    let mut h = p.h.clone();
    let mean = (0..n).map(|i| h[i * n + i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| h[i * n + i] += damp * mean);
    let (lo, hi) = spec.grid.limits();
    let mut codes = vec![0; ROWS * n];
    let mut nearest_tie = vec![f64::INFINITY; ROWS];
    for r in 0..ROWS {
        let mut w: Vec<f64> = p.weight[r * n..(r + 1) * n].iter().map(|x| f64::from(*x)).collect();
        let mut inv = inverse(&h, n);
        for &j in order {
            let tile = rounded.params.layout.tile(r, j);
            let (s, z) = (f64::from(rounded.params.scale[tile]), f64::from(rounded.params.zero[tile]));
            nearest_tie[r] = nearest_tie[r].min(((w[j] / s).fract().abs() - 0.5).abs());
            let q = ((w[j] / s).round_ties_even() + z).clamp(f64::from(lo), f64::from(hi));
            codes[r * n + j] = (q as i32 - lo) as u8;
            let e = (w[j] - s * (q - z)) / inv[j * n + j];
            let row: Vec<f64> = inv[j * n..(j + 1) * n].to_vec();
            for k in 0..n {
                w[k] -= e * row[k];
            }
            let pivot = row[j];
            for i in 0..n {
                let factor = inv[i * n + j] / pivot;
                for k in 0..n {
                    inv[i * n + k] -= factor * row[k];
                }
            }
        }
    }
    (codes, nearest_tie)
}

#[test]
fn codes_are_those_of_the_textbook_in_f64() {
    let registry = Registry::builtin().unwrap();
    let (mut rows, mut compared) = (0, 0);
    for seed in 0..20 {
        let p = problem(seed, 1.0);
        for (granularity, symmetric) in
            [(Granularity::channel(), true), (Granularity::group(8), true), (Granularity::group(7), false), (Granularity::tensor(), false)]
        {
            let spec = spec(&registry, granularity.clone(), symmetric);
            let mut by_diagonal: Vec<usize> = (0..COLS).collect();
            by_diagonal.sort_by(|a, b| p.h[b * COLS + b].total_cmp(&p.h[a * COLS + a]));
            let natural: Vec<usize> = (0..COLS).collect();
            for (act_order, fixed, order) in [("off", false, &natural), ("off", true, &natural), ("static", true, &by_diagonal)] {
                for block in [1, 5, 128] {
                    let options = json!({ "act-order": act_order, "static-groups": fixed, "block-size": block, "damp": 0.01 });
                    let rounded = run("gptq", &p, &spec, options);
                    let (expected, nearest_tie) = textbook(&p, &spec, &rounded, 0.01, order);
                    for (r, (got, want)) in rounded.codes.bytes().unwrap().chunks(COLS).zip(expected.chunks(COLS)).enumerate() {
                        rows += 1;
                        // f32 carries these values to about 1e-6 of a step times the conditioning of the problem.
                        if nearest_tie[r] > 1e-5 {
                            compared += 1;
                            assert_eq!(
                                got, want,
                                "seed {seed}, {granularity}, act-order {act_order}, fixed {fixed}, block {block}, row {r}"
                            );
                        }
                    }
                }
            }
        }
    }
    // Not all are: the half-range convention puts the extreme of a tile exactly between two codes.
    assert!(compared * 100 > rows * 90, "{compared} of {rows} rows are away from ties");
}

#[test]
fn scales_fixed_before_the_sweep_are_those_of_rounding_to_nearest() {
    let registry = Registry::builtin().unwrap();
    let p = problem(3, 1.0);
    let spec = spec(&registry, Granularity::group(8), true);
    let (gptq, rtn) = (run("gptq", &p, &spec, json!({})), run("rtn", &p, &spec, json!({})));
    assert_eq!(gptq.params, rtn.params);
    assert_ne!(gptq.codes, rtn.codes);
}

#[test]
fn a_diagonal_gram_matrix_gives_rounding_to_nearest_and_its_scale_does_not_matter() {
    let registry = Registry::builtin().unwrap();
    let mut p = problem(5, 1.0);
    let spec = spec(&registry, Granularity::group(8), true);
    let codes = run("gptq", &p, &spec, json!({})).codes;
    p.h.iter_mut().for_each(|v| *v *= 64.0);
    assert_eq!(run("gptq", &p, &spec, json!({})).codes, codes);
    for i in 0..COLS * COLS {
        if i / COLS != i % COLS {
            p.h[i] = 0.0;
        }
    }
    assert_eq!(run("gptq", &p, &spec, json!({})).codes, run("rtn", &p, &spec, json!({})).codes);
}

#[test]
fn groups_that_follow_the_order_come_with_an_index() {
    let registry = Registry::builtin().unwrap();
    let p = problem(7, 1.0);
    let spec = spec(&registry, Granularity::group(8), true);
    let rounded = run("gptq", &p, &spec, json!({ "act-order": "group" }));
    let index = rounded.group_index.unwrap();
    // Every group has as many channels as it is wide, and the most active channel is in the first.
    assert!((0..3).all(|g| index.iter().filter(|i| **i == g).count() == 8), "{index:?}");
    let top = (0..COLS).max_by(|a, b| p.h[a * COLS + a].total_cmp(&p.h[b * COLS + b])).unwrap();
    assert_eq!(index[top], 0);
}
