//! What an algorithm makes of one site, and whether that may be.

use std::panic::{AssertUnwindSafe, catch_unwind};

use qfw_core::algorithm::{Conditioned, Frozen, Needs, PtqAlgorithm, Rounded, SiteContext, SplitContext, Stage};
use qfw_core::numeric::{decode, encode};
use qfw_core::scheme::{FloatKind, Granularity};
use qfw_core::{Error, Result};

use super::{Kind, Outcome, Sample, Try};
use crate::{contract, plugin_error};

/// A site to try: name of the case, what is special, shape, format, and the group or 0.
type Shape = (&'static str, Kind, (usize, usize), &'static str, u32);

/// Sites, by the name of their case.
pub(super) const SHAPES: [Shape; 14] = [
    ("one-by-one", Kind::Plain, (1, 1), "int4", 0),
    ("one-row", Kind::Plain, (1, 37), "int4", 0),
    ("one-column", Kind::Plain, (37, 1), "int4", 0),
    ("affine", Kind::Plain, (16, 24), "uint4", 0),
    ("groups", Kind::Plain, (8, 64), "int4", 16),
    ("ragged-groups", Kind::Plain, (8, 50), "int4", 16),
    ("group-wider-than-the-row", Kind::Plain, (8, 24), "int4", 128),
    ("wide", Kind::Plain, (3, 4097), "int8", 0),
    ("two-byte-codes", Kind::Plain, (8, 24), "int12", 0),
    ("zero-column", Kind::ZeroColumn, (12, 24), "int4", 0),
    ("constant-row", Kind::ConstantRow, (12, 24), "int4", 0),
    ("outlier", Kind::Outlier, (12, 24), "int4", 0),
    ("rank-deficient", Kind::RankDeficient, (12, 48), "int4", 0),
    ("table", Kind::Plain, (8, 64), "nf4", 64),
];

pub(super) fn sample(seed: u64, kind: Kind, shape: (usize, usize), format: &str, group: u32) -> Result<Sample> {
    Sample::new(seed, kind, shape, format, if group == 0 { Granularity::channel() } else { Granularity::group(group) })
}

/// An ordinary site.
pub(super) fn plain(seed: u64) -> Result<Sample> {
    sample(seed, Kind::Plain, (24, 32), "int4", 16)
}

/// What an algorithm makes of a site.
pub(super) enum Made {
    Rounded(Rounded),
    /// The weight to round instead, and what ranges are fitted to where that is another.
    Conditioned(Vec<f32>, Option<Vec<f32>>),
    /// `A` and `B`.
    Branch(Vec<f32>, Vec<f32>),
    /// The bias.
    Corrected(Vec<f32>),
}

impl Made {
    /// As numbers that can be compared.
    pub(super) fn bits(&self) -> Vec<u32> {
        let of = |numbers: &[f32]| numbers.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        match self {
            Self::Rounded(r) => {
                let params = r.params.scale.iter().chain(&r.params.zero).map(|x| x.to_bits());
                r.codes.iter().map(|c| c as u32).chain(params).chain(r.group_index.iter().flatten().copied()).collect()
            }
            Self::Conditioned(weight, ranged) => [of(weight), of(ranged.as_deref().unwrap_or_default())].concat(),
            Self::Corrected(numbers) => of(numbers),
            Self::Branch(a, b) => [of(a), of(b)].concat(),
        }
    }
}

/// Whether the host would go on with what a rounding algorithm has returned: codes of the grid, scales and zero points as they are stored.
///
/// # Errors
/// The first number that is not so, with its place.
pub fn may_be_used(cx: &SiteContext<'_>, rounded: &Rounded) -> Result<()> {
    contract::rounded(cx, &rounded.codes, &rounded.params)?;
    rounded.group_index.as_ref().map_or(Ok(()), |index| contract::group_index(cx, index))
}

/// Collects what the algorithm asks for, has it work on the site, and looks at what it returns as the host does.
///
/// # Errors
/// The algorithm's own, or how its answer breaks the contract.
pub(super) fn made(algorithm: &dyn PtqAlgorithm, sample: &mut Sample, weight: &[f32]) -> Result<Made> {
    let needs = sample.collect(algorithm)?;
    work(algorithm, &needs, &sample.context(weight), sample)
}

