//! A site as a plugin sees it: views of what core has, with the text that goes with them.

use std::ptr::null;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use qfw_abi::raw;
use qfw_bridge::wire::LinearWire;
use qfw_core::algorithm::SiteContext;
use qfw_core::scheme::{FloatVariant, Grid, QuantSpec, TileLayout, Zero};
use qfw_core::statistic::{CrossGram, Gram, StatKind, Stats, Stream};
use qfw_core::topology::{Linear, Port};
use qfw_core::{Error, Result};

use crate::call::lend;
use crate::tensor::Lent;

/// Statistics, lent.
pub(crate) struct LentStats<'a> {
    // What the pointers are to.
    #[allow(clippy::vec_box, reason = "pointers to them stay good while the list grows")]
    _tensors: Vec<Box<Lent<'a>>>,
    #[allow(clippy::vec_box, reason = "pointers to them stay good while the list grows")]
    _stats: Vec<Box<raw::Stat>>,
    pointers: Vec<*const raw::Stat>,
}

/// A site, lent. It has to stay where it is while pointers to it are about; so it comes in a box.
pub(crate) struct LentSite<'a> {
    pub(crate) raw: raw::Site,
    _weight: Lent<'a>,
    _original: Lent<'a>,
    _ranged: Option<Lent<'a>>,
    _stats: LentStats<'a>,
    _grid: Option<Box<raw::Grid>>,
    _tiles: Option<Box<raw::Tiles>>,
    _texts: [String; 5],
}

/// What is lent of a layer that is to be rounded, or that is read only.
pub(crate) struct Layer<'a> {
    pub(crate) linear: &'a Linear,
    pub(crate) weight: &'a [f32],
    pub(crate) original: &'a [f32],
    /// What ranges are fitted to, if that is not the weight.
    pub(crate) ranged: Option<&'a [f32]>,
    pub(crate) spec: Option<&'a QuantSpec>,
    pub(crate) input: Option<&'a QuantSpec>,
    pub(crate) stream: Stream,
    pub(crate) seed: u64,
    pub(crate) amax: f32,
    pub(crate) feeds_back: bool,
}

impl<'a> Layer<'a> {
    pub(crate) fn of(cx: &SiteContext<'a>) -> Self {
        Self {
            linear: cx.linear,
            weight: cx.weight,
            original: cx.original,
            ranged: cx.ranged,
            spec: Some(cx.spec),
            input: cx.input,
            stream: cx.stream,
            seed: cx.seed,
            amax: cx.amax,
            feeds_back: false,
        }
    }
}

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

pub(crate) fn stream_code(stream: Stream) -> u32 {
    match stream {
        Stream::Reference => 0,
        Stream::Quantized => 1,
        Stream::Rounded => 2,
    }
}

/// The statistics of a port that were asked for; those that are not there are left out.
pub(crate) fn stats<'a>(stats: &'a Stats, port: Port, asked: &[(StatKind, Stream)]) -> LentStats<'a> {
    let mut lent = LentStats { _tensors: Vec::new(), _stats: Vec::new(), pointers: Vec::new() };
    for (kind, stream) in asked {
        let found = match kind {
            StatKind::Gram => stats.gram(port, *stream).ok().map(|g| (0, Lent::view(&g.lower, &[g.n, g.n]), g.tokens, gram_id(g))),
            StatKind::CrossGram => {
                let found = stats.cross_gram(port, *stream).ok();
                found.map(|c| (1, Lent::view(&c.values, &[c.n, c.n]), c.tokens, cross_gram_id(c)))
            }
            other => {
                let code = match other {
                    StatKind::Mean => 2,
                    StatKind::AbsMean => 3,
                    StatKind::Least => 4,
                    StatKind::Greatest => 5,
                    StatKind::RoundedMean => 6,
                    _ => continue,
                };
                stats.channels(port, *kind, *stream).map(|v| (code, Lent::view(v, &[v.len()]), 0, next_id()))
            }
        };
        let Some((kind, tensor, tokens, id)) = found else { continue };
        let tensor = Box::new(tensor);
        let stat =
            raw::Stat { size: size::<raw::Stat>(), kind, stream: stream_code(*stream), reserved: 0, tokens, id, tensor: tensor.raw() };
        let stat = Box::new(stat);
        lent.pointers.push(&*stat);
        lent._tensors.push(tensor);
        lent._stats.push(stat);
    }
    lent
}

impl LentStats<'_> {
    pub(crate) fn pointer(&self) -> *const *const raw::Stat {
        if self.pointers.is_empty() { null() } else { self.pointers.as_ptr() }
    }

    pub(crate) fn len(&self) -> usize {
        self.pointers.len()
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A number for each matrix. It is known by its address, which is its own as long as a weak pointer to it is kept.
fn id_of<T>(known: &Mutex<Vec<(Weak<T>, u64)>>, matrix: &Arc<T>) -> u64 {
    let Ok(mut known) = known.lock() else { return next_id() };
    known.retain(|(weak, _)| weak.strong_count() > 0);
    if let Some((_, id)) = known.iter().find(|(weak, _)| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(matrix))) {
        return *id;
    }
    let id = next_id();
    known.push((Arc::downgrade(matrix), id));
    id
}

