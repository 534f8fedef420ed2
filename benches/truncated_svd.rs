//! The leading singular triples of weights, by subspace iteration. The full factorization of 1024×1024 stands beside it.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use qfw_core::numeric::{Dense, truncated_svd, uniform_u64};

/// What weights look like to a factorization: noise, on which a few directions stand out.
fn weight(rows: usize, cols: usize) -> Vec<f32> {
    let draw = |key: &[u64]| (uniform_u64(key) >> 11) as f32 / (1u64 << 53) as f32 - 0.5;
    let side = |key: u64, i: usize| draw(&[key, i as u64]);
    (0..rows * cols)
        .map(|ij| {
            let (i, j) = (ij / cols, ij % cols);
            draw(&[0, ij as u64]) + (1..5).map(|k| 0.5 / k as f32 * side(2 * k, i) * side(2 * k + 1, j)).sum::<f32>()
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("truncated_svd");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for (rows, cols) in [(1536, 576), (4096, 4096), (4096, 11008)] {
        let w = weight(rows, cols);
        for rank in [32, 128] {
            let name = BenchmarkId::new(format!("rank {rank}"), format!("{rows}x{cols}"));
            group.bench_function(name, |b| b.iter(|| Dense::new(&w, (rows, cols)).and_then(|m| truncated_svd(&m, rank, 0))));
        }
    }
    let w = weight(1024, 1024);
    group.bench_function("full 1024x1024", |b| b.iter(|| Dense::new(&w, (1024, 1024)).and_then(|m| truncated_svd(&m, 1024, 0))));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
