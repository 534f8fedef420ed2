//! Sizes in bytes, written `"8GiB"`, `"512MiB"`, `"1.5GB"` or as plain bytes.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::{Serialize, Serializer};

use crate::error::{Error, did_you_mean};

/// A number of bytes. Displays in the largest unit that divides it, so that reading it again gives the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Units from large to small within their kind; binary ones first, since budgets are memory.
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = Error;

    /// Reads `8GiB`, `1.5 GB`, `4096`. Units are read in any case. A fraction of a byte, a negative or an empty number is an error.
    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |why: String| {
            Error::config("config::size", format!("`{text}` is not a size: {why}"))
                .hint("write a number and a unit, such as `8GiB` or `1.5GB`")
        };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim_start());
        let unit = if unit.is_empty() { "B" } else { unit };
        let Some((_, scale)) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) else {
            return Err(fail(format!("unknown unit `{unit}`{}", did_you_mean(unit, UNITS.map(|(name, _)| name)))));
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return Err(fail("no number before the unit".to_owned()));
        }
        if fraction.contains('.') {
            return Err(fail(format!("`{number}` is not a number")));
        }
        // Exact: (whole·10^d + fraction)·scale / 10^d in integers.
        let digits = format!("{whole}{fraction}");
        let power = 10u128.checked_pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
        let product = digits.parse::<u128>().ok().and_then(|n| n.checked_mul(u128::from(*scale)));
        let (Some(power), Some(product)) = (power, product) else { return Err(fail("the number is too long".to_owned())) };
        if product % power != 0 {
            return Err(fail("it is not a whole number of bytes".to_owned()));
        }
        u64::try_from(product / power).map(Self).map_err(|_| fail("it does not fit into 64 bits".to_owned()))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = UNITS.iter().find(|(_, scale)| self.0 != 0 && self.0.is_multiple_of(*scale));
        match fits {
            Some((name, scale)) if *scale > 1 => write!(f, "{}{name}", self.0 / scale),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"8GiB\", or a number of bytes")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: bytes, or a number and a unit such as \"8GiB\" or \"1.5GB\".",
            "anyOf": [
                { "type": "string", "pattern": "^\\s*[0-9.]+\\s*([KMGTkmgt]?[iI]?[bB])?\\s*$" },
                { "type": "integer", "minimum": 0 },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read() {
        for (text, bytes) in [
            ("8GiB", 8u64 << 30),
            ("512MiB", 512 << 20),
            ("1.5GB", 1_500_000_000),
            ("4096", 4096),
            ("0", 0),
            (" 2 kb ", 2000),
            ("0.5KiB", 512),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn bad_sizes_say_why() {
        for (text, message) in [
            ("8GuB", "`8GuB` is not a size: unknown unit `GuB` (did you mean `GB`?)"),
            ("GiB", "`GiB` is not a size: no number before the unit"),
            ("", "`` is not a size: no number before the unit"),
            ("1.2.3GB", "`1.2.3GB` is not a size: `1.2.3` is not a number"),
            ("-1", "`-1` is not a size: unknown unit `-1`"),
            ("0.3B", "`0.3B` is not a size: it is not a whole number of bytes"),
            ("99999999TiB", "`99999999TiB` is not a size: it does not fit into 64 bits"),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap_err().to_string(), message);
        }
    }

    proptest::proptest! {
        #[test]
        fn display_reads_back(bytes: u64) {
            proptest::prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>().unwrap(), ByteSize(bytes));
        }
    }
}
