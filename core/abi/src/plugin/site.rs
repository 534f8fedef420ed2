//! What a call sees of the model: sites, statistics, regions.

use super::host::borrow;
use super::{StatKind, Stream};
use crate::raw;

/// A slice behind a pointer of the host; empty where it is null.
///
/// # Safety
/// `data` is null, or points to `len` numbers of that type that stay as they are for `'a`.
#[allow(unsafe_code, reason = "the border")]
pub(super) unsafe fn slice<'a, T>(data: *const T, len: usize) -> &'a [T] {
    if data.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: the caller promises it.
    unsafe { std::slice::from_raw_parts(data, len) }
}

/// The extents of a tensor.
///
/// # Safety
/// `tensor` is valid.
#[allow(unsafe_code, reason = "the border")]
pub(super) unsafe fn extents(tensor: &raw::Tensor) -> Vec<usize> {
    // SAFETY: a DLPack tensor has `ndim` extents.
    let shape = unsafe { slice(tensor.dl_tensor.shape, usize::try_from(tensor.dl_tensor.ndim).unwrap_or(0)) };
    shape.iter().map(|n| usize::try_from(*n).unwrap_or(0)).collect()
}

/// How many numbers a tensor holds.
///
/// # Safety
/// `tensor` is valid.
#[allow(unsafe_code, reason = "the border")]
pub(super) unsafe fn numbers_in(tensor: &raw::Tensor) -> usize {
    // SAFETY: the caller promises it.
    unsafe { extents(tensor) }.iter().product()
}

/// The numbers of a tensor of `T`s of the host; empty where it is of another width.
///
/// # Safety
/// `tensor` is null, or valid for `'a` and not written to.
#[allow(unsafe_code, reason = "the border")]
unsafe fn view<'a, T>(tensor: *const raw::Tensor) -> &'a [T] {
    // SAFETY: the caller promises it.
    let Some(tensor) = (unsafe { tensor.as_ref() }) else { return &[] };
    if usize::from(tensor.dl_tensor.dtype.bits) != 8 * size_of::<T>() {
        return &[];
    }
    // SAFETY: the host's tensors are contiguous, aligned and of the length that their shape says.
    unsafe { slice(tensor.dl_tensor.data.cast_const().cast::<T>(), numbers_in(tensor)) }
}

/// A statistic.
#[derive(Clone, Copy)]
pub struct Stat<'a> {
    raw: &'a raw::Stat,
}

#[allow(unsafe_code, reason = "the border: the host keeps what it passes in alive and as it is through the call")]
impl<'a> Stat<'a> {
    /// What it is; `None` for a kind that this version does not know.
    pub fn kind(&self) -> Option<StatKind> {
        StatKind::ALL.get(self.raw.kind as usize).copied()
    }

    /// Of which activations.
    pub fn stream(&self) -> Stream {
        Stream::of(self.raw.stream)
    }

    /// Tokens summed over.
    pub fn tokens(&self) -> u64 {
        self.raw.tokens
    }

    /// The same id is the same numbers, for the life of the process.
    pub fn id(&self) -> u64 {
        self.raw.id
    }

    /// The numbers of a matrix; empty for channels.
    pub fn matrix(&self) -> &'a [f32] {
        // SAFETY: see above.
        unsafe { view(self.raw.tensor) }
    }

    /// The numbers of channels; empty for a matrix.
    pub fn channels(&self) -> &'a [f64] {
        // SAFETY: see above.
        unsafe { view(self.raw.tensor) }
    }

    pub(super) fn tensor(&self) -> *const raw::Tensor {
        self.raw.tensor
    }
}

/// The statistics behind a pointer of the host.
///
/// # Safety
/// `stats` points to `n` valid statistics, or is null.
#[allow(unsafe_code, reason = "the border")]
unsafe fn stats<'a>(stats: *const *const raw::Stat, n: usize) -> impl Iterator<Item = Stat<'a>> {
    // SAFETY: the caller promises it.
    unsafe { slice(stats, n) }.iter().filter_map(|p| unsafe { p.as_ref() }).map(|raw| Stat { raw })
}

/// Tiles of a matrix that share a scale, counted row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Rows of a tile.
    pub tile_rows: usize,
    /// Columns of a tile.
    pub tile_cols: usize,
}

impl Tiles {
    /// The tile of an element.
    pub fn of(&self, row: usize, col: usize) -> usize {
        row / self.tile_rows * self.cols.div_ceil(self.tile_cols) + col / self.tile_cols
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.rows.div_ceil(self.tile_rows) * self.cols.div_ceil(self.tile_cols)
    }
}

/// What the codes of a grid stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GridKind {
    /// Integers.
    Int,
    /// Small floats.
    Float,
    /// A table.
    Levels,
}

/// A matrix of weights under work.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    raw: &'a raw::Site,
}

// SAFETY: a view of what nobody writes to during the call.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Site<'_> {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Site<'_> {}

#[allow(unsafe_code, reason = "the border: the host keeps what it passes in alive and as it is through the call")]
impl<'a> Site<'a> {
    /// # Safety
    /// `raw` is a site of the host, valid for `'a`, or null.
    pub(super) unsafe fn new(raw: *const raw::Site) -> Option<Self> {
        // SAFETY: the caller promises it.
        unsafe { raw.as_ref() }.map(|raw| Self { raw })
    }

    pub(super) fn raw(&self) -> *const raw::Site {
        self.raw
    }

