//! Every cell of the scheme space: no panic, and either a sound spec or a refusal whose nearest choice works and is nearest.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use candle_core::{Device, Tensor as Values};
use rayon::prelude::*;

use super::cell::{Part, Tensor, judge};
use super::raw::{
    RawConvention, RawGranularity, RawGroup, RawQuant, RawRange, RawReduce, RawScale, RawScaleRounding, RawTiming, RawZeroPoint,
};
use crate::model::{ActivationQuant, Tap};
use crate::observer::{ScaleRule, fit};
use crate::registry::Registry;
use crate::scheme::{FloatKind, Grid, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use crate::statistic::{RangeCollector, RangeSite};
use crate::topology::{Place, PortName};

const ROWS: usize = 6;
const COLS: usize = 16;
const TENSOR: Tensor = Tensor { rows: ROWS, cols: COLS, head_dim: 8, auto: 8, stored: FloatKind::F16 };

/// One of each kind of answer: weights, activations, activations with heads, and those whose columns are tokens.
const PARTS: [Part; 4] = [Part::Weights, Part::Inputs, Part::Keys, Part::Probs];
const TIMINGS: [RawTiming; 3] = [RawTiming::Static, RawTiming::Dynamic, RawTiming::Cast];
const SCALES: [Option<RawScale>; 3] = [None, Some(RawScale::Float), Some(RawScale::Po2)];
const ROUNDINGS: [Option<RawScaleRounding>; 4] =
    [None, Some(RawScaleRounding::Floor), Some(RawScaleRounding::Ceil), Some(RawScaleRounding::Round)];
const CONVENTIONS: [RawConvention; 5] =
    [RawConvention::PowB1, RawConvention::PowB1m1, RawConvention::HalfRange, RawConvention::Narrow, RawConvention::SignedFull];
const ZEROS: [RawZeroPoint; 2] = [RawZeroPoint::Integer, RawZeroPoint::Float];

fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn granularities() -> Vec<Option<RawGranularity>> {
    vec![
        None,
        Some(RawGranularity::Tensor),
        Some(RawGranularity::Channel),
        Some(RawGranularity::Token),
        Some(RawGranularity::Head),
        Some(RawGranularity::Dimension),
        Some(RawGranularity::Group(RawGroup::Exact(n(5)))),
        Some(RawGranularity::Group(RawGroup::Auto(n(8)))),
        Some(RawGranularity::GroupOut(n(4))),
        Some(RawGranularity::Block([n(4), n(5)])),
    ]
}

/// No observer, each there is with its defaults, and one that is not.
fn ranges(registry: &Registry) -> Vec<Option<RawRange>> {
    let known = registry.list().into_iter().filter(|l| l.kind == "observer").map(|l| l.id);
    let named = known.chain(["colour"]).map(|id| Some(RawRange { id: id.to_owned(), options: toml::Table::new() }));
    [None].into_iter().chain(named).collect()
}

/// Every name that a registered format answers to. A record that answers to none of them is new, and has to be added here.
fn formats(registry: &Registry) -> Vec<String> {
    let mut names: Vec<String> = (0..20).flat_map(|b| [format!("int{b}"), format!("uint{b}")]).collect();
    for variant in ["", "ocp-", "fnuz-"] {
        names.extend((0..12).flat_map(|e| (0..14).map(move |m| format!("float-{variant}e{e}m{m}"))));
    }
    let fixed = ["ternary", "nf4", "mxfp4", "mxfp6-e2m3", "mxfp6-e3m2", "mxfp8-e4m3", "mxfp8-e5m2", "mxint8", "nvfp4"];
    names.extend(fixed.map(ToOwned::to_owned));
    names.retain(|name| registry.format(name).is_ok());
    for record in crate::format::BUILTIN.iter().copied().flatten() {
        assert!(names.iter().any(|name| (record.find)(name).is_some()), "no name stands for `{}`", record.id);
    }
    names
}

/// Checks a cell and returns how many keys its nearest choice changes: 0 if it is valid.
fn checked(part: Part, quant: &RawQuant, registry: &Registry) -> Result<u8, String> {
    let refusal = match judge(part, quant, &TENSOR, registry) {
        Ok(spec) => {
            sound(&spec)?;
            return rounds(part, &spec, registry).map(|()| 0);
        }
        Err(refusal) => refusal,
    };
    let hint = refusal.error.hint_text().ok_or("it has no hint")?;
    let said = format!("{} {hint}", refusal.error);
    let (mut keys, mut changed) = (BTreeSet::new(), quant.clone());
    for change in &refusal.nearest {
        let before = changed.clone();
        change.apply(&mut changed);
        if before == changed || !keys.insert(change.key()) {
            return Err(format!("{change} of the nearest choice changes nothing new"));
        }
        if !said.contains(&format!("`{}", change.key())) {
            return Err(format!("`{}` is not named: {said}", change.key()));
        }
    }
    match judge(part, &changed, &TENSOR, registry) {
        Ok(_) if !keys.is_empty() => Ok(keys.len() as u8),
        Ok(_) => Err("refused, but nothing has to change".to_owned()),
        Err(e) => Err(format!("the nearest choice is refused: {}", e.error)),
    }
}

/// What holds of every resolved spec.
fn sound(spec: &QuantSpec) -> Result<(), String> {
    let layout = spec.granularity.layout(ROWS, COLS);
    let (tiles_down, tiles_across) = layout.grid();
    let (lo, hi) = spec.grid.limits();
    let zero_fits = match spec.grid.zero() {
        Zero::Fixed(z) => (lo..=hi).contains(&z) && spec.symmetric,
        Zero::None => spec.symmetric,
        Zero::Integer | Zero::Float => !spec.symmetric,
    };
    let rules = [
        (lo < hi && i64::from(hi) - i64::from(lo) < 1 << spec.bits, "codes fit the width"),
        (zero_fits, "zero points are there where the format is affine, and only there"),
        (spec.grid.largest().is_finite() && spec.grid.largest() > 0.0, "the largest value is a number"),
        (matches!(spec.grid, Grid::Int { .. }) || (spec.grid.holds(lo) && spec.grid.codes() > 1), "codes stand for values"),
        (layout.tile_rows * tiles_down >= ROWS && layout.tile_cols * tiles_across >= COLS, "tiles cover the tensor"),
        (layout.tile(ROWS - 1, COLS - 1) + 1 == layout.tiles(), "the last element is in the last tile"),
        (layout.tile_rows * (tiles_down - 1) < ROWS && layout.tile_cols * (tiles_across - 1) < COLS, "no tile is empty"),
        ((spec.timing == Timing::Cast) == (spec.scale == ScaleForm::One), "casts, and nothing else, have no scale"),
        (spec.bits_per_weight(ROWS, COLS) >= f64::from(spec.bits), "a weight takes its code at least"),
    ];
    rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, rule)| Err(format!("{rule}: {spec:?}")))
}

