//! What the `[scheme]` and `[[override]]` sections say about one kind of tensor: the raw, still unresolved spec.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Serialize, Serializer};

use super::read::fields_of;

/// One part of the scheme: leave the tensors in high precision, or quantize them.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful of them exist, in a configuration")]
pub enum RawSpec {
    /// `"keep"`: high precision.
    Keep,
    /// A table.
    Quant(RawQuant),
}

/// One part of an override: keep, or change some fields of what the scheme says.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "a handful of them exist, in a configuration")]
pub enum RawSpecChange {
    /// `"keep"`: high precision.
    Keep,
    /// A table; absent fields stay as the scheme (or an earlier override) has them.
    Change(RawQuantChange),
}

/// How the tensors of one part of the scheme are quantized.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawQuant {
    /// Id of the number format: `int4`, `uint4`, `float-ocp-e4m3`, …
    pub format: String,
    /// Which elements share a scale. Default: what the format is defined with, else `channel` for weights, embed and head, `head` for
    /// dynamic keys and values, `token` for other dynamic activations, `tensor` for static ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granularity: Option<RawGranularity>,
    /// Symmetric (no zero point) or affine.
    #[serde(default = "yes")]
    pub symmetric: bool,
    /// How the scale of a symmetric integer follows from the statistic.
    #[serde(default)]
    pub convention: RawConvention,
    /// Id of the observer that chooses the range, and its options. Default: what the format is defined with, else `minmax`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<RawRange>,
    /// How scales are formed. Default: as the format has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<RawScale>,
    /// How the scale becomes a power of two. Default: `ceil`, or `floor` where the format is defined so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_rounding: Option<RawScaleRounding>,
    /// What zero points are, where `symmetric` is false.
    #[serde(default)]
    pub zero_point: RawZeroPoint,
    /// Parameters fixed after calibration, or computed at each call. Default: `static` for weights, embed and head, else `dynamic`.
    #[serde(default)]
    pub timing: RawTiming,
    /// Floor of the statistic (largest magnitude or range) before it is divided by the integer range; 0 for none.
    #[serde(default, deserialize_with = "threshold")]
    #[schemars(range(min = 0))]
    pub min_threshold: f64,
    /// Factor on the range that the observer chose.
    #[serde(default = "one", deserialize_with = "positive")]
    #[schemars(range(min = 0))]
    pub rescale: f64,
    /// How the ranges of single calibration windows become one, where activations are static.
    #[serde(default)]
    pub reduce: RawReduce,
}

/// Fields of a [`RawQuant`] that an override changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RawQuantChange {
    /// See [`RawQuant::format`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// See [`RawQuant::granularity`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granularity: Option<RawGranularity>,
    /// See [`RawQuant::symmetric`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symmetric: Option<bool>,
    /// See [`RawQuant::convention`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convention: Option<RawConvention>,
    /// See [`RawQuant::range`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<RawRange>,
    /// See [`RawQuant::timing`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<RawTiming>,
    /// See [`RawQuant::min_threshold`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_threshold")]
    #[schemars(range(min = 0))]
    pub min_threshold: Option<f64>,
    /// See [`RawQuant::scale`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<RawScale>,
    /// See [`RawQuant::scale_rounding`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_rounding: Option<RawScaleRounding>,
    /// See [`RawQuant::zero_point`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_point: Option<RawZeroPoint>,
    /// See [`RawQuant::rescale`].
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "some_positive")]
    #[schemars(range(min = 0))]
    pub rescale: Option<f64>,
    /// See [`RawQuant::reduce`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduce: Option<RawReduce>,
}

impl RawQuant {
    /// A symmetric quantization per channel in `format`, everything else at its default.
    pub fn new(format: &str) -> Self {
        Self {
            format: format.to_owned(),
            granularity: None,
            symmetric: true,
            convention: RawConvention::default(),
            range: None,
            scale: None,
            scale_rounding: None,
            zero_point: RawZeroPoint::default(),
            timing: RawTiming::default(),
            min_threshold: 0.0,
            rescale: 1.0,
            reduce: RawReduce::default(),
        }
    }

