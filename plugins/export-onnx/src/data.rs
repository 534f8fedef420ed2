//! The bytes of the tensors beside the file, one tensor at a time.
//!
//! Integers of less than eight bits lie low bits first. A row of blocks begins on a whole byte; a tensor of four-bit integers is one
//! stream, whatever its shape. `MatMul` reads `[in, out]`, so weights behind `DequantizeLinear` are turned.

use qfw_core::algorithm::Rounded;
use qfw_core::candle::{DType, Device, Tensor};
use qfw_core::checkpoint::ContainerWriter;
use qfw_core::checkpoint::native::{NativeReader, NativeSite};
use qfw_core::model::Rope;
use qfw_core::numeric::{pack_row, transpose};
use qfw_core::plan::PlannedBranch;
use qfw_core::scheme::{FloatKind, TileLayout};
use qfw_core::topology::Rotation;
use qfw_core::{Error, Result};

use crate::graph::Stored;

/// Bytes that are written at once, about.
const PIECE: usize = 1 << 20;

/// Positions of a rotary table that are computed at once.
const POSITIONS: usize = 4096;

/// What a tensor is made of.
#[derive(Clone)]
pub(crate) enum Origin {
    /// A tensor of the checkpoint of the same name, as it is.
    Plain,
    /// The codes of a module, `shift` added to each.
    Codes { site: NativeSite, shift: i32, packing: Packing },
    /// Its scales, as f32.
    Scales { site: NativeSite, order: Order },
    /// Its zero points less the smallest code.
    Zeros { site: NativeSite, order: Order, width: ZeroWidth },
    /// `A` or `B` of a branch, turned, as f32.
    Factor { branch: PlannedBranch, second: bool },
    /// Cosines or sines, `[positions, dim/2]`.
    Angles { rope: Rope, positions: usize, sine: bool },
    /// The matrix of a rotation, `[n, n]`, as f32.
    Rotation(Rotation),
    /// These.
    Numbers(Vec<f32>),
}

impl Origin {
    /// Whether it follows from the configuration and the plan, and stands for no tensor of the model.
    pub(crate) fn follows(&self) -> bool {
        matches!(self, Self::Angles { .. } | Self::Rotation(_))
    }
}

/// How codes lie.
#[derive(Clone, Copy)]
pub(crate) enum Packing {
    /// Row by row in so many bits, inputs padded to whole blocks.
    Blocks { bits: u8, size: usize },
    /// Turned, in one stream of so many bits.
    Turned { bits: u8 },
}

/// Which scale or zero point is stored where.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// As the tiles are counted.
    Tiles,
    /// One for each row.
    Rows,
    /// For each row one for each run of inputs.
    Blocks(usize),
    /// The same turned: for each run of inputs one for each row.
    Turned(usize),
}

/// What a zero point is stored in.
#[derive(Clone, Copy)]
pub(crate) enum ZeroWidth {
    /// So many bits, each row of scales on whole bytes.
    RowsOf(u8),
    /// So many bits in one stream.
    Stream(u8),
    Float,
}

impl Order {
    /// The tiles in the order of what is stored, and how many make a row of it.
    fn tiles(self, layout: &TileLayout) -> (Vec<usize>, usize) {
        let at = |size: usize, block: usize, row: usize| layout.tile(row, block * size);
        match self {
            Self::Tiles => ((0..layout.tiles()).collect(), layout.grid().1),
            Self::Rows => ((0..layout.rows).map(|row| layout.tile(row, 0)).collect(), 1),
            Self::Blocks(size) => {
                let n = layout.cols.div_ceil(size);
                ((0..layout.rows).flat_map(|row| (0..n).map(move |block| at(size, block, row))).collect(), n)
            }
            Self::Turned(size) => {
                let n = layout.cols.div_ceil(size);
                ((0..n).flat_map(|block| (0..layout.rows).map(move |row| at(size, block, row))).collect(), layout.rows)
            }
        }
    }
}