/// Values of both signs, small and large, with zeros and an outlier.
fn values(rows: usize, cols: usize) -> Vec<f32> {
    let mut x: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919 + 13) % 101) as f32 * 0.013 - 0.5).collect();
    x[3] = 0.0;
    x[rows * cols / 2] = -7.5;
    x
}

/// A small tensor rounded by the spec: finite, and within reach of the range.
fn rounds(part: Part, spec: &QuantSpec, registry: &Registry) -> Result<(), String> {
    let (observer, _) = registry.build_observer(&spec.observer.id, &spec.observer.options).map_err(|e| e.to_string())?;
    let fine = |x: &[f32]| x.iter().all(|v| v.is_finite() && v.abs() < 64.0).then_some(()).ok_or(format!("rounded to {x:?}"));
    if part.is_weight() {
        let weight = values(ROWS, COLS);
        let params = fit(&*observer, &ScaleRule::of(spec, 7.5), &weight, spec.granularity.layout(ROWS, COLS)).map_err(|e| e.to_string())?;
        if params.scale.iter().any(|s| !s.is_finite() || *s == 0.0) || params.scale.len() != params.layout.tiles() {
            return Err(format!("scales {:?}", params.scale));
        }
        let rounded: Vec<f32> = (0..ROWS * COLS)
            .map(|i| {
                let tile = params.layout.tile(i / COLS, i % COLS);
                spec.grid.nearest(weight[i], params.scale[tile], params.zero[tile])
            })
            .collect();
        return fine(&rounded);
    }
    let place = Place { block: Some(0), port: PortName::AttnIn.into() };
    // Windows may differ in length, and so may the columns of probabilities.
    let windows: Vec<Values> = [ROWS, ROWS - 2]
        .iter()
        .map(|rows| {
            let cols = if part == Part::Probs { *rows } else { COLS };
            Values::from_vec(values(*rows, cols), (*rows, cols), &Device::Cpu).map_err(|e| e.to_string())
        })
        .collect::<Result<_, _>>()?;
    let rounding = |spec: &QuantSpec, params| -> Result<(), String> {
        let rounding = ActivationQuant::new(place, spec.clone(), params).map_err(|e| e.to_string())?;
        let x = rounding.apply(&windows[0]).and_then(|x| Ok(x.flatten_all()?.to_vec1::<f32>()?)).map_err(|e| e.to_string())?;
        fine(&x)
    };
    if spec.timing != Timing::Static {
        return rounding(spec, None);
    }
    for reduce in [Reducer::Mean, Reducer::Max, Reducer::Ema(0.5), Reducer::Concat] {
        let spec = QuantSpec { reduce, ..spec.clone() };
        let collector = RangeCollector::new([RangeSite { place, spec: &spec, observer: &*observer }]);
        for (i, window) in windows.iter().enumerate() {
            collector.window(i).at(place.port, window.clone()).map_err(|e| e.to_string())?;
        }
        let mut fixed = collector.finish(windows.len()).map_err(|e| e.to_string())?;
        rounding(&spec, fixed.pop().map(|(_, params)| params))?;
    }
    Ok(())
}

