//! `xtask parity`: our logits of a real model against those of transformers.

#![allow(clippy::print_stdout, reason = "the verdict is this task's output")]

use std::path::{Path, PathBuf};
use std::process::Command;

use qfw_core::checkpoint::open_tensors;
use qfw_core::{Error, Result, evaluate};
use qfw_tests::parity::{TOLERANCE, distance, ids, open, values};
use qfw_tests::workspace;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// Tokens compared.
const TOKENS: usize = 64;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with config.json and *.safetensors
    model: PathBuf,
    /// A Python that has torch, transformers and safetensors
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Safetensors file with `input_ids`; otherwise ids spread over the vocabulary
    #[arg(long)]
    ids: Option<PathBuf>,
}

/// Runs both and prints the distance.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = open(&args.model)?;
    let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
    let given = match &args.ids {
        Some(file) => file.clone(),
        None => spread(model.dims.vocab, &dir.path().join("ids.safetensors"))?,
    };
    let out = dir.path().join("expected.safetensors");
    reference(args, &given, &out)?;

    let expected = open_tensors(&out)?;
    let mut logits = Vec::new();
    for ids in ids(&*expected)? {
        logits.extend(evaluate::logits(&model, &ids)?.flatten_all()?.to_vec1::<f32>()?);
    }
    let distance = distance(&logits, &values(&*expected, "logits")?);
    let verdict = if distance <= TOLERANCE { "equal" } else { "different" };
    println!("{}: max|Δ|/max|logit| = {distance:.2e} over {TOKENS} tokens: {verdict} (limit {TOLERANCE:.0e})", args.model.display());
    if distance <= TOLERANCE {
        return Ok(());
    }
    Err(Error::numeric("parity::different", format!("the logits of `{}` are not those of transformers", args.model.display()))
        .hint("add a fixture for the option that differs: tests/fixtures/models/README.md"))
}

/// Ids from all over the vocabulary, written to `file`.
fn spread(vocab: usize, file: &Path) -> Result<PathBuf> {
    // A prime step visits other ids at every token, in no order a model would know.
    const STEP: usize = 7919;
    let bytes: Vec<u8> = (1..=TOKENS).flat_map(|i| ((i * STEP % vocab.max(1)) as i64).to_le_bytes()).collect();
    let made = |e: safetensors::SafeTensorError| Error::internal(format!("cannot write token ids: {e}"));
    let view = TensorView::new(Dtype::I64, vec![TOKENS], &bytes).map_err(made)?;
    serialize_to_file([("input_ids", view)], None, file).map_err(made)?;
    Ok(file.to_path_buf())
}

/// transformers' logits, written to `out`.
fn reference(args: &Args, ids: &Path, out: &Path) -> Result<()> {
    let script = workspace::root().join("tests/fixtures/parity.py");
    let status = Command::new(&args.python)
        .arg(script)
        .arg(&args.model)
        .arg(out)
        .arg("--ids")
        .arg(ids)
        .args(["--tokens", &TOKENS.to_string(), "--windows", "1"])
        .status()
        .map_err(|e| Error::io(&args.python, "run", e))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::input("parity::reference", format!("`{}` could not run the model in transformers: {status}", args.python.display()))
        .hint("what it printed is above; it needs torch, transformers and safetensors (`--python PATH` names another one)"))
}
