//! Opening a run: the checkpoint, its model, the calibration windows and the resolved plan, from raw configuration.
//!
//! This is the sequence every front end and embedder needs before the block loop; nothing in it prints or reads the environment.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};

use crate::calibration::{Bos, Corpus, DataFile, SampleSpec, Source, Tokenizer, Windows, sample_windows};
use crate::checkpoint::{Adapted, Checkpoint, Rewritten, StoredDtype, TensorSource};
use crate::error::{Error, Result};
use crate::harness::{Control, Measured, Mode, Run, Summary};
use crate::model::{Activations, Architecture, Model, device, model_type};
use crate::plan::raw::{RawBos, RawCalibration, RawDtype, RawModel, RawRun, RawTiePolicy};
use crate::plan::{Budget, CalibrationPlan, ModelFacts, Resolved, needs_calibration, needs_untied_head, resolve};
use crate::registry::Registry;
use crate::scheme::FloatKind;
use crate::target;
use crate::topology::{OnlineStep, Part, Rewrite, Rewriting, Role, SiteId, Topology};

/// A checkpoint and the model in it.
#[derive(Clone)]
pub struct Opened {
    /// The files.
    pub checkpoint: Checkpoint,
    /// The model; quantized checkpoints appear as the float model they stand for.
    pub model: Model,
}

impl Opened {
    /// Opens the model at `path`.
    ///
    /// # Errors
    /// If the checkpoint is not sound or its architecture unknown.
    pub fn open(path: &Path, registry: &Registry) -> Result<Self> {
        Self::of(Checkpoint::open(path)?, registry)
    }

    /// The model in an open checkpoint.
    ///
    /// # Errors
    /// If its architecture is unknown, or its tensors are not what that asks for.
    pub fn of(checkpoint: Checkpoint, registry: &Registry) -> Result<Self> {
        let architecture = registry.architecture(model_type(&checkpoint.config)?)?;
        let tensors = checkpoint.float_tensors(registry)?;
        let topology = architecture.topology(&architecture.parse(&checkpoint.config, &|name| tensors.info(name).is_some())?);
        let online = checkpoint.online(registry, &topology)?;
        Self::doing(checkpoint, tensors, architecture, &online, registry)
    }

    /// The same, whose blocks run on `device`.
    fn on(self, device: &Device) -> Self {
        Self { model: self.model.on(device), ..self }
    }

    fn doing(
        checkpoint: Checkpoint,
        tensors: Arc<dyn TensorSource>,
        architecture: &'static dyn Architecture,
        online: &[OnlineStep],
        registry: &Registry,
    ) -> Result<Self> {
        let mut model = Model::doing(architecture, &checkpoint.config, tensors, DType::F32, &Device::Cpu, online)?;
        model.activations = Activations::new(checkpoint.activations(registry, &model.topology)?);
        let branches = checkpoint.branches(registry, &model.topology)?;
        Ok(Self { checkpoint, model: model.with_branches(branches)? })
    }

    /// The model in an open checkpoint for methods that read weights only: one of unknown architecture is taken matrix by matrix, and
    /// the notes say so and what was left out.
    ///
    /// # Errors
    /// If its tensors are not what its architecture asks for, or nothing in it is a matrix.
    pub fn for_weights(checkpoint: Checkpoint, registry: &Registry) -> Result<(Self, Vec<String>)> {
        let name = model_type(&checkpoint.config)?;
        if registry.architecture(name).is_ok() {
            return Ok((Self::of(checkpoint, registry)?, Vec::new()));
        }
        let mut notes = vec![format!("model_type `{name}` is unknown: its matrices are taken one by one, as [out, in]")];
        let (model, skipped) = Model::tensorwise(checkpoint.float_tensors(registry)?)?;
        notes.extend(skipped.iter().map(|s| format!("left as it is: `{}`, {}", s.tensor, s.reason)));
        Ok((Self { checkpoint, model }, notes))
    }

