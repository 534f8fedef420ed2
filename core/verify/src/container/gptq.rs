//! `gptq`: what AutoGPTQ and GPTQModel write, of a matrix with `n` inputs and `m` outputs at `b` bits.
//!
//! `qweight` `I32 [n·b/32, m]`: down each column a stream of the unsigned codes `u` of one output. `qzeros` `I32 [groups, m·b/32]`: along
//! each row a stream of zero points, less one in the first version of the format. `scales` `[groups, m]`. `g_idx` `I32 [n]`:
//! the group of each input; without it, input `i` is in group `i / group_size`. Value: `scales[g, o]·(u − z)`. Source: GPTQModel 7,
//! `nn_modules/qlinear/__init__.py` and `utils/model.py`.

use serde_json::Value;

use super::pattern::from_start;
use super::{Contents, group, sides};
use crate::bits;
use crate::dtype::{Dtype, array};
use crate::error::{Error, Finding, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers, parts_of, rows_of_codes};
use crate::store::{Store, Tensor};

const PARTS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

struct Module {
    name: String,
    shape: (usize, usize),
    bits: u32,
    group: usize,
    /// Zero points are stored less one.
    less_one: bool,
}

/// What configurations say of one module.
struct Said {
    bits: u32,
    group: i64,
    kept: bool,
}

/// The modules of a checkpoint.
///
/// # Errors
/// If the configuration is not one of this format.
pub(crate) fn contents(config: &Value, store: &Store, linears: &[String]) -> Result<Contents> {
    let format = config["checkpoint_format"].as_str().or_else(|| config["format"].as_str()).unwrap_or("gptq");
    let less_one = match format {
        "gptq" => true,
        "gptq_v2" => false,
        other => {
            return Err(Error::config(format!("`checkpoint_format` `{other}` cannot be checked")).hint("`gptq` and `gptq_v2` can be"));
        }
    };
    let mut dynamic = Vec::new();
    for (pattern, changes) in config["dynamic"].as_object().into_iter().flatten() {
        let (kept, pattern) = match pattern.strip_prefix("-:") {
            Some(rest) => (true, rest),
            None => (false, pattern.strip_prefix("+:").unwrap_or(pattern)),
        };
        dynamic.push((from_start(pattern)?, kept, changes));
    }
    let base = || -> Option<(u32, i64)> { Some((u32::try_from(config["bits"].as_u64()?).ok()?, config["group_size"].as_i64()?)) };
    let (bits, group) = base().ok_or_else(|| Error::config("`bits` and `group_size` have to be integers"))?;
    let said = |module: &str| match dynamic.iter().find(|(pattern, ..)| pattern.is_match(module)) {
        Some((_, kept, changes)) => Said {
            bits: changes["bits"].as_u64().map_or(bits, |b| u32::try_from(b).unwrap_or(0)),
            group: changes["group_size"].as_i64().unwrap_or(group),
            kept: *kept,
        },
        None => Said { bits, group, kept: false },
    };

    let mut contents = Contents::default();
    let modules: Vec<&str> = store.tensors().filter_map(|t| t.name.strip_suffix(".qweight")).collect();
    for name in &modules {
        let weight = format!("{name}.weight");
        match module(name, &said(name), less_one, store) {
            Ok(module) => {
                contents.coded.insert(weight, Box::new(module));
            }
            Err(e) => {
                contents.not_read(name, &PARTS);
                contents.findings.push(Finding::of("tensor", &weight, e.message));
            }
        }
    }
    for module in linears.iter().filter(|m| !modules.contains(&m.as_str())) {
        let head = module == "lm_head" && config["lm_head"] != true;
        if !head && !said(module).kept && store.get(&format!("{module}.weight")).is_some() {
            let message = format!("`{module}` is stored as floats, and no pattern of `dynamic` says that it is kept");
            contents.findings.push(Finding::of("config", &format!("{module}.weight"), message));
        }
    }
    Ok(contents)
}

