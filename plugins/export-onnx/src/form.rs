//! Which operator holds the weights of a layer, and how.
//!
//! With `q` a code of ours, `z` its zero point, `s` its scale, `lo` the smallest code and `ŵ = s·(q − z)`:
//!
//! | operator | stored | stands for |
//! |---|---|---|
//! | `MatMulNBits` | `u` of 2, 4 or 8 bits, `s`, `p` where it is not the middle `2^(bits−1)` | `s·(u − p)` |
//! | `DequantizeLinear`, signed | `q − z` of 4 or 8 bits, `s` | `s·(q − z)` |
//! | `DequantizeLinear`, unsigned | `u = q − lo`, `s`, `p = z − lo` | `s·(u − p)` |
//! | `DequantizeLinear`, floats of 8 bits | the code, `s` | `s·v(code)` |
//!
//! Codes of other widths lie in the next wider type. Sources: onnxruntime, `docs/ContribOperators.md`; ONNX, `docs/Operators.md`.

use qfw_core::scheme::{FloatVariant, Grid, QuantSpec, TileLayout, Timing, Zero};
use qfw_core::{Error, Result};

use crate::message::Kind;

/// What `--format` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// What suits the scheme.
    Best,
    /// `DequantizeLinear`.
    Qdq,
    /// The same with integers in bytes, and narrower ranges clipped.
    Qcdq,
    /// `MatMulNBits`.
    MatMulNBits,
}

/// How codes become what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codes {
    /// Bits of what is stored.
    pub bits: u8,
    /// What is added to a code less the grid's smallest.
    pub shift: i32,
    pub zeros: Zeros,
}

/// Zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zeros {
    /// None is stored.
    None,
    /// One for each scale, `z − lo`.
    Integer,
    /// The same as a float.
    Float,
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    Tensor,
    /// Those of an output channel.
    Channel,
    /// Those of an output channel and a run of so many inputs.
    Blocks(usize),
}

/// How a layer is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// `MatMulNBits`, in blocks of `size` inputs.
    Blocks { codes: Codes, size: usize },
    /// `DequantizeLinear`, behind a `Clip` to the range of the grid where there is one.
    Dequantized { kind: Kind, codes: Codes, clip: Option<(i32, i32)>, spread: Spread },
}

/// A layer whose weights are to be held.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub site: &'a str,
    pub spec: &'a QuantSpec,
    /// Output and input channels.
    pub shape: (usize, usize),
    /// Whether what it reads is rounded to bytes with fixed scales too.
    pub rounded: bool,
}

impl Layer<'_> {
    fn layout(&self) -> TileLayout {
        self.spec.granularity.layout(self.shape.0, self.shape.1)
    }

    fn refuse<T>(&self, why: &str, hint: &str) -> Result<T> {
        Err(Error::plan("plan::container", format!("`{}`: {why}", self.site)).hint(hint))
    }
}

impl Form {
    /// How a layer is held in this form.
    ///
    /// # Errors
    /// If it cannot be, with the nearest scheme that can.
    pub(crate) fn held(self, layer: Layer<'_>) -> Result<Held> {
        if layer.spec.timing != Timing::Static {
            return layer.refuse(&format!("it holds weights with scales, not {}", layer.spec), "leave `timing` out, or use `--format qfw`");
        }
        match self {
            Self::MatMulNBits => blocks(layer),
            Self::Qdq => dequantized(layer, false),
            Self::Qcdq => dequantized(layer, true),
            Self::Best => {
                // Integers on both sides are multiplied as such, behind `DequantizeLinear` only.
                let whole = layer.rounded && layer.spec.bits == 8 && !matches!(spread(layer), Spread::Blocks(_));
                match layer.spec.grid {
                    Grid::Int { .. } if !whole => blocks(layer).or_else(|first| dequantized(layer, false).map_err(|_| first)),
                    _ => dequantized(layer, false),
                }
            }
        }
    }
}

/// The smallest block of `MatMulNBits`, and the largest that its kernels have.
const BLOCKS: (usize, usize) = (16, 256);

/// Inputs that share a scale where the scheme says nothing smaller.
const BLOCK: usize = 128;

