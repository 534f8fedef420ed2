//! `xtask table`: a model quantized by each row of a table and measured, as one Markdown file.
//!
//! Rows are data ([`Table`]); this folder knows how to run, keep and print them. Every finished row is a line of a file beside the
//! output, so a run that was killed goes on where it stood. Rows of a table in `docs/measurements` are committed with it, so that its hours
//! may be taken one after another, on whatever machine is free: run it there, with the same arguments and never
//! with `--products auto`, which is another thing on another processor. Rows that a change of the program moves are to be deleted by who
//! makes it: what is kept is found by the version, not by the code.

#![allow(clippy::print_stderr, reason = "a developer watches the rows go by")]

mod learned;
mod measure;
mod methods;
mod render;
mod schemes;
mod transforms;

use std::path::PathBuf;

use qfw_core::{Error, Result};

use self::measure::{Mean, Measured};
use crate::kept::Kept;
use crate::program::{Evaluation, build};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Which table: learned, methods, schemes or transforms
    table: String,
    /// Directory with config.json and *.safetensors
    model: PathBuf,
    /// Calibration data, as for `qfw apply --data`
    #[arg(long)]
    data: PathBuf,
    /// Windows of calibration
    #[arg(long, default_value_t = 8)]
    samples: usize,
    /// Data to measure perplexity on, as for `qfw eval --data`
    #[arg(long)]
    eval: PathBuf,
    /// Tokens per window, of the calibration and the evaluation
    #[arg(long, default_value_t = 512)]
    seq_len: usize,
    /// Windows of the evaluation
    #[arg(long, default_value_t = 8)]
    max_windows: usize,
    /// Seeds of the calibration; a row that depends on it is the mean over them
    #[arg(long, value_delimiter = ',', default_value = "0")]
    seeds: Vec<u64>,
    /// What operands of products are rounded to, in calibration and evaluation: f32 (nothing), bf16 or auto
    #[arg(long, default_value = "f32")]
    products: String,
    /// The Markdown file; finished rows are kept beside it as FILE.jsonl
    #[arg(long, default_value = "table.md")]
    out: PathBuf,
    /// What to say of the date and the machine
    #[arg(long)]
    note: Option<String>,
    /// Only rows whose name contains this
    #[arg(long)]
    only: Option<String>,
}

/// A table: what is run, and what is expected of it.
struct Table {
    title: &'static str,
    /// What the rows have in common.
    about: &'static str,
    rows: Vec<Row>,
    orderings: Vec<Ordering>,
    /// Why a row is worse than one it was expected to beat: better, worse, reason.
    reasons: &'static [(&'static str, &'static str, &'static str)],
}

/// One way to quantize the model.
#[derive(Clone, Debug)]
struct Row {
    /// Part of the table.
    section: &'static str,
    /// Its name, unique in the table.
    id: String,
    /// The `run.toml` without model and data; none for the float model.
    recipe: Option<String>,
    /// Whether it depends on the seed of the calibration.
    seeded: bool,
}

/// Two rows of which the first should not lose more than the second, by `allowed` standard errors of the difference.
#[derive(Clone, Debug)]
struct Ordering {
    kind: &'static str,
    better: String,
    worse: String,
    allowed: f64,
}

/// `(name, passes)`; a pass is its algorithm and its options.
type Methods = &'static [(&'static str, &'static [(&'static str, &'static str)])];

/// `(section, [scheme], methods)`
type Section = (&'static str, &'static str, Methods);

