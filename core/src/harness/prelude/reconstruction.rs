//! What rounding does to the rotated weights themselves.
//!
//! `L = Σ over layers of mean (Q(V) − V)²` with `V` the rotated weight. As rotations keep lengths, that is what is lost of the weights as
//! they were, `mean (Q(V)·Rᵀ − W)²`. Codes stand still while a step is taken: `∂V = 2·(V − Q(V))/n`.

use rayon::prelude::*;

use super::super::block::Job;
use super::super::run::{Control, Run};
use super::rounded;
use super::turned::{Turned, Values};
use crate::algorithm::Training;
use crate::error::{Error, Result};
use crate::topology::Part;

/// The weights under rotations.
pub(super) struct Reconstruction<'a> {
    run: &'a Run<'a>,
    turned: Turned,
    sizes: Vec<usize>,
    control: &'a Control<'a>,
}

impl<'a> Reconstruction<'a> {
    pub(super) fn new(run: &'a Run<'a>, (turned, sizes): (Turned, Vec<usize>), control: &'a Control<'a>) -> Self {
        Self { run, turned, sizes, control }
    }

    /// The loss, and for each rotation what `of` makes of a layer that is turned and rounded.
    fn sum<T: Send>(&self, rotations: &[Vec<f32>], of: impl Fn(&Job<'_>, Values, Vec<f32>) -> T + Sync) -> Result<(f64, Vec<T>)> {
        let (mut loss, mut all) = (0.0, Vec::new());
        for b in 0..self.run.plan().blocks {
            if self.control.cancelled() {
                return Err(Error::interrupted());
            }
            let base = self.run.load_block(b)?;
            let jobs = self.run.jobs(b);
            let turned = jobs.par_iter().filter(|job| self.turned.touches(job.linear.site, Part::Weight)).map(|job| {
                let at = (job.linear.site, Part::Weight);
                let v = Values::of(&base, at.0, at.1)?;
                let turned = self.turned.forward(at, Values { values: v.values.clone(), columns: v.columns }, rotations);
                let mut gap = rounded(job, &turned.values)?;
                gap.iter_mut().zip(&turned.values).for_each(|(q, v)| *q = v - *q);
                let n = gap.len() as f64;
                let loss = gap.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>() / n;
                gap.iter_mut().for_each(|g| *g *= (2.0 / n) as f32);
                Ok((loss, of(job, v, gap)))
            });
            for (l, found) in turned.collect::<Result<Vec<_>>>()? {
                loss += l;
                all.push(found);
            }
        }
        Ok((loss, all))
    }
}

impl Training for Reconstruction<'_> {
    /// There are no data: all of the weights are one window.
    fn windows(&self) -> usize {
        1
    }

    fn loss(&self, _: &[usize], rotations: Vec<Vec<f32>>) -> Result<f64> {
        Ok(self.sum(&rotations, |_, _, _| ())?.0)
    }

    fn gradients(&self, _: &[usize], rotations: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let (loss, found) = self.sum(&rotations, |job, v, gap| self.turned.back((job.linear.site, Part::Weight), v, gap, &rotations))?;
        let mut sums: Vec<Vec<f64>> = self.sizes.iter().map(|n| vec![0.0; n * n]).collect();
        for (nth, g) in found.into_iter().flatten() {
            sums[nth].iter_mut().zip(&g).for_each(|(s, g)| *s += f64::from(*g));
        }
        Ok((loss, sums.into_iter().map(|g| g.into_iter().map(|x| x as f32).collect()).collect()))
    }
}
