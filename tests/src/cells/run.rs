//! One cell as a whole run: planned, applied, read again and measured.
//!
//! How the run's own forward pass rounds is seen from inside, by the algorithm `watch`: it rounds the head to nearest and keeps the Gram
//! matrix of the head's input, which has gone through every block as the run has it. The written checkpoint has to give the same.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use qfw_core::algorithm::{AlgorithmRecord, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage};
use qfw_core::evaluate::{EvalControl, Protocol, perplexity};
use qfw_core::harness::{Control, Mode};
use qfw_core::model::{Flow, Model, Nothing, Span};
use qfw_core::plan::layer::Layers;
use qfw_core::plan::raw::{RawPass, RawProducts, RawPropagate, RawQuant, RawRun, RawSequence, RawSpec};
use qfw_core::registry::Registry;
use qfw_core::session::{Opened, Session};
use qfw_core::statistic::StatKind;
use qfw_core::{Error, Result};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::json;

use super::space::{ALGORITHMS, Cell, MODELS, PROPAGATE, SEQUENCE, Space};
use crate::workspace;

/// Calibration and evaluation windows, and their length.
const WINDOWS: usize = 3;
const LENGTH: usize = 16;

/// Gram matrices that `watch` saw, by the number in its options.
static SEEN: Mutex<BTreeMap<u64, Vec<f32>>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

struct Watch {
    key: u64,
}

impl PtqAlgorithm for Watch {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs { inputs: vec![(StatKind::Gram, cx.stream)], ..Needs::default() })
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Watch {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let gram = cx.gram()?.lower.clone();
        SEEN.lock().map_err(|_| Error::internal("a thread panicked"))?.insert(self.key, gram);
        cx.nearest()
    }
}

static WATCH: AlgorithmRecord = AlgorithmRecord {
    id: "watch",
    aliases: &[],
    phase: Phase::Round,
    summary: "keeps what the head reads",
    version: "0",
    source: "qfw-tests",
    weight_only: false,
    schema: || json!({}),
    build: |options| {
        let key = options["key"].as_u64().ok_or_else(|| Error::internal("`watch` has no key"))?;
        Ok((Box::new(Watch { key }), options.clone()))
    },
};

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Of the written checkpoint.
    pub perplexity: f64,
    /// Largest difference between what the head read in the run and what it reads in the written checkpoint, relative to the largest value.
    pub distance: f64,
}

impl Outcome {
    /// What is wrong with it, if anything.
    pub fn wrong(&self) -> Option<String> {
        // Sums over tokens in f32 there and in f64 here.
        let fine = self.perplexity.is_finite() && self.distance < 1e-5;
        (!fine).then(|| format!("{self:?}"))
    }
}

/// Runs cells.
pub struct Runner {
    registry: Registry,
    dir: tempfile::TempDir,
    ids: PathBuf,
    windows: Vec<Vec<u32>>,
}

impl Runner {
    /// A place to work in, and its data: the same ids for every cell.
    ///
    /// # Errors
    /// If there is no room for temporary files.
    pub fn new() -> Result<Self> {
        let mut registry = Registry::builtin()?;
        registry.add_algorithm(&qfw_rtn::RECORD)?;
        registry.add_algorithm(&qfw_gptq::RECORD)?;
        registry.add_algorithm(&WATCH)?;
        let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
        let ids = dir.path().join("ids.safetensors");
        let windows: Vec<Vec<u32>> = (0..WINDOWS).map(|w| (0..LENGTH).map(|i| ((w * LENGTH + i) * 37 % 61 + 3) as u32).collect()).collect();
        let bytes: Vec<u8> = windows.iter().flatten().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
        let made = |e: safetensors::SafeTensorError| Error::internal(format!("cannot write token ids: {e}"));
        let view = TensorView::new(Dtype::I64, vec![WINDOWS, LENGTH], &bytes).map_err(made)?;
        serialize_to_file([("input_ids", view)], None, &ids).map_err(made)?;
        Ok(Self { registry, dir, ids, windows })
    }

