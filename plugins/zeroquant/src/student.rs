//! The weights of a block as they learn, by AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

use qfw_core::Result;
use qfw_core::algorithm::{Learner, Rounded, SiteContext};
use qfw_core::numeric::nearest_values;
use rayon::prelude::*;

use crate::options::Lkd;

/// The averages forget at these rates.
const MOMENTS: (f32, f32) = (0.9, 0.999);
const SMALL: f32 = 1e-8;

/// A block under work.
#[derive(Clone)]
pub(crate) struct Student<'a> {
    layers: Vec<Layer<'a>>,
    lkd: &'a Lkd,
    steps: i32,
}

#[derive(Clone)]
struct Layer<'a> {
    cx: SiteContext<'a>,
    weight: Vec<f32>,
    moments: Vec<(f32, f32)>,
}

impl Layer<'_> {
    fn rounded(&self) -> Result<Rounded> {
        SiteContext { weight: &self.weight, ..self.cx }.nearest()
    }

    /// What its codes stand for. Weights that are no numbers any more stay what they are: the loss tells.
    fn values(&self) -> Vec<f32> {
        let params = self.cx.fit(&self.weight);
        params.map_or_else(|_| self.weight.clone(), |params| nearest_values(&self.cx.spec.grid, &params, &self.weight))
    }
}

impl<'a> Student<'a> {
    pub(crate) fn new(sites: &[SiteContext<'a>], lkd: &'a Lkd) -> Self {
        // Ranges follow the weights as these learn.
        let layer = |cx: SiteContext<'a>| Layer { weight: cx.weight.to_vec(), moments: vec![(0.0, 0.0); cx.weight.len()], cx };
        Self { layers: sites.iter().map(|cx| layer(cx.settled())).collect(), lkd, steps: 0 }
    }

    /// The codes of all layers.
    pub(crate) fn rounded(&self) -> impl Iterator<Item = Result<Rounded>> + '_ {
        self.layers.iter().map(Layer::rounded)
    }
}

impl Learner for Student<'_> {
    fn weights(&self) -> Vec<Vec<f32>> {
        self.layers.iter().map(Layer::values).collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>], done: f64) {
        self.steps += 1;
        let lr = (self.lkd.lr * (1.0 - done)) as f32;
        let decay = lr * self.lkd.weight_decay as f32;
        let square = |g: &Vec<f32>| g.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
        let norm = gradients.iter().map(square).sum::<f64>().sqrt();
        let shorter = (self.lkd.clip / norm.max(self.lkd.clip)) as f32;
        let bias = (1.0 - MOMENTS.0.powi(self.steps), 1.0 - MOMENTS.1.powi(self.steps));
        for (layer, g) in self.layers.iter_mut().zip(gradients) {
            layer.weight.par_iter_mut().zip(&mut layer.moments).zip(g).with_min_len(1 << 14).for_each(|((w, m), g)| {
                let g = g * shorter;
                m.0 = MOMENTS.0 * m.0 + (1.0 - MOMENTS.0) * g;
                m.1 = MOMENTS.1 * m.1 + (1.0 - MOMENTS.1) * g * g;
                *w -= lr * (m.0 / bias.0) / ((m.1 / bias.1).sqrt() + SMALL) + decay * *w;
            });
        }
    }
}
