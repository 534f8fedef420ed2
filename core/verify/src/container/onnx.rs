//! Codes in an ONNX graph: which operations read them says what they stand for.
//!
//! | operation | stored | value |
//! |---|---|---|
//! | `MatMulNBits` | `B` `U8 [m, ⌈n/size⌉, size·b/8]`, a stream along each row; scales, and `p`, streams along rows of blocks or floats; else `p = 2^(b−1)` | `s·(u − p)` |
//! | `DequantizeLinear` | `[n, m]`, maybe behind a `Clip`; scales of all, of axis 1, or of runs along axis 0; `p` of the same shape and type, else 0 | `s·(q − p)` |
//! | `Gather` (embeddings) | `U8 [rows, ⌈cols·b/8⌉]`, a stream along each row, taken apart with `BitShift` and `BitwiseAnd`; a table of values, or integers less `Sub`; times `Mul` | `s·(u − p)` |
//!
//! Source: ONNX, `docs/Operators.md`; onnxruntime, `docs/ContribOperators.md`. The exporter calls codes `PATH.codes`, where `PATH` is the role
//! of a layer, such as `blocks.0.attn.q`.

use super::sides;
use crate::bits;
use crate::dtype::{Dtype, array, e4m3, e4m3_fnuz, e5m2, e5m2_fnuz};
use crate::error::{Error, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers, rows_of_codes};
use crate::onnx_file::{Graph, Kind, Node};
use crate::store::{Store, Tensor};

/// How far a value is followed.
const STEPS: usize = 16;

/// A weight.
pub(crate) struct Weight {
    /// The tensor of its codes.
    codes: String,
    shape: (usize, usize),
    how: How,
    /// What else it reads.
    parts: Vec<String>,
}

enum How {
    Blocks { bits: u32, size: usize, scale: String, zero: Option<String> },
    Dequantized { kind: Kind, tiles: Tiles, scale: String, zero: Option<String>, clip: Option<(f32, f32)> },
    Rows { bits: u32, tiles: Tiles, table: Option<String>, scale: String, zero: Zero },
}

enum Zero {
    All(f32),
    Each(String),
}

impl Weight {
    /// The weight whose codes are the tensor `codes`.
    ///
    /// # Errors
    /// If what reads it is none of the above.
    pub(crate) fn of(codes: &Tensor, graph: &Graph, store: &Store) -> Result<Self> {
        let mut reader = graph.reader(&codes.name)?;
        let mut clip = None;
        if reader.op == "Clip" {
            clip = Some((constant(reader.input(1), graph, store)?, constant(reader.input(2), graph, store)?));
            reader = graph.reader(made(reader)?)?;
        }
        match reader.op.as_str() {
            "MatMulNBits" if clip.is_none() => Self::blocks(codes, reader),
            "DequantizeLinear" => Self::dequantized(codes, reader, clip, graph, store),
            "Gather" if clip.is_none() => Self::rows(codes, reader, graph, store),
            other => Err(Error::tensor(format!("`{}` is read by `{other}`, and codes of weights are not", codes.name))),
        }
    }

    fn blocks(codes: &Tensor, node: &Node) -> Result<Self> {
        let attribute = |name: &str| {
            let n = node.int(name).and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
            n.ok_or_else(|| Error::tensor(format!("`MatMulNBits` of `{}` states no sound `{name}`", codes.name)))
        };
        let (cols, rows, width, size) = (attribute("K")?, attribute("N")?, attribute("bits")?, attribute("block_size")?);
        let bits = u32::try_from(width).ok().filter(|b| [2, 4, 8].contains(b) && size.is_multiple_of(8));
        let bits = bits.ok_or_else(|| Error::tensor(format!("`{}` has {width} bits in blocks of {size}", codes.name)))?;
        let expected = [rows, cols.div_ceil(size), size / 8 * width];
        if node.input(1) != Some(&codes.name) || codes.shape != expected {
            return Err(Error::tensor(format!("`{}` is {:?}, where {expected:?} belongs", codes.name, codes.shape)));
        }
        let input = |i: usize| node.input(i).map(ToOwned::to_owned);
        let scale = input(2).ok_or_else(|| Error::tensor(format!("`{}` has no scales", codes.name)))?;
        if let Some(index) = node.input(4) {
            return Err(Error::tensor(format!("`{index}` puts groups of `{}` in an order of its own, which is not read here", codes.name)));
        }
        let zero = input(3);
        let parts = [Some(scale.clone()), zero.clone()].into_iter().flatten().collect();
        Ok(Self { codes: codes.name.clone(), shape: (rows, cols), how: How::Blocks { bits, size, scale, zero }, parts })
    }

