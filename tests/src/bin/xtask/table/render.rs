//! Rows and verdicts as Markdown.

use std::fmt::Write as _;
use std::path::Path;

use super::measure::Mean;
use super::{Args, Ordering, Row, Table};
use crate::program::paired;

/// The whole document.
pub(super) fn markdown(table: &Table, args: &Args, rows: &[(&Row, Mean)]) -> String {
    let mut text = format!("# {}\n\n", table.title);
    header(&mut text, table, args);
    let float = rows.iter().find(|(r, _)| r.recipe.is_none()).map(|(_, m)| &m.all);
    // Tables leave out the columns that say the same in all of their rows.
    let with_inputs = rows.iter().any(|(_, m)| m.all.inputs.is_some());
    let with_seeds = rows.iter().any(|(_, m)| m.each.len() > 1);
    let with_seconds = rows.iter().any(|(_, m)| m.all.cpu_seconds.is_some());
    let mut section = "";
    for (row, m) in rows {
        if row.section != section {
            section = row.section;
            let inputs = if with_inputs { " inputs |" } else { "" };
            let seeds = if with_seeds { " of each seed |" } else { "" };
            let seconds = if with_seconds { " CPU s |" } else { "" };
            let columns = format!("| row | weights | bits per weight |{inputs} perplexity |{seeds} Δ to float, nats per token |{seconds}");
            let rule = "|---".repeat(columns.matches('|').count() - 1);
            let _ = write!(text, "\n## {section}\n\n{columns}\n{rule}|\n");
        }
        let Mean { all, each } = m;
        let bits = all.bits.map_or_else(|| "16".to_owned(), |b| format!("{b:.3}"));
        let inputs = if with_inputs { format!(" {} |", all.inputs.as_deref().unwrap_or("float")) } else { String::new() };
        let each = each.iter().map(|p| number(*p)).collect::<Vec<_>>().join(", ");
        let seeds = if with_seeds { format!(" {} |", if row.seeded { &each } else { "" }) } else { String::new() };
        let delta = match float {
            Some(f) if row.recipe.is_some() => {
                let (mean, error) = paired(&all.windows_nll, &f.windows_nll);
                format!("{mean:+.4} ± {error:.4}")
            }
            _ => String::new(),
        };
        let (ppl, error) = (number(all.perplexity), number(all.perplexity_stderr));
        let seconds = match all.cpu_seconds {
            Some(seconds) => format!(" {seconds:.0} |"),
            None if with_seconds => " |".to_owned(),
            None => String::new(),
        };
        let _ = writeln!(text, "| {} | {} | {bits} |{inputs} {ppl} ± {error} |{seeds} {delta} |{seconds}", row.id, all.weights);
    }
    orderings(&mut text, table, rows);
    text
}

fn header(text: &mut String, table: &Table, args: &Args) {
    let name = |p: &Path| p.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(note) = &args.note {
        let _ = writeln!(text, "{note}.\n");
    }
    let _ = writeln!(
        text,
        "Made by `cargo xtask table {} {} --data {} --samples {} --seeds {} --eval {} --max-windows {} --seq-len {} --products {}`.\n",
        args.table,
        name(&args.model),
        name(&args.data),
        args.samples,
        args.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(","),
        name(&args.eval),
        args.max_windows,
        args.seq_len,
        args.products
    );
    let _ = writeln!(
        text,
        "{} Perplexity has its standard error over windows; Δ is the mean difference of the loss to the float model on the same windows, with \
         the standard error of that paired difference. What is calibrated, is on {} windows; a row that depends on them is the mean of the \
         loss over {} of their choice.",
        table.about,
        args.samples,
        if args.seeds.len() == 1 { "one seed".to_owned() } else { format!("{} seeds", args.seeds.len()) }
    );
}

/// Three decimals, or fewer where the number is so large that they say nothing.
fn number(x: f64) -> String {
    if x < 1e3 {
        format!("{x:.3}")
    } else if x < 1e7 {
        format!("{x:.0}")
    } else {
        format!("{x:.2e}")
    }
}

