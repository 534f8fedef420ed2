//! Reading rounded activations: inputs of linears by what their groups say, keys and values by `kv_cache_scheme`.
//!
//! Here one place is rounded once for all that read it, so the linears that share an input must agree about it, as they do in every
//! checkpoint whose engine runs them as one.

use std::collections::BTreeMap;

use qfw_core::Result;
use qfw_core::checkpoint::{StoredActivation, StoredDtype, TensorSource};
use qfw_core::plan::PlannedActivation;
use qfw_core::scheme::{Extent, Granularity, Grid, QParams, QuantSpec, TileLayout, Timing};
use qfw_core::topology::{Linear, Place, PortName, Role, Topology};
use serde_json::Value;

use crate::activation::attention;
use crate::groups::{Arguments, FLOAT, Finder, Group, groups, spec};
use crate::read::{bad, layout_of, scales};
use crate::{fp8, int};

pub(crate) fn activations(config: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
    let groups = groups(config)?;
    let finder = Finder::new(&groups);
    let mut at: BTreeMap<Place, (Vec<&str>, Option<Rounding>)> = BTreeMap::new();
    for l in &topology.linears {
        let place = Place { block: l.site.block, port: l.input };
        let rounding = match layout_of(tensors, &l.module) {
            Some(_) => input(l, finder.of(&l.module)?, tensors).map_err(|e| e.within(format!("`{}`", l.module)))?,
            None => None,
        };
        match at.get_mut(&place) {
            Some((others, known)) if *known != rounding => {
                let other = others.first().copied().unwrap_or_default();
                let (a, b) = (describe(known.as_ref()), describe(rounding.as_ref()));
                let what = format!("`{other}` and `{}` read the same tensor, but the one reads it {a}, the other {b}", l.module);
                return Err(bad(what).hint("such a checkpoint cannot be evaluated here"));
            }
            Some((modules, _)) => modules.push(&l.module),
            None => {
                at.insert(place, (vec![&l.module], rounding));
            }
        }
    }
    let mut all = Vec::new();
    for (place, (modules, rounding)) in at {
        if let Some((spec, params)) = rounding {
            let modules = modules.into_iter().map(ToOwned::to_owned).collect();
            all.push(StoredActivation { planned: PlannedActivation { place, part: "inputs".to_owned(), modules, spec }, params });
        }
    }
    all.extend(cache(config, tensors, topology)?);
    Ok(all)
}

type Rounding = (QuantSpec, Option<QParams>);

fn describe(r: Option<&Rounding>) -> String {
    match r {
        None => "as it is".to_owned(),
        Some((spec, None)) => spec.to_string(),
        Some((spec, Some(p))) => format!("{spec} with scale {:?}", p.scale),
    }
}

fn input(l: &Linear, group: &Group, tensors: &dyn TensorSource) -> Result<Option<Rounding>> {
    if !group.output.is_null() {
        return Err(bad("its group has `output_activations`".to_owned()).hint("rounded inputs, keys and values can be read"));
    }
    if group.input.is_null() {
        return Ok(None);
    }
    let args = Arguments::parse("input_activations", &group.input)?;
    let granularity = match (args.strategy.as_str(), args.group_size, args.dynamic) {
        ("tensor", ..) => Granularity::tensor(),
        ("token", _, true) => Granularity::new("token", Extent::Of(1), Extent::All),
        ("group", Some(g), true) => Granularity::group(g),
        _ => return Err(bad(format!("`input_activations`: {} is not one that can be read", args.tiles()))),
    };
    let spec = activation_spec(&args, granularity)?;
    let params = if args.dynamic { None } else { Some(fixed(&spec, tensors, &l.module, "input")?) };
    Ok(Some((spec, params)))
}

fn activation_spec(args: &Arguments, granularity: Granularity) -> Result<QuantSpec> {
    match (args.float, args.bits, args.symmetric) {
        (false, 2.., _) => Ok(spec(args, &format!("int{}", args.bits), int::grid(args.bits, args.symmetric), granularity, FLOAT)),
        (true, 8, true) => Ok(spec(args, "float-ocp-e4m3", Grid::Float(fp8::grid()?), granularity, FLOAT)),
        (float, bits, _) => {
            let kind = if float { "float" } else { "int" };
            Err(bad(format!("activations of type {kind} and {bits} bits are not known")).hint("integers and symmetric fp8 can be read"))
        }
    }
}