fn module(name: &str, said: &Said, less_one: bool, store: &Store) -> Result<Module> {
    if said.kept {
        return Err(Error::tensor(format!("`{name}` is quantized, and `dynamic` says that it is kept")));
    }
    if ![2, 3, 4, 8].contains(&said.bits) {
        return Err(Error::config(format!("`{name}` has {} bits, and 2, 3, 4 and 8 can be checked", said.bits)));
    }
    let words = store.require(&format!("{name}.qweight"))?;
    let (down, outputs) = sides(words)?;
    let inputs = down.checked_mul(32).filter(|n| n % said.bits as usize == 0).map(|n| n / said.bits as usize);
    let inputs = inputs.ok_or_else(|| Error::tensor(format!("`{}` has {down} words a column, which hold no whole codes", words.name)))?;
    Ok(Module { name: name.to_owned(), shape: (outputs, inputs), bits: said.bits, group: group(said.group, inputs), less_one })
}

impl Module {
    /// Zero points. Those less one are subtracted from whole words where codes fill them, so that 0 borrows from the next field, and field by
    /// field where they do not.
    fn zeros(&self, stored: &Tensor, mut bytes: Vec<u8>, groups: usize, outputs: usize) -> Result<Vec<f32>> {
        let whole = 32 % self.bits == 0;
        if self.less_one && whole {
            let ones = (0..32).step_by(self.bits as usize).fold(0u32, |word, at| word | 1 << at);
            for word in bytes.chunks_exact_mut(4) {
                word.copy_from_slice(&u32::from_le_bytes(array(word)).wrapping_add(ones).to_le_bytes());
            }
        }
        let (add, mask) = (u16::from(self.less_one && !whole), (1u16 << self.bits) - 1);
        let zeros = rows_of_codes(stored, &bytes, self.bits, groups, outputs)?;
        Ok(zeros.into_iter().map(|z| f32::from((z + add) & mask)).collect())
    }
}

impl Load for Module {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, store: &Store) -> Vec<String> {
        parts_of(store, &self.name, &PARTS)
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let (outputs, inputs) = self.shape;
        let (bits, part) = (self.bits as usize, |suffix: &str| format!("{}.{suffix}", self.name));
        let word = |count: usize| count.checked_mul(bits).filter(|n| n % 32 == 0).map(|n| n / 32);
        let wide = word(outputs).ok_or_else(|| Error::tensor(format!("{outputs} outputs of {bits} bits fill no whole words")))?;
        let words = store.expect(&part("qweight"), &Dtype::Int(4), &[inputs * bits / 32, outputs])?;
        let streams = bits::turned(&store.bytes(words)?, inputs * bits / 32, outputs);
        let codes = rows_of_codes(words, &streams, self.bits, outputs, inputs)?;
        drop(streams);

        let groups = store.require(&part("scales"))?.shape.first().copied().unwrap_or(0);
        let across = transpose(&shaped(store, &part("scales"), groups, outputs)?, groups, outputs);
        let stored = store.expect(&part("qzeros"), &Dtype::Int(4), &[groups, wide])?;
        let zeros = self.zeros(stored, store.bytes(stored)?, groups, outputs)?;
        let tiles = match store.get(&part("g_idx")) {
            Some(_) => {
                let index = store.bytes(store.expect(&part("g_idx"), &Dtype::Int(4), &[inputs])?)?;
                let index: Vec<i32> = index.chunks_exact(4).map(|b| i32::from_le_bytes(array(b))).collect();
                Tiles::indexed(&part("g_idx"), &index, groups)?
            }
            None => Tiles::new(inputs, 1, self.group),
        };
        if groups != inputs.div_ceil(self.group.max(1)) {
            let message = format!(
                "`{}` has {groups} groups, and groups of {} make {} of {inputs} inputs",
                part("scales"),
                self.group,
                inputs.div_ceil(self.group.max(1))
            );
            return Err(Error::tensor(message));
        }
        Matrix {
            rows: outputs,
            cols: inputs,
            codes,
            table: integers(self.bits, 0),
            tiles,
            scale: across,
            zero: transpose(&zeros, groups, outputs),
            arithmetic: Arithmetic::Scaled,
        }
        .checked(&self.name)
    }
}

/// Floats of a tensor that has to have this shape.
pub(super) fn shaped(store: &Store, name: &str, rows: usize, cols: usize) -> Result<Vec<f32>> {
    let tensor = store.require(name)?;
    if tensor.shape != [rows, cols] {
        return Err(Error::tensor(format!("tensor `{name}` has the shape {:?}, where {:?} belongs", tensor.shape, [rows, cols])));
    }
    store.floats(name)
}

/// A `[rows, cols]` matrix, turned.
pub(super) fn transpose(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}
