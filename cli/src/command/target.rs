//! What an engine will do with what lies on disk: the judgement of the plan that made it.

use std::path::Path;

use qfw_core::checkpoint::Checkpoint;
use qfw_core::model::model_type;
use qfw_core::plan::Plan;
use qfw_core::registry::Registry;
use qfw_core::target::{self, Judgement, Recipe};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::terminal::say;

/// The plan of the run that wrote `dir`: in the directory itself, or, of one of several formats, in its parent.
pub(crate) fn plan_of(dir: &Path) -> Option<Plan> {
    let read = |dir: &Path| -> Option<Plan> {
        let record: Value = serde_json::from_slice(&std::fs::read(dir.join("qfw.json")).ok()?).ok()?;
        serde_json::from_value(record["plan"].clone()).ok()
    };
    if let Some(plan) = read(dir) {
        return Some(plan);
    }
    let full = std::fs::canonicalize(dir).ok()?;
    let name = full.file_name()?.to_str()?;
    let mut plan = of_format(full.parent()?, name).or_else(|| read(full.parent()?))?;
    plan.output.formats.retain(|f| f == name);
    (!plan.output.formats.is_empty()).then_some(plan)
}

/// The plan of one of several formats of an export, where it holds something else than the others.
fn of_format(dir: &Path, format: &str) -> Option<Plan> {
    let record: Value = serde_json::from_slice(&std::fs::read(dir.join("qfw.json")).ok()?).ok()?;
    serde_json::from_value(record["plans"].get(format)?.clone()).ok()
}

/// What the engine `target` will do with a checkpoint that a run wrote.
///
/// # Errors
/// If there is no such engine, or no plan of a run.
pub(crate) fn judged(target: &str, path: &Path) -> Result<Judgement> {
    target::check(target)?;
    let dir = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
    let plan = plan_of(dir).ok_or_else(|| {
        Error::config("target::no-plan", format!("`{}` has no `qfw.json`, and nothing else says how it was quantized", path.display()))
            .hint("rules are about plans: `qfw plan … --target` judges one before the run")
    })?;
    target::judge(target, &plan, head_dim(path, &plan))
}

/// Channels of a head, which the configuration says; of several formats any.
fn head_dim(path: &Path, plan: &Plan) -> Option<usize> {
    let of = |dir: &Path| {
        let config = Checkpoint::open(dir).ok()?.config;
        let registry = Registry::builtin().ok()?;
        // Biases do not matter here.
        let dims = registry.architecture(model_type(&config).ok()?).ok()?.parse(&config, &|_| false).ok()?;
        Some(dims.head_dim)
    };
    of(path).or_else(|| plan.output.formats.iter().find_map(|f| of(&path.join(f)))).filter(|d| *d > 0)
}

/// The recipes that the engine `target` loads of models of an architecture.
pub(crate) fn say_recipes(target: &str, architecture: &str, recipes: &[Recipe]) {
    if recipes.is_empty() {
        say(&format!("target        {target}: no rule says that it loads anything of a `{architecture}` model"));
        return;
    }
    say(&format!("target        {target} loads of a `{architecture}` model"));
    for r in recipes {
        say(&format!("  {}", r.what));
        say(&format!("    {}", r.arguments));
        say(&format!("    known from {}", r.source));
    }
}
