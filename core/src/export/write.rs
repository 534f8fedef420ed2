//! Writing what was planned.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::stock::reader;
use super::{Export, Made};
use crate::checkpoint::fingerprint::Fingerprints;
use crate::checkpoint::{BranchPlace, adapter, replace_file};
use crate::error::{Error, Result};
use crate::harness::export::LOG;
use crate::harness::record::FILE as RECORD;
use crate::harness::{Control, Output, Progress, Staging, run_log, weight_bytes};
use crate::registry::Registry;

/// A finished export.
#[derive(Clone, Debug)]
pub struct Exported {
    /// How long it took.
    pub seconds: f64,
    /// Bytes of the weight files of each format.
    pub bytes: BTreeMap<String, u64>,
}

impl Export {
    /// Writes the formats: the one into `out`, or each of several into a directory of its name there.
    ///
    /// # Errors
    /// If `out` may not be filled, or is where the checkpoint lies, or reading or writing fails. Then `out` is as it was.
    pub fn write(&self, out: &Path, overwrite: bool, registry: &Registry, control: &Control<'_>) -> Result<Exported> {
        let start = Instant::now();
        self.elsewhere(out)?;
        let staging = Staging::begin(out, overwrite)?;
        let stage = staging.dir();
        let several = self.made.len() > 1;
        let mut fingerprints = BTreeMap::new();
        // Of an architecture that is unknown there are no branches.
        let body = registry.architecture(&self.source.plan.model_type).map_or("", |a| a.body());
        for made in &self.made {
            if control.cancelled() {
                return Err(Error::interrupted().hint("nothing was written"));
            }
            control.report(Progress::Export { format: made.format.clone() });
            let dir = if several { stage.join(&made.format) } else { stage.clone() };
            let native = reader(&self.source, &made.fitted, registry)?;
            let container = registry.container(&made.format)?.container;
            let output = Output { container, plan: &made.plan, checkpoint: &made.fitted.checkpoint, native: &native, body };
            let mut late = Vec::new();
            let recorded = output.write(&dir, &mut late).map_err(|e| e.within(format!("output format `{}`", made.format)))?;
            late.into_iter().try_for_each(crate::harness::Late::place)?;
            fingerprints.insert(made.format.clone(), recorded);
        }
        let formats: Vec<String> = self.made.iter().map(|m| m.format.clone()).collect();
        replace_file(&stage.join(RECORD), &self.record(&fingerprints)?)?;
        replace_file(&stage.join("README.md"), self.card(registry).as_bytes())?;
        replace_file(&stage.join(LOG), run_log(start).as_bytes())?;
        let bytes = weight_bytes(&stage, &formats)?;
        staging.place(registry)?;
        Ok(Exported { seconds: start.elapsed().as_secs_f64(), bytes })
    }

    /// Refuses to write over what is read.
    fn elsewhere(&self, out: &Path) -> Result<()> {
        let Ok(to) = std::fs::canonicalize(out) else { return Ok(()) };
        let Ok(from) = std::fs::canonicalize(&self.source.checkpoint.path) else { return Ok(()) };
        if from.starts_with(&to) || to.starts_with(&from) {
            return Err(Error::config("run::output", format!("`{}` is where the checkpoint lies", out.display()))
                .hint("choose another output directory"));
        }
        Ok(())
    }

    /// The deterministic record. `plan` is what the formats have in common; where one holds something else, `plans` has its own.
    fn record(&self, fingerprints: &BTreeMap<String, Fingerprints>) -> Result<Vec<u8>> {
        let plan = match &self.made[..] {
            [one] => &one.plan,
            _ => &self.source.plan,
        };
        let differs = |m: &&Made| m.plan.sites != plan.sites;
        let plans: BTreeMap<&str, &crate::plan::Plan> = self.made.iter().filter(differs).map(|m| (m.format.as_str(), &m.plan)).collect();
        let changes: BTreeMap<&str, _> = self.made.iter().map(|m| (m.format.as_str(), &m.changes)).collect();
        let mut value = json!({ "qfw": plan.qfw, "signature": plan.signature(), "plan": plan, "sites": [], "changes": changes });
        if !plans.is_empty() {
            value["plans"] = json!(plans);
        }
        if let Some(record) = &self.source.record {
            value["origin"] = record.clone();
        }
        if let Some(judgement) = &self.judgement {
            value["target"] = serde_json::to_value(judgement).map_err(|e| Error::internal(e.to_string()))?;
        }
        value["fingerprints"] = json!({ "formats": fingerprints });
        let mut text = serde_json::to_vec_pretty::<Value>(&value).map_err(|e| Error::internal(e.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The model card.
    fn card(&self, registry: &Registry) -> String {
        let plan = &self.source.plan;
        let mut text = match self.is_quantized() {
            true => String::from("---\ntags:\n- quantized\n- qfw\n---\n\n# Quantized checkpoint\n\n"),
            false => String::from("---\ntags:\n- qfw\n---\n\n"),
        };
        text += &format!("Written by qfw {} from a checkpoint in `{}` of a `{}` model.\n", plan.qfw, self.container(), plan.model_type);
        for made in &self.made {
            text += &format!("\n`{}`:\n\n", made.format);
            made.changes.iter().for_each(|c| text += &format!("- {c}\n"));
            text += &format!("\n```text\n{}```\n", made.plan);
        }
        let beside = |made: &Made| registry.container(&made.format).is_ok_and(|r| r.container.branches_lie() == BranchPlace::Beside);
        if !plan.branches.is_empty() && self.made.iter().any(beside) {
            text += "\n";
            text += adapter::CARD.trim_end();
            text += "\n";
        }
        text += "\n`qfw.json` holds the whole plan, and what is known of where it comes from.\n";
        text
    }
}
