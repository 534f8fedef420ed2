//! What a format makes of each layer: its codes as they are or moved to a grid that has all of them, floats, or codes that are new.
//!
//! A container refuses plans, not layers. So layers that are alike, in scheme, shape and place, are put to it alone, first as they are and
//! then as one candidate after the other, from what keeps most to what keeps least; then all of them together.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::source::{Source, weight};
use crate::algorithm::Rounded;
use crate::checkpoint::{Adapted, Checkpoint, Container, ContainerRecord, Verdict};
use crate::error::{Error, Result};
use crate::format::Ask;
use crate::numeric::{Codes, Units};
use crate::plan::{Plan, PlannedSite, branches_fit, online_fit};
use crate::registry::Registry;
use crate::scheme::{Convention, Extent, FloatKind, Granularity, Grid, ObserverChoice, QuantSpec, ScaleForm, Zero};
use crate::topology::{Role, SiteId};

/// Widths that containers have codes of, apart from those that are narrower in some.
const WIDTHS: [u8; 3] = [4, 5, 8];

/// Groups that kernels have.
const GROUPS: [u32; 4] = [128, 64, 32, 16];

/// What becomes of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The codes it has, on the grid that the plan says.
    Codes,
    /// The floats it stands for.
    Floats,
    /// New codes, by rounding those floats to nearest.
    Nearest,
}

/// What a format makes of a checkpoint.
pub(super) struct Fitted {
    /// With the schemes that it holds.
    pub(super) plan: Plan,
    /// By module.
    pub(super) fits: BTreeMap<String, Fit>,
    /// The checkpoint with the float types that are written.
    pub(super) checkpoint: Checkpoint,
    /// Why some layers are rounded again.
    pub(super) why: Option<String>,
    /// What else there is to know.
    pub(super) notes: Vec<String>,
}

/// Layers that are alike.
struct Alike {
    spec: QuantSpec,
    shape: (usize, usize),
    /// Embedding, head, or none of them.
    edge: bool,
    unordered: bool,
    nearly_whole: bool,
    sites: Vec<String>,
}

/// Finds what the container of `record` holds of `source`.
///
/// # Errors
/// If it can hold nothing like it.
pub(super) fn fit(source: &Source, record: &'static ContainerRecord, registry: &Registry) -> Result<Fitted> {
    let container = record.container;
    let mut plan = source.plan.clone();
    let beside = online_fit(&plan, container).and_then(|()| branches_fit(&plan, source.turned.as_ref(), container));
    beside.map_err(|e| instead(source, registry, e))?;
    let mut fits: BTreeMap<String, Fit> = plan.native_sites().into_iter().map(|s| (s.module, Fit::Codes)).collect();
    let mut why = None;
    if refusal(container, &plan).is_some() {
        let alone = Plan { activations: Vec::new(), ..without_codes(&plan) };
        if let Some(e) = refusal(container, &alone) {
            return Err(instead(source, registry, e));
        }
        for alike in groups(source) {
            let (spec, fit, because) = nearest(&alone, &alike, container, registry).map_err(|e| instead(source, registry, e))?;
            why = why.or(because);
            for s in plan.sites.iter_mut().filter(|s| alike.sites.contains(&s.site)) {
                s.weights.clone_from(&spec);
                fits.insert(s.module.clone(), fit);
            }
        }
        if let Some(origin) = &mut plan.origin {
            origin.group_index = source.unordered.iter().any(|m| fits.get(m) == Some(&Fit::Codes));
        }
        if let Some(e) = refusal(container, &plan) {
            return Err(instead(source, registry, e));
        }
    }
    let checkpoint = shown(source, &fits);
    container.file_form(&plan, &checkpoint)?;
    let mut notes = Vec::new();
    if let Verdict::Larger(text) = container.accepts(&plan) {
        notes.push(format!("`{}` is larger than its codes: {text}", record.id));
    }
    Ok(Fitted { plan, fits, checkpoint, why, notes })
}

fn refusal(container: &dyn Container, plan: &Plan) -> Option<Error> {
    match container.accepts(plan) {
        Verdict::Refused(e) => Some(e),
        _ => None,
    }
}

