//! The search against one in f64 over the inputs themselves, written from the paper.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../tests/fixtures/layer.rs"]
mod layer;
#[path = "../../../tests/fixtures/region.rs"]
mod region;

use qfw_awq::RECORD;
use qfw_core::algorithm::Event;
use qfw_core::scheme::Granularity;
use qfw_core::topology::Symmetry;
use serde_json::json;

use layer::{numbers, spec};
use region::Readers;

fn readers(seed: u64, width: usize, repeat: usize) -> Readers {
    let mut uniform = numbers(seed);
    let n = width * repeat;
    let weights = [6, 10].map(|rows| (0..rows * n).map(|_| (0..6).map(|_| uniform()).sum::<f64>() as f32).collect()).to_vec();
    // Some channels are much larger than others: what the method lives on.
    let input = (0..64 * n).map(|k| uniform() * if k % n == 3 { 30.0 } else { 1.0 }).collect();
    Readers { width, repeat, weights, input, feeds_back: false }
}

/// Rounded to nearest in groups of `group`, affine with 16 codes from the smallest value (or 0) to the largest, in f64. A symmetric step
/// of `max|w| / 7.5` would put the largest weight on a tie, where f32 and f64 part.
fn rounded(row: &[f64], group: usize) -> Vec<f64> {
    row.chunks(group)
        .flat_map(|g| {
            let (lo, hi) = g.iter().fold((0.0f64, 0.0f64), |(l, h), x| (l.min(*x), h.max(*x)));
            let s = f64::from(((hi - lo) / 15.0) as f32);
            let z = (-lo / s).round_ties_even();
            g.iter().map(move |x| (((x / s).round_ties_even() + z).clamp(0.0, 15.0) - z) * s).collect::<Vec<_>>()
        })
        .collect()
}

/// `Σ_tokens Σ_readers ‖(Quant(W·s)/s − W)·x‖²`
fn loss(r: &Readers, s: &[f64], group: usize) -> f64 {
    let n = r.columns();
    let spread: Vec<f64> = (0..n).map(|i| s[r.home(i)]).collect();
    let mut sum = 0.0;
    for row in r.weights.iter().flat_map(|w| w.chunks(n)) {
        let scaled: Vec<f64> = row.iter().zip(&spread).map(|(w, s)| f64::from((f64::from(*w) * s) as f32)).collect();
        let delta: Vec<f64> = rounded(&scaled, group).iter().zip(&spread).zip(row).map(|((q, s), w)| q / s - f64::from(*w)).collect();
        sum += r.input.chunks(n).map(|x| x.iter().zip(&delta).map(|(x, d)| x * d).sum::<f64>().powi(2)).sum::<f64>();
    }
    sum
}

/// `Σ_readers Σ_j δ_j²·D_j`: `D_j` is what is left of channel `j` of `XᵀX + λI` once all channels with smaller diagonals are eliminated.
fn compensated_loss(r: &Readers, s: &[f64], group: usize) -> f64 {
    let n = r.columns();
    let mut h = vec![vec![0.0; n]; n];
    for x in r.input.chunks(n) {
        (0..n).for_each(|i| (0..n).for_each(|j| h[i][j] += x[i] * x[j]));
    }
    let damp = 0.01 * (0..n).map(|i| h[i][i]).sum::<f64>() / n as f64;
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| h[*b][*b].total_cmp(&h[*a][*a]));
    (0..n).for_each(|i| h[i][i] += damp);
    let mut left = vec![0.0; n];
    for p in (0..n).rev() {
        let c = order[p];
        left[c] = h[c][c];
        for i in &order[..p] {
            for j in &order[..p] {
                h[*i][*j] -= h[*i][c] * h[c][*j] / left[c];
            }
        }
    }
    let spread: Vec<f64> = (0..n).map(|i| s[r.home(i)]).collect();
    let mut sum = 0.0;
    for row in r.weights.iter().flat_map(|w| w.chunks(n)) {
        let scaled: Vec<f64> = row.iter().zip(&spread).map(|(w, s)| f64::from((f64::from(*w) * s) as f32)).collect();
        let delta = rounded(&scaled, group).into_iter().zip(&spread).zip(row).map(|((q, s), w)| q / s - f64::from(*w));
        sum += delta.zip(&left).map(|(d, l)| d * d * l).sum::<f64>();
    }
    sum
}

type LossOf = fn(&Readers, &[f64], usize) -> f64;

