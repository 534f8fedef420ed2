//! What a stored configuration says, whoever wrote it.

use qfw_core::Result;
use regex::Regex;
use serde_json::Value;

use crate::Version;
use crate::accept::BITS;
use crate::read::bad;

/// How a module is quantized, as far as the configuration says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub bits: u8,
    /// Inputs of a group; `None` where nothing says so, and all inputs at 0.
    pub group: Option<u32>,
    /// Whether zero points are all the middle; `None` where nothing says so.
    pub symmetric: Option<bool>,
}

/// The configuration.
pub(crate) struct Stored {
    pub version: Version,
    base: Said,
    /// What `dynamic` changes, in its order: the first that fits counts.
    changes: Vec<(Regex, Said)>,
}

impl Stored {
    /// Reads `quantization_config`.
    ///
    /// # Errors
    /// If it is malformed, or of a layout that is not read here.
    pub(crate) fn parse(config: &Value) -> Result<Self> {
        let format = ["checkpoint_format", "format"].iter().find_map(|key| config.get(key).filter(|v| !v.is_null()));
        let version = match format.map(Value::as_str) {
            None | Some(Some("gptq")) => Version::One,
            Some(Some("gptq_v2")) => Version::Two,
            Some(_) => {
                let what = format.map(Value::to_string).unwrap_or_default();
                return Err(bad(format!("`quantization_config.checkpoint_format` is {what}, whose layout is not known here"))
                    .hint("`gptq` and `gptq_v2` can be read; convert the checkpoint with the tool that wrote it"));
            }
        };
        let nothing = Said { bits: 0, group: None, symmetric: None };
        let base = said("quantization_config", config, nothing)?;
        if base.bits == 0 {
            return Err(bad("`quantization_config.bits` is missing".to_owned()).hint("bits that can be read: 2, 3, 4 and 8"));
        }
        let mut changes = Vec::new();
        for (key, value) in config.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
            // What is kept is told by its tensors.
            if key.starts_with("-:") {
                continue;
            }
            let text = key.strip_prefix("+:").unwrap_or(key);
            let regex = Regex::new(&format!("^(?:{text})"))
                .map_err(|_| bad(format!("`quantization_config.dynamic` has the pattern `{key}`, which cannot be read")))?;
            changes.push((regex, said(&format!("quantization_config.dynamic.{key}"), value, base)?));
        }
        Ok(Self { version, base, changes })
    }

    /// What it says of a module.
    pub(crate) fn of(&self, module: &str) -> Said {
        self.changes.iter().find(|(regex, _)| regex.is_match(module)).map_or(self.base, |(_, said)| *said)
    }
}

/// The keys of `object`, called `path`, over what holds without them.
fn said(path: &str, object: &Value, over: Said) -> Result<Said> {
    let of = |key: &str| object.get(key).filter(|v| !v.is_null());
    let wrong = |key: &str, v: &Value| bad(format!("`{path}.{key}` is {v}"));
    let bits = match of("bits") {
        None => over.bits,
        Some(v) => v
            .as_u64()
            .and_then(|b| BITS.into_iter().find(|x| u64::from(*x) == b))
            .ok_or_else(|| wrong("bits", v).hint("bits that can be read: 2, 3, 4 and 8"))?,
    };
    let group = match of("group_size") {
        None => over.group,
        Some(v) if v.as_i64() == Some(-1) => Some(0),
        Some(v) => match v.as_u64().map(u32::try_from) {
            Some(Ok(g)) if g > 0 => Some(g),
            _ => return Err(wrong("group_size", v).hint("it is a number of inputs, or -1 for all")),
        },
    };
    let symmetric = match of("sym") {
        None => over.symmetric,
        Some(v) => Some(v.as_bool().ok_or_else(|| wrong("sym", v).hint("it is true or false"))?),
    };
    Ok(Said { bits, group, symmetric })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn failure(config: Value) -> String {
        let e = Stored::parse(&config).err().unwrap();
        format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
    }

    #[test]
    fn what_is_missing_is_open_and_the_first_pattern_counts() {
        let stored = Stored::parse(&json!({ "bits": 4 })).unwrap();
        assert_eq!(stored.version, Version::One);
        assert_eq!(stored.of("a"), Said { bits: 4, group: None, symmetric: None });
        let stored = Stored::parse(&json!({
            "bits": 4, "group_size": 32, "sym": true, "format": "gptq_v2",
            "dynamic": { "-:kept(?!x)": {}, r"h\.1": { "bits": 8 }, r"+:h\.1\.a": { "bits": 2 }, r"+:.*\.b$": { "group_size": -1, "sym": false } },
        }))
        .unwrap();
        assert_eq!(stored.version, Version::Two);
        let of = |name| (stored.of(name).bits, stored.of(name).group, stored.of(name).symmetric);
        assert_eq!(of("h.0.a"), (4, Some(32), Some(true)));
        assert_eq!(of("h.1.a"), (8, Some(32), Some(true)));
        assert_eq!(of("h.0.b"), (4, Some(0), Some(false)));
        assert_eq!(of("x.h.1"), (4, Some(32), Some(true)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let bits = "bits that can be read: 2, 3, 4 and 8";
        assert_eq!(failure(json!({})), format!("`quantization_config.bits` is missing | {bits}"));
        assert_eq!(failure(json!({ "bits": 5 })), format!("`quantization_config.bits` is 5 | {bits}"));
        assert_eq!(failure(json!({ "bits": "4" })), format!("`quantization_config.bits` is \"4\" | {bits}"));
        for group in [json!(0), json!(-2), json!(1u64 << 40), json!("x")] {
            let message = format!("`quantization_config.group_size` is {group} | it is a number of inputs, or -1 for all");
            assert_eq!(failure(json!({ "bits": 4, "group_size": group })), message);
        }
        assert_eq!(failure(json!({ "bits": 4, "sym": 1 })), "`quantization_config.sym` is 1 | it is true or false");
        assert_eq!(
            failure(json!({ "bits": 4, "checkpoint_format": "marlin" })),
            "`quantization_config.checkpoint_format` is \"marlin\", whose layout is not known here | \
             `gptq` and `gptq_v2` can be read; convert the checkpoint with the tool that wrote it"
        );
        assert_eq!(
            failure(json!({ "bits": 4, "dynamic": { "+:a(?=b)": {} } })),
            "`quantization_config.dynamic` has the pattern `+:a(?=b)`, which cannot be read | no hint"
        );
        assert_eq!(
            failure(json!({ "bits": 4, "dynamic": { "a": { "bits": 16 } } })),
            format!("`quantization_config.dynamic.a.bits` is 16 | {bits}")
        );
    }
}
