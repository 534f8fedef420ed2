//! The value sets of small floats, over all codes.

use super::{FloatGrid, FloatVariant};

const VARIANTS: [FloatVariant; 3] = [FloatVariant::Plain, FloatVariant::Ocp, FloatVariant::Fnuz];

fn all() -> impl Iterator<Item = FloatGrid> {
    (1..=8u8).flat_map(|e| (1..=8u8).flat_map(move |m| VARIANTS.into_iter().filter_map(move |v| FloatGrid::new(e, m, v))))
}

#[test]
fn every_code_is_a_fixed_point_and_magnitudes_rise() {
    for grid in all() {
        let (e, m) = grid.shape();
        let mut last = -1.0;
        for code in 0..1u32 << (e + m) {
            if !grid.holds(code) {
                continue;
            }
            let value = grid.value(code);
            assert!(value.is_finite() && value > last, "e{e}m{m} code {code}: {value} after {last}");
            assert_eq!((grid.code(value), grid.round(value)), (code, value), "e{e}m{m}");
            let negative = code | 1 << (e + m);
            if grid.holds(negative) {
                assert_eq!((grid.code(-value), grid.value(negative)), (negative, -value), "e{e}m{m}");
            }
            last = value;
        }
        assert_eq!(grid.largest(), last);
        assert_eq!((grid.round(f32::INFINITY), grid.round(f32::MIN)), (last, -last));
    }
}

/// Between neighbours the nearer wins, and halfway the even code.
#[test]
fn rounding_is_to_nearest_even() {
    for grid in all().filter(|g| g.bits() <= 9) {
        let (e, m) = grid.shape();
        for code in 0..(1u32 << (e + m)) - 1 {
            if !grid.holds(code + 1) {
                continue;
            }
            let (down, up) = (f64::from(grid.value(code)), f64::from(grid.value(code + 1)));
            let (low, middle, high) = (down + 0.49 * (up - down), 0.5 * (down + up), down + 0.51 * (up - down));
            let even = code + code % 2;
            for (x, want) in [(low, code), (middle, even), (high, code + 1)] {
                // Where f32 has no such number there is nothing to check.
                if f64::from(x as f32) == x || x != middle {
                    assert_eq!(grid.code(x as f32), want, "e{e}m{m}: {x} between {down} and {up}");
                }
            }
        }
    }
}

/// The table of the specifications: largest, smallest normal, smallest subnormal.
#[test]
fn the_formats_have_the_limits_of_their_specifications() {
    let table = [
        ((4, 3, FloatVariant::Plain), (480.0, -6, -9)),
        ((4, 3, FloatVariant::Ocp), (448.0, -6, -9)),
        ((4, 3, FloatVariant::Fnuz), (240.0, -7, -10)),
        ((5, 2, FloatVariant::Ocp), (57344.0, -14, -16)),
        ((5, 2, FloatVariant::Plain), (114_688.0, -14, -16)),
        ((5, 2, FloatVariant::Fnuz), (57344.0, -15, -17)),
        ((3, 2, FloatVariant::Ocp), (28.0, -2, -4)),
        ((2, 3, FloatVariant::Ocp), (7.5, 0, -3)),
        ((2, 1, FloatVariant::Ocp), (6.0, 0, -1)),
    ];
    for ((e, m, variant), (largest, normal, subnormal)) in table {
        let grid = FloatGrid::new(e, m, variant).unwrap();
        assert_eq!(grid.largest(), largest, "e{e}m{m} {variant:?}");
        assert_eq!((grid.value(1 << m), grid.value(1)), (2f32.powi(normal), 2f32.powi(subnormal)), "e{e}m{m} {variant:?}");
    }
    assert!(FloatGrid::new(9, 2, FloatVariant::Plain).is_none() && FloatGrid::new(1, 0, FloatVariant::Plain).is_none());
}
