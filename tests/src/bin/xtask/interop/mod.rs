//! `xtask interop`: every container in every engine that reads it, with models of several families.
//!
//! A *cell* is a model, a recipe, a container and an engine. The program quantizes, the engine computes logits in a process and an
//! environment of its own, and both are compared; what came out is also compared with what `--target` says. Every finished cell is a line
//! of a file, under a hash of the checkpoint's bytes and the engine, so that a run that was killed goes on where it stood, and one after a
//! change of the program repeats what the change has touched.

#![allow(clippy::print_stdout, reason = "the cells are this task's output")]

mod cell;
mod driver;
mod engine;
mod environment;
mod family;
mod measure;
mod page;
mod recipe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use qfw_core::plan::Plan;
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::target::{self, Outcome};
use qfw_core::{Error, Result};
use qfw_tests::workspace;
use serde_json::{Value, json};

use self::cell::{Cell, Found, Ran, State};
use self::driver::{Answer, Driver};
use self::engine::{ENGINES, Engine, Way};
use self::family::{Family, families};
use self::measure::{Ours, Tokens};
use self::recipe::{RECIPES, Recipe};
use crate::kept::Kept;
use crate::program::build;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these engines
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Only these containers
    #[arg(long, value_delimiter = ',')]
    formats: Vec<String>,
    /// Only these models; a name with a comma is given with `;` between names
    #[arg(long, value_delimiter = ';')]
    models: Vec<String>,
    /// Only these recipes, with `;` between them
    #[arg(long, value_delimiter = ';')]
    recipes: Vec<String>,
    /// A checkpoint directory, run besides the tiny models
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where environments and finished cells are kept; otherwise in cargo's target directory
    #[arg(long)]
    env: Option<PathBuf>,
    /// The program, if it is not to be built first
    #[arg(long)]
    qfw: Option<PathBuf>,
    /// Seconds that a cell may take
    #[arg(long, default_value_t = 180)]
    seconds: u64,
    /// Show the cells that are finished, and run none
    #[arg(long)]
    finished: bool,
    /// The Markdown file to write
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the cells and prints them.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut matrix = Matrix::new(args)?;
    let all = families(args.model.as_deref());
    known("engine", &args.engines, ENGINES.iter().map(|e| e.name))?;
    known("model", &args.models, all.iter().map(|f| f.name.as_str()))?;
    known("recipe", &args.recipes, RECIPES.iter().map(|r| r.name))?;
    known("container", &args.formats, RECIPES.iter().flat_map(|r| r.formats).copied())?;
    for family in all.iter().filter(|f| chosen(&args.models, &f.name)) {
        for recipe in RECIPES.iter().filter(|r| chosen(&args.recipes, r.name)) {
            let here = if family.all_recipes { recipe.model.is_none_or(|m| m == family.name) } else { recipe.everywhere };
            if here {
                matrix.fill(family, recipe)?;
            }
        }
    }
    if let Some(out) = &args.out {
        std::fs::write(out, page::markdown(&matrix.cells, &command(args))).map_err(|e| Error::io(out, "write", e))?;
    }
    matrix.verdict()
}

/// What the task was called with, but for where things are and for what was finished already.
fn command(args: &Args) -> String {
    let list = |flag: &str, items: &[String], between: &str| {
        if items.is_empty() { String::new() } else { format!(" --{flag} '{}'", items.join(between)) }
    };
    let model =
        args.model.as_ref().map_or_else(String::new, |m| format!(" --model {}", m.file_name().unwrap_or_default().to_string_lossy()));
    let out = args.out.as_ref().map_or_else(String::new, |o| format!(" --out {}", o.display()));
    let filters = [list("engines", &args.engines, ","), list("formats", &args.formats, ","), list("models", &args.models, ";")].concat();
    format!("cargo xtask interop{filters}{}{model}{out}", list("recipes", &args.recipes, ";"))
}

fn chosen(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|x| x == name)
}

