//! The rows of the check: what has to hold and what has to break.

use candle_core::Tensor;

use super::draw::{Draws, random_weights};
use super::run::{Online, RmsForLayerNorm, logits};
use super::{CheckRow, CheckTable, Must};
use crate::error::{Error, Result};
use crate::model::{Architecture, Dims, MapWeights, Nothing, Tap};
use crate::topology::apply::{apply, apply_unchecked};
use crate::topology::symmetry::host;
use crate::topology::{Allows, Axis, Kind, Part, PortName, Region, Role, SiteId, Slot, Space, Symmetry, Tie, Topology};
use crate::topology::{assume_rms_norms, center_writers, fold_norms, untie};

pub(super) fn all(architecture: &dyn Architecture, dims: Dims, seed: u64) -> Result<CheckTable> {
    let mut topology = architecture.topology(&dims);
    let tied = topology.tied_head;
    let mut weights = random_weights(&topology, seed)?;
    untie(&mut topology, &mut weights);
    let mut draws = Draws::new(seed, "token ids");
    let ids: Vec<u32> = (0..dims.max_positions.min(16)).map(|_| draws.below(dims.vocab) as u32).collect();
    let expected = host(&logits(architecture, &dims, &weights, &ids, &mut Nothing)?)?;
    let mut folded = weights.clone();
    fold_norms(&topology, &mut folded)?;
    let mut check = Check { architecture, dims, topology, ids, weights, folded, expected, seed, rows: Vec::new() };
    check.norms(tied)?;
    check.residual()?;
    if check.topology.layer_norm {
        check.rms()?;
    }
    for space in [Space::AttnIn, Space::MlpIn, Space::HeadIn, Space::Values, Space::Heads, Space::MlpHidden] {
        check.space(space)?;
    }
    check.forgotten_companions()?;
    check.gate()?;
    check.query_order()?;
    check.head_norms()?;
    check.online()?;
    Ok(CheckTable { rows: check.rows })
}

struct Check<'a> {
    architecture: &'a dyn Architecture,
    dims: Dims,
    /// With a head of its own.
    topology: Topology,
    ids: Vec<u32>,
    weights: MapWeights,
    /// The same with norms folded.
    folded: MapWeights,
    /// Logits of the unchanged model.
    expected: Vec<f64>,
    seed: u64,
    rows: Vec<CheckRow>,
}

