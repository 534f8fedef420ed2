//! `xtask roofline`: the arithmetic of a GPTQ run, how fast this machine does each kind of it, and how near the program comes.
//!
//! ```text
//! collect    every linear of a block but those that read its last port, causal attention    of every block, 2·tokens·o·i
//! pass on    every linear, causal attention                                                 of every block but the last
//! Gram       tokens·n·(n + 1) for each port                                                 of every block
//! factor     ⅔·n³ for each port, in f64
//! sweep      o·i·(i − 1) for each linear, in f32
//! ```
//!
//! That is what `sequence = "block"` and `propagate = "quantized"` ask for; nothing that approximates counts as less. Rates are those of
//! this project's own products, one on each thread, in the same run. The floor is what that arithmetic takes at these rates: reading,
//! norms, softmax, rounding and writing are not in it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the table is this task's output, the progress a developer's")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use qfw_core::checkpoint::open_tensors;
use qfw_core::model::Dims;
use qfw_core::numeric::{Bf16Panels, Bf16Unit, FactorOptions, Onto, Transpose, gemm, inverse_factor};
use qfw_core::topology::{Port, Topology};
use qfw_core::{Error, Result};
use qfw_tests::parity;

use crate::program::{apply, build};

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory with config.json and *.safetensors
    model: PathBuf,
    /// Safetensors file with `input_ids` [samples, length] to calibrate on
    #[arg(long)]
    ids: PathBuf,
    /// What operands of products over calibration data are rounded to: f32 (nothing) or bf16
    #[arg(long, default_value = "bf16")]
    products: String,
    /// Threads
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// How a kind of arithmetic is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Products over calibration data.
    Data,
    /// f32 products.
    Single,
    /// The factor, in f64.
    Double,
}

/// Counts, measures and runs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let unit = match args.products.as_str() {
        "f32" => None,
        "bf16" => Some(
            Bf16Unit::detect()
                .ok_or_else(|| Error::input("roofline::bf16", "this CPU has no bf16 products").hint("measure `--products f32`"))?,
        ),
        other => return Err(Error::config("roofline::products", format!("unknown products `{other}`")).hint("f32 or bf16")),
    };
    let model = parity::open(&args.model)?;
    let windows: Vec<u64> = parity::ids(&*open_tensors(&args.ids)?)?.iter().map(|ids| ids.len() as u64).collect();
    let work = work(&model.topology, &model.dims, &windows);
    eprintln!("running qfw");
    let dir = tempfile::tempdir().map_err(|e| Error::io(&std::env::temp_dir(), "write in", e))?;
    let settings = [format!("harness.products={}", args.products), format!("harness.threads={}", args.threads)];
    let took = apply(&build()?, &args.model, &args.ids, RECIPE, &settings, &dir.path().join("out"))?;
    eprintln!("measuring rates");
    let rates = rates(args, &model.dims, unit);
    println!("| work | GFLOP | GFLOP/s of a thread | CPU seconds |\n|---|---|---|---|");
    let mut floor = 0.0;
    for (name, kind, flops) in work {
        let rate = rates[&kind];
        floor += flops / rate;
        println!("| {name} | {:.1} | {:.0} | {:.2} |", flops / 1e9, rate / 1e9, flops / rate);
    }
    println!("| floor | | | {floor:.2} |");
    println!("| `qfw apply`, whole command, {:.1} s | | | {:.2} |", took.wall_seconds, took.cpu_seconds);
    println!("\n{:.2} times the floor.", took.cpu_seconds / floor);
    Ok(())
}

/// `(name, kind, floating-point operations)` of a run over `windows` of so many tokens.
fn work(topology: &Topology, dims: &Dims, windows: &[u64]) -> Vec<(&'static str, Kind, f64)> {
    let tokens = windows.iter().sum::<u64>() as f64;
    // Two products of heads with heads, of every token with itself and those before it.
    let attention = windows.iter().map(|t| 4.0 * (t * (t + 1) / 2) as f64).sum::<f64>() * (dims.heads * dims.head_dim) as f64;
    let mut flops = BTreeMap::new();
    for block in 0..topology.blocks {
        let linears = || topology.linears.iter().filter(|l| l.site.block == Some(block));
        let last = linears().map(|l| l.input).max();
        let ports: BTreeMap<Port, usize> = linears().map(|l| (l.input, l.shape.1)).collect();
        let products = |all: bool| {
            let sizes = linears().filter(|l| all || Some(l.input) != last).map(|l| (l.shape.0 * l.shape.1) as f64);
            2.0 * tokens * sizes.sum::<f64>() + attention
        };
        let mut add = |name, n: f64| *flops.entry(name).or_insert(0.0) += n;
        add("collect", products(false));
        if block + 1 < topology.blocks {
            add("pass on", products(true));
        }
        add("Gram", ports.values().map(|n| tokens * (n * (n + 1)) as f64).sum());
        add("factor", ports.values().map(|n| 2.0 / 3.0 * (*n as f64).powi(3)).sum());
        add("sweep", linears().map(|l| l.shape.0 as f64 * l.shape.1 as f64 * (l.shape.1 - 1) as f64).sum());
    }
    let kinds = [("collect", Kind::Data), ("pass on", Kind::Data), ("Gram", Kind::Data), ("factor", Kind::Double), ("sweep", Kind::Single)];
    kinds.into_iter().filter_map(|(name, kind)| Some((name, kind, *flops.get(name)?))).collect()
}

