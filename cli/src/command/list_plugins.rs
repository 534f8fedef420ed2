//! `qfw list-plugins`

use qfw_core::plan::raw::RawPlugins;
use qfw_core::{Error, Result};

use super::say_json;
use crate::arguments::ListPlugins;
use crate::dynamic;
use crate::terminal::say;

pub(crate) fn run(a: &ListPlugins) -> Result<()> {
    let mut list = dynamic::registry(&RawPlugins::default(), &a.dynamic)?.list();
    if let Some(kind) = &a.kind {
        let mut kinds: Vec<&str> = list.iter().map(|l| l.kind).collect();
        kinds.dedup();
        if !kinds.contains(&kind.as_str()) {
            let nearest = qfw_core::error::did_you_mean(kind, kinds.iter().copied());
            return Err(
                Error::config("registry::unknown", format!("unknown kind `{kind}`{nearest}")).hint(format!("kinds: {}", kinds.join(", ")))
            );
        }
        list.retain(|l| l.kind == kind);
    }
    if a.json {
        return say_json(&list);
    }
    let width = list.iter().map(|l| l.id.len()).max().unwrap_or(0);
    let mut kind = "";
    for l in &list {
        if l.kind != kind {
            let kinds = l.kind.strip_suffix('y').map_or_else(|| format!("{}s", l.kind), |stem| format!("{stem}ies"));
            say(&format!("{}{kinds}", if kind.is_empty() { "" } else { "\n" }));
            kind = l.kind;
        }
        let phase = l.phase.as_ref().map_or_else(String::new, |p| format!("[{p}] "));
        let aliases = if l.aliases.is_empty() { String::new() } else { format!(" (also {})", l.aliases.join(", ")) };
        say(&format!("  {:<width$}  {phase}{}{aliases}  · {} {}", l.id, l.summary, l.source, l.version));
    }
    Ok(())
}