    fn dequantized(codes: &Tensor, node: &Node, clip: Option<(f32, f32)>, graph: &Graph, store: &Store) -> Result<Self> {
        let name = &codes.name;
        let product = graph.reader(made(node)?)?;
        let (cols, rows) = sides(codes)?;
        if product.op != "MatMul" || product.input(1) != node.output.first().map(String::as_str) {
            return Err(Error::tensor(format!("what `{name}` stands for is no weight of a `MatMul`")));
        }
        let scale = node.input(1).ok_or_else(|| Error::tensor(format!("`{name}` has no scales")))?.to_owned();
        let (axis, size) = (node.int("axis").unwrap_or(1), node.int("block_size").unwrap_or(0));
        let size = usize::try_from(size).unwrap_or(0);
        let shape = &store.require(&scale)?.shape;
        let tiles = match &shape[..] {
            [] | [1] if size == 0 => Tiles::new(cols, rows, cols),
            [n] if *n == rows && size == 0 && (axis == 1 || axis == -1) => Tiles::new(cols, 1, cols),
            [n, m] if size > 0 && axis == 0 && *m == rows && *n == cols.div_ceil(size) => Tiles::new(cols, 1, size),
            _ => {
                let message =
                    format!("`{scale}` is {shape:?}, which is no scale of `{name}` {:?} on axis {axis} in runs of {size}", codes.shape);
                return Err(Error::tensor(message));
            }
        };
        let kind = graph
            .kind(name)
            .filter(|k| *k != Kind::Other)
            .ok_or_else(|| Error::tensor(format!("`{name}` is {}, which is no code", codes.dtype)))?;
        let zero = node.input(2).map(ToOwned::to_owned);
        if let Some(zero) = zero.as_ref().filter(|z| graph.kind(z) != Some(kind)) {
            return Err(Error::tensor(format!("`{zero}` is of another type than `{name}`")));
        }
        let parts = [Some(scale.clone()), zero.clone()].into_iter().flatten().collect();
        Ok(Self { codes: name.clone(), shape: (rows, cols), how: How::Dequantized { kind, tiles, scale, zero, clip }, parts })
    }

    fn rows(codes: &Tensor, node: &Node, graph: &Graph, store: &Store) -> Result<Self> {
        let name = &codes.name;
        let (rows, stored) = sides(codes)?;
        let ids = node.input(1).unwrap_or_default();
        let (mut bits, mut shifts) = (8, Vec::new());
        let (mut table, mut split, mut zero, mut parts) = (None, None, Zero::All(0.0), Vec::new());
        let mut value = made(node)?;
        for _ in 0..STEPS {
            let step = graph.reader(value)?;
            match (step.op.as_str(), step.input(0) == Some(value)) {
                ("Gather", false) => table = step.input(0).map(ToOwned::to_owned),
                ("Unsqueeze" | "Cast", true) => {}
                ("BitShift", true) => shifts = bytes(step.input(1), store)?,
                ("BitwiseAnd", true) => bits = bytes(step.input(1), store)?.first().map_or(0, |mask| mask.count_ones()),
                ("Reshape", true) if split.is_none() => split = Some(longs(step.input(1), store)?),
                ("Sub", true) => match step.input(1).filter(|n| store.get(n).is_some()) {
                    Some(_) => zero = Zero::All(constant(step.input(1), graph, store)?),
                    None => zero = Zero::Each(looked_up(step.input(1), ids, graph, store)?.0),
                },
                ("Mul", true) => {
                    let (scale, height) = looked_up(step.input(1), ids, graph, store)?;
                    let per_byte = (8 / bits.max(1)) as usize;
                    let expected: Vec<u8> = (0..per_byte).filter(|_| bits < 8).map(|i| (i as u32 * bits) as u8).collect();
                    let cols = stored.checked_mul(per_byte).filter(|_| [2, 4, 8].contains(&bits) && shifts == expected);
                    let size = split.as_ref().and_then(|s| usize::try_from(*s.get(3)?).ok()).filter(|n| *n > 0);
                    let (Some(cols), Some(size)) = (cols, size) else { break };
                    parts.extend(table.iter().cloned().chain([scale.clone()]));
                    if let Zero::Each(zero) = &zero {
                        parts.push(zero.clone());
                    }
                    let how = How::Rows { bits, tiles: Tiles::new(cols, height, size), table, scale, zero };
                    return Ok(Self { codes: name.clone(), shape: (rows, cols), how, parts });
                }
                _ => break,
            }
            value = made(step)?;
        }
        Err(Error::tensor(format!("`{name}` is looked up, and what becomes of its rows is not what becomes of codes")))
    }
}