/// Operations a second of one thread, while all are at it: of a window through the widest linear, and of a factor as wide as the stream.
fn rates(args: &Args, dims: &Dims, unit: Option<Bf16Unit>) -> BTreeMap<Kind, f64> {
    const T: usize = 512;
    let (o, i) = (dims.ffn, dims.hidden);
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let (x, w) = (wave(T * i), wave(o * i));
    let flops = (2 * T * o * i) as f64;
    let single = rate(args.threads, flops, || {
        let mut y = vec![0.0; T * o];
        let (x, w) = (&x, &w);
        move || gemm((T, o, i), Onto::Replace, &mut y, o, x, Transpose::No, i, w, Transpose::Yes, i)
    });
    let data = unit.map_or(single, |unit| {
        let panels = Bf16Panels::new(unit, &w, (o, i));
        rate(args.threads, flops, || {
            let mut y = vec![0.0; T * o];
            let (x, panels) = (&x, &panels);
            move || panels.product(x, T, Onto::Replace, &mut y)
        })
    });
    let gram: Vec<f32> = (0..i * i).map(|at| if at / i == at % i { 2.0 } else { 0.5 / i as f32 }).collect();
    let options = FactorOptions { damp: 0.01, by_diagonal: false };
    let double = rate(args.threads, 2.0 / 3.0 * (i as f64).powi(3), || {
        let (gram, options) = (&gram, &options);
        move || drop(black_box(inverse_factor(gram, i, options)))
    });
    BTreeMap::from([(Kind::Data, data), (Kind::Single, single), (Kind::Double, double)])
}

/// `flops` over the median time of what `make` makes, on each of `threads` threads at once; the mean of their rates.
fn rate<F: FnMut()>(threads: usize, flops: f64, make: impl Fn() -> F + Sync) -> f64 {
    const RUNS: usize = 25;
    let medians: Vec<f64> = std::thread::scope(|scope| {
        let one = || {
            let mut work = make();
            let mut times: Vec<f64> = (0..RUNS)
                .map(|_| {
                    let start = Instant::now();
                    work();
                    start.elapsed().as_secs_f64()
                })
                .collect();
            times.sort_by(f64::total_cmp);
            times[RUNS / 2]
        };
        let running: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        running.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    medians.iter().map(|seconds| flops / seconds).sum::<f64>() / medians.len().max(1) as f64
}

/// Symmetric W4 in groups of 64, as the peers are timed.
const RECIPE: &str = "\
schema = 1
[scheme]
weights = { format = 'int4', granularity = { group = 64 }, convention = 'half-range', range = 'minmax' }
[harness]
sequence = 'block'
propagate = 'quantized'
[[pass]]
algo = 'gptq'
options = { act-order = 'static', damp = 0.01 }
";

#[cfg(test)]
mod tests {
    use super::*;

    /// One block of the tiny LLaMA, counted by hand: hidden 192, feed-forward 512, and so on, is what its topology says as well.
    #[test]
    fn work_is_counted_as_the_table_says() {
        let model = parity::open(&qfw_tests::workspace::root().join("cli/assets/tiny-llama")).unwrap();
        let dims = &model.dims;
        let (h, f, q, kv) =
            (dims.hidden as f64, dims.ffn as f64, (dims.heads * dims.head_dim) as f64, (dims.kv_heads * dims.head_dim) as f64);
        let blocks = dims.blocks as f64;
        let all: BTreeMap<&str, f64> = work(&model.topology, dims, &[3, 5]).into_iter().map(|(name, _, n)| (name, n)).collect();
        let attention = 4.0 * q * (6.0 + 15.0);
        let (before, whole) = (h * (q + 2.0 * kv) + q * h + 2.0 * h * f, h * (q + 2.0 * kv) + q * h + 3.0 * h * f);
        assert!((all["collect"] - blocks * (16.0 * before + attention)).abs() < 1.0);
        assert!((all["pass on"] - (blocks - 1.0) * (16.0 * whole + attention)).abs() < 1.0);
        let ports = [h, q, h, f];
        assert!((all["Gram"] - blocks * ports.iter().map(|n| 8.0 * n * (n + 1.0)).sum::<f64>()).abs() < 1.0);
        assert!((all["factor"] - blocks * ports.iter().map(|n| 2.0 / 3.0 * n.powi(3)).sum::<f64>()).abs() < 10.0);
        let sweep = (q + 2.0 * kv + 2.0 * f) * h * (h - 1.0) + h * q * (q - 1.0) + h * f * (f - 1.0);
        assert!((all["sweep"] - blocks * sweep).abs() < 10.0);
    }
}
