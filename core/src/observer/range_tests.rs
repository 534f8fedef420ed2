//! Scales and zero points against numbers computed by hand.

use super::ScaleRule;
use super::tests::{int4, uint4};
use crate::scheme::{Convention, FloatGrid, FloatKind, FloatVariant, Grid, PowerRounding, QuantSpec, ScaleForm, Zero};

fn float(exp: u8, man: u8) -> Grid {
    Grid::Float(FloatGrid::new(exp, man, FloatVariant::Ocp).unwrap())
}

fn scale(spec: &QuantSpec, lo: f32, hi: f32) -> f32 {
    ScaleRule::of(spec, lo.abs().max(hi.abs())).params(lo, hi).0
}

/// With `a = 6`: int4 has `6/8`, `6/7`, `12/15`; int8 `6/128`, `6/127`, `12/255`.
#[test]
fn five_conventions() {
    for (convention, four, eight) in [
        (Convention::PowB1, 0.75, 0.046_875),
        (Convention::PowB1m1, 6.0 / 7.0, 6.0 / 127.0),
        (Convention::HalfRange, 0.8, 12.0 / 255.0),
        (Convention::Narrow, 6.0 / 7.0, 6.0 / 127.0),
        (Convention::SignedFull, 0.75, 0.046_875),
    ] {
        let spec = |bits| QuantSpec { convention, bits, ..int4() };
        assert_eq!(scale(&spec(4), -6.0, 3.0), four, "{convention:?}");
        assert_eq!(scale(&spec(8), -6.0, 3.0), eight, "{convention:?}");
        // The larger side is positive: it goes to the code −2^(b−1) by a negative scale.
        let sign = if convention == Convention::SignedFull { -1.0 } else { 1.0 };
        assert_eq!(scale(&spec(4), -3.0, 6.0), sign * four, "{convention:?}");
    }
    let spec = QuantSpec { convention: Convention::SignedFull, ..int4() };
    assert_eq!(spec.grid.encode(6.0, scale(&spec, -3.0, 6.0), 0.0), -8);
}

/// int8: `2^ρ(log₂ a)/128`. With `a = 5`: `ρ` is 2 down, 3 up, and 2 to the nearer, for `log₂ 5 = 2.32`; with `a = 6`, 2.58, it is 3.
#[test]
fn powers_of_two() {
    let spec = |rounding| QuantSpec { bits: 8, scale: ScaleForm::PowerOfTwo { rounding, offset: 7 }, ..int4() };
    for (rounding, five, six, eight) in
        [(PowerRounding::Floor, 4.0, 4.0, 8.0), (PowerRounding::Ceil, 8.0, 8.0, 8.0), (PowerRounding::Round, 4.0, 8.0, 8.0)]
    {
        let got = [5.0, 6.0, 8.0].map(|a| 128.0 * scale(&spec(rounding), -a, 1.0));
        assert_eq!(got, [five, six, eight], "{rounding:?}");
    }
    // uint8, affine: the range −2 … 6 is 8, over 256; zero is the code 2/(8/256) = 64.
    let affine = QuantSpec {
        bits: 8,
        grid: Grid::Int { lo: 0, hi: 255, zero: Zero::Integer },
        scale: ScaleForm::PowerOfTwo { rounding: PowerRounding::Ceil, offset: 8 },
        ..uint4()
    };
    assert_eq!(ScaleRule::of(&affine, 0.0).params(-2.0, 6.0), (0.031_25, 64.0));
    // E8M0 has exponents from −127 to 127.
    let tiny = QuantSpec { scale: ScaleForm::PowerOfTwo { rounding: PowerRounding::Floor, offset: 15 }, ..int4() };
    assert_eq!(f64::from(scale(&tiny, 0.0, 1e-38)), 2f64.powi(-127));
}

/// OCP: `2^(⌊log₂ a⌋ − e_max)`, `e_max` 8 for e4m3, 15 for e5m2, 4 for e3m2, 2 for e2m3 and e2m1; mxint8 has six fraction bits.
#[test]
fn microscaling() {
    let find = |name: &str| crate::registry::Registry::builtin().unwrap().format(name).unwrap();
    let ask = crate::format::Ask {
        symmetric: true,
        convention: Convention::HalfRange,
        float_zero: false,
        power_of_two: None,
        stored: FloatKind::F32,
    };
    for (name, largest) in [("mxfp8-e4m3", 8), ("mxfp8-e5m2", 15), ("mxfp6-e3m2", 4), ("mxfp6-e2m3", 2), ("mxfp4", 2), ("mxint8", 6)] {
        let meaning = find(name).resolve(&ask).unwrap();
        let spec = QuantSpec { grid: meaning.grid, scale: meaning.scale, convention: meaning.convention, ..int4() };
        // ⌊log₂ 12⌋ = 3; ⌊log₂ 16⌋ = 4 and of the number before it still 3.
        for (a, floor) in [(12.0, 3), (16.0, 4), (16f32.next_down(), 3)] {
            assert_eq!(scale(&spec, -a, a / 2.0), 2f32.powi(floor - largest), "{name} {a}");
        }
        assert_eq!(scale(&spec, 0.0, 0.0), 1.0, "{name}: any scale will do");
    }
}