    /// What there is to choose from.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Runs all of them, on as many threads as there are cores; `done` sees each as it ends. What is returned has failed, with its reason.
    pub fn run_all<'c>(&self, space: &Space, cells: &'c [Cell], done: &(dyn Fn(&Result<Outcome>) + Sync)) -> Vec<(String, &'c Cell)> {
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, Into::into) {
                scope.spawn(|| {
                    while let Some(cell) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.run(space, cell);
                        done(&outcome);
                        let why = outcome.map_or_else(|e| Some(e.to_string()), |o| o.wrong());
                        if let (Some(why), Ok(mut failed)) = (why, failed.lock()) {
                            failed.push((why, cell));
                        }
                    }
                });
            }
        });
        let mut failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        failed.sort_by(|a, b| a.0.cmp(&b.0));
        failed
    }

    /// Plans, applies, reads again and measures.
    ///
    /// # Errors
    /// Whatever a step fails with.
    pub fn run(&self, space: &Space, cell: &Cell) -> Result<Outcome> {
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        let out = self.dir.path().join(format!("cell-{key}"));
        let raw = self.raw(space, cell, key)?;
        let reference = raw.harness.propagate == Some(RawPropagate::Reference);
        let session = Session::open(raw, &self.registry, false)?;
        let never = AtomicBool::new(false);
        session.execute(&self.registry, &out, Mode::Fresh, &Control::new(&|_| (), &never))?;
        let written = Opened::open(&out, &self.registry)?.model;
        let windows: Vec<(Vec<u32>, usize)> = self.windows.iter().map(|w| (w.clone(), 0)).collect();
        let control = EvalControl { progress: &|_, _| (), cancelled: &|| false, stream_bytes: 1 << 20, bf16: None };
        let measured = perplexity(&written, &windows, Protocol::Gptq, &control)?;
        let float = &session.opened.model;
        let here = self.head_gram(if reference { float } else { &written }, float)?;
        let there = SEEN.lock().map_err(|_| Error::internal("a thread panicked"))?.remove(&key);
        let there = there.ok_or_else(|| Error::internal("the head was not rounded"))?;
        std::fs::remove_dir_all(&out).map_err(|e| Error::io(&out, "remove", e))?;
        Ok(Outcome { perplexity: measured.perplexity, distance: distance(&here, &there) })
    }

    fn raw(&self, space: &Space, cell: &Cell, key: u64) -> Result<RawRun> {
        let [model, algorithm, propagate, sequence] = space.rest(cell);
        let text = |p: &Path| p.display().to_string();
        let model = workspace::root().join("tests/fixtures/models").join(MODELS[model]);
        let (mut raw, _) = Layers::new()
            .set("model.path", text(&model), "cell")
            .set("calibration.source", text(&self.ids), "cell")
            .set("output.format", toml::Value::Array(vec!["qfw".into()]), "cell")
            .finish()?;
        let mut parts = space.quants(cell).map(|q| q.cloned().map(RawSpec::Quant));
        let scheme = &mut raw.scheme;
        let slots = [
            &mut scheme.weights,
            &mut scheme.inputs,
            &mut scheme.outputs,
            &mut scheme.queries,
            &mut scheme.keys,
            &mut scheme.values,
            &mut scheme.probs,
        ];
        slots.into_iter().for_each(|slot| *slot = parts.next().flatten());
        scheme.head = Some(RawSpec::Quant(RawQuant::new("int8")));
        scheme.skip = vec!["embed".to_owned()];
        let (algo, options) = ALGORITHMS[algorithm];
        let options = options.parse().map_err(|e| Error::internal(format!("{options}: {e}")))?;
        let pass = |algo: &str, options| RawPass { algo: algo.to_owned(), regions: None, selector: None, skip: Vec::new(), options };
        let watch = toml::Table::from_iter([("key".to_owned(), toml::Value::Integer(key as i64))]);
        raw.passes = vec![
            RawPass { skip: vec!["head".to_owned()], ..pass(algo, options) },
            RawPass { selector: Some("head".to_owned()), ..pass(WATCH.id, watch) },
        ];
        // What a cell reads back as is compared with an evaluation, which rounds nothing.
        raw.harness.products = RawProducts::F32;
        raw.harness.propagate = match PROPAGATE[propagate] {
            "reference" => Some(RawPropagate::Reference),
            "both" => Some(RawPropagate::Both),
            _ => Some(RawPropagate::Quantized),
        };
        raw.harness.sequence = if SEQUENCE[sequence] == "layer" { Some(RawSequence::Layer) } else { Some(RawSequence::Block) };
        Ok(raw)
    }

    /// The Gram matrix `[hidden, hidden]` of what the head reads behind the blocks of `model`, not rounded itself; its lower triangle.
    fn head_gram(&self, model: &Model, float: &Model) -> Result<Vec<f32>> {
        let n = float.dims.hidden;
        let mut sums = vec![0.0f64; n * n];
        for window in &self.windows {
            let mut x = model.edges()?.embed(window, 0, &mut Nothing)?.x;
            for b in 0..model.topology.blocks {
                let weights = model.load_block(b)?;
                x = model.block(b, &weights)?.run(Span::BLOCK, Flow::new(x), &mut Nothing)?.x;
            }
            // The run takes statistics before it rounds the head's input, which only its own edges leave as it is.
            let read = float.edges()?.finish(Flow::new(x), &mut Nothing)?.flatten_all()?.to_vec1::<f32>()?;
            for row in read.chunks(n) {
                for i in 0..n {
                    (0..=i).for_each(|j| sums[i * n + j] += f64::from(row[i]) * f64::from(row[j]));
                }
            }
        }
        Ok(sums.into_iter().map(|s| s as f32).collect())
    }
}

/// Largest difference, relative to the largest value; what is no number is infinitely far.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let largest = a.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let far = |(a, b): (&f32, &f32)| if a.is_finite() && b.is_finite() { (a - b).abs() } else { f32::INFINITY };
    if a.len() != b.len() { f64::INFINITY } else { f64::from(a.iter().zip(b).map(far).fold(0.0, f32::max) / largest) }
}
