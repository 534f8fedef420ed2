//! How good a model is, and what it says: perplexity and sampling.

mod forward;
mod generate;
mod perplexity;

pub use forward::logits;
pub use generate::{GenerateOptions, generate};
pub use perplexity::{EvalControl, Perplexity, Protocol, perplexity, strided_windows};
