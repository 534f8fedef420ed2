//! Products of operands rounded to bf16 beside those in f32, one window of 512 tokens, on one thread: the linear layers, `2·t·o·i` flops,
//! the Gram matrix, `t·n·(n+1)`, and the gradients of weights, `2·t·o·i`. Results begin at a cache line, as with `qfw_core::CacheLines`, and
//! once between two of them.
#![allow(missing_docs, reason = "criterion's macros make an undocumented function")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use qfw_benches::numbers;
use qfw_core::numeric::{Bf16Panels, Bf16Unit, Onto, Transpose, across_bf16, gemm, gram, gram_bf16};

const T: usize = 512;
/// Numbers in a cache line.
const LINE: usize = 16;

fn bench(c: &mut Criterion) {
    let Some(unit) = Bf16Unit::detect() else { return };
    let mut group = c.benchmark_group("linear");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (o, i) in [(576, 576), (1536, 576), (576, 1536), (4096, 4096), (11008, 4096)] {
        let (x, w, mut room) = (numbers(T * i), numbers(o * i), vec![0.0; T * o + 2 * LINE]);
        let line = room.as_ptr().align_offset(4 * LINE);
        let y = &mut room[line..][..T * o];
        group.throughput(Throughput::Elements(2 * (T * o * i) as u64));
        let shape = format!("{o}x{i}");
        group.bench_function(BenchmarkId::new("f32", &shape), |b| {
            b.iter(|| gemm((T, o, i), Onto::Replace, y, o, &x, Transpose::No, i, &w, Transpose::Yes, i));
        });
        let panels = Bf16Panels::new(unit, &w, (o, i));
        group.bench_function(BenchmarkId::new("bf16", &shape), |b| b.iter(|| panels.product(&x, T, Onto::Replace, y)));
        let y = &mut room[line + LINE / 4..][..T * o];
        group.bench_function(BenchmarkId::new("bf16 between lines", &shape), |b| b.iter(|| panels.product(&x, T, Onto::Replace, y)));
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
    let mut group = c.benchmark_group("across");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (o, i) in [(576, 576), (1536, 576), (576, 1536), (4096, 4096)] {
        let (g, x, mut w) = (numbers(T * o), numbers(T * i), vec![0.0; o * i]);
        group.throughput(Throughput::Elements(2 * (T * o * i) as u64));
        let shape = format!("{o}x{i}");
        group.bench_function(BenchmarkId::new("f32", &shape), |b| {
            b.iter(|| gemm((o, i, T), Onto::Replace, &mut w, i, &g, Transpose::Yes, o, &x, Transpose::No, i));
        });
        group.bench_function(BenchmarkId::new("bf16", &shape), |b| b.iter(|| across_bf16(unit, (&g, o), (&x, i), &mut w)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
