//! `xtask logits`: ids of the first windows of a text and our logits at their positions, for scripts that run a model elsewhere.
//!
//! Tensors of the file, for window `i`: `ids.i`, i64 `[T]`, and `logits.i`, f32 `[T, vocabulary]`.

use std::path::PathBuf;

use qfw_core::calibration::{Bos, DataFile, evaluation_windows, token_stream};
use qfw_core::registry::Registry;
use qfw_core::session::Opened;
use qfw_core::{Error, Result, evaluate};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

/// What to run, on what.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Checkpoint directory: of floats or in the native form
    model: PathBuf,
    /// Text
    #[arg(long)]
    data: PathBuf,
    /// Tokens per window
    #[arg(long)]
    seq_len: usize,
    /// Windows
    #[arg(long)]
    windows: usize,
    /// The safetensors file to write
    #[arg(short, long)]
    out: PathBuf,
}

/// Writes the file.
pub(crate) fn run(args: &Args) -> Result<()> {
    let opened = Opened::open(&args.model, &Registry::linked()?)?;
    let tokenizer = opened.tokenizer()?;
    let corpus = DataFile::local(&args.data, None).read(tokenizer.as_ref())?;
    let stream = token_stream(&corpus, tokenizer.as_ref(), Bos::None)?;
    let windows = evaluation_windows(&stream, args.seq_len, Some(args.windows), None)?;
    let mut tensors = Vec::new();
    for (i, ids) in windows.ids.iter().enumerate() {
        let logits = evaluate::logits(&opened.model, ids)?;
        let shape = logits.dims().to_vec();
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| i64::from(*id).to_le_bytes()).collect();
        tensors.push((format!("ids.{i}"), Dtype::I64, vec![ids.len()], bytes));
        tensors.push((format!("logits.{i}"), Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }
    let failed = |e: safetensors::SafeTensorError| Error::internal(format!("cannot write logits: {e}"));
    let views =
        tensors.iter().map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?)));
    serialize_to_file(views.collect::<Result<Vec<_>>>()?, None, &args.out).map_err(failed)
}
