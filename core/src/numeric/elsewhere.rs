//! What runs where our kernels do not, such as on a CUDA device, is the same function.
//!
//! Without such a device the kernels are turned off for the thread of a test, and candle's operations run on the CPU instead of on theirs.

use candle_core::{DType, Device, Tensor};

use super::host::without_kernels;
use super::*;

fn wave(shape: (usize, usize), frequency: f64) -> Tensor {
    let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| (i as f64 * frequency).sin() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn row(n: usize, frequency: f64) -> Tensor {
    wave((1, n), frequency).squeeze(0).unwrap()
}

/// The largest difference of `f` with and without kernels; both are f32, of numbers about one.
fn difference(f: impl Fn() -> Tensor) -> f32 {
    let (ours, theirs) = (f(), without_kernels(&f));
    assert_eq!((ours.dims(), ours.dtype()), (theirs.dims(), DType::F32));
    let off = (ours - theirs).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    off.to_scalar().unwrap()
}

#[test]
fn every_operation_of_a_block_is_the_same_without_kernels() {
    let (x, y, w) = (wave((9, 32), 0.37), wave((9, 32), 0.73), wave((24, 32), 0.11));
    let (weight, bias, out) = (row(32, 0.21), row(32, 0.19), row(24, 0.17));
    let (cos, sin) = (wave((9, 8), 0.5).cos().unwrap(), wave((9, 8), 0.5).sin().unwrap());
    let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 0.25, window: Some(5) };
    let (k, v) = (wave((9, 16), 0.43), wave((9, 16), 0.91));
    for (what, off) in [
        ("linear", difference(|| linear(&x, &w, Some(&out)).unwrap())),
        ("rounded", difference(|| Matrix::new(w.clone(), None).unwrap().apply(&x, None).unwrap())),
        ("rms_norm", difference(|| rms_norm(&x, &weight, 1e-5).unwrap())),
        ("rms_norm of heads", difference(|| rms_norm(&x, &row(16, 0.2), 1e-5).unwrap())),
        ("layer_norm", difference(|| layer_norm(&x, &weight, &bias, 1e-5).unwrap())),
        ("rotate", difference(|| rotate(&x, &cos, &sin, 16).unwrap())),
        ("rotate in part", difference(|| rotate(&x, &cos, &sin, 32).unwrap())),
        ("add", difference(|| add(&x, &y).unwrap())),
        ("attention", difference(|| attention(&x, &k, &v, &shape, None).unwrap())),
        ("attention behind a cache", difference(|| attention(&x.narrow(0, 5, 4).unwrap(), &k, &v, &shape, None).unwrap())),
        ("silu", difference(|| activate_gated(Activation::Silu, &x, &y).unwrap())),
        ("gelu", difference(|| activate(Activation::Gelu, &x).unwrap())),
        ("gelu_tanh", difference(|| activate(Activation::GeluTanh, &x).unwrap())),
        ("relu", difference(|| activate(Activation::Relu, &x).unwrap())),
    ] {
        assert!(off <= 4e-6, "{what}: {off}");
    }
}
