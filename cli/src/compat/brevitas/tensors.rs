//! What weights, inputs and the tensors of attention become.

use qfw_core::Result;
use toml::{Table, Value};

use super::super::draft::{Draft, table};
use super::super::flags::Flags;

/// Floor of the largest magnitude, or of the range, without `--scaling-min-val`.
const MIN_THRESHOLD: f64 = 1e-4;

/// A format: integers of so many bits, or the id of a float.
enum Format {
    Int(i64),
    Float(String),
}

/// How an activation is quantized, each answer from the first group of flags that gives one.
struct Activation<'a> {
    flags: &'a Flags,
    groups: &'static [&'static str],
}

impl<'a> Activation<'a> {
    /// The flag that answers a question, or the one that could.
    fn flag(&self, question: &str) -> &'static str {
        let known = super::rows::ROWS.iter().map(|row| row.name);
        let named = |group: &&str| known.clone().find(|name| name.strip_prefix(group).and_then(|n| n.strip_prefix('-')) == Some(question));
        let all = || self.groups.iter().filter_map(named);
        all().find(|name| self.flags.given(name)).or_else(|| all().next_back()).unwrap_or_default()
    }

    fn text(&self, question: &str, default: &'a str) -> &'a str {
        self.flags.text(self.flag(question)).unwrap_or(default)
    }

    fn spec(&self, draft: &mut Draft) -> Result<Table> {
        let flags = self.flags;
        let bits = flags.whole(self.flag("bit-width")).unwrap_or(8);
        let format = format(flags, self.flag("quant-format"), self.flag("bit-width"), bits)?;
        let asked = flags.text(self.flag("quant-type"));
        let symmetric = symmetric(flags, self.flag("quant-type"), &format, asked.unwrap_or("asym"), asked.is_some())?;
        let timing = self.text("scale-type", "static");
        let granularity = self.text("quant-granularity", "per_tensor");
        let mut spec = numbers(&format, symmetric, flags.on("quantize-input-zero-point", false), "pow-b1");
        let timing = match (timing, &format) {
            ("no_scale", Format::Int(_)) => return Err(flags.wrong(self.flag("scale-type"), "integers need a scale")),
            ("no_scale", _) => "cast",
            (other, _) => other,
        };
        if timing == "static" && !flags.on("act-calibration", false) {
            return Err(flags
                .wrong(self.flag("bit-width"), "static scales are calibrated")
                .hint("add `--act-calibration`, as Brevitas demands"));
        }
        spec.insert("timing".to_owned(), timing.into());
        let granularity = match granularity {
            "per_row" => "token".into(),
            "per_group" => table("group", flags.whole(self.flag("group-size")).unwrap_or(64)),
            _ => "tensor".into(),
        };
        spec.insert("granularity".to_owned(), granularity);
        if timing == "cast" {
            return Ok(spec);
        }
        let range = match (self.text("param-method", "stats"), timing) {
            ("mse", _) => brevitas_mse(),
            (_, "static") => {
                let ends = [("high", 99.999), ("low", 0.001)].map(|(end, at)| (end.to_owned(), Value::Float(at)));
                table("percentile", Table::from_iter(ends))
            }
            _ => "minmax".into(),
        };
        spec.insert("range".to_owned(), range);
        if timing == "static" {
            spec.insert("reduce".to_owned(), "mean".into());
        }
        if self.text("scale-precision", "float_scale") == "po2_scale" {
            power_of_two(flags, &mut spec, if timing == "static" { "ceil" } else { "floor" });
        } else if timing == "dynamic" && symmetric && matches!(format, Format::Int(_)) {
            draft.note(
                "symmetric dynamic activations are scaled by their largest magnitude; Brevitas takes the whole range, up to twice that",
            );
        }
        spec.insert("min-threshold".to_owned(), min_threshold(flags).into());
        Ok(spec)
    }
}

