//! The rules as a page for people.

use std::fmt::Write as _;

use super::facts::KEYS;
use super::rule::Engine;
use super::{FILES, short};
use crate::error::Result;

/// `docs/targets.md`.
///
/// # Errors
/// If a file of rules is malformed.
pub fn page() -> Result<String> {
    let mut out = String::from(
        "# What engines load\n\nThis page is made from the rules in `core/src/target/rules/` by `cargo xtask targets`; a test holds it to them.\n\n\
         `qfw plan --target ENGINE[@VERSION]` says what an engine will do with the result of a run, `qfw apply --target` refuses what it\n\
         would refuse or compute wrongly, and `qfw inspect MODEL --target` lists what it loads. The first rule that fits a layer decides it, and\n\
         the worst layer decides the model. What no rule speaks of is unknown, and is called so; so is every version that no rule is about,\n\
         and then what is known of the nearest is told.\n",
    );
    for (id, text) in FILES {
        let engine = Engine::parse(id, text)?;
        let _ = write!(
            out,
            "\n## {id}\n\n{} Rules are about {}.\n\n| | what | why | instead | known from |\n|---|---|---|---|---|\n",
            engine.about,
            engine.in_words()
        );
        for rule in &engine.rules {
            let when: Vec<String> = rule
                .when
                .iter()
                .map(|(key, any)| format!("{key} {}", any.iter().map(|v| format!("`{v}`")).collect::<Vec<_>>().join(" or ")))
                .collect();
            let recipe = rule.recipe.as_ref().map(|r| format!("`{r}`"));
            let recipe = recipe.or_else(|| rule.no_recipe.clone()).unwrap_or_default();
            let what = when.into_iter().chain(rule.range.in_words().map(|v| format!("versions {v}"))).collect::<Vec<_>>().join(", ");
            let _ = writeln!(out, "| {} | {what} | {} | {recipe} | {} |", short(rule.outcome), rule.reason, rule.source);
        }
    }
    out.push_str("\n## What rules can speak of\n\n| key | what it says |\n|---|---|\n");
    for (key, _, what) in KEYS {
        let _ = writeln!(out, "| {key} | {what} |");
    }
    Ok(out)
}
