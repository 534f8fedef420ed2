//! A record of a linked algorithm as a factory of the ABI.

use qfw_abi::plugin::{
    Algorithm, CodesMut, Condition, ConditionOut, Descriptor, Factory, Failure, Host, Phase, Region, Result, Round, RoundOut, Site, Split,
    Stage, Status, Suits, Transform,
};
use qfw_core::algorithm::{self, AlgorithmRecord, Conditioned, Event, PlanContext, PtqAlgorithm, Rounded, SiteContext, SplitContext};
use qfw_core::numeric::Units;
use qfw_core::observer::Observer;
use qfw_core::registry::Registry;
use qfw_core::scheme::{FloatKind, QuantSpec};
use qfw_core::statistic::Stats;
use qfw_core::topology::{Linear, Topology};
use qfw_core::{Error, ErrorKind};

use crate::region;
use crate::statistics::{Matrices, stream_of};
use crate::wire::{LinearWire, NeedsWire, PlanWire};

/// An algorithm of `qfw-core` for [`qfw_abi::export_plugin!`].
pub struct Linked(pub &'static AlgorithmRecord);

/// An error of core, for the other side.
pub(crate) fn failure(error: &Error) -> Failure {
    let status = match error.kind() {
        ErrorKind::Config => Status::Options,
        ErrorKind::Plan => Status::Unsupported,
        ErrorKind::Numeric => Status::Numeric,
        ErrorKind::Interrupted => Status::Cancelled,
        _ => Status::Internal,
    };
    Failure::new(status, error.to_string()).hint(error.hint_text().unwrap_or_default())
}

fn json(error: &serde_json::Error) -> Failure {
    Failure::new(Status::Internal, format!("the host's JSON cannot be read: {error}"))
}

impl Factory for Linked {
    fn descriptor(&self) -> Descriptor {
        let record = self.0;
        Descriptor {
            id: record.id.to_owned(),
            phase: match record.phase {
                algorithm::Phase::Transform => Phase::Transform,
                algorithm::Phase::Condition => Phase::Condition,
                algorithm::Phase::Split => Phase::Split,
                algorithm::Phase::Round => Phase::Round,
                algorithm::Phase::Correct => Phase::Correct,
            },
            summary: record.summary.to_owned(),
            options_schema: (record.schema)().to_string(),
            needs: Vec::new(),
            weight_only: record.weight_only,
            checks_options: true,
            feeds_back: feeds_back(record),
        }
    }

    fn create(&self, host: &Host<'_>, options: &str, _seed: u64) -> Result<Box<dyn Algorithm>> {
        // The pool may be there already: of an earlier instance, or of the program in a test.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(host.threads()).build_global();
        let options: serde_json::Value = serde_json::from_str(options).map_err(|e| json(&e))?;
        let (algorithm, options) = (self.0.build)(&options).map_err(|e| failure(&e))?;
        if let Some(why) = link_time_only(&*algorithm) {
            let message = format!("`{}` cannot be loaded at run time: {why}", self.0.id);
            return Err(Failure::new(Status::Unsupported, message).hint("link it into the program"));
        }
        let registry = Registry::builtin().map_err(|e| failure(&e))?;
        Ok(Box::new(Bridged { algorithm, options: options.to_string(), registry, matrices: Matrices::default() }))
    }
}

/// Whether it rounds and feeds errors back, whatever its options are.
fn feeds_back(record: &algorithm::AlgorithmRecord) -> bool {
    let built = (record.build)(&serde_json::json!({}));
    built.is_ok_and(|(algorithm, _)| matches!(algorithm.stage(), algorithm::Stage::Round(stage) if stage.feeds_back()))
}

/// A newer host may have layers that this version of core has no role for.
fn unknown(role: &str) -> Failure {
    Failure::new(Status::Unsupported, format!("the role `{role}` is unknown to the plugin")).hint("get a newer build of the plugin")
}

/// Why an algorithm cannot cross the border, if its phase tells; what it needs for a plan may be more than crosses, too
/// ([`NeedsWire::of`]).
pub fn link_time_only(algorithm: &dyn PtqAlgorithm) -> Option<&'static str> {
    match algorithm.stage() {
        algorithm::Stage::ModelTransform(_) => Some("it rewrites the whole model"),
        algorithm::Stage::RoundBlock(_) => Some("it runs blocks, with gradients"),
        algorithm::Stage::Correct(_) => Some("it works on the finished codes"),
        algorithm::Stage::Transform(t) if t.reads_producers() => Some("it looks at what writes a region"),
        algorithm::Stage::Transform(t) if t.stands_alone() => Some("it adds multiplications to the model"),
        _ => None,
    }
}

