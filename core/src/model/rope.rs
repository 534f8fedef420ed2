//! Angles of the rotary position embedding and the ways of stretching them to longer contexts.
//!
//! Plain: `θ_i = base^(−2i/d)`, angle `p·θ_i` at position `p`. Scalings, as the model configurations name them:
//! * `linear`: `θ_i / factor`.
//! * `dynamic`: beyond the trained length `L₀`, at length `L`: `base · (factor·L/L₀ − (factor − 1))^(d/(d−2))`.
//! * `llama3`: wavelengths longer than `L₀/low` are divided by `factor`, shorter than `L₀/high` are kept, between them interpolated.
//! * `yarn`: interpolated dimensions blend into extrapolated ones along a ramp, and cos and sin are multiplied by an attention factor.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::config::Keys;
use crate::error::{Error, Result};

/// Rotary embedding of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Rotated channels per head.
    pub dim: usize,
    base: f64,
    inverse_frequencies: Vec<f64>,
    attention_factor: f64,
    dynamic: Option<Dynamic>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Dynamic {
    factor: f64,
    trained: f64,
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.
    ///
    /// # Errors
    /// If a key is malformed or the scaling unknown.
    pub(super) fn parse(config: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Self> {
        let nested = config.object("rope_parameters")?;
        let scaling = match nested {
            Some(_) => nested,
            None => config.object("rope_scaling")?,
        };
        let base = match nested.as_ref().map(|n| n.f64_or_none("rope_theta")).transpose()?.flatten() {
            Some(base) => base,
            None => config.f64_or("rope_theta", 10_000.0)?,
        };
        let partial = match nested.as_ref().map(|n| n.f64_or_none("partial_rotary_factor")).transpose()?.flatten() {
            Some(p) => p,
            None => config.f64_or("partial_rotary_factor", 1.0)?,
        };
        let dim = (head_dim as f64 * partial) as usize;
        let mut rope = Self { dim, base, inverse_frequencies: plain(base, dim), attention_factor: 1.0, dynamic: None };
        if let Some(factors) = config.value("qfw_rope_factors").and_then(Value::as_array) {
            for (f, divisor) in rope.inverse_frequencies.iter_mut().zip(factors) {
                *f /= divisor.as_f64().unwrap_or(1.0);
            }
            return Ok(rope);
        }
        if let Some(scaling) = scaling {
            rope.scale(&scaling, config, max_positions)?;
        }
        Ok(rope)
    }

    fn scale(&mut self, scaling: &Keys<'_>, config: &Keys<'_>, max_positions: usize) -> Result<()> {
        let kind = scaling.str_or_none("rope_type")?.or(scaling.str_or_none("type")?).unwrap_or("default");
        let trained = |scaling: &Keys<'_>| -> Result<f64> {
            Ok(match scaling.f64_or_none("original_max_position_embeddings")? {
                Some(n) => n,
                None => config.f64_or("original_max_position_embeddings", max_positions as f64)?,
            })
        };
        match kind {
            "default" => {}
            "linear" => {
                let factor = scaling.f64("factor")?;
                self.inverse_frequencies.iter_mut().for_each(|f| *f /= factor);
            }
            "dynamic" => self.dynamic = Some(Dynamic { factor: scaling.f64("factor")?, trained: max_positions as f64 }),
            "llama3" => {
                let (factor, low, high) = (scaling.f64("factor")?, scaling.f64("low_freq_factor")?, scaling.f64("high_freq_factor")?);
                let length = trained(scaling)?;
                for f in &mut self.inverse_frequencies {
                    let wavelength = std::f64::consts::TAU / *f;
                    if wavelength > length / low {
                        *f /= factor;
                    } else if wavelength >= length / high {
                        let smooth = (length / wavelength - low) / (high - low);
                        *f = (1.0 - smooth) * *f / factor + smooth * *f;
                    }
                }
            }
            "yarn" => {
                let length = trained(scaling)?;
                let factor = match scaling.f64_or_none("factor")? {
                    Some(f) => f,
                    None => max_positions as f64 / length,
                };
                self.yarn(scaling, length, factor)?;
            }
            other => {
                return Err(Error::input("model::rope", format!("unknown rope scaling `{other}`"))
                    .hint("known scalings: default, linear, dynamic, llama3, yarn"));
            }
        }
        Ok(())
    }

    /// YaRN (Peng et al. 2023): a ramp over dimensions between `beta_fast` and `beta_slow` rotations within the trained length.
    fn yarn(&mut self, scaling: &Keys<'_>, length: f64, factor: f64) -> Result<()> {
        let (fast, slow) = (scaling.f64_or("beta_fast", 32.0)?, scaling.f64_or("beta_slow", 1.0)?);
        let dim = self.dim as f64;
        let turns = |r: f64| dim * (length / (r * std::f64::consts::TAU)).ln() / (2.0 * self.base.ln());
        let (mut low, mut high) = (turns(fast), turns(slow));
        if scaling.bool_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // as the reference does, against a division by zero
        }
        for (i, f) in self.inverse_frequencies.iter_mut().enumerate() {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            *f = *f / factor * ramp + *f * (1.0 - ramp);
        }
        let magnitude = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
        self.attention_factor = match scaling.f64_or_none("attention_factor")? {
            Some(a) => a,
            None => match (scaling.f64_or_none("mscale")?, scaling.f64_or_none("mscale_all_dim")?) {
                (Some(m), Some(all)) if m != 0.0 && all != 0.0 => magnitude(factor, m) / magnitude(factor, all),
                _ => magnitude(factor, 1.0),
            },
        };
        Ok(())
    }

    /// Cosines and sines `[T, dim/2]` for positions `position..position + t`.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn angles(&self, position: usize, t: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let length = (position + t) as f64;
        let stretched = match self.dynamic {
            Some(Dynamic { factor, trained }) if length > trained => {
                let d = self.dim as f64;
                let base = self.base * (factor * length / trained - (factor - 1.0)).powf(d / (d - 2.0));
                Some(plain(base, self.dim))
            }
            _ => None,
        };
        let frequencies = stretched.as_ref().unwrap_or(&self.inverse_frequencies);
        let half = frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(t * half), Vec::with_capacity(t * half));
        for p in position..position + t {
            for f in frequencies {
                // The reference forms the angle in f32 from an f32 frequency; far positions differ visibly otherwise.
                let angle = if dtype == DType::F64 { p as f64 * f } else { f64::from(p as f32 * *f as f32) };
                cos.push(angle.cos() * self.attention_factor);
                sin.push(angle.sin() * self.attention_factor);
            }
        }
        let make =
            |v: Vec<f64>| -> Result<Tensor> { Ok(Tensor::from_vec(v, (t, half), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?) };
        Ok((make(cos)?, make(sin)?))
    }
}

fn plain(base: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64)).collect()
}
