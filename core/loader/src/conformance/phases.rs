//! The cases of each phase.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use qfw_core::Result;
use qfw_core::algorithm::{Phase, PtqAlgorithm, Rounded, SplitContext, Stage};
use qfw_core::numeric::decode;
use qfw_core::scheme::{FloatKind, Granularity};
use qfw_core::{Error, ErrorKind};
use serde_json::json;

use super::sample::{Kind, Sample};
use super::{Outcome, Try, failed, nothing_for};

/// A site to try: name of the case, what is special, shape, format, and the group or 0.
type Shape = (&'static str, Kind, (usize, usize), &'static str, u32);

/// Sites, by the name of their case.
const SHAPES: [Shape; 14] = [
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

/// Cases beside those of the shapes.
const MORE: [&str; 5] = ["same-twice", "threads", "not-finite", "cancelled", "fuzz"];

/// Names of the cases of a phase.
pub(super) fn cases(phase: Phase) -> Vec<&'static str> {
    let shapes = SHAPES.iter().map(|(name, ..)| *name);
    match phase {
        Phase::Round => shapes.chain(["fixed-point"]).chain(MORE).collect(),
        Phase::Condition | Phase::Split => shapes.chain(MORE).collect(),
        Phase::Transform => super::regions::CASES.to_vec(),
        Phase::Correct => vec!["phase"],
    }
}

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    if on.algo.phase == Phase::Transform {
        return super::regions::run(on, name);
    }
    if let Some((_, kind, shape, format, group)) = SHAPES.iter().find(|(n, ..)| *n == name) {
        return one(on, sample(on.seed, *kind, *shape, format, *group)?);
    }
    let plain = || sample(on.seed, Kind::Plain, (24, 32), "int4", 16);
    match name {
        "fixed-point" => fixed_point(on),
        "same-twice" => same(on, plain()?, plain()?, 1, 1),
        "threads" => same(on, plain()?, plain()?, 1, 4),
        "not-finite" => not_finite(on, plain()?),
        "cancelled" => cancelled(on),
        "fuzz" => fuzz(on),
        _ => Ok(nothing_for(on.algo.phase)),
    }
}

fn sample(seed: u64, kind: Kind, shape: (usize, usize), format: &str, group: u32) -> Result<Sample> {
    Sample::new(seed, kind, shape, format, if group == 0 { Granularity::channel() } else { Granularity::group(group) })
}

/// What an algorithm makes of a site, as numbers that can be compared.
enum Made {
    Rounded(Rounded),
    Numbers(Vec<f32>),
}

impl Made {
    fn bits(&self) -> Vec<u32> {
        match self {
            Self::Rounded(r) => {
                let params = r.params.scale.iter().chain(&r.params.zero).map(|x| x.to_bits());
                r.codes.iter().map(|c| c as u32).chain(params).chain(r.group_index.iter().flatten().copied()).collect()
            }
            Self::Numbers(n) => n.iter().map(|x| x.to_bits()).collect(),
        }
    }
}

fn made(algorithm: &dyn PtqAlgorithm, sample: &mut Sample, weight: &[f32]) -> Result<Made> {
    let needs = sample.collect(algorithm)?;
    let cx = sample.context(weight);
    Ok(match algorithm.stage() {
        Stage::Round(stage) => Made::Rounded(stage.round(&cx)?),
        Stage::Condition(stage) => Made::Numbers(stage.condition(&cx)?.weight),
        Stage::Split(stage) => {
            let rank = needs.branch.map_or(1, |b| b.rank).min(cx.linear.shape.0).min(cx.linear.shape.1).max(1);
            let found = stage.split(&SplitContext { sites: &[cx], rank, stored: FloatKind::F32 })?;
            Made::Numbers(found.a.into_iter().chain(found.b.into_iter().flatten()).collect())
        }
        _ => return Err(Error::internal("a phase without cases")),
    })
}

/// One site: what is returned satisfies the contract, and what was passed in is as it was.
fn one(on: &Try, mut sample: Sample) -> Result<Outcome> {
    let algorithm = match on.build(&json!({})) {
        Ok(algorithm) => algorithm,
        Err(e) => return Ok(failed(&e)),
    };
    let weight = sample.weight.clone();
    let result = made(&*algorithm, &mut sample, &weight);
    if weight.iter().zip(&sample.weight).any(|(a, b)| a.to_bits() != b.to_bits()) {
        return Ok(Outcome::Failed("it wrote to the weight that it was lent".to_owned()));
    }
    match result {
        Ok(Made::Rounded(rounded)) => Ok(judged(&sample, &rounded)),
        Ok(Made::Numbers(_)) => Ok(Outcome::Success),
        // An unsolvable site is data, and so is a plan that it refuses.
        Err(e) if e.kind() == ErrorKind::Numeric => Ok(Outcome::Warning(format!("it cannot solve this site: {e}"))),
        Err(e) if e.kind() == ErrorKind::Plan => Ok(Outcome::Skipped(e.to_string())),
        Err(e) => Ok(failed(&e)),
    }
}

/// `Σ‖x(w − ŵ)ᵀ‖²` over the inputs.
fn error(sample: &Sample, rounded: &Rounded) -> f64 {
    let ((rows, cols), mut values) = (sample.linear.shape, Vec::new());
    decode(&sample.spec.grid, &rounded.params, &rounded.codes, 0..rows, rounded.group_index.as_deref(), &mut values);
    let mut sum = 0.0;
    for x in sample.inputs.chunks(cols) {
        for (w, v) in sample.weight.chunks(cols).zip(values.chunks(cols)) {
            sum += w.iter().zip(v).zip(x).map(|((w, v), x)| f64::from(w - v) * x).sum::<f64>().powi(2);
        }
    }
    sum
}

