//! Post-training quantization of language models.

pub mod algorithm;
mod allocator;
pub mod calibration;
pub mod checkpoint;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod format;
pub mod granularity;
pub mod harness;
pub mod model;
pub mod numeric;
pub mod observer;
pub mod plan;
mod register;
pub mod registry;
pub mod scheme;
pub mod session;
pub mod statistic;
pub mod target;
pub mod topology;

pub use allocator::CacheLines;
pub use candle_core as candle;
pub use error::{Error, ErrorKind, Result};
#[doc(hidden)]
pub use inventory;
