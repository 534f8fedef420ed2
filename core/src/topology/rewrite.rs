//! Rewriting a whole model, parameter by parameter: other weights, the same function.
//!
//! ```text
//! fold      norm(x)⊙γ + β, then W, b   =   norm(x), then W·diag(γ), b + W·β
//! centre    v ↦ v − mean(v) for every vector v written to the residual stream: LayerNorm of the stream is then RMSNorm
//! rotate    v ↦ v·R for every vector over the channels of a region: writers, readers and companions alike, as R⁻ᵀ = R
//! online    v ↦ v·R for the inputs of the readers of a place, at which the forward pass turns the activations by R;
//!           where R is larger than what is read, both get zeros at the end first
//! multiply  nothing yet: the forward pass multiplies by a vector that is one until a region is scaled by it
//! ```
//!
//! What happens to one parameter needs at most the norm it reads and the weight beside a bias, so tensors are rewritten as they are
//! loaded, one at a time, and no more of the model is ever held than without. All arithmetic is f64.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Axis, OnlineRotation, OnlineStep, Part, Place, Region, Role, Rotation, SiteId, Slot, Space, Tie, Topology, Turn};
use crate::error::{Error, Result};

/// One step of rewriting a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Rewrite {
    /// Norms before the linears of blocks and the head lose their weights and biases to those who read them.
    FoldNorms,
    /// What is written to the residual stream has no mean over the channels.
    CenterResidual,
    /// The channels of a region are rotated.
    Rotate {
        /// The region.
        region: String,
        /// By what; of one head, where the region has heads.
        rotation: Rotation,
        /// Whether that is only where learning starts.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        learned: bool,
    },
    /// Activations are rotated while the model runs, and what reads them undoes it.
    Online(OnlineRotation),
    /// Activations are multiplied by a vector while the model runs: by one, until a scaling is found that what reads them undoes.
    Multiply(Place),
}

impl From<OnlineStep> for Rewrite {
    fn from(step: OnlineStep) -> Self {
        match step {
            OnlineStep::Rotation(rotation) => Self::Online(rotation),
            OnlineStep::Multiplier(place) => Self::Multiply(place),
        }
    }
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FoldNorms => f.write_str("norms folded into their readers"),
            Self::CenterResidual => f.write_str("residual stream centred"),
            Self::Rotate { region, rotation, learned: false } => write!(f, "{region} rotated by {rotation}"),
            Self::Rotate { region, rotation, learned: true } => write!(f, "{region} rotated by what is learned from {rotation}"),
            Self::Online(OnlineRotation { place, rotation, padded_from: None }) => write!(f, "{place} rotated online by {rotation}"),
            Self::Online(OnlineRotation { place, rotation, padded_from: Some(n) }) => {
                write!(f, "{place} padded from {n} and rotated online by {rotation}")
            }
            Self::Multiply(place) => write!(f, "{place} multiplied online by a factor for each channel"),
        }
    }
}

/// What is done to one parameter.
#[derive(Clone)]
enum Change {
    /// `W·diag(γ)`
    Fold(SiteId),
    /// `b + W·β`, with the stored `W` beside the bias.
    Absorb(SiteId),
    /// A norm's weight becomes one.
    Unit,
    /// A norm's bias becomes zero.
    Zero,
    /// A norm's bias becomes `β/γ`: a reader has no bias that could take it.
    Keep(SiteId),
    /// Minus the mean along the axis.
    Center(Axis),
    /// As many columns, those added of zeros.
    Pad(usize),
    /// Turned along the axis, in a range of it.
    Turn(Axis, Option<Range<usize>>, Arc<Turn>),
}

/// The changes of every parameter.
#[derive(Clone, Default)]
pub struct Rewriting {
    changes: BTreeMap<(SiteId, Part), Vec<Change>>,
    shapes: BTreeMap<(SiteId, Part), Vec<usize>>,
}

/// Finds parameters as they are stored, in f64.
pub type Fetch<'a> = &'a dyn Fn(SiteId, Part) -> Result<Vec<f64>>;

impl Rewriting {
    /// The changes that `steps` make, in order.
    ///
    /// # Errors
    /// If a step would change the function of the model, or cannot be done.
    pub fn new(topology: &Topology, steps: &[Rewrite]) -> Result<Self> {
        Self::learned(topology, steps, &BTreeMap::new())
    }

