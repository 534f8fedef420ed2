//! `xtask train-tiny`: the models that the binary carries for `qfw quickstart` and that the tests quantize.
//!
//! From one text file it makes a byte-level BPE tokenizer, a LLaMA and a GPT-2, all trained here, and writes them in the layout that
//! `from_pretrained` reads, beside a calibration excerpt (text the models were trained on), an evaluation excerpt (text they were
//! not), and a `README.md` that says where everything comes from. One seed fixes everything; both models train at the same time, one
//! thread each, so run it with `RAYON_NUM_THREADS=1 CANDLE_NUM_THREADS=1`.

#![allow(clippy::print_stderr, reason = "a developer's task reports its progress on stderr")]

#[cfg(test)]
mod agreement;
mod checkpoint;
mod corpus;
mod descent;
mod network;
mod operation;
mod provenance;
mod random;
mod tokenizer;

use std::path::{Path, PathBuf};

use qfw_core::{Error, Result};

use self::corpus::Corpus;
use self::descent::{Outcome, Schedule};
use self::network::{Family, Network};

/// Tokens of a training window, and the models' context.
const CONTEXT: usize = 256;
/// Entries of each vocabulary, special tokens included.
const VOCABULARY: usize = 1024;

/// What to train from and where to write.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The text: UTF-8, paragraphs separated by blank lines
    #[arg(long)]
    text: PathBuf,
    /// Folder to write `tiny-llama/`, `tiny-gpt2/`, `text/` and `README.md` into
    #[arg(long, default_value = "cli/assets")]
    out: PathBuf,
    /// Optimizer steps of each model
    #[arg(long, default_value_t = 2300)]
    steps: usize,
    /// Windows in a step
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3)]
    rate: f64,
    /// Seed of the initial weights and of the windows
    #[arg(long, default_value_t = 2)]
    seed: u64,
}

/// One trained model and what its training showed.
struct Trained {
    family: Family,
    outcome: Outcome,
}

/// Trains and writes everything.
///
/// # Errors
/// If the text cannot be read or is too short, a file cannot be written, or the loss stops being finite.
pub(crate) fn run(args: &Args) -> Result<()> {
    keep_the_heap();
    let bytes = std::fs::read(&args.text).map_err(|e| Error::io(&args.text, "read", e))?;
    let digest = blake3::hash(&bytes).to_string();
    let text = String::from_utf8(bytes).map_err(|e| Error::input("train-tiny::encoding", format!("the text is not UTF-8: {e}")))?;
    let corpus = Corpus::split(&text)?;
    write(&args.out.join("text/calibration.txt"), &corpus.calibration)?;
    write(&args.out.join("text/evaluation.txt"), &corpus.evaluation)?;
    let trained = std::thread::scope(|scope| {
        let handles = [Family::Llama, Family::Gpt2].map(|family| {
            let corpus = &corpus;
            // Back-propagation recurses over the graph.
            std::thread::Builder::new().stack_size(256 << 20).spawn_scoped(scope, move || train(args, corpus, family))
        });
        let mut trained = Vec::new();
        for handle in handles {
            let handle = handle.map_err(|e| Error::internal(format!("cannot start a training thread: {e}")))?;
            trained.push(handle.join().map_err(|_| Error::internal("a training thread panicked"))??);
        }
        Ok::<_, Error>(trained)
    })?;
    write(&args.out.join("README.md"), &provenance::readme(args, &digest, &corpus, &trained))
}

fn train(args: &Args, corpus: &Corpus, family: Family) -> Result<Trained> {
    let folder = args.out.join(family.folder());
    let tokenizer = tokenizer::train(&corpus.training, family)?;
    let stream = tokenizer::stream(&tokenizer, &corpus.training, family)?;
    let calibration = tokenizer::encode(&tokenizer, &corpus.calibration)?;
    let evaluation = tokenizer::encode(&tokenizer, &corpus.evaluation)?;
    eprintln!("{}: {} tokens to train on, {} to evaluate on", family.folder(), stream.len(), evaluation.len());
    let network = Network::new(family, args.seed)?;
    let schedule = Schedule { steps: args.steps, batch: args.batch, peak: args.rate, seed: args.seed };
    let outcome = descent::train(&network, &stream, &calibration, &evaluation, &schedule)?;
    tokenizer::save(&tokenizer, family, &folder)?;
    checkpoint::save(&network, &folder)?;
    Ok(Trained { family, outcome })
}

/// Writes a file and the folders above it.
fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
    }
    std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))
}

/// Lets glibc keep freed tensors instead of returning each to the kernel: three times the speed for a training step.
fn keep_the_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code, reason = "mallopt is C")]
    // SAFETY: `mallopt` only sets parameters of the allocator, takes its lock, and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}
