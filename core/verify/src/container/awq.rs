//! `awq`, version `gemm`: what AutoAWQ writes, of a matrix with `n` inputs and `m` outputs at 4 bits.
//!
//! `qweight` `I32 [n, m/8]` and `qzeros` `I32 [groups, m/8]`: bits `4k .. 4k+4` of a word hold output `[0, 2, 4, 6, 1, 3, 5, 7][k]` of its
//! eight. `scales` `[groups, m]`. Value: `scales[g, o]·(u − z)`; without `zero_point`, `z = 8`. Source: AutoAWQ,
//! `modules/linear/gemm.py` and `utils/packing_utils.py`.

use serde_json::Value;

use super::gptq::{shaped, transpose};
use super::{Contents, group, sides};
use crate::dtype::{Dtype, array};
use crate::error::{Error, Finding, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, integers, parts_of};
use crate::store::{Store, Tensor};

const PARTS: [&str; 3] = ["qweight", "qzeros", "scales"];

/// The output that each nibble of a word holds.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

struct Module {
    name: String,
    shape: (usize, usize),
    group: usize,
    affine: bool,
}

/// The modules of a checkpoint.
///
/// # Errors
/// If the configuration is not one of this format.
pub(crate) fn contents(config: &Value, store: &Store, linears: &[String]) -> Result<Contents> {
    let either = |a: &str, b: &str| config.get(a).or_else(|| config.get(b)).cloned().unwrap_or_default();
    let version = config["version"].as_str().unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(Error::config(format!("`version` `{version}` of awq cannot be checked")).hint("`gemm` can be"));
    }
    let bits = either("bits", "w_bit");
    if bits.as_u64() != Some(4) {
        return Err(Error::config(format!("`bits` is {bits}, and awq has 4")));
    }
    let stated = either("group_size", "q_group_size").as_i64().ok_or_else(|| Error::config("`group_size` has to be an integer"))?;
    let affine = config["zero_point"].as_bool().unwrap_or(true);
    let kept: Vec<&str> = config["modules_to_not_convert"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Readers look for these words anywhere in a name.
    let is_kept = |module: &str| kept.iter().any(|k| module.contains(k));

    let mut contents = Contents::default();
    let modules: Vec<&Tensor> = store.tensors().filter(|t| t.name.ends_with(".qweight")).collect();
    for words in &modules {
        let Some(name) = words.name.strip_suffix(".qweight") else { continue };
        let weight = format!("{name}.weight");
        match sides(words) {
            _ if is_kept(name) => {
                contents.not_read(name, &PARTS);
                let message = format!("`{name}` is quantized, and `modules_to_not_convert` says that it is kept");
                contents.findings.push(Finding::of("config", &weight, message));
            }
            Ok((inputs, wide)) => {
                let module = Module { name: name.to_owned(), shape: (8 * wide, inputs), group: group(stated, inputs), affine };
                contents.coded.insert(weight, Box::new(module));
            }
            Err(e) => {
                contents.not_read(name, &PARTS);
                contents.findings.push(Finding::of("tensor", &weight, e.message));
            }
        }
    }
    for module in linears.iter().filter(|m| store.get(&format!("{m}.qweight")).is_none()) {
        // The head is never looked for.
        if module != "lm_head" && !is_kept(module) && store.get(&format!("{module}.weight")).is_some() {
            let message = format!("`{module}` is stored as floats, and `modules_to_not_convert` does not say so");
            contents.findings.push(Finding::of("config", &format!("{module}.weight"), message));
        }
    }
    Ok(contents)
}

impl Load for Module {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, store: &Store) -> Vec<String> {
        parts_of(store, &self.name, if self.affine { &PARTS } else { &["qweight", "scales"] })
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let ((outputs, inputs), part) = (self.shape, |suffix: &str| format!("{}.{suffix}", self.name));
        let groups = store.require(&part("scales"))?.shape.first().copied().unwrap_or(0);
        if groups != inputs.div_ceil(self.group.max(1)) {
            let message =
                format!("`{}` has {groups} groups, and groups of {} make another number of {inputs} inputs", part("scales"), self.group);
            return Err(Error::tensor(message));
        }
        let scale = transpose(&shaped(store, &part("scales"), groups, outputs)?, groups, outputs);
        let codes = nibbles(store, &part("qweight"), inputs, outputs)?;
        let zero = if self.affine {
            nibbles(store, &part("qzeros"), groups, outputs)?.into_iter().map(f32::from).collect()
        } else {
            vec![8.0; groups * outputs]
        };
        let tiles = Tiles::new(inputs, 1, self.group);
        Matrix { rows: outputs, cols: inputs, codes, table: integers(4, 0), tiles, scale, zero, arithmetic: Arithmetic::Scaled }
            .checked(&self.name)
    }
}

/// The nibbles of an `I32 [rows, outputs/8]` tensor, as `[outputs, rows]`.
fn nibbles(store: &Store, name: &str, rows: usize, outputs: usize) -> Result<Vec<u16>> {
    let bytes = store.bytes(store.expect(name, &Dtype::Int(4), &[rows, outputs / 8])?)?;
    let mut out = vec![0; rows * outputs];
    for (i, word) in bytes.chunks_exact(4).enumerate() {
        let (word, row, first) = (u32::from_le_bytes(array(word)), i / (outputs / 8), i % (outputs / 8) * 8);
        for (k, output) in ORDER.iter().enumerate() {
            out[(first + output) * rows + row] = (word >> (4 * k) & 15) as u16;
        }
    }
    Ok(out)
}
