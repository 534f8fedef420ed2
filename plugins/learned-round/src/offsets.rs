//! `ŵ = Quant(w + v·gap)`, `|v| ≤ ½`, by steps along the sign of the gradient.

use qfw_core::algorithm::Learner;
use rayon::prelude::*;

use crate::Moves;
use crate::options::Options;
use crate::site::Site;

/// Offsets of a task.
const PIECE: usize = 1 << 14;

/// The offsets of a block.
#[derive(Clone)]
pub(crate) struct Offsets<'a> {
    sites: Vec<(Site<'a>, Vec<f32>)>,
    options: &'a Options,
}

impl<'a> Offsets<'a> {
    pub(crate) fn new(sites: Vec<Site<'a>>, options: &'a Options) -> Self {
        let sites = sites.into_iter().map(|s| {
            let offsets = vec![0.0; s.weight.len()];
            (s, offsets)
        });
        Self { sites: sites.collect(), options }
    }
}

impl Learner for Offsets<'_> {
    fn weights(&self) -> Vec<Vec<f32>> {
        self.sites.iter().map(|(site, offsets)| site.rounded(&site.params(), offsets)).collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>], done: f64) {
        let lr = self.options.lr_at(done) as f32;
        for ((site, offsets), g) in self.sites.iter_mut().zip(gradients) {
            if self.options.learns_scale() {
                site.step(offsets, g, self.options, done);
            }
            offsets.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).for_each(|(offsets, g)| {
                for (v, g) in offsets.iter_mut().zip(g) {
                    let by = if *g == 0.0 { 0.0 } else { lr.copysign(*g) };
                    *v = (*v - by).clamp(-0.5, 0.5);
                }
            });
        }
    }
}

impl<'a> Moves<'a> for Offsets<'a> {
    fn moved(&self) -> Vec<(&Site<'a>, Vec<f32>)> {
        self.sites.iter().map(|(site, offsets)| (site, site.moved(&site.params(), offsets))).collect()
    }
}