/// The first value that an operation makes.
fn made(node: &Node) -> Result<&str> {
    node.output.first().map(String::as_str).ok_or_else(|| Error::tensor(format!("`{}` makes nothing", node.op)))
}

/// The bytes of a stored tensor.
fn bytes(name: Option<&str>, store: &Store) -> Result<Vec<u8>> {
    store.bytes(store.require(name.unwrap_or_default())?)
}

/// A stored list of integers.
fn longs(name: Option<&str>, store: &Store) -> Result<Vec<i64>> {
    let tensor = store.require(name.unwrap_or_default())?;
    if tensor.dtype != Dtype::Int(8) {
        return Err(Error::tensor(format!("`{}` is {}, where I64 belongs", tensor.name, tensor.dtype)));
    }
    Ok(store.bytes(tensor)?.chunks_exact(8).map(|b| i64::from_le_bytes(array(b))).collect())
}

/// A stored number.
fn constant(name: Option<&str>, graph: &Graph, store: &Store) -> Result<f32> {
    let tensor = store.require(name.unwrap_or_default())?;
    let kind = graph.kind(&tensor.name).filter(|k| *k != Kind::Other);
    let numbers = match kind {
        Some(kind) => steps(kind, &store.bytes(tensor)?, 1)?,
        None => store.floats(&tensor.name)?,
    };
    numbers.first().copied().ok_or_else(|| Error::tensor(format!("`{}` is empty", tensor.name)))
}

/// The table whose rows an operand is, one for each token or for so many tokens.
fn looked_up(operand: Option<&str>, ids: &str, graph: &Graph, store: &Store) -> Result<(String, usize)> {
    let value = operand.unwrap_or_default();
    let unknown = || Error::tensor(format!("`{value}` is not looked up in a table for each token"));
    let unsqueeze = graph.maker(value).filter(|n| n.op == "Unsqueeze").ok_or_else(unknown)?;
    let gather = unsqueeze.input(0).and_then(|v| graph.maker(v)).filter(|n| n.op == "Gather").ok_or_else(unknown)?;
    let (table, index) = gather.input(0).zip(gather.input(1)).ok_or_else(unknown)?;
    let height = match graph.maker(index) {
        _ if index == ids => 1,
        Some(div) if div.op == "Div" && div.input(0) == Some(ids) => {
            let by = longs(div.input(1), store)?.first().and_then(|n| usize::try_from(*n).ok());
            by.filter(|n| *n > 0).ok_or_else(unknown)?
        }
        _ => return Err(unknown()),
    };
    Ok((table.to_owned(), height))
}

/// What the first `n` codes of a type count.
fn steps(kind: Kind, bytes: &[u8], n: usize) -> Result<Vec<f32>> {
    let (table, width) = numbers(kind)?;
    let mut codes = Vec::new();
    bits::stream(bytes, width, n, &mut codes).ok_or_else(|| Error::tensor(format!("{} bytes hold no {n} codes", bytes.len())))?;
    Ok(codes.into_iter().map(|c| table[usize::from(c)]).collect())
}

