//! Fast Hadamard transforms of the rows of a matrix, in place, on one thread and on all, beside reading and writing the same numbers once and
//! the product with the dense matrix.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::numbers;
use qfw_core::numeric::{Hadamard, Onto, Transpose, gemm};

/// Numbers in the matrix, at most.
const MOST: usize = 1 << 24;

fn bench(c: &mut Criterion) {
    let Ok(one) = rayon::ThreadPoolBuilder::new().num_threads(1).build() else { return };
    let mut group = c.benchmark_group("hadamard");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for n in [512, 576, 1024, 1536, 4096, 11008, 14336] {
        let rows = (MOST / n).min(4096);
        let Ok(h) = Hadamard::new(n) else { return };
        let mut x = numbers(rows * n);
        group.throughput(Throughput::Elements((rows * n) as u64));
        group.bench_function(BenchmarkId::new("once over the numbers", n), |b| b.iter(|| x.iter_mut().for_each(|x| *x = -*x)));
        let mut copy = x.clone();
        group.bench_function(BenchmarkId::new("copy", n), |b| b.iter(|| copy.copy_from_slice(&x)));
        group.bench_function(BenchmarkId::new("rows, one thread", n), |b| b.iter(|| one.install(|| h.rows(&mut x))));
        group.bench_function(BenchmarkId::new("rows", n), |b| b.iter(|| h.rows(&mut x)));
        group.bench_function(BenchmarkId::new("columns, one thread", n), |b| b.iter(|| one.install(|| h.columns(&mut x, rows))));
        // A sixteenth of the rows: the rate says enough.
        let some = rows / 16;
        let (m, mut y) = (h.matrix().iter().map(|x| *x as f32).collect::<Vec<f32>>(), vec![0.0; some * n]);
        group.throughput(Throughput::Elements((some * n) as u64));
        group.bench_function(BenchmarkId::new("dense product, a 16th of the rows", n), |b| {
            b.iter(|| gemm((some, n, n), Onto::Replace, &mut y, n, &x, Transpose::No, n, &m, Transpose::No, n));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
