//! The floats that a quantized model stands for, as a plain checkpoint.
//!
//! A weight `M.weight` of codes `q` is stored as `round(s·(q − z))` in one float type, `[out, in]`, or `[in, out]` where the model has it so;
//! everything else as it is, or in that type too where all floats are to be of one.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use qfw_core::algorithm::Rounded;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{
    Arithmetic, BranchPlace, Container, ContainerRecord, ContainerWriter, Held, StoredDtype, TensorDecl, TensorInfo, TensorSource, Verdict,
};
use qfw_core::numeric::transpose;
use qfw_core::plan::Plan;
use qfw_core::scheme::FloatKind;
use qfw_core::{Error, Result};
use serde_json::Value;

/// Numbers that are written at once, about.
const PIECE: usize = 1 << 18;

struct Floats {
    /// The type of all floats; without one, that of the model for what was codes.
    kind: Option<FloatKind>,
}

fn refuse(place: &str, why: &str, hint: &str) -> Verdict {
    Verdict::Refused(Error::plan("plan::container", format!("`{place}`: {why}")).hint(hint))
}

impl Container for Floats {
    fn accepts(&self, plan: &Plan) -> Verdict {
        if let Some(a) = plan.activations.first() {
            let why = format!("it holds a plain model, which computes in floats, and nothing that rounds {} ({})", a.part, a.spec);
            return refuse(&a.place.to_string(), &why, &format!("leave `scheme.{}` out, or use `--format qfw`", a.part));
        }
        match plan.sites.iter().find(|s| s.weights.is_some()) {
            Some(_) => Verdict::Larger("it holds the floats that codes stand for, and no codes".to_owned()),
            None => Verdict::Exact,
        }
    }

    fn branches_lie(&self) -> BranchPlace {
        BranchPlace::Beside
    }

    fn declare(&self, native: &NativeReader) -> Result<Vec<TensorDecl>> {
        let coded = native.sites.iter().map(|site| {
            let (rows, cols) = site.shape;
            let shape = if site.transposed { vec![cols, rows] } else { vec![rows, cols] };
            TensorDecl { name: weight(site), dtype: self.of_codes(native).into(), shape }
        });
        let plain =
            native.plain().into_iter().map(|i| TensorDecl { name: i.name.clone(), dtype: self.of_plain(i), shape: i.shape.clone() });
        Ok(coded.chain(plain).collect())
    }

    fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        for site in &native.sites {
            self.codes(native, site, out).map_err(|e| e.within(format!("`{}`", site.site)))?;
        }
        for info in native.plain() {
            match (self.kind, self.of_plain(info) == info.dtype) {
                (Some(kind), false) => plain(native, info, kind, out)?,
                _ => native.copy_plain(&info.name, out)?,
            }
        }
        Ok(())
    }

    fn held(&self, native: &NativeReader, _: &NativeSite, rounded: Rounded) -> Result<Held> {
        Ok(Held { rounded, arithmetic: Arithmetic::Floats(self.of_codes(native)) })
    }

    fn float_type(&self) -> Option<FloatKind> {
        self.kind
    }

    /// There are no codes to speak of.
    fn quantization_config(&self, _: &Plan) -> Result<Value> {
        Ok(Value::Null)
    }

    /// What it writes is read as any float checkpoint is.
    fn claims(&self, _: &Value) -> bool {
        false
    }

    fn read(&self, _: &Value, _: &BTreeSet<String>, _: Arc<dyn TensorSource>) -> Result<Arc<dyn TensorSource>> {
        Err(Error::internal("a float checkpoint has no `quantization_config`"))
    }
}

fn weight(site: &NativeSite) -> String {
    format!("{}.weight", site.module)
}

impl Floats {
    /// The type of what was codes.
    fn of_codes(&self, native: &NativeReader) -> FloatKind {
        self.kind.or_else(|| FloatKind::of_config(&native.config)).unwrap_or(FloatKind::F32)
    }

    /// The type of a tensor that was none.
    fn of_plain(&self, info: &TensorInfo) -> StoredDtype {
        match self.kind {
            Some(kind) if info.dtype.is_float() => kind.into(),
            _ => info.dtype.clone(),
        }
    }

    fn codes(&self, native: &NativeReader, site: &NativeSite, out: &mut dyn ContainerWriter) -> Result<()> {
        let (rows, cols) = site.shape;
        let kind = self.of_codes(native);
        let held = Held::exactly(native.rounded(site)?);
        let name = weight(site);
        let mut values = Vec::new();
        if site.transposed {
            held.values(&site.spec.grid, 0..rows, &mut values);
            return write_as(&name, kind, &transpose(&values, rows, cols), out);
        }
        for piece in pieces(rows, cols) {
            held.values(&site.spec.grid, piece, &mut values);
            write_as(&name, kind, &values, out)?;
        }
        Ok(())
    }
}

/// A tensor that was never codes, in another type.
fn plain(native: &NativeReader, info: &TensorInfo, kind: FloatKind, out: &mut dyn ContainerWriter) -> Result<()> {
    let source = native.plain_source(&info.name)?;
    let rows = info.shape.first().copied().unwrap_or(1);
    let mut values = Vec::new();
    for piece in pieces(rows, info.shape.iter().skip(1).product()) {
        source.read_f32(&info.name, piece, &mut values)?;
        write_as(&info.name, kind, &values, out)?;
    }
    Ok(())
}

/// Rows a few at a time.
fn pieces(rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (PIECE / cols.max(1)).max(1);
    (0..rows).step_by(step).map(move |first| first..(first + step).min(rows))
}

fn write_as(name: &str, kind: FloatKind, values: &[f32], out: &mut dyn ContainerWriter) -> Result<()> {
    if let Some(x) = values.iter().find(|x| x.is_finite() && !kind.round(**x).is_finite()) {
        return Err(Error::numeric("container::overflow", format!("`{name}` holds {x}, which {} cannot hold", kind.name()))
            .hint("use `--format safetensors-bf16` or `safetensors-f32`"));
    }
    out.write(name, &kind.bytes(values))
}

const fn record(id: &'static str, summary: &'static str, container: &'static dyn Container) -> ContainerRecord {
    ContainerRecord { id, summary, version: env!("CARGO_PKG_VERSION"), source: env!("CARGO_PKG_NAME"), container }
}

/// In the type of the model, for registries built by hand.
pub const FLOAT: ContainerRecord = record("safetensors-float", "the floats that codes stand for, as a plain model", &Floats { kind: None });

/// In f32, for registries built by hand.
pub const F32: ContainerRecord = record("safetensors-f32", "the same with all floats in f32", &Floats { kind: Some(FloatKind::F32) });

/// In f16, for registries built by hand.
pub const F16: ContainerRecord = record("safetensors-f16", "the same with all floats in f16", &Floats { kind: Some(FloatKind::F16) });

/// In bf16, for registries built by hand.
pub const BF16: ContainerRecord = record("safetensors-bf16", "the same with all floats in bf16", &Floats { kind: Some(FloatKind::Bf16) });

qfw_core::register_container!(FLOAT, F32, F16, BF16);
