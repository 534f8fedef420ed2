//! Regular expressions for lists of modules, as `dynamic` takes them.
//!
//! Readers match them, from the start of a name, with the names that layers have in *their* model: vLLM makes one layer `qkv_proj` of
//! `q_proj`, `k_proj` and `v_proj`, and `gate_up_proj` of `gate_proj` and `up_proj`. Layers that are made one are quantized alike, so the
//! name of the whole may stand beside those of its parts.

use std::collections::{BTreeMap, BTreeSet};

use regex::escape;

/// The pattern of exactly these modules, and of the layers that they are parts of. `blocks` is how many blocks the model has.
pub(crate) fn pattern(modules: &[&str], blocks: u32) -> String {
    let mut plain: BTreeSet<String> = BTreeSet::new();
    // Before the number, after it, and the numbers.
    let mut numbered: BTreeMap<(String, String), BTreeSet<u32>> = BTreeMap::new();
    for name in modules.iter().flat_map(|m| [Some((*m).to_owned()), whole(m)]).flatten() {
        match split(&name) {
            Some((before, number, after)) => {
                numbered.entry((before.to_owned(), after.to_owned())).or_default().insert(number);
            }
            None => {
                plain.insert(escape(&name));
            }
        }
    }
    // Suffixes that share their numbers share an alternative.
    let mut alternatives: BTreeMap<(String, BTreeSet<u32>), Vec<String>> = BTreeMap::new();
    for ((before, after), numbers) in numbered {
        alternatives.entry((before, numbers)).or_default().push(escape(&after));
    }
    let numbers = |set: &BTreeSet<u32>| {
        let all = set.len() == blocks as usize && set.last().is_some_and(|last| *last == blocks - 1);
        if all { r"\d+".to_owned() } else { either(set.iter().map(u32::to_string)) }
    };
    let numbered = alternatives
        .into_iter()
        .map(|((before, set), after)| format!(r"{}\.{}\.{}", escape(&before), numbers(&set), either(after.into_iter())));
    format!("^{}$", either(numbered.chain(plain)))
}

/// One of `words`.
fn either(words: impl Iterator<Item = String>) -> String {
    match &words.collect::<Vec<_>>()[..] {
        [one] => one.clone(),
        several => format!("(?:{})", several.join("|")),
    }
}

/// What stands before the first number between dots, the number, and what stands after it.
fn split(name: &str) -> Option<(&str, u32, &str)> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        if part.bytes().all(|b| b.is_ascii_digit())
            && start > 0
            && end < name.len()
            && let Ok(number) = part.parse::<u32>()
            && number.to_string() == part
        {
            return Some((&name[..start - 1], number, &name[end + 1..]));
        }
        start = end + 1;
    }
    None
}

/// The layer that a module is the first part of, where readers make one layer of several.
fn whole(module: &str) -> Option<String> {
    let fused = [("q_proj", "qkv_proj"), ("gate_proj", "gate_up_proj")];
    let (path, last) = module.rsplit_once('.')?;
    fused.iter().find(|(part, _)| *part == last).map(|(_, whole)| format!("{path}.{whole}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    #[test]
    fn names_are_gathered() {
        for (modules, blocks, expected) in [
            (&["lm_head"][..], 2, "^lm_head$"),
            (&["h.0.a.w", "h.1.a.w"], 2, r"^h\.\d+\.a\.w$"),
            (&["h.0.a.w", "h.2.a.w"], 3, r"^h\.(?:0|2)\.a\.w$"),
            (&["h.0.a", "h.0.b", "h.1.b", "x-y"], 2, r"^(?:h\.0\.a|h\.\d+\.b|x\-y)$"),
            (
                &["m.1.attn.q_proj", "m.1.attn.k_proj", "m.1.mlp.gate_proj"],
                3,
                r"^m\.1\.(?:attn\.k_proj|attn\.q_proj|attn\.qkv_proj|mlp\.gate_proj|mlp\.gate_up_proj)$",
            ),
        ] {
            assert_eq!(pattern(modules, blocks), expected);
        }
    }

    /// From names that differ by a digit, a dot, or something behind.
    #[test]
    fn a_pattern_fits_its_modules_and_no_others() {
        let all = ["m.1.a", "m.11.a", "m.2.a", "m.1.ab", "m.1.a.b", "m.12.a", "mx1.a", "m.21.a", "a", "n.1.a"];
        for mask in 1..1usize << all.len() {
            let chosen: Vec<&str> = all.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1).map(|(_, m)| *m).collect();
            let regex = Regex::new(&pattern(&chosen, 13)).unwrap();
            for name in all {
                assert_eq!(regex.is_match(name), chosen.contains(&name), "{regex} and {name}");
            }
        }
    }
}
