//! The product behind every linear layer, one window of 512 tokens: `2·t·o·i` flops, on one thread. The rate that all others are held to.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::numbers;
use qfw_core::numeric::{Onto, Transpose, gemm};

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let t = 512;
    for (o, i) in [(192, 576), (576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 4096), (4096, 11008)] {
        let (x, w, mut y) = (numbers(t * i), numbers(o * i), vec![0.0; t * o]);
        group.throughput(Throughput::Elements(2 * (t * o * i) as u64));
        for (name, transpose, stride) in [("weight", Transpose::Yes, i), ("transposed", Transpose::No, o)] {
            group.bench_function(BenchmarkId::new(name, format!("{o}x{i}")), |b| {
                b.iter(|| gemm((t, o, i), Onto::Replace, &mut y, o, &x, Transpose::No, i, &w, transpose, stride));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
