//! `qfw generate`

use std::io::Write;

use qfw_core::evaluate::{GenerateOptions, generate};
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, Result};

use super::use_threads;
use crate::arguments::Generate;
use crate::hub;

pub(crate) fn run(a: &Generate) -> Result<()> {
    use_threads(None)?;
    let registry = Registry::linked()?;
    let opened = Opened::open(&hub::model(&a.model)?, &registry)?;
    let tokenizer = opened.tokenizer()?.ok_or_else(|| {
        Error::input("data::no-tokenizer", format!("`{}` has no tokenizer.json", a.model.display()))
            .hint("put the tokenizer beside the weights")
    })?;
    if !(a.top_p > 0.0 && a.top_p <= 1.0) || a.temperature < 0.0 {
        return Err(Error::config("config::invalid", "`--top-p` must be above 0 and at most 1, and `--temperature` not negative"));
    }
    let prompt = tokenizer.encode(&a.prompt, true)?;
    let options = GenerateOptions {
        max_new_tokens: a.max_new_tokens,
        temperature: a.temperature,
        top_k: a.top_k,
        top_p: a.top_p,
        seed: a.seed,
        stop: tokenizer.eos().into_iter().collect(),
    };
    let mut out = anstream::stdout();
    let _ = write!(out, "{}", a.prompt);
    // Text is printed as it becomes stable: a token may end inside a character.
    let (mut ids, mut shown) = (Vec::new(), 0);
    generate(&opened.model, &prompt, &options, &mut |id| {
        ids.push(id);
        if let Ok(text) = tokenizer.decode(&ids)
            && !text.ends_with('\u{fffd}')
            && text.is_char_boundary(shown)
        {
            let _ = write!(out, "{}", &text[shown..]);
            let _ = out.flush();
            shown = text.len();
        }
        true
    })?;
    let _ = writeln!(out);
    Ok(())
}
