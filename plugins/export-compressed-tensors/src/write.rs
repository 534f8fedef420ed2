//! Writing.

use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::plan::Plan;
use qfw_core::scheme::{Extent, FloatKind, Grid, QuantSpec, ScaleForm, Zero};
use qfw_core::{Error, Result};
use serde_json::{Value, json};

use crate::Layout;
use crate::pack::{pack_columns, pack_rows};

/// The version of the format written: the oldest release whose readers were checked to load these files.
const VERSION: &str = "0.17.0";

/// Why a plan cannot be held, if it cannot.
pub(crate) fn check(layout: Layout, plan: &Plan) -> Result<()> {
    let refuse = |site: &str, why: String, hint: &str| Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint));
    for s in &plan.sites {
        let Some(spec) = &s.weights else { continue };
        if s.transposed {
            let why = "its weight is stored transposed (`Conv1D`), and readers of this format quantize plain linear layers only; \
                       transformers would fill the layer with random numbers without an error";
            return refuse(&s.site, why.to_owned(), "use `--format qfw`");
        }
        match layout {
            Layout::Packed if ![2, 4, 8].contains(&spec.bits) => {
                let why = format!("readers of different versions pack {}-bit codes differently", spec.bits);
                return refuse(&s.site, why, "use 2, 4 or 8 bits, or `--format qfw`");
            }
            Layout::Int8 if spec.bits != 8 => {
                return refuse(&s.site, format!("it holds 8-bit codes, not {}", spec.format), "use `--format compressed-tensors`");
            }
            _ => {}
        }
        if !matches!(spec.grid, Grid::Int { zero: Zero::None | Zero::Fixed(_) | Zero::Integer, .. }) || spec.bits > 8 {
            let why = format!("it holds integers of up to 8 bits with integer zero points, not {spec}");
            return refuse(&s.site, why, "use int4 or int8, or `--format qfw`");
        }
        if !matches!(spec.scale, ScaleForm::Float(_)) {
            return refuse(&s.site, "its scales are floats, not powers of two".to_owned(), "leave `scale` out, or use `--format qfw`");
        }
        match (spec.granularity.rows, spec.granularity.cols) {
            (Extent::Of(1), Extent::Of(g)) if s.shape.1 % g as usize != 0 => {
                let nearest = (1..=g).rev().filter(|n| n.is_power_of_two()).find(|n| s.shape.1.is_multiple_of(*n as usize)).unwrap_or(1);
                let hint = format!("group {nearest} divides it; or use `--format qfw`, which holds a shorter last group");
                return refuse(&s.site, format!("group {g} does not divide its {} input channels", s.shape.1), &hint);
            }
            (Extent::Of(1), Extent::Of(_)) if layout == Layout::Int8 => {
                return refuse(
                    &s.site,
                    "it holds one scale per channel or tensor, not per group".to_owned(),
                    "use `--format compressed-tensors`",
                );
            }
            (Extent::Of(1), _) | (Extent::All, Extent::All) => {}
            _ => {
                let why = format!("it holds no integers in tiles of the kind `{}`", spec.granularity);
                return refuse(&s.site, why, "use group, channel or tensor, or `--format qfw`");
            }
        }
    }
    if let Some(a) = plan.activations.first() {
        let why = format!("this version writes no activations into it ({})", a.spec);
        return refuse(&a.place.to_string(), why, "use `--format qfw`");
    }
    if let Some(pass) = plan.passes.iter().find(|p| p.group_index) {
        return Err(Error::plan(
            "plan::container",
            format!("pass `{}` makes groups that do not run in storage order, and readers since 0.19 refuse them", pass.algo),
        )
        .hint("set `act-order = \"static\"`, which needs no index, or use `--format qfw`"));
    }
    Ok(())
}

fn tensor_dtype(kind: FloatKind) -> StoredDtype {
    match kind {
        FloatKind::F32 => StoredDtype::F32,
        FloatKind::F16 => StoredDtype::F16,
        FloatKind::Bf16 => StoredDtype::BF16,
    }
}

/// The float type of the scales, which [`check`] has made sure of.
fn scale_kind(spec: &QuantSpec) -> FloatKind {
    match spec.scale {
        ScaleForm::Float(kind) => kind,
        _ => FloatKind::F32,
    }
}

fn affine(spec: &QuantSpec) -> bool {
    spec.grid.zero() == Zero::Integer
}

