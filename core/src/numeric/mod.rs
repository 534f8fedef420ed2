//! The numbers: one verb per file.
//!
//! Verbs take tensors of the run's device. On the CPU, and where nothing asks for gradients, they run our own kernels over host
//! slices: each is single-threaded and free of shared state, so that a result never depends on a thread count; callers put
//! parallelism above them (one calibration window, one row range a task). On another device, or under gradients, the same verb is
//! composed of candle operations that keep gradients.

mod activation;
mod attention;
mod elementwise;
mod gemm;
mod host;
mod linear;
mod norm;
mod rope;
mod softmax;

pub use activation::{Activation, activate, activate_gated};
pub use attention::{AttentionShape, attention, attention_mix, attention_probs, attention_scores};
pub use elementwise::add;
pub use gemm::{Transpose, gemm};
pub use host::Real;
pub use linear::linear;
pub use norm::{layer_norm, rms_norm};
pub use rope::rotate;