/// Axes of a product; a cell is an index into each.
struct Product(Vec<usize>);

impl Product {
    fn len(&self) -> usize {
        self.0.iter().product()
    }

    fn cell(&self, mut index: usize) -> Vec<usize> {
        let digit = |n: &usize| {
            let digit = index % n;
            index /= n;
            digit
        };
        self.0.iter().map(digit).collect()
    }

    /// From the cells that are valid, how many coordinates lie between each cell and the nearest of them: axis by axis, a cell is as near
    /// as it was or one further than the nearest on its line.
    fn distances(&self, valid: &[bool], fixed: &[usize]) -> Vec<u8> {
        let mut distance: Vec<u8> = valid.iter().map(|v| if *v { 0 } else { 100 }).collect();
        let mut stride = 1;
        for (axis, size) in self.0.iter().enumerate() {
            if !fixed.contains(&axis) {
                for start in (0..self.len()).filter(|i| (i / stride) % size == 0) {
                    let line = (0..*size).map(|k| start + k * stride);
                    let least = line.clone().map(|i| distance[i]).min().unwrap_or(100);
                    line.for_each(|i| distance[i] = distance[i].min(least + 1));
                }
            }
            stride *= size;
        }
        distance
    }
}

/// Everything that can be refused against everything else, over one format of each kind: a part never changes, all other keys may.
#[test]
fn every_cell_is_sound_or_its_nearest_choice_is_valid_and_nearest() {
    let registry = Registry::builtin().unwrap();
    let formats = [
        "int2",
        "int4",
        "int8",
        "int16",
        "uint4",
        "ternary",
        "float-e2m1",
        "float-ocp-e4m3",
        "float-fnuz-e5m10",
        "nf4",
        "mxfp4",
        "mxint8",
        "nvfp4",
        "int99",
    ];
    let (granularities, ranges) = (granularities(), ranges(&registry));
    for record in crate::granularity::BUILTIN {
        let id = |g: &RawGranularity| serde_json::to_string(g).unwrap().contains(&format!("\"{}\"", record.id));
        assert!(granularities.iter().flatten().any(id), "`{}` is not tested", record.id);
    }
    let product =
        Product(vec![PARTS.len(), formats.len(), granularities.len(), TIMINGS.len(), 2, SCALES.len(), ROUNDINGS.len(), ranges.len(), 2]);
    let raw = |index: usize| {
        let c = product.cell(index);
        let mut quant = RawQuant::new(formats[c[1]]);
        quant.granularity.clone_from(&granularities[c[2]]);
        quant.timing = TIMINGS[c[3]];
        quant.symmetric = c[4] == 0;
        quant.scale = SCALES[c[5]];
        quant.scale_rounding = ROUNDINGS[c[6]];
        quant.range.clone_from(&ranges[c[7]]);
        (PARTS[c[0]], quant)
    };
    let told: Vec<u8> = (0..product.len())
        .into_par_iter()
        .map(|index| {
            let (part, quant) = raw(index);
            checked(part, &quant, &registry).unwrap_or_else(|why| panic!("{part:?} {quant:?}: {why}"))
        })
        .collect();
    let valid: Vec<bool> = told.iter().map(|t| *t == 0).collect();
    let least = product.distances(&valid, &[0]);
    let farther: Vec<String> = (0..product.len())
        .filter(|i| told[*i] > least[*i])
        .map(|i| format!("{} keys are changed where {} would do: {:?}", told[i], least[i], raw(i)))
        .collect();
    assert!(farther.is_empty(), "{} cells: {:#?}", farther.len(), farther.iter().step_by(1 + farther.len() / 12).collect::<Vec<_>>());
    let all = valid.iter().filter(|v| **v).count();
    assert!(all > 10_000, "only {all} of {} cells are valid", product.len());
}

