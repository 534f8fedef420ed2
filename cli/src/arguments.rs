//! The command line: names are a contract, scripts rely on them.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use qfw_core::plan::raw::RawProducts;
use qfw_core::scheme::FloatKind;
use serde::Deserialize;
use serde::de::IntoDeserializer;

use crate::compat::System;

/// Quantize language models: one binary, no Python.
#[derive(Debug, Parser)]
#[command(name = "qfw", version, about, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Quantize two small embedded models several ways and print the table
    Quickstart(Quickstart),
    /// List everything that can be chosen by name
    ListPlugins(ListPlugins),
    /// Print the resolved plan of a run; writes nothing
    Plan(RunArgs),
    /// Quantize a model
    Apply(RunArgs),
    /// Measure perplexity of a float or quantized model
    Eval(Eval),
    /// Say how far two models are apart: weights, blocks, and what they predict
    Compare(Compare),
    /// Show what is in a checkpoint
    Inspect(Inspect),
    /// Write a checkpoint in other formats, with the codes it has
    Export(Export),
    /// Decode what is on disk with a second reader, and compare it with what was meant to be there
    Verify(Verify),
    /// Continue a text
    Generate(Generate),
    /// Check the declared symmetries of a model numerically
    Topology(Topology),
    /// Add, remove, make and look at plugins that are loaded at run time
    Plugin(Plugin),
    /// Print the JSON Schema of run.toml and of all options
    Schema,
    /// Print shell completions
    Completions(Completions),
}

