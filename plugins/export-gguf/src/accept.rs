//! Which block format a scheme maps to, and whether a plan can be held.

use qfw_core::checkpoint::Verdict;
use qfw_core::plan::{Plan, PlannedSite};
use qfw_core::scheme::{Extent, FloatKind, FloatVariant, Grid, QuantSpec, ScaleForm, Timing, Zero};
use qfw_core::{Error, Result};

use crate::block::Block;
use crate::family;

const NEAREST: &str = "use int4, int5 or int8 in groups of 32, mxfp4, or `--format qfw`";

fn refuse<T>(site: &str, why: &str, hint: &str) -> Result<T> {
    Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint))
}

pub(crate) fn verdict(plan: &Plan) -> Verdict {
    match check(plan) {
        Err(e) => Verdict::Refused(e),
        Ok(()) => match (changes(plan), repeats(plan)) {
            (None, None) => Verdict::Exact,
            (None, Some(larger)) => Verdict::Larger(larger),
            (Some(what), None) => Verdict::Changes(what),
            (Some(what), Some(larger)) => Verdict::Changes(format!("{what}; {larger}")),
        },
    }
}

fn check(plan: &Plan) -> Result<()> {
    family::architecture(&plan.model_type)?;
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            let block = block(&s.site, spec)?;
            shape(s, spec, block)?;
            if block == Block::Nvfp4 {
                two_level(plan, s)?;
            }
        }
    }
    if let Some(who) = plan.unordered() {
        let what = format!("{who} that do not run in storage order, and blocks do");
        return Err(Error::plan("plan::container", what).hint("set `act-order = \"static\"`, or use `--format gptq` or `qfw`"));
    }
    if let Some(a) = plan.activations.first() {
        let why = format!("it holds weights, and nothing that rounds {} ({})", a.part, a.spec);
        let hint = format!("leave `scheme.{}` out, or use `--format compressed-tensors` or `qfw`", a.part);
        return refuse(&a.place.to_string(), &why, &hint);
    }
    Ok(())
}

/// The block format of a scheme.
///
/// # Errors
/// If there is none, with the nearest scheme that has one.
pub(crate) fn block(site: &str, spec: &QuantSpec) -> Result<Block> {
    if spec.timing != Timing::Static {
        return refuse(site, &format!("it holds weights with scales, not {spec}"), "leave `timing` out, or use `--format qfw`");
    }
    match (&spec.grid, spec.scale) {
        (Grid::Int { .. }, ScaleForm::Float(_) | ScaleForm::PowerOfTwo { .. }) => integers(site, spec),
        (Grid::Float(f), ScaleForm::PowerOfTwo { .. }) if f.shape() == (2, 1) && f.variant() == FloatVariant::Ocp => Ok(Block::Mxfp4),
        (Grid::Float(f), ScaleForm::TwoLevel) if f.shape() == (2, 1) => Ok(Block::Nvfp4),
        _ => refuse(site, &format!("none of its blocks holds {}", spec.format), NEAREST),
    }
}

fn integers(site: &str, spec: &QuantSpec) -> Result<Block> {
    let (lo, hi) = spec.grid.limits();
    let zero = match spec.grid.zero() {
        Zero::None => Some(0),
        Zero::Fixed(z) => Some(z),
        Zero::Integer | Zero::Float => None,
    };
    let block = match (spec.bits, zero) {
        (4, Some(_)) => Block::Q4_0,
        (4, None) => Block::Q4_1,
        (5, Some(_)) => Block::Q5_0,
        (5, None) => Block::Q5_1,
        (8, Some(_)) => Block::Q8_0,
        (8, None) => {
            return refuse(
                site,
                "its blocks of 8 bits have no minimum, and so no zero points",
                "set `symmetric = true`, or use uint4 or uint5",
            );
        }
        (bits, _) => {
            // llama.cpp has k-quants for these widths: two levels of scales that no scheme here has.
            let nearest = if bits < 4 { "int4" } else { "int8" };
            let hint = format!("k-quants are not written; nearest: `{nearest}` in groups of 32, or `--format qfw`");
            return refuse(site, &format!("it has blocks of 4, 5 and 8 bits, not of {bits}"), &hint);
        }
    };
    let middle = 1 << (spec.bits - 1);
    match zero {
        Some(z) if lo - z < -middle || hi - z >= middle => {
            refuse(site, &format!("it holds integers around their middle, not {spec}"), NEAREST)
        }
        _ => Ok(block),
    }
}