    /// The tokenizer beside the weights (or inside a GGUF), if there is one.
    ///
    /// # Errors
    /// If there is one, but it cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>> {
        let made = |name: &str| self.checkpoint.made_files.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
        if let Some(text) = made("tokenizer.json") {
            let parse = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap_or_default() };
            let config = made("tokenizer_config.json").map(parse).unwrap_or_default();
            let template = config["chat_template"].as_str().map(ToOwned::to_owned);
            let id = |key: &str| self.checkpoint.config[key].as_u64().and_then(|n| u32::try_from(n).ok());
            return Ok(Some(Tokenizer::from_json(&parse(text), template, id("bos_token_id"), id("eos_token_id"))?));
        }
        if self.checkpoint.path.join("tokenizer.json").exists() {
            return Ok(Some(Tokenizer::from_dir(&self.checkpoint.path)?));
        }
        Ok(None)
    }
}

/// Everything a run needs, before its first block.
pub struct Session {
    /// The configuration it was made from.
    pub raw: RawRun,
    /// The source model.
    pub opened: Opened,
    /// Calibration windows; none if no pass reads activations.
    pub windows: Windows,
    /// The plan and its algorithms.
    pub resolved: Resolved,
    /// Its memory.
    pub budget: Budget,
    prelude: Option<Prelude>,
}

/// What rotations are learned on.
struct Prelude {
    /// The model as it was opened.
    source: Opened,
    /// The same with every change to all of it but those rotations.
    plain: Opened,
}

impl Session {
    /// Opens the model that `raw` names and resolves its plan; model and data are local. `sorted`: the passes came as a plain list, to be
    /// sorted by phase.
    ///
    /// # Errors
    /// Everything that can be known to be wrong before work begins.
    pub fn open(raw: RawRun, registry: &Registry, sorted: bool) -> Result<Self> {
        let model = PathBuf::from(&raw.model.path);
        Self::open_at(raw, registry, sorted, &model, &mut local_data)
    }

    /// [`Session::open`] where the model that `raw` names lies at `model`, such as a cached copy of what the Hub has, and `data` finds the
    /// calibration data; it is asked only if a pass reads activations.
    ///
    /// # Errors
    /// As [`Session::open`], and what `data` fails with.
    pub fn open_at(
        raw: RawRun,
        registry: &Registry,
        sorted: bool,
        model: &Path,
        data: &mut dyn FnMut(&RawCalibration) -> Result<DataFile>,
    ) -> Result<Self> {
        if let Some(target) = &raw.output.target {
            target::check(target)?;
        }
        let device = device(&raw.harness.device)?;
        let calibrated = needs_calibration(&raw, registry)?;
        let (mut opened, notes) = source(&raw, registry, model, calibrated)?;
        let windows = if calibrated {
            // What the plan alone refuses is refused before data is looked for, which may have to come from far.
            plan(&raw, registry, &opened, None, sorted)?;
            calibrate(&raw.calibration, &data(&raw.calibration)?, &opened)?
        } else {
            Windows::new(Vec::new())
        };
        let calibration = (!windows.ids.is_empty()).then(|| CalibrationPlan {
            samples: windows.ids.len(),
            seq_len: windows.ids.iter().map(Vec::len).max().unwrap_or(0),
            tokens: windows.tokens(),
            hash: windows.hash.clone(),
            seed: raw.calibration.seed,
        });
        let mut resolved = plan(&raw, registry, &opened, calibration.clone(), sorted)?;
        if !resolved.biases.is_empty() {
            let architecture = opened.model.architecture();
            let mut checkpoint = opened.checkpoint;
            with_biases(&mut checkpoint, architecture, &resolved.biases)?;
            opened = Opened::of(checkpoint, registry)?;
            resolved = plan(&raw, registry, &opened, calibration, sorted)?;
        }
        resolved.notes.splice(0..0, notes);
        let mut learning = None;
        if !resolved.plan.rewrites.is_empty() {
            let (kept, learned): (Vec<Rewrite>, Vec<Rewrite>) =
                resolved.plan.rewrites.iter().cloned().partition(|step| !matches!(step, Rewrite::Rotate { learned: true, .. }));
            if !learned.is_empty() {
                let rewriting = Rewriting::new(&opened.model.topology, &kept)?;
                let plain = rewritten(opened.clone(), registry, &resolved, rewriting)?;
                learning = Some(Prelude { source: opened.clone(), plain });
            }
            opened = rewritten(opened, registry, &resolved, resolved.rewriting.clone())?;
        }
        for format in &resolved.plan.output.formats {
            // For its refusals: what they are about is no part of the plan.
            let form = registry.container(format)?.container.file_form(&resolved.plan, &opened.checkpoint);
            form.map_err(|e| e.within(format!("output format `{format}`")))?;
        }
        let budget = Budget::of(
            &resolved.plan,
            &opened.model.topology,
            &opened.model.dims,
            &resolved.needs,
            rayon::current_num_threads(),
            raw.harness.budget.bytes(),
        );
        if budget.total() > raw.harness.budget.bytes() {
            return Err(Error::plan("plan::budget", format!("the run needs {budget}, more than the budget of {}", raw.harness.budget))
                .hint("raise `--budget`, use fewer threads, shorter windows, or `harness.sequence = \"layer\"`"));
        }
        let prelude = learning.map(|Prelude { source, plain }| Prelude { source: source.on(&device), plain: plain.on(&device) });
        Ok(Self { raw, opened: opened.on(&device), windows, resolved, budget, prelude })
    }

