//! What an engine will do with what a plan writes: load it, refuse it, or load it and compute something else.
//!
//! Knowledge of engines is data: one file of rules each, in `rules/`, with where each rule is known from. This module reads the rules and applies them; it
//! knows no engine. A plan is taken as *cases*, one for each way in which one of its linears is quantized, each with its [facts](facts). The
//! first rule that fits a case decides it; the worst case decides the plan. What no rule speaks of is unknown, and is called so.

mod facts;
mod page;
mod rule;
mod shards;
#[cfg(test)]
mod tests;
mod version;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use page::page;
use rule::{Engine, Rule};
use version::Version;

use crate::error::{Error, Result, did_you_mean};
use crate::plan::Plan;
use facts::Case;

/// The rules, by engine.
const FILES: [(&str, &str); 8] = [
    ("vllm", include_str!("rules/vllm.toml")),
    ("vllm-cpu", include_str!("rules/vllm-cpu.toml")),
    ("transformers", include_str!("rules/transformers.toml")),
    ("gptqmodel", include_str!("rules/gptqmodel.toml")),
    ("llama.cpp", include_str!("rules/llama.cpp.toml")),
    ("onnxruntime", include_str!("rules/onnxruntime.toml")),
    ("mistral.rs", include_str!("rules/mistral.rs.toml")),
    ("sharktank", include_str!("rules/sharktank.toml")),
];

/// What becomes of a model in an engine, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It loads, and computes what it should.
    Loads,
    /// Nobody has looked.
    Unknown,
    /// It loads, and computes something else.
    Wrong,
    /// It does not load.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loads => "loads",
            Self::Unknown => "unknown",
            Self::Wrong => "loads but computes wrongly",
            Self::Refused => "refused",
        })
    }
}

/// What a rule, or the lack of one, says of some layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Because {
    /// What becomes of them.
    pub outcome: Outcome,
    /// Name of the rule.
    pub rule: Option<String>,
    /// How many layers it is about.
    pub sites: usize,
    /// Role path of the first.
    pub first: Option<String>,
    /// Why.
    pub reason: String,
    /// Arguments with which it would load.
    pub recipe: Option<String>,
    /// Why there are none.
    pub no_recipe: Option<String>,
    /// Where that is known from.
    pub source: Option<String>,
}

/// What becomes of one output format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OfFormat {
    /// Its id.
    pub format: String,
    /// The worst of what follows.
    pub outcome: Outcome,
    /// Worst first.
    pub because: Vec<Because>,
}

/// What an engine will do with the formats of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// The engine.
    pub engine: String,
    /// The version that was asked for, or else the newest that its rules are about.
    pub version: String,
    /// One for each output format.
    pub formats: Vec<OfFormat>,
    /// Over how many devices each layer can be split, where the engine does that and the heads are known.
    pub tensor_parallel: Option<Vec<usize>>,
}

/// What an engine is known to load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// What it is.
    pub what: String,
    /// Arguments that give it.
    pub arguments: String,
    /// Where that is known from.
    pub source: String,
}

/// The engine that `target` (`ENGINE[@VERSION]`) names, and the version; without one the newest that its rules are about.
fn engine(target: &str) -> Result<(Engine, Version)> {
    let (name, version) = target.split_once('@').map_or((target, None), |(n, v)| (n, Some(v)));
    let Some((id, text)) = FILES.iter().find(|(id, _)| *id == name) else {
        let known = FILES.map(|(id, _)| id);
        return Err(Error::config("target::unknown-engine", format!("`{name}` is no engine{}", did_you_mean(name, known)))
            .hint(format!("engines that rules are known of: {}", known.join(", "))));
    };
    let engine = Engine::parse(id, text)?;
    let newest = engine.versions.first().ok_or_else(|| Error::internal("an engine without versions"))?;
    let version = match version {
        None => newest.clone(),
        Some(text) => Version::parse(text).ok_or_else(|| {
            let what =
                if text.is_empty() { "no version".to_owned() } else { format!("the version `{text}`, and versions are numbers and dots") };
            Error::config("target::no-version", format!("`{target}` names {what}"))
                .hint(format!("write `{id}`, or `{id}@{newest}`; rules are about {}", engine.in_words()))
        })?,
    };
    Ok((engine, version))
}

/// Checks that `target` names an engine.
///
/// # Errors
/// If it does not; the hint lists those there are.
pub fn check(target: &str) -> Result<()> {
    engine(target).map(|_| ())
}

/// What the engine `target` will do with what `plan` writes. `head_dim` is the width of a head, where that is known.
///
/// # Errors
/// If there is no such engine.
pub fn judge(target: &str, plan: &Plan, head_dim: Option<usize>) -> Result<Judgement> {
    let (engine, version) = engine(target)?;
    let formats = plan.output.formats.iter().map(|f| of_format(&engine, &version, plan, f)).collect();
    let tensor_parallel = head_dim.filter(|_| engine.tensor_parallel).and_then(|d| shards::sizes(plan, d));
    Ok(Judgement { engine: engine.id, version: version.to_string(), formats, tensor_parallel })
}