/// Tensor's largest 12: `global = 448·6/12 = 224`. A tile with 12 has the local scale `224·12/6 = 448`, one with 1 has `37.33`, of which
/// e4m3 knows 36 and 40: 36. A tile of zeros has 0.125.
#[test]
fn two_levels_of_nvfp4() {
    let spec = QuantSpec { grid: float(2, 1), scale: ScaleForm::TwoLevel, ..int4() };
    let rule = ScaleRule::of(&spec, 12.0);
    assert_eq!(rule.global(), Some(224.0));
    let scales = [12.0, 1.0, 0.0].map(|a: f32| rule.params(-a, 0.5 * a).0);
    assert_eq!(scales, [2.0, 36.0 / 224.0, 0.125 / 224.0]);
    // A tensor that shares the factor of a larger one: global 448·6/48 = 56, so 12 has 112, which e4m3 knows.
    let shared = ScaleRule::of(&spec, 48.0);
    assert_eq!((shared.global(), shared.params(-12.0, 1.0).0), (Some(56.0), 2.0));
    assert_eq!(ScaleRule::of(&spec, 0.0).global(), Some(1.0));
    assert_eq!(ScaleRule::of(&int4(), 12.0).global(), None);
}

#[test]
fn floats_and_tables_divide_by_their_largest_value() {
    let spec = |grid| QuantSpec { grid, ..int4() };
    assert_eq!(scale(&spec(float(4, 3)), -896.0, 1.0), 2.0);
    assert_eq!(scale(&spec(float(2, 1)), -1.0, 3.0), 0.5);
    assert_eq!(scale(&spec(Grid::Levels(vec![-2.0, 0.0, 1.0])), -1.0, 3.0), 1.5);
    let cast = QuantSpec { scale: ScaleForm::One, ..spec(float(4, 3)) };
    assert_eq!(scale(&cast, -896.0, 1.0), 1.0);
}

/// uint4 of −1 … 2: `s = 3/15 = 0.2`, `z = 5`. Ranges on one side of 0 are stretched to it; a float zero point is not rounded.
#[test]
fn affine_ranges_hold_zero() {
    let rule = ScaleRule::of(&uint4(), 0.0);
    assert_eq!(rule.params(-1.0, 2.0), (0.2, 5.0));
    assert_eq!(rule.params(1.0, 3.0), (0.2, 0.0));
    assert_eq!(rule.params(-3.0, -1.0), (0.2, 15.0));
    assert_eq!(rule.params(0.0, 0.0), (1.0, 0.0));
    let float = QuantSpec { grid: Grid::Int { lo: 0, hi: 15, zero: Zero::Float }, ..uint4() };
    assert_eq!(ScaleRule::of(&float, 0.0).params(-1.0, 5.0), (0.4, 2.5));
    let signed = QuantSpec { grid: Grid::Int { lo: -8, hi: 7, zero: Zero::Integer }, ..uint4() };
    assert_eq!(ScaleRule::of(&signed, 0.0).params(-1.0, 2.0), (0.2, -3.0));
}

/// The floor is one of the statistic: over 7.5 for int4, over 15 for an affine range.
#[test]
fn the_threshold_has_a_floor_and_a_factor() {
    let spec = QuantSpec { min_threshold: 0.75, ..int4() };
    assert_eq!(scale(&spec, -0.1, 0.1), 0.1);
    let spec = QuantSpec { min_threshold: 1.5, ..uint4() };
    assert_eq!(ScaleRule::of(&spec, 0.0).params(-0.1, 0.2), (0.1, 1.0));
    let spec = QuantSpec { rescale: 0.5, ..int4() };
    assert_eq!(scale(&spec, -15.0, 1.0), 1.0);
}

#[test]
fn scales_are_normal_numbers_of_their_type() {
    for a in [1e-45, 1e-38, f32::MAX] {
        for spec in [int4(), uint4()] {
            for kind in [FloatKind::F32, FloatKind::F16, FloatKind::Bf16] {
                let spec = QuantSpec { scale: ScaleForm::Float(kind), ..spec.clone() };
                let (s, z) = ScaleRule::of(&spec, 0.0).params(-a, a);
                assert!(s > 0.0 && s.is_finite() && z.is_finite(), "{kind:?} {a:e}: {s:e} {z}");
                assert_eq!(kind.round_scale(s), s);
            }
        }
    }
    let stored = |scale, x| ScaleRule::of(&QuantSpec { scale, grid: float(2, 1), ..int4() }, 12.0).stored(x);
    assert_eq!(stored(ScaleForm::PowerOfTwo { rounding: PowerRounding::Ceil, offset: 2 }, 0.9), 1.0);
    assert_eq!(stored(ScaleForm::TwoLevel, 1.0 / 6.0), 36.0 / 224.0);
    assert_eq!(stored(ScaleForm::One, 0.3), 1.0);
    assert_eq!(stored(ScaleForm::Float(FloatKind::F16), 0.1), 0.099_975_586);
}