#[test]
fn the_scales_of_least_error_are_found() {
    let cases: [(u64, usize, usize, &str, LossOf); 5] = [
        (1, 64, 1, "linear", loss),
        (2, 64, 1, "linear", loss),
        (3, 32, 2, "linear", loss),
        (1, 64, 1, "compensated", compensated_loss),
        (3, 32, 2, "compensated", compensated_loss),
    ];
    for (seed, width, repeat, name, loss) in cases {
        let r = readers(seed, width, repeat);
        let (n, group) = (r.columns(), 32);
        let tokens = (r.input.len() / n) as f64;
        let mut m = vec![0.0f64; width];
        r.input.iter().enumerate().for_each(|(k, x)| m[r.home(k % n)] += x.abs() / tokens / repeat as f64);
        let candidates: Vec<Vec<f64>> = (0..20)
            .map(|k| {
                let s: Vec<f64> = m.iter().map(|m| m.powf(f64::from(k) / 20.0)).collect();
                let (lo, hi) = s.iter().fold((f64::INFINITY, 0.0f64), |(l, h), s| (l.min(*s), h.max(*s)));
                s.iter().map(|s| s / (lo * hi).sqrt()).collect()
            })
            .collect();
        let losses: Vec<f64> = candidates.iter().map(|s| loss(&r, s, group)).collect();
        let best = (0..20).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
        assert!(best > 0, "a case in which scaling helps: {name} {losses:?}");
        let solved =
            r.solve(&RECORD, Some(&spec("uint4", Granularity::group(group as u32), false)), &json!({ "loss": name })).unwrap().unwrap();
        let Symmetry::Diagonal(factors) = solved.symmetry else { panic!("a scaling") };
        for (found, s) in factors.iter().zip(&candidates[best]) {
            assert!((found * s - 1.0).abs() < 1e-9, "{found} and 1/{s}");
        }
        let Event::Scaled { error: Some(error), .. } = &solved.events[0] else { panic!("{:?}", solved.events) };
        let expected = (losses[best] / losses[0]).sqrt();
        assert!((error - expected).abs() < 1e-3, "{error}, {expected}");
    }
}

#[test]
fn what_is_compared_fits_how_layers_are_rounded() {
    let spec = spec("uint4", Granularity::group(32), false);
    let found = |r: &Readers, options| match r.solve(&RECORD, Some(&spec), &options).unwrap().unwrap().symmetry {
        Symmetry::Diagonal(factors) => factors,
        other => panic!("{other:?}"),
    };
    let mut r = readers(1, 64, 1);
    // The largest channel is almost the multiple of another one, so that feedback makes up for whatever happens to it.
    r.input.chunks_exact_mut(64).for_each(|x| x[3] = 30.0 * x[4] + 0.1 * x[3]);
    let [linear, compensated] = ["linear", "compensated"].map(|loss| found(&r, json!({ "loss": loss })));
    assert_ne!(linear, compensated, "a case in which it matters");
    assert_eq!(found(&r, json!({})), linear);
    r.feeds_back = true;
    assert_eq!(found(&r, json!({})), compensated);
    assert_eq!(found(&r, json!({ "loss": "linear" })), linear, "what is asked for by name is done");
}

#[test]
fn nothing_is_scaled_for_nothing() {
    let mut r = readers(4, 64, 1);
    assert!(r.solve(&RECORD, None, &json!({})).unwrap().is_none(), "nothing is rounded");
    // Whole numbers from 0 to 15 in every group: rounded without any error, which no scale betters.
    r.weights = vec![(0..6 * 64).map(|i| (i * 7 % 16) as f32).collect()];
    assert!(r.solve(&RECORD, Some(&spec("uint4", Granularity::group(32), false)), &json!({})).unwrap().is_none());
}

#[test]
fn weights_have_a_say_where_they_are_asked() {
    let r = readers(5, 64, 1);
    let spec = spec("int4", Granularity::group(32), true);
    let error = |options| {
        let solved = r.solve(&RECORD, Some(&spec), &options).unwrap().unwrap();
        let Event::Scaled { error: Some(error), .. } = solved.events[0] else { panic!() };
        error
    };
    let [off, on, both] = [json!(false), json!(true), json!("both")].map(|duo| error(json!({ "duo-scaling": duo, "grid": 40 })));
    assert!(off < 1.0 && on < 1.0 && both <= 1.0 && off != on, "{off} {on} {both}");
}