fn work(algorithm: &dyn PtqAlgorithm, needs: &Needs, cx: &SiteContext<'_>, sample: &Sample) -> Result<Made> {
    contained(|| stage(algorithm, needs, cx, sample))
}

/// Linked algorithms panic on this side of the interface: that is as much an answer as it is from a library.
pub(super) fn contained<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(plugin_error("plugin::panic", format!("it panicked: {}", text.unwrap_or("without a word"))))
    })
}

fn stage(algorithm: &dyn PtqAlgorithm, needs: &Needs, cx: &SiteContext<'_>, sample: &Sample) -> Result<Made> {
    Ok(match algorithm.stage() {
        Stage::Round(stage) => {
            let rounded = stage.round(cx)?;
            may_be_used(cx, &rounded)?;
            Made::Rounded(rounded)
        }
        Stage::Condition(stage) => {
            let Conditioned { weight, ranged, .. } = stage.condition(cx)?;
            for (what, numbers) in std::iter::once(("the weight", &weight)).chain(ranged.iter().map(|r| ("the weight for ranges", r))) {
                contract::finite(what, numbers)?;
                if numbers.len() != cx.weight.len() {
                    return Err(contract::violation(format!("{what} has {} numbers, and the site {}", numbers.len(), cx.weight.len())));
                }
            }
            Made::Conditioned(weight, ranged)
        }
        Stage::Split(stage) => {
            let branch = needs.branch.ok_or_else(|| contract::violation("it splits, and asks for no `branch`".to_owned()))?;
            let (rows, cols) = cx.linear.shape;
            let rank = branch.rank.min(rows).min(cols);
            if rank == 0 {
                return Err(contract::violation("it asks for a branch of rank 0".to_owned()));
            }
            let mut found = stage.split(&SplitContext { sites: &[*cx], rank, stored: FloatKind::F32 })?;
            let b = found.b.pop().unwrap_or_default();
            contract::finite("A", &found.a)?;
            contract::finite("B", &b)?;
            if (found.a.len(), b.len()) != (rank * cols, rows * rank) {
                return Err(contract::violation(format!("its branch has {} and {} numbers", found.a.len(), b.len())));
            }
            Made::Branch(found.a, b)
        }
        Stage::Correct(stage) => {
            let (weight, bias) = (values(sample, &cx.nearest()?), vec![0.0; cx.linear.shape.0]);
            let bias = stage.correct(cx, &Frozen { weight: &weight, bias: &bias })?.bias;
            contract::finite("the bias", &bias)?;
            Made::Corrected(bias)
        }
        _ => {
            return Err(Error::plan(
                "plan::unsupported",
                "it works on the whole model, or on a whole block: the kit has only single sites",
            ));
        }
    })
}

/// What codes stand for.
fn values(sample: &Sample, rounded: &Rounded) -> Vec<f32> {
    let mut values = Vec::new();
    let rows = 0..sample.linear.shape.0;
    decode(&sample.spec.grid, &rounded.params, &rounded.codes, rows, rounded.group_index.as_deref(), &mut values);
    values
}

/// One site: what is returned satisfies the contract, and what was lent is as it was.
pub(super) fn one(on: &Try, mut sample: Sample) -> Result<Outcome> {
    let algorithm = on.instance()?;
    let (needs, weight) = (sample.collect(&*algorithm)?, sample.weight.clone());
    let collected = sample.fingerprint(&needs);
    let result = work(&*algorithm, &needs, &sample.context(&weight), &sample);
    if weight.iter().zip(&sample.weight).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Ok(Outcome::Failed("it wrote to the weight that it was lent".to_owned()));
    }
    if sample.fingerprint(&needs) != collected {
        return Ok(Outcome::Failed("it wrote to a statistic that it was lent".to_owned()));
    }
    Ok(match result? {
        Made::Rounded(rounded) => judged(&sample, &rounded),
        Made::Branch(a, b) => smaller(&sample, &a, &b),
        Made::Corrected(bias) => corrected(&sample, &bias),
        Made::Conditioned(..) => Outcome::Success,
    })
}

