//! Layers of configuration and their order: defaults < presets < files < `--algo` < flags < `--set`.
//!
//! Tables are merged key by key; what is no table replaces what was there. Three things are their own:
//! - `[[override]]` entries of a higher layer come after those of a lower one, so that the last match is the higher layer's;
//! - `[[pass]]` of a higher layer replaces the list; a pass that the lower list has too keeps what the higher one does not set, and
//!   passes that are gone are noted;
//! - a choice such as `granularity` is replaced whole when another one is chosen.

use super::alias::{SITES, normalize};
use super::node::{Node, Origin, Value, place};
use super::options::Origins;
use super::preset::preset;
use super::raw::{RawRun, SCHEMA};
use super::read::read;
use super::set_path::{resolve, set_at, split_assignment, split_path};
use crate::error::{Error, Result};

/// Collects layers; [`finish`](Layers::finish) merges them. The order of calls matters only between layers of the same kind.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    presets: Vec<String>,
    files: Vec<(String, String)>,
    algos: Option<Vec<String>>,
    flags: Vec<(String, toml::Value, String)>,
    sets: Vec<String>,
}

/// What the layers add up to.
#[derive(Clone, Debug)]
pub struct Merged {
    /// The run.
    pub run: RawRun,
    /// What was read differently from how it was written, and what a layer dropped: one sentence each.
    pub notes: Vec<String>,
    /// Where each key was written.
    pub origins: Origins,
}

impl Layers {
    /// No layers: the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// A preset, by name.
    #[must_use]
    pub fn preset(mut self, name: &str) -> Self {
        self.presets.push(name.to_owned());
        self
    }

    /// The text of a `run.toml`; `label` is what errors call it.
    #[must_use]
    pub fn file(mut self, label: &str, text: &str) -> Self {
        self.files.push((label.to_owned(), text.to_owned()));
        self
    }

    /// The list of passes, as `--algo` gives it. An empty list changes nothing.
    #[must_use]
    pub fn algo<S: AsRef<str>>(mut self, algos: &[S]) -> Self {
        self.algos = Some(algos.iter().map(|s| s.as_ref().to_owned()).collect()).filter(|list: &Vec<_>| !list.is_empty());
        self
    }

    /// A value that a flag of its own sets, such as `calibration.seed` by `--seed`. The value is taken as it is, not read as TOML.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<toml::Value>, flag: &str) -> Self {
        self.flags.push((path.to_owned(), value.into(), flag.to_owned()));
        self
    }

    /// `PATH=VALUE` of a `--set`. VALUE is read as TOML and, if it is none, taken as text.
    #[must_use]
    pub fn override_set(mut self, assignment: &str) -> Self {
        self.sets.push(assignment.to_owned());
        self
    }

    /// The merged run and the notes.
    ///
    /// # Errors
    /// See [`finish_traced`](Self::finish_traced).
    pub fn finish(self) -> Result<(RawRun, Vec<String>)> {
        self.finish_traced().map(|merged| (merged.run, merged.notes))
    }

    /// The merged run, the notes, and where each key was written.
    ///
    /// # Errors
    /// TOML that does not parse, an unknown preset, a file of another schema, a path of `--set` that leads nowhere, a missing model; and,
    /// all at once, unknown keys and values of the wrong type.
    pub fn finish_traced(self) -> Result<Merged> {
        let mut notes = Vec::new();
        let mut root = Node::table();
        for name in &self.presets {
            let layer = parse(preset(name)?.text, &format!("preset `{name}`"))?;
            lay_over(&mut root, layer, &format!("preset `{name}`"), &mut notes)?;
        }
        for (label, text) in &self.files {
            lay_over(&mut root, parse(text, label)?, label, &mut notes)?;
        }
        if let Some(algos) = &self.algos {
            let passes = replace_passes(root.take("pass"), algo_list(algos), "`--algo`", &mut notes);
            root.insert("pass", passes);
        }
        for (path, value, flag) in self.flags {
            let shown = format!("`{flag}`");
            let node = Node::from_toml(value, &Origin::new(format!("from {shown}")));
            assign(&mut root, split_path(&path)?, node, &shown, &mut notes)?;
        }
        for assignment in &self.sets {
            let (path, value) = split_assignment(assignment)?;
            let shown = format!("`--set {assignment}`");
            let node = Node::parse_value(value, &Origin::new(format!("from {shown}")));
            assign(&mut root, path, node, &shown, &mut notes)?;
        }
        fill_defaults(&mut root);
        let has_model = root.get("model").is_some_and(|m| !matches!(m.value, Value::Table(_)) || m.get("path").is_some());
        let origins = Origins::of(&root);
        if !has_model {
            return Err(without_model(root));
        }
        Ok(Merged { run: read(root, &[])?, notes, origins })
    }
}

