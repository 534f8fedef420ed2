//! Differentiable pieces of the networks, each with its gradient.
//!
//! candle's own fused normalisations and softmax have no gradient and cut the graph without a word; composed of its elementary
//! operations they take most of a step at this size. All of these want contiguous float32 on the CPU.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor, bail};

/// The values of an operand.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("the operand is not contiguous"),
    }
}

/// The values of a tensor.
fn host(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

fn like(values: Vec<f32>, other: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, other.shape(), &Device::Cpu)
}

/// `x / √(mean(x²) + ε) · w` over the last axis; `x` `[N, C]`, `w` `[C]`.
pub(super) struct RmsNorm {
    /// ε.
    pub(super) eps: f32,
}

impl RmsNorm {
    fn scale(&self, row: &[f32]) -> f32 {
        let squares: f32 = row.iter().map(|x| x * x).sum();
        1.0 / (squares / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (w, mut y) = (values(w, wl)?, values(x, xl)?.to_vec());
        for row in y.chunks_exact_mut(w.len()) {
            let scale = self.scale(row);
            row.iter_mut().zip(w).for_each(|(y, w)| *y *= scale * w);
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    /// With `r` the scale and `n = x r`: `∂x = r (w∘g − n mean(w∘g∘n))`, `∂w = Σ g∘n`.
    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut dx, weight, gradient) = (host(x)?, host(w)?, host(g)?);
        let mut dw = vec![0f32; weight.len()];
        for (row, g) in dx.chunks_exact_mut(weight.len()).zip(gradient.chunks_exact(weight.len())) {
            let scale = self.scale(row);
            let mut mean = 0.0;
            for (((x, g), w), dw) in row.iter_mut().zip(g).zip(&weight).zip(&mut dw) {
                *x *= scale;
                *dw += g * *x;
                mean += w * g * *x;
            }
            mean /= weight.len() as f32;
            row.iter_mut().zip(g).zip(&weight).for_each(|((x, g), w)| *x = scale * (w * g - *x * mean));
        }
        Ok((Some(like(dx, x)?), Some(like(dw, w)?)))
    }
}

/// `(x − mean x) / √(var x + ε) · w + b` over the last axis; `x` `[N, C]`, `w` and `b` `[C]`.
pub(super) struct LayerNorm {
    /// ε.
    pub(super) eps: f32,
}

impl LayerNorm {
    /// Normalises a row in place and returns the scale.
    fn normalise(&self, row: &mut [f32]) -> f32 {
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        row.iter_mut().for_each(|x| *x -= mean);
        let scale = 1.0 / (row.iter().map(|x| x * x).sum::<f32>() / n + self.eps).sqrt();
        row.iter_mut().for_each(|x| *x *= scale);
        scale
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (w, b, mut y) = (values(w, wl)?, values(b, bl)?, values(x, xl)?.to_vec());
        for row in y.chunks_exact_mut(w.len()) {
            self.normalise(row);
            row.iter_mut().zip(w).zip(b).for_each(|((y, w), b)| *y = *y * w + b);
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    /// With `r` the scale and `n` the normalised row: `∂x = r (w∘g − mean(w∘g) − n mean(w∘g∘n))`, `∂w = Σ g∘n`, `∂b = Σ g`.
    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut dx, weight, gradient) = (host(x)?, host(w)?, host(g)?);
        let n = weight.len();
        let (mut dw, mut db) = (vec![0f32; n], vec![0f32; n]);
        for (row, g) in dx.chunks_exact_mut(n).zip(gradient.chunks_exact(n)) {
            let scale = self.normalise(row);
            let (mut plain, mut along) = (0.0, 0.0);
            for i in 0..n {
                dw[i] += g[i] * row[i];
                db[i] += g[i];
                plain += weight[i] * g[i];
                along += weight[i] * g[i] * row[i];
            }
            let (plain, along) = (plain / n as f32, along / n as f32);
            row.iter_mut().zip(g).zip(&weight).for_each(|((x, g), w)| *x = scale * (w * g - plain - *x * along));
        }
        Ok((Some(like(dx, x)?), Some(like(dw, w)?), Some(like(db, b)?)))
    }
}

/// `a σ(a) · b`.
pub(super) struct GatedSilu;

impl CustomOp2 for GatedSilu {
    fn name(&self) -> &'static str {
        "gated-silu"
    }

    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout, b: &CpuStorage, bl: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = values(a, al)?.iter().zip(values(b, bl)?).map(|(a, b)| a * sigmoid(*a) * b).collect();
        Ok((CpuStorage::F32(y), al.shape().clone()))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _y: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut da, mut db, gradient) = (host(a)?, host(b)?, host(g)?);
        for ((a, b), g) in da.iter_mut().zip(&mut db).zip(gradient) {
            let s = sigmoid(*a);
            (*a, *b) = (g * *b * s * (1.0 + *a * (1.0 - s)), g * *a * s);
        }
        Ok((Some(like(da, a)?), Some(like(db, b)?)))
    }
}

/// GELU by its tanh approximation, `x σ(2√(2/π)(x + 0.044715 x³))`.
pub(super) struct Gelu;

