//! Which activations are rounded, and how: from the scheme's parts for inputs, outputs and attention to places of the model.

use std::collections::BTreeMap;

use super::cell::{Part, Tensor};
use super::quant;
use super::raw::{RawGranularity, RawGroup, RawOverride, RawQuant, RawRun, RawSpec, RawSpecChange, RawTiming};
use super::resolve::ModelFacts;
use super::resolved::PlannedActivation;
use super::select::Selector;
use super::sites::{auto_group, changed};
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::scheme::FloatKind;
use crate::topology::{Linear, Place, PortName as P, Role};

/// A part of the scheme that is about activations.
struct SchemePart {
    part: Part,
    of_scheme: fn(&RawRun) -> Option<&RawSpec>,
    of_override: fn(&RawOverride) -> Option<&RawSpecChange>,
    /// The ports it means, given the linear that stands for it in selectors.
    ports: fn(&Linear) -> Vec<P>,
}

const PARTS: [SchemePart; 6] = [
    SchemePart {
        part: Part::Inputs,
        of_scheme: |r| r.scheme.inputs.as_ref(),
        of_override: |o| o.inputs.as_ref(),
        ports: |l| vec![l.input.name],
    },
    SchemePart {
        part: Part::Outputs,
        of_scheme: |r| r.scheme.outputs.as_ref(),
        of_override: |o| o.outputs.as_ref(),
        // The head's are logits, which are formed piece by piece and stay floats.
        ports: |l| match l.site.role {
            Role::AttnQkv => vec![P::Q, P::K, P::V],
            Role::Head => Vec::new(),
            _ => vec![l.output.name],
        },
    },
    SchemePart {
        part: Part::Queries,
        of_scheme: |r| r.scheme.queries.as_ref(),
        of_override: |o| o.queries.as_ref(),
        ports: |l| if matches!(l.site.role, Role::AttnQ | Role::AttnQkv) { vec![P::QRope] } else { Vec::new() },
    },
    SchemePart {
        part: Part::Keys,
        of_scheme: |r| r.scheme.keys.as_ref(),
        of_override: |o| o.keys.as_ref(),
        ports: |l| if matches!(l.site.role, Role::AttnK | Role::AttnQkv) { vec![P::KRope] } else { Vec::new() },
    },
    SchemePart {
        part: Part::Values,
        of_scheme: |r| r.scheme.values.as_ref(),
        of_override: |o| o.values.as_ref(),
        ports: |l| if matches!(l.site.role, Role::AttnV | Role::AttnQkv) { vec![P::V] } else { Vec::new() },
    },
    SchemePart {
        part: Part::Probs,
        of_scheme: |r| r.scheme.probs.as_ref(),
        of_override: |o| o.probs.as_ref(),
        ports: |l| if l.site.role == Role::AttnO { vec![P::Probs] } else { Vec::new() },
    },
];

/// Whether any activation is to have parameters fixed by calibration.
pub(super) fn any_static(raw: &RawRun) -> bool {
    PARTS.iter().any(|p| {
        let scheme = matches!((p.of_scheme)(raw), Some(RawSpec::Quant(q)) if q.timing == RawTiming::Static);
        scheme
            || raw
                .overrides
                .iter()
                .any(|o| matches!((p.of_override)(o), Some(RawSpecChange::Change(c)) if c.timing == Some(RawTiming::Static)))
    })
}

/// Every rounded activation, in order of execution.
///
/// # Errors
/// For specs that mean nothing, and for linears that read the same tensor but disagree about it.
pub(super) fn activations(
    raw: &RawRun,
    registry: &Registry,
    model: &ModelFacts<'_>,
    linears: &[&Linear],
) -> Result<Vec<PlannedActivation>> {
    let mut out = Vec::new();
    for part in &PARTS {
        let specs = raw_specs(raw, part, linears)?;
        if specs.iter().all(Option::is_none) {
            continue;
        }
        if model.tensorwise {
            let message =
                format!("`scheme.{}` is about activations, and the architecture `{}` is unknown", part.part.key(), model.model_type);
            return Err(
                Error::plan("plan::unsupported", message).hint("models of unknown architecture have no forward pass; keep to weights")
            );
        }
        out.extend(places(part, &specs, registry, model, linears)?);
    }
    out.sort_by_key(|a| (a.place.block.is_none(), a.place.block, a.place.port));
    Ok(out)
}

/// The raw spec for each linear: the scheme, then `skip`, then overrides; the last match wins.
fn raw_specs(raw: &RawRun, part: &SchemePart, linears: &[&Linear]) -> Result<Vec<Option<RawQuant>>> {
    let scheme = match (part.of_scheme)(raw) {
        Some(RawSpec::Quant(q)) => Some(q),
        _ => None,
    };
    let skips: Vec<Selector> = raw.scheme.skip.iter().map(|s| Selector::new(s)).collect::<Result<_>>()?;
    let mut specs: Vec<Option<RawQuant>> =
        linears.iter().map(|l| scheme.filter(|_| !skips.iter().any(|s| s.matches(l))).cloned()).collect();
    for o in &raw.overrides {
        let selector = Selector::new(&o.selector)?;
        for (spec, _) in specs.iter_mut().zip(linears).filter(|(_, l)| selector.matches(l)) {
            match (part.of_override)(o) {
                Some(RawSpecChange::Keep) => *spec = None,
                Some(RawSpecChange::Change(c)) => *spec = Some(changed(spec.as_ref(), c, scheme, &o.selector)?),
                None => {}
            }
        }
    }
    Ok(specs)
}

fn places(
    part: &SchemePart,
    specs: &[Option<RawQuant>],
    registry: &Registry,
    model: &ModelFacts<'_>,
    linears: &[&Linear],
) -> Result<Vec<PlannedActivation>> {
    let mut at: BTreeMap<Place, Vec<(&Linear, Option<&RawQuant>)>> = BTreeMap::new();
    for (l, spec) in linears.iter().zip(specs) {
        for port in (part.ports)(l) {
            at.entry(Place { block: l.site.block, port: port.into() }).or_default().push((l, spec.as_ref()));
        }
    }
    let auto: Vec<(usize, u32)> = at
        .values()
        .flatten()
        .filter_map(|(l, spec)| match spec.as_ref()?.granularity {
            Some(RawGranularity::Group(RawGroup::Auto(n))) => Some((l.shape.1, n.get())),
            _ => None,
        })
        .collect();
    let auto = auto_group(&auto);
    let mut out = Vec::new();
    for (place, users) in at {
        let (first, spec) = users[0];
        if let Some((other, _)) = users.iter().find(|(_, s)| *s != spec) {
            let message =
                format!("`{}` and `{}` read the same tensor, `{place}`, but `{}` of them differ", first.site, other.site, part.part.key());
            return Err(Error::plan("plan::shared-input", message).hint("give them the same scheme, in one override that matches both"));
        }
        let Some(spec) = spec else { continue };
        let cols = if part.part == Part::Inputs { first.shape.1 } else { first.shape.0 };
        let tensor = Tensor { rows: 0, cols, head_dim: model.head_dim, auto, stored: FloatKind::F32 };
        let spec = quant::resolve(part.part, spec, &tensor, registry)
            .map_err(|e| e.within(format!("`scheme.{}` at `{place}`", part.part.key())))?;
        let modules = users.iter().map(|(l, _)| l.module.clone()).collect();
        out.push(PlannedActivation { place, part: part.part.key().to_owned(), modules, spec });
    }
    Ok(out)
}