fn orderings(text: &mut String, table: &Table, rows: &[(&Row, Mean)]) {
    let find = |id: &str| rows.iter().find(|(r, _)| r.id == id).map(|(_, m)| &m.all);
    let compared: Vec<(&Ordering, f64, f64)> = table
        .orderings
        .iter()
        .filter_map(|o| {
            let (mean, error) = paired(&find(&o.better)?.windows_nll, &find(&o.worse)?.windows_nll);
            Some((o, mean, error))
        })
        .collect();
    let violated = |(o, mean, error): &(&Ordering, f64, f64)| *mean > o.allowed * error;
    let broken = compared.iter().filter(|c| violated(c)).count();
    let _ = write!(
        text,
        "\n## Orderings\n\nThe first row of a pair is expected to lose no more than the second; Δ is its loss minus the other's, paired by \
         window. A pair counts as violated where Δ is above the allowed number of standard errors. Violated: {broken} of {}.\n\n\
         | expected | better | worse | allowed | Δ, nats per token | |\n|---|---|---|---|---|---|\n",
        compared.len()
    );
    for pair in &compared {
        let verdict = if violated(pair) { "**violated**" } else { "holds" };
        let (o, mean, error) = pair;
        let _ = writeln!(text, "| {} | {} | {} | {} | {mean:+.4} ± {error:.4} | {verdict} |", o.kind, o.better, o.worse, o.allowed);
    }
    let reasons: Vec<(&Ordering, &str)> = compared
        .iter()
        .filter(|c| violated(c))
        .map(|(o, ..)| {
            let known = table.reasons.iter().find(|(b, w, _)| *b == o.better && *w == o.worse);
            (*o, known.map_or("not explained yet.", |(_, _, why)| why))
        })
        .collect();
    if !reasons.is_empty() {
        text.push_str("\n### Why the violated ones are\n\n");
        for (o, why) in reasons {
            let _ = writeln!(text, "- {} against {}: {why}", o.better, o.worse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::measure::Measured;
    use super::*;

    fn measured(windows_nll: &[f64]) -> Measured {
        Measured {
            bits: Some(4.25),
            weights: "int4".to_owned(),
            inputs: None,
            perplexity: 2e8,
            perplexity_stderr: 1.0,
            windows_nll: windows_nll.to_vec(),
            cpu_seconds: None,
        }
    }

    #[test]
    fn what_is_beyond_two_standard_errors_is_marked_and_explained() {
        let row = |id: &str, recipe: Option<&str>| Row {
            section: "S",
            id: id.to_owned(),
            recipe: recipe.map(ToOwned::to_owned),
            seeded: id == "b",
        };
        let order = |better: &str, worse: &str| Ordering { kind: "k", better: better.to_owned(), worse: worse.to_owned(), allowed: 2.0 };
        let rows = [row("float", None), row("a", Some("")), row("b", Some("")), row("c", Some(""))];
        let table = Table {
            title: "T",
            about: "About.",
            rows: rows.to_vec(),
            orderings: vec![order("a", "b"), order("b", "a"), order("a", "c"), order("a", "absent")],
            reasons: &[("a", "b", "because.")],
        };
        let nll = [[1.0, 2.0, 3.0], [1.5, 2.5, 3.6], [1.1, 2.1, 3.1], [1.6, 2.4, 3.55]];
        let done: Vec<(&Row, Mean)> = rows.iter().zip(nll).map(|(r, n)| (r, Mean::of(&[measured(&n)]).unwrap())).collect();
        let args = Args {
            table: "t".to_owned(),
            model: "folder/m".into(),
            data: "d".into(),
            samples: 1,
            eval: "e".into(),
            seq_len: 2,
            max_windows: 3,
            seeds: vec![0],
            products: "f32".to_owned(),
            out: "o".into(),
            note: None,
            only: None,
        };
        let text = markdown(&table, &args, &done);
        for line in [
            "`cargo xtask table t m --data d --samples 1 --seeds 0 --eval e --max-windows 3 --seq-len 2 --products f32`",
            "| a | int4 | 4.250 | 2.00e8 ± 1.000 | +0.5333 ± 0.0333 |",
            "| k | a | b | 2 | +0.4333 ± 0.0333 | **violated** |",
            "| k | b | a | 2 | -0.4333 ± 0.0333 | holds |",
            "above the allowed number of standard errors. Violated: 1 of 3.",
            "- a against b: because.",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
