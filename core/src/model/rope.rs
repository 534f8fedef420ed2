//! Angles of the rotary position embedding and the ways of stretching them to longer contexts.
//!
//! Plain: `θ_i = base^(−2i/d)`, angle `p·θ_i` at position `p`. Scalings, as the model configurations name them:
//! * `linear`: `θ_i / factor`.
//! * `dynamic`: beyond the trained length `L₀`, at length `L`: `base · (factor·L/L₀ − (factor − 1))^(d/(d−2))`.
//! * `llama3`: wavelengths longer than `L₀/low` are divided by `factor`, shorter than `L₀/high` are kept, between them interpolated.
//! * `yarn`: interpolated dimensions blend into extrapolated ones along a ramp, and cos and sin are multiplied by an attention factor.
//! * `longrope`: every `θ_i` divided by its own number, from one list up to the trained length and another beyond it; cos and sin are
//!   multiplied by an attention factor.
//! * `proportional`: only the first share of the frequencies turns, the others are 0; all are divided by `factor`.
//!
//! Where transformers and a paper differ, transformers decides: checkpoints are made for it.

use std::ops::Range;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

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
    beyond: Option<Beyond>,
    stretch: Stretch,
}

/// How frequencies are stretched, for those who have to say it in words of their own.
#[derive(Clone, Debug, PartialEq)]
pub enum Stretch {
    /// They are not.
    Plain,
    /// All by this factor.
    Linear(f64),
    /// Each by a divisor of its own, the same at every length: see [`Rope::divisors`].
    Divided,
    /// Along YaRN's ramp.
    Yarn(Yarn),
    /// In another way, of this name in configurations.
    Other(&'static str),
}

/// What a configuration says of YaRN.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    /// By how much contexts become longer.
    pub factor: f64,
    /// Their length before.
    pub trained: f64,
    /// What cosines and sines are multiplied by, where it is stated.
    pub attention: Option<f64>,
    /// Rotations at the ends of the ramp, where they are stated.
    pub fast: Option<f64>,
    /// The lower end.
    pub slow: Option<f64>,
    /// The ramp's ends are rounded, and nothing else is stated of the magnitude.
    pub usual: bool,
}

/// What changes when a sequence is longer than the trained length.
#[derive(Clone, Debug, PartialEq)]
struct Beyond {
    trained: f64,
    rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
enum Rule {
    /// The base grows with the length.
    Dynamic { factor: f64 },
    /// Other frequencies.
    Frequencies(Vec<f64>),
}

impl Rope {
    /// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters`.
    ///
    /// # Errors
    /// If a key is malformed, the scaling unknown, or a combination one that has no meaning in transformers.
    pub(super) fn parse(config: &Keys<'_>, head_dim: usize, max_positions: usize) -> Result<Self> {
        // transformers prefers the older key where both are given, unless it is empty.
        let nested = match config.object("rope_scaling")?.filter(|n| !n.is_empty()) {
            Some(n) => Some(n),
            None => config.object("rope_parameters")?,
        };
        let either = |key: &str, default: f64| -> Result<f64> {
            match nested.as_ref().and_then(|n| n.value(key)) {
                Some(_) => nested.as_ref().map_or(Ok(default), |n| n.positive(key)),
                None if config.value(key).is_some() => config.positive(key),
                None => Ok(default),
            }
        };
        let base = either("rope_theta", 10_000.0)?;
        // These families turn whole heads: with the plain embedding transformers ignores the key.
        let partial = either("partial_rotary_factor", 1.0)?;
        let dim = head_dim;
        if dim > WIDEST {
            return Err(Error::input("model::config", format!("config.json asks for heads of {dim} channels, more than {WIDEST}"))
                .hint("the file is damaged, or does not belong to these weights"));
        }
        let mut rope =
            Self { dim, base, inverse_frequencies: plain(base, dim), attention_factor: 1.0, beyond: None, stretch: Stretch::Plain };
        if let Some(factors) = config.array("qfw_rope_factors")? {
            for (f, divisor) in rope.inverse_frequencies.iter_mut().zip(factors) {
                *f /= divisor.as_f64().unwrap_or(1.0);
            }
            rope.stretch = Stretch::Divided;
            return Ok(rope);
        }
        if let Some(scaling) = nested {
            rope.scale(&scaling, config, partial, max_positions as f64)?;
        }
        Ok(rope)
    }