    /// Changes the fields that `change` names.
    pub fn apply(&mut self, change: &RawQuantChange) {
        fn set<T: Clone>(field: &mut T, value: &Option<T>) {
            if let Some(v) = value {
                *field = v.clone();
            }
        }
        set(&mut self.format, &change.format);
        fn set_some<T: Clone>(field: &mut Option<T>, value: &Option<T>) {
            if value.is_some() {
                field.clone_from(value);
            }
        }
        set_some(&mut self.granularity, &change.granularity);
        set_some(&mut self.range, &change.range);
        set_some(&mut self.scale, &change.scale);
        set_some(&mut self.scale_rounding, &change.scale_rounding);
        set(&mut self.zero_point, &change.zero_point);
        set(&mut self.rescale, &change.rescale);
        set(&mut self.reduce, &change.reduce);
        set(&mut self.symmetric, &change.symmetric);
        set(&mut self.convention, &change.convention);
        set(&mut self.timing, &change.timing);
        set(&mut self.min_threshold, &change.min_threshold);
    }
}

/// Which elements share a scale.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawGranularity {
    /// One scale for the tensor.
    Tensor,
    /// One per output channel (row of a weight).
    Channel,
    /// One per token (row of an activation).
    Token,
    /// One per attention head.
    Head,
    /// One per run of so many elements along the contraction axis; the last run may be shorter.
    Group(RawGroup),
    /// One per block of `[rows, columns]`.
    Block([NonZeroU32; 2]),
    /// One per channel of an activation, or input channel of a weight.
    Dimension,
    /// One per run of so many output channels of a weight, for each input channel.
    GroupOut(NonZeroU32),
    /// A granularity of a plugin.
    Plugin(RawPluginGranularity),
}

/// A granularity that a plugin brings.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawPluginGranularity {
    /// Its id.
    pub id: String,
    /// Its value.
    #[serde(default)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

/// How scales are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawScale {
    /// Floats of the type the weights are stored in.
    Float,
    /// Powers of two.
    #[serde(alias = "power-of-two")]
    Po2,
}

/// Which power of two stands for a number between two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawScaleRounding {
    /// The smaller.
    Floor,
    /// The larger.
    Ceil,
    /// The nearer on the logarithmic scale.
    Round,
}

/// What the zero points of an affine format are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawZeroPoint {
    /// Integers within the code range.
    #[default]
    Integer,
    /// Floats, added before rounding.
    Float,
}

/// How the ranges of single calibration windows become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawReduce {
    /// Their mean.
    #[default]
    Mean,
    /// Their union.
    Max,
    /// A moving average in the order of the windows, `{ ema = 0.01 }`: the share of each new one.
    Ema(f64),
    /// The range of all values at once.
    Concat,
}

/// The size of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawGroup {
    /// This size.
    Exact(NonZeroU32),
    /// `"auto:128"`: the largest power of two up to this (itself one) that divides every selected site.
    Auto(NonZeroU32),
}

/// The five ways in which the scale `s` of a symmetric `b`-bit integer follows from the largest magnitude `a`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawConvention {
    /// `s = a / 2^(b-1)`; the positive extreme clips by one step.
    PowB1,
    /// `s = a / (2^(b-1) - 1)`, codes from `-2^(b-1)`.
    PowB1m1,
    /// `s = 2a / (2^b - 1)`.
    #[default]
    HalfRange,
    /// `s = a / (2^(b-1) - 1)`, codes from `-(2^(b-1) - 1)`.
    Narrow,
    /// `s = ±a / 2^(b-1)`, signed so that the larger side maps to `-2^(b-1)`.
    SignedFull,
}

/// When quantization parameters are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RawTiming {
    /// Fixed after calibration.
    #[default]
    Static,
    /// From the tensor itself at each call.
    Dynamic,
    /// Never: the scale is 1, and the (float) format a cast.
    #[serde(alias = "no-scale")]
    Cast,
}

/// An observer: `"minmax"`, or with options `{ mse = { norm = 2.4 } }`.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRange {
    /// Id of the observer.
    pub id: String,
    /// Its options, checked by the observer itself.
    pub options: toml::Table,
}

fn yes() -> bool {
    true
}

fn threshold<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let fits = value.is_finite() && value >= 0.0;
    if fits { Ok(value) } else { Err(de::Error::invalid_value(de::Unexpected::Float(value), &"a finite number of at least 0")) }
}

fn some_threshold<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    threshold(deserializer).map(Some)
}

fn one() -> f64 {
    1.0
}

fn positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    let fits = value.is_finite() && value > 0.0;
    if fits { Ok(value) } else { Err(de::Error::invalid_value(de::Unexpected::Float(value), &"a finite number above 0")) }
}

fn some_positive<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    positive(deserializer).map(Some)
}

impl Default for RawRange {
    fn default() -> Self {
        Self { id: "minmax".to_owned(), options: toml::Table::new() }
    }
}