/// An error with the way out that an export has: formats that hold what is there.
fn instead(source: &Source, registry: &Registry, e: Error) -> Error {
    let whole = source.holders(registry);
    if whole.is_empty() {
        return e;
    }
    let list = whole.iter().map(|id| format!("`--format {id}`")).collect::<Vec<_>>().join(", ");
    e.hint(format!("formats that hold it as it is: {list}"))
}

fn without_codes(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    plan.sites.iter_mut().for_each(|s| s.weights = None);
    if let Some(origin) = &mut plan.origin {
        origin.group_index = false;
    }
    plan
}

fn groups(source: &Source) -> Vec<Alike> {
    let head = SiteId::global(Role::Head).to_string();
    let mut out: Vec<Alike> = Vec::new();
    for s in &source.plan.sites {
        let Some(spec) = &s.weights else { continue };
        let edge = s.is_embedding() || s.site == head;
        let (unordered, nearly_whole) = (source.unordered.contains(&s.module), source.nearly_whole.contains(&s.module));
        let same = |a: &&mut Alike| {
            (&a.spec, a.shape, a.edge, a.unordered, a.nearly_whole) == (spec, s.shape, edge, unordered, nearly_whole) && !edge
        };
        match out.iter_mut().find(same) {
            Some(alike) => alike.sites.push(s.site.clone()),
            None => out.push(Alike { spec: spec.clone(), shape: s.shape, edge, unordered, nearly_whole, sites: vec![s.site.clone()] }),
        }
    }
    out
}

/// The first candidate that the container takes, and, where codes are new, why they have to be.
fn nearest(
    alone: &Plan,
    alike: &Alike,
    container: &dyn Container,
    registry: &Registry,
) -> Result<(Option<QuantSpec>, Fit, Option<String>)> {
    let ask = |spec: &QuantSpec, kept: bool| {
        let mut plan = alone.clone();
        let of = |s: &&mut PlannedSite| alike.sites.contains(&s.site);
        plan.sites.iter_mut().filter(of).for_each(|s| s.weights = Some(spec.clone()));
        if let Some(origin) = &mut plan.origin {
            origin.group_index = kept && alike.unordered;
        }
        refusal(container, &plan)
    };
    let Some(first) = ask(&alike.spec, true) else { return Ok((Some(alike.spec.clone()), Fit::Codes, None)) };
    if let Some(spec) = keeping(&alike.spec, alike.nearly_whole).into_iter().find(|spec| ask(spec, true).is_none()) {
        return Ok((Some(spec), Fit::Codes, None));
    }
    if alike.edge {
        return Ok((None, Fit::Floats, None));
    }
    let near = rounding(&alike.spec, alike.shape, registry)?;
    match near.into_iter().find(|spec| ask(spec, false).is_none()) {
        Some(spec) => Ok((Some(spec), Fit::Nearest, Some(first.to_string()))),
        None => Err(first),
    }
}

/// Other schemes that hold the same codes.
fn keeping(spec: &QuantSpec, nearly_whole: bool) -> Vec<QuantSpec> {
    let mut all = vec![spec.clone()];
    if nearly_whole && let Grid::Int { lo, hi, .. } = spec.grid {
        all.push(QuantSpec { grid: Grid::Int { lo, hi, zero: Zero::Integer }, ..spec.clone() });
    }
    let wider: Vec<QuantSpec> = all.iter().flat_map(|s| WIDTHS.into_iter().filter_map(|bits| widened(s, bits))).collect();
    all.extend(wider);
    all
}

/// The integers of `spec` among those of more bits. What is symmetric with a fixed zero point becomes signed.
fn widened(spec: &QuantSpec, bits: u8) -> Option<QuantSpec> {
    let Grid::Int { lo, zero, .. } = spec.grid else { return None };
    if bits <= spec.bits {
        return None;
    }
    let (signed, zero) = match zero {
        Zero::None | Zero::Fixed(_) => (true, Zero::None),
        other => (lo < 0, other),
    };
    let (half, all) = (1 << (bits - 1), 1 << bits);
    let (grid, name) = match signed {
        true => (Grid::Int { lo: -half, hi: half - 1, zero }, "int"),
        false => (Grid::Int { lo: 0, hi: all - 1, zero }, "uint"),
    };
    Some(QuantSpec { format: format!("{name}{bits}"), bits, grid, ..spec.clone() })
}