    /// As [`Self::new`], with rotations of regions that have been learned.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn learned(topology: &Topology, steps: &[Rewrite], turns: &BTreeMap<String, Arc<Turn>>) -> Result<Self> {
        let shapes = topology.params.iter().map(|p| ((p.site, p.part), p.shape.clone())).collect();
        let mut this = Self { changes: BTreeMap::new(), shapes };
        let (mut folded, mut places) = (false, BTreeSet::new());
        for step in steps {
            match step {
                Rewrite::FoldNorms if folded => {}
                Rewrite::FoldNorms => {
                    if !this.changes.is_empty() && !steps.starts_with(&[Rewrite::CenterResidual]) {
                        return Err(Error::internal("norms are folded before anything is rotated"));
                    }
                    this.fold(topology)?;
                    folded = true;
                }
                Rewrite::CenterResidual => this.center(topology)?,
                Rewrite::Rotate { region: id, rotation, learned } => {
                    let turn = match turns.get(id).filter(|turn| *learned && turn.size() == rotation.size) {
                        Some(turn) => Arc::clone(turn),
                        None => Arc::new(rotation.turn()?),
                    };
                    let here = |s: &&Rewrite| matches!(s, Rewrite::Rotate { region, .. } if region == id);
                    if *learned && steps.iter().filter(here).count() > 1 {
                        let message = format!("`{id}` is rotated by what is learned, and rotated again");
                        return Err(Error::plan("topology::rotated-twice", message).hint("leave one of the rotations out"));
                    }
                    let found = topology.regions.iter().find(|r| r.id == *id);
                    let region = found.ok_or_else(|| Error::internal(format!("`{id}` is no region of this model")))?;
                    allowed(region, rotation)?;
                    if region.space == Space::Residual && !folded {
                        return Err(Error::plan(
                            "topology::norms-not-folded",
                            "the residual stream cannot be rotated: its norms have weights",
                        )
                        .hint("fold the norms into their readers first"));
                    }
                    this.rotate(region, &turn);
                }
                Rewrite::Online(online) => {
                    if !places.insert(online.place) {
                        let message = format!("`{}` would be rotated twice while the model runs", online.place);
                        return Err(Error::plan("topology::online-twice", message).hint("leave one of the rotations out"));
                    }
                    this.online(topology, online)?;
                }
                Rewrite::Multiply(_) => {}
            }
        }
        Ok(this)
    }

    fn push(&mut self, site: SiteId, part: Part, change: Change) {
        self.changes.entry((site, part)).or_default().push(change);
    }

    fn fold(&mut self, topology: &Topology) -> Result<()> {
        for region in topology.norm_regions() {
            let Some(norm) = region.producers.iter().find(|s| s.part == Part::Weight).map(|s| s.site) else { continue };
            if region.space == Space::HeadIn && topology.tied_head {
                let message = format!("`{norm}` cannot be folded into `{}`: it is the embedding's own tensor", Role::Head);
                return Err(Error::plan("topology::tied-head", message).hint("untie the head first"));
            }
            let biased = topology.param(norm, Part::Bias).is_some();
            let absorbed = region.consumers.iter().all(|s| topology.param(s.site, Part::Bias).is_some());
            for reader in &region.consumers {
                self.push(reader.site, Part::Weight, Change::Fold(norm));
                if biased && absorbed {
                    self.push(reader.site, Part::Bias, Change::Absorb(norm));
                }
            }
            self.push(norm, Part::Weight, Change::Unit);
            if biased {
                self.push(norm, Part::Bias, if absorbed { Change::Zero } else { Change::Keep(norm) });
            }
        }
        Ok(())
    }

    fn center(&mut self, topology: &Topology) -> Result<()> {
        if !topology.layer_norm {
            return Err(Error::plan(
                "topology::no-layer-norm",
                "the residual stream cannot be centred: the model's norms do not subtract the mean",
            )
            .hint("only models with LayerNorm compute the same afterwards; leave the pass out"));
        }
        let residual = topology.regions.iter().find(|r| r.space == Space::Residual);
        let residual = residual.ok_or_else(|| Error::internal("the topology has no residual stream"))?;
        for slot in &residual.producers {
            self.push(slot.site, slot.part, Change::Center(slot.axis));
        }
        Ok(())
    }

    fn rotate(&mut self, region: &Region, turn: &Arc<Turn>) {
        for Slot { site, part, axis, range } in region.producers.iter().chain(&region.consumers).chain(&region.companions) {
            self.push(*site, *part, Change::Turn(*axis, range.clone(), Arc::clone(turn)));
        }
    }

    fn online(&mut self, topology: &Topology, online: &OnlineRotation) -> Result<()> {
        let turn = Arc::new(online.rotation.turn()?);
        for linear in online.readers(topology)? {
            if online.padded_from.is_some() {
                self.push(linear.site, Part::Weight, Change::Pad(online.rotation.size));
            }
            self.push(linear.site, Part::Weight, Change::Turn(Axis::Columns, None, Arc::clone(&turn)));
        }
        Ok(())
    }

    /// Whether a parameter changes.
    pub fn touches(&self, site: SiteId, part: Part) -> bool {
        self.changes.contains_key(&(site, part))
    }

    /// Whether a row of a changed matrix can be computed from that row alone.
    pub fn by_row(&self, site: SiteId, part: Part) -> bool {
        let vector = self.shapes.get(&(site, part)).is_none_or(|s| s.len() < 2);
        let along_rows = |c: &Change| matches!(c, Change::Center(Axis::Rows) | Change::Turn(Axis::Rows, ..));
        !vector && !self.changes.get(&(site, part)).is_some_and(|changes| changes.iter().any(along_rows))
    }

    /// Makes `values` what the parameter becomes: all of it in the layout of the forward pass, or some rows, if it can be computed
    /// [by row](Self::by_row). Rows may become longer. `fetch` finds other parameters as they are stored.
    ///
    /// # Errors
    /// If a norm's bias has to stay where its weight is zero, or what `fetch` returns.
    pub fn apply(&self, site: SiteId, part: Part, values: &mut Vec<f64>, fetch: Fetch<'_>) -> Result<()> {
        let Some(changes) = self.changes.get(&(site, part)) else { return Ok(()) };
        let mut columns = match self.shapes.get(&(site, part)).map(Vec::as_slice) {
            Some([_, columns]) => *columns,
            _ => 1,
        };
        for change in changes {
            match change {
                Change::Fold(norm) => {
                    let gamma = fetch(*norm, Part::Weight)?;
                    values.par_chunks_mut(columns).for_each(|row| row.iter_mut().zip(&gamma).for_each(|(w, g)| *w *= g));
                }
                Change::Absorb(norm) => {
                    let (beta, weight) = (fetch(*norm, Part::Bias)?, fetch(site, Part::Weight)?);
                    let rows = weight.chunks_exact(beta.len());
                    values.iter_mut().zip(rows).for_each(|(b, row)| *b += row.iter().zip(&beta).map(|(w, b)| w * b).sum::<f64>());
                }
                Change::Unit => values.fill(1.0),
                Change::Zero => values.fill(0.0),
                Change::Keep(norm) => {
                    let gamma = fetch(*norm, Part::Weight)?;
                    if let Some(i) = gamma.iter().position(|g| *g == 0.0) {
                        let message = format!(
                            "`{norm}` cannot be folded: its weight is zero at channel {i}, and its readers have no bias to take its own"
                        );
                        return Err(Error::numeric("topology::fold", message));
                    }
                    values.iter_mut().zip(&gamma).for_each(|(b, g)| *b /= g);
                }
                Change::Center(Axis::Columns) => values.par_chunks_mut(columns).for_each(|row| {
                    let mean = row.iter().sum::<f64>() / columns as f64;
                    row.iter_mut().for_each(|x| *x -= mean);
                }),
                Change::Center(Axis::Rows) => {
                    let mut means = vec![0.0; columns];
                    values.chunks_exact(columns).for_each(|row| means.iter_mut().zip(row).for_each(|(m, x)| *m += x));
                    let n = (values.len() / columns) as f64;
                    values.par_chunks_mut(columns).for_each(|row| row.iter_mut().zip(&means).for_each(|(x, m)| *x -= m / n));
                }
                Change::Pad(size) => {
                    let zeros = vec![0.0; size - columns];
                    *values = values.chunks_exact(columns).flat_map(|row| row.iter().chain(&zeros)).copied().collect();
                    columns = *size;
                }
                Change::Turn(Axis::Columns, None, turn) => turn.rows(values),
                Change::Turn(Axis::Columns, Some(range), turn) => {
                    for row in values.chunks_exact_mut(columns) {
                        turn.rows(&mut row[range.clone()]);
                    }
                }
                Change::Turn(Axis::Rows, range, turn) => {
                    let range = range.clone().unwrap_or(0..values.len() / columns);
                    let part = &mut values[range.start * columns..range.end * columns];
                    part.chunks_exact_mut(turn.size() * columns).for_each(|head| turn.columns(head, columns));
                }
            }
        }
        Ok(())
    }
}

/// Refuses a rotation that would change what the model computes.
fn allowed(region: &Region, rotation: &Rotation) -> Result<()> {
    let bad = |message: String| Error::plan("topology::not-allowed", message);
    let expected = match region.allows.orthogonal {
        Tie::Never | Tie::PerRopePair { .. } => {
            return Err(bad(format!("`{}` does not allow a rotation: it would change what the model computes", region.id)));
        }
        Tie::PerKvHead { width, .. } => width,
        Tie::Free | Tie::KeepsMean => region.width,
    };
    if rotation.size != expected {
        return Err(bad(format!("`{}`: a rotation of {} where one of {expected} is needed", region.id, rotation.size)));
    }
    if region.allows.orthogonal == Tie::KeepsMean && !rotation.keeps_mean {
        return Err(bad(format!("`{}`: a rotation that moves the mean of the channels", region.id))
            .hint("the model has LayerNorm, which subtracts the mean: choose R with R·1 = 1"));
    }
    Ok(())
}