fn gram_id(gram: &Arc<Gram>) -> u64 {
    static KNOWN: Mutex<Vec<(Weak<Gram>, u64)>> = Mutex::new(Vec::new());
    id_of(&KNOWN, gram)
}

fn cross_gram_id(cross: &Arc<CrossGram>) -> u64 {
    static KNOWN: Mutex<Vec<(Weak<CrossGram>, u64)>> = Mutex::new(Vec::new());
    id_of(&KNOWN, cross)
}

/// A grid as it crosses the border; it borrows the table.
pub(crate) fn grid(grid: &Grid, bits: u8) -> raw::Grid {
    let (lo, hi) = grid.limits();
    let (zero, fixed_zero) = match grid.zero() {
        Zero::None => (raw::ZERO_NONE, 0),
        Zero::Fixed(z) => (raw::ZERO_FIXED, z),
        Zero::Integer => (raw::ZERO_INTEGER, 0),
        Zero::Float => (raw::ZERO_FLOAT, 0),
    };
    let mut raw = raw::Grid {
        size: size::<raw::Grid>(),
        kind: raw::GRID_INT,
        lo,
        hi,
        bits: u32::from(bits),
        zero,
        fixed_zero,
        exponent: 0,
        mantissa: 0,
        variant: 0,
        levels: null(),
        n_levels: 0,
    };
    match grid {
        Grid::Float(f) => {
            let (exponent, mantissa) = f.shape();
            let variant = match f.variant() {
                FloatVariant::Plain => 0,
                FloatVariant::Ocp => 1,
                FloatVariant::Fnuz => 2,
            };
            (raw.kind, raw.exponent, raw.mantissa, raw.variant) = (raw::GRID_FLOAT, exponent.into(), mantissa.into(), variant);
        }
        Grid::Levels(levels) => (raw.kind, raw.levels, raw.n_levels) = (raw::GRID_LEVELS, levels.as_ptr(), levels.len()),
        _ => {}
    }
    raw
}

fn tiles(layout: TileLayout) -> raw::Tiles {
    raw::Tiles {
        size: size::<raw::Tiles>(),
        reserved: 0,
        rows: layout.rows as u64,
        cols: layout.cols as u64,
        tile_rows: layout.tile_rows as u64,
        tile_cols: layout.tile_cols as u64,
    }
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::internal(e.to_string()))
}

/// A layer as a plugin sees it; `token` is how the host knows it again.
///
/// # Errors
/// An internal error if it cannot be written as text.
pub(crate) fn lend_site<'a>(layer: &Layer<'a>, stats: LentStats<'a>, token: u64) -> Result<Box<LentSite<'a>>> {
    let linear = layer.linear;
    let shape = [linear.shape.0, linear.shape.1];
    let texts = [
        linear.site.to_string(),
        linear.site.role.name().to_owned(),
        layer.spec.map_or(Ok(String::new()), json)?,
        layer.input.map_or(Ok(String::new()), json)?,
        json(&LinearWire::of(linear))?,
    ];
    let grid = layer.spec.map(|s| Box::new(grid(&s.grid, s.bits)));
    let tiles = layer.spec.map(|s| Box::new(tiles(s.granularity.layout(shape[0], shape[1]))));
    let [name, role, spec, input, described] = [0, 1, 2, 3, 4].map(|i: usize| lend(&texts[i]));
    let raw = raw::Site {
        size: size::<raw::Site>(),
        stream: stream_code(layer.stream),
        token,
        name,
        role,
        block: linear.site.block.map_or(-1, i64::from),
        seed: layer.seed,
        weight: null(),
        original: null(),
        ranged: null(),
        stats: stats.pointer(),
        n_stats: stats.len(),
        grid: grid.as_deref().map_or(null(), std::ptr::from_ref),
        tiles: tiles.as_deref().map_or(null(), std::ptr::from_ref),
        spec,
        input,
        linear: described,
        amax: layer.amax,
        flags: if layer.feeds_back { raw::SITE_FEEDS_BACK } else { 0 },
    };
    let (weight, original) = (Lent::view(layer.weight, &shape), Lent::view(layer.original, &shape));
    let ranged = layer.ranged.map(|ranged| Lent::view(ranged, &shape));
    let lent =
        LentSite { raw, _weight: weight, _original: original, _ranged: ranged, _stats: stats, _grid: grid, _tiles: tiles, _texts: texts };
    let mut lent = Box::new(lent);
    (lent.raw.weight, lent.raw.original) = (lent._weight.raw(), lent._original.raw());
    lent.raw.ranged = lent._ranged.as_ref().map_or(lent.raw.weight, Lent::raw);
    Ok(lent)
}
