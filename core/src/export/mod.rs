//! From a checkpoint to other containers, with the codes that are in it.
//!
//! ```text
//! read      the checkpoint as a plan: which layers have codes, on which grid, and what surrounds them      source
//! fit       for each format: what it holds as it is, and what the nearest is that it holds of the rest      fit
//! measure   what becomes of the values, tensor by tensor, before anything is written                        change
//! write     through the same containers as a run, with codes that are read, moved or rounded on the way     stock
//! ```
//!
//! Nothing is calibrated. Codes are kept wherever the format has a grid that holds them: in more bits, with a zero point that is an integer
//! after all, or with a scale in another float type. What then changes is measured. What has to be rounded again is rounded to nearest, and only for those
//! who ask for it.

mod change;
mod fit;
mod source;
mod stock;
mod write;

use std::path::Path;

pub use change::{Change, Kind};
pub use write::Exported;

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::registry::Registry;
use crate::scheme::FloatKind;
use crate::target::{self, Judgement};
use fit::Fitted;
use source::Source;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Ids of containers.
    pub formats: Vec<String>,
    /// The engine that has to load the result (`ENGINE[@VERSION]`).
    pub target: Option<String>,
    /// The type of floats that were blocks or codes before; else the one that `config.json` states.
    pub dtype: Option<FloatKind>,
}

/// A planned export.
pub struct Export {
    source: Source,
    made: Vec<Made>,
    /// What the engine will do with the formats, if one was named.
    pub judgement: Option<Judgement>,
}

/// What a format makes of a checkpoint.
pub struct Made {
    /// Its id.
    pub format: String,
    /// What it holds.
    pub plan: Plan,
    /// What changes, the least first. Tensors that keep every value are counted in the first.
    pub changes: Vec<Change>,
    /// What else there is to know.
    pub notes: Vec<String>,
    fitted: Fitted,
}

impl Made {
    /// Why somebody has to say that the changes are meant, if there is a reason.
    fn beyond_rounding(&self) -> Option<String> {
        let change = self.changes.iter().find(|c| c.beyond_rounding())?;
        let why = self.fitted.why.as_ref().map(|why| format!("{why}; ")).unwrap_or_default();
        Some(format!("`{}` does not hold what is there: {why}{change}", self.format))
    }
}

impl Export {
    /// Plans the export of the checkpoint at `path`. Reads its codes once, and writes nothing.
    ///
    /// # Errors
    /// If the checkpoint is not sound, a format unknown, or one that can hold nothing like it.
    pub fn open(path: &Path, registry: &Registry, request: &Request) -> Result<Self> {
        let records = request.formats.iter().map(|f| registry.container(f)).collect::<Result<Vec<_>>>()?;
        if let Some((i, twice)) = request.formats.iter().enumerate().find(|(i, f)| request.formats[..*i].contains(f)) {
            return Err(Error::config("export::twice", format!("`{twice}` is named twice, the second time as number {}", i + 1)));
        }
        if records.is_empty() {
            return Err(Error::config("config::missing", "no format was given").hint("add `--format F`"));
        }
        if let Some(target) = &request.target {
            target::check(target)?;
        }
        let source = Source::open(path, registry, request)?;
        let mut made = Vec::new();
        for record in records {
            let within = |e: Error| e.within(format!("output format `{}`", record.id));
            let fitted = fit::fit(&source, record, registry).map_err(within)?;
            let (changes, notes) = change::measure(&source, record.container, &fitted, registry).map_err(within)?;
            let notes = source.notes.iter().cloned().chain(fitted.notes.iter().cloned()).chain(notes).collect();
            made.push(Made { format: record.id.to_owned(), plan: fitted.plan.clone(), changes, notes, fitted });
        }
        let judgement = request.target.as_ref().map(|t| judged(t, &made, source.head_dim)).transpose()?;
        Ok(Self { source, made, judgement })
    }

    /// One for each format, in the order they were asked for.
    pub fn made(&self) -> &[Made] {
        &self.made
    }

    /// What the checkpoint is in.
    pub fn container(&self) -> &str {
        self.source.plan.origin.as_ref().map_or("", |o| &o.container)
    }

    /// Whether it holds any codes.
    pub fn is_quantized(&self) -> bool {
        !self.source.plan.native_sites().is_empty()
    }

    /// Refuses what would be written with other values than there are, by more than the rounding of a scale, and what the engine does not load.
    ///
    /// # Errors
    /// If a format changes that much and `requantize` does not say that it is meant, or if no format loads.
    pub fn demand(&self, requantize: bool) -> Result<()> {
        if let Some(judgement) = &self.judgement {
            judgement.demand()?;
        }
        let Some(message) = self.made.iter().filter(|_| !requantize).find_map(Made::beyond_rounding) else { return Ok(()) };
        Err(Error::plan("export::changes", message).hint("`--requantize` writes it all the same"))
    }

    /// Formats that hold it as it is, those that people serve from first.
    pub fn holders(&self, registry: &Registry) -> Vec<&'static str> {
        let mut ids = self.source.holders(registry);
        let native = |id: &&str| crate::checkpoint::BUILTIN.iter().any(|r| r.id == *id);
        ids.sort_by_key(native);
        ids
    }
}

/// The judgement of every format, each by its own plan.
fn judged(target: &str, made: &[Made], head_dim: Option<usize>) -> Result<Judgement> {
    let mut all: Option<Judgement> = None;
    for m in made {
        let mut plan = m.plan.clone();
        plan.output.formats = vec![m.format.clone()];
        let one = target::judge(target, &plan, head_dim)?;
        match &mut all {
            None => all = Some(one),
            Some(all) => {
                all.formats.extend(one.formats);
                all.tensor_parallel = all.tensor_parallel.take().filter(|_| one.tensor_parallel.is_some());
            }
        }
    }
    all.ok_or_else(|| Error::internal("nothing was judged"))
}
