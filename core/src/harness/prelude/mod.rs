//! What is learned of the whole model before its first block is rounded: rotations.
//!
//! The model that runs here is the one to be rotated, with everything else done to it that is to be done to all of it. What is learned is
//! made exactly orthogonal, stored in f64 with the journal, and found there when a run goes on; learning itself goes on behind the last
//! step that was taken.

mod halfway;
mod network;
mod reconstruction;
mod turned;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub(super) use self::halfway::FILE as LEARNING;
use self::halfway::OnDisk;
use self::network::Network;
use self::reconstruction::Reconstruction;
use self::turned::{Turned, Values};
use super::block::{Job, values};
use super::journal::{Journal, hash_file};
use super::report::Progress;
use super::run::{Control, Run};
use crate::algorithm::{LearnRotations, Learning, Objective, RotationsContext, Stage, Start, Training};
use crate::checkpoint::native::write_shard;
use crate::checkpoint::{SafetensorsSource, StoredDtype, TensorDecl, TensorSource};
use crate::error::{Error, Result};
use crate::model::MapWeights;
use crate::numeric::{Onto, Transpose, gemm, nearest_values};
use crate::observer::{self, ScaleRule};
use crate::topology::{Part, Region, Rewrite, SiteId, Space, Turn};

/// What the journal says of the prelude.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PreludeEntry {
    /// Hash of the file of rotations.
    pub(super) rotations: String,
    /// How learning went.
    pub(super) learned: LearnedRotations,
}

/// How learning the rotations went, for the record of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LearnedRotations {
    /// The pass.
    pub(super) algo: String,
    /// The objective at first, over all windows.
    pub(super) initial: f64,
    /// The objective of what was kept.
    pub(super) reached: f64,
    /// Steps behind what was kept.
    pub(super) steps: usize,
    /// The objective on the windows of each step, before it.
    pub(super) curve: Vec<f64>,
}

/// The rotations by region: those that the journal has, or learned now.
pub(super) fn rotations(run: &Run<'_>, journal: &mut Journal, control: &Control<'_>) -> Result<BTreeMap<String, Arc<Turn>>> {
    let starts = starts(run)?;
    let path = journal.dir().join("rotations.safetensors");
    if let Some(entry) = journal.prelude() {
        if hash_file(&path)? != entry.rotations {
            return Err(Error::input("resume::damaged", format!("`{}` is not what the journal says was written", path.display()))
                .hint("start over with `--overwrite`"));
        }
    } else {
        let (matrices, learned) = learn(run, &starts, journal, control)?;
        let decl = |s: &Start| TensorDecl { name: s.region.clone(), dtype: StoredDtype::F64, shape: vec![s.size, s.size] };
        let bytes = |m: &Vec<f64>| m.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        write_shard(&path, starts.iter().zip(&matrices).map(|(s, m)| (decl(s), bytes(m))).collect())?;
        journal.finish_prelude(PreludeEntry { rotations: hash_file(&path)?, learned })?;
    }
    OnDisk::new(journal.dir()).remove()?;
    let file = SafetensorsSource::open_files(std::slice::from_ref(&path))?;
    let of = |s: &Start| {
        let bytes = file.read_bytes(&s.region)?;
        let matrix = bytes.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect();
        Ok((s.region.clone(), Arc::new(Turn::dense(s.size, matrix)?)))
    };
    starts.iter().map(of).collect()
}

/// Where each rotation that the plan wants learned starts.
fn starts(run: &Run<'_>) -> Result<Vec<Start>> {
    let steps = run.plan().rewrites.iter().filter_map(|step| match step {
        Rewrite::Rotate { region, rotation, learned: true } => Some((region, rotation)),
        _ => None,
    });
    steps
        .map(|(region, rotation)| {
            let (size, keeps_mean, matrix) = (rotation.size, rotation.keeps_mean, rotation.turn()?.matrix());
            Ok(Start { region: region.clone(), size, keeps_mean, matrix })
        })
        .collect()
}

/// The pass that learns them.
fn learner<'a>(run: &'a Run<'_>) -> Result<(usize, &'a dyn LearnRotations)> {
    let found = (0..run.plan().passes.len()).find_map(|pass| match run.algorithm(pass).stage() {
        Stage::ModelTransform(transform) => Some((pass, transform.learns()?)),
        _ => None,
    });
    found.ok_or_else(|| Error::internal("rotations are to be learned, and no pass learns any"))
}