/// Parses one text and checks that it is of this schema.
fn parse(text: &str, label: &str) -> Result<Node> {
    let layer = Node::parse_document(text, &Origin::new(format!("in {label}")))?;
    match layer.get("schema") {
        Some(Node { value: Value::Integer(version), .. }) if *version == i64::from(SCHEMA) => Ok(layer),
        Some(other) => {
            let place = place(&["schema".to_owned()], &other.origin);
            Err(Error::config("config::schema", format!("{place}: this version reads schema {SCHEMA}, got {}", other.describe())))
        }
        None => Err(Error::config("config::schema", format!("{label} does not say its schema"))
            .hint(format!("put `schema = {SCHEMA}` on its first line"))),
    }
}

/// Lays one parsed text over what is there.
fn lay_over(root: &mut Node, mut layer: Node, label: &str, notes: &mut Vec<String>) -> Result<()> {
    normalize(&mut layer, notes)?;
    // In place, so that keys keep the order of the text and problems are reported in it.
    if let Some(passes) = layer.get_mut("pass") {
        let new = std::mem::replace(passes, Node::table());
        *passes = replace_passes(root.take("pass"), new, label, notes);
    }
    if let Some(Node { value: Value::Array(new), .. }) = layer.get_mut("override")
        && let Some(Node { value: Value::Array(mut all), .. }) = root.take("override")
    {
        all.append(new);
        *new = all;
    }
    root.merge(layer, &mut Vec::new());
    Ok(())
}

/// The new list of passes: each takes over what the first unused pass of the same algorithm in the old list says.
fn replace_passes(old: Option<Node>, new: Node, who: &str, notes: &mut Vec<String>) -> Node {
    let Node { value: Value::Array(passes), origin } = new else { return new };
    let mut old = match old {
        Some(Node { value: Value::Array(items), .. }) => items,
        _ => Vec::new(),
    };
    let mut merged = Vec::with_capacity(passes.len());
    for pass in passes {
        let same = |other: &Node| pass.get("algo").is_some() && other.get("algo").map(|a| &a.value) == pass.get("algo").map(|a| &a.value);
        match old.iter().position(same) {
            Some(i) => {
                let mut base = old.remove(i);
                base.merge(pass, &mut Vec::new());
                merged.push(base);
            }
            None => merged.push(pass),
        }
    }
    for dropped in old {
        let algo = dropped.get("algo").and_then(Node::text).unwrap_or("?");
        notes.push(format!("{who} drops the pass `{algo}` {}", dropped.get("algo").map_or(&dropped.origin, |a| &a.origin)));
    }
    Node { value: Value::Array(merged), origin }
}

fn algo_list(algos: &[String]) -> Node {
    let origin = Origin::new("from `--algo`");
    let pass = |algo: &String| toml::Value::Table(toml::Table::from_iter([("algo".to_owned(), toml::Value::from(algo.as_str()))]));
    Node::from_toml(toml::Value::Array(algos.iter().map(pass).collect()), &origin)
}

/// Sets one value of a flag.
fn assign(root: &mut Node, path: Vec<String>, value: Node, shown: &str, notes: &mut Vec<String>) -> Result<()> {
    let (path, value) = resolve(root, path, value, shown)?;
    set_at(root, &path, value, shown)?;
    normalize(root, notes)
}

/// Writes the defaults that depend on where a spec stands, and the schema where no file said it.
fn fill_defaults(root: &mut Node) {
    let text = |s: &str| Node { value: Value::Text(s.to_owned()), origin: Origin::default() };
    if root.get("schema").is_none() {
        root.insert("schema", Node { value: Value::Integer(i64::from(SCHEMA)), origin: Origin::default() });
    }
    for site in SITES {
        let timing = if matches!(site, "weights" | "embed" | "head") { "static" } else { "dynamic" };
        let Some(spec) = root.get_mut("scheme").and_then(|scheme| scheme.get_mut(site)) else { continue };
        if !matches!(spec.value, Value::Table(_)) {
            continue;
        }
        if spec.get("timing").is_none() {
            spec.insert("timing", text(timing));
        }
    }
}

/// The error for a run without a model, unless something is wrong with what there is.
fn without_model(mut root: Node) -> Error {
    let any = Node { value: Value::Text("?".to_owned()), origin: Origin::default() };
    match root.get_mut("model") {
        Some(model) => model.insert("path", any),
        None => root.insert("model", Node { value: Value::Table(vec![("path".to_owned(), any)]), origin: Origin::default() }),
    }
    match read::<RawRun>(root, &[]) {
        Err(error) => error,
        Ok(_) => Error::config("config::no-model", "no model is given")
            .hint("name it on the command line, or as `path` in `[model]` of the file"),
    }
}
