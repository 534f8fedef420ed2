//! How good a model is, how far it is from another, and what it says.

mod compare;
mod forward;
mod generate;
mod perplexity;
mod stream;

pub use compare::{Comparison, MatrixError, WeightErrors, compare, compare_weights};
pub use forward::logits;
pub use generate::{GenerateOptions, generate};
pub use perplexity::{EvalControl, Perplexity, Protocol, perplexity, strided_windows};
