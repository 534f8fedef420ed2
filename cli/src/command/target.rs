//! What an engine will do with what lies on disk: the judgement of the plan that made it.

use std::path::Path;

use qfw_core::checkpoint::Checkpoint;
use qfw_core::model::model_type;
use qfw_core::plan::Plan;
use qfw_core::registry::Registry;
use qfw_core::target::{self, Judgement, Recipe};
use qfw_core::{Error, Result};

use super::record;
use crate::terminal::say;

/// The plan of the run that wrote `dir`: in the directory itself, or, of one of several formats, in its parent.
///
/// # Errors
/// If there is a record, and it cannot be read.
fn plan_of(dir: &Path) -> Result<Option<Plan>> {
    if let Some(found) = record::of(dir)? {
        return record::plan(dir, &found).map(Some);
    }
    let full = std::fs::canonicalize(dir).map_err(|e| Error::io(dir, "find", e))?;
    let (Some(name), Some(parent)) = (full.file_name().and_then(|n| n.to_str()), full.parent()) else { return Ok(None) };
    let Some(found) = record::of(parent)? else { return Ok(None) };
    let mut plan = record::plan_of_format(parent, &found, name)?;
    plan.output.formats.retain(|f| f == name);
    Ok(Some(plan).filter(|p| !p.output.formats.is_empty()))
}

/// What the engine `target` will do with a checkpoint that a run wrote.
///
/// # Errors
/// If there is no such engine, or no plan of a run.
pub(crate) fn judged(target: &str, path: &Path) -> Result<Judgement> {
    target::check(target)?;
    let beside = || path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let dir = if path.is_dir() { path } else { beside() };
    let plan = plan_of(dir)?.ok_or_else(|| {
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
    if let Ok(Some(untried)) = target::untried(target) {
        say(&format!("target        {untried}"));
    }
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
