//! Damped inverse factor: Cholesky and triangular inverse, `n³/3` flops each, in f64.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::gram_matrix;
use qfw_core::numeric::{FactorOptions, inverse_factor};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("inverse_factor");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for n in [576, 2048, 4096, 11008] {
        let h = gram_matrix(n);
        group.throughput(Throughput::Elements((2 * n * n * n / 3) as u64));
        for by_diagonal in [false, true] {
            let options = FactorOptions { damp: 0.01, by_diagonal };
            let name = if by_diagonal { "by-diagonal" } else { "natural" };
            group.bench_function(BenchmarkId::new(name, n), |b| b.iter(|| inverse_factor(&h, n, &options)));
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
