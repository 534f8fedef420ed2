//! Over how many devices the layers of a model can be split.
//!
//! Queries, keys, values, gate and up are split by outputs, the output of attention and down by inputs. A size `t` is allowed if it divides
//! the heads, divides the key heads or is a multiple of them (they are then repeated), and leaves each device whole groups, whole blocks and
//! whole words of codes. Embedding and head are padded, and do not count. Source: vLLM 0.32, `model_executor/layers/linear.py` and
//! `quantization/compressed_tensors/schemes/compressed_tensors_wNa16.py`.

use crate::plan::{Plan, PlannedSite};
use crate::scheme::{Extent, Grid};

/// Most devices that are looked at.
const MOST: usize = 64;

/// Every allowed size, or nothing where the roles are unknown.
pub(super) fn sizes(plan: &Plan, head_dim: usize) -> Option<Vec<usize>> {
    let rows = |role: &str| plan.sites.iter().find(|s| s.site.ends_with(role)).map(|s| s.shape.0);
    let heads = |n: usize| n.checked_div(head_dim);
    let (q, k) = match (rows(".attn.q"), rows(".attn.k"), rows(".attn.qkv")) {
        (Some(q), Some(k), _) => (heads(q)?, heads(k)?),
        (_, _, Some(qkv)) => (heads(qkv / 3)?, heads(qkv / 3)?),
        _ => return None,
    };
    let whole = |t: &usize| {
        let layers = plan.sites.iter().filter(|s| s.site.starts_with("blocks."));
        q.is_multiple_of(*t) && (k.is_multiple_of(*t) || t.is_multiple_of(k.max(1))) && layers.into_iter().all(|s| splits(s, *t))
    };
    Some((1..=MOST.min(q)).filter(whole).collect())
}

/// Whether `t` devices can each take a part of a layer.
fn splits(site: &PlannedSite, t: usize) -> bool {
    let by_inputs = site.site.ends_with(".attn.o") || site.site.ends_with(".mlp.down");
    let side = if by_inputs { site.shape.1 } else { site.shape.0 };
    if !side.is_multiple_of(t) {
        // Keys and values of fewer heads than devices are repeated.
        return !by_inputs && (site.site.ends_with(".attn.k") || site.site.ends_with(".attn.v"));
    }
    let Some(spec) = &site.weights else { return true };
    let extent = if by_inputs { spec.granularity.cols } else { spec.granularity.rows };
    let tile = match extent {
        Extent::Of(n) => n as usize,
        Extent::All => 1,
    };
    let word = if matches!(spec.grid, Grid::Int { .. }) { (32 / usize::from(spec.bits)).max(1) } else { 1 };
    t == 1 || (side / t).is_multiple_of(tile) && (side / t).is_multiple_of(word)
}
