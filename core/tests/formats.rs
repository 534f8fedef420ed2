//! Value sets and casts of number formats against implementations that are not ours: `ml_dtypes` by way of a table, and `half`.
#![allow(clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use qfw_core::scheme::{FloatGrid, FloatVariant, Grid, PowerRounding};

/// Made by `tests/fixtures/formats/make.py`.
const TABLE: &str = include_str!("../../tests/fixtures/formats/formats.txt");

/// The lines below `<kind> <format>`: a float by its bits, and a code.
fn section(kind: &str, format: &str) -> Vec<(f32, i32)> {
    let header = format!("{kind} {format}");
    let lines = TABLE.lines().skip_while(|line| *line != header).skip(1).take_while(|line| line.as_bytes()[8] == b' ');
    let pair = |line: &str| {
        let (bits, code) = line.split_once(' ').unwrap();
        (f32::from_bits(u32::from_str_radix(bits, 16).unwrap()), i32::from_str_radix(code, 16).unwrap())
    };
    let pairs: Vec<(f32, i32)> = lines.map(pair).collect();
    assert!(!pairs.is_empty(), "the table has no {header}");
    pairs
}

const FORMATS: [(&str, u8, u8, FloatVariant); 7] = [
    ("float8_e4m3fn", 4, 3, FloatVariant::Ocp),
    ("float8_e5m2", 5, 2, FloatVariant::Ocp),
    ("float8_e4m3fnuz", 4, 3, FloatVariant::Fnuz),
    ("float8_e5m2fnuz", 5, 2, FloatVariant::Fnuz),
    ("float6_e3m2fn", 3, 2, FloatVariant::Ocp),
    ("float6_e2m3fn", 2, 3, FloatVariant::Ocp),
    ("float4_e2m1fn", 2, 1, FloatVariant::Ocp),
];

#[test]
fn every_code_has_the_value_of_ml_dtypes() {
    for (name, exp, man, variant) in FORMATS {
        let grid = Grid::Float(FloatGrid::new(exp, man, variant).unwrap());
        let values = section("values", name);
        let (lo, hi) = grid.limits();
        let ours: Vec<i32> = (lo..=hi).filter(|code| grid.holds(*code)).collect();
        assert_eq!(ours, values.iter().map(|(_, code)| *code).collect::<Vec<i32>>(), "{name}: the codes that are numbers");
        for (value, code) in values {
            assert_eq!(grid.decode(code, 1.0, 0.0).to_bits(), value.to_bits(), "{name} code {code:#x}");
            assert_eq!(grid.encode(value, 1.0, 0.0), code, "{name} value {value}");
        }
    }
}

#[test]
fn casts_are_those_of_ml_dtypes() {
    for (name, exp, man, variant) in FORMATS {
        let grid = Grid::Float(FloatGrid::new(exp, man, variant).unwrap());
        for (x, code) in section("casts", name) {
            assert_eq!(grid.encode(x, 1.0, 0.0), code, "{name}: {x:e}");
            assert_eq!(grid.nearest(x, 1.0, 0.0), grid.decode(code, 1.0, 0.0), "{name}: {x:e}");
        }
    }
}

/// E8M0: code `c` is `2^(c − 127)`, which every rounding of exponents leaves where it is.
#[test]
fn powers_of_two_are_those_of_e8m0() {
    let values = section("values", "float8_e8m0fnu");
    assert_eq!(values.len(), 255, "all but NaN");
    for (value, code) in values {
        for rounding in [PowerRounding::Floor, PowerRounding::Ceil, PowerRounding::Round] {
            assert_eq!(rounding.exponent(f64::from(value)), code - 127, "{rounding:?} of {value:e}");
        }
    }
}

/// Numbers strewn over `0 … largest`: all exponents, many mantissas, both signs.
fn strewn(largest: f32) -> impl Iterator<Item = f32> {
    (0..largest.to_bits()).step_by(9_973).map(f32::from_bits).flat_map(|x| [x, -x])
}

/// The plain variant has numbers where halves have infinity and NaN; below, both are the same.
#[test]
fn e5m10_is_half_precision_below_its_infinity() {
    let grid = Grid::Float(FloatGrid::new(5, 10, FloatVariant::Plain).unwrap());
    for bits in 0..=u16::MAX {
        let value = f16::from_bits(bits);
        if value.is_finite() {
            assert_eq!(grid.decode(i32::from(bits), 1.0, 0.0).to_bits(), value.to_f32().to_bits(), "{bits:#x}");
        }
    }
    for x in strewn(65504.0) {
        assert_eq!(grid.encode(x, 1.0, 0.0), i32::from(f16::from_f32(x).to_bits()), "{x:e}");
    }
}

#[test]
fn e8m7_is_bfloat() {
    let grid = Grid::Float(FloatGrid::new(8, 7, FloatVariant::Ocp).unwrap());
    for bits in 0..=u16::MAX {
        let value = bf16::from_bits(bits);
        assert_eq!(grid.holds(i32::from(bits)), value.is_finite(), "{bits:#x}");
        if value.is_finite() {
            assert_eq!(grid.decode(i32::from(bits), 1.0, 0.0).to_bits(), value.to_f32().to_bits(), "{bits:#x}");
        }
    }
    for x in strewn(bf16::MAX.to_f32()) {
        assert_eq!(grid.encode(x, 1.0, 0.0), i32::from(bf16::from_f32(x).to_bits()), "{x:e}");
    }
}
