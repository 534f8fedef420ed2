//! Rounding with error feedback, int4 in groups of 64: `rows·cols·(cols−1)` flops of updates, on one thread. Greedy path following
//! takes twice that; what Qronos does before the sweep is three times that, in f64.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::{gram_matrix, numbers};
use qfw_core::numeric::{Alignment, AlignmentOptions, ColumnSweep, FactorOptions, Feedback, GreedyPath, SweepParams, inverse_factor};
use qfw_core::observer::ScaleRule;
use qfw_core::registry::Registry;
use qfw_core::scheme::{Convention, FloatKind, Granularity, Grid, ObserverChoice, QuantSpec, Reducer, ScaleForm, Timing, Zero};

fn bench(c: &mut Criterion) {
    let Ok((observer, options)) = Registry::builtin().and_then(|r| r.build_observer("minmax", &serde_json::json!({}))) else { return };
    let grid = Grid::Int { lo: -8, hi: 7, zero: Zero::None };
    let spec = QuantSpec {
        format: "int4".to_owned(),
        bits: 4,
        grid: grid.clone(),
        granularity: Granularity::group(64),
        symmetric: true,
        convention: Convention::HalfRange,
        observer: ObserverChoice { id: "minmax".to_owned(), options },
        timing: Timing::Static,
        reduce: Reducer::Mean,
        rescale: 1.0,
        min_threshold: 0.0,
        scale: ScaleForm::Float(FloatKind::F32),
    };
    // One thread, so that the rate compares with that of one matrix product.
    let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(1).build() else { return };
    let mut group = c.benchmark_group("column_sweep");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (rows, cols) in [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 4096), (256, 11008)] {
        let weight = numbers(rows * cols);
        let Ok(factor) = inverse_factor(&gram_matrix(cols), cols, &FactorOptions { damp: 0.01, by_diagonal: true }) else { continue };
        let Ok(params) = qfw_core::observer::fit(&*observer, &ScaleRule::of(&spec, 0.0), &weight, spec.granularity.layout(rows, cols))
        else {
            continue;
        };
        group.throughput(Throughput::Elements((rows * cols * (cols - 1)) as u64));
        let sweep = |feedback, block| {
            let sweep = ColumnSweep { grid: &grid, params: SweepParams::Fixed(&params), feedback, limit: None, block };
            pool.install(|| sweep.run(&weight).loss)
        };
        let shape = format!("{rows}x{cols}");
        for block in [64, 128, 256] {
            group.bench_function(BenchmarkId::new(format!("block{block}"), &shape), |b| {
                b.iter(|| sweep(Feedback::Inverse(&factor), block));
            });
        }
        // Two streams that are nearly the same.
        let gram = gram_matrix(cols);
        let cross: Vec<f32> = (0..cols * cols).map(|i| 0.9 * gram[(i / cols).max(i % cols) * cols + (i / cols).min(i % cols)]).collect();
        let Ok(path) = GreedyPath::new(&gram, &cross, cols, true) else { continue };
        group.bench_function(BenchmarkId::new("path128", &shape), |b| {
            b.iter(|| sweep(Feedback::Path { path: &path, original: &weight }, 128));
        });
        let Ok(alignment) = Alignment::new(&gram, &cross, cols, &AlignmentOptions { alpha: 1e-3, by_diagonal: true }) else { continue };
        group.bench_function(BenchmarkId::new("alignment", &shape), |b| b.iter(|| pool.install(|| alignment.start(&weight, &weight))));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
