//! What the operators make of stored codes is what the codes stand for, to the last bit, in every scheme that a form holds.

use qfw_core::scheme::{FloatGrid, FloatVariant, Granularity, Grid, QuantSpec, Zero};

use super::file::{E4M3FN, E5M2, INT4, INT8, UINT4, UINT8};
use super::models::{Extras, coded, gpt2, llama, spec, values, write};

fn signed(bits: u8, zero: Zero) -> Grid {
    let half = 1 << (bits - 1);
    Grid::Int { lo: -half, hi: half - 1, zero }
}

fn unsigned(bits: u8, zero: Zero) -> Grid {
    Grid::Int { lo: 0, hi: (1 << bits) - 1, zero }
}

fn float(exp: u8, man: u8) -> Grid {
    Grid::Float(FloatGrid::new(exp, man, FloatVariant::Ocp).unwrap())
}

fn narrow() -> Grid {
    Grid::Int { lo: -127, hi: 127, zero: Zero::None }
}

/// One scheme in one form: the operator that holds it, and the type of what is stored.
fn holds(id: &str, spec: QuantSpec, operator: &str, kind: i32) {
    let what = format!("{id}: {} {:?} in {}", spec.format, spec.grid, spec.granularity);
    // Square, wide, and with a ragged last group of inputs.
    let layers = [("blocks.0.attn.q", "self_attn.q_proj", (64, 64)), ("blocks.0.mlp.down", "mlp.down_proj", (64, 96))];
    let coded: Vec<_> =
        layers.iter().map(|(site, module, shape)| coded(site, &format!("model.layers.0.{module}"), *shape, false, spec.clone())).collect();
    let expected: Vec<Vec<f32>> = coded.iter().map(|(site, rounded)| values(site, rounded)).collect();
    let file = write(id, &llama(), Extras { coded, ..Extras::default() });
    for ((site, ..), expected) in layers.iter().zip(&expected) {
        assert_eq!(file.nodes(operator, &format!("{site}/")).len(), 1, "{what}: {site}");
        assert_eq!(file.stored(&format!("{site}.codes")).kind, kind, "{what}");
        assert_eq!(file.weight(site), *expected, "{what}: {site}");
    }
}

#[test]
fn matmulnbits_holds_integers_in_groups() {
    for (id, groups) in [("onnx", &[32][..]), ("onnx-matmulnbits", &[16, 64])] {
        for group in groups {
            for bits in [2, 3, 4, 5, 8] {
                for grid in [
                    signed(bits, Zero::None),
                    unsigned(bits, Zero::Fixed(1 << (bits - 1))),
                    unsigned(bits, Zero::Integer),
                    signed(bits, Zero::Integer),
                    unsigned(bits, Zero::Float),
                    signed(bits, Zero::Float),
                ] {
                    holds(id, spec(bits, grid, Granularity::group(*group)), "MatMulNBits", UINT8);
                }
            }
        }
        holds(id, spec(8, narrow(), Granularity::group(32)), "MatMulNBits", UINT8);
    }
}

/// Larger tiles than a block: their scale is repeated. Groups of 48 are three blocks of 16 each.
#[test]
fn matmulnbits_repeats_scales() {
    for granularity in [Granularity::channel(), Granularity::tensor(), Granularity::group(48), Granularity::block(8, 32)] {
        for grid in [signed(4, Zero::None), unsigned(4, Zero::Integer)] {
            holds("onnx-matmulnbits", spec(4, grid, granularity.clone()), "MatMulNBits", UINT8);
        }
    }
}

#[test]
fn dequantizelinear_holds_integers_and_floats() {
    let ragged = Granularity::group(40);
    for granularity in [Granularity::tensor(), Granularity::channel(), Granularity::group(32), ragged, Granularity::block(8, 16)] {
        let holds = |bits: u8, grid: Grid, kind: i32| holds("onnx-qdq", spec(bits, grid, granularity.clone()), "DequantizeLinear", kind);
        for bits in [2, 3, 4, 5, 8] {
            let (signed_kind, unsigned_kind) = if bits <= 4 { (INT4, UINT4) } else { (INT8, UINT8) };
            holds(bits, signed(bits, Zero::None), signed_kind);
            holds(bits, unsigned(bits, Zero::Fixed(1 << (bits - 1))), signed_kind);
            holds(bits, signed(bits, Zero::Integer), unsigned_kind);
            holds(bits, unsigned(bits, Zero::Integer), unsigned_kind);
        }
        holds(8, narrow(), INT8);
        holds(8, float(4, 3), E4M3FN);
        holds(8, float(5, 2), E5M2);
    }
}

/// As Brevitas: bytes, clipped where the grid does not fill them, not where it does.
#[test]
fn narrow_ranges_are_clipped_in_bytes() {
    for granularity in [Granularity::tensor(), Granularity::channel(), Granularity::group(32)] {
        for (bits, grid, kind, clips) in [
            (4, signed(4, Zero::None), INT8, true),
            (6, unsigned(6, Zero::Integer), UINT8, true),
            (8, narrow(), INT8, true),
            (8, signed(8, Zero::None), INT8, false),
            (8, unsigned(8, Zero::Integer), UINT8, false),
            (8, unsigned(8, Zero::Fixed(128)), INT8, false),
        ] {
            let spec = spec(bits, grid, granularity.clone());
            holds("onnx-qcdq", spec.clone(), "DequantizeLinear", kind);
            let (site, rounded) = coded("blocks.1.mlp.up", "model.layers.1.mlp.up_proj", (96, 64), false, spec);
            let file = write("onnx-qcdq", &llama(), Extras { coded: vec![(site, rounded)], ..Extras::default() });
            assert_eq!(file.nodes("Clip", "blocks.1.mlp.up/").len(), usize::from(clips));
        }
    }
}

/// `onnx` itself: integers in blocks, floats behind `DequantizeLinear`.
#[test]
fn what_suits_the_scheme_is_taken() {
    holds("onnx", spec(4, signed(4, Zero::None), Granularity::channel()), "MatMulNBits", UINT8);
    holds("onnx", spec(8, signed(8, Zero::None), Granularity::channel()), "MatMulNBits", UINT8);
    holds("onnx", spec(8, float(4, 3), Granularity::channel()), "DequantizeLinear", E4M3FN);
    // Groups that no power of two of at least 16 divides.
    holds("onnx", spec(4, signed(4, Zero::None), Granularity::group(24)), "DequantizeLinear", INT4);
}

/// GPT-2 stores its linears as `[in, out]`; the native form has `[out, in]`.
#[test]
fn layers_of_gpt_2_are_turned_once() {
    for (id, grid) in [("onnx-matmulnbits", unsigned(4, Zero::Integer)), ("onnx-qdq", signed(4, Zero::None))] {
        let (site, rounded) = coded("blocks.0.attn.qkv", "h.0.attn.c_attn", (96, 32), true, spec(4, grid, Granularity::group(16)));
        let expected = values(&site, &rounded);
        let file = write(id, &gpt2(), Extras { coded: vec![(site, rounded)], ..Extras::default() });
        assert_eq!(file.weight("blocks.0.attn.qkv"), expected, "{id}");
    }
}
