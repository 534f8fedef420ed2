//! How much memory a run takes, by term, and what does not fit.
//!
//! `peak = base + 2 blocks (f32; half of one more as bf16, where products round to it) + streams + statistics + solver scratch + working windows`.

use std::fmt;

use super::resolved::{Plan, PlannedSite, Products, Propagate, Sequence};
use crate::algorithm::{Needs, Phase};
use crate::model::Dims;
use crate::statistic::StatKind;
use crate::topology::{ParamDecl, Topology};

/// Bytes by term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Budget {
    /// Code, allocator, tables, and what rounding the embedding takes.
    pub base: u64,
    /// The block under work: its weights as loaded, as they are replaced, and as they are laid out for products in bf16.
    pub blocks: u64,
    /// Hidden states of all windows, per stream kept in memory.
    pub streams: u64,
    /// Statistics of a wave, partial sums included.
    pub statistics: u64,
    /// Scratch of the solvers.
    pub scratch: u64,
    /// Activations of the windows in flight.
    pub windows: u64,
    /// Whether the streams go to disk to stay within the limit.
    pub spill: bool,
}

impl Budget {
    /// The terms of a plan run on `threads` threads under `limit` bytes.
    pub fn of(plan: &Plan, topology: &Topology, dims: &Dims, needs: &[Needs], threads: usize, limit: u64) -> Self {
        let largest_block = (0..topology.blocks)
            .map(|b| topology.block_params(b).map(|p| p.shape.iter().product::<usize>() as u64).sum::<u64>() * 4)
            .max()
            .unwrap_or(0);
        let (windows, length) = plan.calibration.as_ref().map_or((0, 0), |c| (c.samples as u64, c.seq_len as u64));
        // Statistics of rounded activations take the place of those of the others where nothing is rounded.
        let rounds = !plan.activations.is_empty();
        let mut kinds: Vec<_> = needs.iter().flat_map(|n| &n.inputs).collect();
        kinds.sort_unstable();
        kinds.dedup_by_key(|(kind, stream)| (*kind, if rounds { *stream } else { stream.fed_by() }));
        let matrices = kinds.len() as u64;
        let grams: Vec<u64> = topology.parallel_groups(0).iter().map(|g| (g[0].shape.1 as u64).pow(2) * 4 * matrices).collect();
        let paired = kinds.iter().any(|(kind, _)| *kind == StatKind::CrossGram);
        // Transforms look at all of a block before any of it is rounded.
        let layer_by_layer = plan.harness.sequence == Sequence::Layer && !plan.passes.iter().any(|p| p.phase == Phase::Transform);
        let at_once = if layer_by_layer { grams.iter().max().copied().unwrap_or(0) } else { grams.iter().sum::<u64>() };
        // Partial sums of the tree over windows: one per level, and one under construction per thread.
        let partial = u64::from(windows.max(1).ilog2() + 1) + threads as u64;
        let kept = if plan.harness.propagate == Propagate::Both { 2 } else { 1 };
        // A replay keeps what the module read and what it put out.
        let replay = if needs.iter().any(|n| n.replay) { 2 } else { 0 };
        // Training keeps what the block is to put out.
        let trains = needs.iter().any(|n| n.training.is_some());
        let stream = length * dims.hidden as u64 * 4;
        let streams = (kept + replay + u64::from(trains)) * windows * stream;
        // The prelude keeps what lies between all blocks, of its batch, and otherwise two streams of all windows; before anything else does.
        let batch = needs.iter().map(|n| n.network as u64).max().unwrap_or(0);
        let prelude = if batch > 0 { ((dims.blocks as u64 + 2) * batch).max(2 * windows) * stream } else { 0 };
        let streams = streams.max(prelude);
        // A pair of windows keeps what the first has at the ports of the block.
        let kept_tensors = if paired { dims.ffn + 3 * dims.hidden } else { 0 };
        // Forwards and backwards, with every product's input and the gradient of its result.
        let graph = if trains || batch > 0 { 9 * dims.ffn + 16 * dims.hidden } else { 0 };
        let widest = (3 * dims.ffn + 4 * dims.hidden + kept_tensors + graph) as u64;
        let in_flight = if windows == 0 { 0 } else { threads as u64 * (length * widest * 4 + 64 * length * 4) };
        // Sites are solved side by side, blocks are not.
        let side_by_side = |n: &Needs| if n.training.is_some() { 1 } else { (threads as u64).min(2) };
        let scratch = needs.iter().map(|n| n.scratch_bytes * side_by_side(n)).max().unwrap_or(0);
        // A tensor is rewritten in f64, with a copy for what is no sum of its own entries, before anything else happens to its block.
        let elements = |p: &ParamDecl| p.shape.iter().product::<usize>() as u64;
        let of_blocks = topology.params.iter().filter(|p| p.site.block.is_some()).map(elements);
        let rewriting = if plan.rewrites.is_empty() { 0 } else { 20 * of_blocks.max().unwrap_or(0) };
        // The head, its gradients' panels, logits of some tokens, and a block turned, rounded, laid out both ways, with gradients.
        let vocab = dims.vocab as u64;
        let network = 4 * (2 * vocab * dims.hidden as u64 + threads as u64 * 3 * 64 * vocab) + 4 * largest_block;
        let mut budget = Self {
            base: (60 << 20) + plan.sites.iter().filter(|s| s.is_embedding()).filter_map(embedding).sum::<u64>(),
            blocks: 2 * largest_block + if plan.harness.products == Products::Bf16 { largest_block / 2 } else { 0 },
            streams,
            statistics: at_once * partial.max(1),
            scratch: scratch.max(rewriting).max(if batch > 0 { network } else { 0 }),
            windows: in_flight,
            spill: false,
        };
        if budget.total() > limit {
            budget.spill = true;
        }
        budget
    }

    /// Their sum; streams on disk do not count.
    pub fn total(&self) -> u64 {
        self.base + self.blocks + if self.spill { 0 } else { self.streams } + self.statistics + self.scratch + self.windows
    }
}

/// What rounding an embedding takes: its codes, and the floats and their decoded values of a chunk, which is all of it where all rows
/// share a scale.
fn embedding(site: &PlannedSite) -> Option<u64> {
    let ((rows, cols), spec) = (site.shape, site.weights.as_ref()?);
    let layout = spec.granularity.layout(rows, cols);
    let chunk = layout.tile_rows.max(1024).min(rows);
    Some((rows * cols * usize::from(spec.bits).div_ceil(8) + 8 * chunk * cols) as u64 + 8 * layout.tiles() as u64)
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(f, "{:.0} MiB = base {:.0} + blocks {:.0}", mib(self.total()), mib(self.base), mib(self.blocks))?;
        if self.spill {
            write!(f, " + streams on disk ({:.0})", mib(self.streams))?;
        } else {
            write!(f, " + streams {:.0}", mib(self.streams))?;
        }
        write!(f, " + statistics {:.0} + solver {:.0} + windows {:.0}", mib(self.statistics), mib(self.scratch), mib(self.windows))
    }
}
