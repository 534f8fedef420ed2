//! The splitting passes over the sites of a group: branches beside the codes.
//!
//! Before rounding, a branch is taken out of the weight, and what is left is rounded: `R = W − B·A`. What methods aim at that compare with the
//! original weight `W₀` is then `W₀ − B·A`: the branch gives its part in high precision, on the very input that the site will read. (Where
//! inputs have drifted from the original model's, what the branch makes of the drift is not corrected.) After rounding, a branch is fitted
//! to `W₀ − Ŵ`. `A` and `B` are rounded to what they are stored in before anything is subtracted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::block::{BlockResult, Job, RoundedSite, conditioned_or_skipped, site_context, values};
use super::run::Run;
use super::site_error::{output_error, weight_error};
use crate::algorithm::{Branches, Event, SiteContext, Split, SplitContext, Stage};
use crate::checkpoint::native::encode_branch;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{Branch, MapWeights};
use crate::numeric::subtract_low_rank;
use crate::plan::{Failure, PlannedBranch};
use crate::scheme::ScaleForm;
use crate::statistic::Stats;
use crate::topology::Part;

/// The branch of a site, as it will be stored, and what led to it.
pub(super) struct SplitOff<'a> {
    planned: &'a PlannedBranch,
    a: Arc<Vec<f32>>,
    b: Vec<f32>,
    /// The weight as conditions have moved it, where there are any.
    moved: Option<Vec<f32>>,
    /// The largest magnitude that is left, where ranges have two levels.
    pub(super) amax: f32,
    /// What happened on the way.
    pub(super) events: Vec<Event>,
}

impl SplitOff<'_> {
    /// `W − B·A`, for the weight as conditions have left it, and for the original.
    pub(super) fn residuals(&self, original: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let less = |w: &[f32]| {
            let mut out = w.to_vec();
            self.subtract(&mut out);
            out
        };
        (less(self.moved.as_deref().unwrap_or(original)), less(original))
    }

    fn subtract(&self, w: &mut [f32]) {
        subtract_low_rank(w, &self.a, &self.b, (self.planned.shape.1, self.planned.rank));
    }
}

/// Sites that a pass splits together, by position in their group: those that share an `A`, or one.
struct Together<'a> {
    split: &'a dyn Split,
    sites: Vec<(usize, &'a PlannedBranch)>,
}

/// What a split needs to know of a group of sites.
pub(super) struct Group<'a, 'g> {
    pub(super) run: &'a Run<'a>,
    pub(super) jobs: &'g [&'g Job<'g>],
    pub(super) stats: &'g Stats,
    /// Their weights in high precision.
    pub(super) weights: &'g MapWeights,
    pub(super) amax: &'g [f32],
}

