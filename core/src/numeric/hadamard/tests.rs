use super::*;

fn numbers(n: usize) -> Vec<f64> {
    (0..n as u64).map(|i| (uniform_u64(&[9, i]) >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect()
}

/// `x·M` by the definition, or `x·Mᵀ`.
fn product(x: &[f64], m: &[f64], n: usize, transposed: bool) -> Vec<f64> {
    let entry = |i: usize, j: usize| if transposed { m[j * n + i] } else { m[i * n + j] };
    x.chunks_exact(n).flat_map(|v| (0..n).map(move |j| (0..n).map(|i| v[i] * entry(i, j)).sum())).collect()
}

fn close(a: &[f64], b: &[f64], bound: f64) {
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(a.len() == b.len() && worst <= bound, "{worst}");
}

/// Short and long blocks, one to many passes, all constructions, with signs and without.
const SIZES: [usize; 20] = [1, 2, 4, 8, 12, 16, 20, 32, 36, 64, 92, 96, 128, 156, 192, 256, 448, 512, 576, 688];

#[test]
fn the_verbs_are_products_with_the_matrix() {
    for n in SIZES {
        for h in [Hadamard::new(n).unwrap(), Hadamard::randomized(n, 5).unwrap()] {
            let m = h.matrix();
            let x = numbers(3 * n);
            for transposed in [false, true] {
                let (mut rows, mut columns) = (x.clone(), vec![0.0; 3 * n]);
                (0..3 * n).for_each(|i| columns[i % n * 3 + i / n] = x[i]);
                if transposed {
                    h.rows_transposed(&mut rows);
                    h.columns_transposed(&mut columns, 3);
                } else {
                    h.rows(&mut rows);
                    h.columns(&mut columns, 3);
                }
                close(&rows, &product(&x, &m, n, transposed), 1e-12);
                assert!((0..3 * n).all(|i| columns[i % n * 3 + i / n].to_bits() == rows[i].to_bits()), "columns of {n}");
            }
        }
    }
}

#[test]
fn the_matrix_is_orthogonal_and_symmetric_where_it_is_sylvesters() {
    for n in [12, 16, 28, 40, 48, 92] {
        let m = Hadamard::randomized(n, 1).unwrap().matrix();
        let squared = product(&m, &m, n, true);
        close(&squared, &(0..n * n).map(|ij| f64::from(u8::from(ij / n == ij % n))).collect::<Vec<_>>(), 1e-12);
    }
    let m = Hadamard::new(64).unwrap().matrix();
    assert!((0..64 * 64).all(|ij| m[ij] == m[ij % 64 * 64 + ij / 64]));
}

#[test]
fn the_transpose_undoes_it() {
    for n in [1536, 4096, 4864, 8192, 11008, 14336, 32768] {
        let h = Hadamard::randomized(n, 11).unwrap();
        let x = numbers(2 * n);
        let mut y = x.clone();
        h.rows(&mut y);
        assert!(x.iter().zip(&y).any(|(x, y)| (x - y).abs() > 0.1));
        let energy = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        assert!((energy(&y) / energy(&x) - 1.0).abs() < 1e-12);
        h.rows_transposed(&mut y);
        close(&y, &x, 1e-12);
        h.columns(&mut y, 2);
        h.columns_transposed(&mut y, 2);
        close(&y, &x, 1e-12);
    }
}

#[test]
fn threads_and_neighbours_leave_the_bits_alone() {
    for (n, rows) in [(36, 5000), (576, 301), (1024, 200), (11008, 17)] {
        let h = Hadamard::randomized(n, 2).unwrap();
        let x: Vec<f32> = numbers(rows * n).into_iter().map(|x| x as f32).collect();
        let mut alone = x.clone();
        alone.chunks_exact_mut(n).for_each(|row| h.rows(row));
        let mut columns = None;
        for threads in [1, 2, 3, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (mut together, mut across) = (x.clone(), x.clone());
            pool.install(|| {
                h.rows(&mut together);
                h.columns(&mut across, rows);
            });
            assert!(alone == together, "{n} on {threads} threads");
            assert!(*columns.get_or_insert_with(|| across.clone()) == across, "columns of {n} on {threads} threads");
        }
    }
}

/// Without vector instructions, and with those of another level, the bits are the same.
#[test]
fn instruction_sets_leave_the_bits_alone() {
    use crate::numeric::vectorize::Kernel;
    for (n, inner) in [(16, 1), (48, 16), (576, 1), (2048, 1), (8192, 1), (11008, 1)] {
        let h = Hadamard::randomized(n, 4).unwrap();
        let wide: Vec<f64> = numbers(n * inner);
        let narrow: Vec<f32> = wide.iter().map(|x| *x as f32).collect();
        let (mut wide_here, mut narrow_here) = (wide.clone(), narrow.clone());
        h.transform(&mut wide_here, inner, Direction::Plain);
        h.transform(&mut narrow_here, inner, Direction::Plain);
        let on = |simd: &dyn Fn(Walsh<'_, f64>, Walsh<'_, f32>)| {
            let (mut wide, mut narrow) = (wide.clone(), narrow.clone());
            simd(h.kernel(&mut wide, inner, Direction::Plain), h.kernel(&mut narrow, inner, Direction::Plain));
            assert!(wide == wide_here && narrow == narrow_here, "{n}");
        };
        on(&|wide, narrow| {
            wide.run(pulp::Scalar::new());
            narrow.run(pulp::Scalar::new());
        });
        #[cfg(target_arch = "x86_64")]
        if let Some(v3) = pulp::x86::V3::try_new() {
            on(&|wide, narrow| {
                wide.run(v3);
                narrow.run(v3);
            });
        }
    }
}

/// Every stage rounds once: the error stays under `(log₂ 2^p + K/4 + 3)·ε` of the norm.
#[test]
fn single_precision_is_near_double() {
    for n in [64, 576, 4096, 11008] {
        let h = Hadamard::new(n).unwrap();
        let x: Vec<f32> = numbers(n).into_iter().map(|x| x as f32).collect();
        let mut wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let mut narrow = x;
        h.rows(&mut wide);
        h.rows(&mut narrow);
        let norm = wide.iter().map(|x| x * x).sum::<f64>().sqrt();
        let error = wide.iter().zip(&narrow).map(|(w, x)| (w - f64::from(*x)).powi(2)).sum::<f64>().sqrt();
        let stages = (n / h.order()).ilog2() as f64 + h.order() as f64 / 4.0 + 3.0;
        assert!(error < stages * f64::from(f32::EPSILON) * norm, "{n}: {}", error / norm);
    }
}

/// One column wider than a strip, several groups of strips, and none.
#[test]
fn many_columns() {
    let (n, cols) = (96, 1000);
    let h = Hadamard::randomized(n, 3).unwrap();
    let x = numbers(n * cols);
    let mut rows: Vec<f64> = (0..n * cols).map(|i| x[i % n * cols + i / n]).collect();
    h.rows(&mut rows);
    let mut columns = x;
    h.columns(&mut columns, cols);
    assert!((0..n * cols).all(|i| columns[i % n * cols + i / n].to_bits() == rows[i].to_bits()));
    h.columns::<f32>(&mut [], 0);
    h.rows::<f32>(&mut []);
}

#[test]
fn signs_depend_on_the_seed() {
    let sums: Vec<f32> = (0..3).map(|seed| Hadamard::randomized(4096, seed).unwrap().signs.unwrap().iter().sum()).collect();
    // Five standard deviations of 4096 signs.
    assert!(sums.iter().all(|sum| sum.abs() < 320.0) && sums[0] != sums[1], "{sums:?}");
    assert_ne!(Hadamard::randomized(64, 1).unwrap().signs, Hadamard::randomized(64, 2).unwrap().signs);
}

#[test]
fn unknown_sizes_say_what_is_near() {
    let error = Hadamard::new(94).unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), ("numeric::no-hadamard", "no Hadamard matrix of size 94 is known here"));
    assert_eq!(error.hint_text(), Some("92 is the nearest below, 96 the nearest above; or use a random orthogonal matrix"));
    let error = Hadamard::randomized(0, 1).unwrap_err();
    assert_eq!(error.hint_text(), Some("1 the nearest above; or use a random orthogonal matrix"));
    // Neither a long search nor an allocation.
    assert!(Hadamard::randomized(usize::MAX, 1).is_err());
    assert!(Hadamard::new((1 << 62) + 2).is_err());
}

#[test]
fn sizes_to_pad_to_rise() {
    assert_eq!(next_sizes(0).take(8).collect::<Vec<_>>(), [1, 2, 4, 8, 12, 16, 20, 24]);
    assert_eq!(next_sizes(576).take(3).collect::<Vec<_>>(), [608, 624, 640]);
    assert_eq!(next_sizes(8960).next(), Some(9216));
    assert_eq!(next_sizes(11008).take(2).collect::<Vec<_>>(), [12288, 13312]);
    assert!(next_sizes(100).take(60).all(|size| Hadamard::new(size).is_ok_and(|h| size % h.order() == 0)));
    assert_eq!(next_sizes(usize::MAX).next(), None);
}
