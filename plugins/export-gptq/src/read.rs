//! Reading weights of this format, whoever wrote them.

use std::collections::BTreeSet;
use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::NativeSite;
use qfw_core::checkpoint::{StoredDtype, TensorSource, groups_of, matrix_of_words, packed_modules, scales_as_stored};
use qfw_core::numeric::{Codes, Units, unpack_row};
use qfw_core::scheme::{Granularity, Grid, QParams, QuantSpec, ScaleForm, TileLayout, Zero};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::Version;
use crate::stored::{Said, Stored};
use crate::words::unpack_down;
use crate::write::SUFFIXES;

pub(crate) fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

pub(crate) fn open(config: &Value, transposed: &BTreeSet<String>, tensors: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
    let stored = Stored::parse(config)?;
    let version = stored.version;
    let site = |tensors: &dyn TensorSource, module: &str| site(tensors, module, stored.of(module), transposed.contains(module));
    packed_modules(tensors, "gptq", &SUFFIXES, site, move |site, tensors| rounded(site, version, tensors))
}

fn expect(tensors: &dyn TensorSource, name: &str, shape: &[usize], why: &str) -> Result<()> {
    let info = tensors.require(name)?;
    if info.shape == shape { Ok(()) } else { Err(bad(format!("`{name}` has shape {:?}, but {why} asks for {shape:?}", info.shape))) }
}

/// What a module is, from the shapes of its tensors, checked against what the configuration says.
fn site(tensors: &dyn TensorSource, module: &str, said: Said, transposed: bool) -> Result<NativeSite> {
    let name = |suffix: &str| format!("{module}.{suffix}");
    let bits = usize::from(said.bits);
    let (words, rows) = matrix_of_words(tensors, &name("qweight"))?;
    // Whole words of codes, unless the index says that the last are padding.
    let all = words.checked_mul(32).map(|n| n / bits).ok_or_else(|| bad(format!("`{}` has {words} rows", name("qweight"))))?;
    let cols = match tensors.info(&name("g_idx")) {
        Some(index) => match (&index.dtype, &index.shape[..]) {
            (StoredDtype::I32, [n]) if *n > 0 => *n,
            (dtype, shape) => return Err(bad(format!("`{}` is {} {shape:?}, not I32 of one axis", name("g_idx"), dtype.name()))),
        },
        None => all,
    };
    if cols > all || (cols * bits).div_ceil(32) != words {
        let why = format!("`{}` has {words} rows of words, which are not {cols} inputs of {bits} bits", name("qweight"));
        return Err(bad(why).hint("does `quantization_config` belong to these weights?"));
    }
    let scales = tensors.require(&name("scales"))?;
    let groups = scales.shape.first().copied().unwrap_or(0);
    let group = match said.group {
        Some(0) => cols,
        Some(g) => g as usize,
        // Nothing says so, and all groups but the last are alike.
        None if groups > 0 => cols.div_ceil(groups),
        None => cols,
    };
    let groups = cols.div_ceil(group);
    let why = format!("{cols} inputs in groups of {group}, {rows} outputs");
    expect(tensors, &name("scales"), &[groups, rows], &why)?;
    matrix_of_words(tensors, &name("qzeros"))?;
    expect(tensors, &name("qzeros"), &[groups, (rows * bits).div_ceil(32)], &format!("{why}, {bits} bits"))?;
    let scale = scales_as_stored(tensors, &name("scales"))?;
    let granularity = groups_of(group, cols);
    Ok(NativeSite {
        site: module.to_owned(),
        module: module.to_owned(),
        shape: (rows, cols),
        transposed,
        spec: spec(said, granularity, scale),
    })
}

fn spec(said: Said, granularity: Granularity, scale: ScaleForm) -> QuantSpec {
    let half = 1 << (said.bits - 1);
    let zero = if said.symmetric == Some(true) { Zero::None } else { Zero::Integer };
    QuantSpec::stored(format!("int{}", said.bits), said.bits, Grid::Int { lo: -half, hi: half - 1, zero }, granularity, scale)
}