impl Gelu {
    const SLOPE: f32 = 1.595_769;
    const CUBE: f32 = 0.044_715;
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-new"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = values(x, layout)?.iter().map(|x| x * sigmoid(Self::SLOPE * (x + Self::CUBE * x * x * x))).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (mut dx, gradient) = (host(x)?, host(g)?);
        for (x, g) in dx.iter_mut().zip(gradient) {
            let s = sigmoid(Self::SLOPE * (*x + Self::CUBE * *x * *x * *x));
            *x = g * (s + *x * s * (1.0 - s) * Self::SLOPE * (1.0 + 3.0 * Self::CUBE * *x * *x));
        }
        like(dx, x).map(Some)
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The rotary embedding of heads `[N, d]`, half-split: `(x₁, x₂) ↦ (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`. Rows repeat a table of angles.
#[derive(Clone)]
pub(super) struct Rotate {
    /// cos and sin, `[rows of the table, d/2]`.
    pub(super) table: Arc<(Vec<f32>, Vec<f32>)>,
    /// Channels rotated.
    pub(super) head_dim: usize,
    /// Consecutive heads that share an angle.
    pub(super) heads: usize,
    /// Rows of the table to use: the context.
    pub(super) context: usize,
}

impl Rotate {
    fn turn(&self, x: &mut [f32], direction: f32) {
        let half = self.head_dim / 2;
        for (i, head) in x.chunks_exact_mut(self.head_dim).enumerate() {
            let at = i / self.heads % self.context * half;
            let (first, second) = head.split_at_mut(half);
            let angles = self.table.0[at..at + half].iter().zip(&self.table.1[at..at + half]);
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                let sin = direction * sin;
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = values(x, layout)?.to_vec();
        self.turn(&mut y, 1.0);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = host(g)?;
        self.turn(&mut dx, -1.0);
        like(dx, x).map(Some)
    }
}

/// Row softmax of `scale · scores`, `[…, rows, context]`; row `r` sees the keys `0 ..= r mod context`.
pub(super) struct CausalSoftmax {
    /// Factor on the scores.
    pub(super) scale: f32,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let context = layout.shape().dim(D::Minus1)?;
        let x = values(x, layout)?;
        let mut p = vec![0f32; x.len()];
        for (r, (p, x)) in p.chunks_exact_mut(context).zip(x.chunks_exact(context)).enumerate() {
            let seen = r % context + 1;
            softmax(&x[..seen], self.scale, &mut p[..seen]);
        }
        Ok((CpuStorage::F32(p), layout.shape().clone()))
    }

    /// `∂x = s · p ∘ (g − Σ p∘g)`.
    fn bwd(&self, scores: &Tensor, p: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let context = p.dim(D::Minus1)?;
        let (p, mut g) = (host(p)?, host(g)?);
        for (r, (g, p)) in g.chunks_exact_mut(context).zip(p.chunks_exact(context)).enumerate() {
            let seen = r % context + 1;
            let mean: f32 = g[..seen].iter().zip(p).map(|(g, p)| g * p).sum();
            g[..seen].iter_mut().zip(p).for_each(|(g, p)| *g = self.scale * p * (*g - mean));
            g[seen..].fill(0.0);
        }
        like(g, scores).map(Some)
    }
}

/// `p ← softmax(scale · x)`; returns the largest `scale · x` and the logarithm of the sum of the others relative to it.
fn softmax(x: &[f32], scale: f32, p: &mut [f32]) -> (f32, f32) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let mut sum = 0.0;
    for (p, x) in p.iter_mut().zip(x) {
        *p = (scale * (x - top)).exp();
        sum += *p;
    }
    p.iter_mut().for_each(|p| *p /= sum);
    (scale * top, sum.ln())
}

/// Mean negative log-likelihood (nats) of `targets` under logits `[N, V]`; a scalar.
pub(super) struct CrossEntropy {
    /// The right class of each row.
    pub(super) targets: Vec<u32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let classes = layout.shape().dim(D::Minus1)?;
        let mut p = vec![0f32; classes];
        let mut total = 0f64;
        for (x, target) in values(x, layout)?.chunks_exact(classes).zip(&self.targets) {
            let (top, rest) = softmax(x, 1.0, &mut p);
            total += f64::from(top + rest - x[*target as usize]);
        }
        Ok((CpuStorage::F32(vec![(total / self.targets.len() as f64) as f32]), Shape::from(())))
    }

    /// `∂x = (softmax(x) − onehot) / N`.
    fn bwd(&self, logits: &Tensor, _loss: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let classes = logits.dim(D::Minus1)?;
        let x = host(logits)?;
        let share = g.to_scalar::<f32>()? / self.targets.len() as f32;
        let mut dx = vec![0f32; x.len()];
        for ((x, dx), target) in x.chunks_exact(classes).zip(dx.chunks_exact_mut(classes)).zip(&self.targets) {
            softmax(x, 1.0, dx);
            dx[*target as usize] -= 1.0;
            dx.iter_mut().for_each(|v| *v *= share);
        }
        like(dx, logits).map(Some)
    }
}
