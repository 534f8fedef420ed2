//! What a transform sees of one region, and what it returns.

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::model::{MapWeights, WeightSource};
use crate::numeric::{decode, encode};
use crate::observer::{self, Observer, ScaleRule};
use crate::scheme::QuantSpec;
use crate::statistic::{Gram, StatKind, Stats, Stream};
use crate::topology::{Axis, Linear, Part, Port, Region, Slot, Symmetry, Topology};

use super::{Event, Replay};

/// One region under work. Its linear readers share what they read.
pub struct RegionContext<'a> {
    /// The region.
    pub region: &'a Region,
    /// The linears that read its channels, in order of execution; at least one.
    pub readers: &'a [Reader<'a>],
    /// The linears that write its channels, if the transform [looks at them](super::Transform::reads_producers); none where a norm does.
    pub producers: &'a [Producer<'a>],
    /// The statistics declared in [`super::Needs`], as the region's channels stand.
    pub stats: &'a Stats,
    /// The module that reads the region, to be run again, if [`super::Needs`] asked for that and it is more than one layer.
    pub replay: Option<&'a dyn Replay>,
    /// The stream to take statistics from.
    pub stream: Stream,
    /// The run's seed.
    pub seed: u64,
}

/// A linear that reads a region's channels.
pub struct Reader<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// Its weight as it stands, row-major `[out, in]`; finite.
    pub weight: &'a [f32],
    /// What it is to become and who chooses its ranges, if it is to be quantized.
    pub target: Option<(&'a QuantSpec, &'a dyn Observer)>,
    /// How its input is rounded, if it is.
    pub input: Option<&'a QuantSpec>,
    /// Whether what rounds it [feeds errors back](super::Round::feeds_back).
    pub feeds_back: bool,
}

/// A linear that writes a region's channels, or some rows of it.
pub struct Producer<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// Its rows that do, as they stand, `[channels, in]`: a view until somebody asks for numbers.
    weight: Tensor,
    /// Their biases, `[channels]`.
    bias: Option<Tensor>,
}

impl<'a> Producer<'a> {
    /// The linears that write `region`.
    ///
    /// # Errors
    /// If one of them is not in `weights`.
    pub fn of(region: &Region, topology: &'a Topology, weights: &MapWeights) -> Result<Vec<Self>> {
        let view = |slot: &Slot| -> Result<Tensor> {
            let all = weights.get(slot.site, slot.part)?;
            Ok(match &slot.range {
                Some(range) => all.narrow(0, range.start, range.len())?,
                None => all,
            })
        };
        let rows = region.producers.iter().filter(|slot| slot.part == Part::Weight && slot.axis == Axis::Rows);
        rows.filter_map(|slot| Some((slot, topology.linear(slot.site)?)))
            .map(|(slot, linear)| {
                let bias = region.producers.iter().find(|s| s.site == slot.site && s.part == Part::Bias);
                Ok(Self { linear, weight: view(slot)?, bias: bias.map(view).transpose()? })
            })
            .collect()
    }

    /// The rows, row-major, one for each of the region's channels; finite.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn weight(&self) -> Result<Vec<f32>> {
        numbers(&self.weight)
    }

    /// Their biases, where there are any.
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub fn bias(&self) -> Result<Option<Vec<f32>>> {
        self.bias.as_ref().map(numbers).transpose()
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

impl RegionContext<'_> {
    /// Where the readers' input is.
    ///
    /// # Errors
    /// If nothing reads the region.
    pub fn port(&self) -> Result<Port> {
        self.readers.first().map(|r| r.linear.input).ok_or_else(|| Error::internal(format!("`{}` has no readers", self.region.id)))
    }

    /// A statistic of each channel of the readers' input: `in` values, which are more than the region's channels where query heads share
    /// key/value heads.
    ///
    /// # Errors
    /// If nobody declared the need for it.
    pub fn channels(&self, kind: StatKind) -> Result<&[f64]> {
        let port = self.port()?;
        let found = self.stats.channels(port, kind, self.stream);
        found.ok_or_else(|| Error::internal(format!("`{kind:?}` at `{port}` was used without declaring the need for it")))
    }

    /// The Gram matrix of the readers' input.
    ///
    /// # Errors
    /// If nobody declared the need for it.
    pub fn gram(&self) -> Result<&Gram> {
        self.stats.gram(self.port()?, self.stream).map(|g| &**g)
    }
}

impl Reader<'_> {
    /// What rows of a weight like this one are once rounded to nearest, if the layer is to be quantized; `amax` is the largest magnitude
    /// in all of it. Rows come in multiples of [`Self::rows_at_once`], or all of them.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn nearest(&self, rows: &[f32], amax: f32) -> Result<Option<Vec<f32>>> {
        let Some((spec, observer)) = self.target else { return Ok(None) };
        let cols = self.linear.shape.1;
        let layout = spec.granularity.layout(rows.len() / cols, cols);
        let params = observer::fit(observer, &ScaleRule::of(spec, amax), rows, layout)?;
        let codes = encode(&spec.grid, &params, rows);
        let mut values = Vec::new();
        decode(&spec.grid, &params, &codes, 0..layout.rows, None, &mut values);
        Ok(Some(values))
    }

    /// How many rows share nothing with others.
    pub fn rows_at_once(&self) -> usize {
        let (rows, cols) = self.linear.shape;
        self.target.map_or(1, |(spec, _)| spec.granularity.layout(rows, cols).tile_rows)
    }
}

/// A change of basis that was found.
pub struct Solved {
    /// The change.
    pub symmetry: Symmetry,
    /// What is worth reporting of it.
    pub events: Vec<Event>,
}