fn known<'a>(what: &str, given: &[String], names: impl Iterator<Item = &'a str>) -> Result<()> {
    let names: Vec<&str> = names.collect();
    match given.iter().find(|g| !names.contains(&g.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let mut all = names;
            all.sort_unstable();
            all.dedup();
            Err(Error::config("interop::unknown", format!("unknown {what} `{unknown}`")).hint(format!("there are: {}", all.join("; "))))
        }
    }
}

/// The work: what is chosen, what runs, and what came out.
struct Matrix<'a> {
    args: &'a Args,
    qfw: PathBuf,
    /// Environments and finished cells.
    home: PathBuf,
    work: tempfile::TempDir,
    kept: Kept<Ran>,
    /// Engines that run, or why they do not.
    pythons: BTreeMap<&'static str, std::result::Result<PathBuf, String>>,
    drivers: BTreeMap<&'static str, Driver>,
    cells: Vec<Cell>,
}

/// A model that a recipe has been carried out on.
struct Quantized<'a> {
    family: &'a Family,
    recipe: &'static Recipe,
    /// With a directory for each container.
    at: PathBuf,
    tokens: Tokens,
    file: PathBuf,
    ours: Ours,
}

impl<'a> Matrix<'a> {
    fn new(args: &'a Args) -> Result<Self> {
        let qfw = args.qfw.clone().map_or_else(build, Ok)?;
        let beside = std::env::current_exe().map_err(|e| Error::io(Path::new("xtask"), "find", e))?.with_file_name("interop");
        let home = args.env.clone().unwrap_or(beside);
        std::fs::create_dir_all(&home).map_err(|e| Error::io(&home, "create", e))?;
        let home = home.canonicalize().map_err(|e| Error::io(&home, "find", e))?;
        let work = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
        let kept = Kept::open(&home.join("cells.jsonl"))?;
        Ok(Self { args, qfw, home, work, kept, pythons: BTreeMap::new(), drivers: BTreeMap::new(), cells: Vec::new() })
    }

