//! `qfw`: the form that runs of this project keep, which holds every scheme.
//!
//! `config.json` lists modules with their shapes and specifications. Of a module `M` `[m, n]` at `b` bits: `M.codes` `U8 [m, ⌈n·b/8⌉]`, a
//! stream along each row of codes counted from the smallest; `M.scale` `F32`, one for each tile; `M.zero`, integers or floats, where there
//! are zero points; `M.group_index` `I32 [n]` where groups do not run in storage order. Integers stand for `s·(q − z)`, floats and tables
//! for `s·v`. Branches beside the codes, what inputs are multiplied by (`M.multiplier`, one for each place in `multipliers`), and the
//! parameters of rounded activations, are tensors of their own.

use serde_json::Value;

use super::Contents;
use crate::dtype::{Dtype, array, small_float};
use crate::error::{Error, Finding, Result};
use crate::matrix::{Arithmetic, Load, Matrix, Tiles, parts_of, rows_of_codes};
use crate::store::Store;

struct Module {
    name: String,
    shape: (usize, usize),
    bits: u32,
    /// What each code stands for.
    table: Vec<f32>,
    zero: Zero,
    /// Scales have two levels.
    two_levels: bool,
    /// Rows and columns of a tile.
    tile: (usize, usize),
}

#[derive(Clone, Copy)]
enum Zero {
    Fixed(f32),
    Integer,
    Float,
}

/// The modules of a checkpoint.
///
/// # Errors
/// If the configuration is not one of this form.
pub(crate) fn contents(config: &Value, store: &Store) -> Result<Contents> {
    let mut contents = Contents::default();
    let modules = config["modules"].as_array().ok_or_else(|| Error::config("there is no list `modules`"))?;
    for entry in modules {
        let module = module(entry)?;
        let name = module.name.clone();
        if contents.coded.insert(format!("{name}.weight"), Box::new(module)).is_some() {
            contents.findings.push(Finding::new("config", format!("`modules` lists `{name}` twice")));
        }
    }
    for tensor in store.tensors() {
        if tensor.name.strip_suffix(".codes").is_some_and(|m| !contents.coded.contains_key(&format!("{m}.weight"))) {
            contents.findings.push(Finding::of("config", &tensor.name, format!("`{}` belongs to no module of `modules`", tensor.name)));
        }
    }
    for entry in config["activations"].as_array().into_iter().flatten() {
        activation(entry, store, &mut contents)?;
    }
    let (places, vectors) = (config["multipliers"].as_array().map_or(0, Vec::len), multipliers(store).count());
    if places != vectors {
        let message = format!("`multipliers` lists {places} places, and {vectors} vectors are stored");
        contents.findings.push(Finding::new("config", message));
    }
    Ok(contents)
}

/// What inputs are multiplied by.
fn multipliers(store: &Store) -> impl Iterator<Item = &str> {
    store.tensors().map(|t| t.name.as_str()).filter(|name| name.ends_with(".multiplier"))
}

fn malformed(key: &str) -> Error {
    Error::config(format!("`modules[].{key}` is missing or malformed"))
}

fn size(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn module(entry: &Value) -> Result<Module> {
    let spec = &entry["spec"];
    let side = |i: usize| size(&entry["shape"][i]).filter(|n| *n > 0);
    let shape = (|| Some((side(0)?, side(1)?)))().ok_or_else(|| malformed("shape"))?;
    let bits = spec["bits"].as_u64().filter(|b| (1..=16).contains(b)).ok_or_else(|| malformed("spec.bits"))? as u32;
    let (table, zero) = grid(&spec["grid"], bits)?;
    let extent = |axis: &Value, all: usize| match axis {
        Value::String(s) if s == "all" => Some(all),
        other => size(&other["of"]).filter(|n| *n > 0).map(|n| n.min(all.max(1))),
    };
    let granularity = &spec["granularity"];
    let tile = (|| Some((extent(&granularity["rows"], shape.0)?, extent(&granularity["cols"], shape.1)?)))();
    Ok(Module {
        name: entry["module"].as_str().ok_or_else(|| malformed("module"))?.to_owned(),
        shape,
        bits,
        table,
        zero,
        two_levels: spec["scale"] == "two-level",
        tile: tile.ok_or_else(|| malformed("spec.granularity"))?,
    })
}

/// What codes stand for, and their zero point.
fn grid(grid: &Value, bits: u32) -> Result<(Vec<f32>, Zero)> {
    let codes = 0..1u32 << bits;
    let (int, float) = (&grid["int"], &grid["float"]);
    if int.is_object() {
        let first = int["lo"].as_i64().and_then(|n| i32::try_from(n).ok()).ok_or_else(|| malformed("spec.grid.int.lo"))?;
        let zero = match &int["zero"] {
            Value::String(s) if s == "none" => Zero::Fixed(0.0),
            Value::String(s) if s == "integer" => Zero::Integer,
            Value::String(s) if s == "float" => Zero::Float,
            other => Zero::Fixed(other["fixed"].as_i64().ok_or_else(|| malformed("spec.grid.int.zero"))? as f32),
        };
        return Ok((codes.map(|c| (i64::from(c) + i64::from(first)) as f32).collect(), zero));
    }
    if float.is_object() {
        let field = |key: &str| float[key].as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| n.abs() < 256);
        let (exp, man, bias) = (|| Some((field("exp")?, field("man")?, field("bias")?)))().ok_or_else(|| malformed("spec.grid.float"))?;
        if !(1..=8).contains(&exp) || !(0..=14).contains(&man) || 1 + exp + man != bits as i32 {
            return Err(malformed("spec.grid.float"));
        }
        return Ok((codes.map(|c| small_float(c, exp as u32, man as u32, bias)).collect(), Zero::Fixed(0.0)));
    }
    let levels = grid["levels"].as_array().ok_or_else(|| malformed("spec.grid"))?;
    let levels: Option<Vec<f32>> = levels.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
    Ok((levels.ok_or_else(|| malformed("spec.grid.levels"))?, Zero::Fixed(0.0)))
}

