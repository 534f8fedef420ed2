//! `xtask compare`: qfw and llm-compressor, or AutoRound, side by side, with the same recipe on the same token ids.
//!
//! The peer is timed over its quantization step alone; qfw is timed as a whole process, from start to the finished checkpoint. Both
//! results are measured by `qfw eval`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is this task's output, the progress a developer's")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qfw_core::{Error, Result};
use qfw_tests::workspace;
use serde::Deserialize;
use serde_json::Value;

use crate::program::{Evaluation, Took, apply, build, children, paired};

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with config.json and *.safetensors
    model: PathBuf,
    /// Safetensors file with `input_ids` [samples, length] to calibrate on
    #[arg(long)]
    ids: PathBuf,
    /// Data to measure perplexity on, as for `qfw eval`; left out, perplexity is not measured
    #[arg(long)]
    eval: Option<PathBuf>,
    /// Tokens per window of the evaluation
    #[arg(long, default_value_t = 512)]
    seq_len: usize,
    /// Windows of the evaluation
    #[arg(long, default_value_t = 64)]
    max_windows: usize,
    /// rtn or gptq (int4 weights); w8a8 (int8 weights per channel and inputs per token), fp8-dynamic (the same in fp8) or kv8 (keys and
    /// values in fp8 with a fixed scale), rounded to nearest; awq (int4 weights, rounded to nearest), awq-module (the same, with qfw too
    /// comparing what whole modules put out), w4a4 (int4 weights per channel and inputs per token, rotated and rounded by gptq),
    /// w4a4-brevitas (the same, the peer being Brevitas, whose losses are of its own simulation), or auto-round (integers learned a block at a
    /// time; the peer is AutoRound)
    #[arg(long, default_value = "gptq")]
    method: String,
    /// Bits of weights, for auto-round
    #[arg(long, default_value_t = 4)]
    bits: u32,
    /// Steps per block, for auto-round
    #[arg(long, default_value_t = 50)]
    iters: usize,
    /// Windows of a step, for auto-round
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Input channels per group, of int4 weights
    #[arg(long, default_value_t = 64)]
    group: u32,
    /// Give int4 weights a zero point
    #[arg(long)]
    affine: bool,
    /// What qfw rounds the operands of its products to: f32 (as they are), bf16 or auto
    #[arg(long, default_value = "auto")]
    products: String,
    /// A Python that has llmcompressor, auto-round or brevitas
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Run qfw alone
    #[arg(long)]
    no_peer: bool,
}

/// What one side took.
#[derive(Deserialize)]
struct Cost {
    peer: String,
    wall_seconds: f64,
    cpu_seconds: f64,
    peak_rss_bytes: u64,
    /// Of a peer that scores by itself what it cannot write down.
    #[serde(default)]
    windows_nll: Option<Vec<f64>>,
}

/// Runs both and prints the table.
pub(crate) fn run(args: &Args) -> Result<()> {
    let recipe = recipe(args)?;
    let qfw = build()?;
    let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
    let mut rows = Vec::new();
    if !args.no_peer {
        eprintln!("running {}", name(args));
        let out = dir.path().join("peer");
        let cost = peer(args, &out)?;
        let measured = match &cost.windows_nll {
            Some(windows_nll) => Measured::of(windows_nll),
            None => perplexity(args, &qfw, &out)?,
        };
        rows.push((cost, measured));
    }
    eprintln!("running qfw");
    let out = dir.path().join("qfw");
    rows.push((ours(args, &recipe, &qfw, &out)?, perplexity(args, &qfw, &out)?));
    print(args, &recipe, &rows);
    Ok(())
}

/// AWQ by what whole modules put out.
const AWQ_MODULE: &str = "awq-module";

/// The method whose peer is another one.
const AUTO_ROUND: &str = "auto-round";

/// The same recipe as `w4a4`, beside another peer.
const W4A4_BREVITAS: &str = "w4a4-brevitas";

/// The peer's package.
fn name(args: &Args) -> &'static str {
    match args.method.as_str() {
        AUTO_ROUND => AUTO_ROUND,
        W4A4_BREVITAS => "brevitas",
        _ => "llmcompressor",
    }
}

