//! Tiny models, and the files that the container makes of them.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::gguf::GgufWriter;
use qfw_core::checkpoint::native::{NativeReader, NativeSite, encode_site, write_shard};
use qfw_core::checkpoint::{Checkpoint, Container, FileForm, StoredDtype, TensorDecl, open_tensors, write_small};
use qfw_core::numeric::{Codes, Units, decode};
use qfw_core::plan::{Failure, HarnessPlan, OutputPlan, Plan, PlannedSite, Products, Propagate, Sequence};
use qfw_core::scheme::{Convention, Granularity, Grid, ObserverChoice, QParams, QuantSpec, Reducer, ScaleForm, Timing, Zero};
use qfw_export_gguf::RECORD;
use serde_json::{Value, json};

pub(crate) const CONTAINER: &dyn Container = RECORD.container;

/// One block, 64 wide, four heads of 16 of which two are of keys.
pub(crate) fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 50000.0,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": [1, 2],
    })
}

pub(crate) fn gpt2() -> Value {
    json!({
        "model_type": "gpt2", "vocab_size": 8, "n_embd": 32, "n_head": 2, "n_layer": 1, "n_positions": 16, "layer_norm_epsilon": 1e-5,
    })
}

/// Names, types and shapes of the tensors of [`llama`] that are no linears, and numbers that tell each from the others.
pub(crate) fn floats(dtype: &StoredDtype, shapes: &[(&str, &[usize])]) -> Vec<(TensorDecl, Vec<u8>)> {
    let one = |(at, (name, shape)): (usize, &(&str, &[usize]))| {
        let bytes = |i: usize| {
            let x = ((at * 31 + i * 7) % 61) as f32 / 8.0 - 3.0;
            match dtype {
                StoredDtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
                StoredDtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                _ => x.to_le_bytes().to_vec(),
            }
        };
        let decl = TensorDecl { name: (*name).to_owned(), dtype: dtype.clone(), shape: shape.to_vec() };
        (decl, (0..shape.iter().product()).flat_map(bytes).collect())
    };
    shapes.iter().enumerate().map(one).collect()
}

pub(crate) const LLAMA: [(&str, &[usize]); 11] = [
    ("model.embed_tokens.weight", &[8, 64]),
    ("model.layers.0.input_layernorm.weight", &[64]),
    ("model.layers.0.post_attention_layernorm.weight", &[64]),
    ("model.layers.0.self_attn.q_proj.weight", &[64, 64]),
    ("model.layers.0.self_attn.k_proj.weight", &[32, 64]),
    ("model.layers.0.self_attn.v_proj.weight", &[32, 64]),
    ("model.layers.0.self_attn.o_proj.weight", &[64, 64]),
    ("model.layers.0.mlp.gate_proj.weight", &[128, 64]),
    ("model.layers.0.mlp.up_proj.weight", &[128, 64]),
    ("model.layers.0.mlp.down_proj.weight", &[64, 128]),
    ("model.norm.weight", &[64]),
];

pub(crate) const GPT2: [(&str, &[usize]); 17] = [
    ("wte.weight", &[8, 32]),
    ("wpe.weight", &[16, 32]),
    ("h.0.ln_1.weight", &[32]),
    ("h.0.ln_1.bias", &[32]),
    ("h.0.attn.bias", &[1, 1, 16, 16]),
    ("h.0.attn.c_attn.weight", &[32, 96]),
    ("h.0.attn.c_attn.bias", &[96]),
    ("h.0.attn.c_proj.weight", &[32, 32]),
    ("h.0.attn.c_proj.bias", &[32]),
    ("h.0.ln_2.weight", &[32]),
    ("h.0.ln_2.bias", &[32]),
    ("h.0.mlp.c_fc.weight", &[32, 128]),
    ("h.0.mlp.c_fc.bias", &[128]),
    ("h.0.mlp.c_proj.weight", &[128, 32]),
    ("h.0.mlp.c_proj.bias", &[32]),
    ("ln_f.weight", &[32]),
    ("ln_f.bias", &[32]),
];

pub(crate) fn spec(format: &str, bits: u8, grid: Grid, granularity: Granularity, scale: ScaleForm) -> QuantSpec {
    QuantSpec {
        format: format.to_owned(),
        bits,
        symmetric: !matches!(grid.zero(), Zero::Integer | Zero::Float),
        grid,
        granularity,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options: json!({}) },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale,
    }
}

/// A byte-level tokenizer of eight tokens.
pub(crate) fn tokenizer() -> Value {
    json!({
        "added_tokens": [{ "id": 0, "content": "<s>", "special": true }, { "id": 5, "content": "<user>", "special": false }],
        "normalizer": null,
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }] },
        "model": { "type": "BPE", "vocab": { "<s>": 0, "a": 1, "b": 2, "ab": 3, "abb": 4 }, "merges": ["a b", ["ab", "b"]] },
    })
}

/// A model on disk, with codes for some of its linears.
pub(crate) struct Model {
    pub checkpoint: Checkpoint,
    pub native: NativeReader,
    pub plan: Plan,
    dir: Arc<tempfile::TempDir>,
}

/// A file that is there as long as this is.
pub(crate) struct Written {
    path: PathBuf,
    _dir: Arc<tempfile::TempDir>,
}

