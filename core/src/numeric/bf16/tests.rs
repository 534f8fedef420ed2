//! Against f64 over the rounded operands. Where a CPU lacks the instructions there is nothing to test.

use candle_core::{Device, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::{Bf16Left, Bf16Panels, Bf16Right, Bf16Unit, across_bf16, gram_bf16, sum_across};
use crate::numeric::gradient::attention_backward;
use crate::numeric::{AttentionShape, Onto, attention};

fn wave(n: usize, f: f64) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 * f).sin() * 3.0) as f32).collect()
}

fn rounded(x: f32) -> f64 {
    f64::from(bf16::from_f32(x).to_f32())
}

/// `Σ aᵢbᵢ` and how far a sum of `n` rounded additions may lie from it: `γ_n Σ|aᵢbᵢ|`, for products that are exact. Every addition may
/// also lose a subnormal number.
fn sum(pairs: impl Iterator<Item = (f32, f32)>, extra: usize) -> (f64, f64) {
    let (mut sum, mut size, mut n) = (0.0, 0.0, extra as f64);
    for (a, b) in pairs {
        let product = rounded(a) * rounded(b);
        (sum, size, n) = (sum + product, size + product.abs(), n + 1.0);
    }
    let unit = f64::from(f32::EPSILON) / 2.0;
    (sum, n * unit / (1.0 - n * unit) * size + n * f64::from(f32::MIN_POSITIVE))
}