fn peer(args: &Args, out: &Path) -> Result<Cost> {
    let mut command = Command::new(&args.python);
    let mut script = |file: &str| {
        command.arg(workspace::root().join("tests/peers").join(file)).arg(&args.model).arg(&args.ids);
    };
    match args.method.as_str() {
        AUTO_ROUND => {
            script("auto_round.py");
            command.arg(out).args([args.bits.to_string(), args.group.to_string(), args.iters.to_string(), args.batch.to_string()]);
        }
        W4A4_BREVITAS => {
            script("brevitas_llm.py");
            command.arg(args.eval.as_deref().unwrap_or(Path::new("-"))).args([args.seq_len.to_string(), args.max_windows.to_string()]);
        }
        method => {
            script("llm_compressor.py");
            // The peer's AWQ always compares modules.
            let method = if method == AWQ_MODULE { "awq" } else { method };
            command.arg(out).arg(method).arg(args.group.to_string()).arg(if args.affine { "affine" } else { "symmetric" });
        }
    }
    let output = command.stderr(Stdio::piped()).output().map_err(|e| Error::io(&args.python, "run", e))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let cost = text.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    cost.filter(|_| output.status.success()).ok_or_else(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
        Error::input(
            "compare::peer",
            format!("`{}` could not run {}: {}; it said: {last}", args.python.display(), name(args), output.status),
        )
        .hint(format!("it needs the package {} (`--python PATH` names another Python), or give `--no-peer`", name(args)))
    })
}

/// The `run.toml` of a method.
fn recipe(args: &Args) -> Result<String> {
    let int4 = format!(
        "weights = {{ format = 'int{}', granularity = {{ group = {} }}, symmetric = {}, convention = 'half-range', range = 'minmax' }}",
        args.bits, args.group, !args.affine
    );
    let fp8 = "format = 'fp8', timing = 'static', granularity = 'tensor', range = 'minmax'";
    let learned = format!("algo = 'learned-round'\noptions = {{ iters = {}, batch-size = {} }}", args.iters, args.batch);
    let (scheme, pass) = match args.method.as_str() {
        _ if args.bits != 4 && args.method != AUTO_ROUND => {
            return Err(Error::config("compare::bits", format!("`--bits` does nothing to `{}`", args.method)).hint("leave it out"));
        }
        AUTO_ROUND if args.affine => {
            return Err(Error::config("compare::affine", "`--affine` does nothing to `auto-round`".to_owned()).hint("leave it out"));
        }
        AUTO_ROUND => (format!("{int4}\n[output]\nformat = ['qfw']"), &*learned),
        "rtn" => (int4, "algo = 'rtn'"),
        "gptq" => (int4, "algo = 'gptq'\noptions = { act-order = 'static', damp = 0.01 }"),
        "awq" => (int4, "algo = 'awq'\n[[pass]]\nalgo = 'rtn'"),
        AWQ_MODULE => (int4, "algo = 'awq'\noptions = { loss = 'module' }\n[[pass]]\nalgo = 'rtn'"),
        "w4a4" | W4A4_BREVITAS => (
            "weights = { format = 'int4', granularity = 'channel', convention = 'half-range' }\n\
             inputs = { format = 'int4', convention = 'half-range', granularity = 'token', timing = 'dynamic' }\n\
             [output]\nformat = ['qfw']"
                .to_owned(),
            "algo = 'quarot'\n[[pass]]\nalgo = 'gptq'\noptions = { act-order = 'static', damp = 0.01 }",
        ),
        "w8a8" => (eight_bits("int8", "convention = 'half-range', "), "algo = 'rtn'"),
        "fp8-dynamic" => (eight_bits("fp8", ""), "algo = 'rtn'"),
        "kv8" => (format!("weights = 'keep'\nkeys = {{ {fp8} }}\nvalues = {{ {fp8} }}"), ""),
        other => {
            return Err(Error::config("compare::method", format!("unknown method `{other}`"))
                .hint("methods: rtn, gptq, awq, awq-module, w4a4, w4a4-brevitas, w8a8, fp8-dynamic, kv8, auto-round"));
        }
    };
    let pass = if pass.is_empty() { String::new() } else { format!("[[pass]]\n{pass}\n") };
    Ok(format!("schema = 1\n[scheme]\n{scheme}\n{pass}"))
}

