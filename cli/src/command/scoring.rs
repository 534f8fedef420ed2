//! The data that a model is measured on, and what measuring it may take.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use qfw_core::calibration::{Bos, Tokenizer, evaluation_windows, token_stream};
use qfw_core::evaluate::{EvalControl, Protocol, strided_windows};
use qfw_core::model::Dims;
use qfw_core::numeric::Bf16Unit;
use qfw_core::plan::raw::ByteSize;
use qfw_core::{Error, Result};

use super::use_threads;
use crate::arguments::Scoring;
use crate::hub;
use crate::terminal::{CANCELLED, catch_interrupt};

/// Windows of token ids, each with the first of them that no window before it scored.
pub(super) type Windows = Vec<(Vec<u32>, usize)>;

/// What is asked for, checked before a model is opened.
pub(super) struct Checked<'a> {
    asked: &'a Scoring,
    pub(super) protocol: Protocol,
    stream_bytes: u64,
    bf16: Option<Bf16Unit>,
}

/// Checks it, and sets the number of threads.
pub(super) fn check(asked: &Scoring) -> Result<Checked<'_>> {
    use_threads(asked.threads)?;
    let protocol = Protocol::parse(&asked.protocol)?;
    let budget: ByteSize = asked.budget.parse().map_err(|e: Error| e.within("`--budget`"))?;
    if asked.stride.is_some() && protocol != Protocol::HfStride {
        return Err(Error::config("config::invalid", "`--stride` has a meaning only with `--protocol hf-stride`"));
    }
    let bf16 = asked.products.here().unit(Bf16Unit::detect()).map_err(|e| e.within("`--products`"))?;
    Ok(Checked { asked, protocol, stream_bytes: budget.bytes(), bf16 })
}

impl Checked<'_> {
    /// The windows of `data` for a model of these dimensions.
    pub(super) fn windows(&self, data: &str, tokenizer: Option<&Tokenizer>, dims: &Dims) -> Result<Windows> {
        // Brevitas measures on the validation split, the papers that follow GPTQ on the test split.
        let data = hub::evaluation(data, self.protocol == Protocol::Brevitas)?;
        let corpus = data.read(tokenizer)?;
        let stream = token_stream(&corpus, tokenizer, Bos::None)?;
        let max_windows = self.asked.max_windows.or(data.windows);
        let seq_len = self.asked.seq_len.unwrap_or(dims.max_positions.min(2048));
        let bos = if self.asked.bos {
            Some(tokenizer.and_then(Tokenizer::bos).ok_or_else(|| {
                Error::config("data::no-bos", "`--bos` was given, but the tokenizer names no BOS token").hint("leave `--bos` out")
            })?)
        } else {
            None
        };
        if let Some(id) = stream.iter().find(|id| **id as usize >= dims.vocab) {
            return Err(Error::input("model::token-range", format!("token id {id} is outside the vocabulary of {}", dims.vocab))
                .hint("were the token ids made with this model's own tokenizer?"));
        }
        if self.protocol == Protocol::HfStride {
            let mut windows = strided_windows(&stream, seq_len, self.asked.stride.unwrap_or(seq_len / 2));
            windows.truncate(max_windows.unwrap_or(usize::MAX));
            return Ok(windows);
        }
        let windows = evaluation_windows(&stream, seq_len, max_windows, bos)?;
        Ok(windows.ids.into_iter().map(|ids| (ids, 0)).collect())
    }

    /// Measures with a bar on a terminal, until Ctrl-C.
    pub(super) fn measure<T>(&self, quiet: bool, f: impl FnOnce(&EvalControl<'_>) -> Result<T>) -> Result<T> {
        catch_interrupt();
        let bar = if quiet || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new(0) };
        bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len}  ETA {eta}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        let progress = |done: usize, total: usize| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        };
        let cancelled = || CANCELLED.load(std::sync::atomic::Ordering::Relaxed);
        let result = f(&EvalControl { progress: &progress, cancelled: &cancelled, stream_bytes: self.stream_bytes, bf16: self.bf16 });
        bar.finish_and_clear();
        result
    }
}