impl Stored {
    /// Writes it.
    ///
    /// # Errors
    /// If its numbers cannot be read or written.
    pub(crate) fn write(&self, native: &NativeReader, out: &mut dyn ContainerWriter) -> Result<()> {
        let mut put = |bytes: &[u8]| out.write(&self.name, bytes);
        let floats = |values: &[f32]| FloatKind::F32.bytes(values);
        let within = |site: &NativeSite| {
            let site = site.site.clone();
            move |e: Error| e.within(format!("`{site}`"))
        };
        match &self.origin {
            Origin::Plain => native.copy_plain(&self.name, out),
            Origin::Codes { site, shift, packing } => {
                native.rounded(site).and_then(|r| codes(&r, site.shape, *shift, *packing, &mut put)).map_err(within(site))
            }
            Origin::Scales { site, order } => {
                let params = native.rounded(site).map_err(within(site))?.params;
                let (tiles, _) = order.tiles(&params.layout);
                put(&floats(&tiles.into_iter().map(|t| params.scale[t]).collect::<Vec<_>>()))
            }
            Origin::Zeros { site, order, width } => {
                let params = native.rounded(site).map_err(within(site))?.params;
                let (tiles, row) = order.tiles(&params.layout);
                let lo = site.spec.grid.limits().0;
                let zeros: Vec<f32> = tiles.into_iter().map(|t| params.zero[t] - lo as f32).collect();
                let units = || zeros.iter().map(|z| *z as u8).collect::<Vec<u8>>();
                let mut bytes = Vec::new();
                match width {
                    ZeroWidth::Float => bytes = floats(&zeros),
                    ZeroWidth::Stream(bits) => pack_row(&units(), *bits, 1, &mut bytes),
                    ZeroWidth::RowsOf(bits) => units().chunks(row).for_each(|row| pack_row(row, *bits, 1, &mut bytes)),
                }
                put(&bytes)
            }
            Origin::Factor { branch, second } => {
                let [a, b] = native.branch(branch)?;
                let (factor, rows) = if *second { (b, branch.shape.0) } else { (a, branch.rank) };
                put(&floats(&transpose(&factor, rows, factor.len() / rows.max(1))))
            }
            Origin::Angles { rope, positions, sine } => angles(rope, *positions, *sine, &mut put),
            Origin::Rotation(rotation) => put(&floats(&rotation.turn()?.matrix().into_iter().map(|x| x as f32).collect::<Vec<_>>())),
            Origin::Numbers(values) => put(&floats(values)),
        }
    }
}

fn codes(
    rounded: &Rounded,
    (rows, cols): (usize, usize),
    shift: i32,
    packing: Packing,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let units = rounded.codes.bytes().ok_or_else(|| Error::internal("codes of more than eight bits"))?;
    let stored = |unit: &u8| (i32::from(*unit) + shift) as u8;
    match packing {
        Packing::Turned { bits } => {
            let mask = if bits == 8 { 0xff } else { (1_u8 << bits) - 1 };
            let turned = transpose(&units.iter().map(|u| stored(u) & mask).collect::<Vec<u8>>(), rows, cols);
            if bits == 8 {
                return put(&turned);
            }
            let mut bytes = Vec::with_capacity(turned.len() / 2 + 1);
            pack_row(&turned, bits, 1, &mut bytes);
            put(&bytes)
        }
        Packing::Blocks { bits, size } => {
            let mut piece = Vec::new();
            let mut padded = vec![0_u8; cols.next_multiple_of(size)];
            for row in units.chunks_exact(cols) {
                padded.iter_mut().zip(row).for_each(|(p, unit)| *p = stored(unit));
                pack_row(&padded, bits, 1, &mut piece);
                if piece.len() >= PIECE {
                    put(&piece)?;
                    piece.clear();
                }
            }
            put(&piece)
        }
    }
}

/// Rows of a rotary table: those of sequences of up to the trained length, where angles are others beyond it, then those of the longest.
pub(crate) fn angle_rows(rope: &Rope, positions: usize) -> usize {
    positions + rope.trained().filter(|t| *t < positions).unwrap_or(0)
}

fn angles(rope: &Rope, positions: usize, sine: bool, put: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let short = rope.trained().filter(|t| *t < positions);
    for length in short.into_iter().chain([positions]) {
        for first in (0..length).step_by(POSITIONS) {
            let (cos, sin) = rope.angles_within(length, first..length.min(first + POSITIONS), DType::F32, &Device::Cpu)?;
            let values: Tensor = if sine { sin } else { cos };
            put(&FloatKind::F32.bytes(&values.flatten_all()?.to_vec1::<f32>()?))?;
        }
    }
    Ok(())
}