impl<'a> Group<'a, '_> {
    fn together(&self, after: bool) -> Result<Vec<Together<'a>>> {
        let mut all: Vec<Together<'a>> = Vec::new();
        for (i, job) in self.jobs.iter().enumerate() {
            let Some(pass) = job.split else { continue };
            let Stage::Split(split) = self.run.algorithm(pass).stage() else {
                return Err(Error::internal("a pass of the split phase has another stage"));
            };
            let planned = self.run.plan().branch(job.linear.site);
            let planned = planned.ok_or_else(|| Error::internal(format!("no branch is planned beside `{}`", job.linear.site)))?;
            if split.after_rounding() != after {
                continue;
            }
            match all.iter_mut().find(|t| t.sites[0].1.a == planned.a) {
                Some(t) => t.sites.push((i, planned)),
                None => all.push(Together { split, sites: vec![(i, planned)] }),
            }
        }
        Ok(all)
    }

    /// The weights of some sites before any pass moved them.
    fn originals(&self, sites: &[(usize, &PlannedBranch)]) -> Result<Vec<Vec<f32>>> {
        sites.iter().map(|(i, _)| values(self.weights, self.jobs[*i].linear.site, Part::Weight)).collect()
    }

    fn context<'c>(&'c self, i: usize, weight: &'c [f32], original: &'c [f32]) -> SiteContext<'c> {
        SiteContext { weight, ..site_context(self.run, self.jobs[i], original, self.stats, self.amax[i]) }
    }

    /// The branches that are taken out before rounding, by position in the group.
    pub(super) fn before(&self) -> Result<BTreeMap<usize, SplitOff<'a>>> {
        let all = self.together(false)?;
        let all: Vec<Vec<(usize, SplitOff<'a>)>> = all.par_iter().map(|t| self.take(t)).collect::<Result<_>>()?;
        Ok(all.into_iter().flatten().collect())
    }

    fn take(&self, Together { split, sites }: &Together<'a>) -> Result<Vec<(usize, SplitOff<'a>)>> {
        let originals = self.originals(sites)?;
        let (mut moved, mut told) = (Vec::new(), Vec::new());
        for ((i, _), w) in sites.iter().zip(&originals) {
            let mut site = conditioned_or_skipped(self.run, self.jobs[*i], &self.context(*i, w, w))?;
            told.push(std::mem::take(&mut site.events));
            moved.push(site.settled());
        }
        let weight = |at: usize| moved[at].as_deref().unwrap_or(&originals[at]);
        let contexts: Vec<_> = sites.iter().enumerate().map(|(at, (i, _))| self.context(*i, weight(at), &originals[at])).collect();
        let Branches { a, b, events } = solved(self, *split, sites, &contexts)?;
        let (a, mut all) = (Arc::new(a), Vec::new());
        for ((at, (i, planned)), b) in sites.iter().enumerate().zip(b) {
            let mut off = SplitOff { planned, a: Arc::clone(&a), b, moved: None, amax: 0.0, events: Vec::new() };
            if self.jobs[*i].spec.scale == ScaleForm::TwoLevel {
                let mut left = weight(at).to_vec();
                off.subtract(&mut left);
                off.amax = left.iter().fold(0.0, |m, x| m.max(x.abs()));
            }
            off.events = told[at].iter().chain(&events[at]).cloned().collect();
            all.push((*i, off));
        }
        drop(contexts);
        all.iter_mut().zip(moved).for_each(|((_, off), moved)| off.moved = moved);
        Ok(all)
    }

    /// Fits branches to what rounding has left of the weights, and corrects the reports.
    pub(super) fn after(&self, rounded: &mut BTreeMap<usize, RoundedSite>) -> Result<BTreeMap<usize, SplitOff<'a>>> {
        let mut all = BTreeMap::new();
        for t in self.together(true)? {
            all.extend(self.fit(&t, rounded)?);
        }
        Ok(all)
    }

    fn fit(
        &self,
        Together { split, sites }: &Together<'a>,
        rounded: &mut BTreeMap<usize, RoundedSite>,
    ) -> Result<Vec<(usize, SplitOff<'a>)>> {
        let (originals, mut errors) = (self.originals(sites)?, Vec::new());
        for ((i, _), original) in sites.iter().zip(&originals) {
            let site = rounded.get(i).ok_or_else(|| Error::internal("a site was not rounded"))?;
            let decoded = site.weight.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
            errors.push(original.iter().zip(&decoded).map(|(w, d)| w - d).collect::<Vec<f32>>());
        }
        let contexts: Vec<_> = sites.iter().enumerate().map(|(at, (i, _))| self.context(*i, &errors[at], &originals[at])).collect();
        let Branches { a, b, events } = solved(self, *split, sites, &contexts)?;
        drop(contexts);
        let (a, mut all) = (Arc::new(a), Vec::new());
        for ((at, (i, planned)), b) in sites.iter().enumerate().zip(b) {
            let off = SplitOff { planned, a: Arc::clone(&a), b, moved: None, amax: 0.0, events: Vec::new() };
            let (w, left) = (&originals[at], &mut errors[at]);
            off.subtract(left);
            // What the site computes with: the original, less what is left of the error.
            let close: Vec<f32> = w.iter().zip(&*left).map(|(w, e)| w - e).collect();
            if let Some(RoundedSite { report, .. }) = rounded.get_mut(i) {
                report.weight_error = weight_error(w, &close);
                report.output_error = self.run.gram(self.jobs[*i], self.stats).map(|g| output_error(w, &close, g));
                report.events.extend(events[at].iter().cloned());
            }
            all.push((*i, off));
        }
        Ok(all)
    }
}

