//! `qfw eval`

use qfw_core::Result;
use qfw_core::evaluate::{Perplexity, perplexity};
use qfw_core::registry::Registry;
use qfw_core::session::Opened;

use super::{say_json, scoring};
use crate::arguments::Eval;
use crate::hub;
use crate::terminal::say;

pub(crate) fn run(a: &Eval) -> Result<()> {
    let scoring = scoring::check(&a.scoring)?;
    let registry = Registry::linked()?;
    let opened = Opened::open(&hub::model(&a.model)?, &registry)?;
    let windows = scoring.windows(&a.data, opened.tokenizer()?.as_ref(), &opened.model.dims)?;
    let result = scoring.measure(a.json, |control| perplexity(&opened.model, &windows, scoring.protocol, control))?;
    if a.json { say_json(&result) } else { print(&result) }
}

fn print(p: &Perplexity) -> Result<()> {
    say(&format!("perplexity  {:.4} ± {:.4}", p.perplexity, p.perplexity_stderr));
    say(&scored(p));
    Ok(())
}

/// What was scored, in a line.
pub(super) fn scored(p: &Perplexity) -> String {
    let protocol = serde_json::to_value(p.protocol).ok().and_then(|v| v.as_str().map(ToOwned::to_owned)).unwrap_or_default();
    format!(
        "protocol    {protocol}: {} windows of {} tokens, {} scored, ids {}",
        p.windows,
        p.seq_len,
        p.tokens,
        &p.data_hash[..p.data_hash.len().min(12)]
    )
}
