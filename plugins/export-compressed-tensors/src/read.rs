//! Reading weights of this format, whoever wrote them.

use std::sync::Arc;

use qfw_core::checkpoint::native::{Dequantized, NativeSite, ReadRounded, VirtualWeight};
use qfw_core::checkpoint::{StoredDtype, TensorSource};
use qfw_core::scheme::{FloatKind, Granularity, Grid, PowerRounding, QuantSpec, ScaleForm};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::groups::{Arguments, Finder, groups, spec};
use crate::layout::{Layout, e4m3};
use crate::{e8m0, fp4, fp8, int};

pub(crate) fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

/// What the tensors of a quantized module are called.
const SUFFIXES: [&str; 9] = [
    "weight_packed",
    "weight_scale",
    "weight_shape",
    "weight_zero_point",
    "weight_g_idx",
    "weight_global_scale",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
];
/// And those of an attention module.
const CACHE_SUFFIXES: [&str; 3] = [".k_scale", ".v_scale", ".q_scale"];

/// How the weight of a module is stored, if it is quantized.
pub(crate) fn layout_of(tensors: &dyn TensorSource, module: &str) -> Option<Layout> {
    let dtype = |suffix: &str| tensors.info(&format!("{module}.{suffix}")).map(|i| &i.dtype);
    match (dtype("weight_packed"), dtype("weight")) {
        (Some(StoredDtype::U8), _) if dtype("weight_global_scale").is_some() => Some(Layout::Nvfp4),
        (Some(StoredDtype::U8), _) => Some(Layout::Mxfp4),
        (Some(_), _) => Some(Layout::Packed),
        (None, Some(StoredDtype::I8)) => Some(Layout::Int),
        (None, Some(other)) if *other == e4m3() => {
            Some(if dtype("weight_scale").is_some_and(|d| e8m0::TYPES.contains(&d.name())) { Layout::Mxfp8 } else { Layout::Fp8 })
        }
        _ => None,
    }
}

pub(crate) fn open(config: &Value, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let groups = groups(config)?;
    let finder = Finder::new(&groups);
    let mut weights = Vec::new();
    for name in tensors.names() {
        let Some(module) = name.strip_suffix(".weight_packed").or_else(|| name.strip_suffix(".weight")) else { continue };
        let Some(layout) = layout_of(&*tensors, module) else { continue };
        let args = finder.of(module)?.weights.as_ref();
        let args = args.ok_or_else(|| bad(format!("`{module}` is quantized, but its entry of `config_groups` has no `weights`")))?;
        let shape = shape(layout, &*tensors, module)?;
        let spec = weight_spec(layout, args, &*tensors, module)?;
        let site = NativeSite { site: module.to_owned(), module: module.to_owned(), shape, transposed: false, spec };
        let hidden = SUFFIXES.map(|s| format!("{module}.{s}")).into_iter().chain([name.clone()]).collect();
        let read: ReadRounded = Box::new(move |site, tensors| {
            let rounded = match layout {
                Layout::Packed => int::read(site, true, tensors),
                Layout::Int => int::read(site, false, tensors),
                Layout::Fp8 | Layout::Mxfp8 => fp8::read(site, tensors),
                Layout::Nvfp4 | Layout::Mxfp4 => fp4::read(site, tensors),
            };
            rounded.map_err(|e| e.within(format!("`{}`", site.module)))
        });
        weights.push((VirtualWeight { site, hidden }, read));
    }
    if weights.is_empty() && config.get("kv_cache_scheme").is_none_or(Value::is_null) {
        let known = "formats that can be read: pack-quantized, int-quantized, float-quantized, nvfp4-pack-quantized, mxfp4-pack-quantized and \
                     mxfp8-quantized";
        return Err(bad("config.json says compressed-tensors, but no tensor is quantized".to_owned()).hint(known));
    }
    if let Some((first, _)) = weights.first_mut() {
        first.hidden.extend(tensors.names().into_iter().filter(|n| CACHE_SUFFIXES.iter().any(|s| n.ends_with(s))));
    }
    Ok(Arc::new(Dequantized::new(tensors, weights)))
}