    /// Such as `blocks.3.attn.q`.
    pub fn name(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.name) }
    }

    /// Such as `attn.q`.
    pub fn role(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.role) }
    }

    /// The decoder block, if it is in one.
    pub fn block(&self) -> Option<u32> {
        u32::try_from(self.raw.block).ok()
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.raw.seed
    }

    /// The stream to take statistics from.
    pub fn stream(&self) -> Stream {
        Stream::of(self.raw.stream)
    }

    /// The weight, row-major `[rows, cols]`; finite.
    pub fn weight(&self) -> &'a [f32] {
        // SAFETY: see above.
        unsafe { view(self.raw.weight) }
    }

    /// Output and input channels.
    pub fn shape(&self) -> (usize, usize) {
        // SAFETY: see above.
        let shape = unsafe { self.raw.weight.as_ref().map(|t| slice(t.dl_tensor.shape, 2)) };
        let extent = |i: usize| shape.and_then(|s| s.get(i)).and_then(|n| usize::try_from(*n).ok()).unwrap_or(0);
        (extent(0), extent(1))
    }

    /// The weight before any pass moved it.
    pub fn original(&self) -> &'a [f32] {
        // SAFETY: see above.
        unsafe { view(self.raw.original) }
    }

    /// What scales and zero points are to be fitted to: what a condition chose for that, else [`Site::weight`] itself.
    pub fn ranged(&self) -> &'a [f32] {
        // SAFETY: see above.
        unsafe { view(self.raw.ranged) }
    }

    /// What is known of its inputs.
    pub fn stats(&self) -> impl Iterator<Item = Stat<'a>> + use<'a> {
        // SAFETY: see above.
        unsafe { stats(self.raw.stats, self.raw.n_stats) }
    }

    /// A statistic of a stream.
    pub fn stat(&self, kind: StatKind, stream: Stream) -> Option<Stat<'a>> {
        self.stats().find(|s| s.kind() == Some(kind) && s.stream() == stream)
    }

    /// What its codes stand for, and the smallest and the largest code; `None` where it is not to be rounded.
    pub fn grid(&self) -> Option<(GridKind, i32, i32)> {
        // SAFETY: see above.
        let grid = unsafe { self.raw.grid.as_ref() }?;
        let kind = match grid.kind {
            raw::GRID_INT => GridKind::Int,
            raw::GRID_FLOAT => GridKind::Float,
            _ => GridKind::Levels,
        };
        Some((kind, grid.lo, grid.hi))
    }

    /// Which elements share a scale; `None` where it is not to be rounded.
    pub fn tiles(&self) -> Option<Tiles> {
        // SAFETY: see above.
        let t = unsafe { self.raw.tiles.as_ref() }?;
        Some(Tiles {
            rows: t.rows as usize,
            cols: t.cols as usize,
            tile_rows: t.tile_rows.max(1) as usize,
            tile_cols: t.tile_cols.max(1) as usize,
        })
    }

    /// Everything about what it becomes, as JSON; empty where it is not to be rounded.
    pub fn spec(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.spec) }
    }

    /// How its input is rounded, as JSON; empty if it is not.
    pub fn input(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.input) }
    }

    /// Shape, ports and bias of the layer, as JSON.
    pub fn linear(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.linear) }
    }

    /// The largest magnitude over the weights that share a factor with this one.
    pub fn amax(&self) -> f32 {
        self.raw.amax
    }

    /// Whether what rounds it moves later columns by the errors of earlier ones; known where the layer reads a region.
    pub fn feeds_back(&self) -> bool {
        self.raw.flags & raw::SITE_FEEDS_BACK != 0
    }
}

/// A space of channels, and the layers that read it.
#[derive(Clone, Copy)]
pub struct Region<'a> {
    raw: &'a raw::Region,
}

#[allow(unsafe_code, reason = "the border: the host keeps what it passes in alive and as it is through the call")]
impl<'a> Region<'a> {
    /// # Safety
    /// `raw` is a region of the host, valid for `'a`, or null.
    pub(super) unsafe fn new(raw: *const raw::Region) -> Option<Self> {
        // SAFETY: the caller promises it.
        unsafe { raw.as_ref() }.map(|raw| Self { raw })
    }

    /// Such as `blocks.3.values`.
    pub fn name(&self) -> &'a str {
        // SAFETY: see above.
        unsafe { borrow(self.raw.name) }
    }

    /// What the channels are, by the number in the header.
    pub fn space(&self) -> u32 {
        self.raw.space
    }

    /// The decoder block, if it is in one.
    pub fn block(&self) -> Option<u32> {
        u32::try_from(self.raw.block).ok()
    }

    /// Channels.
    pub fn width(&self) -> usize {
        self.raw.width as usize
    }

    /// Channels of a head, and how many times in a row readers see each head.
    pub fn heads(&self) -> (usize, usize) {
        (self.raw.head_width as usize, self.raw.repeat.max(1) as usize)
    }

    /// Per head: channels `i` and `i + n/2` have to change alike; 0 if none do.
    pub fn rotated(&self) -> usize {
        self.raw.rotated as usize
    }

    /// Whether scaling, permutation and rotation are allowed at all.
    pub fn allows(&self) -> (bool, bool, bool) {
        let bit = |n: u32| self.raw.allows & (1 << n) != 0;
        (bit(0), bit(1), bit(2))
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.raw.seed
    }

    /// The stream to take statistics from.
    pub fn stream(&self) -> Stream {
        Stream::of(self.raw.stream)
    }

    /// The layers that read it, in order of execution; none while the plan is made.
    pub fn readers(&self) -> Vec<Site<'a>> {
        // SAFETY: see above.
        unsafe { slice(self.raw.readers, self.raw.n_readers) }.iter().filter_map(|p| unsafe { Site::new(*p) }).collect()
    }

    /// What is known of the readers' input.
    pub fn stats(&self) -> impl Iterator<Item = Stat<'a>> + use<'a> {
        // SAFETY: see above.
        unsafe { stats(self.raw.stats, self.raw.n_stats) }
    }
}