/// Every registered format against the keys that say how codes and scales are formed.
#[test]
fn every_format_is_sound_or_refused_with_a_choice_that_works() {
    let registry = Registry::builtin().unwrap();
    let formats = formats(&registry);
    assert!(formats.len() > 200, "{formats:?}");
    let parts = [Part::Weights, Part::Inputs];
    let product =
        Product(vec![formats.len(), parts.len(), TIMINGS.len(), 2, CONVENTIONS.len(), ZEROS.len(), SCALES.len(), ROUNDINGS.len()]);
    (0..product.len()).into_par_iter().for_each(|index| {
        let c = product.cell(index);
        let quant = RawQuant {
            timing: TIMINGS[c[2]],
            symmetric: c[3] == 0,
            convention: CONVENTIONS[c[4]],
            zero_point: ZEROS[c[5]],
            scale: SCALES[c[6]],
            scale_rounding: ROUNDINGS[c[7]],
            ..RawQuant::new(&formats[c[0]])
        };
        checked(parts[c[1]], &quant, &registry).unwrap_or_else(|why| panic!("{quant:?}: {why}"));
    });
}

/// What stands alone: reducers and factors, with every part and timing.
#[test]
fn numbers_out_of_range_are_refused_and_mended() {
    let registry = Registry::builtin().unwrap();
    let reduces = [RawReduce::Mean, RawReduce::Max, RawReduce::Concat]
        .into_iter()
        .chain([0.5, 1.0, 0.0, -1.0, 2.0, f64::NAN, f64::INFINITY].map(RawReduce::Ema));
    for reduce in reduces {
        let bad = matches!(reduce, RawReduce::Ema(c) if !(c > 0.0 && c <= 1.0));
        for (part, timing) in PARTS.into_iter().flat_map(|p| TIMINGS.map(|t| (p, t))) {
            for (rescale, min_threshold) in [(1.0, 0.0), (1e-60, 0.0), (1.0, 1e60), (f64::NAN, f64::NAN), (-1.0, -1.0)] {
                let quant = RawQuant { reduce, timing, rescale, min_threshold, ..RawQuant::new("float-ocp-e4m3") };
                let wrong = u8::from(bad)
                    + u8::from(rescale != 1.0)
                    + u8::from(min_threshold != 0.0)
                    + u8::from(part.is_weight() && timing == RawTiming::Dynamic);
                assert_eq!(checked(part, &quant, &registry), Ok(wrong), "{part:?} {quant:?}");
            }
        }
    }
}