#[test]
fn a_product_is_that_of_the_rounded_matrices() {
    for unit in Bf16Unit::all() {
        for m in [1, 5, 12, 13, 30, 32, 45, 65] {
            for n in [1, 16, 17, 32, 33, 70] {
                for k in [1, 2, 3, 31, 32, 65, 576, 577, 1153] {
                    let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.73));
                    let panels = Bf16Panels::new(unit, &b, (n, k));
                    assert_eq!(panels.shape(), (n, k));
                    let across: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
                    let turned = Bf16Panels::of_transpose(unit, &across, (k, n));
                    let (mut c, mut d) = (vec![f32::NAN; m * n], vec![1.0; m * n]);
                    turned.product(&a, m, Onto::Replace, &mut d);
                    panels.product(&a, m, Onto::Replace, &mut c);
                    assert!(c.iter().zip(&d).all(|(c, d)| c.to_bits() == d.to_bits()), "{m}x{n}x{k}: a transpose, given as such");
                    d.fill(1.0);
                    panels.product(&a, m, Onto::Add, &mut d);
                    for i in 0..m {
                        for j in 0..n {
                            let (want, bound) = sum((0..k).map(|p| (a[i * k + p], b[j * k + p])), k.div_ceil(512));
                            let (got, added) = (f64::from(c[i * n + j]), f64::from(d[i * n + j]));
                            assert!((got - want).abs() <= bound, "{m}x{n}x{k} at {i},{j}: {got}, not {want} ± {bound}");
                            let bound = bound + 1e-6 * (1.0 + want.abs());
                            assert!((added - want - 1.0).abs() <= bound, "{m}x{n}x{k} at {i},{j}: {added}, not 1 + {want} ± {bound}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn products_that_share_an_operand_are_those_alone() {
    for unit in Bf16Unit::all() {
        for (m, k) in [(1, 1), (33, 577), (600, 40), (513, 1153), (2, 0), (0, 3)] {
            let a = wave(m * k, 0.37);
            let panels = |n: usize, f| Bf16Panels::new(unit, &wave(n * k, f), (n, k));
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            for (n, others) in [(1, 300), (257, 32), (300, 1)] {
                let (b, d, e) = (panels(n, 0.73), panels(n, 0.29), panels(others, 0.51));
                let alone = |b: &Bf16Panels| {
                    let mut c = vec![1.0; m * b.shape().0];
                    b.product(&a, m, Onto::Replace, &mut c);
                    c
                };
                let [mut x, mut y, mut z] = [vec![7.0; m * n], vec![7.0; m * n], vec![7.0; m * others]];
                Bf16Panels::products([&b, &d, &e], &a, m, Onto::Replace, [&mut x, &mut y, &mut z]);
                for (got, b) in [(&x, &b), (&y, &d), (&z, &e)] {
                    assert_eq!(bits(got), bits(&alone(b)), "{m}x{k}, {n} and {others}");
                }
                let mut both = vec![7.0; m * n];
                Bf16Panels::combined(&b, &d, &a, m, &mut both, |c, d| c.iter_mut().zip(d).for_each(|(c, d)| *c = *c * 0.5 + *d));
                let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x * 0.5 + y).collect();
                assert_eq!(bits(&both), bits(&want), "{m}x{k}, twice {n}");
            }
        }
    }
}

#[test]
fn a_product_over_tokens_is_that_of_the_transposes() {
    for unit in Bf16Unit::all() {
        for t in [1, 2, 7, 513] {
            for (width, columns, n) in [(1, 0..1, 1), (40, 32..40, 33), (44, 0..32, 7), (97, 64..97, 45), (70, 0..70, 290)] {
                let (g, x) = (wave(t * width, 0.37), wave(t * n, 0.73));
                let m = columns.len();
                let (mut c, mut d) = (vec![f32::NAN; m * n], vec![1.0; m * n]);
                let (left, right) = (Bf16Left::new(unit, &g, width), Bf16Right::new(unit, &x, n));
                sum_across(&[(&left, &right)], columns.clone(), Onto::Replace, &mut c);
                sum_across(&[(&left, &right)], columns.clone(), Onto::Add, &mut d);
                let mut whole = vec![f32::NAN; width * n];
                across_bf16(unit, (&g, width), (&x, n), &mut whole);
                assert!(c.iter().zip(&whole[columns.start * n..]).all(|(c, w)| c.to_bits() == w.to_bits()), "{t} {m}x{n}: a part");
                for i in 0..m {
                    for j in 0..n {
                        let (want, bound) = sum((0..t).map(|p| (g[p * width + columns.start + i], x[p * n + j])), t.div_ceil(512));
                        let (got, added) = (f64::from(c[i * n + j]), f64::from(d[i * n + j]));
                        assert!((got - want).abs() <= bound, "{t} {m}x{n} at {i},{j}: {got}, not {want} ± {bound}");
                        assert!((added - want - 1.0).abs() <= bound + 1e-6 * (1.0 + want.abs()), "{t} {m}x{n} at {i},{j}: {added}");
                    }
                }
                // Of several windows, longer and shorter ones: one after the other.
                let (g, x) = (wave((t + 3) * width, 0.19), wave((t + 3) * n, 0.53));
                let (longer, by) = (Bf16Left::new(unit, &g, width), Bf16Right::new(unit, &x, n));
                let mut together = vec![f32::NAN; m * n];
                sum_across(&[(&left, &right), (&longer, &by)], columns.clone(), Onto::Replace, &mut together);
                sum_across(&[(&longer, &by)], columns.clone(), Onto::Add, &mut c);
                assert!(c.iter().zip(&together).all(|(c, d)| c.to_bits() == d.to_bits()), "{t} {m}x{n}: one after the other");
            }
        }
    }
}

#[test]
fn a_gram_matrix_is_the_product_of_the_transposes() {
    for unit in Bf16Unit::all() {
        for t in [1, 2, 7, 64, 511, 512] {
            for n in [1, 7, 12, 31, 32, 33, 44, 97] {
                let x = wave(t * n, 0.37);
                let mut h = vec![7.0; n * n];
                gram_bf16(unit, &x, n, &mut h);
                let transposed: Vec<f32> = (0..n * t).map(|i| x[i % t * n + i / t]).collect();
                let mut full = vec![0.0; n * n];
                Bf16Panels::new(unit, &transposed, (n, t)).product(&transposed, n, Onto::Replace, &mut full);
                for i in 0..n {
                    for j in 0..n {
                        let want = if j <= i { full[i * n + j] } else { 7.0 };
                        assert_eq!(h[i * n + j].to_bits(), want.to_bits(), "{t}x{n} at {i},{j}: {} or {want}", h[i * n + j]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_gram_matrix_of_a_long_window_is_exact_to_rounding() {
    for unit in Bf16Unit::all() {
        for (t, n) in [(513, 40), (1500, 33), (2048, 5)] {
            let x = wave(t * n, 0.37);
            let mut h = vec![0.0; n * n];
            gram_bf16(unit, &x, n, &mut h);
            for i in 0..n {
                for j in 0..=i {
                    let (want, bound) = sum((0..t).map(|r| (x[r * n + i], x[r * n + j])), t.div_ceil(512));
                    let got = f64::from(h[i * n + j]);
                    assert!((got - want).abs() <= bound, "{t}x{n} at {i},{j}: {got}, not {want} ± {bound}");
                }
            }
        }
    }
}

#[test]
fn neither_threads_nor_the_split_of_rows_change_a_bit() {
    for unit in Bf16Unit::all() {
        let (m, n, k) = (600, 50, 700);
        let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.73));
        let panels = Bf16Panels::new(unit, &b, (n, k));
        let mut whole = vec![0.0; m * n];
        panels.product(&a, m, Onto::Replace, &mut whole);
        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for rows in [1, 3, 8, 12, 13, 32, 33, 511, 512] {
                let mut parts = vec![0.0; m * n];
                pool.install(|| {
                    a.par_chunks(rows * k).zip(parts.par_chunks_mut(rows * n)).for_each(|(a, c)| {
                        panels.product(a, a.len() / k, Onto::Replace, c);
                    });
                });
                assert_eq!(bits(&parts), bits(&whole), "{threads} threads, {rows} rows a call");
            }
        }
    }
}

#[test]
fn rounding_is_half_to_even_and_what_is_not_finite_stays() {
    for unit in Bf16Unit::all() {
        let one = |x: f32| {
            let mut c = [0.0];
            Bf16Panels::new(unit, &[1.0], (1, 1)).product(&[x], 1, Onto::Replace, &mut c);
            c[0]
        };
        for i in 0..=u16::MAX {
            // Every bf16, and what lies at, just below and just above the middle to the next one.
            for low in [0, 0x7fff, 0x8000, 0x8001] {
                let x = f32::from_bits((u32::from(i) << 16) | low);
                let want = bf16::from_f32(if x.is_subnormal() { 0.0 } else { x }).to_f32();
                let got = one(x);
                assert!(got == want || (got.is_nan() && want.is_nan()), "{x:e}: {got:e}, not {want:e}");
            }
        }
        let mut h = [0.0; 4];
        gram_bf16(unit, &[f32::INFINITY, 1.0, 1.0, 1.0], 2, &mut h);
        assert_eq!(h, [f32::INFINITY, 0.0, f32::INFINITY, 2.0]);
        gram_bf16(unit, &[f32::NAN, 1.0], 2, &mut h);
        assert!(h[0].is_nan() && h[2].is_nan() && h[3] == 1.0, "{h:?}");
    }
}

#[test]
fn nothing_to_sum_is_zero() {
    for unit in Bf16Unit::all() {
        let mut c = [1.0; 6];
        Bf16Panels::new(unit, &[], (3, 0)).product(&[], 2, Onto::Add, &mut c);
        assert_eq!(c, [1.0; 6]);
        Bf16Panels::new(unit, &[], (3, 0)).product(&[], 2, Onto::Replace, &mut c);
        assert_eq!(c, [0.0; 6]);
        Bf16Panels::new(unit, &[], (0, 4)).product(&[0.0; 4], 1, Onto::Replace, &mut []);
        let mut h = [1.0; 4];
        gram_bf16(unit, &[], 2, &mut h);
        assert_eq!(h, [0.0, 1.0, 0.0, 0.0]);
    }
}

#[test]
fn attention_is_that_of_rounded_queries_keys_weights_and_values() {
    for unit in Bf16Unit::all() {
        for (t, past, d, window) in [
            (1, 0, 8, None),
            (70, 0, 8, None),
            (130, 5, 7, None),
            (130, 5, 40, Some(9)),
            (3, 40, 64, Some(16)),
            (65, 600, 33, None),
            (200, 1000, 16, Some(700)),
        ] {
            let s = t + past;
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: d, scale: 0.1, window };
            let input = |rows: usize, width: usize, f| {
                let exact = wave(rows * width, f).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect();
                Tensor::from_vec::<_, f32>(exact, (rows, width), &Device::Cpu).unwrap()
            };
            let (q, k, v) = (input(t, 4 * d, 0.37), input(s, 2 * d, 0.71), input(s, 2 * d, 0.13));
            let exact = attention(&q, &k, &v, &shape, None).unwrap();
            let got = attention(&q, &k, &v, &shape, Some(unit)).unwrap();
            let gap = (got - exact).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            // Weights that sum to one, each off by at most 2⁻⁸ of itself, of values up to 3.
            assert!(gap <= 3.0 / 256.0 + 1e-4, "T={t} past={past} D={d} window={window:?}: {gap}");
        }
    }
}

/// Against the formulas in f64. What is rounded, weights and the gradients of scores, is off by 2⁻⁹ of itself at most; twice that of the sum
/// of all magnitudes is allowed.
#[test]
fn gradients_of_attention_are_exact_to_the_rounding_of_what_is_multiplied() {
    for unit in Bf16Unit::all() {
        for (t, past, d, window) in
            [(1, 0, 8, None), (70, 0, 8, None), (130, 5, 7, None), (130, 5, 40, Some(9)), (65, 600, 33, None), (200, 0, 64, None)]
        {
            let s = t + past;
            let (heads, per_group, scale) = (4, 2, 0.1);
            let shape = AttentionShape { heads, kv_heads: heads / per_group, head_dim: d, scale, window };
            let exact = |n: usize, f| wave(n, f).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<f32>>();
            let (q, k, v) = (exact(t * 4 * d, 0.37), exact(s * 2 * d, 0.71), exact(s * 2 * d, 0.13));
            let g = exact(t * 4 * d, 0.29);
            // Of queries, keys and values: each gradient, and the sum of the magnitudes in it.
            let mut want = [vec![(0.0, 0.0); q.len()], vec![(0.0, 0.0); k.len()], vec![(0.0, 0.0); v.len()]];
            for (row, head) in (0..t).flat_map(|row| (0..heads).map(move |head| (row, head))) {
                let seen = window.map_or(0, |w| (past + row + 1).saturating_sub(w))..past + row + 1;
                let at_q = (row * heads + head) * d;
                let at_k = |j: usize| (j * heads / per_group + head / per_group) * d;
                let dot =
                    |x: &[f32], y: &[f32], j: usize| -> f64 { (0..d).map(|c| f64::from(x[at_q + c]) * f64::from(y[at_k(j) + c])).sum() };
                let weights: Vec<f64> = seen.clone().map(|j| (scale * dot(&q, &k, j)).exp()).collect();
                let total: f64 = weights.iter().sum();
                let delta: f64 = seen.clone().zip(&weights).map(|(j, w)| w / total * dot(&g, &v, j)).sum();
                for (j, w) in seen.clone().zip(&weights) {
                    let (p, dp) = (w / total, dot(&g, &v, j));
                    let ds = scale * p * (dp - delta);
                    for c in 0..d {
                        let mut add = |part: usize, at: usize, x: f64| {
                            want[part][at] = (want[part][at].0 + x, want[part][at].1 + x.abs());
                        };
                        add(0, at_q + c, ds * f64::from(k[at_k(j) + c]));
                        add(1, at_k(j) + c, ds * f64::from(q[at_q + c]));
                        add(2, at_k(j) + c, p * f64::from(g[at_q + c]));
                    }
                }
            }
            let tensor = |x: &[f32], rows: usize| Tensor::from_slice(x, (rows, x.len() / rows), &Device::Cpu).unwrap();
            let (q, k, v, g) = (tensor(&q, t), tensor(&k, s), tensor(&v, s), tensor(&g, t));
            let out = attention(&q, &k, &v, &shape, None).unwrap();
            let got = attention_backward((&q, &k, &v), &out, &shape, &g, Some(unit)).unwrap();
            for ((name, got), want) in ["queries", "keys", "values"].iter().zip(got).zip(&want) {
                let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
                for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
                    let gap = (f64::from(*got) - want).abs();
                    assert!(
                        gap <= size / 256.0 + 1e-5,
                        "{name} {i}, T={t} past={past} D={d} window={window:?}: {got}, not {want} ± {size}/256"
                    );
                }
            }
        }
    }
}
