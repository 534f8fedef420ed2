//! What the configuration says.

use qfw_core::Result;
use serde_json::Value;

use crate::bad;

/// Whose words they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Fp8,
    ModelOpt,
}

/// How inputs of linears are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// Not at all.
    Kept,
    /// With a scale for each token, or for each block of inputs of one.
    Dynamic,
    /// With `input_scale`, where there is one.
    Stored,
}

/// What the configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    /// Rows and columns of a block that shares a scale.
    pub block: Option<(u32, u32)>,
    pub inputs: Inputs,
    /// Keys and values are rounded to e4m3.
    pub cache: bool,
}

/// Algorithms of ModelOpt that can be read, and whether they round inputs with fixed scales.
const ALGORITHMS: [(&str, Inputs); 5] = [
    ("FP8", Inputs::Stored),
    ("FP8_PER_CHANNEL_PER_TOKEN", Inputs::Dynamic),
    ("FP8_PB_WO", Inputs::Kept),
    ("NVFP4", Inputs::Stored),
    ("W4A16_NVFP4", Inputs::Kept),
];

impl Dialect {
    pub(crate) fn id(self) -> &'static str {
        match self {
            Self::Fp8 => "fp8",
            Self::ModelOpt => "modelopt",
        }
    }

    /// Whether a configuration is of this kind.
    pub(crate) fn claims(self, config: &Value) -> bool {
        let method = config["quant_method"].as_str();
        match self {
            Self::Fp8 => method == Some("fp8"),
            // A file of its own names the producer instead.
            Self::ModelOpt => match method {
                Some(method) => ["modelopt", "modelopt_fp4"].contains(&method),
                None => config["producer"]["name"] == "modelopt",
            },
        }
    }
}

impl Said {
    /// Reads a configuration that the dialect claims.
    ///
    /// # Errors
    /// If it says what cannot be read.
    pub(crate) fn parse(dialect: Dialect, config: &Value) -> Result<Self> {
        match dialect {
            Dialect::Fp8 => Self::fp8(config),
            Dialect::ModelOpt => Self::modelopt(config),
        }
    }

    fn fp8(config: &Value) -> Result<Self> {
        let wrong = |key: &str, hint: &str| bad(format!("`quantization_config.{key}` is {}", config[key])).hint(hint);
        match &config["fmt"] {
            Value::Null => {}
            Value::String(fmt) if fmt == "e4m3" => {}
            _ => return Err(wrong("fmt", "`e4m3` can be read")),
        }
        let inputs = match config["activation_scheme"].as_str() {
            Some("dynamic") => Inputs::Dynamic,
            Some("static") => Inputs::Stored,
            _ if config["activation_scheme"].is_null() => Inputs::Dynamic,
            _ => return Err(wrong("activation_scheme", "`dynamic` and `static` can be read")),
        };
        let side = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let block = match &config["weight_block_size"] {
            Value::Null => None,
            Value::Array(sides) => match &sides[..] {
                [r, c] => Some(side(r).zip(side(c)).ok_or_else(|| wrong("weight_block_size", "it is the rows and columns of a block"))?),
                _ => return Err(wrong("weight_block_size", "it is the rows and columns of a block")),
            },
            _ => return Err(wrong("weight_block_size", "it is the rows and columns of a block")),
        };
        Ok(Self { block, inputs, cache: false })
    }

    fn modelopt(config: &Value) -> Result<Self> {
        // In a file of its own all of it is one level down.
        let of = |key: &str| [&config["quantization"][key], &config[key]].into_iter().find(|v| !v.is_null()).unwrap_or(&Value::Null);
        let (algorithm, cache) = (of("quant_algo"), of("kv_cache_quant_algo"));
        let known = ALGORITHMS.map(|(name, _)| name).join(", ");
        let inputs = ALGORITHMS.iter().find(|(name, _)| algorithm == name).map(|(_, inputs)| *inputs);
        let inputs =
            inputs.ok_or_else(|| bad(format!("`quant_algo` is {algorithm}")).hint(format!("of ModelOpt's can be read: {known}")))?;
        // Newer files spell the cache as compressed-tensors does.
        let scheme = &config["kv_cache_scheme"];
        let stated = scheme["type"] == "float" && scheme["num_bits"] == 8;
        let cache = match cache {
            Value::Null if scheme.is_null() => false,
            Value::Null if stated => true,
            Value::String(name) if name == "FP8" => true,
            Value::String(name) if name == "NONE" => false,
            other => {
                let what =
                    if other.is_null() { format!("`kv_cache_scheme` is {scheme}") } else { format!("`kv_cache_quant_algo` is {other}") };
                return Err(bad(what).hint("a cache in FP8 can be read"));
            }
        };
        Ok(Self { block: None, inputs, cache })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_spellings_of_modelopt_mean_the_same() {
        let beside = json!({
            "producer": { "name": "modelopt", "version": "0.37.0" },
            "quantization": { "quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"] },
        });
        let inside = json!({
            "quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"],
            "kv_cache_scheme": { "dynamic": false, "num_bits": 8, "type": "float" },
        });
        for config in [&beside, &inside] {
            assert!(Dialect::ModelOpt.claims(config) && !Dialect::Fp8.claims(config));
            assert_eq!(Said::parse(Dialect::ModelOpt, config).unwrap(), Said { block: None, inputs: Inputs::Stored, cache: true });
        }
    }

    #[test]
    fn what_deepseek_says_is_understood() {
        let config = json!({ "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128] });
        assert!(Dialect::Fp8.claims(&config) && !Dialect::ModelOpt.claims(&config));
        assert_eq!(Said::parse(Dialect::Fp8, &config).unwrap(), Said { block: Some((128, 128)), inputs: Inputs::Dynamic, cache: false });
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let failure = |dialect: Dialect, config: Value| {
            let e = Said::parse(dialect, &config).unwrap_err();
            format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
        };
        assert_eq!(
            failure(Dialect::ModelOpt, json!({ "quant_algo": "W4A8_AWQ" })),
            "`quant_algo` is \"W4A8_AWQ\" | of ModelOpt's can be read: FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4, W4A16_NVFP4"
        );
        assert_eq!(
            failure(Dialect::ModelOpt, json!({ "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4" })),
            "`kv_cache_quant_algo` is \"NVFP4\" | a cache in FP8 can be read"
        );
        assert_eq!(failure(Dialect::Fp8, json!({ "fmt": "e5m2" })), "`quantization_config.fmt` is \"e5m2\" | `e4m3` can be read");
        assert_eq!(
            failure(Dialect::Fp8, json!({ "weight_block_size": [128, 0] })),
            "`quantization_config.weight_block_size` is [128,0] | it is the rows and columns of a block"
        );
    }
}