/// Declarations of one module, in the order [`write`] fills them.
fn module(layout: Layout, site: &NativeSite) -> Vec<TensorDecl> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits as usize);
    let (tile_rows, tile_cols) = site.spec.granularity.layout(rows, cols).grid();
    let scale_shape = if site.spec.granularity.rows == Extent::All { vec![1] } else { vec![tile_rows, tile_cols] };
    let decl = |suffix: &str, dtype, shape: Vec<usize>| TensorDecl { name: format!("{}.{suffix}", site.module), dtype, shape };
    let mut out = Vec::new();
    match layout {
        Layout::Packed => {
            out.push(decl("weight_packed", StoredDtype::I32, vec![rows, (cols * bits).div_ceil(32)]));
            out.push(decl("weight_shape", StoredDtype::I64, vec![2]));
        }
        Layout::Int8 => out.push(decl("weight", StoredDtype::I8, vec![rows, cols])),
    }
    out.push(decl("weight_scale", tensor_dtype(scale_kind(&site.spec)), scale_shape.clone()));
    if affine(&site.spec) {
        out.push(match layout {
            Layout::Packed => decl("weight_zero_point", StoredDtype::I32, vec![(tile_rows * bits).div_ceil(32), tile_cols]),
            Layout::Int8 => decl("weight_zero_point", StoredDtype::I8, scale_shape),
        });
    }
    out
}

pub(crate) fn declare(layout: Layout, native: &NativeReader) -> Result<Vec<TensorDecl>> {
    let mut out: Vec<TensorDecl> = native.sites.iter().flat_map(|s| module(layout, s)).collect();
    out.extend(native.plain().into_iter().map(|i| TensorDecl { name: i.name.clone(), dtype: i.dtype.clone(), shape: i.shape.clone() }));
    Ok(out)
}

pub(crate) fn write(layout: Layout, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
    for site in &native.sites {
        write_module(layout, native, site, out).map_err(|e| e.within(format!("`{}`", site.site)))?;
    }
    for info in native.plain() {
        native.copy_plain(&info.name, out)?;
    }
    Ok(())
}

fn write_module(layout: Layout, native: &NativeReader, site: &NativeSite, out: &mut dyn ContainerWriter) -> Result<()> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let rounded = native.rounded(site)?;
    let half = 1i32 << (bits - 1);
    // A format stored unsigned has its codes where this container wants them already.
    let shift = if rounded.codes.lo < 0 { half } else { 0 };
    let unsigned: Vec<u8> = rounded.codes.iter().map(|c| (c + shift) as u8).collect();
    let zeros: Vec<u8> = rounded.params.zero.iter().map(|z| (*z as i32 + shift) as u8).collect();
    let (tile_rows, tile_cols) = rounded.params.layout.grid();
    for decl in module(layout, site) {
        let bytes = match (decl.name.rsplit('.').next().unwrap_or(""), layout) {
            ("weight_packed", _) => pack_rows(&unsigned, cols, bits),
            ("weight_shape", _) => [rows as i64, cols as i64].iter().flat_map(|d| d.to_le_bytes()).collect(),
            ("weight_scale", _) => scale_kind(&site.spec).bytes(&rounded.params.scale),
            ("weight_zero_point", Layout::Packed) => pack_columns(&zeros, tile_rows, tile_cols, bits),
            ("weight_zero_point", Layout::Int8) => signed(&zeros, half),
            _ => signed(&unsigned, half),
        };
        out.write(&decl.name, &bytes)?;
    }
    Ok(())
}

fn signed(unsigned: &[u8], half: i32) -> Vec<u8> {
    unsigned.iter().map(|u| (i32::from(*u) - half) as u8).collect()
}

pub(crate) fn config(layout: Layout, plan: &Plan) -> Result<Value> {
    let format = if layout == Layout::Packed { "pack-quantized" } else { "int-quantized" };
    let mut specs: Vec<(&QuantSpec, Vec<&str>)> = Vec::new();
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            match specs.iter_mut().find(|(known, _)| arguments(known) == arguments(spec)) {
                Some((_, modules)) => modules.push(&s.module),
                None => specs.push((spec, vec![&s.module])),
            }
        }
    }
    let ignore: Vec<&str> = plan.sites.iter().filter(|s| s.weights.is_none()).map(|s| s.module.as_str()).collect();
    let mut groups = serde_json::Map::new();
    // Where the architecture is unknown there may be linears (a tied head) that no list here names.
    let one = specs.len() == 1 && !plan.tensorwise;
    for (i, (spec, modules)) in specs.into_iter().enumerate() {
        let targets = if one { json!(["Linear"]) } else { json!(modules) };
        let group = json!({
            "targets": targets,
            "format": format,
            "weights": arguments(spec),
            "input_activations": null,
            "output_activations": null,
        });
        groups.insert(format!("group_{i}"), group);
    }
    Ok(json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "version": VERSION,
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    }))
}

/// The `weights` arguments. Readers refuse unknown keys, so there is nothing private here.
fn arguments(spec: &QuantSpec) -> Value {
    let (strategy, group) = match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::All, _) => ("tensor", None),
        (_, Extent::All) => ("channel", None),
        (_, Extent::Of(g)) => ("group", Some(g)),
    };
    json!({
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": !affine(spec),
        "strategy": strategy,
        "group_size": group,
        "block_structure": null,
        "dynamic": false,
        "actorder": null,
        "observer": "minmax",
        "observer_kwargs": {},
    })
}