/// Codes of one scheme as those of another of [`keeping`].
pub(super) fn moved(from: &QuantSpec, to: &QuantSpec, mut r: Rounded) -> Rounded {
    let fixed = |grid: &Grid| if let Zero::Fixed(z) = grid.zero() { z } else { 0 };
    let (old, new) = (from.grid.limits().0, to.grid.limits().0);
    // A code above the smallest is `q − lo`; without its zero point `q` may be another number.
    let step = old - fixed(&from.grid) + fixed(&to.grid) - new;
    if let (true, Units::Narrow(codes)) = (step != 0, &mut r.codes.data) {
        codes.iter_mut().for_each(|c| *c = (i32::from(*c) + step) as u8);
    }
    r.codes = Codes { lo: new, data: r.codes.data };
    match to.grid.zero() {
        Zero::None => r.params.zero.fill(0.0),
        Zero::Fixed(z) => r.params.zero.fill(z as f32),
        Zero::Integer => r.params.zero.iter_mut().for_each(|z| *z = z.round_ties_even()),
        Zero::Float => {}
    }
    r
}

/// Schemes to round to, the nearest first: no fewer bits if there are as many, no larger groups.
fn rounding(spec: &QuantSpec, shape: (usize, usize), registry: &Registry) -> Result<Vec<QuantSpec>> {
    let affine = !matches!(spec.grid, Grid::Int { .. }) || !spec.symmetric;
    let mut formats = vec![(spec.format.clone(), spec.symmetric)];
    for bits in [2, 3, 4, 5, 8].into_iter().filter(|b| *b >= spec.bits.min(8)) {
        if affine {
            formats.push((format!("uint{bits}"), false));
        }
        formats.push((format!("int{bits}"), true));
    }
    let largest = match spec.granularity.cols {
        Extent::Of(g) => g.min(shape.1 as u32),
        Extent::All => shape.1 as u32,
    };
    let divides = |g: &u32| *g <= largest && shape.1.is_multiple_of(*g as usize);
    let mut tiles = vec![spec.granularity.clone()];
    tiles.extend(GROUPS.into_iter().filter(divides).map(Granularity::group));
    tiles.push(Granularity::channel());
    let stored = match spec.scale {
        ScaleForm::Float(kind) => kind,
        _ => FloatKind::F16,
    };
    let (_, options) = registry.build_observer("minmax", &json!({}))?;
    let mut out = Vec::new();
    for (name, symmetric) in formats {
        // What another tool calls by a name may have none here.
        let Ok(format) = registry.format(&name) else { continue };
        let ask = Ask { symmetric, convention: Convention::HalfRange, float_zero: false, power_of_two: None, stored };
        let Ok(meaning) = format.resolve(&ask) else { continue };
        let own = format.granularity().map(|g| vec![g]);
        for granularity in own.unwrap_or_else(|| tiles.clone()) {
            out.push(QuantSpec {
                symmetric: meaning.symmetric,
                convention: meaning.convention,
                observer: ObserverChoice { id: "minmax".to_owned(), options: options.clone() },
                ..QuantSpec::stored(format.id(), format.bits(), meaning.grid.clone(), granularity, meaning.scale)
            });
        }
    }
    Ok(out)
}

/// The checkpoint with the type that floats are written in which are blocks or codes here. Codes that stay are exact floats for those who need
/// both: the head that is tied to an embedding is read as floats where the embedding is looked up as codes.
fn shown(source: &Source, fits: &BTreeMap<String, Fit>) -> Checkpoint {
    let (decoded, kept): (Vec<_>, Vec<_>) = source.plan.native_sites().into_iter().partition(|s| fits.get(&s.module) == Some(&Fit::Floats));
    let exact = Adapted::cast_some(Arc::clone(&source.checkpoint.tensors), kept.iter().map(weight), FloatKind::F32);
    let names = decoded.iter().map(weight).chain(source.blocks.keys().cloned());
    let tensors = Adapted::cast_some(Arc::new(exact), names, source.dtype);
    Checkpoint { tensors: Arc::new(tensors), ..source.checkpoint.clone() }
}