/// What the engine `target` is known to load of models of an architecture.
///
/// # Errors
/// If there is no such engine.
pub fn recipes(target: &str, architecture: &str) -> Result<Vec<Recipe>> {
    let (engine, version) = engine(target)?;
    let tried = engine.tried(&version);
    let rules =
        engine.rules.into_iter().filter(|r| r.range.holds(&version, tried) && r.outcome == Outcome::Loads && r.speaks_of(architecture));
    Ok(rules.filter_map(|r| Some(Recipe { what: r.reason, arguments: r.recipe?, source: r.source })).collect())
}

/// That nobody has tried a version, and which were tried; nothing if it is one of those.
///
/// # Errors
/// If there is no such engine.
pub fn untried(target: &str) -> Result<Option<String>> {
    let (engine, version) = engine(target)?;
    Ok((!engine.tried(&version)).then(|| untried_version(&engine, &version)))
}

fn untried_version(engine: &Engine, version: &Version) -> String {
    format!("nobody has tried {} {version}; rules are about {}", engine.id, engine.in_words())
}

fn of_format(engine: &Engine, version: &Version, plan: &Plan, format: &str) -> OfFormat {
    let mut because: Vec<Because> = Vec::new();
    for Case { facts, site } in facts::cases(plan, format) {
        let rule = engine.deciding(version, &facts);
        let name = rule.map(|r| r.name.clone());
        let reason = rule.map_or_else(|| unknown(engine, version, &facts), |rule| rule.reason.clone());
        match because.iter_mut().find(|b| b.rule == name && b.reason == reason) {
            Some(b) => b.sites += 1,
            None => because.push(Because {
                outcome: rule.map_or(Outcome::Unknown, |r: &Rule| r.outcome),
                rule: name,
                sites: 1,
                first: site,
                reason,
                recipe: rule.and_then(|r| r.recipe.clone()),
                no_recipe: rule.and_then(|r| r.no_recipe.clone()),
                source: rule.map(|r| r.source.clone()),
            }),
        }
    }
    because.sort_by_key(|b| std::cmp::Reverse(b.outcome));
    let outcome = because.first().map_or(Outcome::Unknown, |b| b.outcome);
    OfFormat { format: format.to_owned(), outcome, because }
}

/// Why nothing is known of a case: no rule, or none of this version; then what is known of the nearest.
fn unknown(engine: &Engine, version: &Version, facts: &facts::Facts) -> String {
    let case = || facts::in_words(facts);
    if engine.tried(version) {
        return format!("no rule speaks of {}", case());
    }
    let Some(nearest) = version.nearest(&engine.versions) else { return untried_version(engine, version) };
    let there = match engine.deciding(nearest, facts) {
        Some(rule) => format!("it {}: {}", said(rule.outcome), rule.reason),
        None => format!("no rule speaks of {}", case()),
    };
    format!("{}; in {nearest}, the nearest, {there}", untried_version(engine, version))
}

impl Judgement {
    /// Refuses a plan none of whose formats the engine can use. What is unknown may be tried.
    ///
    /// # Errors
    /// With the reason of the engine, and the recipe that works.
    pub fn demand(&self) -> Result<()> {
        if self.formats.iter().any(|f| f.outcome <= Outcome::Unknown) {
            return Ok(());
        }
        let Some((format, b)) = self.formats.first().and_then(|f| Some((f, f.because.first()?))) else { return Ok(()) };
        let does = if b.outcome == Outcome::Wrong { "loads but computes wrongly what" } else { "refuses what" };
        let error =
            Error::plan("plan::target", format!("{} {} {does} `{}` is to hold: {}", self.engine, self.version, format.format, b.reason));
        Err(match &b.recipe {
            Some(recipe) => error.hint(format!("this loads: {recipe}")),
            None => error.hint(format!("{}; or leave `--target` out", b.no_recipe.as_deref().unwrap_or("choose another engine"))),
        })
    }
}

impl fmt::Display for Judgement {
    /// A line for each format and reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for format in &self.formats {
            writeln!(f, "target        {} {}: `{}` {}", self.engine, self.version, format.format, said(format.outcome))?;
            for b in &format.because {
                let which = b.first.as_ref().map_or_else(String::new, |s| format!("  ×{} from `{s}`", b.sites));
                writeln!(f, "  {:<11} {}{which}", short(b.outcome), b.reason)?;
                if let Some(recipe) = b.recipe.as_ref().filter(|_| b.outcome > Outcome::Unknown) {
                    writeln!(f, "  instead     {recipe}")?;
                }
                if let Some(why) = &b.no_recipe {
                    writeln!(f, "  instead     nothing: {why}")?;
                }
                if let Some(source) = &b.source {
                    writeln!(f, "  known from  {source}")?;
                }
            }
        }
        match &self.tensor_parallel {
            Some(sizes) => writeln!(f, "  devices     layers can be split over {}", numbers(sizes)),
            None => Ok(()),
        }
    }
}

fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Loads => "loads",
        Outcome::Unknown => "may load: nobody has looked",
        Outcome::Wrong => "loads, and computes something else",
        Outcome::Refused => "is refused",
    }
}

fn short(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Loads => "loads",
        Outcome::Unknown => "unknown",
        Outcome::Wrong => "wrong",
        Outcome::Refused => "refused",
    }
}

fn numbers(list: &[usize]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