pub(super) fn weights(flags: &Flags, draft: &mut Draft) -> Result<()> {
    let bits = flags.whole("weight-bit-width").unwrap_or(8);
    let format = format(flags, "weight-quant-format", "weight-bit-width", bits)?;
    let kind = flags.text("weight-quant-type").unwrap_or("sym");
    let symmetric = symmetric(flags, "weight-quant-type", &format, kind, true)?;
    let narrow = flags.on("weight-narrow-range", false);
    if narrow && !(symmetric && matches!(format, Format::Int(_))) {
        return Err(flags.wrong("weight-narrow-range", "only symmetric integers have a narrow range here").hint("leave it out"));
    }
    let rounded = flags.on("quantize-weight-zero-point", false);
    if rounded && symmetric {
        draft.note("`--quantize-weight-zero-point` has no effect: symmetric weights have no zero point");
    }
    let mut spec = numbers(&format, symmetric, rounded, if narrow { "narrow" } else { "pow-b1" });
    let granularity = flags.text("weight-quant-granularity").unwrap_or("per_group");
    let size = flags.whole("weight-group-size").unwrap_or(128);
    let granularity = match (granularity, flags.text("weight-group-dim")) {
        ("per_group", Some("0")) => table("group-out", size),
        ("per_group", _) => table("group", size),
        ("per_tensor", _) => "tensor".into(),
        _ => "channel".into(),
    };
    let grouped = granularity.is_table();
    spec.insert("granularity".to_owned(), granularity);
    let range = match flags.text("weight-param-method") {
        Some("mse") => brevitas_mse(),
        Some("hqo") => "hqo".into(),
        _ => "minmax".into(),
    };
    spec.insert("range".to_owned(), range);
    if flags.text("weight-scale-precision") == Some("po2_scale") {
        // Groups with such scales follow the microscaling formats, which round down.
        power_of_two(flags, &mut spec, if grouped { "floor" } else { "ceil" });
    }
    spec.insert("min-threshold".to_owned(), min_threshold(flags).into());
    if let Some(factor) = flags.number("weight-quant-rescaling-init") {
        spec.insert("rescale".to_owned(), factor.into());
    }
    draft.set("scheme.weights", spec);
    let po2 = ["weight-scale-precision", "input-scale-precision", "attn-scale-precision"].map(|name| flags.text(name));
    if flags.given("scale-rounding-func-type") && !po2.contains(&Some("po2_scale")) {
        draft.note("`--scale-rounding-func-type` has no effect: no scale is a power of two");
    }
    Ok(())
}

pub(super) fn inputs(flags: &Flags, draft: &mut Draft) -> Result<()> {
    if flags.given("input-bit-width") {
        let spec = Activation { flags, groups: &["input"] }.spec(draft)?;
        draft.set("scheme.inputs", spec);
    } else if flags.on("act-calibration", false) {
        draft.note("`--act-calibration` has no effect without `--input-bit-width`");
    }
    Ok(())
}

pub(super) fn attention(flags: &Flags, draft: &mut Draft) -> Result<()> {
    if !flags.given("quant-sdpa") {
        return Ok(());
    }
    if !flags.given("input-bit-width") {
        draft.note("`--quant-sdpa` has no effect without `--input-bit-width`");
        return Ok(());
    }
    draft.note("`--quant-sdpa`: attention is quantized in one way, whatever the mode and the class");
    let activation = Activation { flags, groups: &["attn", "input"] };
    let spec = activation.spec(draft)?;
    let per_row = activation.text("quant-granularity", "per_tensor") == "per_row";
    let parts: &[&str] = match flags.text("attn-quant-config") {
        Some("kv") => &["keys", "values"],
        Some("qkv") => &["queries", "keys", "values"],
        _ => &["queries", "keys", "values", "probs"],
    };
    for part in parts {
        let mut spec = spec.clone();
        if *part == "probs" {
            unsigned(&mut spec);
        } else if per_row {
            // Rows are those of a head.
            spec.insert("granularity".to_owned(), "head".into());
        }
        draft.set(&format!("scheme.{part}"), spec);
    }
    if activation.text("quant-granularity", "per_tensor") != "per_tensor" {
        draft.note("values get their scales along a head, as keys do, so that a cache can hold them; Brevitas lays them along the tokens");
    }
    Ok(())
}

