//! `compressed-tensors`: which modules there are, and how each is stored.
//!
//! | format | tensors of a module `[m, n]` | value |
//! |---|---|---|
//! | `pack-quantized` | `weight_packed` `I32 [m, ⌈n·b/32⌉]`, `weight_scale`, `weight_zero_point` `I32 [⌈m·b/32⌉, groups]`, `weight_shape` | `s·(u − z)` |
//! | `int-quantized` | `weight` `I8`, `weight_scale`, `weight_zero_point` `I8` | `s·(q − z)` |
//! | `float-quantized` | `weight` e4m3, `weight_scale` of tensor, channel or block | `s·v` |
//! | `mxfp8-quantized` | `weight` e4m3, `weight_scale` e8m0 `[m, n/32]` | `s·v` |
//! | `nvfp4-pack-quantized` | `weight_packed` `U8 [m, n/2]`, `weight_scale` e4m3 `[m, n/16]`, `weight_global_scale` `F32 [1]` | `(s / global)·v` |
//! | `mxfp4-pack-quantized` | `weight_packed` `U8 [m, n/2]`, `weight_scale` e8m0 `[m, n/32]` | `s·v` |
//!
//! Packed integers are `u = q + 2^(b−1)`, a stream along each row; zero points are shifted alike, a stream down each column of groups. Up to
//! release 0.17 widths that do not divide 32 were padded to whole words; of rows of whole 32 codes the width of the tensor tells. Four-bit floats have element `2i`
//! in the low nibble. Source: compressed-tensors 0.20, `compressors/` and `quantization/quant_args.py`.

use serde_json::Value;

use super::pattern::Targets;
use super::{Contents, sides};
use crate::bits;
use crate::dtype::{Dtype, e2m1, e4m3};
use crate::error::{Error, Finding, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers, parts_of, rows_of_codes};
use crate::store::{Store, Tensor};

const PARTS: [&str; 7] =
    ["weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale", "weight_g_idx"];

/// One entry of `config_groups`.
#[derive(Clone)]
struct Group {
    format: String,
    bits: u32,
    symmetric: bool,
    strategy: String,
    size: Option<usize>,
    block: Option<(usize, usize)>,
    input: Input,
}

/// What is stored for the inputs of a module.
#[derive(Clone, Copy)]
enum Input {
    /// Nothing: they are kept, or their scales are found while the model runs.
    Unscaled,
    /// Scales; bits, and symmetric or not.
    Fixed(u32, bool),
    /// What the scales that are found have in common: `dynamic` is `local`.
    Shared,
}

struct Module {
    name: String,
    shape: (usize, usize),
    group: Group,
}

/// The modules of a checkpoint.
///
/// # Errors
/// If the configuration is not one of this format.
pub(crate) fn contents(config: &Value, store: &Store, linears: &[String]) -> Result<Contents> {
    let (mut groups, mut targets) = (Vec::new(), Vec::new());
    let stated = config["config_groups"].as_object().ok_or_else(|| Error::config("there is no object `config_groups`"))?;
    for (name, value) in stated {
        for target in value["targets"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            targets.push((target, groups.len()));
        }
        groups.push(entry(name, value, config)?);
    }
    let targets = Targets::new(targets.into_iter())?;
    let ignored = Targets::new(config["ignore"].as_array().into_iter().flatten().filter_map(Value::as_str).map(|t| (t, 0)))?;

    let mut contents = Contents::default();
    let scaled: Vec<&str> = store.tensors().filter_map(|t| t.name.strip_suffix(".weight_scale")).collect();
    for name in &scaled {
        let weight = format!("{name}.weight");
        let Some(group) = targets.of(name).map(|i| &groups[i]) else {
            contents.not_read(name, &PARTS);
            contents.findings.push(Finding::of(
                "config",
                &weight,
                format!("`{name}` is quantized, and no entry of `config_groups` targets it"),
            ));
            continue;
        };
        if ignored.named(name).is_some() {
            contents.findings.push(Finding::of("config", &weight, format!("`{name}` is quantized, and `ignore` says that it is not")));
        }
        if let Err(e) = input(name, group, store, &mut contents) {
            contents.findings.push(Finding::of("tensor", &weight, e.message));
        }
        match module(name, group, store) {
            Ok(module) => {
                contents.coded.insert(weight, Box::new(module));
            }
            Err(e) => {
                contents.not_read(name, &PARTS);
                contents.findings.push(Finding::of("tensor", &weight, e.message));
            }
        }
    }
    for module in linears.iter().filter(|m| !scaled.contains(&m.as_str())) {
        let stored = store.get(&format!("{module}.weight")).is_some();
        if stored && targets.of(module).is_some() && ignored.of(module).is_none() {
            let message = format!("`{module}` is stored as floats, and `ignore` does not say so");
            contents.findings.push(Finding::of("config", &format!("{module}.weight"), message));
        }
    }
    cache(config, store, &mut contents)?;
    Ok(contents)
}

