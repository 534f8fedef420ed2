//! Reading checkpoints of this format, whoever wrote them.

use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{Dequantized, NativeSite, ReadRounded, VirtualWeight};
use qfw_core::checkpoint::{StoredDtype, TensorSource};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, QParams, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use qfw_core::{Error, Result};
use regex::Regex;
use serde_json::Value;

use crate::pack::{unpack, unpack_columns};

fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

struct Group {
    targets: Vec<String>,
    bits: u8,
    symmetric: bool,
    strategy: String,
    group_size: Option<u32>,
}

pub(crate) fn open(config: &Value, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let groups = groups(config)?;
    let mut weights = Vec::new();
    for name in tensors.names() {
        let (module, packed) = match (name.strip_suffix(".weight_packed"), name.strip_suffix(".weight")) {
            (Some(module), _) => (module, true),
            (None, Some(module)) if tensors.info(&name).is_some_and(|i| i.dtype == StoredDtype::I8) => (module, false),
            _ => continue,
        };
        let group = group_of(&groups, module)?;
        let shape = if packed { packed_shape(&*tensors, module)? } else { plain_shape(&*tensors, &name)? };
        let site = NativeSite {
            site: module.to_owned(),
            module: module.to_owned(),
            shape,
            transposed: false,
            spec: spec(group, &*tensors, module)?,
        };
        let hidden = ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"]
            .map(|s| format!("{module}.{s}"))
            .into_iter()
            .chain((!packed).then(|| name.clone()))
            .collect();
        let info = VirtualWeight { name: format!("{module}.weight"), shape: vec![shape.0, shape.1], hidden };
        let read: ReadRounded = Box::new(move |tensors| {
            Ok((site.clone(), rounded(&site, packed, tensors).map_err(|e| e.within(format!("`{}`", site.module)))?))
        });
        weights.push((info, read));
    }
    if weights.is_empty() {
        return Err(bad("config.json says compressed-tensors, but no tensor is packed or 8-bit".to_owned())
            .hint("formats that can be read: pack-quantized and int-quantized"));
    }
    Ok(Arc::new(Dequantized::new(tensors, weights)))
}

fn groups(config: &Value) -> Result<Vec<Group>> {
    let map = config
        .get("config_groups")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("`quantization_config` has no object `config_groups`".to_owned()))?;
    map.iter()
        .map(|(name, g)| {
            let w = &g["weights"];
            let need = |key: &str| bad(format!("`config_groups.{name}.weights.{key}` is missing or malformed"));
            if w["type"].as_str().is_some_and(|t| t != "int") {
                return Err(bad(format!("`config_groups.{name}` quantizes weights to {}", w["type"])).hint("integer weights can be read"));
            }
            Ok(Group {
                targets: g["targets"].as_array().into_iter().flatten().filter_map(|t| t.as_str().map(ToOwned::to_owned)).collect(),
                bits: w["num_bits"].as_u64().filter(|b| (1..=8).contains(b)).ok_or_else(|| need("num_bits"))? as u8,
                symmetric: w["symmetric"].as_bool().unwrap_or(true),
                strategy: w["strategy"].as_str().unwrap_or(if w["group_size"].is_null() { "tensor" } else { "group" }).to_owned(),
                group_size: w["group_size"].as_u64().filter(|g| (1..=u64::from(u32::MAX)).contains(g)).map(|g| g as u32),
            })
        })
        .collect()
}

/// The group of a module: by exact name, then by regular expression, then by class.
fn group_of<'a>(groups: &'a [Group], module: &str) -> Result<&'a Group> {
    let by = |matches: &dyn Fn(&str) -> bool| groups.iter().find(|g| g.targets.iter().any(|t| matches(t)));
    by(&|t| t == module)
        .or_else(|| by(&|t| t.strip_prefix("re:").is_some_and(|r| Regex::new(&format!("^(?:{r})")).is_ok_and(|r| r.is_match(module)))))
        .or_else(|| by(&|t| t == "Linear"))
        .ok_or_else(|| bad(format!("`{module}` is quantized, but no entry of `config_groups` targets it")))
}

fn packed_shape(tensors: &dyn TensorSource, module: &str) -> Result<(usize, usize)> {
    let name = format!("{module}.weight_shape");
    let bytes = tensors.read_bytes(&name)?;
    let info = tensors.info(&name).ok_or_else(|| bad(format!("there is no `{name}`")))?;
    let dims: Vec<usize> = match info.dtype {
        StoredDtype::I64 => {
            bytes.chunks_exact(8).map(|c| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as usize).collect()
        }
        StoredDtype::I32 => bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]]) as usize).collect(),
        _ => Vec::new(),
    };
    match dims[..] {
        [rows, cols] if rows.checked_mul(cols).is_some_and(|n| n > 0 && n < 1 << 40) => Ok((rows, cols)),
        _ => Err(bad(format!("`{name}` holds {dims:?}, which is no shape"))),
    }
}