impl Check<'_> {
    fn draws(&self, purpose: &str) -> Draws {
        Draws::new(self.seed, purpose)
    }

    fn row(&mut self, region: &str, action: &str, must: Must, weights: &MapWeights, tap: &mut dyn Tap) -> Result<()> {
        let run = logits(self.architecture, &self.dims, weights, &self.ids, tap);
        let got = host(&run.map_err(|e| e.within(format_args!("{region}, {action}")))?)?;
        let largest = self.expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        // A NaN has to survive the maximum.
        let change = got.iter().zip(&self.expected).map(|(g, e)| (g - e).abs()).fold(0.0f64, |m, x| if m >= x { m } else { x });
        self.rows.push(CheckRow::new(region, action, must, change / largest));
        Ok(())
    }

    /// The first region of a space.
    fn first(&self, space: Space) -> Option<Region> {
        self.topology.regions.iter().find(|r| r.space == space).cloned()
    }

    /// The weights with a symmetry fused in, allowed or not.
    fn forced(&self, symmetry: &Symmetry, region: &Region, weights: &MapWeights) -> Result<MapWeights> {
        let mut changed = weights.clone();
        apply_unchecked(symmetry, region, &mut changed)?;
        Ok(changed)
    }

    fn norms(&mut self, tied: bool) -> Result<()> {
        let folded = self.folded.clone();
        self.row("norms", "fold into their readers", Must::Hold, &folded, &mut Nothing)?;
        if tied {
            let mut shared = folded;
            if let Some(head) = shared.find(SiteId::global(Role::Head), Part::Weight).cloned() {
                shared.insert(SiteId::global(Role::Embed), Part::Weight, head);
            }
            self.row("norms", "fold, the head still the embedding", Must::Break, &shared, &mut Nothing)?;
        }
        Ok(())
    }

    fn residual(&mut self) -> Result<()> {
        let region = self.first(Space::Residual).ok_or_else(|| Error::internal("the topology has no residual stream"))?;
        let folded = self.folded.clone();
        let tie = region.allows.orthogonal;
        let mut draws = self.draws("residual");
        let Some(r1) = draws.symmetry(Kind::Orthogonal, tie, &region)? else { return Ok(()) };
        let name = if tie == Tie::KeepsMean { "rotate with R·1 = 1 (R1)" } else { "rotate (R1)" };
        let mut rotated = folded.clone();
        apply(&r1, &region, &self.topology, &mut rotated)?;
        self.row("residual", &format!("{name}, norms folded"), Must::Hold, &rotated, &mut Nothing)?;
        let unfolded = self.forced(&r1, &region, &self.weights)?;
        self.row("residual", &format!("{name}, norms not folded"), Must::Break, &unfolded, &mut Nothing)?;
        for (role, without) in without_each(&region) {
            let changed = self.forced(&r1, &without, &folded)?;
            self.row("residual", &format!("{name}, forgetting {role}"), Must::Break, &changed, &mut Nothing)?;
        }
        if tie == Tie::KeepsMean
            && let Some(free) = draws.symmetry(Kind::Orthogonal, Tie::Free, &region)?
        {
            let changed = self.forced(&free, &region, &folded)?;
            self.row("residual", "rotate freely, LayerNorm", Must::Break, &changed, &mut Nothing)?;
        }
        for kind in [Kind::Diagonal, Kind::Permutation] {
            self.one(&region, kind)?;
        }
        Ok(())
    }

    /// LayerNorm models: the same rotations behind RMSNorm.
    fn rms(&mut self) -> Result<()> {
        let region = self.first(Space::Residual).ok_or_else(|| Error::internal("the topology has no residual stream"))?;
        let eps = self.dims.norm_eps;
        let mut centred = self.folded.clone();
        center_writers(&self.topology, &mut centred)?;
        self.row("residual", "centre the writers, LayerNorm", Must::Hold, &centred, &mut Nothing)?;
        self.row("residual", "centre the writers, LayerNorm → RMSNorm", Must::Hold, &centred, &mut RmsForLayerNorm::new(eps, &centred))?;
        let plain = self.folded.clone();
        self.row("residual", "writers not centred, LayerNorm → RMSNorm", Must::Break, &plain, &mut RmsForLayerNorm::new(eps, &plain))?;
        let r1 = Symmetry::Orthogonal(self.draws("rms").rotation(region.width)?);
        let mut topology = self.topology.clone();
        assume_rms_norms(&mut topology);
        let free = topology.regions.iter().find(|r| r.space == Space::Residual).unwrap_or(&region);
        let mut rotated = centred.clone();
        apply(&r1, free, &topology, &mut rotated)?;
        self.row("residual", "centre, rotate freely (R1), RMSNorm", Must::Hold, &rotated, &mut RmsForLayerNorm::new(eps, &rotated))?;
        for (role, without) in without_each(&region) {
            let changed = self.forced(&r1, &without, &centred)?;
            let action = format!("centre, rotate (R1), RMSNorm, forgetting {role}");
            self.row("residual", &action, Must::Break, &changed, &mut RmsForLayerNorm::new(eps, &changed))?;
        }
        Ok(())
    }

    /// Every kind of symmetry in the regions of one space.
    fn space(&mut self, space: Space) -> Result<()> {
        let Some(first) = self.first(space) else { return Ok(()) };
        for kind in Kind::ALL {
            self.one(&first, kind)?;
        }
        Ok(())
    }

    /// One kind in the regions like `first`: an allowed one in all of them at once, one beyond what is allowed in `first` alone.
    fn one(&mut self, first: &Region, kind: Kind) -> Result<()> {
        let action = name(first.space, kind);
        let mut held = self.weights.clone();
        let mut any = false;
        for region in self.topology.regions.iter().filter(|r| r.space == first.space) {
            if let Some(symmetry) = self.draws(&format!("{} {kind}", region.id)).symmetry(kind, region.tie(kind), region)? {
                apply(&symmetry, region, &self.topology, &mut held)?;
                any = true;
            }
        }
        if any {
            let id = match first.block {
                Some(b) => first.id.replacen(&format!("blocks.{b}."), "blocks.*.", 1),
                None => first.id.clone(),
            };
            self.row(&id, action, Must::Hold, &held, &mut Nothing)?;
        }
        if let Some((beyond, symmetry)) = self.beyond(first, kind)? {
            let changed = self.forced(&symmetry, first, &self.weights)?;
            self.row(&first.id, &format!("{action}{beyond}"), Must::Break, &changed, &mut Nothing)?;
        }
        Ok(())
    }

    /// A symmetry of that kind just beyond what `region` allows, and how it is; `None` where everything is allowed.
    fn beyond(&self, region: &Region, kind: Kind) -> Result<Option<(&'static str, Symmetry)>> {
        let mut draws = self.draws(&format!("{} {kind} beyond", region.id));
        let (width, repeat) = region.heads();
        let several = region.width > width;
        let (text, tie) = match (kind, region.tie(kind)) {
            (_, Tie::Never) if several => ("", Tie::PerKvHead { width, repeat }),
            (_, Tie::Never) => ("", Tie::Free),
            (Kind::Diagonal, Tie::PerRopePair { rotated, .. }) if rotated > 0 => (", rope pairs not tied", Tie::Free),
            (Kind::Permutation, Tie::PerKvHead { .. }) if several => (" across heads", Tie::Free),
            (Kind::Orthogonal, Tie::PerKvHead { .. }) if several && repeat == 1 => (" across heads", Tie::Free),
            _ => return Ok(None),
        };
        if kind == Kind::Permutation {
            // A shift by one: among few channels a random permutation is too often an allowed one.
            let n = if tie == Tie::Free { region.width } else { width };
            let shift = (0..region.width).map(|i| (i / n * n + (i + 1) % n) as u32).collect();
            return Ok(Some((text, Symmetry::Permutation(shift))));
        }
        Ok(draws.symmetry(kind, tie, region)?.map(|symmetry| (text, symmetry)))
    }

    /// A permutation that the gate does not follow.
    fn forgotten_companions(&mut self) -> Result<()> {
        let Some(mut region) = self.first(Space::MlpHidden).filter(|r| !r.companions.is_empty()) else { return Ok(()) };
        region.companions.clear();
        let drawn = self.draws("forgotten companions").symmetry(Kind::Permutation, Tie::Free, &region)?;
        let Some(permutation) = drawn else { return Ok(()) };
        let changed = self.forced(&permutation, &region, &self.weights)?;
        self.row(&region.id, "permute, forgetting the gate", Must::Break, &changed, &mut Nothing)
    }

    /// A scaling of the gate, behind which the non-linearity stands.
    fn gate(&mut self) -> Result<()> {
        let Some(mut region) = self.first(Space::MlpHidden).filter(|r| !r.companions.is_empty()) else { return Ok(()) };
        region.producers = std::mem::take(&mut region.companions);
        let Some(scaling) = self.draws("gate").symmetry(Kind::Diagonal, Tie::Free, &region)? else { return Ok(()) };
        let changed = self.forced(&scaling, &region, &self.weights)?;
        self.row(&region.id, "scale gate → down", Must::Break, &changed, &mut Nothing)
    }

    /// Grouped keys and values, with the query heads taken to share them in the other order: head `h` with `h mod kv`.
    fn query_order(&mut self) -> Result<()> {
        let Some(mut region) = self.first(Space::Values) else { return Ok(()) };
        let (width, repeat) = region.heads();
        let kv = region.width / width;
        if repeat == 1 || kv == 1 {
            return Ok(());
        }
        let Some(Symmetry::Diagonal(s)) = self.draws("query order").symmetry(Kind::Diagonal, Tie::Free, &region)? else { return Ok(()) };
        let spread: Vec<f64> = (0..kv * repeat * width).map(|i| 1.0 / s[i / width % kv * width + i % width]).collect();
        let readers = std::mem::take(&mut region.consumers);
        let changed = self.forced(&Symmetry::Diagonal(s), &region, &self.weights)?;
        let allows = Allows { diagonal: Tie::Free, permutation: Tie::Never, orthogonal: Tie::Never };
        let queries = Region { width: kv * repeat * width, producers: readers, allows, ..region.clone() };
        let changed = self.forced(&Symmetry::Diagonal(spread), &queries, &changed)?;
        self.row(&region.id, "scale v → o, query heads in the other order", Must::Break, &changed, &mut Nothing)
    }

    /// Where norms stand on the heads of q and k, a scaling of the projections before them.
    fn head_norms(&mut self) -> Result<()> {
        let Some(mut region) = self.first(Space::Heads) else { return Ok(()) };
        let block = region.block.unwrap_or(0);
        let at = |role| SiteId::in_block(block, role);
        if self.topology.param(at(Role::AttnKNorm), Part::Weight).is_none() {
            return Ok(());
        }
        let rows = |role| {
            let slot = |part| Slot { site: at(role), part, axis: Axis::Rows, range: None };
            vec![slot(Part::Weight), slot(Part::Bias)]
        };
        let (width, repeat) = (self.dims.head_dim, self.dims.heads / self.dims.kv_heads);
        region.width = self.dims.kv_heads * width;
        (region.producers, region.consumers) = (rows(Role::AttnK), rows(Role::AttnQ));
        let rotated = self.dims.rope.as_ref().map_or(0, |rope| rope.dim);
        region.allows.diagonal = Tie::PerRopePair { width, repeat, rotated };
        let Some(scaling) = self.draws("head norms").symmetry(Kind::Diagonal, region.allows.diagonal, &region)? else { return Ok(()) };
        let changed = self.forced(&scaling, &region, &self.weights)?;
        self.row(&region.id, "scale k → q before the norms on their heads", Must::Break, &changed, &mut Nothing)
    }

    /// R3 and R4: rotations by a tap, on both sides of a product or with the inverse in the weights that follow.
    fn online(&mut self) -> Result<()> {
        let weights = self.weights.clone();
        let rotation = self.draws("R3").rotation(self.dims.head_dim)?;
        let online = |ports: &[PortName], rotation: &Tensor| Online { ports: ports.to_vec(), rotation: rotation.clone() };
        let (q, k) = (PortName::QRope, PortName::KRope);
        self.row("blocks.*.heads", "rotate q and k online (R3)", Must::Hold, &weights, &mut online(&[q, k], &rotation))?;
        self.row("blocks.*.heads", "rotate k online, q not", Must::Break, &weights, &mut online(&[k], &rotation))?;
        let rotation = self.draws("R4").rotation(self.dims.ffn)?;
        let r4 = Symmetry::Orthogonal(rotation.clone());
        let mut fused = weights.clone();
        for region in self.topology.regions.iter().filter(|r| r.space == Space::MlpHidden) {
            let reader = Region { producers: Vec::new(), companions: Vec::new(), ..region.clone() };
            apply_unchecked(&r4, &reader, &mut fused)?;
        }
        let id = "blocks.*.mlp.hidden";
        self.row(id, "rotate online (R4), inverse in down", Must::Hold, &fused, &mut online(&[PortName::DownIn], &rotation))?;
        self.row(id, "rotate online (R4), down as it was", Must::Break, &weights, &mut online(&[PortName::DownIn], &rotation))
    }
}

