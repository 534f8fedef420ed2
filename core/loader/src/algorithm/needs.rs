//! What an instance needs for a plan, and whether that is what it says of itself.

use std::sync::Arc;

use qfw_abi::raw;
use qfw_bridge::wire::{LinearWire, NeedsWire, PlanSite, PlanWire};
use qfw_core::algorithm::{Needs, Phase, PlanContext, PtqAlgorithm, Stage};
use qfw_core::statistic::{StatKind, Stream};
use qfw_core::{Error, Result};
use serde_json::json;

use super::Loaded;
use super::phase::PhaseCalls;
use crate::call::{Call, lend};
use crate::contract::violation;

/// No machine has so much memory: 2⁵⁰ bytes.
const NO_MEMORY: u64 = 1 << 50;

/// What it asks for, and whether it has said anything beyond its description.
struct Asked {
    needs: Needs,
    replied: bool,
}

impl Loaded {
    /// The needs that its description states.
    fn declared(&self, stream: Stream) -> Vec<(StatKind, Stream)> {
        const KINDS: [StatKind; 7] = [
            StatKind::Gram,
            StatKind::CrossGram,
            StatKind::Mean,
            StatKind::AbsMean,
            StatKind::Least,
            StatKind::Greatest,
            StatKind::RoundedMean,
        ];
        KINDS.iter().enumerate().filter(|(bit, _)| self.described.needs & (1 << bit) != 0).map(|(_, kind)| (*kind, stream)).collect()
    }

    fn broken(&self, message: &str) -> Error {
        let e = violation(format!("`{}`: {message}", self.described.id));
        match self.library() {
            Ok(library) => e.within(library.name()),
            Err(e) => e,
        }
    }

    /// What it needs for a plan; asks it, if it has something to say.
    fn ask(&self, plan: &PlanWire) -> Result<Asked> {
        let declared = Needs { inputs: self.declared(plan.stream), ..Needs::default() };
        let table = self.instance.extension::<raw::PlanExt>(c"qfw.plan/1").map_err(|e| self.broken(&e))?;
        let Some(function) = table.and_then(|t| t.needs) else { return Ok(Asked { needs: declared, replied: false }) };
        let text = serde_json::to_string(plan).map_err(|e| Error::internal(e.to_string()))?;
        let call = Call::new(&self.library()?.guest, "", Vec::new());
        let told = self.instance.call(&self.described.id, || {
            // SAFETY: the header's `needs`, with what it asks for.
            #[allow(unsafe_code, reason = "the border")]
            call.run(|host| unsafe { function(self.instance.pointer(), host, lend(&text)) })
        })?;
        let Some(reply) = told.reply else { return Ok(Asked { needs: declared, replied: false }) };
        let wire: NeedsWire = serde_json::from_str(&reply).map_err(|e| self.broken(&format!("its needs cannot be read: {e}")))?;
        Ok(Asked { needs: wire.needs(), replied: true })
    }

    /// Refuses needs that cannot be.
    fn possible(&self, needs: &Needs) -> std::result::Result<(), String> {
        let Needs { rescale, scratch_bytes, branch, group_index, .. } = needs;
        if !(0.0..=1.0).contains(rescale) || *rescale != 0.0 && !(*rescale as f32).is_normal() {
            return Err(format!("its `rescale` is {rescale}, which is no share of a step: above 0, and at most 1"));
        }
        if *scratch_bytes > NO_MEMORY {
            return Err(format!("its `scratch-bytes` are {scratch_bytes}, more than any machine has"));
        }
        let phase = self.described.phase;
        match branch {
            None if phase == Phase::Split => return Err("it splits, and its needs have no `branch`".to_owned()),
            Some(_) if phase != Phase::Split => return Err(format!("it asks for a branch, which the phase {phase} has none of")),
            Some(branch) if branch.rank == 0 => return Err("it asks for a branch of rank 0".to_owned()),
            _ => {}
        }
        if *group_index && phase != Phase::Round {
            return Err(format!("it asks for a group index, which the phase {phase} has none of"));
        }
        Ok(())
    }

    /// Refuses needs that are not what it says of itself: whether it reads activations with its default options.
    fn truthful(&self, asked: &Asked, plan: &PlanWire) -> Result<()> {
        let reads = !asked.needs.inputs.is_empty();
        if !self.described.is(raw::WEIGHT_ONLY) {
            // What it replies may depend on the plan. Without a reply it never asks for any.
            return if reads || asked.replied {
                Ok(())
            } else {
                Err(self.broken("it says that it reads activations, and asks for no statistics of them"))
            };
        }
        // Options that were given may be what makes it read them; then it does not without.
        let by_default = || -> Result<bool> {
            let (other, _) = Self::new(Arc::clone(&self.lazy), &self.described.id, &json!({}))?;
            Ok(!other.ask(plan)?.needs.inputs.is_empty())
        };
        if reads && (self.by_default || by_default()?) {
            return Err(self.broken("it says that it reads no activations, and asks for statistics of them"));
        }
        Ok(())
    }
}

impl PtqAlgorithm for Loaded {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        if let Some(e) = self.trouble.lock().ok().and_then(|mut trouble| trouble.take()) {
            return Err(e);
        }
        let sites = cx.sites.iter().zip(cx.weights).zip(cx.inputs);
        let sites = sites.map(|((linear, weights), input)| PlanSite {
            linear: LinearWire::of(linear),
            weights: (*weights).clone(),
            input: input.cloned(),
        });
        let plan = PlanWire { blocks: cx.topology.blocks, stream: cx.stream, sites: sites.collect() };
        let asked = self.ask(&plan)?;
        self.possible(&asked.needs).map_err(|e| self.broken(&e))?;
        self.truthful(&asked, &plan)?;
        if let Ok(mut last) = self.asked.lock() {
            last.clone_from(&asked.needs.inputs);
        }
        Ok(asked.needs)
    }

    fn stage(&self) -> Stage<'_> {
        match self.phase {
            PhaseCalls::Round(_) => Stage::Round(self),
            PhaseCalls::Condition(_) => Stage::Condition(self),
            PhaseCalls::Split { .. } => Stage::Split(self),
            PhaseCalls::Transform { .. } => Stage::Transform(self),
        }
    }

    fn reads_activations(&self) -> bool {
        let nothing = PlanWire { blocks: 0, stream: Stream::Quantized, sites: Vec::new() };
        // One that does not answer may read them for all that is known; `needs` comes to why.
        // One that lies is found out by `needs` too, and collecting statistics for it would be in vain.
        self.ask(&nothing).map_or(true, |asked| !asked.needs.inputs.is_empty() && self.truthful(&asked, &nothing).is_ok())
    }
}