/// `Σ‖x(w − ŵ)ᵀ − b‖²` over the inputs.
fn error(sample: &Sample, values: &[f32], bias: &[f32]) -> f64 {
    let cols = sample.linear.shape.1;
    let mut sum = 0.0;
    for x in sample.inputs.chunks(cols) {
        for (r, (w, v)) in sample.weight.chunks(cols).zip(values.chunks(cols)).enumerate() {
            let y = w.iter().zip(v).zip(x).map(|((w, v), x)| f64::from(w - v) * x).sum::<f64>();
            sum += (y - bias.get(r).map_or(0.0, |b| f64::from(*b))).powi(2);
        }
    }
    sum
}

/// Codes stand for themselves, and for no more error than those of rounding to nearest: the latter is worth a word only.
fn judged(sample: &Sample, rounded: &Rounded) -> Outcome {
    let ours = values(sample, rounded);
    if rounded.group_index.is_none() {
        let again = Rounded {
            codes: encode(&sample.spec.grid, &rounded.params, &ours),
            params: rounded.params.clone(),
            group_index: None,
            events: Vec::new(),
        };
        if let Some(i) = ours.iter().zip(values(sample, &again)).position(|(a, b)| *a != b) {
            return Outcome::Failed(format!("the value {} of a code has another code", ours[i]));
        }
    }
    let Ok(nearest) = sample.context(&sample.weight).nearest() else { return Outcome::Success };
    let (ours, theirs) = (error(sample, &ours, &[]), error(sample, &values(sample, &nearest), &[]));
    if ours > theirs * 1.01 + 1e-12 {
        return Outcome::Warning(format!("its error is {:.3} times that of rounding to nearest", ours / theirs));
    }
    Outcome::Success
}

/// What is left for the codes is not larger than the weight.
fn smaller(sample: &Sample, a: &[f32], b: &[f32]) -> Outcome {
    let (rows, cols) = sample.linear.shape;
    let (rank, mut left, mut all) = (b.len() / rows, 0.0, 0.0);
    for (i, w) in sample.weight.iter().enumerate() {
        let (row, col) = (i / cols, i % cols);
        let branch: f64 = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * cols + col])).sum();
        left += (f64::from(*w) - branch).powi(2);
        all += f64::from(*w).powi(2);
    }
    if left > all * 1.000_001 {
        return Outcome::Warning(format!("what it leaves for the codes is {:.3} times as large as the weight", (left / all).sqrt()));
    }
    Outcome::Success
}

/// The output of the rounded layer does not get worse.
fn corrected(sample: &Sample, bias: &[f32]) -> Outcome {
    let Ok(nearest) = sample.context(&sample.weight).nearest() else { return Outcome::Success };
    let values = values(sample, &nearest);
    let (before, after) = (error(sample, &values, &[]), error(sample, &values, bias));
    if after > before * 1.01 + 1e-12 {
        return Outcome::Warning(format!("the layer's error becomes {:.3} times what it was", after / before));
    }
    Outcome::Success
}

/// Values of the grid stay what they are.
pub(super) fn fixed_point(on: &Try) -> Result<Outcome> {
    let mut sample = sample(on.seed, Kind::OnGrid, (12, 24), "int4", 0)?;
    let algorithm = on.instance()?;
    let weight = sample.weight.clone();
    let Made::Rounded(rounded) = made(&*algorithm, &mut sample, &weight)? else { return Ok(Outcome::Success) };
    let values = values(&sample, &rounded);
    Ok(match values.iter().zip(&weight).position(|(v, w)| v != w) {
        Some(i) => Outcome::Warning(format!("a weight that is a value of the grid, {}, becomes {}", weight[i], values[i])),
        None => Outcome::Success,
    })
}

/// An algorithm with a `strength` does nothing without any.
pub(super) fn no_strength(on: &Try) -> Result<Outcome> {
    let none = serde_json::json!({ "strength": 0 });
    let Ok((algorithm, _)) = on.build(&none) else { return Ok(Outcome::Skipped("it has no option `strength` that can be 0".to_owned())) };
    let mut sample = plain(on.seed)?;
    let weight = sample.weight.clone();
    Ok(match made(&*algorithm, &mut sample, &weight)? {
        Made::Conditioned(after, ranged) if after != weight || ranged.as_ref().is_some_and(|r| *r != weight) => {
            Outcome::Failed("with a strength of 0 it moves weights".to_owned())
        }
        _ => Outcome::Success,
    })
}