    fn scale(&mut self, scaling: &Keys<'_>, config: &Keys<'_>, partial: f64, max_positions: f64) -> Result<()> {
        const KNOWN: [&str; 7] = ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional"];
        for kind in ["full_attention", "sliding_attention"] {
            scaling.refuse(kind, |_| false, "rotary parameters for each kind of layer are not supported")?;
        }
        let kind = scaling.str_or_none("rope_type")?.or(scaling.str_or_none("type")?).unwrap_or("default");
        if !KNOWN.contains(&kind) {
            return Err(
                Error::input("model::rope", format!("unknown rope scaling `{kind}`")).hint(format!("known scalings: {}", KNOWN.join(", ")))
            );
        }
        if partial != 1.0 && kind != "default" && kind != "proportional" {
            let message =
                format!("`partial_rotary_factor` ({partial}) beside rope scaling `{kind}`: this architecture rotates whole heads");
            return Err(Error::input("model::unsupported", message)
                .hint("transformers cannot run this combination either; does config.json belong to these weights?"));
        }
        // The top-level key wins, as in transformers.
        let trained = || -> Result<f64> {
            const KEY: &str = "original_max_position_embeddings";
            match (config.value(KEY), scaling.value(KEY)) {
                (Some(_), _) => config.positive(KEY),
                (None, Some(_)) => scaling.positive(KEY),
                (None, None) => Ok(max_positions),
            }
        };
        let given = |key: &str| scaling.value(key).map(|_| scaling.positive(key)).transpose();
        match kind {
            "linear" => {
                let factor = scaling.positive("factor")?;
                self.inverse_frequencies.iter_mut().for_each(|f| *f /= factor);
                self.stretch = Stretch::Linear(factor);
            }
            "dynamic" => {
                let rule = Rule::Dynamic { factor: scaling.positive("factor")? };
                self.beyond = Some(Beyond { trained: max_positions, rule });
                self.stretch = Stretch::Other("dynamic");
            }
            "llama3" => self.llama3(scaling, trained()?)?,
            "yarn" => {
                let length = trained()?;
                let factor = given("factor")?.unwrap_or(max_positions / length);
                self.yarn(scaling, length, factor)?;
            }
            "longrope" => {
                let length = trained()?;
                let factor = given("factor")?.unwrap_or(max_positions / length);
                self.longrope(scaling, length, factor)?;
            }
            "proportional" => {
                let factor = given("factor")?.unwrap_or(1.0);
                let turning = (partial * self.dim as f64 / 2.0) as usize;
                for (i, f) in self.inverse_frequencies.iter_mut().enumerate() {
                    *f = if i < turning { *f / factor } else { 0.0 };
                }
                self.stretch = Stretch::Other("proportional");
            }
            _ => {}
        }
        Ok(())
    }

    fn llama3(&mut self, scaling: &Keys<'_>, length: f64) -> Result<()> {
        let (factor, low, high) =
            (scaling.positive("factor")?, scaling.positive("low_freq_factor")?, scaling.positive("high_freq_factor")?);
        for f in &mut self.inverse_frequencies {
            let wavelength = std::f64::consts::TAU / *f;
            if wavelength > length / low {
                *f /= factor;
            } else if wavelength >= length / high {
                let smooth = (length / wavelength - low) / (high - low);
                *f = (1.0 - smooth) * *f / factor + smooth * *f;
            }
        }
        self.stretch = Stretch::Divided;
        Ok(())
    }

    /// LongRoPE (Ding et al. 2024): a divisor for every frequency, searched for short and for long sequences.
    fn longrope(&mut self, scaling: &Keys<'_>, length: f64, factor: f64) -> Result<()> {
        let divided = |key: &str| -> Result<Vec<f64>> {
            let divisors = scaling.positives(key)?;
            if divisors.len() != self.inverse_frequencies.len() {
                let (got, want) = (divisors.len(), self.inverse_frequencies.len());
                let message = format!("`{key}` of the rope scaling in config.json has {got} numbers, but a head has {want} frequencies");
                return Err(Error::input("model::config", message).hint("it lists one number for each pair of channels of a head"));
            }
            Ok(self.inverse_frequencies.iter().zip(divisors).map(|(f, d)| f / d).collect())
        };
        let (short, long) = (divided("short_factor")?, divided("long_factor")?);
        self.attention_factor = match scaling.f64_or_none("attention_factor")? {
            Some(a) => a,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / length.ln()).sqrt(),
        };
        self.inverse_frequencies = short;
        self.stretch = Stretch::Other("longrope");
        self.beyond = Some(Beyond { trained: length, rule: Rule::Frequencies(long) });
        Ok(())
    }

