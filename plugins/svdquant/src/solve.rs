//! Branches of sites that share one `A`: their weights are one matrix, row upon row.

use std::ops::Range;
use std::sync::Arc;

use qfw_core::Result;
use qfw_core::algorithm::{Branches, Event, SiteContext, SplitContext, input_events};
use qfw_core::numeric::{Dense, GramRoot, TruncatedSvd, Weighted, decode, gram_energy, subtract_low_rank, truncated_svd};
use qfw_core::statistic::Gram;

/// See the module.
pub(crate) struct Problem<'a> {
    cx: &'a SplitContext<'a>,
    cols: usize,
    /// `W`, or what rounding has left of it.
    stacked: Vec<f32>,
    /// The Gram matrix, the damping asked for, and its root.
    weighting: Option<(Arc<Gram>, f64, GramRoot)>,
}

/// A branch, and for each site the squared error that it leaves.
struct Candidate {
    a: Vec<f32>,
    b: Vec<f32>,
    errors: Vec<f64>,
    /// For each site what is left of the weight, squared.
    left: Vec<f64>,
}

impl<'a> Problem<'a> {
    /// The sites of `cx`; with damping, errors are weighed by the Gram matrix of the inputs.
    pub(crate) fn new(cx: &'a SplitContext<'a>, damp: Option<f64>) -> Result<Self> {
        let cols = cx.sites.first().map_or(0, |s| s.linear.shape.1);
        let stacked = cx.sites.iter().flat_map(|s| s.weight.iter().copied()).collect();
        let weighting = match (damp, cx.sites.first()) {
            (Some(damp), Some(site)) => {
                let gram = Arc::clone(site.gram()?);
                let root = GramRoot::of(&gram.lower, gram.n, damp)?;
                Some((gram, damp, root))
            }
            _ => None,
        };
        Ok(Self { cx, cols, stacked, weighting })
    }

    /// The branch of the weight: the best of `iters` and none.
    pub(crate) fn alternate(&self, iters: usize) -> Result<Branches> {
        let mut error = self.nearest(&self.stacked)?;
        error.iter_mut().zip(&self.stacked).for_each(|(q, w)| *q = w - *q);
        let without = self.errors_of(&error);
        let whole = self.energies(&self.stacked);
        let mut best = Candidate { errors: without.clone(), left: whole.clone(), ..self.zero() };
        let mut target: Option<Vec<f32>> = None;
        for step in 0..iters {
            let (a, b) = self.factors(target.as_deref().unwrap_or(&self.stacked))?;
            let mut residual = self.stacked.clone();
            subtract_low_rank(&mut residual, &a, &b, (self.cols, self.cx.rank));
            let left = self.energies(&residual);
            // R − Q(R)
            let mut error = self.nearest(&residual)?;
            error.iter_mut().zip(&residual).for_each(|(q, r)| *q = r - *q);
            let errors = self.errors_of(&error);
            if errors.iter().sum::<f64>() < best.errors.iter().sum() {
                best = Candidate { a, b, errors, left };
            }
            if step + 1 < iters {
                // W − Q(R) = (R − Q(R)) + B·A.
                error.iter_mut().zip(self.stacked.iter().zip(&residual)).for_each(|(e, (w, r))| *e += w - r);
                target = Some(error);
            }
        }
        Ok(self.branches(best, &without, &whole))
    }

    /// The branch of the error.
    pub(crate) fn compensate(&self) -> Result<Branches> {
        let without = self.errors_of(&self.stacked);
        let mut best = Candidate { errors: without.clone(), ..self.zero() };
        let (a, b) = self.factors(&self.stacked)?;
        let mut left = self.stacked.clone();
        subtract_low_rank(&mut left, &a, &b, (self.cols, self.cx.rank));
        let errors = self.errors_of(&left);
        if errors.iter().sum::<f64>() < without.iter().sum() {
            best = Candidate { a, b, errors, left: Vec::new() };
        }
        Ok(self.branches(best, &without, &[]))
    }

    /// No branch.
    fn zero(&self) -> Candidate {
        let (rows, rank) = (self.stacked.len() / self.cols.max(1), self.cx.rank);
        Candidate { a: vec![0.0; rank * self.cols], b: vec![0.0; rows * rank], errors: Vec::new(), left: Vec::new() }
    }

    /// `A` and `B` of the best approximation of `target`, rounded to what they are stored in.
    fn factors(&self, target: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let dense = Dense::new(target, (target.len() / self.cols.max(1), self.cols))?;
        let seed = self.cx.sites.first().map_or(0, |s| s.seed);
        let svd: TruncatedSvd = match &self.weighting {
            None => truncated_svd(&dense, self.cx.rank, seed)?,
            Some((_, _, root)) => truncated_svd(&Weighted::new(dense, root), self.cx.rank, seed)?,
        };
        let (mut a, mut b) = svd.halves();
        if let Some((_, _, root)) = &self.weighting {
            root.unweight(&mut a);
        }
        a.iter_mut().chain(&mut b).for_each(|x| *x = self.cx.stored.round(*x));
        Ok((a, b))
    }

    /// The part of each site.
    fn parts(&self) -> impl Iterator<Item = (&'a SiteContext<'a>, Range<usize>)> {
        let mut start = 0;
        self.cx.sites.iter().map(move |site| {
            let range = start..start + site.weight.len();
            start = range.end;
            (site, range)
        })
    }

    /// What `weights` become, rounded to nearest with ranges of their own.
    fn nearest(&self, weights: &[f32]) -> Result<Vec<f32>> {
        let amax = weights.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let (mut all, mut part) = (Vec::with_capacity(weights.len()), Vec::new());
        for (site, range) in self.parts() {
            let rounded = SiteContext { weight: &weights[range], amax, ..*site }.nearest()?;
            let rows = 0..site.linear.shape.0;
            decode(&site.spec.grid, &rounded.params, &rounded.codes, rows, rounded.group_index.as_deref(), &mut part);
            all.extend_from_slice(&part);
        }
        Ok(all)
    }

    /// `‖Δ‖²`, or `tr ΔHΔᵀ`, for each site.
    fn errors_of(&self, delta: &[f32]) -> Vec<f64> {
        match &self.weighting {
            None => self.energies(delta),
            Some((gram, ..)) => self.parts().map(|(_, r)| gram_energy(&delta[r], &gram.lower, gram.n).max(0.0)).collect(),
        }
    }

    fn energies(&self, x: &[f32]) -> Vec<f64> {
        self.parts().map(|(_, r)| x[r].iter().map(|x| f64::from(*x).powi(2)).sum()).collect()
    }

    fn branches(&self, best: Candidate, without: &[f64], whole: &[f64]) -> Branches {
        let ratio = |x: Option<&f64>, of: Option<&f64>| match (x, of) {
            (Some(x), Some(of)) if *of > 0.0 => (x / of).sqrt(),
            _ => 1.0,
        };
        let event =
            |i: usize| Event::Branched { left: ratio(best.left.get(i), whole.get(i)), error: ratio(best.errors.get(i), without.get(i)) };
        // The damping is that of the input they share.
        let damped = self.weighting.iter().flat_map(|(_, asked, root)| input_events(0, *asked, root.damp)).collect::<Vec<_>>();
        let events = (0..self.cx.sites.len()).map(|i| damped.iter().cloned().chain([event(i)]).collect()).collect();
        let rank = self.cx.rank;
        let b = self.parts().map(|(site, r)| best.b[r.start / self.cols * rank..][..site.linear.shape.0 * rank].to_vec()).collect();
        Branches { a: best.a, b, events }
    }
}
