//! Rounded inputs, keys and values.

use std::collections::BTreeMap;

use qfw_core::Result;
use qfw_core::checkpoint::{StoredActivation, TensorSource};
use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{Extent, Granularity, Grid, QParams, QuantSpec, ScaleForm, TileLayout, Timing};
use qfw_core::topology::{Linear, Place, PortName, Role, Topology};

use crate::bad;
use crate::said::{Inputs, Said};
use crate::weight::{CACHE, F32, RUN, Stored, floats, numbers, stored};

type Rounding = (QuantSpec, Option<QParams>);

/// Everything that is rounded.
///
/// # Errors
/// If layers that read the same input disagree about it, or a scale is malformed.
pub(crate) fn all(said: &Said, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
    let mut at: BTreeMap<Place, (Vec<&str>, Option<Rounding>)> = BTreeMap::new();
    for l in &topology.linears {
        let place = Place { block: l.site.block, port: l.input };
        let rounding = input(said, tensors, l)?;
        match at.get_mut(&place) {
            Some((others, known)) if *known != rounding => {
                let other = others.first().copied().unwrap_or_default();
                let what = format!("`{other}` and `{}` read the same tensor, and round it differently", l.module);
                return Err(bad(what).hint("such a checkpoint cannot be evaluated here"));
            }
            Some((modules, _)) => modules.push(&l.module),
            None => {
                at.insert(place, (vec![&l.module], rounding));
            }
        }
    }
    let of = |(place, (modules, rounding)): (Place, (Vec<&str>, Option<Rounding>))| {
        let (spec, params) = rounding?;
        let modules = modules.into_iter().map(ToOwned::to_owned).collect();
        Some(StoredActivation { planned: PlannedActivation { place, part: "inputs".to_owned(), modules, spec }, params })
    };
    let mut out: Vec<StoredActivation> = at.into_iter().filter_map(of).collect();
    if said.cache {
        out.extend(cache(tensors, topology)?);
    }
    Ok(out)
}

fn input(said: &Said, tensors: &dyn TensorSource, l: &Linear) -> Result<Option<Rounding>> {
    let Some(kind) = stored(tensors, &l.module)? else { return Ok(None) };
    let e4m3 = |granularity| Ok::<_, qfw_core::Error>(QuantSpec::stored("float-ocp-e4m3", 8, Grid::Float(floats(4, 3)?), granularity, F32));
    let name = format!("{}.input_scale", l.module);
    match (said.inputs, kind) {
        (Inputs::Kept, _) => Ok(None),
        (Inputs::Dynamic, Stored::E2m1) => Err(bad(format!("`{}` is nvfp4, whose inputs have a fixed scale", l.module))),
        (Inputs::Dynamic, Stored::E4m3) => {
            let granularity = match said.block {
                Some((_, cols)) => Granularity::group(cols),
                None => Granularity::new("token", Extent::Of(1), Extent::All),
            };
            Ok(Some((QuantSpec { timing: Timing::Dynamic, ..e4m3(granularity)? }, None)))
        }
        (Inputs::Stored, _) if tensors.info(&name).is_none() => Ok(None),
        (Inputs::Stored, Stored::E4m3) => Ok(Some((e4m3(Granularity::tensor())?, Some(fixed(tensors, &name)?)))),
        (Inputs::Stored, Stored::E2m1) => {
            let e2m1 = QuantSpec::stored("nvfp4", 4, Grid::Float(floats(2, 1)?), Granularity::group(RUN), ScaleForm::TwoLevel);
            Ok(Some((QuantSpec { timing: Timing::Dynamic, ..e2m1 }, None)))
        }
    }
}

/// One scale.
fn fixed(tensors: &dyn TensorSource, name: &str) -> Result<QParams> {
    match numbers(tensors, name)?[..] {
        [scale] if scale != 0.0 => Ok(one(scale)),
        ref other => Err(bad(format!("`{name}` holds {other:?}, not one scale"))),
    }
}

fn one(scale: f32) -> QParams {
    let layout = TileLayout { rows: 1, cols: 1, tile_rows: 1, tile_cols: 1 };
    QParams { layout, scale: vec![scale], zero: vec![0.0], global: None }
}

/// Keys and values of all blocks.
fn cache(tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
    let mut out = Vec::new();
    for l in &topology.linears {
        let (suffix, part, port) = match l.site.role {
            Role::AttnK => (CACHE[0], "keys", PortName::KRope),
            Role::AttnV => (CACHE[1], "values", PortName::V),
            Role::AttnQkv => return Err(bad(format!("a rounded cache needs a layer for keys, and there is `{}`", l.module))),
            _ => continue,
        };
        // Beside the projection, or beside the attention module that it is a part of.
        let above = l.module.rsplit_once('.').map_or("", |(above, _)| above);
        let names = [format!("{}.{suffix}", l.module), format!("{above}.{suffix}")];
        let name = names.iter().find(|n| tensors.info(n).is_some());
        let params = name.map_or_else(|| Ok(one(1.0)), |n| fixed(tensors, n))?;
        let place = Place { block: l.site.block, port: port.into() };
        let spec = QuantSpec::stored("float-ocp-e4m3", 8, Grid::Float(floats(4, 3)?), Granularity::tensor(), F32);
        let planned = PlannedActivation { place, part: part.to_owned(), modules: vec![l.module.clone()], spec };
        out.push(StoredActivation { planned, params: Some(params) });
    }
    Ok(out)
}