    /// YaRN (Peng et al. 2023): a ramp over dimensions between `beta_fast` and `beta_slow` rotations within the trained length.
    fn yarn(&mut self, scaling: &Keys<'_>, length: f64, factor: f64) -> Result<()> {
        // A zero counts as absent, as in the reference.
        let rotations = |key: &str| Ok::<_, Error>(scaling.f64_or_none(key)?.filter(|b| *b != 0.0));
        let (stated_fast, stated_slow) = (rotations("beta_fast")?, rotations("beta_slow")?);
        let (fast, slow) = (stated_fast.unwrap_or(32.0), stated_slow.unwrap_or(1.0));
        let dim = self.dim as f64;
        let turns = |r: f64| dim * (length / (r * std::f64::consts::TAU)).ln() / (2.0 * self.base.ln());
        let (mut low, mut high) = (turns(fast), turns(slow));
        let truncated = scaling.bool_or("truncate", true)?;
        if truncated {
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
        let (attention, scales) =
            (scaling.f64_or_none("attention_factor")?, [scaling.f64_or_none("mscale")?, scaling.f64_or_none("mscale_all_dim")?]);
        self.attention_factor = match (attention, scales) {
            (Some(a), _) => a,
            (None, [Some(m), Some(all)]) if m != 0.0 && all != 0.0 => magnitude(factor, m) / magnitude(factor, all),
            _ => magnitude(factor, 1.0),
        };
        let usual = truncated && scales.iter().all(Option::is_none);
        self.stretch = Stretch::Yarn(Yarn { factor, trained: length, attention, fast: stated_fast, slow: stated_slow, usual });
        Ok(())
    }

    /// `θ`, the base of the frequencies.
    pub fn base(&self) -> f64 {
        self.base
    }

    /// How its frequencies are stretched.
    pub fn stretch(&self) -> &Stretch {
        &self.stretch
    }

    /// By what each frequency is divided, from the fastest.
    pub fn divisors(&self) -> Vec<f64> {
        plain(self.base, self.dim).into_iter().zip(&self.inverse_frequencies).map(|(plain, f)| plain / f).collect()
    }

    /// Cosines and sines `[T, dim/2]` for positions `position..position + t`.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn angles(&self, position: usize, t: usize, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        self.angles_within(position + t, position..position + t, dtype, device)
    }

    /// The length of a sequence up to which its angles do not depend on it, where they do from there on.
    pub fn trained(&self) -> Option<usize> {
        self.beyond.as_ref().map(|b| b.trained as usize)
    }

    /// As [`Rope::angles`], of some positions of a sequence of `length`.
    ///
    /// # Errors
    /// None on the CPU.
    pub fn angles_within(&self, length: usize, positions: Range<usize>, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let (length, t) = (length as f64, positions.len());
        let stretched;
        let frequencies = match &self.beyond {
            Some(Beyond { trained, rule }) if length > *trained => match rule {
                Rule::Frequencies(long) => long,
                Rule::Dynamic { factor } => {
                    let d = self.dim as f64;
                    let base = self.base * (factor * length / trained - (factor - 1.0)).powf(d / (d - 2.0));
                    stretched = plain(base, self.dim);
                    &stretched
                }
            },
            _ => &self.inverse_frequencies,
        };
        let half = frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(t * half), Vec::with_capacity(t * half));
        for p in positions {
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

/// The angles of one block, kept from run to run: the windows of a stream mostly lie at the same positions.
pub(super) struct Angles {
    rope: Rope,
    last: Mutex<Option<Kept>>,
}

struct Kept {
    position: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    pub(super) fn new(rope: Rope) -> Self {
        Self { rope, last: Mutex::default() }
    }

    /// As [`Rope::angles`], for positions `position..` of the rows of `x`, in its type and on its device.
    pub(super) fn at(&self, position: usize, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let t = x.dim(0)?;
        let mut last = self.last.lock().map_err(|_| Error::internal("a thread panicked while making rotary angles"))?;
        if let Some(Kept { position: p, cos, sin }) = &*last
            && (*p, cos.dim(0)?, cos.dtype()) == (position, t, x.dtype())
        {
            return Ok((cos.clone(), sin.clone()));
        }
        let (cos, sin) = self.rope.angles(position, t, x.dtype(), x.device())?;
        *last = Some(Kept { position, cos: cos.clone(), sin: sin.clone() });
        Ok((cos, sin))
    }
}

/// Most channels of a head, each pair of which has a frequency.
const WIDEST: usize = 1 << 16;

fn plain(base: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|i| base.powf(-2.0 * i as f64 / dim as f64)).collect()
}