fn entry(name: &str, value: &Value, config: &Value) -> Result<Group> {
    let weights = &value["weights"];
    let need = |key: &str| Error::config(format!("`config_groups.{name}.weights.{key}` is missing or malformed"));
    let size = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    let group = size(&weights["group_size"]);
    let inferred = match (group, weights["group_size"].as_i64()) {
        (Some(_), _) => "group",
        (None, Some(_)) => "channel",
        _ => "tensor",
    };
    let input = &value["input_activations"];
    Ok(Group {
        format: value["format"].as_str().or_else(|| config["format"].as_str()).ok_or_else(|| need("format"))?.to_owned(),
        bits: weights["num_bits"].as_u64().filter(|b| (1..=8).contains(b)).ok_or_else(|| need("num_bits"))? as u32,
        symmetric: weights["symmetric"].as_bool().unwrap_or(true),
        strategy: weights["strategy"].as_str().unwrap_or(inferred).to_owned(),
        size: group,
        block: weights["block_structure"].as_array().and_then(|b| Some((size(b.first()?)?, size(b.get(1)?)?))),
        input: match &input["dynamic"] {
            Value::Bool(false) => {
                let bits = input["num_bits"].as_u64().map_or(8, |b| b.clamp(1, 8) as u32);
                Input::Fixed(bits, input["symmetric"].as_bool().unwrap_or(true))
            }
            Value::String(local) if local == "local" => Input::Shared,
            _ => Input::Unscaled,
        },
    })
}

fn module(name: &str, group: &Group, store: &Store) -> Result<Module> {
    let packed = group.format.ends_with("-pack-quantized") || group.format == "pack-quantized";
    let tensor = store.require(&format!("{name}.{}", if packed { "weight_packed" } else { "weight" }))?;
    let (rows, wide) = sides(tensor)?;
    let shape = match group.format.as_str() {
        "pack-quantized" => {
            let stated = store.expect(&format!("{name}.weight_shape"), &Dtype::Int(8), &[2])?;
            let bytes = store.bytes(stated)?;
            let side = |i: usize| i64::from_le_bytes(crate::dtype::array(&bytes[8 * i..]));
            match (usize::try_from(side(0)), usize::try_from(side(1))) {
                (Ok(r), Ok(c)) if r == rows && words(c, group.bits).contains(&Some(wide)) => (r, c),
                _ => {
                    let message =
                        format!("`{}` says {} x {}, and the codes are {rows} rows of {wide} words", stated.name, side(0), side(1));
                    return Err(Error::tensor(message));
                }
            }
        }
        "int-quantized" | "float-quantized" | "naive-quantized" | "mxfp8-quantized" => (rows, wide),
        "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => (rows, wide.saturating_mul(2)),
        other => return Err(Error::config(format!("format `{other}` of `{name}` cannot be checked"))),
    };
    Ok(Module { name: name.to_owned(), shape, group: group.clone() })
}

/// Words of a row of `n` codes: without gaps, and with as many whole codes to a word as fit.
fn words(n: usize, bits: u32) -> [Option<usize>; 2] {
    [n.checked_mul(bits as usize).map(|b| b.div_ceil(32)), Some(n.div_ceil((32 / bits) as usize))]
}

