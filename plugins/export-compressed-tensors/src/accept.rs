//! Whether a plan can be held: first its weights, then its activations.

use qfw_core::plan::{Plan, PlannedActivation, PlannedSite};
use qfw_core::scheme::{Convention, Extent, Grid, QuantSpec, ScaleForm, Timing, Zero};
use qfw_core::{Error, Result};

use crate::activation::{attention, cache_letter, inputs};
use crate::layout::{Choice, Layout};
use crate::{arguments, fp4, fp8};

const NATIVE: &str = "use `--format qfw`";
const OTHERS: &str = "use fp8, nvfp4, mxfp4, mxfp8-e4m3, int4 or int8, or `--format qfw`";

fn refuse(site: &str, why: &str, hint: &str) -> Result<()> {
    Err(Error::plan("plan::container", format!("`{site}`: {why}")).hint(hint))
}

/// Why a plan cannot be held, if it cannot.
pub(crate) fn check(choice: Choice, plan: &Plan) -> Result<()> {
    let inputs = inputs(&plan.activations);
    for s in &plan.sites {
        if let Some(spec) = &s.weights {
            weight(choice, s, spec, inputs.get(s.module.as_str()).copied())?;
        }
    }
    for a in &plan.activations {
        match (a.part.as_str(), cache_letter(a)) {
            ("inputs", _) => input(plan, a)?,
            (_, Some(letter)) => cache(plan, a, letter)?,
            (part, None) => {
                let why = format!("it holds rounded inputs, and keys and values, but no {part} ({})", a.spec);
                return refuse(&a.place.to_string(), &why, &format!("leave `scheme.{part}` out, or {NATIVE}"));
            }
        }
    }
    whole_cache(plan)?;
    if let Some(who) = plan.unordered() {
        return Err(Error::plan("plan::container", format!("{who} that do not run in storage order, and readers since 0.19 refuse them"))
            .hint("set `act-order = \"static\"`, which needs no index, or use `--format qfw`"));
    }
    Ok(())
}

fn weight(choice: Choice, s: &PlannedSite, spec: &QuantSpec, input: Option<&QuantSpec>) -> Result<()> {
    if s.is_embedding() {
        return refuse(&s.site, "readers of this format look tokens up in floats", "leave `scheme.embed` out, or use `--format qfw`");
    }
    if s.transposed {
        let why = "its weight is stored transposed (`Conv1D`), and readers of this format quantize plain linear layers only; \
                   transformers would fill the layer with random numbers without an error";
        let integers = matches!(spec.grid, Grid::Int { .. });
        let others = "use `--format gptq`, which GPTQModel loads, `gguf` for llama.cpp, or `qfw`";
        return refuse(&s.site, why, if integers { others } else { "use int4 or int8 with `--format gptq` or `gguf`, or `--format qfw`" });
    }
    if spec.timing != Timing::Static {
        return refuse(&s.site, &format!("it holds weights with scales, not {spec}"), "leave `timing` out, or use `--format qfw`");
    }
    if choice == Choice::Int8 && (spec.bits != 8 || !matches!(spec.grid, Grid::Int { .. })) {
        return refuse(&s.site, &format!("it holds 8-bit codes, not {}", spec.format), "use `--format compressed-tensors`");
    }
    match Layout::of(choice, spec, input) {
        Layout::Packed | Layout::Int => integers(choice, s, spec),
        Layout::Fp8 => float8(s, spec),
        Layout::Mxfp8 => runs(Layout::Mxfp8, s, spec),
        layout @ (Layout::Nvfp4 | Layout::Mxfp4) => float4(layout, s, spec),
    }
}

fn integers(choice: Choice, s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    let site = &s.site;
    if matches!(spec.grid, Grid::Levels(_)) {
        return refuse(site, &format!("it has no room for a table of values, which {} is", spec.format), OTHERS);
    }
    if !matches!(spec.grid, Grid::Int { zero: Zero::None | Zero::Fixed(_) | Zero::Integer, .. }) || spec.bits > 8 {
        let why = format!("it holds integers of up to 8 bits with integer zero points, not {spec}");
        return refuse(site, &why, "use int4 or int8, or `--format qfw`");
    }
    if !matches!(spec.scale, ScaleForm::Float(_)) {
        return refuse(site, "its scales are floats, not powers of two", "leave `scale` out, or use `--format qfw`");
    }
    match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::Of(1), Extent::Of(g)) if !s.shape.1.is_multiple_of(g as usize) => {
            let nearest = (1..=g).rev().filter(|n| n.is_power_of_two()).find(|n| s.shape.1.is_multiple_of(*n as usize)).unwrap_or(1);
            let hint = format!("group {nearest} divides it; or use `--format qfw`, which holds a shorter last group");
            refuse(site, &format!("group {g} does not divide its {} input channels", s.shape.1), &hint)
        }
        (Extent::Of(1), Extent::Of(_)) if choice == Choice::Int8 => {
            refuse(site, "it holds one scale per channel or tensor, not per group", "use `--format compressed-tensors`")
        }
        (Extent::Of(1), _) | (Extent::All, Extent::All) => Ok(()),
        _ => {
            let why = format!("it holds no integers in tiles of the kind `{}`", spec.granularity);
            refuse(site, &why, "use group, channel or tensor, or `--format qfw`")
        }
    }
}

