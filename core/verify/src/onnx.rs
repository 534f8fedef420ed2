//! A checkpoint that is an ONNX graph: which of its tensors are tensors of the model.
//!
//! What is kept has the names of the checkpoint. Codes are called `PATH.codes`, factors of a branch `PATH.branch.a` and `.b`, fixed scales of
//! activations `PLACE.PART.scale` and `.zero`, with the roles of layers and places that `qfw plan` shows. Tables of rotary positions
//! (`rotary.*`) and matrices of rotations (`rotation.*`) belong to no tensor of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::checkpoint::{Activation, CONFIG, Checkpoint, Entry, Form, Names, beside, object, plain};
use crate::container::onnx::Weight;
use crate::dtype::Dtype;
use crate::error::{Error, Finding, Result};
use crate::family;
use crate::onnx_file::{self, Graph, Kind};
use crate::store::Store;

/// What the tensors of a weight with codes are called, behind its role.
const CODED: [&str; 4] = ["codes", "scales", "zeros", "values"];

/// Beginnings of the names of tables that follow from the configuration and the plan.
const MADE: [&str; 2] = ["rotary.", "rotation."];

impl Checkpoint {
    /// Opens an `.onnx` file; what lies beside it says what model it is.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn of_onnx(file: &Path) -> Result<Self> {
        let mut findings = Vec::new();
        let (graph, mut store) = onnx_file::read(file, &mut findings)?;
        let dir = beside(file);
        let config = object(&dir.join(CONFIG))?;
        let expected = config.as_ref().and_then(family::of_config);
        let names = Names::of(expected.as_deref().unwrap_or_default(), &store);
        let modules: BTreeMap<String, String> = names.modules();
        let module = |path: &str| modules.get(path).cloned().unwrap_or_else(|| path.to_owned());
        // A weight whose parts cannot be read is not missing.
        let of_part =
            |name: &String| name.rsplit_once('.').filter(|(_, part)| CODED.contains(part)).map(|(path, _)| module(path) + ".weight");
        let broken: Vec<String> = store.broken.iter().filter_map(of_part).collect();
        store.broken.extend(broken);
        let (mut entries, mut parts, mut aside) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        for (tensor, path) in store.tensors().filter_map(|t| Some((t, t.name.strip_suffix(".codes")?))) {
            let name = format!("{}.weight", module(path));
            match Weight::of(tensor, &graph, &store) {
                Ok(weight) => {
                    let (rows, cols) = crate::matrix::Load::shape(&weight);
                    parts.extend(crate::matrix::Load::parts(&weight, &store));
                    entries.insert(name, Entry { shape: vec![rows, cols], form: Form::Coded(Box::new(weight)) });
                }
                Err(e) => {
                    parts.extend(CODED.map(|part| format!("{path}.{part}")));
                    findings.push(Finding::of("tensor", &name, e.message));
                }
            }
        }
        let activations = activations(&store, &graph, &modules, &mut parts)?;
        for tensor in store.tensors().filter(|t| !parts.contains(&t.name)) {
            if graph.readers(&tensor.name).len() == 0 {
                let message = format!("no operation of the graph reads `{}`", tensor.name);
                findings.push(Finding::of("extra", &tensor.name, message));
            }
            // Numbers that the graph itself is written with: how long, which axis.
            if tensor.name.starts_with("constant.") {
                continue;
            }
            let factor = [(".branch.a", ".branch_a"), (".branch.b", ".branch_b")];
            let factor = factor.iter().find_map(|(end, suffix)| Some(format!("{}{suffix}", module(tensor.name.strip_suffix(end)?))));
            if MADE.iter().any(|m| tensor.name.starts_with(m)) {
                aside.push(tensor.name.clone());
            }
            let turned = tensor.shape.len() == 2 && (factor.is_some() || names.get(&tensor.name).is_some_and(|e| e.turned));
            entries.insert(factor.unwrap_or_else(|| tensor.name.clone()), plain(tensor, turned));
        }
        let known = expected.is_some();
        if known {
            names.with_aside(&aside).check(&entries, &store, &mut findings);
        }
        let container = "onnx".to_owned();
        Ok(Self { dir: dir.to_owned(), container, store, entries, activations, findings, aside, copies: BTreeMap::new(), known })
    }
}

/// Parameters of rounded activations, under the layers that they are planned for.
fn activations(
    store: &Store,
    graph: &Graph,
    modules: &BTreeMap<String, String>,
    parts: &mut BTreeSet<String>,
) -> Result<BTreeMap<String, Activation>> {
    let mut out = BTreeMap::new();
    for tensor in store.tensors().filter(|t| t.dtype == Dtype::F32) {
        let Some(stem) = tensor.name.strip_suffix(".scale") else { continue };
        let Some((place, part)) = stem.rsplit_once('.') else { continue };
        let mut numbers = store.floats(&tensor.name)?;
        let scales = numbers.len();
        let zero = format!("{stem}.zero");
        parts.insert(tensor.name.clone());
        let mut middle = None;
        if let Some(stored) = store.get(&zero) {
            let kind = graph.kind(&zero);
            let width = match kind {
                Some(Kind::Uint4) => 4,
                Some(Kind::Uint8) => 8,
                _ => return Err(Error::tensor(format!("`{zero}` is {}, where U8 or UINT4 belongs", stored.dtype))),
            };
            let mut zeros = Vec::new();
            crate::bits::stream(&store.bytes(stored)?, width, scales, &mut zeros)
                .ok_or_else(|| Error::tensor(format!("`{zero}` is too short for {scales} zero points")))?;
            middle = zeros.iter().all(|z| *z == 1 << (width - 1)).then_some(scales);
            numbers.extend(zeros.into_iter().map(f32::from));
            parts.insert(zero);
        }
        let (block, port) = match place.strip_prefix("blocks.").and_then(|p| p.split_once('.')) {
            Some((b, port)) => (format!("blocks.{b}."), port),
            None => (String::new(), place),
        };
        for role in roles(port, part) {
            if let Some(module) = modules.get(&format!("{block}{role}")) {
                out.insert(format!("{module} {part}"), Activation { numbers: numbers.clone(), enough: middle });
            }
        }
    }
    Ok(out)
}

/// The layers that a part of a scheme is planned for at a place.
fn roles(port: &str, part: &str) -> &'static [&'static str] {
    match (port, part) {
        ("attn.in", "inputs") => &["attn.q", "attn.k", "attn.v", "attn.qkv"],
        ("ctx", "inputs") | ("o.out", _) => &["attn.o"],
        ("mlp.in", "inputs") => &["mlp.gate", "mlp.up"],
        ("down.in", "inputs") | ("down.out", _) => &["mlp.down"],
        ("final.out", "inputs") | ("logits", _) => &["head"],
        ("q" | "q.rope", _) => &["attn.q", "attn.qkv"],
        ("k" | "k.rope", _) => &["attn.k", "attn.qkv"],
        ("v", _) => &["attn.v", "attn.qkv"],
        ("gate", _) => &["mlp.gate"],
        ("up", _) => &["mlp.up"],
        _ => &[],
    }
}