fn shape(s: &PlannedSite, spec: &QuantSpec, block: Block) -> Result<()> {
    let (inputs, run) = (s.shape.1, block.run());
    if !inputs.is_multiple_of(block.len()) {
        let why = format!("blocks of {} have {} elements, which do not divide its {inputs} input channels", block.name(), block.len());
        return refuse(&s.site, &why, "leave that layer out, or use `--format compressed-tensors` or `qfw`");
    }
    match spec.granularity.cols {
        Extent::Of(g) if (g as usize) < inputs && !(g as usize).is_multiple_of(run) => {
            let why = format!("groups of {g} inputs are no multiple of {run}, which is what shares a scale in {}", block.name());
            refuse(&s.site, &why, &format!("use groups of {run}, 64 or 128, or `--format qfw`"))
        }
        _ => Ok(()),
    }
}

/// llama.cpp reads the factor of the tensor everywhere, and multiplies with it only in some places.
fn two_level(plan: &Plan, s: &PlannedSite) -> Result<()> {
    // Compressed-tensors has no place for GPT-2's layers.
    let gpt2 = plan.model_type == "gpt2";
    let hint = if gpt2 { "use mxfp4, or `--format qfw`" } else { "use mxfp4, or `--format compressed-tensors` or `qfw`" };
    if s.is_embedding() {
        return refuse(&s.site, "the factor that nvfp4 has for the whole tensor has no place in an embedding", hint);
    }
    if gpt2 || plan.model_type == "qwen2" {
        let why =
            format!("llama.cpp leaves out the factor that nvfp4 has for the whole tensor in feed-forward layers of {}", plan.model_type);
        return refuse(&s.site, &why, hint);
    }
    Ok(())
}

/// What is rounded on the way.
fn changes(plan: &Plan) -> Option<String> {
    let quantized = || plan.sites.iter().filter_map(|s| Some((s, s.weights.as_ref()?)));
    // Numbers of bf16 are numbers of f16 too, down to 2^-17, and scales are above that in all but dead channels.
    let single = quantized().find(|(_, w)| w.scale == ScaleForm::Float(FloatKind::F32));
    let scales =
        single.map(|(s, _)| format!("it holds scales as f16, and those of `{}` are f32: each moves by up to 1/2048 of itself", s.site));
    let affine = quantized().find(|(_, w)| matches!(w.grid.zero(), Zero::Integer | Zero::Float));
    let minima = affine.map(|(s, _)| {
        format!("it holds what the smallest code of a group stands for as f16, in place of zero points: in `{}` that moves by up to 1/2048 of itself", s.site)
    });
    match (scales, minima) {
        (Some(a), Some(b)) => Some(format!("{a}; {b}")),
        (a, b) => a.or(b),
    }
}

/// Whether groups are larger than what shares a scale in a block.
fn repeats(plan: &Plan) -> Option<String> {
    plan.sites.iter().find_map(|s| {
        let spec = s.weights.as_ref()?;
        let block = block(&s.site, spec).ok()?;
        let layout = spec.granularity.layout(s.shape.0, s.shape.1);
        (layout.tile_cols != block.run() || layout.tile_rows != 1).then(|| {
            format!(
                "each scale is stored once for every {} inputs: {} bits a weight in `{}`, not {:.2}",
                block.run(),
                block.bits(),
                s.site,
                spec.bits_per_weight(s.shape.0, s.shape.1)
            )
        })
    })
}
