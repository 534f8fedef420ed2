//! The tensors of a file, and where their numbers come from.

use qfw_core::checkpoint::gguf::Layout;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::checkpoint::{ContainerWriter, StoredDtype, TensorDecl};
use qfw_core::numeric::transpose;
use qfw_core::scheme::FloatKind;
use qfw_core::{Error, Result};

use crate::accept;
use crate::block::{Block, Params};
use crate::family::Family;

/// Bytes that are written at once, about.
const PIECE: usize = 1 << 20;

/// A tensor of the file.
pub(crate) struct Tensor {
    pub decl: TensorDecl,
    layout: Layout,
    /// Rows of a head, for layouts that reorder them.
    head_dim: usize,
    origin: Origin,
}

enum Origin {
    /// The codes of a module.
    Codes(NativeSite, Block),
    /// The factor that a module has for the whole tensor.
    Factor(NativeSite),
    /// A tensor that is no codes, by its name in the checkpoint.
    Plain(String),
    /// These numbers.
    Numbers(Vec<f32>),
}

/// Every tensor, in the order of execution.
///
/// # Errors
/// If one has no place in the file.
pub(crate) fn all(native: &NativeReader) -> Result<Vec<Tensor>> {
    let names = native.plain().into_iter().map(|i| i.name.clone()).chain(native.sites.iter().map(|s| format!("{}.weight", s.module)));
    let names: std::collections::BTreeSet<String> = names.collect();
    let family = Family::of(&native.config, &|name| names.contains(name))?;
    let head_dim = family.dims.head_dim;
    let mut out = Vec::new();
    let mut push = |name: String, dtype, shape: Vec<usize>, layout, origin| {
        out.push(Tensor { decl: TensorDecl { name, dtype, shape }, layout, head_dim, origin });
    };
    for site in &native.sites {
        let tensor = format!("{}.weight", site.module);
        let (name, layout) = family.place(&tensor)?.ok_or_else(|| Error::internal(format!("`{tensor}` is a buffer")))?;
        let block = accept::block(&site.site, &site.spec)?;
        if block == Block::Nvfp4 {
            let factor = name.replace(".weight", ".scale");
            push(factor, StoredDtype::F32, vec![1], Layout::Plain, Origin::Factor(site.clone()));
        }
        let (rows, cols) = site.shape;
        push(name, StoredDtype::Ggml(block.name()), vec![rows, cols], layout, Origin::Codes(site.clone(), block));
    }
    for info in native.plain() {
        let Some((name, layout)) = family.place(&info.name)? else { continue };
        let mut shape = info.shape.clone();
        if layout == Layout::Transposed {
            shape.reverse();
        }
        let dtype = match info.dtype {
            StoredDtype::F16 | StoredDtype::BF16 if shape.len() > 1 && name != "position_embd.weight" => info.dtype.clone(),
            _ => StoredDtype::F32,
        };
        push(name, dtype, shape, layout, Origin::Plain(info.name.clone()));
    }
    if let Some(factors) = family.factors {
        push("rope_freqs.weight".to_owned(), StoredDtype::F32, vec![factors.len()], Layout::Plain, Origin::Numbers(factors));
    }
    // Loading the model has checked this, but not everyone who calls loads it.
    if let Some(t) = out.iter().find(|t| matches!(t.layout, Layout::Queries | Layout::Keys) && t.decl.shape[0] % head_dim != 0) {
        let what = format!("`{}` has {} rows, which are no heads of {head_dim}", t.decl.name, t.decl.shape[0]);
        return Err(Error::input("container::shape", what).hint("does config.json belong to these weights?"));
    }
    out.sort_by_cached_key(|t| (position(&t.decl.name), t.decl.name.clone()));
    Ok(out)
}

/// What is read first stands first.
fn position(name: &str) -> usize {
    match name.split('.').collect::<Vec<_>>()[..] {
        ["token_embd", ..] => 0,
        ["position_embd" | "rope_freqs", ..] => 1,
        ["blk", n, ..] => n.parse().map_or(2, |n: usize| n + 2),
        _ => usize::MAX,
    }
}

impl Tensor {
    /// Whether it follows from the configuration, and stands for no tensor of the model.
    pub(crate) fn follows(&self) -> bool {
        matches!(self.origin, Origin::Numbers(_))
    }

    /// Writes it.
    ///
    /// # Errors
    /// If its numbers cannot be read, or the file cannot hold them.
    pub(crate) fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        match &self.origin {
            Origin::Codes(site, block) => self.codes(native, site, *block, out).map_err(|e| e.within(format!("`{}`", site.site))),
            Origin::Factor(site) => {
                let global = native.global(site)?.unwrap_or(1.0);
                out.write(&self.decl.name, &(1.0 / global).to_le_bytes())
            }
            Origin::Plain(name) => self.plain(native, name, out),
            Origin::Numbers(numbers) => out.write(&self.decl.name, &FloatKind::F32.bytes(numbers)),
        }
    }

    fn codes(&self, native: &NativeReader, site: &NativeSite, block: Block, out: &mut dyn ContainerWriter) -> Result<()> {
        let rounded = native.rounded(site)?;
        let (rows, cols) = site.shape;
        let params = &rounded.params;
        let codes = rounded.codes.bytes().ok_or_else(|| Error::internal("codes of more than eight bits"))?;
        let mut piece = Vec::new();
        for row in 0..rows {
            let row = self.layout.source_row(row, self.head_dim);
            let at = |column: usize| {
                let tile = params.layout.tile(row, column);
                Params { scale: params.scale[tile], form: site.spec.scale, zero: params.zero[tile], global: params.global.unwrap_or(1.0) }
            };
            block.encode(&site.spec.grid, &codes[row * cols..][..cols], at, &mut piece)?;
            if piece.len() >= PIECE {
                out.write(&self.decl.name, &piece)?;
                piece.clear();
            }
        }
        out.write(&self.decl.name, &piece)
    }

    fn plain(&self, native: &NativeReader, name: &str, out: &mut dyn ContainerWriter) -> Result<()> {
        let source = native.plain_source(name)?;
        let stored = &source.require(name)?.shape;
        let rows = stored.first().copied().unwrap_or(1);
        let columns: usize = stored.iter().skip(1).product();
        let kind = match self.decl.dtype {
            StoredDtype::F16 => FloatKind::F16,
            StoredDtype::BF16 => FloatKind::Bf16,
            _ => FloatKind::F32,
        };
        let mut values = Vec::new();
        if self.layout == Layout::Transposed {
            source.read_f32(name, 0..rows, &mut values)?;
            return out.write(&self.decl.name, &kind.bytes(&transpose(&values, rows, columns)));
        }
        // Whole heads, so that the rows of one are there together.
        let heads = (PIECE / (4 * columns * self.head_dim).max(1)).max(1);
        let step = heads * self.head_dim;
        let mut piece = Vec::with_capacity(step.min(rows) * columns);
        for first in (0..rows).step_by(step) {
            let here = step.min(rows - first);
            source.read_f32(name, first..first + here, &mut values)?;
            piece.clear();
            for row in 0..here {
                let row = self.layout.source_row(row, self.head_dim);
                piece.extend_from_slice(&values[row * columns..][..columns]);
            }
            out.write(&self.decl.name, &kind.bytes(&piece))?;
        }
        Ok(())
    }
}