    /// Engines that a container of a model is given to. What an engine is not meant to read, it is given once.
    fn engines(&self, family: &Family, recipe: &Recipe, format: &str) -> Vec<&'static Engine> {
        let first = recipe.everywhere && family.name == "llama";
        ENGINES
            .iter()
            .filter(|e| chosen(&self.args.engines, e.name) && (e.reads.contains(&format) || first))
            .filter(|e| family.engines.is_empty() || family.engines.contains(&e.name))
            .collect()
    }

    /// All cells of a model and a recipe.
    fn fill(&mut self, family: &Family, recipe: &'static Recipe) -> Result<()> {
        let source = family.directory(self.work.path())?;
        let mut plans = Vec::new();
        for format in recipe.formats.iter().copied().filter(|f| chosen(&self.args.formats, f)) {
            let engines = self.engines(family, recipe, format);
            match self.plan(&source, family, recipe, format)? {
                Ok(plan) => plans.push((format, plan, engines)),
                Err((why, hint)) => {
                    for engine in engines.into_iter().filter(|e| e.reads.contains(&format)) {
                        self.note(family, recipe, format, engine, &engine.ways[0], State::NotWritten(why.clone(), hint.clone()), None);
                    }
                }
            }
        }
        if plans.iter().all(|(.., engines)| engines.is_empty()) {
            return Ok(());
        }
        let at = self.work.path().join("out");
        let formats: Vec<&str> = plans.iter().map(|(f, ..)| *f).collect();
        self.apply(&source, family, recipe, &formats, &at)?;
        let file = self.work.path().join("tokens.safetensors");
        let (length, count) = if family.is_own() { (512, 3) } else { (128, 4) };
        let text = workspace::root().join("cli/assets/text/evaluation.txt");
        let tokens = Tokens::write(&Opened::open(&source, &Registry::linked()?)?, &text, length, count, &file)?;
        let ours = Ours::of(&at.join("qfw"), &tokens)?;
        let quantized = Quantized { family, recipe, at, tokens, file, ours };
        for (format, plan, engines) in plans {
            for engine in engines {
                let said = target::judge(engine.target, &plan, None)?.formats.first().map(|f| f.outcome);
                self.run_ways(&quantized, format, engine, said)?;
            }
        }
        std::fs::remove_dir_all(&quantized.at).map_err(|e| Error::io(&quantized.at, "remove", e))
    }

    /// The words that `qfw plan` and `qfw apply` share.
    fn words(&self, source: &Path, family: &Family, recipe: &Recipe) -> Result<Vec<String>> {
        let mut words = vec![source.display().to_string()];
        if !recipe.config.is_empty() {
            let path = self.work.path().join("run.toml");
            std::fs::write(&path, format!("schema = 1\n{}", recipe.config)).map_err(|e| Error::io(&path, "write", e))?;
            words.extend(["--config".to_owned(), path.display().to_string()]);
        }
        words.extend(recipe.arguments());
        words.extend(recipe::settings(family.settings));
        let text = workspace::root().join("cli/assets/text/calibration.txt");
        words.extend(["--data".to_owned(), text.display().to_string()]);
        words.extend(recipe::settings("calibration.samples=8 calibration.seq-len=64"));
        Ok(words)
    }

    /// The plan of one container, or why there is none and what is hinted at.
    fn plan(&self, source: &Path, family: &Family, recipe: &Recipe, format: &str) -> Result<std::result::Result<Plan, (String, String)>> {
        let mut command = Command::new(&self.qfw);
        command.arg("plan").args(self.words(source, family, recipe)?).args(["--format", format, "--json"]);
        let output = command.output().map_err(|e| Error::io(&self.qfw, "run", e))?;
        if output.status.success() {
            let value: Value = serde_json::from_slice(&output.stdout).map_err(|e| Error::internal(format!("`qfw plan --json`: {e}")))?;
            let plan = serde_json::from_value(value["plan"].clone());
            return Ok(Ok(plan.map_err(|e| Error::internal(format!("`qfw plan --json`: {e}")))?));
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let (message, hint) = text.split_once("hint: ").unwrap_or((&text, ""));
        if !message.contains("plan::container") {
            return Err(Error::input("interop::plan", format!("`qfw plan` of {}, {}, {format} fails", family.name, recipe.name)).hint(text));
        }
        let message = message.split_once("]: ").map_or(message, |(_, m)| m);
        Ok(Err((message.trim().to_owned(), hint.trim().to_owned())))
    }

    fn apply(&self, source: &Path, family: &Family, recipe: &Recipe, formats: &[&str], at: &Path) -> Result<()> {
        let mut command = Command::new(&self.qfw);
        let formats: Vec<&str> = std::iter::once("qfw").chain(formats.iter().copied()).collect();
        command.arg("apply").args(self.words(source, family, recipe)?).args(["--format", &formats.join(","), "--overwrite", "-o"]).arg(at);
        let output = command.output().map_err(|e| Error::io(&self.qfw, "run", e))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::input("interop::apply", format!("`qfw apply` of {}, {} fails", family.name, recipe.name))
            .hint(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// The engine as it comes, and where it loads so, its other ways.
    fn run_ways(&mut self, q: &Quantized<'_>, format: &'static str, engine: &'static Engine, said: Option<Outcome>) -> Result<()> {
        for way in engine.ways.iter().filter(|w| w.containers.is_empty() || w.containers.contains(&format)) {
            let Some(state) = self.run_one(q, format, engine, way)? else { break };
            let refused = !matches!(&state, State::Ran(Ran { found: Found::Logits(_), .. }));
            self.note(q.family, q.recipe, format, engine, way, state, said);
            if refused {
                break;
            }
        }
        Ok(())
    }

    fn run_one(&mut self, q: &Quantized<'_>, format: &str, engine: &'static Engine, way: &Way) -> Result<Option<State>> {
        let checkpoint = q.at.join(format);
        let script = ["protocol.py", "tensors.py", "gguf_in_floats.py", engine.driver]
            .map(|f| workspace::root().join("tests/peers/engines").join(f));
        let script: String = script.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let key = cell::key(&checkpoint, engine, &script, way, &q.tokens.windows)?;
        if let Some(ran) = self.kept.find(&key) {
            return Ok(Some(State::Ran(ran)));
        }
        if self.args.finished {
            return Ok(None);
        }
        let limit = Duration::from_secs(self.args.seconds);
        let driver = match self.driver(engine, limit) {
            Ok(driver) => driver,
            Err(why) => return Ok(Some(State::NotHere(why))),
        };
        let (what, date) = (driver.engine.clone(), driver.date.clone());
        let out = self.work.path().join("logits.safetensors");
        let text = workspace::root().join("cli/assets/text/evaluation.txt");
        let job = json!({
            "checkpoint": checkpoint, "container": format, "option": way.option, "numbers": q.recipe.numbers,
            "vocabulary": q.tokens.vocabulary, "tokens": q.file, "text": text, "out": out,
        });
        let (answer, driver) = driver.ask(&job, limit);
        if let Some(driver) = driver {
            self.drivers.insert(engine.name, driver);
        }
        let found = match answer {
            Answer::Late(seconds) => return Ok(Some(State::Late(seconds))),
            Answer::Refused(why) => Found::Refused(why.replace(&q.at.display().to_string(), "OUT")),
            Answer::Done => Found::Logits(q.ours.distance(&q.tokens, &out)?),
        };
        let ran = Ran { engine: what, date, found };
        let name = format!("{}: {}, {}, {format}", engine.name, q.family.name, q.recipe.name);
        Ok(Some(State::Ran(self.kept.add(key, name, ran)?)))
    }

    /// A running driver, taken out of those that run.
    fn driver(&mut self, engine: &'static Engine, limit: Duration) -> std::result::Result<Driver, String> {
        if let Some(driver) = self.drivers.remove(engine.name) {
            return Ok(driver);
        }
        let home = &self.home;
        let python = self.pythons.entry(engine.name).or_insert_with(|| environment::python(engine, home)).clone()?;
        Driver::start(engine, &python, self.work.path(), limit)
    }

    #[allow(clippy::too_many_arguments, reason = "a cell has as many coordinates")]
    fn note(
        &mut self,
        family: &Family,
        recipe: &'static Recipe,
        format: &'static str,
        engine: &'static Engine,
        way: &Way,
        state: State,
        said: Option<Outcome>,
    ) {
        let limits = recipe.limits.map_or(way.limits, |l| way.limits.or(l));
        let limits = if family.is_own() || engine.halves { limits.by_the_mean() } else { limits };
        let cell = Cell { family: family.name.clone(), recipe: recipe.name, format, engine: engine.name, way: *way, limits, state, said };
        let mut notes = Vec::new();
        let shown = page::shown(&cell, &mut notes);
        println!("{}: {shown}{}", cell.place(), notes.first().map_or_else(String::new, |n| format!(" {n}")));
        self.cells.push(cell);
    }

    /// Fails if a cell is not what the rules say.
    fn verdict(&self) -> Result<()> {
        let wrong: Vec<String> = self.cells.iter().filter_map(|c| Some(format!("{}: {}", c.place(), c.wrong()?))).collect();
        let ran = self.cells.iter().filter(|c| matches!(c.state, State::Ran(_))).count();
        println!("\n{} cells, {ran} run, {} not as `--target` says", self.cells.len(), wrong.len());
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::numeric("interop::disagreement", format!("{} cells are not as they should be:\n  {}", wrong.len(), wrong.join("\n  ")))
            .hint("change the exporter, or the rules in `core/src/target/rules/`"))
    }
}