/// Worse than rounding to nearest is allowed, and worth a word.
fn judged(sample: &Sample, rounded: &Rounded) -> Outcome {
    let Ok(nearest) = sample.context(&sample.weight).nearest() else { return Outcome::Success };
    let (ours, theirs) = (error(sample, rounded), error(sample, &nearest));
    if ours > theirs * 1.01 + 1e-12 {
        return Outcome::Warning(format!("its error is {:.3} times that of rounding to nearest", ours / theirs));
    }
    Outcome::Success
}

/// Values of the grid stay what they are.
fn fixed_point(on: &Try) -> Result<Outcome> {
    let mut sample = sample(on.seed, Kind::OnGrid, (12, 24), "int4", 0)?;
    let algorithm = on.build(&json!({}))?;
    let weight = sample.weight.clone();
    let rounded = match made(&*algorithm, &mut sample, &weight) {
        Ok(Made::Rounded(rounded)) => rounded,
        Ok(_) => return Ok(Outcome::Success),
        Err(e) => return Ok(failed(&e)),
    };
    let mut values = Vec::new();
    decode(&sample.spec.grid, &rounded.params, &rounded.codes, 0..sample.linear.shape.0, rounded.group_index.as_deref(), &mut values);
    Ok(match values.iter().zip(&weight).position(|(v, w)| v != w) {
        Some(i) => Outcome::Warning(format!("a weight that is a value of the grid, {}, becomes {}", weight[i], values[i])),
        None => Outcome::Success,
    })
}

/// The same bytes, by any number of the host's threads.
fn same(on: &Try, mut a: Sample, mut b: Sample, threads: usize, others: usize) -> Result<Outcome> {
    let with = |sample: &mut Sample, threads: usize| -> Result<Vec<u32>> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::internal(e.to_string()))?;
        pool.install(|| {
            let weight = sample.weight.clone();
            made(&*on.build(&json!({}))?, sample, &weight).map(|m| m.bits())
        })
    };
    Ok(match (with(&mut a, threads), with(&mut b, others)) {
        (Ok(x), Ok(y)) if x == y => Outcome::Success,
        (Ok(_), Ok(_)) => Outcome::Failed("the same site gives other bytes".to_owned()),
        (Err(e), _) | (_, Err(e)) if e.kind() == ErrorKind::Plan => Outcome::Skipped(e.to_string()),
        (Err(e), _) | (_, Err(e)) => failed(&e),
    })
}

/// The host never passes such weights in; what answers anyway has to answer with numbers.
fn not_finite(on: &Try, mut sample: Sample) -> Result<Outcome> {
    let algorithm = on.build(&json!({}))?;
    let mut weight = sample.weight.clone();
    (weight[0], weight[5]) = (f32::NAN, f32::INFINITY);
    Ok(match made(&*algorithm, &mut sample, &weight) {
        Ok(_) => Outcome::Warning("weights that are not finite are rounded to something".to_owned()),
        Err(e) if e.code() == "plugin::panic" => Outcome::Warning(format!("weights that are not finite break it: {e}")),
        Err(_) => Outcome::Success,
    })
}

/// A call ends soon after it is asked to.
fn cancelled(on: &Try) -> Result<Outcome> {
    let cancel = on.lazy.host.cancel;
    let mut sample = sample(on.seed, Kind::Plain, (512, 512), "int4", 0)?;
    let algorithm = on.build(&json!({}))?;
    let weight = sample.weight.clone();
    let asked = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        cancel.store(true, Ordering::Relaxed);
        Instant::now()
    });
    let result = made(&*algorithm, &mut sample, &weight);
    let ended = Instant::now();
    let asked = asked.join().map_err(|_| Error::internal("a thread panicked"))?;
    cancel.store(false, Ordering::Relaxed);
    let late = ended.saturating_duration_since(asked);
    Ok(match result {
        _ if late > Duration::from_secs(1) => {
            Outcome::Failed(format!("it goes on for {:.1} s after it was asked to stop", late.as_secs_f64()))
        }
        Err(e) if e.code() == "plugin::panic" => failed(&e),
        _ => Outcome::Success,
    })
}

/// Random shapes, formats and groups.
fn fuzz(on: &Try) -> Result<Outcome> {
    const TRIES: u64 = 24;
    let algorithm = on.build(&json!({}))?;
    for n in 0..TRIES {
        let draw = |what: u64, below: u64| qfw_core::numeric::uniform_below(&[on.seed, 9, n, what], below);
        let (rows, cols) = (1 + draw(0, 20) as usize, 1 + draw(1, 70) as usize);
        let format = ["int2", "int3", "int4", "int8", "uint2", "uint4", "nf4"][draw(2, 7) as usize];
        let group = [0, 1, 8, 32][draw(3, 4) as usize];
        let mut sample = sample(on.seed.wrapping_add(n), Kind::Plain, (rows, cols), format, group)?;
        let weight = sample.weight.clone();
        match made(&*algorithm, &mut sample, &weight) {
            Err(e) if !matches!(e.kind(), ErrorKind::Numeric | ErrorKind::Plan) => {
                return Ok(Outcome::Failed(format!("{rows}x{cols} in {format}, groups of {group}: {e}")));
            }
            _ => {}
        }
    }
    Ok(Outcome::Success)
}
