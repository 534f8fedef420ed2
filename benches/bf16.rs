//! Products of operands rounded to bf16 beside those in f32, one window of 512 tokens, on one thread: the linear layers, `2·t·o·i` flops, and
//! the Gram matrix, `t·n·(n+1)`.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::numbers;
use qfw_core::numeric::{Bf16Panels, Bf16Unit, Onto, Transpose, gemm, gram, gram_bf16};

const T: usize = 512;

fn bench(c: &mut Criterion) {
    let Some(unit) = Bf16Unit::detect() else { return };
    let mut group = c.benchmark_group("linear");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (o, i) in [(576, 576), (1536, 576), (576, 1536), (4096, 4096), (11008, 4096)] {
        let (x, w, mut y) = (numbers(T * i), numbers(o * i), vec![0.0; T * o]);
        group.throughput(Throughput::Elements(2 * (T * o * i) as u64));
        let shape = format!("{o}x{i}");
        group.bench_function(BenchmarkId::new("f32", &shape), |b| {
            b.iter(|| gemm((T, o, i), Onto::Replace, &mut y, o, &x, Transpose::No, i, &w, Transpose::Yes, i));
        });
        let panels = Bf16Panels::new(unit, &w, (o, i));
        group.bench_function(BenchmarkId::new("bf16", &shape), |b| b.iter(|| panels.product(&x, T, Onto::Replace, &mut y)));
    }
    group.finish();
    let mut group = c.benchmark_group("gram");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for n in [576, 1536, 4096] {
        let (x, mut h) = (numbers(T * n), vec![0.0; n * n]);
        group.throughput(Throughput::Elements((T * n * (n + 1)) as u64));
        group.bench_function(BenchmarkId::new("f32", n), |b| b.iter(|| gram(&x, n, &mut h)));
        group.bench_function(BenchmarkId::new("bf16", n), |b| b.iter(|| gram_bf16(unit, &x, n, &mut h)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