fn shape(layout: Layout, tensors: &dyn TensorSource, module: &str) -> Result<(usize, usize)> {
    let (suffix, per_byte) = match layout {
        Layout::Packed => return int::packed_shape(tensors, module),
        Layout::Int | Layout::Fp8 | Layout::Mxfp8 => ("weight", 1),
        Layout::Nvfp4 | Layout::Mxfp4 => ("weight_packed", 2),
    };
    let name = format!("{module}.{suffix}");
    match tensors.info(&name).map(|i| i.shape.as_slice()) {
        Some([rows, cols]) if *rows > 0 && *cols > 0 => Ok((*rows, per_byte * cols)),
        other => Err(bad(format!("`{name}` has shape {other:?}, not two axes"))),
    }
}

fn weight_spec(layout: Layout, args: &Arguments, tensors: &dyn TensorSource, module: &str) -> Result<QuantSpec> {
    let floats = match layout {
        Layout::Packed | Layout::Int => (false, args.bits),
        Layout::Fp8 | Layout::Mxfp8 => (true, 8),
        Layout::Nvfp4 | Layout::Mxfp4 => (true, 4),
    };
    if (args.float, args.bits) != floats || args.dynamic || (args.float && !args.symmetric) {
        let kind = if args.float { "float" } else { "int" };
        return Err(bad(format!("`{module}` is stored as {}, but `config_groups` says {kind}, {} bits", layout.format(), args.bits)));
    }
    let granularity = match (args.strategy.as_str(), args.group_size, args.block) {
        ("tensor", ..) => Granularity::tensor(),
        ("channel", ..) => Granularity::channel(),
        ("group" | "tensor_group", Some(g), _) => Granularity::group(g),
        ("block", _, Some((r, c))) => Granularity::block(r, c),
        _ => return Err(bad(format!("`{module}`: {} is not one that can be read", args.tiles()))),
    };
    let scale_dtype = tensors.info(&format!("{module}.weight_scale")).map(|i| &i.dtype);
    let float = ScaleForm::Float(match scale_dtype {
        Some(StoredDtype::F16) => FloatKind::F16,
        Some(StoredDtype::BF16) => FloatKind::Bf16,
        _ => FloatKind::F32,
    });
    let byte = |expected: &[&str]| match scale_dtype {
        Some(d) if expected.contains(&d.name()) => Ok(()),
        other => Err(bad(format!("`{module}.weight_scale` is {other:?}, which {} has not", layout.format()))),
    };
    Ok(match layout {
        Layout::Packed | Layout::Int => spec(args, &format!("int{}", args.bits), int::grid(args.bits, args.symmetric), granularity, float),
        Layout::Fp8 => spec(args, "float-ocp-e4m3", Grid::Float(fp8::grid()?), granularity, float),
        Layout::Nvfp4 => {
            byte(&[e4m3().name()])?;
            spec(args, "nvfp4", Grid::Float(fp4::grid()?), granularity, ScaleForm::TwoLevel)
        }
        Layout::Mxfp4 => {
            byte(&e8m0::TYPES)?;
            let form = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 2 };
            spec(args, "mxfp4", Grid::Float(fp4::grid()?), granularity, form)
        }
        // The largest of e4m3 has the exponent 8.
        Layout::Mxfp8 => {
            let form = ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 8 };
            spec(args, "mxfp8-e4m3", Grid::Float(fp8::grid()?), granularity, form)
        }
    })
}

/// The `n` floats of a tensor of any shape.
pub(crate) fn scales(tensors: &dyn TensorSource, name: &str, n: usize) -> Result<Vec<f32>> {
    let info = tensors.info(name).ok_or_else(|| bad(format!("there is no `{name}`")))?;
    let mut out = Vec::new();
    tensors.read_f32(name, 0..info.shape.first().copied().unwrap_or(1), &mut out)?;
    if out.len() != n {
        return Err(bad(format!("`{name}` holds {} values for {n} tiles", out.len())));
    }
    match out.iter().find(|s| !s.is_finite()) {
        Some(s) => Err(bad(format!("`{name}` holds {s}"))),
        None => Ok(out),
    }
}