fn blocks(layer: Layer<'_>) -> Result<Held> {
    let float = "use `--format onnx-qdq` or `qfw`";
    let Grid::Int { .. } = layer.spec.grid else {
        return layer.refuse(&format!("MatMulNBits holds integers, not {}", layer.spec.format), float);
    };
    let Some(bits) = [2, 4, 8].into_iter().find(|b| *b >= layer.spec.bits) else {
        return layer
            .refuse(&format!("MatMulNBits holds integers of up to 8 bits, not of {}", layer.spec.bits), "use int8, or `--format qfw`");
    };
    let (layout, inputs) = (layer.layout(), layer.shape.1);
    let size = if layout.tile_cols >= inputs {
        inputs.next_power_of_two().clamp(BLOCKS.0, BLOCK)
    } else {
        // The largest power of two that divides a group.
        (1 << layout.tile_cols.trailing_zeros()).min(BLOCKS.1)
    };
    if size < BLOCKS.0 {
        let why =
            format!("blocks of MatMulNBits are powers of two from {} up, which do not divide groups of {}", BLOCKS.0, layout.tile_cols);
        return layer.refuse(&why, "use groups of 32, 64 or 128, or `--format onnx-qdq` or `qfw`");
    }
    Ok(Held::Blocks { codes: unsigned(layer.spec, bits, 1 << (bits - 1)), size })
}

/// Codes from 0 up, `middle` standing for 0 where that is possible without zero points.
fn unsigned(spec: &QuantSpec, bits: u8, middle: i32) -> Codes {
    let (lo, hi) = spec.grid.limits();
    let centred = |z: i32| {
        let (first, last) = (lo - z + middle, hi - z + middle);
        (first >= 0 && last < 1 << bits).then_some(first)
    };
    let (zeros, shift) = match spec.grid.zero() {
        Zero::Float => (Zeros::Float, 0),
        Zero::Integer => (Zeros::Integer, 0),
        Zero::None => centred(0).map_or((Zeros::Integer, 0), |shift| (Zeros::None, shift)),
        Zero::Fixed(z) => centred(z).map_or((Zeros::Integer, 0), |shift| (Zeros::None, shift)),
    };
    Codes { bits, shift, zeros }
}

fn dequantized(layer: Layer<'_>, bytes: bool) -> Result<Held> {
    let (spec, spread) = (layer.spec, spread(layer));
    match &spec.grid {
        Grid::Int { lo, hi, zero } => integers(layer, (*lo, *hi), *zero, bytes),
        Grid::Float(f) => {
            let kind = match (f.shape(), f.variant()) {
                ((4, 3), FloatVariant::Ocp) => Kind::Float8E4M3Fn,
                ((4, 3), FloatVariant::Fnuz) => Kind::Float8E4M3Fnuz,
                ((5, 2), FloatVariant::Ocp) => Kind::Float8E5M2,
                ((5, 2), FloatVariant::Fnuz) => Kind::Float8E5M2Fnuz,
                _ => return layer.refuse(&format!("onnxruntime computes with no weights in {}", spec.format), NEAREST),
            };
            Ok(Held::Dequantized { kind, codes: Codes { bits: 8, shift: 0, zeros: Zeros::None }, clip: None, spread })
        }
        _ => layer.refuse(&format!("ONNX has no type for {}", spec.format), NEAREST),
    }
}