#[derive(Debug, Args)]
pub(crate) struct Quickstart {
    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

/// What may be loaded at run time
#[derive(Debug, Default, Args)]
pub(crate) struct DynamicArgs {
    /// Use nothing but what is part of this program
    #[arg(long)]
    pub(crate) no_dynamic_plugins: bool,
    /// Load plugins that were found but not added, whatever they hold
    #[arg(long)]
    pub(crate) allow_unpinned: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListPlugins {
    #[command(flatten)]
    pub(crate) dynamic: DynamicArgs,
    /// Only this kind: algorithm, architecture, format, granularity, input-format, observer, output-format
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// One JSON array
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Checkpoint directory, .gguf file or Hub id (org/name[@revision])
    pub(crate) model: Option<String>,
    /// Algorithms, sorted by phase; replaces the passes of the configuration
    #[arg(long, value_delimiter = ',')]
    pub(crate) algo: Vec<String>,
    /// Named configuration to start from
    #[arg(long)]
    pub(crate) preset: Option<String>,
    /// Configuration file
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Read the words after `--` as the command line of another system
    #[arg(long, value_name = "SYSTEM", conflicts_with_all = ["config", "preset", "algo"])]
    pub(crate) compat: Option<System>,
    /// Set any key of the configuration, or an option of a pass (`gptq.damp=0.1`)
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Calibration data: .txt, .jsonl, .parquet, token ids (.safetensors, .npy), or c4, pile, ptb, wikitext2 from the Hub
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) data: Option<String>,
    /// Output directory
    #[arg(short, long)]
    pub(crate) output: Option<PathBuf>,
    /// Output formats
    #[arg(long, value_delimiter = ',')]
    pub(crate) format: Vec<String>,
    /// Keep the native shards beside the output
    #[arg(long)]
    pub(crate) keep_native: bool,
    /// Engine that has to load the result
    #[arg(long, value_name = "ENGINE[@VERSION]")]
    pub(crate) target: Option<String>,
    /// Go on with an unfinished run
    #[arg(long, conflicts_with = "overwrite")]
    pub(crate) resume: bool,
    /// Replace what an earlier run wrote
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Stop at a layer that cannot be solved instead of rounding it to nearest
    #[arg(long)]
    pub(crate) strict: bool,
    /// cpu or cuda:N
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Worker threads; the result does not depend on it
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Memory the run may use, such as 8GiB
    #[arg(long)]
    pub(crate) budget: Option<String>,
    /// Seed of every random choice
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the complete run.toml (plan only)
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Run block 0 and say how long the whole will take, and how much memory and disk (plan only)
    #[arg(long, conflicts_with = "print_config")]
    pub(crate) measure: bool,
    #[command(flatten)]
    pub(crate) dynamic: DynamicArgs,
    /// Command line of the system that `--compat` names
    #[arg(last = true, value_name = "FLAGS", requires = "compat")]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// Checkpoint directory, .gguf file or Hub id (org/name[@revision])
    pub(crate) model: PathBuf,
    /// Evaluation data: .txt, .jsonl, .parquet, token ids (.safetensors, .npy), or c4, ptb, wikitext2 from the Hub
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) data: String,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// What the other is compared with: checkpoint directory, .gguf file or Hub id (org/name[@revision])
    #[arg(value_name = "A")]
    pub(crate) reference: PathBuf,
    /// A model that was made of it, in any container
    #[arg(value_name = "B")]
    pub(crate) other: PathBuf,
    /// Text or token ids that both run on: files and names as in `eval`; without it weights alone are compared
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) data: Option<String>,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Which tokens of the data are scored, and what that may take.
#[derive(Debug, Args)]
pub(crate) struct Scoring {
    /// gptq, brevitas or hf-stride
    #[arg(long, default_value = "gptq", requires = "data")]
    pub(crate) protocol: String,
    /// Tokens per window [default: 2048, at most what the model was made for]
    #[arg(long, requires = "data")]
    pub(crate) seq_len: Option<usize>,
    /// Use only the first N windows
    #[arg(long, requires = "data")]
    pub(crate) max_windows: Option<usize>,
    /// Step between windows of hf-stride [default: half a window]
    #[arg(long, requires = "data")]
    pub(crate) stride: Option<usize>,
    /// Start every window with the BOS token
    #[arg(long, requires = "data")]
    pub(crate) bos: bool,
    /// Memory for hidden states, such as 1GiB
    #[arg(long, default_value = "1GiB", requires = "data")]
    pub(crate) budget: String,
    /// What operands of products are rounded to: f32 (nothing), bf16 (half the time where the CPU has it) or auto
    #[arg(long, default_value = "f32", requires = "data", value_parser = products)]
    pub(crate) products: RawProducts,
    /// Worker threads; the result does not depend on it
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// `products` as `run.toml` spells it.
fn products(text: &str) -> Result<RawProducts, String> {
    let known: Result<RawProducts, serde::de::value::Error> = RawProducts::deserialize(text.into_deserializer());
    known.map_err(|e| e.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Checkpoint directory, .gguf file or Hub id (org/name[@revision])
    pub(crate) path: PathBuf,
    /// Say what this engine will do with it, or, of a float model, which recipes it loads
    #[arg(long, value_name = "ENGINE[@VERSION]")]
    pub(crate) target: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Checkpoint directory, .gguf file or Hub id (org/name[@revision])
    pub(crate) model: PathBuf,
    /// Output formats
    #[arg(long, value_delimiter = ',', required = true, value_name = "F[,G]")]
    pub(crate) format: Vec<String>,
    /// Output directory
    #[arg(short, long, required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// Engine that has to load the result
    #[arg(long, value_name = "ENGINE[@VERSION]")]
    pub(crate) target: Option<String>,
    /// Round again what a format does not hold as it is
    #[arg(long)]
    pub(crate) requantize: bool,
    /// Type of floats that were codes or blocks: float32, float16 or bfloat16; config.json then says so [default: what it says]
    #[arg(long, value_name = "TYPE", value_parser = float)]
    pub(crate) dtype: Option<FloatKind>,
    /// Replace what an earlier run wrote
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Say what would be written and what changes; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Worker threads; the result does not depend on it
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// A float type as configurations of models call it.
fn float(text: &str) -> Result<FloatKind, String> {
    let known = [FloatKind::F32, FloatKind::F16, FloatKind::Bf16];
    let found = known.into_iter().find(|k| k.name() == text);
    found.ok_or_else(|| format!("one of {} belongs here", known.map(FloatKind::name).join(", ")))
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// What a run wrote, or any checkpoint directory or .gguf file with `--against`
    pub(crate) path: PathBuf,
    /// Checkpoint directory or .gguf file that it should equal, value by value
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<PathBuf>,
    /// Say what this engine will do with it
    #[arg(long, value_name = "ENGINE[@VERSION]")]
    pub(crate) target: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// Checkpoint directory, .gguf file or Hub id (org/name[@revision])
    pub(crate) model: PathBuf,
    /// Text to continue
    #[arg(long)]
    pub(crate) prompt: String,
    /// Most tokens made
    #[arg(long, default_value_t = 64)]
    pub(crate) max_new_tokens: usize,
    /// 0 takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// Draw from the likeliest K tokens
    #[arg(long)]
    pub(crate) top_k: Option<usize>,
    /// Draw from the likeliest tokens that make up this probability
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Topology {
    #[command(subcommand)]
    pub(crate) command: TopologyCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopologyCommand {
    /// Prove or refute every declared symmetry, and that undeclared ones break
    Check {
        /// Checkpoint directory, .gguf file or Hub id; only its shape is used, the weights are drawn from the seed
        model: PathBuf,
        /// Seed of the weights
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Plugin {
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PluginCommand {
    /// Allow a plugin to be loaded, as it is now; runs none of it
    Add {
        /// Directory with its plugin.toml
        dir: PathBuf,
    },
    /// Forget a plugin; its files stay
    Remove {
        /// Its id
        id: String,
    },
    /// Show what is known of a plugin; runs none of it
    Info {
        /// Its id, or a directory with a plugin.toml
        plugin: String,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Write the hash of a library that was just built into its plugin.toml
    Pack {
        /// Directory with its plugin.toml
        dir: PathBuf,
        /// The library, copied into the directory
        #[arg(long)]
        library: PathBuf,
    },
    /// Start a plugin of your own, ready to build without a network
    New {
        /// Name of the plugin and of the directory that is made
        name: String,
        /// condition, round, split or transform
        #[arg(long, default_value = "round")]
        phase: String,
        /// rust or c
        #[arg(long, default_value = "rust")]
        lang: String,
    },
    /// Try a plugin on sites of every shape, each case in a process of its own
    Check {
        /// Directory with its plugin.toml
        dir: PathBuf,
        /// Seed of what is tried
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Only cases whose name matches this pattern
        #[arg(long, value_name = "PATTERN")]
        case: Option<String>,
        /// No cases whose name matches this pattern
        #[arg(long, value_name = "PATTERN")]
        skip: Option<String>,
        /// Run the cases in this process; a crash ends it
        #[arg(long)]
        in_process: bool,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// bash, elvish, fish, powershell or zsh
    pub(crate) shell: clap_complete::Shell,
}