impl Load for Module {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn parts(&self, store: &Store) -> Vec<String> {
        let mut suffixes = vec!["codes", "scale", "group_index"];
        suffixes.extend((!matches!(self.zero, Zero::Fixed(_))).then_some("zero"));
        suffixes.extend(self.two_levels.then_some("global"));
        parts_of(store, &self.name, &suffixes)
    }

    fn global(&self, store: &Store) -> Result<Option<f32>> {
        if !self.two_levels {
            return Ok(None);
        }
        let name = format!("{}.global", self.name);
        store.expect(&name, &Dtype::F32, &[1])?;
        Ok(store.floats(&name)?.first().copied())
    }

    fn load(&self, store: &Store) -> Result<Matrix> {
        let ((rows, cols), part) = (self.shape, |suffix: &str| format!("{}.{suffix}", self.name));
        let wide = cols.checked_mul(self.bits as usize).ok_or_else(|| malformed("shape"))?.div_ceil(8);
        let stored = store.expect(&part("codes"), &Dtype::Uint(1), &[rows, wide])?;
        let codes = rows_of_codes(stored, &store.bytes(stored)?, self.bits, rows, cols)?;
        let mut tiles = Tiles::new(cols, self.tile.0, self.tile.1);
        let grid = [rows.div_ceil(tiles.rows), tiles.across];
        store.expect(&part("scale"), &Dtype::F32, &grid)?;
        let scale = store.floats(&part("scale"))?;
        let zero = match self.zero {
            Zero::Fixed(z) => vec![z; scale.len()],
            Zero::Integer => {
                let bytes = store.bytes(store.expect(&part("zero"), &Dtype::Int(4), &grid)?)?;
                bytes.chunks_exact(4).map(|b| i32::from_le_bytes(array(b)) as f32).collect()
            }
            Zero::Float => {
                store.expect(&part("zero"), &Dtype::F32, &grid)?;
                store.floats(&part("zero"))?
            }
        };
        if let Some(tensor) = store.get(&part("group_index")) {
            let bytes = store.bytes(store.expect(&tensor.name, &Dtype::Int(4), &[cols])?)?;
            let index: Vec<i32> = bytes.chunks_exact(4).map(|b| i32::from_le_bytes(array(b))).collect();
            tiles.column = Tiles::indexed(&tensor.name, &index, tiles.across)?.column;
        }
        Matrix { rows, cols, codes, table: self.table.clone(), tiles, scale, zero, arithmetic: Arithmetic::Scaled }.checked(&self.name)
    }
}

/// Fixed parameters of rounded activations, for each module they were planned for.
fn activation(entry: &Value, store: &Store, contents: &mut Contents) -> Result<()> {
    let text = |key: &str| entry[key].as_str().ok_or_else(|| malformed(key).message.replace("modules", "activations"));
    let (place, part) = (text("place").map_err(Error::config)?, text("part").map_err(Error::config)?);
    if entry["spec"]["timing"] != "static" {
        return Ok(());
    }
    let [scale, zero] = ["scale", "zero"].map(|s| format!("qfw.activations.{place}.{part}.{s}"));
    let mut numbers = store.floats(&scale)?;
    let (int, zeros) = (&entry["spec"]["grid"]["int"], store.floats(&zero)?);
    if int["zero"] == "integer" {
        let first = int["lo"].as_i64().unwrap_or(0) as f32;
        numbers.extend(zeros.into_iter().map(|z| z - first));
    } else {
        let fixed = int["zero"]["fixed"].as_i64().unwrap_or(0) as f32;
        if let Some(other) = zeros.into_iter().find(|z| *z != fixed) {
            let message = format!("`{zero}` holds {other}, and the format has its zero at {fixed}");
            contents.findings.push(Finding::of("tensor", &zero, message));
        }
    }
    for module in entry["modules"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        contents.activations.insert(format!("{module} {part}"), numbers.clone());
    }
    contents.parts.extend([scale, zero]);
    Ok(())
}