impl Deref for Written {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl Model {
    pub(crate) fn new(config: Value, floats: Vec<(TensorDecl, Vec<u8>)>, coded: Vec<(NativeSite, Rounded)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        write_small(&path, floats).unwrap();
        let mut shards = BTreeMap::new();
        for (i, (site, rounded)) in coded.iter().enumerate() {
            let shard = dir.path().join(format!("{i}.safetensors"));
            write_shard(&shard, encode_site(site, rounded).tensors).unwrap();
            shards.insert(site.module.clone(), shard);
        }
        let sites: Vec<NativeSite> = coded.into_iter().map(|(site, _)| site).collect();
        let tensors = open_tensors(&path).unwrap();
        let plan = plan(&config, &sites);
        let native = NativeReader::new(Arc::clone(&tensors), sites, Vec::new(), shards, BTreeMap::new()).with_config(config.clone());
        let made_files = vec![("tokenizer.json".to_owned(), tokenizer().to_string())];
        let checkpoint = Checkpoint {
            path: dir.path().to_owned(),
            config_text: config.to_string(),
            config,
            tensors,
            side_files: Vec::new(),
            made_files,
            adapter: None,
        };
        Self { checkpoint, native, plan, dir: Arc::new(dir) }
    }

    /// A file beside the model.
    pub(crate) fn with(mut self, name: &str, text: &str) -> Self {
        self.checkpoint.made_files.retain(|(n, _)| n != name);
        self.checkpoint.made_files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// The file that the container makes of it.
    pub(crate) fn write(&self) -> Written {
        let FileForm::Gguf(pairs) = CONTAINER.file_form(&self.plan, &self.checkpoint).unwrap() else { panic!("not a GGUF file") };
        let path = self.dir.path().join("model.gguf");
        let mut writer = GgufWriter::create(&path, &pairs, &CONTAINER.declare(&self.native).unwrap()).unwrap();
        CONTAINER.write(&self.native, &mut writer).unwrap();
        writer.finish().unwrap();
        Written { path, _dir: Arc::clone(&self.dir) }
    }

    /// Why there is none.
    pub(crate) fn refusal(&self) -> String {
        let e = CONTAINER.file_form(&self.plan, &self.checkpoint).expect_err("a refusal");
        format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
    }
}

fn plan(config: &Value, sites: &[NativeSite]) -> Plan {
    let planned = |s: &NativeSite| PlannedSite {
        site: s.site.clone(),
        module: s.module.clone(),
        shape: s.shape,
        transposed: s.transposed,
        weights: Some(s.spec.clone()),
    };
    Plan {
        version: 1,
        qfw: "0.0.0".to_owned(),
        model_type: config["model_type"].as_str().unwrap().to_owned(),
        tensorwise: false,
        model_hash: String::new(),
        blocks: 1,
        sites: sites.iter().map(planned).collect(),
        activations: Vec::new(),
        origin: None,
        passes: Vec::new(),
        rewrites: Vec::new(),
        branches: Vec::new(),
        calibration: None,
        harness: HarnessPlan {
            sequence: Sequence::Block,
            propagate: Propagate::Quantized,
            products: Products::F32,
            on_failure: Failure::Rtn,
            seed: 0,
            device: "cpu".to_owned(),
            instructions: String::new(),
        },
        output: OutputPlan { formats: vec!["gguf".to_owned()], max_shard: u64::MAX, keep_native: false },
    }
}

/// A module with codes drawn from `seed`, and scales and zero points that the container holds exactly.
pub(crate) fn coded(module: &str, shape: (usize, usize), transposed: bool, spec: QuantSpec, seed: u64) -> (NativeSite, Rounded) {
    let mut state = seed;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as usize % n
    };
    let layout = spec.granularity.layout(shape.0, shape.1);
    let (lo, hi) = spec.grid.limits();
    let data = (0..shape.0 * shape.1).map(|_| next((hi - lo + 1) as usize) as u8).collect();
    let global = (spec.scale == ScaleForm::TwoLevel).then_some(16.0);
    let mut scale = || match spec.scale {
        ScaleForm::PowerOfTwo { .. } => 2_f32.powi(next(20) as i32 - 10),
        // Few bits, so that their products with zero points are numbers of f16, and numbers of e4m3 as they are.
        _ => (next(7) + 8) as f32 / 128.0,
    };
    let scale: Vec<f32> = (0..layout.tiles()).map(|_| scale()).collect();
    let zero = (0..layout.tiles())
        .map(|_| match spec.grid.zero() {
            Zero::Fixed(z) => z as f32,
            Zero::Integer => (lo + next((hi - lo + 1) as usize) as i32) as f32,
            _ => 0.0,
        })
        .collect();
    let site = NativeSite { site: format!("blocks.0.{module}"), module: module.to_owned(), shape, transposed, spec };
    let codes = Codes { lo, data: Units::Narrow(data) };
    (site, Rounded { codes, params: QParams { layout, scale, zero, global }, group_index: None, events: Vec::new() })
}

/// What its codes stand for, `[out, in]`.
pub(crate) fn values(site: &NativeSite, rounded: &Rounded) -> Vec<f32> {
    let mut out = Vec::new();
    decode(&site.spec.grid, &rounded.params, &rounded.codes, 0..site.shape.0, None, &mut out);
    out
}
