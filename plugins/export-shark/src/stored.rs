//! What an archive says of the tensors in it, whoever wrote it.

use std::collections::BTreeMap;

use qfw_core::checkpoint::TensorSource;
use qfw_core::{Error, Result};
use serde_json::{Map, Value};

use crate::activation::INPUT;
use crate::{INFERENCE_TENSORS, PREFIXES};

pub(crate) fn bad(what: String) -> Error {
    Error::input("checkpoint::malformed", what)
}

/// A tensor of a dataset.
#[derive(Debug)]
pub(crate) enum Kind {
    /// Floats, in this entry.
    Plain(String),
    /// Codes, with the names of their planes.
    Planar(Planar),
    /// How an input is rounded.
    Quantizer { rscale: String, offset: Option<String>, dtype: String },
}

/// Codes in a layout.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Planar {
    pub shape: (usize, usize),
    pub layout: String,
    pub metadata: Map<String, Value>,
    /// Entries by the names of the planes.
    pub planes: BTreeMap<String, String>,
}

/// All of them by name.
pub(crate) struct Stored(BTreeMap<String, Kind>);

impl Stored {
    /// What the archive says.
    ///
    /// # Errors
    /// If it says nothing, or of a tensor what is not known here.
    pub(crate) fn of(tensors: &dyn TensorSource) -> Result<Self> {
        let names = PREFIXES.map(|p| format!("{p}{INFERENCE_TENSORS}"));
        let Some(entry) = names.iter().find(|name| tensors.info(name).is_some()) else {
            return Err(bad(format!("the archive has no entry `{}`, so that nothing says what its tensors are", names[0]))
                .hint("a dataset of sharktank has one; other archives cannot be read"));
        };
        let said: BTreeMap<String, Value> =
            serde_json::from_slice(&tensors.read_bytes(entry)?).map_err(|e| bad(format!("`{entry}` in the archive: {e}")))?;
        let kind = |(name, said): (String, Value)| {
            let kind = kind(&name, &said).map_err(|e| e.within(format!("`{name}` in `{entry}`")))?;
            Ok((name, kind))
        };
        said.into_iter().map(kind).collect::<Result<_>>().map(Self)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Kind> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Kind)> {
        self.0.iter()
    }
}

fn kind(name: &str, said: &Value) -> Result<Kind> {
    let raw: BTreeMap<String, String> =
        serde_json::from_value(said["raw_tensors"].clone()).map_err(|e| bad(format!("`raw_tensors`: {e}")))?;
    let entry = |part: &str| raw.get(part).cloned().ok_or_else(|| bad(format!("`raw_tensors` has no `{part}`")));
    match said["type_name"].as_str() {
        Some("PrimitiveTensor") => Ok(Kind::Plain(entry("")?)),
        Some("PlanarQuantizedTensor") => planar(said, raw).map(Kind::Planar),
        Some("StaticScaledQuantizer") if name.rsplit('.').next() == Some(INPUT) => {
            for key in ["axis", "disable_saturate"] {
                if let Some(v) = said.get(key).filter(|v| !v.is_null() && **v != Value::Bool(false)) {
                    return Err(bad(format!("`{key}` is {v}")).hint("inputs with one scale, clamped to their type, can be read"));
                }
            }
            let dtype = said["dtype"].as_str().ok_or_else(|| bad("it has no `dtype`".to_owned()))?.to_owned();
            Ok(Kind::Quantizer { rscale: entry("rscale")?, offset: raw.get("offset").cloned(), dtype })
        }
        other => {
            let other = other.unwrap_or("nothing");
            Err(bad(format!("its `type_name` is {other}"))
                .hint("floats, planar codes, and static quantizers of inputs (`q_input`) can be read"))
        }
    }
}

fn planar(said: &Value, planes: BTreeMap<String, String>) -> Result<Planar> {
    let shape = match said["shape"].as_array().map(|s| s.iter().map(Value::as_u64).collect::<Vec<_>>()).as_deref() {
        Some([Some(rows), Some(cols)]) if *rows > 0 && *cols > 0 => (*rows as usize, *cols as usize),
        _ => return Err(bad(format!("its shape is {}, and codes are those of a matrix", said["shape"]))),
    };
    let layout = said["layout_type"].as_str().ok_or_else(|| bad("it has no `layout_type`".to_owned()))?.to_owned();
    let metadata = said["layout_metadata"].as_object().cloned().unwrap_or_default();
    Ok(Planar { shape, layout, metadata, planes })
}