/// Probabilities are never negative: a symmetric integer becomes an unsigned one, whose zero point is then 0.
fn unsigned(spec: &mut Table) {
    let bits = spec.get("format").and_then(Value::as_str).and_then(|format| format.strip_prefix("int")).map(str::to_owned);
    if let Some(bits) = bits.filter(|_| spec.get("symmetric") == Some(&Value::Boolean(true))) {
        spec.remove("convention");
        let affine = [("format", format!("uint{bits}").into()), ("symmetric", false.into()), ("zero-point", "integer".into())];
        affine.into_iter().for_each(|(key, value): (&str, Value)| drop(spec.insert(key.to_owned(), value)));
    }
}

/// `int`, or `eXmY` after `float_`, `float_ocp_`, `float_fnuz_` or nothing.
fn format(flags: &Flags, flag: &str, bits_flag: &str, bits: i64) -> Result<Format> {
    let text = flags.text(flag).unwrap_or("int");
    if text == "int" {
        let fits = (2..=16).contains(&bits);
        return if fits { Ok(Format::Int(bits)) } else { Err(flags.wrong(bits_flag, format!("integers have 2 to 16 bits, not {bits}"))) };
    }
    let prefixes = [("float_ocp_", "float-ocp-"), ("float_fnuz_", "float-fnuz-"), ("float_", "float-"), ("", "float-")];
    let (ours, shape) = prefixes.iter().find_map(|(theirs, ours)| Some((ours, text.strip_prefix(theirs)?))).unwrap_or((&"", text));
    let digit = |text: &str| text.parse::<i64>().ok().filter(|n| (1..=8).contains(n) && text.len() == 1);
    let parts = shape.strip_prefix('e').and_then(|rest| rest.split_once('m'));
    let Some((x, y)) = parts.and_then(|(x, y)| Some((digit(x)?, digit(y)?))) else {
        return Err(flags
            .wrong(flag, format!("unknown format `{text}`"))
            .hint("write `int`, or `eXmY` with `float_ocp_` or `float_fnuz_` before it"));
    };
    if x + y != bits - 1 {
        return Err(flags
            .wrong(flag, format!("`{text}` has {} bits with its sign, not {bits}", x + y + 1))
            .hint(format!("set `--{bits_flag}`")));
    }
    Ok(Format::Float(format!("{ours}{shape}")))
}

/// Whether there is no zero point. Floats have none, even where the default is to have one.
fn symmetric(flags: &Flags, flag: &str, format: &Format, kind: &str, asked: bool) -> Result<bool> {
    match format {
        Format::Float(_) if kind == "asym" && asked => {
            Err(flags.wrong(flag, "floats have no zero point").hint(format!("set `--{flag} sym`")))
        }
        Format::Float(_) => Ok(true),
        Format::Int(_) => Ok(kind == "sym"),
    }
}

/// Format, zero point and convention.
fn numbers(format: &Format, symmetric: bool, integer_zero: bool, convention: &str) -> Table {
    let mut spec = Table::new();
    let mut set = |key: &str, value: Value| drop(spec.insert(key.to_owned(), value));
    match format {
        Format::Int(bits) => set("format", format!("{}{bits}", if symmetric { "int" } else { "uint" }).into()),
        Format::Float(id) => set("format", id.as_str().into()),
    }
    set("symmetric", symmetric.into());
    match format {
        Format::Int(_) if symmetric => set("convention", convention.into()),
        Format::Int(_) => set("zero-point", if integer_zero { "integer" } else { "float" }.into()),
        Format::Float(_) => {}
    }
    spec
}

fn brevitas_mse() -> Value {
    table("mse", table("search", "brevitas"))
}

fn power_of_two(flags: &Flags, spec: &mut Table, rounding: &str) {
    spec.insert("scale".to_owned(), "po2".into());
    spec.insert("scale-rounding".to_owned(), flags.text("scale-rounding-func-type").unwrap_or(rounding).into());
}

fn min_threshold(flags: &Flags) -> f64 {
    flags.number("scaling-min-val").unwrap_or(MIN_THRESHOLD)
}
