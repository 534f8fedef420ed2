//! Gram accumulation of one window of 512 tokens: `t·n·(n+1)` flops, the lower triangle of the product.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::numbers;
use qfw_core::numeric::gram;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("gram");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for n in [576, 2048, 4096, 11008] {
        let t = 512;
        let (x, mut h) = (numbers(t * n), vec![0.0; n * n]);
        group.throughput(Throughput::Elements((t * n * (n + 1)) as u64));
        group.bench_function(BenchmarkId::from_parameter(n), |b| b.iter(|| gram(&x, n, &mut h)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