/// The float model and every method of every section, and those of `(better, worse)` of which a section has both.
fn of_sections(sections: &[Section], expected: &[(&str, &str)]) -> (Vec<Row>, Vec<Ordering>) {
    let id = |section: &str, method: &str| format!("{section}: {method}");
    let mut rows = vec![Row { section: "The float model", id: "float".to_owned(), recipe: None, seeded: false }];
    let mut orderings = Vec::new();
    for (section, scheme, methods) in sections {
        for (method, passes) in *methods {
            let passes: String =
                passes.iter().map(|(algo, options)| format!("[[pass]]\nalgo = '{algo}'\noptions = {{ {options} }}\n")).collect();
            let recipe = Some(format!("schema = 1\n[scheme]\n{scheme}\n{passes}"));
            rows.push(Row { section, id: id(section, method), recipe, seeded: *method != "RTN" || scheme.contains("static") });
        }
        for (better, worse) in expected {
            if [better, worse].iter().all(|name| methods.iter().any(|(method, _)| method == *name)) {
                orderings.push(Ordering { kind: "method", better: id(section, better), worse: id(section, worse), allowed: 0.0 });
            }
        }
    }
    (rows, orderings)
}

/// A table by its name.
type Named = (&'static str, fn() -> Table);

const TABLES: [Named; 4] =
    [("learned", learned::table), ("schemes", schemes::table), ("methods", methods::table), ("transforms", transforms::table)];

/// Runs the rows that are not done yet and writes the table, anew after each seed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Some((_, table)) = TABLES.iter().find(|(name, _)| *name == args.table) else {
        let known = TABLES.map(|(name, _)| name).join(", ");
        return Err(Error::config("table::unknown", format!("unknown table `{}`", args.table)).hint(format!("tables: {known}")));
    };
    let table = table();
    let products = args.products.clone();
    let evaluation = Evaluation { data: args.eval.clone(), seq_len: args.seq_len, max_windows: args.max_windows, products };
    let job = measure::Job { qfw: &build()?, model: &args.model, data: &args.data, samples: args.samples, evaluation: &evaluation };
    let mut kept = Kept::open(&args.out.with_extension("jsonl"))?;
    // What everything is compared with comes first, and is always needed.
    let wanted = |row: &Row| row.recipe.is_none() || args.only.as_ref().is_none_or(|part| row.id.contains(part.as_str()));
    let rows: Vec<&Row> = table.rows.iter().filter(|r| wanted(r)).collect();
    let mut done: Vec<(&Row, Vec<Measured>)> = rows.iter().map(|r| (*r, Vec::new())).collect();
    for (nth, seed) in args.seeds.iter().enumerate() {
        for (row, of_seeds) in done.iter_mut().filter(|(r, _)| r.seeded || nth == 0) {
            let key = job.key(row, *seed);
            let measured = match kept.find(&key) {
                Some(measured) => measured,
                None => kept.add(key, row.id.clone(), job.run(row, *seed)?)?,
            };
            eprintln!("{}, seed {seed}: {:.3}", row.id, measured.perplexity);
            of_seeds.push(measured);
        }
        let means: Vec<(&Row, Mean)> = done.iter().filter_map(|(row, m)| Some((*row, Mean::of(m)?))).collect();
        std::fs::write(&args.out, render::markdown(&table, args, &means)).map_err(|e| Error::io(&args.out, "write", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use qfw_core::plan::layer::Layers;

    use super::*;

    #[test]
    fn names_are_unique_and_orderings_are_of_rows() {
        for (name, table) in TABLES {
            let table = table();
            let ids: BTreeSet<&str> = table.rows.iter().map(|r| r.id.as_str()).collect();
            assert_eq!(ids.len(), table.rows.len(), "{name}");
            for o in &table.orderings {
                assert!(ids.contains(o.better.as_str()) && ids.contains(o.worse.as_str()), "{name}: {o:?}");
            }
            for (better, worse, _) in table.reasons {
                let expected = table.orderings.iter().any(|o| o.better == *better && o.worse == *worse);
                assert!(expected, "{name}: {better} against {worse} is not expected");
            }
        }
    }

    /// A recipe is a whole run but for its model.
    #[test]
    fn every_recipe_is_read() {
        for row in TABLES.iter().flat_map(|(_, table)| table().rows) {
            let Some(recipe) = &row.recipe else { continue };
            let layers = Layers::new().file("row", recipe).set("model.path", "m", "test");
            let read = layers.finish();
            assert!(read.is_ok(), "{}: {read:?}", row.id);
        }
    }
}