fn float8(s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    if !fp8::holds(&spec.grid) {
        return refuse(&s.site, &format!("its floats are OCP e4m3, and e2m1 in nvfp4 and mxfp4, not {spec}"), OTHERS);
    }
    if !matches!(spec.scale, ScaleForm::Float(_)) {
        return refuse(&s.site, "the scales of its e4m3 weights are floats or powers of two, not none", "use fp8, or `--format qfw`");
    }
    match (spec.granularity.rows, spec.granularity.cols) {
        (Extent::Of(1), Extent::All) | (Extent::All, Extent::All) => Ok(()),
        (Extent::Of(128), Extent::Of(128)) if s.shape.1.is_multiple_of(128) => Ok(()),
        (Extent::Of(128), Extent::Of(128)) => {
            refuse(&s.site, &format!("blocks of 128 do not divide its {} input channels", s.shape.1), "use channel, or `--format qfw`")
        }
        _ => {
            let why = format!("it holds no fp8 in tiles of the kind `{}`", spec.granularity);
            refuse(&s.site, &why, "use channel, tensor or block 128x128, or `--format qfw`")
        }
    }
}

fn float4(layout: Layout, s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    if !fp4::holds(&spec.grid) {
        return refuse(&s.site, &format!("its floats with two levels of scales are e2m1, not {spec}"), OTHERS);
    }
    runs(layout, s, spec)
}

fn runs(layout: Layout, s: &PlannedSite, spec: &QuantSpec) -> Result<()> {
    let run = if layout == Layout::Nvfp4 { fp4::NV_RUN } else { fp4::MX_RUN };
    if (spec.granularity.rows, spec.granularity.cols) != (Extent::Of(1), Extent::Of(run)) {
        let why = format!("`{}` has runs of {run}, not {}", layout.format(), spec.granularity);
        return refuse(&s.site, &why, OTHERS);
    }
    if !s.shape.1.is_multiple_of(run as usize) {
        return refuse(&s.site, &format!("runs of {run} do not divide its {} input channels", s.shape.1), "use fp8, or `--format qfw`");
    }
    Ok(())
}

fn input(plan: &Plan, a: &PlannedActivation) -> Result<()> {
    let (place, spec) = (a.place.to_string(), &a.spec);
    for s in plan.sites.iter().filter(|s| a.modules.contains(&s.module)) {
        let Some(weight) = &s.weights else {
            let why = format!("`{}` reads it rounded, but keeps its weight, and readers round inputs of quantized layers only", s.site);
            return refuse(&place, &why, "quantize that weight, or skip that layer, or use `--format qfw`");
        };
        let integers = matches!((&weight.grid, &spec.grid), (Grid::Int { .. }, Grid::Int { .. }));
        let floats = fp8::holds(&weight.grid) && fp8::holds(&spec.grid) && matches!(weight.scale, ScaleForm::Float(_));
        if !integers && !floats {
            let why = format!("it holds integer inputs of integer weights and fp8 inputs of fp8 weights, not {spec} for {weight}");
            return refuse(&place, &why, "use inputs of the weights' kind, int8 or fp8, or weights alone, or `--format qfw`");
        }
        if let (Extent::Of(1), Extent::Of(g)) = (spec.granularity.rows, spec.granularity.cols)
            && !s.shape.1.is_multiple_of(g as usize)
        {
            return refuse(&place, &format!("group {g} does not divide its {} channels", s.shape.1), "use token, or `--format qfw`");
        }
    }
    numbers(&place, spec)?;
    let tiles = (spec.granularity.rows, spec.granularity.cols);
    match spec.timing {
        Timing::Dynamic if matches!(tiles, (Extent::Of(1), _)) => as_readers_do(&place, spec),
        Timing::Static if tiles == (Extent::All, Extent::All) => Ok(()),
        Timing::Dynamic => {
            let why = format!("its dynamic inputs have a scale for each token or group, not for each {}", spec.granularity);
            refuse(&place, &why, "use token or group, or `--format qfw`")
        }
        Timing::Static | Timing::Cast => {
            let why = format!("its static inputs have one scale, not one for each {}", spec.granularity);
            refuse(&place, &why, "use tensor, or `timing = \"dynamic\"`, or `--format qfw`")
        }
    }
}

