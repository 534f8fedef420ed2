//! The matrix as Markdown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use qfw_core::target::Outcome;

use super::cell::{Cell, Found, Ran, State};
use super::engine::{ENGINES, Engine};

const ABOUT: &str = "Each cell is one checkpoint that `qfw apply` wrote, run by the engine on the first windows of a text, and compared with what this
program computes of the native form of the same run. A cell gives

- the cosine of the logits, the smallest at one position, each position's mean taken away;
- the largest difference of a logit, over the largest logit;
- the engine's perplexity over ours, less one.

Weights alone have to agree to a cosine of 0.9999, a difference of 5e-3 and 0.3 % of perplexity; where the engine computes in bf16, to 0.999, 3e-2
and 1 %, since that is off by itself: the floats of the same recipe, in `safetensors-f32`, show how far. Where
activations are rounded to 8 bits, by the recipe or by the engine, a difference in the last bit may be a step, and a cosine of 0.99 and a
difference of 0.1 are asked for; of a real model, and of an engine that computes in
halves whatever it is given (vLLM), the mean of the cosines, and 1 % of perplexity. What is further off is called wrong. For each cell, `--target` has to say what was found; the task fails
otherwise. Models are the tiny ones of the program, and the same as other families with numbers drawn at random for what those add.

`refused` is the engine's answer, `not written` that of `qfw plan`; the numbers lead to their words below the table. A place that is empty was
not run.
";

/// The whole page. `command` is what it is made by.
pub(super) fn markdown(cells: &[Cell], command: &str) -> String {
    let mut text =
        format!("# The same models in other engines\n\nMade by `{command}`. [What engines load](targets.md) has the rules.\n\n{ABOUT}");
    for engine in ENGINES {
        let of: Vec<&Cell> = cells.iter().filter(|c| c.engine == engine.name).collect();
        if !of.is_empty() {
            section(&mut text, engine, &of);
        }
    }
    text
}

fn section(text: &mut String, engine: &Engine, cells: &[&Cell]) {
    let _ = write!(text, "\n## {}\n\n", engine.name);
    let ran: BTreeSet<(&str, &str)> = cells.iter().filter_map(|c| run(c)).map(|r| (r.engine.as_str(), r.date.as_str())).collect();
    for (what, date) in &ran {
        let _ = writeln!(text, "{what}, run {date}; `--target {}`.", engine.target);
    }
    let absent: BTreeSet<&str> =
        cells.iter().filter_map(|c| if let State::NotHere(why) = &c.state { Some(why.as_str()) } else { None }).collect();
    for why in &absent {
        let _ = writeln!(text, "Not run: it could not be installed here (`{}`).", plain(why));
    }
    let run_here: Vec<&Cell> = cells.iter().copied().filter(|c| !matches!(c.state, State::NotHere(_))).collect();
    if run_here.is_empty() {
        return;
    }
    let families = in_order(run_here.iter().map(|c| c.family.as_str()));
    let rows = in_order(run_here.iter().map(|c| (c.recipe, c.format, c.way.what)));
    let _ = write!(text, "\n| | container | {} |\n|---|---|{}\n", families.join(" | "), "---|".repeat(families.len()));
    let mut notes: Vec<String> = Vec::new();
    for (recipe, format, way) in rows {
        let what = if way.is_empty() { recipe.to_owned() } else { format!("{recipe}; {way}") };
        let _ = write!(text, "| {what} | `{format}` |");
        for family in &families {
            let cell = run_here.iter().find(|c| (c.recipe, c.format, c.way.what, c.family.as_str()) == (recipe, format, way, *family));
            let _ = write!(text, " {} |", cell.map_or_else(String::new, |c| shown(c, &mut notes)));
        }
        text.push('\n');
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    for (i, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {note}", i + 1);
    }
}

fn run(cell: &Cell) -> Option<&Ran> {
    if let State::Ran(ran) = &cell.state { Some(ran) } else { None }
}

/// A cell in few words; reasons go to the notes.
pub(super) fn shown(cell: &Cell, notes: &mut Vec<String>) -> String {
    let mut number = |note: String| match notes.iter().position(|n| *n == note) {
        Some(i) => i + 1,
        None => {
            notes.push(note);
            notes.len()
        }
    };
    let found = match &cell.state {
        State::NotHere(_) => "not here".to_owned(),
        State::Late(seconds) => format!("longer than {seconds} s"),
        State::NotWritten(why, hint) => format!("not written ({})", number(format!("{}; {}", plain(why), plain(hint)))),
        State::Ran(ran) => match &ran.found {
            Found::Refused(why) => format!("refused ({})", number(format!("`{}`", plain(why)))),
            Found::Logits(d) => {
                let wrong = if ran.outcome(&cell.limits) == Outcome::Wrong { "**wrong** " } else { "" };
                format!("{wrong}{:.6}, {:.0e}, {:+.2} %", d.cosine, d.largest, 100.0 * d.perplexity())
            }
        },
    };
    if cell.wrong().is_some() { format!("{found} **(disagrees)**") } else { found }
}

/// Words in a cell or a code span.
fn plain(text: &str) -> String {
    text.replace('`', "'").replace('|', "/").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Each once, as they come.
fn in_order<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    all.fold(Vec::new(), |mut seen, x| {
        if !seen.contains(&x) {
            seen.push(x);
        }
        seen
    })
}
