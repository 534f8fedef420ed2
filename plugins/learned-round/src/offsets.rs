//! `ŵ = Quant(w + v·gap)`, `|v| ≤ ½`, by steps along the sign of the gradient.

use qfw_core::algorithm::Learner;
use rayon::prelude::*;

use crate::Moves;
use crate::options::Options;
use crate::site::Site;

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

fn moved(site: &Site<'_>, offsets: &[f32]) -> Vec<f32> {
    let mut moved = vec![0.0; offsets.len()];
    site.each(&site.params(), &mut moved, |i, w, gap| w + offsets[i] * gap);
    moved
}

impl Learner for Offsets<'_> {
    fn weights(&self) -> Vec<Vec<f32>> {
        self.sites.iter().map(|(site, offsets)| site.nearest(&site.params(), &moved(site, offsets))).collect()
    }

    fn step(&mut self, gradients: &[Vec<f32>], done: f64) {
        let lr = self.options.lr_at(done) as f32;
        for ((site, offsets), g) in self.sites.iter_mut().zip(gradients) {
            let params = site.params();
            let before = self.options.learns_scale().then(|| moved(site, offsets));
            offsets.par_iter_mut().zip(g).with_min_len(1 << 14).for_each(|(v, g)| {
                let by = if *g == 0.0 { 0.0 } else { lr.copysign(*g) };
                *v = (*v - by).clamp(-0.5, 0.5);
            });
            if let Some(before) = before {
                site.step(&params, &before, g, self.options, done);
            }
        }
    }
}

impl<'a> Moves<'a> for Offsets<'a> {
    fn moved(&self) -> Vec<(&Site<'a>, Vec<f32>)> {
        self.sites.iter().map(|(site, offsets)| (site, moved(site, offsets))).collect()
    }
}