/// Codes and parameters of a module.
fn rounded(site: &NativeSite, version: Version, tensors: &dyn TensorSource) -> Result<Rounded> {
    let ((rows, cols), bits) = (site.shape, site.spec.bits);
    let name = |suffix: &str| format!("{}.{suffix}", site.module);
    let layout = site.spec.granularity.layout(rows, cols);
    let groups = layout.grid().1;
    let codes = unpack_down(&tensors.read_bytes(&name("qweight"))?, rows, cols, bits)?;
    let mut stored = Vec::new();
    tensors.read_f32(&name("scales"), 0..groups, &mut stored)?;
    if let Some(s) = stored.iter().find(|s| !s.is_finite()) {
        return Err(bad(format!("`{}` holds {s}", name("scales"))));
    }
    let zeros = zeros(&tensors.read_bytes(&name("qzeros"))?, version, rows, groups, bits)?;
    let middle = 1u8 << (bits - 1);
    if site.spec.symmetric
        && let Some(z) = zeros.iter().find(|z| **z != middle)
    {
        let what = format!("`{}` holds the zero point {z}, but `sym` is true, which is {middle} at {bits} bits", name("qzeros"));
        return Err(bad(what).hint("is `checkpoint_format` right? `gptq` stores zero points less one, `gptq_v2` as they are"));
    }
    // From groups by outputs to outputs by groups.
    let turned = |i: usize| i % groups * rows + i / groups;
    let scale = (0..layout.tiles()).map(|i| stored[turned(i)]).collect();
    let zero = (0..layout.tiles()).map(|i| f32::from(zeros[turned(i)]) - f32::from(middle)).collect();
    Ok(Rounded {
        codes: Codes { lo: -i32::from(middle), data: Units::Narrow(codes) },
        params: QParams { layout, scale, zero, global: None },
        group_index: group_index(tensors, &name("g_idx"), layout)?,
        events: Vec::new(),
    })
}

/// Zero points by group and output.
fn zeros(packed: &[u8], version: Version, rows: usize, groups: usize, bits: u8) -> Result<Vec<u8>> {
    let mut words = packed.to_vec();
    if version == Version::One && bits != 3 {
        // Writers take 1 from each field of a whole word: where one is 0, they borrow from the next, and adding to the word undoes it.
        let ones = (0..32).step_by(bits as usize).fold(0, |ones, at| ones | 1u32 << at);
        for word in words.chunks_exact_mut(4) {
            let less = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            word.copy_from_slice(&less.wrapping_add(ones).to_le_bytes());
        }
    }
    let mut out = Vec::with_capacity(rows * groups);
    for line in words.chunks_exact(words.len() / groups) {
        unpack_row(line, rows, bits, &mut out)?;
    }
    if version == Version::One && bits == 3 {
        out.iter_mut().for_each(|z: &mut u8| *z = (*z + 1) & 7);
    }
    Ok(out)
}

/// The group of each input, unless they run in storage order.
fn group_index(tensors: &dyn TensorSource, name: &str, layout: TileLayout) -> Result<Option<Vec<u32>>> {
    if tensors.info(name).is_none() {
        return Ok(None);
    }
    let bytes = tensors.read_bytes(name)?;
    let index: Vec<i32> = bytes.chunks_exact(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
    let groups = layout.grid().1;
    if let Some((i, g)) = index.iter().enumerate().find(|(_, g)| usize::try_from(**g).is_ok_and(|g| g >= groups) || **g < 0) {
        return Err(bad(format!("`{name}` puts input {i} into group {g} of {groups}")));
    }
    let index: Vec<u32> = index.into_iter().map(|g| g as u32).collect();
    let in_order = index.iter().enumerate().all(|(i, g)| *g as usize == i / layout.tile_cols);
    Ok(if in_order { None } else { Some(index) })
}