impl Module {
    fn part(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    /// The tiles that the arguments state.
    fn tiles(&self) -> Result<Tiles> {
        let (rows, cols) = self.shape;
        match (self.group.strategy.as_str(), self.group.size, self.group.block) {
            ("tensor", ..) => Ok(Tiles::new(cols, rows, cols)),
            ("channel", ..) => Ok(Tiles::new(cols, 1, cols)),
            ("group" | "tensor_group", Some(g), _) => Ok(Tiles::new(cols, 1, g)),
            ("block", _, Some((r, c))) => Ok(Tiles::new(cols, r, c)),
            (other, ..) => Err(Error::config(format!("strategy `{other}` of `{}` cannot be checked, or lacks its size", self.name))),
        }
    }

    /// One scale for each tile.
    fn scales(&self, store: &Store, tiles: &Tiles) -> Result<Vec<f32>> {
        let name = self.part("weight_scale");
        let down = self.shape.0.div_ceil(tiles.rows);
        let shape = &store.require(&name)?.shape;
        let fits = shape[..] == [down, tiles.across] || shape[..] == [1] && down * tiles.across == 1;
        if !fits {
            return Err(Error::tensor(format!("`{name}` has the shape {shape:?}, where {:?} belongs", [down, tiles.across])));
        }
        // Powers of two are stored as plain bytes.
        let tensor = store.require(&name)?;
        if tensor.dtype == Dtype::Uint(1) {
            return Ok(Dtype::E8m0.floats(&store.bytes(tensor)?).unwrap_or_default());
        }
        store.floats(&name)
    }

    fn packed(&self, store: &Store, tiles: &Tiles) -> Result<(Vec<u16>, Vec<f32>)> {
        let ((rows, cols), b) = (self.shape, self.group.bits);
        let words = store.require(&self.part("weight_packed"))?;
        let (dense, padded) = ((cols * b as usize).div_ceil(32), cols.div_ceil((32 / b) as usize));
        if words.dtype != Dtype::Int(4) || words.shape != [rows, dense] && words.shape != [rows, padded] {
            let message = format!("tensor `{}` is {} {:?}, where I32 {:?} belongs", words.name, words.dtype, words.shape, [rows, dense]);
            return Err(Error::tensor(message));
        }
        let bytes = store.bytes(words)?;
        let codes = if words.shape[1] == dense {
            rows_of_codes(words, &bytes, b, rows, cols)?
        } else {
            let mut codes = Vec::new();
            for row in bytes.chunks_exact(4 * padded) {
                bits::padded(row, b, cols, &mut codes).ok_or_else(|| Error::tensor(format!("`{}` is too short", words.name)))?;
            }
            codes
        };
        let half = (1 << (b - 1)) as f32;
        let count = tiles.count(rows);
        if self.group.symmetric {
            return Ok((codes, vec![0.0; count]));
        }
        let down = rows.div_ceil(tiles.rows);
        let name = self.part("weight_zero_point");
        let stored = store.require(&name)?;
        let words = (down * b as usize).div_ceil(32);
        if stored.dtype != Dtype::Int(4) || stored.shape != [words, tiles.across] {
            let message = format!("tensor `{name}` is {} {:?}, where I32 {:?} belongs", stored.dtype, stored.shape, [words, tiles.across]);
            return Err(Error::tensor(message));
        }
        let streams = bits::turned(&store.bytes(stored)?, words, tiles.across);
        let zeros = rows_of_codes(stored, &streams, b, tiles.across, down)?;
        Ok((codes, (0..count).map(|t| f32::from(zeros[t % tiles.across * down + t / tiles.across]) - half).collect()))
    }

    fn bytes_of(&self, store: &Store, suffix: &str, dtype: &Dtype, shape: &[usize]) -> Result<Vec<u8>> {
        store.bytes(store.expect(&self.part(suffix), dtype, shape)?)
    }

    /// Codes of four bits, two to a byte.
    fn fours(&self, store: &Store) -> Result<Vec<u16>> {
        let (rows, cols) = self.shape;
        let bytes = self.bytes_of(store, "weight_packed", &Dtype::Uint(1), &[rows, cols / 2])?;
        Ok(bytes.iter().flat_map(|b| [u16::from(b & 15), u16::from(b >> 4)]).collect())
    }
}

impl Load for Module {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, store: &Store) -> Vec<String> {
        let codes: &[&str] = match self.group.format.as_str() {
            "pack-quantized" => &["weight_packed", "weight_shape", "weight_zero_point"],
            "nvfp4-pack-quantized" => &["weight_packed", "weight_global_scale"],
            "mxfp4-pack-quantized" => &["weight_packed"],
            _ => &["weight", "weight_zero_point"],
        };
        parts_of(store, &self.name, &[codes, &["weight_scale", "weight_g_idx"]].concat())
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let ((rows, cols), b) = (self.shape, self.group.bits);
        let mut tiles = self.tiles()?;
        let mut scale = self.scales(store, &tiles)?;
        let none = vec![0.0; scale.len()];
        let small = || (0..=255u8).map(e4m3).collect::<Vec<f32>>();
        let (codes, table, zero) = match self.group.format.as_str() {
            "pack-quantized" => {
                let (codes, zero) = self.packed(store, &tiles)?;
                (codes, integers(b, -(1 << (b - 1))), zero)
            }
            "int-quantized" | "naive-quantized" if store.require(&self.part("weight"))?.dtype == Dtype::Int(1) => {
                let codes = self.bytes_of(store, "weight", &Dtype::Int(1), &[rows, cols])?;
                let zero = if self.group.symmetric {
                    none
                } else {
                    let zeros = store.require(&self.part("weight_zero_point"))?;
                    let shape = store.require(&self.part("weight_scale"))?.shape.clone();
                    let bytes = store.bytes(store.expect(&zeros.name, &Dtype::Int(1), &shape)?)?;
                    bytes.into_iter().map(|z| f32::from(z as i8)).collect()
                };
                (codes.into_iter().map(u16::from).collect(), (0..=255u8).map(|c| f32::from(c as i8)).collect(), zero)
            }
            "float-quantized" | "naive-quantized" | "mxfp8-quantized" => {
                let codes = self.bytes_of(store, "weight", &Dtype::E4m3, &[rows, cols])?;
                (codes.into_iter().map(u16::from).collect(), small(), none)
            }
            "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => {
                if self.group.format.starts_with("nvfp4") {
                    let name = self.part("weight_global_scale");
                    store.expect(&name, &Dtype::F32, &[1])?;
                    let global = store.floats(&name)?[0];
                    scale.iter_mut().for_each(|s| *s /= global);
                }
                (self.fours(store)?, (0..16u8).map(e2m1).collect(), none)
            }
            other => return Err(Error::config(format!("format `{other}` does not go with how `{}` is stored", self.name))),
        };
        if self.group.symmetric {
            zeros_are_zero(store, &self.part("weight_zero_point"))?;
        }
        if let Some(tensor) = store.get(&self.part("weight_g_idx")) {
            tiles = index(store, tensor, cols, &tiles)?;
        }
        Matrix { rows, cols, codes, table, tiles, scale, zero, arithmetic: Arithmetic::Scaled }.checked(&self.name)
    }
}