    /// Refuses what the engine that `raw` names would not load, or would compute wrongly: by the plan alone, before any data is asked for.
    /// Without an engine, and for what is not known to fail, nothing is done. [`Session::execute`] refuses the same.
    ///
    /// # Errors
    /// With the engine's reason; and those of the plan.
    pub fn demand_target(raw: &RawRun, registry: &Registry, sorted: bool, model: &Path) -> Result<()> {
        let Some(target) = &raw.output.target else { return Ok(()) };
        target::check(target)?;
        let (opened, _) = source(raw, registry, model, needs_calibration(raw, registry)?)?;
        plan(raw, registry, &opened, None, sorted)?.judgement.map_or(Ok(()), |j| j.demand())
    }

    /// Runs the plan.
    ///
    /// # Errors
    /// As [`Run::execute`], and if the engine that has to load the result would not, or would compute something else.
    pub fn execute(&self, registry: &Registry, out: &Path, mode: Mode, control: &Control<'_>) -> Result<Summary> {
        if let Some(judgement) = &self.resolved.judgement {
            judgement.demand()?;
        }
        let Some(Prelude { source, plain }) = &self.prelude else { return self.run(registry, &self.opened)?.execute(out, mode, control) };
        self.run(registry, plain)?.execute_learning(out, mode, control, |turns| {
            let rewriting = Rewriting::learned(&source.model.topology, &self.resolved.plan.rewrites, turns)?;
            let Opened { checkpoint, model } = rewritten(source.clone(), registry, &self.resolved, rewriting)?;
            Ok((checkpoint, model))
        })
    }

    /// Runs block 0 and extrapolates; writes nothing but what does not fit in memory, to `dir`.
    ///
    /// # Errors
    /// As [`Run::measure`].
    pub fn measure(&self, registry: &Registry, dir: &Path, control: &Control<'_>) -> Result<Measured> {
        self.run(registry, &self.opened)?.measure(dir, control)
    }

    fn run<'a>(&'a self, registry: &'a Registry, opened: &'a Opened) -> Result<Run<'a>> {
        let Opened { checkpoint, model } = opened;
        Run::new(registry, checkpoint, model, &self.resolved, &self.windows.ids, self.budget.spill)
    }
}

/// The model that is to be quantized, with a head of its own if it needs one, and what there is to be told of it. `calibrated`: it will run.
fn source(raw: &RawRun, registry: &Registry, model: &Path, calibrated: bool) -> Result<(Opened, Vec<String>)> {
    let mut checkpoint = Checkpoint::open(model)?;
    adapt(&mut checkpoint, &raw.model, registry)?;
    let (mut opened, mut notes) =
        if calibrated { (Opened::of(checkpoint, registry)?, Vec::new()) } else { Opened::for_weights(checkpoint, registry)? };
    if !opened.checkpoint.config.get("quantization_config").is_none_or(serde_json::Value::is_null) {
        return Err(Error::plan("plan::already-quantized", format!("`{}` is quantized already", raw.model.path))
            .hint("start from the original checkpoint; quantizing twice loses accuracy twice"));
    }
    if opened.checkpoint.adapter.is_some() {
        return Err(Error::plan("plan::adapter", format!("`{}` has low-rank branches beside it, which would be lost", raw.model.path))
            .hint("merge them into the weights first, or move its directory `adapter` away to leave them out"));
    }
    if with_facts(&opened, |facts| needs_untied_head(raw, registry, facts))? {
        notes.push("the head gets a tensor of its own: it changes otherwise than the embedding does".to_owned());
        let mut checkpoint = opened.checkpoint;
        untie(&mut checkpoint, registry)?;
        opened = Opened::of(checkpoint, registry)?;
    }
    Ok((opened, notes))
}