fn plain_shape(tensors: &dyn TensorSource, name: &str) -> Result<(usize, usize)> {
    match tensors.info(name).map(|i| i.shape.as_slice()) {
        Some([rows, cols]) => Ok((*rows, *cols)),
        other => Err(bad(format!("`{name}` has shape {other:?}, not two axes"))),
    }
}

fn spec(group: &Group, tensors: &dyn TensorSource, module: &str) -> Result<QuantSpec> {
    let granularity = match (group.strategy.as_str(), group.group_size) {
        ("tensor", _) => Granularity::tensor(),
        ("channel", _) => Granularity::channel(),
        ("group", Some(g)) => Granularity::group(g),
        (other, size) => return Err(bad(format!("`{module}`: strategy `{other}` with group size {size:?} is not one that can be read"))),
    };
    let half = 1 << (group.bits - 1);
    let scale_kind = match tensors.info(&format!("{module}.weight_scale")).map(|i| &i.dtype) {
        Some(StoredDtype::F16) => FloatKind::F16,
        Some(StoredDtype::BF16) => FloatKind::Bf16,
        _ => FloatKind::F32,
    };
    Ok(QuantSpec {
        format: format!("int{}", group.bits),
        bits: group.bits,
        grid: Grid::Int { lo: -half, hi: half - 1, zero: if group.symmetric { Zero::None } else { Zero::Integer } },
        granularity,
        symmetric: group.symmetric,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options: serde_json::json!({}) },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: ScaleForm::Float(scale_kind),
    })
}

fn rounded(site: &NativeSite, packed: bool, tensors: &dyn TensorSource) -> Result<Rounded> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let half = 1i32 << (bits - 1);
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let (tile_rows, tile_cols) = layout.grid();
    let data = if packed {
        let bytes = tensors.read_bytes(&name("weight_packed"))?;
        let words = bytes.len() / 4 / rows;
        let padded = padded(words, cols, bits, &name("weight_packed"))?;
        let mut data = Vec::with_capacity(rows * cols);
        for row in bytes.chunks_exact(words * 4) {
            data.extend(unpack(row, cols, bits, padded)?);
        }
        data
    } else {
        tensors.read_bytes(&name("weight"))?.into_iter().map(|b| (i32::from(b as i8) + half) as u8).collect()
    };
    if data.len() != rows * cols {
        return Err(bad(format!("{} codes for {rows}x{cols}", data.len())));
    }
    let mut scale = Vec::new();
    let scale_rows = tensors.info(&name("weight_scale")).and_then(|i| i.shape.first().copied()).unwrap_or(1);
    tensors.read_f32(&name("weight_scale"), 0..scale_rows, &mut scale)?;
    if scale.len() != layout.tiles() {
        return Err(bad(format!("`{}` holds {} scales for {} tiles", name("weight_scale"), scale.len(), layout.tiles())));
    }
    let zero = match tensors.info(&name("weight_zero_point")) {
        Some(info) if !site.spec.symmetric => {
            let bytes = tensors.read_bytes(&name("weight_zero_point"))?;
            let unsigned = if info.dtype == StoredDtype::I8 {
                bytes.into_iter().map(|b| (i32::from(b as i8) + half) as u8).collect()
            } else {
                let padded = padded(bytes.len() / 4 / tile_cols, tile_rows, bits, &info.name)?;
                unpack_columns(&bytes, tile_rows, tile_cols, bits, padded)?
            };
            unsigned.into_iter().map(|u: u8| (i32::from(u) - half) as f32).collect()
        }
        None if !site.spec.symmetric => return Err(bad(format!("there is no `{}`", name("weight_zero_point")))),
        _ => vec![0.0; layout.tiles()],
    };
    if zero.len() != layout.tiles() {
        return Err(bad(format!("`{}` holds {} values for {} tiles", name("weight_zero_point"), zero.len(), layout.tiles())));
    }
    let group_index = match tensors.info(&name("weight_g_idx")) {
        Some(_) => {
            let bytes = tensors.read_bytes(&name("weight_g_idx"))?;
            let index: Vec<u32> = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
            // An index of -1 throughout means "not used" to some writers.
            if index.len() != cols || index.iter().any(|g| *g as usize >= tile_cols) { None } else { Some(index) }
        }
        None => None,
    };
    Ok(Rounded {
        codes: Codes { lo: -half, data: Units::Narrow(data) },
        params: QParams { layout, scale, zero, global: None },
        group_index,
        events: Vec::new(),
    })
}

/// Whether `words` 32-bit words hold `n` codes in the padded layout rather than the dense one.
fn padded(words: usize, n: usize, bits: u8, name: &str) -> Result<bool> {
    if words == (n * bits as usize).div_ceil(32) {
        Ok(false)
    } else if words == n.div_ceil(32 / bits as usize) {
        Ok(true)
    } else {
        Err(bad(format!("`{name}` has {words} words for {n} codes of {bits} bits")))
    }
}
