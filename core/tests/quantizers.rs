//! What holds for every format, granularity and observer, whatever finite numbers come in.
#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use qfw_core::format::Ask;
use qfw_core::granularity::Shape;
use qfw_core::observer::{ScaleRule, fit};
use qfw_core::registry::Registry;
use qfw_core::scheme::{Convention, FloatKind, Grid, ObserverChoice, PowerRounding, QParams, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use serde_json::{Value, json};

const FORMATS: &[&str] = &[
    "int2",
    "int3",
    "int4",
    "int8",
    "int16",
    "uint2",
    "uint4",
    "uint8",
    "uint16",
    "ternary",
    "fp4",
    "fp8",
    "float-e3m2",
    "float-e5m2",
    "float-e1m1",
    "float-e8m7",
    "float-e5m10",
    "float-ocp-e5m2",
    "float-fnuz-e4m3",
    "float-fnuz-e8m3",
    "nf4",
    "mxfp4",
    "mxfp6-e2m3",
    "mxfp6-e3m2",
    "mxfp8-e4m3",
    "mxfp8-e5m2",
    "mxint8",
    "nvfp4",
];
const CONVENTIONS: [Convention; 5] =
    [Convention::PowB1, Convention::PowB1m1, Convention::HalfRange, Convention::Narrow, Convention::SignedFull];
const ROUNDINGS: [Option<PowerRounding>; 4] = [None, Some(PowerRounding::Floor), Some(PowerRounding::Ceil), Some(PowerRounding::Round)];

/// A way to write the parameters of a matrix.
#[derive(Clone, Debug)]
struct Choice {
    format: &'static str,
    ask: Ask,
    granularity: (&'static str, Value),
    observer: (&'static str, Value),
}

fn choices() -> impl Strategy<Value = Choice> {
    let granularities = vec![
        ("tensor", Value::Null),
        ("channel", Value::Null),
        ("dimension", Value::Null),
        ("group", json!(5)),
        ("group", json!(64)),
        ("group-out", json!(3)),
        ("block", json!([3, 4])),
    ];
    let observers = vec![
        ("minmax", json!({})),
        ("absmean", json!({})),
        ("percentile", json!({})),
        ("percentile", json!({ "high": 90.0, "low": 10.0 })),
        ("mse", json!({})),
        ("mse", json!({ "search": "wide" })),
        ("mse", json!({ "search": "brevitas" })),
        ("hqo", json!({})),
        ("hqq", json!({})),
        ("entropy", json!({ "bins": 256 })),
    ];
    let ask = (any::<bool>(), 0..CONVENTIONS.len(), any::<bool>(), 0..ROUNDINGS.len()).prop_map(|(symmetric, c, float_zero, r)| Ask {
        symmetric,
        convention: CONVENTIONS[c],
        float_zero,
        power_of_two: ROUNDINGS[r],
        stored: FloatKind::F32,
    });
    (prop::sample::select(FORMATS), ask, prop::sample::select(granularities), prop::sample::select(observers))
        .prop_map(|(format, ask, granularity, observer)| Choice { format, ask, granularity, observer })
}

/// Matrices of `ROWS × COLS`: of one magnitude from tiny to huge, constant, zero, with one outlier, or of many magnitudes.
const ROWS: usize = 7;
const COLS: usize = 13;

fn matrices() -> impl Strategy<Value = Vec<f32>> {
    let n = ROWS * COLS;
    let magnitude = || (-38.0f32..30.0).prop_map(|e| 10f32.powf(e));
    let unit = move || prop::collection::vec(-1.0f32..1.0, n);
    prop_oneof![
        4 => (unit(), magnitude()).prop_map(|(x, m)| x.into_iter().map(|x| x * m).collect::<Vec<f32>>()),
        1 => magnitude().prop_map(move |m| vec![m; n]),
        1 => magnitude().prop_map(move |m| vec![-m; n]),
        1 => Just(vec![0.0; n]),
        1 => Just(vec![1e-45; n]),
        2 => (unit(), magnitude(), 0..n, any::<bool>()).prop_map(|(mut x, m, at, up)| {
            x[at] = if up { m } else { -m };
            x
        }),
        1 => prop::collection::vec((-1.0f32..1.0, magnitude()).prop_map(|(x, m)| x * m), n),
        1 => (unit(), magnitude()).prop_map(|(x, m)| x.into_iter().map(|x| (x + 1.0) * m).collect()),
    ]
}

/// The spec, or `None` where the format or the observer refuses.
fn spec(registry: &Registry, choice: &Choice) -> Option<QuantSpec> {
    let format = registry.format(choice.format).unwrap();
    let meaning = format.resolve(&choice.ask).ok()?;
    let shape = Shape { rows: Some(ROWS), cols: COLS, head: None, dynamic: false };
    let granularity = registry.granularity(choice.granularity.0, &shape, &choice.granularity.1).unwrap();
    let (observer, options) = registry.build_observer(choice.observer.0, &choice.observer.1).unwrap();
    observer.suits(&meaning.grid, meaning.scale).ok()?;
    Some(QuantSpec {
        format: format.id(),
        bits: format.bits(),
        grid: meaning.grid,
        granularity,
        symmetric: meaning.symmetric,
        convention: meaning.convention,
        observer: ObserverChoice { id: choice.observer.0.to_owned(), options },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: meaning.scale,
    })
}

fn fitted(registry: &Registry, spec: &QuantSpec, weight: &[f32]) -> qfw_core::error::Result<QParams> {
    let (observer, _) = registry.build_observer(&spec.observer.id, &spec.observer.options)?;
    let amax = weight.iter().fold(0.0f32, |a, x| a.max(x.abs()));
    fit(&*observer, &ScaleRule::of(spec, amax), weight, spec.granularity.layout(ROWS, COLS))
}

/// The values of a grid, in f64.
struct Ruler {
    /// Rising, in units of the scale and with the zero point taken off.
    values: Vec<f64>,
}

impl Ruler {
    fn of(grid: &Grid, zero: f32) -> Self {
        let (lo, hi) = grid.limits();
        let mut values: Vec<f64> = (lo..=hi)
            .filter(|code| grid.holds(*code))
            .map(
                |code| if let Grid::Int { .. } = grid { f64::from(code) - f64::from(zero) } else { f64::from(grid.decode(code, 1.0, 0.0)) },
            )
            .collect();
        values.sort_by(f64::total_cmp);
        Self { values }
    }

    /// The distance from `v`, brought within the ends, to the nearest value.
    fn distance(&self, v: f64) -> f64 {
        let v = v.clamp(self.values[0], self.values[self.values.len() - 1]);
        let above = self.values.partition_point(|x| *x < v);
        let to = |i: usize| self.values.get(i).map_or(f64::INFINITY, |x| (x - v).abs());
        to(above).min(above.checked_sub(1).map_or(f64::INFINITY, to))
    }

    /// How far `v` lies beyond the ends.
    fn beyond(&self, v: f64) -> f64 {
        (v - v.clamp(self.values[0], self.values[self.values.len() - 1])).abs()
    }
}

/// How far the convention lets a value of the range lie beyond the last code, in codes: half a step, and with scales of `a/2^(b−1)` a
/// whole one.
fn clipping(spec: &QuantSpec) -> Option<f64> {
    match (&spec.grid, spec.scale) {
        (Grid::Int { .. }, ScaleForm::Float(_)) => match (spec.symmetric, spec.convention) {
            (true, Convention::PowB1 | Convention::SignedFull) => Some(1.0),
            _ => Some(0.5),
        },
        (_, ScaleForm::Float(_)) => Some(0.0),
        // A power of two may be half of what the range needs, and a local scale of NVFP4 a little less.
        _ => None,
    }
}

fn check(registry: &Registry, choice: &Choice, weight: &[f32]) -> Result<(), TestCaseError> {
    let Some(spec) = spec(registry, choice) else { return Ok(()) };
    let params = fitted(registry, &spec, weight).unwrap();
    prop_assert_eq!((params.scale.len(), params.zero.len()), (params.layout.tiles(), params.layout.tiles()));
    let rulers: Vec<Ruler> = if params.zero.iter().all(|z| *z == params.zero[0]) {
        vec![Ruler::of(&spec.grid, params.zero[0])]
    } else {
        params.zero.iter().map(|z| Ruler::of(&spec.grid, *z)).collect()
    };
    for (i, x) in weight.iter().enumerate() {
        let tile = params.layout.tile(i / COLS, i % COLS);
        let (s, z) = (params.scale[tile], params.zero[tile]);
        let ruler = &rulers[tile.min(rulers.len() - 1)];
        prop_assert!(s.is_finite() && s != 0.0, "scale {s:e}");
        prop_assert!(z.is_finite() && (spec.grid.zero() == Zero::Float || z.fract() == 0.0), "zero point {z}");
        prop_assert_eq!(spec.grid.zero() == Zero::None && z != 0.0, false);
        let code = spec.grid.encode(*x, s, z);
        prop_assert!(spec.grid.holds(code), "code {code} of {x:e}");
        let value = spec.grid.decode(code, s, z);
        prop_assert!(value.is_finite(), "{x:e} becomes {value}");
        prop_assert_eq!(spec.grid.encode(value, s, z), code, "{} is {} again, scale {}", value, code, s);
        prop_assert_eq!(spec.grid.nearest(*x, s, z), value);
        // In units of the scale; f32 arithmetic on the way there has an error of its own.
        let v = f64::from(*x) / f64::from(s);
        let within = v.clamp(ruler.values[0], ruler.values[ruler.values.len() - 1]);
        let error = (f64::from(value) / f64::from(s) - within).abs();
        let slack = 3e-7 * (within.abs() + f64::from(z.abs())) + 1e-6;
        prop_assert!(error <= ruler.distance(v) + slack, "{x:e} becomes {value:e} at scale {s:e}, zero point {z}: off by {error} steps");
        if let ("minmax", Some(clipping)) = (choice.observer.0, clipping(&spec)) {
            // A stored half may be smaller than the scale by 2^−11 of it, or 2^−25 below its normal numbers; that much of the range is lost.
            let short = if choice.ask.stored == FloatKind::F32 { 0.0 } else { 2f64.powi(-11).max(2f64.powi(-25) / f64::from(s.abs())) };
            let width = ruler.values[ruler.values.len() - 1] - ruler.values[0];
            let short = 1.1 * short * width;
            prop_assert!(ruler.beyond(v) <= clipping + slack + short, "{x:e} at scale {s:e} lies {} beyond the codes", ruler.beyond(v));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_value_has_its_nearest_code(choice in choices(), weight in matrices()) {
        check(&Registry::builtin().unwrap(), &choice, &weight)?;
    }

    #[test]
    fn what_is_not_finite_is_an_error_with_its_place(
        choice in choices(),
        mut weight in matrices(),
        at in 0..ROWS * COLS,
        bad in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        let registry = Registry::builtin().unwrap();
        if let Some(spec) = spec(&registry, &choice) {
            weight[at] = bad;
            let message = fitted(&registry, &spec, &weight).unwrap_err().to_string();
            let place = format!("the weight holds {bad} at row {}, column {}", at / COLS, at % COLS);
            prop_assert!(message.contains(&place), "{message}");
        }
    }
}

/// Every format with every observer and granularity at least once, on numbers as weights have them.
#[test]
fn the_whole_product_on_one_matrix() {
    let registry = Registry::builtin().unwrap();
    let weight: Vec<f32> = (0..ROWS * COLS).map(|i| ((i * i) as f32 * 0.37).sin() * 0.02 + if i == 40 { 0.1 } else { 0.0 }).collect();
    let mut done = 0;
    for format in FORMATS {
        for observer in ["minmax", "absmean", "percentile", "mse", "hqo", "hqq", "entropy"] {
            for granularity in [("tensor", Value::Null), ("channel", Value::Null), ("group", json!(4)), ("block", json!([2, 6]))] {
                for (symmetric, float_zero, convention) in
                    CONVENTIONS.into_iter().map(|c| (true, false, c)).chain([false, true].map(|z| (false, z, Convention::default())))
                {
                    let ask = Ask { symmetric, convention, float_zero, power_of_two: None, stored: FloatKind::F16 };
                    let choice = Choice { format, ask, granularity: granularity.clone(), observer: (observer, json!({})) };
                    done += usize::from(spec(&registry, &choice).is_some());
                    if let Err(e) = check(&registry, &choice, &weight) {
                        panic!("{choice:?}: {e}");
                    }
                }
            }
        }
    }
    assert!(done > 2000, "{done} of the product mean something");
}