/// The plan for an open model.
fn plan(raw: &RawRun, registry: &Registry, opened: &Opened, calibration: Option<CalibrationPlan>, sorted: bool) -> Result<Resolved> {
    with_facts(opened, |facts| resolve(raw, registry, facts, calibration, sorted))
}

/// What the planner has to know of an open model.
fn with_facts<T>(opened: &Opened, plan: impl FnOnce(&ModelFacts<'_>) -> Result<T>) -> Result<T> {
    let tensors = Arc::clone(&opened.checkpoint.tensors);
    let stored = |module: &str| match tensors.info(&format!("{module}.weight")).map(|i| &i.dtype) {
        Some(StoredDtype::F16 | StoredDtype::Ggml(_)) => FloatKind::F16,
        Some(StoredDtype::BF16) => FloatKind::Bf16,
        _ => FloatKind::F32,
    };
    let facts = ModelFacts {
        model_type: model_type(&opened.checkpoint.config)?,
        tensorwise: opened.model.is_tensorwise(),
        topology: &opened.model.topology,
        hash: opened.checkpoint.content_hash()?,
        stored: &stored,
        head_dim: opened.model.dims.head_dim,
    };
    plan(&facts)
}

/// The model as the plan rewrites it: tensors change as they are read, and some activations are rotated or multiplied on the way.
fn rewritten(opened: Opened, registry: &Registry, resolved: &Resolved, rewriting: Rewriting) -> Result<Opened> {
    let Opened { mut checkpoint, model } = opened;
    let codes = resolved.plan.native_sites().into_iter().map(|s| format!("{}.weight", s.module)).collect();
    let online = resolved.plan.online();
    let mut after = (*model.topology).clone();
    after.doing(&online, model.dims.head_dim)?;
    let tensors = Rewritten::new(checkpoint.tensors, &model.topology, &after, rewriting, &codes)?;
    checkpoint.tensors = Arc::new(Adapted::ones(Arc::new(tensors), &multipliers(&after)?)?);
    let tensors = Arc::clone(&checkpoint.tensors);
    Ok(Opened::doing(checkpoint, tensors, model.architecture(), &online, registry)?.on(model.weights.device()))
}

/// The vectors that activations are multiplied by: name, length, and the weight of the layer that each belongs to.
fn multipliers(topology: &Topology) -> Result<Vec<(String, usize, String)>> {
    let vectors = topology.params.iter().filter(|p| p.part == Part::Multiplier);
    let beside = |site| topology.param(site, Part::Weight).ok_or_else(|| Error::internal(format!("`{site}` has no weight")));
    vectors.map(|p| Ok((p.tensor.clone(), p.shape.iter().product(), beside(p.site)?.tensor.clone()))).collect()
}

/// Gives linears of some roles biases of zero, by the configuration's own key for it, so that the result is a model like any other with
/// biases.
fn with_biases(checkpoint: &mut Checkpoint, architecture: &dyn Architecture, roles: &BTreeSet<Role>) -> Result<()> {
    for role in roles {
        let Some(key) = architecture.bias_key(*role) else {
            let message = format!("`{}` of a `{}` model has no bias, and config.json no key that gives it one", role, architecture.id());
            return Err(Error::plan("plan::no-bias", message).hint(
                "name these layers in the pass's `skip`; a model that computes as LLaMA does can be read as one with \
                 `model.model-type = \"llama\"`, which has such keys",
            ));
        };
        checkpoint.config[key] = true.into();
    }
    let tensors = Arc::clone(&checkpoint.tensors);
    let has = |name: &str| tensors.info(name).is_some();
    let topology = architecture.topology(&architecture.parse(&checkpoint.config, &has)?);
    let lacking = topology.params.iter().filter(|p| p.part == Part::Bias && !has(&p.tensor));
    let vectors: Vec<(String, usize, String)> =
        lacking.map(|p| (p.tensor.clone(), p.shape.iter().product(), p.tensor.trim_end_matches(".bias").to_owned() + ".weight")).collect();
    checkpoint.tensors = Arc::new(Adapted::zeros(tensors, &vectors)?);
    Ok(())
}

/// The calibration data of a run that may not fetch any.
fn local_data(c: &RawCalibration) -> Result<DataFile> {
    match Source::find(&c.source)? {
        Source::File(path) => Ok(DataFile::local(&path, c.text_column.as_deref())),
        Source::Named(set) => Err(Error::config(
            "calibration::no-data",
            format!("a pass reads activations, and `{}` is a data set of the Hub, which is not fetched here", set.name),
        )
        .hint("fetch it first and give its file, or give another text or token file")),
    }
}

fn calibrate(c: &RawCalibration, data: &DataFile, opened: &Opened) -> Result<Windows> {
    let tokenizer = opened.tokenizer()?;
    let corpus = data.read(tokenizer.as_ref())?;
    let dims = &opened.model.dims;
    let ids_given = matches!(corpus, Corpus::Ids(ref rows) if rows.len() > 1);
    let default_length = (!ids_given).then(|| dims.max_positions.min(2048));
    let spec = SampleSpec {
        samples: c.samples.map(Into::into),
        seq_len: c.seq_len.map(Into::into).or(default_length),
        seed: c.seed,
        bos: bos(c.bos),
    };
    let windows = sample_windows(&corpus, tokenizer.as_ref(), &spec)?;
    windows.check_vocab(dims.vocab)?;
    Ok(windows)
}

/// Shows the checkpoint as `[model]` asks for it: of another architecture, in another float type, with a head of its own. The result
/// is written like this too, since its tensors and configuration are taken from here.
fn adapt(checkpoint: &mut Checkpoint, model: &RawModel, registry: &Registry) -> Result<()> {
    if let Some(name) = &model.model_type {
        checkpoint.config["model_type"] = name.as_str().into();
    }
    let (dtype, name) = match model.dtype {
        RawDtype::Auto => (None, ""),
        RawDtype::Float32 => (Some(FloatKind::F32), "float32"),
        RawDtype::Float16 => (Some(FloatKind::F16), "float16"),
        RawDtype::Bfloat16 => (Some(FloatKind::Bf16), "bfloat16"),
    };
    if let Some(dtype) = dtype {
        checkpoint.tensors = Arc::new(Adapted::cast(Arc::clone(&checkpoint.tensors), dtype));
        // The newer spelling, if that is what the configuration uses.
        let key = if checkpoint.config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        checkpoint.config[key] = name.into();
    }
    if model.tie_policy == RawTiePolicy::Untie { untie(checkpoint, registry) } else { Ok(()) }
}

/// Gives the head a tensor of its own.
fn untie(checkpoint: &mut Checkpoint, registry: &Registry) -> Result<()> {
    let architecture = registry.architecture(model_type(&checkpoint.config)?)?;
    let tensors = Arc::clone(&checkpoint.tensors);
    let dims = architecture.parse(&checkpoint.config, &|n| tensors.info(n).is_some())?;
    let topology = architecture.topology(&dims);
    let embedding = topology.param(SiteId::global(Role::Embed), Part::Weight).map(|p| p.tensor.as_str());
    let head = topology.linear(SiteId::global(Role::Head)).map(|l| format!("{}.weight", l.module));
    if let (Some(embedding), Some(head)) = (embedding, head)
        && tensors.info(&head).is_none()
    {
        checkpoint.tensors = Arc::new(Adapted::copy(tensors, embedding, &head)?);
    }
    checkpoint.config["tie_word_embeddings"] = false.into();
    Ok(())
}

/// The placement of BOS that the configuration names.
pub fn bos(raw: RawBos) -> Bos {
    match raw {
        RawBos::None => Bos::None,
        RawBos::Document => Bos::Document,
        RawBos::Sequence => Bos::Sequence,
    }
}
