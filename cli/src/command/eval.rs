//! `qfw eval`

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use qfw_core::calibration::{Bos, evaluation_windows, token_stream};
use qfw_core::evaluate::{EvalControl, Perplexity, Protocol, perplexity, strided_windows};
use qfw_core::numeric::Bf16Unit;
use qfw_core::plan::raw::ByteSize;
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, Result};

use super::{say_json, use_threads};
use crate::arguments::Eval;
use crate::hub;
use crate::terminal::{CANCELLED, catch_interrupt, say};

pub(crate) fn run(a: &Eval) -> Result<()> {
    use_threads(a.threads)?;
    let protocol = Protocol::parse(&a.protocol)?;
    let budget: ByteSize = a.budget.parse().map_err(|e: Error| e.within("`--budget`"))?;
    if a.stride.is_some() && protocol != Protocol::HfStride {
        return Err(Error::config("config::invalid", "`--stride` has a meaning only with `--protocol hf-stride`"));
    }
    let bf16 = a.products.here().unit(Bf16Unit::detect()).map_err(|e| e.within("`--products`"))?;
    let registry = Registry::linked()?;
    let opened = Opened::open(&hub::model(&a.model)?, &registry)?;
    let windows = windows(a, protocol, &opened)?;
    catch_interrupt();
    let bar = if a.json || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new(0) };
    bar.set_style(ProgressStyle::with_template("{bar:24} {pos}/{len}  ETA {eta}").unwrap_or_else(|_| ProgressStyle::default_bar()));
    let progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let cancelled = || CANCELLED.load(std::sync::atomic::Ordering::Relaxed);
    let control = EvalControl { progress: &progress, cancelled: &cancelled, stream_bytes: budget.bytes(), bf16 };
    let result = perplexity(&opened.model, &windows, protocol, &control)?;
    bar.finish_and_clear();
    if a.json { say_json(&result) } else { print(&result) }
}

fn windows(a: &Eval, protocol: Protocol, opened: &Opened) -> Result<Vec<(Vec<u32>, usize)>> {
    let tokenizer = opened.tokenizer()?;
    // Brevitas measures on the validation split, the papers that follow GPTQ on the test split.
    let data = hub::evaluation(&a.data, protocol == Protocol::Brevitas)?;
    let corpus = data.read(tokenizer.as_ref())?;
    let stream = token_stream(&corpus, tokenizer.as_ref(), Bos::None)?;
    let max_windows = a.max_windows.or(data.windows);
    let dims = &opened.model.dims;
    let seq_len = a.seq_len.unwrap_or(dims.max_positions.min(2048));
    let bos = if a.bos {
        Some(tokenizer.as_ref().and_then(|t| t.bos()).ok_or_else(|| {
            Error::config("data::no-bos", "`--bos` was given, but the tokenizer names no BOS token").hint("leave `--bos` out")
        })?)
    } else {
        None
    };
    if let Some(id) = stream.iter().find(|id| **id as usize >= dims.vocab) {
        return Err(Error::input("model::token-range", format!("token id {id} is outside the vocabulary of {}", dims.vocab))
            .hint("were the token ids made with this model's own tokenizer?"));
    }
    if protocol == Protocol::HfStride {
        let mut windows = strided_windows(&stream, seq_len, a.stride.unwrap_or(seq_len / 2));
        windows.truncate(max_windows.unwrap_or(usize::MAX));
        return Ok(windows);
    }
    let windows = evaluation_windows(&stream, seq_len, max_windows, bos)?;
    Ok(windows.ids.into_iter().map(|ids| (ids, 0)).collect())
}

fn print(p: &Perplexity) -> Result<()> {
    let protocol = serde_json::to_value(p.protocol).ok().and_then(|v| v.as_str().map(ToOwned::to_owned)).unwrap_or_default();
    say(&format!("perplexity  {:.4} ± {:.4}", p.perplexity, p.perplexity_stderr));
    say(&format!(
        "protocol    {protocol}: {} windows of {} tokens, {} scored, ids {}",
        p.windows,
        p.seq_len,
        p.tokens,
        &p.data_hash[..p.data_hash.len().min(12)]
    ));
    Ok(())
}