/// `M.X_scale` and `M.X_zero_point`.
fn fixed(spec: &QuantSpec, tensors: &dyn TensorSource, module: &str, what: &str) -> Result<QParams> {
    let name = format!("{module}.{what}_scale");
    let n = tensors.info(&name).map_or(1, |i| i.shape.iter().product());
    let scale = scales(tensors, &name, n)?;
    if n == 0 || scale.contains(&0.0) || (n > 1 && spec.granularity.cols == Extent::All) {
        return Err(bad(format!("`{name}` holds {scale:?}")));
    }
    let zero = if spec.symmetric { vec![0.0; n] } else { fixed_zero(spec, tensors, &format!("{module}.{what}_zero_point"), n)? };
    Ok(QParams { layout: TileLayout { rows: 1, cols: n, tile_rows: 1, tile_cols: 1 }, scale, zero, global: None })
}

fn fixed_zero(spec: &QuantSpec, tensors: &dyn TensorSource, name: &str, n: usize) -> Result<Vec<f32>> {
    let info = tensors.info(name).ok_or_else(|| bad(format!("there is no `{name}`")))?;
    let bytes = tensors.read_bytes(name)?;
    let zero: Vec<i32> = match info.dtype {
        StoredDtype::I8 => bytes.iter().map(|b| i32::from(*b as i8)).collect(),
        StoredDtype::I32 => bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
        _ => Vec::new(),
    };
    let (lo, hi) = spec.grid.limits();
    if zero.len() != n || zero.iter().any(|z| !(lo..=hi).contains(z)) {
        return Err(bad(format!("`{name}` holds {zero:?}, which are no {n} zero points of {}", spec.format)));
    }
    Ok(zero.into_iter().map(|z| z as f32).collect())
}

/// The rounding of keys and values in all blocks.
fn cache(config: &Value, tensors: &dyn TensorSource, topology: &Topology) -> Result<Vec<StoredActivation>> {
    let Some(stated) = config.get("kv_cache_scheme").filter(|v| !v.is_null()) else { return Ok(Vec::new()) };
    let args = Arguments::parse("kv_cache_scheme", stated)?;
    if args.dynamic || !args.symmetric || !["tensor", "attn_head"].contains(&args.strategy.as_str()) {
        let what = format!("`kv_cache_scheme` is {}, symmetric {}, dynamic {}", args.tiles(), args.symmetric, args.dynamic);
        return Err(bad(what).hint("symmetric static scales for all heads, or for each, can be read"));
    }
    let mut out = Vec::new();
    for l in &topology.linears {
        let (letter, port) = match l.site.role {
            Role::AttnK => ('k', PortName::KRope),
            Role::AttnV => ('v', PortName::V),
            Role::AttnQkv => return Err(bad(format!("`kv_cache_scheme` needs a layer for keys, and there is `{}`", l.module))),
            _ => continue,
        };
        let module = attention(&l.module, letter).ok_or_else(|| bad(format!("`kv_cache_scheme` has no name for `{}`", l.module)))?;
        let mut spec = activation_spec(&args, Granularity::tensor())?;
        if args.strategy == "attn_head" {
            let name = format!("{module}.{letter}_scale");
            let heads: usize = tensors.info(&name).map_or(1, |i| i.shape.iter().product());
            if heads == 0 || !l.shape.0.is_multiple_of(heads) {
                return Err(bad(format!("`{name}` holds {heads} scales for {} channels", l.shape.0)));
            }
            spec.granularity = Granularity::new("head", Extent::All, Extent::Of((l.shape.0 / heads) as u32));
        }
        spec.timing = Timing::Static;
        let params = fixed(&spec, tensors, module, &letter.to_string())?;
        let place = Place { block: l.site.block, port: port.into() };
        let part = if letter == 'k' { "keys" } else { "values" }.to_owned();
        out.push(StoredActivation {
            planned: PlannedActivation { place, part, modules: vec![l.module.clone()], spec },
            params: Some(params),
        });
    }
    Ok(out)
}