fn learn(run: &Run<'_>, starts: &[Start], journal: &Journal, control: &Control<'_>) -> Result<(Vec<Vec<f64>>, LearnedRotations)> {
    let (pass, learner) = learner(run)?;
    let find = |id: &str| run.model().topology.regions.iter().find(|r| r.id == id);
    let regions: Vec<(&Region, usize)> = starts.iter().filter_map(|s| Some((find(&s.region)?, s.size))).collect();
    if regions.len() != starts.len() {
        return Err(Error::internal("a rotation is to be learned of a region that the model does not have"));
    }
    let (turned, sizes) = (Turned::new(&regions)?, starts.iter().map(|s| s.size).collect::<Vec<_>>());
    let (seed, store) = (run.plan().harness.seed, OnDisk::new(journal.dir()));
    let (done, total) = (store.steps()?, learner.steps());
    if done > 0 {
        control.report(Progress::RotationsResumed { done, total });
    }
    let reported = |of| Reported { of, done: AtomicUsize::new(done), total, control };
    let result = match learner.objective() {
        Objective::Network { weights } => {
            let stream = regions.iter().position(|(r, _)| r.space == Space::Residual);
            // Of its own, as nobody needs what spills there once this is done.
            let dir = journal.dir().join("prelude");
            std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, "create", e))?;
            let network = Network::new(run, (turned, sizes, stream), weights, dir.clone(), control)?;
            let learned = learner.learn(&RotationsContext { starts, training: &reported(&network), store: &store, seed });
            std::fs::remove_dir_all(&dir).map_err(|e| Error::io(&dir, "remove", e))?;
            learned
        }
        Objective::Reconstruction => {
            let weights = Reconstruction::new(run, (turned, sizes), control);
            learner.learn(&RotationsContext { starts, training: &reported(&weights), store: &store, seed })
        }
    };
    let algo = run.plan().passes[pass].algo.clone();
    let (mut matrices, Learning { initial, reached, steps, curve }) = result.map_err(|e| e.within(format!("`{algo}`")))?;
    if matrices.len() != starts.len() || matrices.iter().zip(starts).any(|(m, s)| m.len() != s.size * s.size) {
        return Err(Error::new(
            crate::error::ErrorKind::Plugin,
            "plugin::contract",
            format!("`{algo}` returned other rotations than it was asked for"),
        ));
    }
    matrices.iter_mut().zip(starts).try_for_each(|(m, s)| orthogonalize(m, s))?;
    Ok((matrices, LearnedRotations { algo, initial, reached, steps, curve }))
}

/// An objective that tells of each step.
struct Reported<'a> {
    of: &'a dyn Training,
    done: AtomicUsize,
    total: usize,
    control: &'a Control<'a>,
}

impl Training for Reported<'_> {
    fn windows(&self) -> usize {
        self.of.windows()
    }

    fn loss(&self, windows: &[usize], rotations: Vec<Vec<f32>>) -> Result<f64> {
        self.of.loss(windows, rotations)
    }

    fn gradients(&self, windows: &[usize], rotations: Vec<Vec<f32>>) -> Result<(f64, Vec<Vec<f32>>)> {
        let (loss, gradients) = self.of.gradients(windows, rotations)?;
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.control.report(Progress::Rotations { done, total: self.total, loss });
        Ok((loss, gradients))
    }
}

/// Makes a matrix that is nearly orthogonal exactly so, by Newton's iteration for the orthogonal factor: `X ← X·(3 − XᵀX)/2`.
fn orthogonalize(x: &mut [f64], start: &Start) -> Result<()> {
    let n = start.size;
    for _ in 0..8 {
        let mut square = vec![0.0; n * n];
        gemm((n, n, n), Onto::Replace, &mut square, n, x, Transpose::Yes, n, x, Transpose::No, n);
        let gap = square.iter().enumerate().map(|(i, s)| (s - if i / n == i % n { 1.0 } else { 0.0 }).abs()).fold(0.0, f64::max);
        if gap.is_nan() || gap > 0.1 {
            return Err(Error::numeric(
                "topology::not-orthogonal",
                format!("what was learned for `{}` is no rotation: {gap:.1e} away", start.region),
            )
            .hint("take smaller steps"));
        }
        if gap < 1e-13 * n as f64 {
            break;
        }
        square.iter_mut().enumerate().for_each(|(i, s)| *s = if i / n == i % n { 1.5 - 0.5 * *s } else { -0.5 * *s });
        let old = x.to_vec();
        gemm((n, n, n), Onto::Replace, x, n, &old, Transpose::No, n, &square, Transpose::No, n);
    }
    let moved = x.chunks_exact(n).map(|row| (row.iter().sum::<f64>() - 1.0).abs()).fold(0.0, f64::max);
    if start.keeps_mean && (moved.is_nan() || moved > 1e-9) {
        return Err(Error::numeric(
            "topology::moves-mean",
            format!("what was learned for `{}` moves the mean by {moved:.1e}", start.region),
        )
        .hint("the model has LayerNorm; a method that learns has to keep `R·1 = 1` where it is asked to"));
    }
    Ok(())
}

impl Values {
    /// A parameter of a block.
    pub(super) fn of(weights: &MapWeights, site: SiteId, part: Part) -> Result<Self> {
        let columns = weights.find(site, part).and_then(|t| t.dims().get(1).copied()).unwrap_or(1);
        Ok(Self { values: values(weights, site, part)?, columns })
    }
}

/// A block whose parameters are turned.
fn turned_block(run: &Run<'_>, b: u32, base: &MapWeights, turned: &Turned, rotations: &[Vec<f32>]) -> Result<MapWeights> {
    let mut weights = base.clone();
    let params: Vec<_> = run.model().topology.block_params(b).filter(|p| turned.touches(p.site, p.part)).collect();
    let new = params.par_iter().map(|p| {
        let v = turned.forward((p.site, p.part), Values::of(base, p.site, p.part)?, rotations);
        Ok((p.site, p.part, Tensor::from_vec(v.values, &p.shape[..], &Device::Cpu)?))
    });
    for (site, part, tensor) in new.collect::<Result<Vec<_>>>()? {
        weights.insert(site, part, tensor);
    }
    Ok(weights)
}

/// A weight, rounded to nearest.
fn rounded(job: &Job<'_>, weight: &[f32]) -> Result<Vec<f32>> {
    let amax = weight.iter().fold(0.0, |m: f32, w| m.max(w.abs()));
    let layout = job.spec.granularity.layout(job.linear.shape.0, job.linear.shape.1);
    let params = observer::fit(job.observer, &ScaleRule::of(job.spec, amax), weight, layout)?;
    Ok(nearest_values(&job.spec.grid, &params, weight))
}