fn eight_bits(format: &str, more: &str) -> String {
    format!(
        "weights = {{ format = '{format}', granularity = 'channel', {more}range = 'minmax' }}\n\
         inputs = {{ format = '{format}', {more}granularity = 'token', timing = 'dynamic' }}"
    )
}

fn ours(args: &Args, recipe: &str, qfw: &Path, out: &Path) -> Result<Cost> {
    let took = apply(qfw, &args.model, &args.ids, recipe, &[format!("harness.products={}", args.products)], out)?;
    // The largest child so far is this one, unless the peer (or a compiler) was larger: the run's own report says it exactly.
    let peer = format!("qfw {}, {} products", env!("CARGO_PKG_VERSION"), args.products);
    let Took { cpu_seconds, wall_seconds } = took;
    Ok(Cost { peer, wall_seconds, cpu_seconds, peak_rss_bytes: logged_peak(out).unwrap_or_else(|| children().1), windows_nll: None })
}

/// Peak memory as the run itself logged it.
fn logged_peak(out: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(out.join("qfw-run.jsonl")).ok()?;
    text.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()?["peak_rss_bytes"].as_u64())
}

/// What an evaluation gave.
struct Measured {
    perplexity: f64,
    stderr: f64,
    windows_nll: Vec<f64>,
}

impl Measured {
    /// What losses in nats per token amount to; none of none.
    fn of(windows_nll: &[f64]) -> Option<Self> {
        if windows_nll.is_empty() {
            return None;
        }
        let (mean, error) = paired(windows_nll, &vec![0.0; windows_nll.len()]);
        Some(Self { perplexity: mean.exp(), stderr: mean.exp() * error, windows_nll: windows_nll.to_vec() })
    }
}

/// Perplexity, where data for it was given.
fn perplexity(args: &Args, qfw: &Path, model: &Path) -> Result<Option<Measured>> {
    let Some(data) = args.eval.clone() else { return Ok(None) };
    let value = Evaluation { data, seq_len: args.seq_len, max_windows: args.max_windows, products: "f32".to_owned() }.of(qfw, model)?;
    let windows: Option<Vec<f64>> = value["windows_nll"].as_array().and_then(|a| a.iter().map(Value::as_f64).collect());
    Ok(value["perplexity"]
        .as_f64()
        .zip(value["perplexity_stderr"].as_f64())
        .zip(windows)
        .map(|((perplexity, stderr), windows_nll)| Measured { perplexity, stderr, windows_nll }))
}

fn print(args: &Args, recipe: &str, rows: &[(Cost, Option<Measured>)]) {
    println!("{} on {}\n\n{recipe}", args.method, args.model.display());
    println!("{:<28} {:>9} {:>9} {:>11}  perplexity", "", "wall s", "CPU s", "peak MB");
    for (cost, measured) in rows {
        let perplexity = measured.as_ref().map_or_else(|| "not measured".to_owned(), |m| format!("{:.3} ± {:.3}", m.perplexity, m.stderr));
        let megabytes = cost.peak_rss_bytes as f64 / 1e6;
        println!("{:<28} {:>9.1} {:>9.1} {megabytes:>11.0}  {perplexity}", cost.peer, cost.wall_seconds, cost.cpu_seconds);
    }
    if let [(peer, theirs), (ours, mine)] = rows {
        let ratio = |a: f64, b: f64| a / b;
        let difference = mine.as_ref().zip(theirs.as_ref()).map_or_else(String::new, |(a, b)| {
            let (mean, error) = paired(&a.windows_nll, &b.windows_nll);
            format!("{mean:+.4} ± {error:.4} nats per token, paired")
        });
        println!(
            "qfw / peer                   {:>9.2} {:>9.2} {:>11.2}  {difference}",
            ratio(ours.wall_seconds, peer.wall_seconds),
            ratio(ours.cpu_seconds, peer.cpu_seconds),
            ratio(ours.peak_rss_bytes as f64, peer.peak_rss_bytes as f64)
        );
    }
}
