//! The numbers: one verb per file.
//!
//! Verbs take tensors of the run's device. On the CPU, and where nothing asks for gradients, they run our own kernels over host
//! slices: each is single-threaded and free of shared state, so that a result never depends on a thread count; callers put
//! parallelism above them (one calibration window, one row range a task). Rotations of whole weights share their rows among threads
//! themselves, each row computed as if it was alone. Under gradients the kernels run too, and leave behind how they run
//! backwards (`gradient`). On another device, the same verb is composed of candle operations.

mod accumulator;
mod activation;
mod alignment;
mod attention;
mod bf16;
mod cayley;
mod cholesky;
mod codes;
mod eigenvalue;
mod elementwise;
#[cfg(test)]
mod elsewhere;
mod fake_quantize;
mod gemm;
mod gradient;
mod gram;
mod gram_root;
mod greedy_path;
mod hadamard;
mod host;
mod inverse_factor;
mod linear;
mod low_rank;
mod norm;
mod orthogonal;
mod pack;
mod random;
mod rope;
mod softmax;
mod sweep;
mod transpose;
mod truncated_svd;
mod vectorize;

pub use accumulator::AccumulatorLimit;
pub use activation::{Activation, activate, activate_gated};
pub use alignment::{Alignment, AlignmentOptions};
pub use attention::{AttentionShape, attention, attention_mix, attention_probs, attention_scores};
pub use bf16::{Bf16Panels, Bf16Unit, across_bf16, gram_bf16};
pub use cayley::cayley;
pub(crate) use codes::with_units;
pub use codes::{Codes, Unit, Units, decode, encode, encode_narrow, encode_wide, nearest_values, round_values};
pub use eigenvalue::largest_eigenvalue;
pub use elementwise::add;
pub(crate) use fake_quantize::Extremes;
pub use fake_quantize::{Ranges, fake_quantize};
pub use gemm::{Onto, Transpose, gemm};
pub(crate) use gradient::step1;
pub use gradient::{Factor, Record, Traced, bias_gradient, inner_product, next_token_loss, squared_error, walk_back, weight_gradient};
pub use gram::{add_lower, gram, gram_energy};
pub use gram_root::{GramRoot, Weighted};
pub use greedy_path::GreedyPath;
pub use hadamard::{Hadamard, next_sizes};
pub use host::Real;
pub(crate) use host::{with_slice, with_slices};
pub use inverse_factor::{FactorOptions, InverseFactor, inverse_factor};
pub use linear::{Matrix, gated_linears, linear, linears};
pub use low_rank::subtract_low_rank;
pub use norm::{layer_norm, rms_norm};
pub use orthogonal::{fixing_ones, random_orthogonal, reflect_ones};
pub use pack::{pack_row, packed_row_bytes, unpack_row};
pub use random::{uniform_below, uniform_u64};
pub use rope::rotate;
pub use sweep::{ColumnSweep, Feedback, SweepParams, Swept};
pub use transpose::transpose;
pub use truncated_svd::{Dense, LinearMap, TruncatedSvd, truncated_svd};
pub(crate) use vectorize::{Kernel, vectorize};

/// The instruction-set level the kernels run at on this machine, and what multiplies bf16, if anything is to; results of two levels may
/// differ in their last bits.
pub fn instructions(bf16: Option<Bf16Unit>) -> String {
    let level = level();
    bf16.map_or_else(|| level.clone(), |unit| format!("{level} {}", unit.name()))
}

fn level() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let level = if std::arch::is_x86_feature_detected!("avx512f") {
            "x86-64 avx512"
        } else if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            "x86-64 avx2"
        } else {
            "x86-64 sse2"
        };
        level.to_owned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        std::env::consts::ARCH.to_owned()
    }
}
