//! `ŵ = lower + gap·h(p)` with `h = clip(1.2·σ(p) − 0.1, 0, 1)`, by Adam (Kingma and Ba 2015, arXiv:1412.6980).
//!
//! `lower` is the number of the grid below `w`. At first `h` is how far `w` lies above it, so that nothing is rounded at all; the
//! regularizer then drives every `h` to 0 or 1. The loss is taken as a sum over channels, as where its weight `λ` comes from.

use qfw_core::algorithm::Learner;
use rayon::prelude::*;

use crate::Moves;
use crate::options::Options;
use crate::site::Site;

/// Adam's averages forget at these rates.
const MOMENTS: (f32, f32) = (0.9, 0.999);
const SMALL: f32 = 1e-8;
/// `b` of the regularizer, at first and in the end.
const SHARPNESS: (f64, f64) = (20.0, 2.0);

/// The soft rounding of a block.
#[derive(Clone)]
pub(crate) struct Sigmoid<'a> {
    sites: Vec<Soft<'a>>,
    options: &'a Options,
    steps: i32,
}

#[derive(Clone)]
struct Soft<'a> {
    site: Site<'a>,
    /// The number of the grid below each weight, and the distance to the one above.
    lower: Vec<f32>,
    gap: Vec<f32>,
    p: Vec<f32>,
    moments: Vec<(f32, f32)>,
}

/// `h(p)` and its derivative.
fn soft(p: f32) -> (f32, f32) {
    let sigma = 1.0 / (1.0 + (-p).exp());
    let h = 1.2 * sigma - 0.1;
    if (0.0..=1.0).contains(&h) { (h, 1.2 * sigma * (1.0 - sigma)) } else { (h.clamp(0.0, 1.0), 0.0) }
}

impl<'a> Soft<'a> {
    fn new(site: Site<'a>) -> Self {
        let params = site.params();
        let n = site.weight.len();
        let (mut gap, mut below) = (vec![0.0; n], vec![0.0; n]);
        site.each(&params, &mut gap, |_, _, gap| gap);
        site.each(&params, &mut below, |_, w, gap| w - 0.5 * gap);
        // The nearest to half a gap less is the one below, but for a weight that lies on the grid, which is its own.
        let mut lower = site.nearest(&params, &below);
        let nearest = site.nearest(&params, site.weight);
        lower.iter_mut().zip(&nearest).zip(site.weight).for_each(|((l, n), w)| *l = if n <= w { *n } else { *l });
        let share = |((w, l), gap): ((&f32, &f32), &f32)| if *gap > 0.0 { ((w - l) / gap).clamp(0.0, 1.0) } else { 0.0 };
        let p = site.weight.iter().zip(&lower).zip(&gap).map(share).map(|h| {
            let sigma = ((h + 0.1) / 1.2).clamp(1e-4, 1.0 - 1e-4);
            (sigma / (1.0 - sigma)).ln()
        });
        let p = p.collect();
        Self { site, lower, gap, p, moments: vec![(0.0, 0.0); n] }
    }

    fn weights(&self, h: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
        let each = |((l, gap), p): ((&f32, &f32), &f32)| h(*p) * gap + l;
        self.lower.par_iter().zip(&self.gap).zip(&self.p).with_min_len(1 << 14).map(each).collect()
    }

    /// What is rounded to nearest in the end: well inside of what its code stands for.
    fn hard(&self) -> Vec<f32> {
        self.weights(|p| if soft(p).0 >= 0.5 { 1.0 } else { 0.0 })
    }
}

impl<'a> Sigmoid<'a> {
    pub(crate) fn new(sites: Vec<Site<'a>>, options: &'a Options) -> Self {
        Self { sites: sites.into_iter().map(Soft::new).collect(), options, steps: 0 }
    }
}

impl Learner for Sigmoid<'_> {
    fn weights(&self) -> Vec<Vec<f32>> {
        self.sites.iter().map(|s| s.weights(|p| soft(p).0)).collect()
    }

    fn settled(&self) -> Vec<Vec<f32>> {
        self.sites.iter().map(Soft::hard).collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>], done: f64) {
        self.steps += 1;
        let o = self.options;
        let lr = o.lr_at(done) as f32;
        let bias = (1.0 - MOMENTS.0.powi(self.steps), 1.0 - MOMENTS.1.powi(self.steps));
        let settle = (done >= o.warmup()).then(|| {
            let share = (done - o.warmup()) / (1.0 - o.warmup()).max(f64::EPSILON);
            SHARPNESS.0 + (SHARPNESS.1 - SHARPNESS.0) * share
        });
        for (s, g) in self.sites.iter_mut().zip(gradients) {
            // The residual stream has as many channels as the layers that write it have rows; its mean becomes a sum.
            let channels = s.site.params().layout.rows as f32;
            let lambda = o.lambda() as f32;
            s.p.par_iter_mut().zip(&mut s.moments).zip(g).zip(&s.gap).with_min_len(1 << 14).for_each(|(((p, m), g), gap)| {
                let (h, slope) = soft(*p);
                let mut d = channels * g * gap * slope;
                if let Some(b) = settle {
                    // d/dh (1 − |2h − 1|^b)
                    let u = 2.0 * h - 1.0;
                    d -= lambda * 2.0 * b as f32 * u.abs().powf(b as f32 - 1.0) * u.signum() * slope;
                }
                m.0 = MOMENTS.0 * m.0 + (1.0 - MOMENTS.0) * d;
                m.1 = MOMENTS.1 * m.1 + (1.0 - MOMENTS.1) * d * d;
                *p -= lr * (m.0 / bias.0) / ((m.1 / bias.1).sqrt() + SMALL);
            });
        }
    }
}

impl<'a> Moves<'a> for Sigmoid<'a> {
    fn moved(&self) -> Vec<(&Site<'a>, Vec<f32>)> {
        self.sites.iter().map(|s| (&s.site, s.hard())).collect()
    }
}