/// Parts of one kind get the same answers.
#[test]
fn parts_of_a_kind_are_alike() {
    let registry = Registry::builtin().unwrap();
    let alike = [
        (Part::Weights, Part::Head),
        (Part::Weights, Part::Embed),
        (Part::Inputs, Part::Outputs),
        (Part::Keys, Part::Values),
        (Part::Keys, Part::Queries),
    ];
    for part in Part::ALL {
        assert!(PARTS.contains(&part) || alike.iter().any(|(_, other)| *other == part), "{part:?}");
    }
    for granularity in granularities() {
        for timing in TIMINGS {
            for format in ["int4", "float-ocp-e4m3", "mxfp4"] {
                let quant = RawQuant { granularity: granularity.clone(), timing, ..RawQuant::new(format) };
                let answer = |part| judge(part, &quant, &TENSOR, &registry).map_err(|r| (r.error.to_string(), r.nearest));
                for (a, b) in alike {
                    assert_eq!(answer(a), answer(b), "{a:?} {b:?} {quant:?}");
                }
            }
        }
    }
}

#[track_caller]
fn refused(part: Part, change: impl Fn(&mut RawQuant), message: &str, hint: &str) {
    let mut quant = RawQuant::new("int8");
    change(&mut quant);
    let refusal = judge(part, &quant, &TENSOR, &Registry::builtin().unwrap()).unwrap_err();
    assert_eq!((refusal.error.to_string().as_str(), refusal.error.hint_text()), (message, Some(hint)));
}

#[test]
fn hints_name_the_nearest_choice() {
    refused(
        Part::Weights,
        |q| {
            q.granularity = Some(RawGranularity::Token);
            q.timing = RawTiming::Dynamic;
        },
        "weights cannot be quantized dynamically",
        "leave `timing` out, or set it to \"static\"; the nearest that works: `timing = \"static\"`, no `granularity`",
    );
    refused(
        Part::Inputs,
        |q| {
            q.range = Some(RawRange { id: "hqo".to_owned(), options: toml::Table::new() });
            q.timing = RawTiming::Dynamic;
        },
        "observer `hqo` is for weights: it chooses parameters, not ranges",
        "set `range` to minmax, percentile or mse",
    );
    refused(
        Part::Weights,
        |q| q.scale_rounding = Some(RawScaleRounding::Floor),
        "`scale-rounding` is for powers of two, but scales of `int8` are not unless it is said",
        "leave `scale-rounding` out, or set `scale = \"po2\"` too",
    );
    refused(
        Part::Inputs,
        |q| {
            q.format = "fp8".to_owned();
            q.scale = Some(RawScale::Po2);
            q.timing = RawTiming::Cast;
        },
        "a cast has no scale, but `scale` is \"po2\"",
        "leave `scale` or `timing` out",
    );
    refused(
        Part::Probs,
        |q| q.granularity = Some(RawGranularity::Dimension),
        "static `probs` have one scale, not dimension: their columns are tokens, which are not known beforehand",
        "set `timing = \"dynamic\"`, or `granularity = \"tensor\"`",
    );
    refused(
        Part::Keys,
        |q| {
            q.format = "ternary".to_owned();
            q.timing = RawTiming::Dynamic;
        },
        "dynamic ranges are those of the values themselves, not of observer `absmean`",
        "set `range = \"minmax\"`, or set `timing = \"static\"`",
    );
    refused(
        Part::Inputs,
        |q| q.rescale = 1e-60,
        "`rescale` is 0.000000000000000000000000000000000000000000000000000000000001, which is too small or too large for 32 bits",
        "leave `rescale` out",
    );
}
