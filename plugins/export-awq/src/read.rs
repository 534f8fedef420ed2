//! Reading weights of this format, whoever wrote them.

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{TensorSource, groups_of, matrix_of_words, packed_modules, scales_as_stored};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{Granularity, Grid, QParams, QuantSpec, ScaleForm, Zero};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::nibbles::unpack;
use crate::turn::turn;
use crate::write::SUFFIXES;

fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    /// Inputs of a group; `None` where nothing says so, and all inputs at 0.
    group: Option<u32>,
    /// Whether there are zero points.
    zeros: bool,
}

/// Reads `quantization_config`, or the older form of it with a file of its own.
fn parse(config: &Value) -> Result<Said> {
    let of = |keys: [&'static str; 2]| keys.into_iter().find_map(|k| Some((k, config.get(k).filter(|v| !v.is_null())?)));
    let wrong = |key: &str, v: &Value| bad(format!("`quantization_config.{key}` is {v}"));
    if let Some((key, bits)) = of(["bits", "w_bit"]).filter(|(_, v)| v.as_u64() != Some(4)) {
        return Err(wrong(key, bits).hint("this format has 4 bits"));
    }
    if let Some((key, version)) = of(["version", "format"]).filter(|(_, v)| !v.as_str().is_some_and(|v| v.eq_ignore_ascii_case("gemm"))) {
        return Err(wrong(key, version).hint("the layout `gemm` can be read; convert the checkpoint with the tool that wrote it"));
    }
    let group = match of(["group_size", "q_group_size"]) {
        None => None,
        Some((_, v)) if v.as_i64() == Some(-1) => Some(0),
        Some((key, v)) => match v.as_u64().map(u32::try_from) {
            Some(Ok(g)) if g > 0 => Some(g),
            _ => return Err(wrong(key, v).hint("it is a number of inputs, or -1 for all")),
        },
    };
    let zeros = match config.get("zero_point").filter(|v| !v.is_null()) {
        None => true,
        Some(v) => v.as_bool().ok_or_else(|| wrong("zero_point", v).hint("it is true or false"))?,
    };
    Ok(Said { group, zeros })
}

pub(crate) fn open(config: &Value, transposed: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let said = parse(config)?;
    packed_modules(tensors, "awq", &SUFFIXES, |tensors, module| site(tensors, module, said, transposed.contains(module)), rounded)
}

/// What a module is, from the shapes of its tensors, checked against what the configuration says.
fn site(tensors: &dyn TensorSource, module: &str, said: Said, transposed: bool) -> Result<NativeSite> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    let (cols, words) = matrix_of_words(tensors, &name("qweight"))?;
    let rows = words.checked_mul(8).ok_or_else(|| bad(format!("`{}` has {words} columns", name("qweight"))))?;
    let scales = tensors.require(&name("scales"))?;
    let group = match (said.group, scales.shape.first()) {
        (Some(0), _) => cols,
        (Some(g), _) => g as usize,
        // Nothing says so, and all groups are alike.
        (None, Some(groups)) if *groups > 0 => cols.div_ceil(*groups),
        (None, _) => cols,
    };
    let groups = cols.div_ceil(group);
    let expect = |shape: &[usize], suffix: &str, expected: &[usize]| {
        let message = || {
            format!(
                "`{}` has shape {shape:?}, but {cols} inputs in groups of {group} and {rows} outputs ask for {expected:?}",
                name(suffix)
            )
        };
        if shape == expected { Ok(()) } else { Err(bad(message()).hint("does `quantization_config` belong to these weights?")) }
    };
    expect(&scales.shape, "scales", &[groups, rows])?;
    let symmetric = !said.zeros && tensors.info(&name("qzeros")).is_none();
    if !symmetric {
        let (a, b) = matrix_of_words(tensors, &name("qzeros"))?;
        expect(&[a, b], "qzeros", &[groups, words])?;
    }
    let scale = scales_as_stored(tensors, &name("scales"))?;
    let granularity = groups_of(group, cols);
    let spec = spec(symmetric, granularity, scale);
    Ok(NativeSite { site: module.to_owned(), module: module.to_owned(), shape: (rows, cols), transposed, spec })
}

fn spec(symmetric: bool, granularity: Granularity, scale: ScaleForm) -> QuantSpec {
    let zero = if symmetric { Zero::None } else { Zero::Integer };
    QuantSpec::stored("int4", 4, Grid::Int { lo: -8, hi: 7, zero }, granularity, scale)
}

/// Codes and parameters of a module.
fn rounded(site: &NativeSite, tensors: &dyn TensorSource) -> Result<Rounded> {
    let (rows, cols) = site.shape;
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let groups = layout.grid().1;
    let mut turned = Vec::with_capacity(rows * cols);
    unpack(&tensors.read_bytes(&name("qweight"))?, &mut turned);
    let codes = turn(&turned, cols, rows);
    let mut stored = Vec::new();
    tensors.read_f32(&name("scales"), 0..groups, &mut stored)?;
    if let Some(s) = stored.iter().find(|s| !s.is_finite()) {
        return Err(bad(format!("`{}` holds {s}", name("scales"))));
    }
    let mut zeros = Vec::new();
    if site.spec.symmetric {
        zeros.resize(rows * groups, 8);
    } else {
        unpack(&tensors.read_bytes(&name("qzeros"))?, &mut zeros);
    }
    // From groups by outputs to outputs by groups.
    let at = |i: usize| i % groups * rows + i / groups;
    let scale = (0..layout.tiles()).map(|i| stored[at(i)]).collect();
    let zero = (0..layout.tiles()).map(|i| f32::from(zeros[at(i)]) - 8.0).collect();
    Ok(Rounded {
        codes: Codes { lo: -8, data: Units::Narrow(codes) },
        params: QParams { layout, scale, zero, global: None },
        group_index: None,
        events: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn old_and_new_keys_mean_the_same() {
        let old = json!({ "zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM" });
        let new = json!({ "quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm" });
        assert_eq!(parse(&old).unwrap(), Said { group: Some(128), zeros: true });
        assert_eq!(parse(&old).unwrap(), parse(&new).unwrap());
        assert_eq!(parse(&json!({ "quant_method": "awq" })).unwrap(), Said { group: None, zeros: true });
        assert_eq!(parse(&json!({ "group_size": -1, "zero_point": false })).unwrap(), Said { group: Some(0), zeros: false });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let failure = |config: Value| {
            let e = parse(&config).err().unwrap();
            format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
        };
        assert_eq!(failure(json!({ "bits": 5 })), "`quantization_config.bits` is 5 | this format has 4 bits");
        assert_eq!(
            failure(json!({ "version": "gemv" })),
            "`quantization_config.version` is \"gemv\" | \
             the layout `gemm` can be read; convert the checkpoint with the tool that wrote it"
        );
        assert_eq!(
            failure(json!({ "q_group_size": 0 })),
            "`quantization_config.q_group_size` is 0 | it is a number of inputs, or -1 for all"
        );
        assert_eq!(failure(json!({ "zero_point": "no" })), "`quantization_config.zero_point` is \"no\" | it is true or false");
    }
}
