//! The block loop: streams, sweeps, journal, progress.
//!
//! ```text
//! learn what is learned of the whole model    the prelude, where a pass wants it
//! for each block b:
//!   load b                                   from disk, f32
//!   collect what the passes need             every window, in parallel over windows
//!   condition, split, round, correct         sites of a parallel group at once
//!   propagate the streams                    with the weights as rounded
//!   write shard b, the streams, the journal  each whole or not at all, while block b + 1 is under work
//! export from the native shards; config.json is renamed into place last
//! ```

mod block;
mod collect;
mod correct;
mod embedding;
pub(crate) mod export;
mod head;
mod journal;
mod measure;
mod output;
mod prelude;
pub mod record;
mod replay;
mod report;
mod run;
mod site_error;
mod split;
mod staging;
mod stream;
mod sweep;
mod together;
mod traced_block;
mod training;
mod transform;

pub use measure::Measured;
pub(crate) use output::{Late, Output, run_log, weight_bytes};
pub use report::{Progress, SiteReport, Summary, peak_rss};
pub use run::{Control, Mode, Run};
pub(crate) use staging::Staging;