/// An algorithm of core, and what it needs of core on this side.
pub(crate) struct Bridged {
    algorithm: Box<dyn PtqAlgorithm>,
    options: String,
    registry: Registry,
    matrices: Matrices,
}

impl Algorithm for Bridged {
    fn stage(&self) -> Stage<'_> {
        match self.algorithm.stage() {
            algorithm::Stage::Condition(_) => Stage::Condition(self),
            algorithm::Stage::Split(_) => Stage::Split(self),
            algorithm::Stage::Transform(_) => Stage::Transform(self),
            _ => Stage::Round(self),
        }
    }

    fn options(&self) -> String {
        self.options.clone()
    }

    fn needs(&self, plan: &str) -> Result<Option<String>> {
        let plan: PlanWire = serde_json::from_str(plan).map_err(|e| json(&e))?;
        let linears: Vec<Linear> =
            plan.sites.iter().map(|s| s.linear.linear().ok_or_else(|| unknown(&s.linear.role))).collect::<Result<_>>()?;
        let topology = Topology { blocks: plan.blocks, linears: linears.clone(), ..Topology::default() };
        let sites: Vec<&Linear> = linears.iter().collect();
        let weights: Vec<&QuantSpec> = plan.sites.iter().map(|s| &s.weights).collect();
        let inputs: Vec<Option<&QuantSpec>> = plan.sites.iter().map(|s| s.input.as_ref()).collect();
        let cx = PlanContext { topology: &topology, sites: &sites, weights: &weights, inputs: &inputs, stream: plan.stream };
        let needs = self.algorithm.needs(&cx).map_err(|e| failure(&e))?;
        let wire = NeedsWire::of(&needs).map_err(|why| {
            Failure::new(Status::Unsupported, format!("it cannot be loaded at run time: {why}")).hint("link it into the program")
        })?;
        serde_json::to_string(&wire).map(Some).map_err(|e| json(&e))
    }
}

/// What a [`SiteContext`] borrows.
pub(crate) struct Owned {
    pub(crate) linear: Linear,
    /// What it is to become and who chooses its ranges, if it is to be rounded.
    pub(crate) target: Option<(QuantSpec, Box<dyn Observer>)>,
    pub(crate) input: Option<QuantSpec>,
    pub(crate) stats: Stats,
}

impl Bridged {
    pub(crate) fn matrices(&self) -> &Matrices {
        &self.matrices
    }

    /// What core wants to know of a site.
    pub(crate) fn owned(&self, site: &Site<'_>) -> Result<Owned> {
        let linear: LinearWire = serde_json::from_str(site.linear()).map_err(|e| json(&e))?;
        let linear = linear.linear().ok_or_else(|| unknown(site.role()))?;
        let spec = |text: &str| -> Result<Option<QuantSpec>> {
            if text.is_empty() { Ok(None) } else { serde_json::from_str(text).map(Some).map_err(|e| json(&e)) }
        };
        let target = match spec(site.spec())? {
            Some(spec) => {
                let choice = &spec.observer;
                let (observer, _) = self.registry.build_observer(&choice.id, &choice.options).map_err(|e| failure(&e))?;
                Some((spec, observer))
            }
            None => None,
        };
        let stats = self.matrices.stats(site.stats(), linear.input, linear.shape.1)?;
        Ok(Owned { linear, target, input: spec(site.input())?, stats })
    }
}

impl Owned {
    fn context<'a>(&'a self, site: &Site<'a>) -> Result<SiteContext<'a>> {
        let (spec, observer) = self.target.as_ref().ok_or_else(|| Failure::new(Status::Internal, "the site is not to be rounded"))?;
        Ok(SiteContext {
            linear: &self.linear,
            weight: site.weight(),
            original: site.original(),
            ranged: Some(site.ranged()).filter(|ranged| !std::ptr::eq(*ranged, site.weight())),
            spec,
            input: self.input.as_ref(),
            observer: &**observer,
            stats: &self.stats,
            stream: stream_of(site.stream()),
            seed: site.seed(),
            amax: site.amax(),
        })
    }
}

pub(crate) fn tell(host: &Host<'_>, events: &[Event]) {
    for event in events {
        if let Ok(text) = serde_json::to_string(event) {
            host.event(&text);
        }
    }
}

fn other_stage() -> Failure {
    Failure::new(Status::Internal, "the algorithm has another phase")
}