/// What holds of all rounded activations.
fn numbers(place: &str, spec: &QuantSpec) -> Result<()> {
    let whole = match spec.grid {
        Grid::Int { lo, hi, zero } => zero != Zero::Float && spec.bits <= 8 && hi - lo == (1 << spec.bits) - 1,
        _ => fp8::holds(&spec.grid),
    };
    if !whole {
        let why = format!("it holds activations of up to 8 bits that use every code, or fp8, and no float zero points, not {spec}");
        return refuse(place, &why, "use int8 or fp8 without `convention` and `zero-point`, or `--format qfw`");
    }
    match spec.scale {
        ScaleForm::Float(_) => Ok(()),
        ScaleForm::One => refuse(place, "readers scale every activation, and this one is a cast", "use a scale, or `--format qfw`"),
        _ => refuse(place, "scales of its activations are floats, not powers of two", "leave `scale` out, or use `--format qfw`"),
    }
}

/// Whether readers would compute the same scale at each call.
fn as_readers_do(place: &str, spec: &QuantSpec) -> Result<()> {
    let convention = spec.convention == Convention::HalfRange || !spec.symmetric || fp8::holds(&spec.grid);
    if convention && spec.rescale == 1.0 && spec.min_threshold == 0.0 {
        return Ok(());
    }
    let why = "readers compute dynamic scales themselves, as the whole range over all codes";
    refuse(place, why, "leave `convention`, `rescale` and `min-threshold` out, or use `--format qfw`")
}

fn cache(plan: &Plan, a: &PlannedActivation, letter: char) -> Result<()> {
    let (place, spec) = (a.place.to_string(), &a.spec);
    let [module] = &a.modules[..] else {
        return refuse(&place, &format!("{} projections make it, and readers know one", a.modules.len()), NATIVE);
    };
    let site = plan.sites.iter().find(|s| s.module == *module);
    if attention(module, letter).is_none() || site.is_some_and(|s| s.transposed) {
        let why = format!("its scale is stored beside a layer `{letter}_proj`, and this model's is `{module}`");
        return refuse(&place, &why, NATIVE);
    }
    numbers(&place, spec)?;
    if spec.bits != 8 || matches!(spec.grid.zero(), Zero::Integer) {
        return refuse(
            &place,
            &format!("its keys and values have 8 bits and no zero point, not {spec}"),
            "use fp8 or int8, or `--format qfw`",
        );
    }
    let tiles = (spec.granularity.rows, spec.granularity.cols);
    let heads = matches!(tiles, (Extent::All, Extent::Of(h)) if h > 1 && site.is_some_and(|s| s.shape.0.is_multiple_of(h as usize)));
    if spec.timing != Timing::Static || !(heads || tiles == (Extent::All, Extent::All)) {
        let why = format!("engines read one fixed scale of all keys or values, or one for each head, not {spec}");
        return refuse(&place, &why, "use `timing = \"static\"` with tensor or head, or `--format qfw`");
    }
    Ok(())
}

/// Readers round keys and values alike, and in every block.
fn whole_cache(plan: &Plan) -> Result<()> {
    let all: Vec<(&PlannedActivation, char)> = plan.activations.iter().filter_map(|a| Some((a, cache_letter(a)?))).collect();
    let Some((first, _)) = all.first() else { return Ok(()) };
    let args = arguments::cache(&first.spec);
    if let Some((other, _)) = all.iter().find(|(a, _)| arguments::cache(&a.spec) != args) {
        let why = format!("readers round all keys and values alike, but it is {}, and `{}` is {}", other.spec, first.place, first.spec);
        return refuse(&other.place.to_string(), &why, "give `keys` and `values` the same scheme, or use `--format qfw`");
    }
    for (letter, part) in [('k', "keys"), ('v', "values")] {
        let n = all.iter().filter(|(_, l)| *l == letter).count();
        if n != plan.blocks as usize {
            let why = format!("readers round keys and values in every block, but {part} are rounded in {n} of {}", plan.blocks);
            return refuse(&first.place.to_string(), &why, "give `keys` and `values` of all blocks the same scheme, or use `--format qfw`");
        }
    }
    Ok(())
}