/// Codes without zero points in a signed type, with them in an unsigned one.
fn integers(layer: Layer<'_>, (lo, hi): (i32, i32), zero: Zero, bytes: bool) -> Result<Held> {
    if zero == Zero::Float {
        let hint = "set `zero-point = \"integer\"`, or use `--format onnx-matmulnbits` or `qfw`";
        return layer.refuse("zero points of DequantizeLinear are integers", hint);
    }
    if layer.spec.bits > 8 {
        return layer.refuse(&format!("it holds weights of up to 8 bits, not of {}", layer.spec.bits), "use int8, or `--format qfw`");
    }
    let bits = if layer.spec.bits <= 4 && !bytes { 4 } else { 8 };
    let half = 1 << (bits - 1);
    let centre = match zero {
        Zero::None => Some(0),
        Zero::Fixed(z) => Some(z),
        _ => None,
    };
    let signed = centre.map(|z| (lo - z, hi - z)).filter(|(first, last)| *first >= -half && *last < half);
    let (kind, range, least, zeros) = match (signed, bits) {
        (Some(range), 4) => (Kind::Int4, range, -half, Zeros::None),
        (Some(range), _) => (Kind::Int8, range, -half, Zeros::None),
        (None, 4) => (Kind::Uint4, (0, hi - lo), 0, Zeros::Integer),
        (None, _) => (Kind::Uint8, (0, hi - lo), 0, Zeros::Integer),
    };
    let clip = (bytes && range != (least, least + 2 * half - 1)).then_some(range);
    Ok(Held::Dequantized { kind, codes: Codes { bits, shift: range.0, zeros }, clip, spread: spread(layer) })
}

const NEAREST: &str = "use int4, int8 or fp8, or `--format qfw`";

fn spread(layer: Layer<'_>) -> Spread {
    let layout = layer.layout();
    match layout.grid() {
        (1, 1) => Spread::Tensor,
        (_, 1) => Spread::Channel,
        _ => Spread::Blocks(layout.tile_cols),
    }
}

impl Held {
    /// Bits of a weight of a layer, with its share of scales and zero points.
    pub(crate) fn bits(&self, (rows, cols): (usize, usize)) -> f64 {
        let (codes, width, tiles) = match *self {
            Self::Blocks { codes, size } => {
                (codes, f64::from(codes.bits) * cols.next_multiple_of(size) as f64 / cols as f64, rows * cols.div_ceil(size))
            }
            Self::Dequantized { kind, codes, spread, .. } => {
                let tiles = match spread {
                    Spread::Tensor => 1,
                    Spread::Channel => rows,
                    Spread::Blocks(size) => rows * cols.div_ceil(size),
                };
                (codes, kind.bits() as f64, tiles)
            }
        };
        let zero = match codes.zeros {
            Zeros::None => 0.0,
            Zeros::Integer => f64::from(codes.bits),
            Zeros::Float => 32.0,
        };
        width + tiles as f64 * (32.0 + zero) / (rows * cols) as f64
    }
}

/// How an embedding is held: rows of codes, of which a call looks up a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub codes: Codes,
    /// Channels that share a scale.
    pub size: usize,
}

impl Table {
    /// How an embedding of this shape is held.
    ///
    /// # Errors
    /// If it cannot be, with the nearest scheme that can.
    pub(crate) fn of(site: &str, spec: &QuantSpec, shape: (usize, usize)) -> Result<Self> {
        let layer = Layer { site, spec, shape, rounded: false };
        let (layout, cols) = (layer.layout(), shape.1);
        if spec.timing != Timing::Static || spec.bits > 8 {
            return layer.refuse(&format!("it holds embeddings of up to 8 bits with scales, not {spec}"), NEAREST);
        }
        if !cols.is_multiple_of(layout.tile_cols) {
            let why = format!("rows of an embedding are cut in equal parts, and {} does not divide {cols}", layout.tile_cols);
            return layer.refuse(&why, "use a group that divides the channels, or `--format qfw`");
        }
        let whole = |bits: &u8| *bits >= spec.bits && (cols * usize::from(*bits)).is_multiple_of(8);
        let bits = [2, 4].into_iter().find(whole).unwrap_or(8);
        let codes = match spec.grid {
            Grid::Int { .. } => unsigned(spec, bits, 1 << (bits - 1)),
            _ => Codes { bits, shift: 0, zeros: Zeros::None },
        };
        Ok(Self { codes, size: layout.tile_cols })
    }

    /// Bits of a number, with its share of scales and zero points.
    pub(crate) fn bits(&self, spec: &QuantSpec, (rows, cols): (usize, usize)) -> f64 {
        let tiles = spec.granularity.layout(rows, cols).tiles() as f64;
        let zero = if self.codes.zeros == Zeros::None { 32.0 } else { 64.0 };
        f64::from(self.codes.bits) + tiles * zero / (rows * cols) as f64
    }
}