/// Reads `"keep"` (none) or a table; the text is an example of the table.
struct KeepOr<T>(&'static str, std::marker::PhantomData<T>);

impl<'de, T: de::DeserializeOwned> Visitor<'de> for KeepOr<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"keep\" or a table such as {}", self.0)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<T>, E> {
        if text == "keep" { Ok(None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Some)
    }
}

fn keep_or<'de, T: de::DeserializeOwned, D: Deserializer<'de>>(deserializer: D, example: &'static str) -> Result<Option<T>, D::Error> {
    // As a struct and not as "any", so that the deserializer learns the field names and can report every unknown key.
    deserializer.deserialize_struct("spec", fields_of::<T>(), KeepOr(example, std::marker::PhantomData))
}

fn keep_or_schema(table: &Schema) -> Schema {
    json_schema!({ "anyOf": [{ "const": "keep", "description": "High precision." }, table] })
}

impl<'de> Deserialize<'de> for RawSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = keep_or(deserializer, "{ format = \"int4\", granularity = { group = 64 } }")?;
        Ok(read.map_or(Self::Keep, Self::Quant))
    }
}

impl<'de> Deserialize<'de> for RawSpecChange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = keep_or(deserializer, "{ format = \"int8\" }")?;
        Ok(read.map_or(Self::Keep, Self::Change))
    }
}

impl Serialize for RawSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep => serializer.serialize_str("keep"),
            Self::Quant(quant) => quant.serialize(serializer),
        }
    }
}

impl Serialize for RawSpecChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep => serializer.serialize_str("keep"),
            Self::Change(change) => change.serialize(serializer),
        }
    }
}

impl JsonSchema for RawSpec {
    fn schema_name() -> Cow<'static, str> {
        "RawSpec".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        keep_or_schema(&generator.subschema_for::<RawQuant>())
    }
}

impl JsonSchema for RawSpecChange {
    fn schema_name() -> Cow<'static, str> {
        "RawSpecChange".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        keep_or_schema(&generator.subschema_for::<RawQuantChange>())
    }
}

impl<'de> Deserialize<'de> for RawGroup {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct GroupVisitor;
        impl Visitor<'_> for GroupVisitor {
            type Value = RawGroup;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a group size of at least 1, or \"auto:N\" with N a power of two")
            }
            fn visit_u64<E: de::Error>(self, size: u64) -> Result<RawGroup, E> {
                let exact = u32::try_from(size).ok().and_then(NonZeroU32::new).map(RawGroup::Exact);
                exact.ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(size), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<RawGroup, E> {
                let most = text.strip_prefix("auto:").and_then(|n| n.parse::<NonZeroU32>().ok()).filter(|n| n.is_power_of_two());
                most.map(RawGroup::Auto).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(GroupVisitor)
    }
}

impl Serialize for RawGroup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exact(size) => serializer.serialize_u32(size.get()),
            Self::Auto(most) => serializer.collect_str(&format_args!("auto:{most}")),
        }
    }
}

impl JsonSchema for RawGroup {
    fn schema_name() -> Cow<'static, str> {
        "RawGroup".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "integer", "minimum": 1 }, { "type": "string", "pattern": "^auto:[0-9]+$" }] })
    }
}

impl<'de> Deserialize<'de> for RawRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RangeVisitor;
        impl<'de> Visitor<'de> for RangeVisitor {
            type Value = RawRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the id of an observer, or a table with one such as { mse = { norm = 2.4 } }")
            }
            fn visit_str<E: de::Error>(self, id: &str) -> Result<RawRange, E> {
                Ok(RawRange { id: id.to_owned(), options: toml::Table::new() })
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawRange, A::Error> {
                let entry = map.next_entry::<String, toml::Table>()?;
                let (id, options) = entry.ok_or_else(|| de::Error::invalid_type(de::Unexpected::Other("an empty table"), &self))?;
                if let Some(second) = map.next_key::<String>()? {
                    let both = format!("a table with both `{id}` and `{second}`");
                    return Err(de::Error::invalid_type(de::Unexpected::Other(&both), &self));
                }
                Ok(RawRange { id, options })
            }
        }
        deserializer.deserialize_any(RangeVisitor)
    }
}

impl Serialize for RawRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.options.is_empty() {
            return serializer.serialize_str(&self.id);
        }
        serializer.collect_map([(&self.id, &self.options)])
    }
}

impl JsonSchema for RawRange {
    fn schema_name() -> Cow<'static, str> {
        "RawRange".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The id of an observer, or a table with the id as its one key and the observer's options as value.",
            "anyOf": [
                { "type": "string" },
                { "type": "object", "minProperties": 1, "maxProperties": 1, "additionalProperties": { "type": "object" } },
            ],
        })
    }
}
