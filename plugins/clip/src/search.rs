//! The search for the limits.

use qfw_core::Result;
use qfw_core::algorithm::SiteContext;
use qfw_core::numeric::{Onto, Transpose, decode, encode, gemm};
use qfw_core::observer;
use qfw_core::scheme::TileLayout;
use rayon::prelude::*;

/// Rows of one task, if tiles are not taller; fixed, so that no result depends on the number of threads.
const ROWS: usize = 64;

/// What the search found.
pub(crate) struct Searched {
    /// The clamped weight, row-major `[out, in]`.
    pub clamped: Vec<f32>,
    /// Ranges whose limit lies below their largest magnitude.
    pub ranges: usize,
    /// `Σ δᵀHδ` over ranges without clipping.
    pub unclipped: f64,
    /// The same with the limits found.
    pub clipped: f64,
}

/// Tries `shares` of the largest magnitude of every tile of the site. `h` is its full Gram matrix.
pub(crate) fn search(cx: &SiteContext<'_>, h: &[f32], shares: &[f32]) -> Result<Searched> {
    let layout = cx.layout();
    let tall = ROWS.div_ceil(layout.tile_rows) * layout.tile_rows;
    let mut clamped = cx.weight.to_vec();
    let parts: Vec<(usize, f64, f64)> = clamped
        .par_chunks_mut(tall * layout.cols)
        .map(|w| {
            let (mut ranges, mut unclipped, mut clipped) = (0, 0.0, 0.0);
            for first in (0..layout.cols).step_by(layout.tile_cols) {
                let found = columns(cx, layout, first, h, shares, w)?;
                ranges += found.0;
                unclipped += found.1;
                clipped += found.2;
            }
            Ok((ranges, unclipped, clipped))
        })
        .collect::<Result<_>>()?;
    let sum = |f: fn(&(usize, f64, f64)) -> f64| parts.iter().map(f).sum::<f64>();
    Ok(Searched { clamped, ranges: parts.iter().map(|p| p.0).sum(), unclipped: sum(|p| p.1), clipped: sum(|p| p.2) })
}

/// The tiles of some rows (`w`, all their columns) that begin at column `first`; returns how many were clipped and the errors before and
/// after.
fn columns(cx: &SiteContext<'_>, layout: TileLayout, first: usize, h: &[f32], shares: &[f32], w: &mut [f32]) -> Result<(usize, f64, f64)> {
    let n = layout.cols;
    let (rows, width) = (w.len() / n, layout.tile_cols.min(n - first));
    let part = TileLayout { rows, cols: width, tile_rows: layout.tile_rows, tile_cols: width };
    let original: Vec<f32> = w.chunks_exact(n).flat_map(|row| row[first..first + width].iter().copied()).collect();
    let largest: Vec<f32> = original.chunks(layout.tile_rows * width).map(|t| t.iter().fold(0.0f32, |m, x| m.max(x.abs()))).collect();
    let tile_of = |i: usize| i / (layout.tile_rows * width);
    let rule = cx.scale_rule();
    let (mut best, mut limits) = (vec![f64::INFINITY; largest.len()], largest.clone());
    let mut unclipped = 0.0;
    let (mut decoded, mut product) = (Vec::new(), vec![0.0; original.len()]);
    for share in shares {
        let clamped: Vec<f32> = original
            .iter()
            .enumerate()
            .map(|(i, x)| {
                let limit = share * largest[tile_of(i)];
                x.clamp(-limit, limit)
            })
            .collect();
        let params = observer::fit(cx.observer, &rule, &clamped, part)?;
        decode(&cx.spec.grid, &params, &encode(&cx.spec.grid, &params, &original), 0..rows, None, &mut decoded);
        decoded.iter_mut().zip(&original).for_each(|(d, w)| *d -= w);
        // ΔH over the columns of the tile.
        gemm(
            (rows, width, width),
            Onto::Replace,
            &mut product,
            width,
            &decoded,
            Transpose::No,
            width,
            &h[first * n + first..],
            Transpose::No,
            n,
        );
        for (tile, (delta, product)) in decoded.chunks(layout.tile_rows * width).zip(product.chunks(layout.tile_rows * width)).enumerate() {
            let error: f64 = delta.iter().zip(product).map(|(d, p)| f64::from(*d) * f64::from(*p)).sum();
            if *share == 1.0 {
                unclipped += error;
            }
            if error < best[tile] {
                (best[tile], limits[tile]) = (error, share * largest[tile]);
            }
        }
    }
    for (r, row) in w.chunks_exact_mut(n).enumerate() {
        let limit = limits[tile_of(r * width)];
        row[first..first + width].iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
    }
    let clipped = limits.iter().zip(&largest).filter(|(a, b)| a < b).count();
    Ok((clipped, unclipped, best.iter().sum()))
}