/// What each code of a type counts, and its bits.
fn numbers(kind: Kind) -> Result<(Vec<f32>, u32)> {
    let all = |f: &dyn Fn(u8) -> f32| (0..=255u8).map(f).collect();
    Ok(match kind {
        Kind::Uint4 => (integers(4, 0), 4),
        Kind::Int4 => ((0..16i32).map(|c| (c - if c > 7 { 16 } else { 0 }) as f32).collect(), 4),
        Kind::Uint8 => (integers(8, 0), 8),
        Kind::Int8 => (all(&|c| f32::from(c as i8)), 8),
        Kind::E4m3 => (all(&e4m3), 8),
        Kind::E5m2 => (all(&e5m2), 8),
        Kind::E4m3Fnuz => (all(&e4m3_fnuz), 8),
        Kind::E5m2Fnuz => (all(&e5m2_fnuz), 8),
        Kind::Other => return Err(Error::tensor("no code is stored in such a type")),
    })
}

/// A `[rows, cols]` matrix, turned.
fn turned<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

impl Load for Weight {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, _: &Store) -> Vec<String> {
        self.parts.iter().chain([&self.codes]).cloned().collect()
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let (rows, cols) = self.shape;
        let stored = store.require(&self.codes)?;
        let bytes = store.bytes(stored)?;
        let (codes, table, tiles, scale, zero) = match &self.how {
            How::Blocks { bits, size, scale, zero } => {
                let (codes, tiles) = (rows_of_codes(stored, &bytes, *bits, rows, cols)?, Tiles::new(cols, 1, *size));
                let zero = match zero {
                    None => vec![f32::from(1u8 << (bits - 1)); rows * tiles.across],
                    Some(name) => {
                        let tensor = store.require(name)?;
                        match tensor.dtype.floats(&[]) {
                            Some(_) => store.floats(name)?,
                            None => rows_of_codes(tensor, &store.bytes(tensor)?, *bits, rows, tiles.across)?
                                .into_iter()
                                .map(f32::from)
                                .collect(),
                        }
                    }
                };
                (codes, integers(*bits, 0), tiles, store.floats(scale)?, zero)
            }
            How::Dequantized { kind, tiles, scale, zero, clip } => {
                let (table, width) = numbers(*kind)?;
                let mut codes = Vec::new();
                let n = rows.checked_mul(cols).ok_or_else(|| Error::tensor(format!("`{}` is too large", self.codes)))?;
                bits::stream(&bytes, width, n, &mut codes).ok_or_else(|| Error::tensor(format!("`{}` is too short", self.codes)))?;
                if let Some((lo, hi)) = clip
                    && let Some(code) = codes.iter().map(|c| table[usize::from(*c)]).find(|n| n < lo || n > hi)
                {
                    return Err(Error::tensor(format!("`{}` holds {code}, which is then clipped to {lo} to {hi}", self.codes)));
                }
                let scale = store.floats(scale)?;
                let zero = match zero {
                    None => vec![0.0; scale.len()],
                    Some(name) => steps(*kind, &store.bytes(store.require(name)?)?, scale.len())?,
                };
                // Of runs along the inputs there is a row for each run.
                let apart = tiles.rows == 1 && tiles.across > 1;
                let order = |v: Vec<f32>| if apart && v.len() == rows * tiles.across { turned(&v, tiles.across, rows) } else { v };
                (turned(&codes, cols, rows), table, tiles.clone(), order(scale), order(zero))
            }
            How::Rows { bits, tiles, table, scale, zero } => {
                let codes = rows_of_codes(stored, &bytes, *bits, rows, cols)?;
                let table = table.as_ref().map_or_else(|| Ok(integers(*bits, 0)), |name| store.floats(name))?;
                let scale = store.floats(scale)?;
                let zero = match zero {
                    Zero::All(z) => vec![*z; scale.len()],
                    Zero::Each(name) => store.floats(name)?,
                };
                (codes, table, tiles.clone(), scale, zero)
            }
        };
        Matrix { rows, cols, codes, table, tiles, scale, zero, arithmetic: Arithmetic::Scaled }.checked(&self.codes)
    }
}
