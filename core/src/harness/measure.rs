//! How long a run will take, measured on its first block.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::block::QUANTIZED;
use super::block::quantize;
use super::embedding::Embedding;
use super::report::peak_rss;
use super::run::{Control, Run};
use crate::error::Result;

/// What a run of the plan is going to take on this machine, extrapolated from block 0; all blocks are taken to be like it.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Seconds to embed the calibration windows.
    pub embed_seconds: f64,
    /// Seconds of block 0, without writing it.
    pub block_seconds: f64,
    /// Seconds of all blocks and the embedding.
    pub total_seconds: f64,
    /// Peak resident memory so far, in bytes.
    pub peak_rss_bytes: u64,
    /// Bytes of the quantized weights in the output, with scales; tensors that are kept come on top.
    pub quantized_bytes: u64,
    /// Bytes of working files beside the output: quantized blocks, and hidden states of two blocks (and those spilled).
    pub work_bytes: u64,
}

impl Run<'_> {
    /// Runs block 0 and throws the result away. What does not fit in memory goes to `dir`.
    ///
    /// # Errors
    /// What would stop the run.
    pub fn measure(&self, dir: &Path, control: &Control<'_>) -> Result<Measured> {
        let start = Instant::now();
        let streams = self.empty_streams(dir)?;
        let embedding = Embedding::rounded(self)?.map(Arc::new);
        for (name, stream) in streams.named() {
            self.embed(stream, embedding.as_ref().filter(|_| name == QUANTIZED), control)?;
        }
        let embed_seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let original = self.load_block(0)?;
        let result = quantize(self, 0, &original, &streams, control)?;
        self.propagate(0, &original, &result, &streams, control)?;
        let block_seconds = start.elapsed().as_secs_f64();
        let plan = self.plan();
        let stream_bytes: u64 = streams.named().map(|(_, s)| s.bytes()).sum();
        let quantized_bytes = (plan.quantized_bits() / 8.0) as u64;
        Ok(Measured {
            embed_seconds,
            block_seconds,
            total_seconds: embed_seconds + block_seconds * f64::from(plan.blocks),
            peak_rss_bytes: peak_rss(),
            quantized_bytes,
            work_bytes: quantized_bytes + stream_bytes * if self.spills() { 3 } else { 2 },
        })
    }
}
