//! What learning rotations has to satisfy, on an objective written out here: how far rotations are from some that are known.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::Mutex;

use qfw_core::Result;
use qfw_core::algorithm::{Halfway, LearnRotations, Learning, RotationsContext, Start, Store, Training};
use qfw_core::topology::{Rotation, RotationKind};
use qfw_spinquant::{Learn, Optimizer};

/// `Σ (R − T)² / n` for each rotation: `2 − 2·tr(TᵀR)/n`, nothing where `R = T`. It notes which windows it was asked for.
struct Towards(Vec<Vec<f64>>, Mutex<BTreeSet<usize>>);

fn size(matrix: &[f64]) -> usize {
    matrix.len().isqrt()
}

impl Training for Towards {
    fn windows(&self) -> usize {
        3
    }
    fn loss(&self, _: &[usize], rotations: Vec<Vec<f32>>) -> Result<f64> {
        let gap = |(t, r): (&Vec<f64>, &Vec<f32>)| t.iter().zip(r).map(|(t, r)| (t - f64::from(*r)).powi(2)).sum::<f64>() / size(t) as f64;
        Ok(self.0.iter().zip(&rotations).map(gap).sum())
    }
    fn gradients(&self, windows: &[usize], rotations: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        self.1.lock().unwrap().extend(windows);
        let of = |(aim, r): (&Vec<f64>, &Vec<f32>)| aim.iter().zip(r).map(|(t, r)| 2.0 * (r - *t as f32) / size(aim) as f32).collect();
        Ok((self.loss(windows, rotations.clone())?, self.0.iter().zip(&rotations).map(of).collect()))
    }
}

/// Nobody stops these tests halfway.
struct Forgetful;

impl Store for Forgetful {
    fn load(&self) -> Result<Option<Halfway<Vec<f64>>>> {
        Ok(None)
    }
    fn save(&self, _: &Halfway<&[f64]>) -> Result<()> {
        Ok(())
    }
}

/// From known rotations with their rows in another order, one that turning can undo, back to where they were.
fn learn(options: &Learn, keeps_mean: bool) -> (Vec<Vec<f64>>, Learning) {
    let aims: Vec<Vec<f64>> = [(8, 1), (5, 2)]
        .map(|(size, seed)| Rotation { kind: RotationKind::Orthogonal, size, seed, keeps_mean }.turn().unwrap().matrix())
        .into();
    let starts: Vec<Start> = aims
        .iter()
        .enumerate()
        .map(|(i, aim)| {
            let (n, mut matrix) = (size(aim), aim.clone());
            // An even permutation.
            matrix.rotate_left(if n % 2 == 0 { 2 * n } else { n });
            Start { region: format!("r{i}"), size: n, keeps_mean, matrix }
        })
        .collect();
    let training = Towards(aims, Mutex::default());
    let found = options.learn(&RotationsContext { starts: &starts, training: &training, store: &Forgetful, seed: 7 }).unwrap();
    let seen: Vec<usize> = training.1.into_inner().unwrap().into_iter().collect();
    assert!(options.steps < 9 || seen == (0..options.samples.unwrap_or(3)).collect::<Vec<_>>(), "{seen:?}");
    found
}

fn options(optimizer: Optimizer, lr: f64, steps: usize) -> Learn {
    Learn { optimizer, lr: Some(lr), steps, ..Learn::default() }
}

#[test]
fn both_optimizers_find_what_is_there_to_find() {
    for keeps_mean in [false, true] {
        for how in [options(Optimizer::Adam, 0.05, 200), options(Optimizer::CayleySgd, 0.5, 200)] {
            let (_, learning) = learn(&how, keeps_mean);
            assert!(learning.initial > 1.0 && learning.reached < 0.01 * learning.initial, "{how:?}: {learning:?}");
            assert_eq!(learning.curve.len(), 200);
        }
    }
}

#[test]
fn rotations_stay_rotations_and_keep_the_mean_where_they_must() {
    for keeps_mean in [false, true] {
        for how in [options(Optimizer::Adam, 0.3, 60), options(Optimizer::CayleySgd, 1.5, 60)] {
            let (matrices, learning) = learn(&how, keeps_mean);
            assert!(learning.reached <= learning.initial);
            for m in matrices {
                let n = size(&m);
                for i in 0..n {
                    for j in 0..n {
                        let dot: f64 = (0..n).map(|k| m[i * n + k] * m[j * n + k]).sum();
                        assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12, "{how:?}");
                    }
                    let sum: f64 = m[i * n..(i + 1) * n].iter().sum();
                    assert!(!keeps_mean || (sum - 1.0).abs() < 1e-12, "{how:?}: {sum}");
                }
            }
        }
    }
}

#[test]
fn no_steps_leave_the_start_and_the_same_seed_takes_the_same_steps() {
    let (_, none) = learn(&options(Optimizer::Adam, 0.05, 0), false);
    assert_eq!((none.steps, none.reached), (0, none.initial));
    let how = options(Optimizer::Adam, 0.05, 9);
    assert_eq!(learn(&how, false).0, learn(&how, false).0);
    // Fewer windows, where so many are asked for.
    learn(&Learn { samples: Some(2), ..how }, false);
}
