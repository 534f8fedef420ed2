//! The spec of each weight: what `[scheme]`, `skip` and `[[override]]` make of it.

use super::cell::{Part, Tensor};
use super::quant;
use super::raw::{RawGranularity, RawGroup, RawQuant, RawQuantChange, RawRun, RawSpec, RawSpecChange};
use super::resolve::ModelFacts;
use super::resolved::PlannedSite;
use super::select::Selector;
use crate::error::{Error, Result};
use crate::registry::Registry;
use crate::scheme::QuantSpec;
use crate::topology::{Linear, Part as Parameter, Role, SiteId};

/// The resolved spec of each linear: the scheme, then `skip`, then overrides in order; the last match wins.
pub(super) fn site_specs(raw: &RawRun, registry: &Registry, model: &ModelFacts<'_>, linears: &[&Linear]) -> Result<Vec<Option<QuantSpec>>> {
    let head = raw.scheme.head.as_ref();
    let scheme = match &raw.scheme.weights {
        Some(RawSpec::Quant(q)) => Some(q),
        _ => None,
    };
    let mut raws: Vec<Option<RawQuant>> = linears
        .iter()
        .map(|l| match (l.site.block.is_none(), head, &raw.scheme.weights) {
            (true, Some(RawSpec::Quant(q)), _) => Some(q.clone()),
            (true, Some(RawSpec::Keep), _) => None,
            (_, _, Some(RawSpec::Quant(q))) => Some(q.clone()),
            _ => None,
        })
        .collect();
    for text in &raw.scheme.skip {
        let selector = Selector::new(text)?;
        let mut hits = usize::from(selector.matches_unlisted());
        for (raw, l) in raws.iter_mut().zip(linears) {
            if selector.matches(l) {
                hits += 1;
                // A key of its own says more than a selector.
                if l.site.block.is_some() || !matches!(head, Some(RawSpec::Quant(_))) {
                    *raw = None;
                }
            }
        }
        if hits == 0 {
            return Err(selector.unmatched("`scheme.skip` entry", linears));
        }
    }
    for o in &raw.overrides {
        let selector = Selector::new(&o.selector)?;
        let mut hits = 0;
        for (raw_spec, l) in raws.iter_mut().zip(linears) {
            if !selector.matches(l) {
                continue;
            }
            hits += 1;
            match &o.weights {
                Some(RawSpecChange::Keep) => *raw_spec = None,
                Some(RawSpecChange::Change(change)) => *raw_spec = Some(changed(raw_spec.as_ref(), change, scheme, &o.selector)?),
                None => {}
            }
        }
        if hits == 0 && !o.allow_empty {
            return Err(selector.unmatched("override", linears));
        }
        if let Some(expected) = o.expect.filter(|e| *e != hits) {
            return Err(Error::config(
                "config::unmatched-selector",
                format!("override `{}` matches {hits} sites, not the {expected} expected", o.selector),
            )
            .hint("change the selector or `expect`"));
        }
    }
    if model.topology.tied_head
        && let Some((_, l)) = raws.iter().zip(linears).find(|(r, l)| r.is_some() && l.site.block.is_none())
    {
        return Err(Error::plan(
            "plan::tied-head",
            format!("`{}` shares its tensor with the embedding, and cannot be quantized alone", l.site),
        )
        .hint("add \"head\" to `scheme.skip`, or set `model.tie-policy = \"untie\"`"));
    }
    let auto: Vec<(usize, u32)> = raws
        .iter()
        .zip(linears)
        .filter_map(|(r, l)| match r.as_ref()?.granularity {
            Some(RawGranularity::Group(RawGroup::Auto(n))) => Some((l.shape.1, n.get())),
            _ => None,
        })
        .collect();
    let auto = auto_group(&auto);
    let resolved = |r: &RawQuant, l: &Linear| {
        let part = if l.site.block.is_none() { Part::Head } else { Part::Weights };
        let tensor = Tensor { rows: l.shape.0, cols: l.shape.1, head_dim: model.head_dim, auto, stored: (model.stored)(&l.module) };
        quant::resolve(part, r, &tensor, registry).map_err(|e| e.within(format!("`{}`", l.site)))
    };
    raws.iter().zip(linears).map(|(r, l)| r.as_ref().map(|r| resolved(r, l)).transpose()).collect()
}

/// The fields of an override over what the site has, or over the scheme where the site was skipped.
pub(super) fn changed(base: Option<&RawQuant>, change: &RawQuantChange, scheme: Option<&RawQuant>, selector: &str) -> Result<RawQuant> {
    let mut q = match (base.or(scheme), &change.format) {
        (Some(q), _) => q.clone(),
        (None, Some(format)) => RawQuant::new(format),
        (None, None) => {
            return Err(Error::config(
                "config::invalid",
                format!("override `{selector}` names no format, and the scheme has none to change"),
            )
            .hint("add `format = \"int4\"` to the override"));
        }
    };
    q.apply(change);
    Ok(q)
}

/// `auto:N`: the largest power of two up to `N` that divides the input channels of every site that asks for it.
pub(super) fn auto_group(sites: &[(usize, u32)]) -> u32 {
    let limit = sites.iter().map(|(_, n)| *n).min().unwrap_or(1);
    let mut group = 1 << limit.ilog2();
    while group > 1 && sites.iter().any(|(cols, _)| cols % group as usize != 0) {
        group /= 2;
    }
    group
}

/// The token embedding, if it is to be quantized.
pub(super) fn embedding(raw: &RawRun, registry: &Registry, model: &ModelFacts<'_>) -> Result<Option<PlannedSite>> {
    let Some(RawSpec::Quant(q)) = &raw.scheme.embed else { return Ok(None) };
    let site = SiteId::global(Role::Embed);
    let stored = model.topology.params.iter().find(|p| p.site == site && p.part == Parameter::Weight);
    let Some((module, [rows, cols])) = stored.and_then(|p| Some((p.tensor.strip_suffix(".weight")?, p.shape.as_slice()))) else {
        let message = format!("`scheme.embed` is set, but nothing is known of the embedding of a `{}` model", model.model_type);
        return Err(Error::plan("plan::no-embedding", message).hint("leave the key out"));
    };
    if model.topology.tied_head {
        let message = "the embedding is the head's own tensor, and cannot be quantized alone";
        return Err(Error::plan("plan::tied-head", message).hint("leave `scheme.embed` out, or set `model.tie-policy = \"untie\"`"));
    }
    let auto = match q.granularity {
        Some(RawGranularity::Group(RawGroup::Auto(n))) => auto_group(&[(*cols, n.get())]),
        _ => 1,
    };
    let tensor = Tensor { rows: *rows, cols: *cols, head_dim: model.head_dim, auto, stored: (model.stored)(module) };
    let spec = quant::resolve(Part::Embed, q, &tensor, registry).map_err(|e| e.within(format!("`{site}`")))?;
    Ok(Some(PlannedSite {
        site: site.to_string(),
        module: module.to_owned(),
        shape: (*rows, *cols),
        transposed: false,
        weights: Some(spec),
    }))
}