/// The region with one of its parts forgotten, for each role and part that occurs in it: in one layer, where it occurs in several.
fn without_each(region: &Region) -> Vec<(String, Region)> {
    let mut seen: Vec<(Role, Part)> = Vec::new();
    let mut out = Vec::new();
    let lists: [fn(&mut Region) -> &mut Vec<Slot>; 3] = [|r| &mut r.producers, |r| &mut r.consumers, |r| &mut r.companions];
    for list in lists {
        let mut whole = region.clone();
        for (i, slot) in list(&mut whole).clone().into_iter().enumerate() {
            // Norms inside blocks have nothing left to forget once they are folded.
            let folded_away = slot.site.block.is_some() && matches!(slot.site.role, Role::AttnNorm | Role::MlpNorm);
            if seen.contains(&(slot.site.role, slot.part)) || folded_away {
                continue;
            }
            seen.push((slot.site.role, slot.part));
            let mut without = region.clone();
            list(&mut without).remove(i);
            let part = if slot.part == Part::Bias { " (bias)" } else { "" };
            out.push((format!("{}{part}", slot.site.role), without));
        }
    }
    out
}

fn name(space: Space, kind: Kind) -> &'static str {
    use Kind::{Diagonal, Orthogonal, Permutation};
    match (space, kind) {
        (Space::AttnIn | Space::MlpIn | Space::HeadIn, Diagonal) => "scale norm → readers",
        (Space::Values, Diagonal) => "scale v → o",
        (Space::Values, Permutation) => "permute v → o",
        (Space::Values, Orthogonal) => "rotate each head v → o (R2)",
        (Space::Heads, Diagonal) => "scale k → q",
        (Space::Heads, Permutation) => "permute k and q",
        (Space::Heads, Orthogonal) => "rotate k and q in their weights (fused R3)",
        (Space::MlpHidden, Diagonal) => "scale up → down",
        (Space::MlpHidden, Permutation) => "permute",
        (Space::MlpHidden, Orthogonal) => "rotate in the weights (fused R4)",
        (_, Diagonal) => "scale",
        (_, Permutation) => "permute",
        (_, Orthogonal) => "rotate",
    }
}