/// Zero points that older writers stored though the configuration calls the weights symmetric.
fn zeros_are_zero(store: &Store, name: &str) -> Result<()> {
    let Some(tensor) = store.get(name) else { return Ok(()) };
    if store.bytes(tensor)?.iter().all(|b| *b == 0) {
        return Ok(());
    }
    Err(Error::tensor(format!("`{name}` is not zero, and the configuration says `symmetric`")))
}

/// The groups of columns that older writers stored in order of activity.
fn index(store: &Store, tensor: &Tensor, cols: usize, tiles: &Tiles) -> Result<Tiles> {
    let bytes = store.bytes(store.expect(&tensor.name, &Dtype::Int(4), &[cols])?)?;
    let index: Vec<i32> = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(crate::dtype::array(b))).collect();
    Tiles::indexed(&tensor.name, &index, tiles.across)
}

/// Fixed scales of what a module reads: scales, then zero points counted from the smallest code.
fn input(name: &str, group: &Group, store: &Store, contents: &mut Contents) -> Result<()> {
    let [scale, zero, global] = ["input_scale", "input_zero_point", "input_global_scale"].map(|p| format!("{name}.{p}"));
    let numbers = match group.input {
        Input::Unscaled => {
            // They need no finding for each of the parts.
            let there: Vec<String> = [scale, zero, global].into_iter().filter(|p| store.get(p).is_some()).collect();
            let first = there.first().cloned();
            contents.parts.extend(there);
            return first
                .map_or(Ok(()), |p| Err(Error::config(format!("`{p}` is stored, and the configuration states no fixed scale for it"))));
        }
        Input::Shared => {
            store.expect(&global, &Dtype::F32, &[1])?;
            let numbers = store.floats(&global)?;
            contents.parts.push(global);
            numbers
        }
        Input::Fixed(bits, symmetric) => {
            let mut numbers = store.floats(&scale)?;
            if symmetric {
                zeros_are_zero(store, &zero)?;
            } else {
                let zeros = store.expect(&zero, &Dtype::Int(1), &[numbers.len()])?;
                numbers.extend(store.bytes(zeros)?.into_iter().map(|z| f32::from(z as i8) + (1 << (bits - 1)) as f32));
            }
            contents.parts.extend([scale, zero]);
            numbers
        }
    };
    contents.activations.insert(format!("{name} inputs"), numbers);
    Ok(())
}

/// Fixed scales of cached keys and values, under the layers that compute them.
fn cache(config: &Value, store: &Store, contents: &mut Contents) -> Result<()> {
    for tensor in store.tensors() {
        for (letter, part) in [('k', "keys"), ('v', "values")] {
            let Some(attention) = tensor.name.strip_suffix(&format!(".{letter}_scale")) else { continue };
            contents.parts.push(tensor.name.clone());
            if !config["kv_cache_scheme"].is_object() {
                let message = format!("`{}` is stored, and `kv_cache_scheme` is not stated", tensor.name);
                contents.findings.push(Finding::of("config", &tensor.name, message));
            }
            contents.activations.insert(format!("{attention}.{letter}_proj {part}"), store.floats(&tensor.name)?);
        }
    }
    Ok(())
}
