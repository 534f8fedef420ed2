//! `qfw compare`

use std::collections::BTreeMap;
use std::path::Path;

use qfw_core::calibration::Tokenizer;
use qfw_core::checkpoint::Checkpoint;
use qfw_core::evaluate::{Comparison, WeightErrors, compare, compare_weights};
use qfw_core::model::Dims;
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, Result};
use serde_json::json;

use super::scoring::{self, Checked, Windows};
use super::{eval, say_json};
use crate::arguments::Compare;
use crate::hub;
use crate::terminal::{note, say};

/// Errors of blocks in a line.
const IN_A_LINE: usize = 8;
/// Above this much, hidden states before the first block are not those of a rounded embedding.
const OTHER_BASIS: f64 = 0.5;

pub(crate) fn run(a: &Compare) -> Result<()> {
    let scoring = scoring::check(&a.scoring)?;
    let registry = Registry::linked()?;
    let open = |path: &Path| {
        let path = hub::model(path)?;
        if a.data.is_some() {
            return Opened::open(&path, &registry);
        }
        let (opened, notes) = Opened::for_weights(Checkpoint::open(&path)?, &registry)?;
        notes.iter().for_each(|n| note(n));
        Ok(opened)
    };
    let (first, second) = (open(&a.reference)?, open(&a.other)?);
    let windows = a.data.as_ref().map(|data| windows(&scoring, data, &first, &second)).transpose()?;
    let (weights, on_data) = scoring.measure(a.json, |control| {
        let weights = compare_weights(&first.model, &second.model, control)?;
        let on_data = windows.map(|w| compare(&first.model, &second.model, &w, scoring.protocol, control)).transpose()?;
        Ok((weights, on_data))
    })?;
    if a.json {
        return say_json(&json!({ "models": [a.reference, a.other], "weights": weights, "on_data": on_data }));
    }
    say_weights(&weights);
    match on_data {
        Some(c) => say_comparison(&c),
        None => say("give `--data FILE` to compare what they compute"),
    }
    Ok(())
}

/// Windows that mean the same to both.
fn windows(scoring: &Checked<'_>, data: &str, first: &Opened, second: &Opened) -> Result<Windows> {
    let (dims, other) = (&first.model.dims, &second.model.dims);
    // That vocabularies differ is said of the models, not of a token.
    let dims = Dims { max_positions: dims.max_positions.min(other.max_positions), vocab: dims.vocab.max(other.vocab), ..dims.clone() };
    let made = |tokenizer: Option<&Tokenizer>| scoring.windows(data, tokenizer, &dims);
    match (first.tokenizer()?, second.tokenizer()?) {
        (Some(a), Some(b)) => {
            let windows = made(Some(&a))?;
            if made(Some(&b))? == windows {
                return Ok(windows);
            }
            Err(Error::input("compare::tokenizers", "the tokenizers of A and B make different tokens of the data")
                .hint("compare a model with one that was made of it, or give token ids (.safetensors, .npy)"))
        }
        (a, b) => made(a.or(b).as_ref()),
    }
}

/// Of each kind of matrix the error of the middle one, and of the worst.
fn say_weights(w: &WeightErrors) {
    let mut kinds: BTreeMap<&str, Vec<(f64, &str)>> = BTreeMap::new();
    for m in &w.matrices {
        let kind = m.site.strip_prefix("blocks.").and_then(|s| s.split_once('.')).map_or(&*m.site, |(_, role)| role);
        kinds.entry(kind).or_default().push((m.error, &m.site));
    }
    say("weights     relative error: in the middle, and the largest");
    let wide = kinds.keys().map(|kind| kind.len()).max().unwrap_or(0) + 2;
    for (kind, mut errors) in kinds {
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (middle, worst) = (errors[errors.len() / 2].0, errors[errors.len() - 1]);
        let of = if errors.len() > 1 { format!("  {:.4}  {}", worst.0, worst.1) } else { String::new() };
        say(&format!("  {kind:<wide$}{middle:.4}{of}"));
    }
    w.unmatched.iter().for_each(|m| say(&format!("  not compared: {m}")));
}

fn say_comparison(c: &Comparison) {
    say(&format!("blocks      relative error of what they give, after {:.4} of the embedding", c.embedding_error));
    for (i, errors) in c.block_errors.chunks(IN_A_LINE).enumerate() {
        let errors: String = errors.iter().map(|e| format!("  {e:.4}")).collect();
        say(&format!("  {:<8}{errors}", i * IN_A_LINE));
    }
    if c.embedding_error > OTHER_BASIS {
        say(
            "  hidden states differ before the first block: one of the models is rotated or scaled, and errors of weights and blocks mean nothing",
        );
    }
    say(&format!("KL(A‖B)     {:.6} ± {:.6} nats a token", c.kl, c.kl_stderr));
    say(&format!("top-1       {:.2} % ± {:.2} of the likeliest tokens are the same", 100.0 * c.top1, 100.0 * c.top1_stderr));
    say(&format!("loss        {:+.6} ± {:.6} nats a token, paired by window", c.loss_difference, c.loss_difference_stderr));
    say(&format!(
        "perplexity  {:.4} ± {:.4} and {:.4} ± {:.4}",
        c.a.perplexity, c.a.perplexity_stderr, c.b.perplexity, c.b.perplexity_stderr
    ));
    say(&eval::scored(&c.a));
}