/// Asks the pass, checks what it says, and rounds it to what is stored.
fn solved(group: &Group<'_, '_>, split: &dyn Split, sites: &[(usize, &PlannedBranch)], contexts: &[SiteContext<'_>]) -> Result<Branches> {
    let run = group.run;
    let (first, planned) = sites[0];
    let (rank, stored, cols) = (planned.rank, planned.stored, planned.shape.1);
    let found = split.split(&SplitContext { sites: contexts, rank, stored }).map_err(|e| e.within(format!("`{}`", planned.site)));
    let mut found = match found {
        Err(e) if e.kind() == ErrorKind::Numeric && run.plan().harness.on_failure == Failure::Rtn => Branches {
            a: vec![0.0; rank * cols],
            b: sites.iter().map(|(_, p)| vec![0.0; p.shape.0 * rank]).collect(),
            events: vec![vec![Event::Skipped { reason: format!("its branch is zero: {e}") }]; sites.len()],
        },
        other => other?,
    };
    let fits = found.a.len() == rank * cols
        && found.events.len() == sites.len()
        && found.b.len() == sites.len()
        && found.b.iter().zip(sites).all(|(b, (_, p))| b.len() == p.shape.0 * rank);
    let all = || std::iter::once(&found.a).chain(&found.b).flatten();
    if !fits || all().any(|x| !x.is_finite()) {
        let algo = group.jobs[first].split.map_or("", |pass| run.plan().passes[pass].algo.as_str());
        let message = format!("`{}`: the branch that `{algo}` returned is not finite, or not of rank {rank}", planned.site);
        return Err(Error::new(ErrorKind::Plugin, "plugin::contract", message));
    }
    let round = |x: &mut Vec<f32>| x.iter_mut().for_each(|x| *x = stored.round(*x));
    round(&mut found.a);
    found.b.iter_mut().for_each(round);
    if std::iter::once(&found.a).chain(&found.b).flatten().any(|x| !x.is_finite()) {
        let message = format!("the branch of `{}` holds numbers beyond what {} can", planned.site, stored.name());
        return Err(Error::numeric("numeric::overflow", message).hint("store branches in bfloat16 or float32"));
    }
    Ok(found)
}

/// Puts branches into the block and among what is stored.
pub(super) fn store(run: &Run<'_>, group: &[&Job<'_>], offs: BTreeMap<usize, SplitOff<'_>>, result: &mut BlockResult) -> Result<()> {
    let mut shared: BTreeMap<&str, Tensor> = BTreeMap::new();
    for (i, off) in offs {
        let (planned, linear) = (off.planned, group[i].linear);
        let ((rows, cols), rank) = (planned.shape, planned.rank);
        let a = match shared.get(planned.a.as_str()) {
            Some(a) => a.clone(),
            None => Tensor::from_slice(&off.a, (rank, cols), &Device::Cpu)?.to_device(run.device())?,
        };
        shared.insert(&planned.a, a.clone());
        result.tensors.extend(encode_branch(planned, &off.a, &off.b));
        let b = Tensor::from_vec(off.b, (rows, rank), &Device::Cpu)?.to_device(run.device())?;
        result.weights.insert_branch(linear.site, Branch { a, b });
    }
    Ok(())
}

/// `w − B·A` for a site that has a branch.
pub(super) fn less_branch<'a>(w: &'a [f32], branch: Option<&Branch>) -> Result<Cow<'a, [f32]>> {
    let Some(branch) = branch else { return Ok(Cow::Borrowed(w)) };
    let (rank, cols) = branch.a.dims2()?;
    let host = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?) };
    let mut out = w.to_vec();
    subtract_low_rank(&mut out, &host(&branch.a)?, &host(&branch.b)?, (cols, rank));
    Ok(Cow::Owned(out))
}