fn misfit(what: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted { Ok(()) } else { Err(Failure::new(Status::Internal, format!("it returned {got} {what} where {wanted} belong"))) }
}

impl Round for Bridged {
    fn round(&self, host: &Host<'_>, site: &Site<'_>, out: &mut RoundOut<'_>) -> Result<()> {
        let algorithm::Stage::Round(stage) = self.algorithm.stage() else { return Err(other_stage()) };
        let owned = self.owned(site)?;
        let Rounded { codes, params, group_index, events } = stage.round(&owned.context(site)?).map_err(|e| failure(&e))?;
        match (out.codes(), &codes.data) {
            (CodesMut::Narrow(out), Units::Narrow(codes)) => {
                misfit("codes", codes.len(), out.len())?;
                out.copy_from_slice(codes);
            }
            (CodesMut::Wide(out), Units::Wide(codes)) => {
                misfit("codes", codes.len(), out.len())?;
                out.copy_from_slice(codes);
            }
            _ => return Err(Failure::new(Status::Internal, "its codes are of another width")),
        }
        misfit("scales", params.scale.len(), out.scale().len())?;
        misfit("zero points", params.zero.len(), out.zero().len())?;
        out.scale().copy_from_slice(&params.scale);
        out.zero().copy_from_slice(&params.zero);
        if let Some(index) = group_index {
            out.set_group_index(&index)?;
        }
        tell(host, &events);
        Ok(())
    }
}

impl Condition for Bridged {
    fn condition(&self, host: &Host<'_>, site: &Site<'_>, out: &mut ConditionOut<'_>) -> Result<()> {
        let algorithm::Stage::Condition(stage) = self.algorithm.stage() else { return Err(other_stage()) };
        let owned = self.owned(site)?;
        let Conditioned { weight, ranged, events } = stage.condition(&owned.context(site)?).map_err(|e| failure(&e))?;
        misfit("weights", weight.len(), out.weight().len())?;
        out.weight().copy_from_slice(&weight);
        if let Some(ranged) = ranged {
            out.set_ranged(&ranged)?;
        }
        tell(host, &events);
        Ok(())
    }
}

impl Split for Bridged {
    fn after_rounding(&self) -> bool {
        matches!(self.algorithm.stage(), algorithm::Stage::Split(split) if split.after_rounding())
    }

    fn split(&self, host: &Host<'_>, sites: &[Site<'_>], rank: usize, stored: u32, a: &mut [f32], b: &mut [&mut [f32]]) -> Result<()> {
        let algorithm::Stage::Split(stage) = self.algorithm.stage() else { return Err(other_stage()) };
        let owned: Vec<Owned> = sites.iter().map(|s| self.owned(s)).collect::<Result<_>>()?;
        let contexts: Vec<SiteContext<'_>> = owned.iter().zip(sites).map(|(o, s)| o.context(s)).collect::<Result<_>>()?;
        let stored = match stored {
            1 => FloatKind::F16,
            2 => FloatKind::Bf16,
            _ => FloatKind::F32,
        };
        let found = stage.split(&SplitContext { sites: &contexts, rank, stored }).map_err(|e| failure(&e))?;
        misfit("numbers of A", found.a.len(), a.len())?;
        misfit("branches", found.b.len(), b.len())?;
        a.copy_from_slice(&found.a);
        for (out, found) in b.iter_mut().zip(&found.b) {
            misfit("numbers of B", found.len(), out.len())?;
            out.copy_from_slice(found);
        }
        for (site, event) in found.events.iter().enumerate().flat_map(|(i, events)| events.iter().map(move |e| (i, e))) {
            host.event(&serde_json::json!({ "site": site, "event": event }).to_string());
        }
        Ok(())
    }
}

impl Transform for Bridged {
    fn suits(&self, given: &Region<'_>) -> Suits {
        let algorithm::Stage::Transform(stage) = self.algorithm.stage() else { return Suits::Never };
        let Some(region) = region::region(given) else { return Suits::Never };
        match (stage.suits(&region), stage.by_default(&region)) {
            (false, _) => Suits::Never,
            (true, false) => Suits::IfNamed,
            (true, true) => Suits::ByDefault,
        }
    }

    fn solve(&self, host: &Host<'_>, given: &Region<'_>, factor: &mut [f64]) -> Result<()> {
        let algorithm::Stage::Transform(stage) = self.algorithm.stage() else { return Err(other_stage()) };
        region::solve(self, stage, host, given, factor)
    }
}
