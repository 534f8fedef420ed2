//! The cases of transforms: the regions of a small random model that they work on. What they find is applied by core, in f64, and the
//! model has to compute what it did.

use std::time::{Duration, Instant};

use qfw_core::algorithm::PtqAlgorithm;
use qfw_core::candle::DType;
use qfw_core::numeric::uniform_below;
use qfw_core::topology::{Region, Space, Symmetry, apply};
use qfw_core::{Error, ErrorKind, Result};

use super::model::{Model, Setting};
use super::shapes::SHAPES;
use super::{Kind, Outcome, Try, safety};

/// Cases that are about regions of one kind, or all of them.
pub(super) const OF_REGIONS: [&str; 4] = ["behind-a-norm", "values", "hidden", "whole-model"];

/// Those that linears of one block read: a run asks for no others.
const ALL: [Space; 4] = [Space::AttnIn, Space::MlpIn, Space::Values, Space::MlpHidden];

/// How much logits may differ, relative to the largest.
const TOLERANCE: f64 = 1e-9;

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    let plain = Setting::plain(on.seed);
    match name {
        "behind-a-norm" => unchanged(on, plain, &[Space::AttnIn, Space::MlpIn]),
        "values" => unchanged(on, plain, &[Space::Values]),
        "hidden" => unchanged(on, plain, &[Space::MlpHidden]),
        "same-twice" => same(on, "the second time", |model| Ok((factors(on, model, &ALL, 1)?, factors(on, model, &ALL, 1)?))),
        "threads" => same(on, "with four threads", |model| Ok((factors(on, model, &ALL, 1)?, factors(on, model, &ALL, 4)?))),
        "order" => {
            let reversed = [Space::MlpHidden, Space::Values, Space::MlpIn, Space::AttnIn];
            same(on, "after other regions", |model| Ok((factors(on, model, &ALL, 1)?, factors(on, model, &reversed, 1)?)))
        }
        "not-finite" => not_finite(on),
        "cancelled" => cancelled(on),
        "memory" => memory(on),
        "fuzz" => fuzz(on),
        _ => match SHAPES.iter().find(|(shape, ..)| *shape == name) {
            Some((_, kind, _, format, group)) => unchanged(on, Setting { kind: *kind, format, group: *group, ..plain }, &ALL),
            None => unchanged(on, plain, &ALL),
        },
    }
}

fn nothing() -> Outcome {
    Outcome::Skipped("it leaves such regions alone".to_owned())
}

/// After what it finds for regions one after the other, the model computes what it did.
fn unchanged(on: &Try, setting: Setting, spaces: &[Space]) -> Result<Outcome> {
    let (algorithm, model) = (on.instance()?, Model::new(setting)?);
    let expected = model.logits(&model.weights)?;
    let (mut weights, mut found) = (model.weights.clone(), 0);
    for region in model.regions(spaces) {
        let Some(symmetry) = model.solve(&*algorithm, region, &weights, false)? else { continue };
        found += 1;
        apply(&symmetry, region, &model.topology, &mut weights)?;
    }
    if found == 0 {
        return Ok(nothing());
    }
    let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let worst = expected.iter().zip(model.logits(&weights)?).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    Ok(if worst <= TOLERANCE * largest {
        Outcome::Success
    } else {
        Outcome::Failed(format!("after it, logits are {worst:.1e} away from those of the model, of {largest:.1}"))
    })
}

/// The numbers of what is found, bit by bit.
fn bits(symmetry: &Symmetry) -> Result<Vec<u64>> {
    Ok(match symmetry {
        Symmetry::Diagonal(factors) => factors.iter().map(|f| f.to_bits()).collect(),
        Symmetry::Permutation(p) => p.iter().map(|i| u64::from(*i)).collect(),
        Symmetry::Orthogonal(r) => r.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?.into_iter().map(f64::to_bits).collect(),
    })
}

/// What is found for regions, by their names.
type Found = Vec<(String, Vec<u64>)>;

/// What a new instance finds for the regions of these spaces in this order, each as the model was made, with that many threads of the
/// host; by name.
fn factors(on: &Try, model: &Model, spaces: &[Space], threads: usize) -> Result<Found> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::internal(e.to_string()))?;
    pool.install(|| {
        let (algorithm, mut found) = (on.instance()?, Vec::new());
        for region in spaces.iter().flat_map(|space| model.regions(std::slice::from_ref(space))) {
            if let Some(symmetry) = model.solve(&*algorithm, region, &model.weights, false)? {
                found.push((region.id.clone(), bits(&symmetry)?));
            }
        }
        found.sort();
        Ok(found)
    })
}

fn same(on: &Try, what: &str, both: impl FnOnce(&Model) -> Result<(Found, Found)>) -> Result<Outcome> {
    let (a, b) = both(&Model::new(Setting::plain(on.seed))?)?;
    Ok(match a.iter().zip(&b).find(|(a, b)| a != b) {
        None if a.len() != b.len() => Outcome::Failed(format!("it works on {} regions, and on {} {what}", a.len(), b.len())),
        None if a.is_empty() => nothing(),
        None => Outcome::Success,
        Some(((region, _), _)) => Outcome::Failed(format!("the same `{region}` gives other factors {what}")),
    })
}

/// One pass over all regions, as the model was made; whether it works on any.
fn pass(algorithm: &dyn PtqAlgorithm, model: &Model, poison: bool) -> Result<bool> {
    let of = |region: &Region| model.solve(algorithm, region, &model.weights, poison);
    model.regions(&ALL).try_fold(false, |any, region| Ok(any | of(region)?.is_some()))
}

/// The host never passes such weights and inputs in; what answers anyway has to answer with numbers.
fn not_finite(on: &Try) -> Result<Outcome> {
    let (algorithm, model) = (on.instance()?, Model::new(Setting::plain(on.seed))?);
    Ok(match pass(&*algorithm, &model, true) {
        Ok(false) => nothing(),
        Ok(true) => Outcome::Warning("for weights and inputs that are not finite it finds something".to_owned()),
        Err(e) if e.code() == "plugin::panic" => Outcome::Warning(format!("weights and inputs that are not finite break it: {e}")),
        Err(_) => Outcome::Success,
    })
}

/// A call ends soon after it is asked to.
fn cancelled(on: &Try) -> Result<Outcome> {
    const ENOUGH: Duration = Duration::from_secs(5);
    let Some(cancel) = on.cancel() else { return Ok(Outcome::Skipped("linked algorithms are not interrupted in a region".to_owned())) };
    let (algorithm, model) = (on.instance()?, Model::new(Setting { width: 4, ..Setting::plain(on.seed) })?);
    if !pass(&*algorithm, &model, false)? {
        return Ok(nothing());
    }
    safety::stops(cancel, || {
        // Over and over: one pass alone may be done before it is asked to stop.
        let start = Instant::now();
        while start.elapsed() < ENOUGH {
            pass(&*algorithm, &model, false)?;
        }
        Ok(())
    })
}

/// What a call takes it gives back.
fn memory(on: &Try) -> Result<Outcome> {
    let model = Model::new(Setting { width: 2, ..Setting::plain(on.seed) })?;
    let weight = model.topology.linears.iter().filter(|l| l.site.block.is_some()).map(|l| l.shape.0 * l.shape.1 * size_of::<f32>());
    if !pass(&*on.instance()?, &model, false)? {
        return Ok(nothing());
    }
    // An instance for each, so that those are given back too.
    safety::keeps("models", weight.sum::<usize>() as u64, |_| pass(&*on.instance()?, &model, false).map(|_| ()))
}

/// Formats, groups and inputs, drawn from the seed.
fn fuzz(on: &Try) -> Result<Outcome> {
    const TRIES: u64 = 12;
    let mut any = false;
    for n in 0..TRIES {
        let draw = |what: u64, below: u64| uniform_below(&[on.seed, 10, n, what], below) as usize;
        let setting = Setting {
            seed: on.seed.wrapping_add(n),
            kind: [Kind::Plain, Kind::ZeroColumn, Kind::Outlier, Kind::RankDeficient][draw(0, 4)],
            format: ["int2", "int3", "int4", "int8", "uint4", "nf4"][draw(1, 6)],
            group: [0, 1, 8, 32][draw(2, 4)],
            width: 1 + draw(3, 2),
        };
        let what = format!("{} in groups of {}, {:?}, {} times as wide", setting.format, setting.group, setting.kind, setting.width);
        match unchanged(on, setting, &ALL) {
            Ok(Outcome::Failed(why)) => return Ok(Outcome::Failed(format!("with seed {}, {what}: {why}", on.seed))),
            Ok(outcome) => any |= outcome == Outcome::Success,
            Err(e) if matches!(e.kind(), ErrorKind::Numeric | ErrorKind::Plan) => {}
            Err(e) => return Ok(Outcome::Failed(format!("with seed {}, {what}: {e}", on.seed))),
        }
    }
    Ok(if any { Outcome::Success } else { nothing() })
}
