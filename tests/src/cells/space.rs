//! The axes, and the valid entries of each part.

use std::fmt;
use std::num::NonZeroU32;

use qfw_core::plan::cell::{Part, Tensor, judge};
use qfw_core::plan::raw::{
    RawConvention, RawGranularity, RawGroup, RawQuant, RawRange, RawReduce, RawScale, RawScaleRounding, RawTiming, RawZeroPoint,
};
use qfw_core::registry::Registry;
use qfw_core::scheme::FloatKind;

/// Checkpoints that cells run on: every architecture, heads of their own.
pub(super) const MODELS: [&str; 6] = ["llama-base", "gpt2-untied", "mistral-base", "opt-untied", "qwen2-base", "qwen3-base"];
/// Algorithm and its options.
pub(super) const ALGORITHMS: [(&str, &str); 4] =
    [("rtn", ""), ("gptq", "act-order = 'off'"), ("gptq", "act-order = 'static'"), ("gptq", "act-order = 'group'")];
/// `harness.propagate`.
pub(super) const PROPAGATE: [&str; 3] = ["quantized", "reference", "both"];
/// `harness.sequence`.
pub(super) const SEQUENCE: [&str; 2] = ["block", "layer"];

/// Parts of the scheme that a cell chooses, in the order of its entries.
pub(super) const PARTS: [Part; 7] = [Part::Weights, Part::Inputs, Part::Outputs, Part::Queries, Part::Keys, Part::Values, Part::Probs];

const WEIGHT_FORMATS: [&str; 18] = [
    "int4",
    "int2",
    "int3",
    "int8",
    "int16",
    "uint4",
    "ternary",
    "nf4",
    "float-e2m1",
    "float-e3m2",
    "float-ocp-e4m3",
    "float-ocp-e5m2",
    "float-fnuz-e4m3",
    "mxfp4",
    "mxfp6-e2m3",
    "mxfp8-e4m3",
    "mxint8",
    "nvfp4",
];
/// Eight bits and more, or little is left of a model of which every tensor is rounded.
const ACTIVATION_FORMATS: [&str; 9] =
    ["int8", "uint8", "int6", "int16", "float-ocp-e4m3", "float-fnuz-e5m2", "mxfp8-e4m3", "mxint8", "nvfp4"];
const WEIGHT_RANGES: [&str; 7] = ["minmax", "absmean", "entropy", "hqo", "hqq", "mse", "percentile"];
const ACTIVATION_RANGES: [&str; 4] = ["minmax", "entropy", "mse", "percentile"];

/// What one part becomes, and the values of the axes it is made of.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// `None`: high precision.
    pub(super) quant: Option<RawQuant>,
    /// Numbers of axis values.
    pub(super) values: Vec<usize>,
}

/// A whole run: the entry chosen from each list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    pub(super) choice: Vec<usize>,
}

/// All axes and lists. The last lists are those of the loop.
pub struct Space {
    /// For each part, then for models, algorithms, streams and sequences, what can be chosen.
    pub(super) lists: Vec<Vec<Entry>>,
    /// Number of axis values.
    pub(super) values: usize,
    /// The axis of each value.
    pub(super) axis: Vec<usize>,
}

impl Space {
    /// Lists everything that is valid.
    ///
    /// # Panics
    /// Never: sizes are constants above 0.
    pub fn new(registry: &Registry) -> Self {
        let mut space = Self { lists: Vec::new(), values: 0, axis: Vec::new() };
        for part in PARTS {
            let list = if part == Part::Weights { space.weights(registry) } else { space.activations(part, registry) };
            space.lists.push(list);
        }
        for n in [MODELS.len(), ALGORITHMS.len(), PROPAGATE.len(), SEQUENCE.len()] {
            let first = space.axis_of(n);
            space.lists.push((0..n).map(|i| Entry { quant: None, values: vec![first + i] }).collect());
        }
        space
    }

    /// How many entries each list has.
    pub fn sizes(&self) -> Vec<usize> {
        self.lists.iter().map(Vec::len).collect()
    }

    /// A cell in words: what differs from a plain integer, part by part.
    pub fn describe(&self, cell: &Cell) -> String {
        let mut words = Vec::new();
        for (part, quant) in PARTS.iter().zip(self.quants(cell)) {
            if let Some(q) = quant {
                // As a user would write it: only what is not said anyway.
                let plain = toml::Table::try_from(RawQuant::new("")).unwrap_or_default();
                let mut said = toml::Table::try_from(q).unwrap_or_default();
                said.retain(|key, value| plain.get(key) != Some(value));
                words.push(format!("{} = {}", part.key(), toml::Value::Table(said)));
            }
        }
        let [model, algorithm, propagate, sequence] = self.rest(cell);
        let (algo, options) = ALGORITHMS[algorithm];
        words.push(format!("{} {algo} {options:?} {} {}", MODELS[model], PROPAGATE[propagate], SEQUENCE[sequence]));
        words.join("; ")
    }

    /// What each part becomes.
    pub(super) fn quants(&self, cell: &Cell) -> impl Iterator<Item = Option<&RawQuant>> {
        let chosen = cell.choice.iter().zip(&self.lists).map(|(i, list)| list[*i].quant.as_ref());
        chosen.take(PARTS.len()).collect::<Vec<_>>().into_iter()
    }

    /// Model, algorithm, stream and sequence.
    pub(super) fn rest(&self, cell: &Cell) -> [usize; 4] {
        let c = &cell.choice[PARTS.len()..];
        [c[0], c[1], c[2], c[3]]
    }

    /// A new axis of `n` values; returns the number of its first.
    fn axis_of(&mut self, n: usize) -> usize {
        let (first, axis) = (self.values, self.axis.last().map_or(0, |a| a + 1));
        self.axis.extend(std::iter::repeat_n(axis, n));
        self.values += n;
        first
    }

    fn weights(&mut self, registry: &Registry) -> Vec<Entry> {
        let granularities = [
            None,
            Some(RawGranularity::Tensor),
            Some(RawGranularity::Channel),
            Some(RawGranularity::Dimension),
            Some(RawGranularity::Group(RawGroup::Exact(size(8)))),
            // 16 in every model, whose input channels are multiples of it.
            Some(RawGranularity::Group(RawGroup::Auto(size(16)))),
            Some(RawGranularity::Group(RawGroup::Exact(size(20)))),
            Some(RawGranularity::GroupOut(size(8))),
            Some(RawGranularity::Block([size(8), size(16)])),
        ];
        let timings = [RawTiming::Static, RawTiming::Cast];
        let lists = Lists {
            formats: &WEIGHT_FORMATS,
            granularities: &granularities,
            timings: &timings,
            ranges: &WEIGHT_RANGES,
            conventions: &CONVENTIONS,
            reduces: &[RawReduce::Mean],
        };
        self.entries(Part::Weights, &lists, registry)
    }

    fn activations(&mut self, part: Part, registry: &Registry) -> Vec<Entry> {
        let granularities = [
            None,
            Some(RawGranularity::Tensor),
            Some(RawGranularity::Token),
            Some(RawGranularity::Head),
            Some(RawGranularity::Dimension),
            Some(RawGranularity::Group(RawGroup::Exact(size(8)))),
            Some(RawGranularity::Block([size(4), size(8)])),
        ];
        let timings = [RawTiming::Dynamic, RawTiming::Static, RawTiming::Cast];
        let reduces = [RawReduce::Mean, RawReduce::Max, RawReduce::Ema(0.1), RawReduce::Concat];
        let lists = Lists {
            formats: &ACTIVATION_FORMATS,
            granularities: &granularities,
            timings: &timings,
            ranges: &ACTIVATION_RANGES,
            conventions: &CONVENTIONS[..1],
            reduces: &reduces,
        };
        let mut entries = self.entries(part, &lists, registry);
        // Left as it is: an axis of its own, with one value, that goes with everything else.
        let none = self.axis_of(1);
        entries.push(Entry { quant: None, values: vec![none] });
        entries
    }

    /// The valid ones of a product.
    fn entries(&mut self, part: Part, lists: &Lists<'_>, registry: &Registry) -> Vec<Entry> {
        let tensor = Tensor { rows: 32, cols: 32, head_dim: 8, auto: 16, stored: FloatKind::F32 };
        let sizes = [
            lists.formats.len(),
            lists.granularities.len(),
            lists.timings.len(),
            ZEROS.len(),
            SCALES.len(),
            lists.ranges.len(),
            lists.conventions.len(),
            lists.reduces.len(),
        ];
        let first: Vec<usize> = sizes.iter().map(|n| self.axis_of(*n)).collect();
        let mut entries = Vec::new();
        for index in 0..sizes.iter().product::<usize>() {
            let mut rest = index;
            let c: Vec<usize> = sizes
                .iter()
                .map(|n| {
                    let digit = rest % n;
                    rest /= n;
                    digit
                })
                .collect();
            let (symmetric, zero_point) = ZEROS[c[3]];
            let (scale, scale_rounding) = SCALES[c[4]];
            let quant = RawQuant {
                granularity: lists.granularities[c[1]].clone(),
                timing: lists.timings[c[2]],
                symmetric,
                zero_point,
                scale,
                scale_rounding,
                // The first means what the format is defined with.
                range: (c[5] > 0).then(|| RawRange { id: lists.ranges[c[5]].to_owned(), options: toml::Table::new() }),
                convention: lists.conventions[c[6]],
                reduce: lists.reduces[c[7]],
                ..RawQuant::new(lists.formats[c[0]])
            };
            // What a key does not bear on is not told apart: conventions are of symmetric integers, reducers of static ranges.
            let integers = quant.symmetric && quant.format.contains("int") && !quant.format.starts_with("mx");
            let idle = (c[6] > 0 && !integers) || (c[7] > 0 && quant.timing != RawTiming::Static);
            if !idle && judge(part, &quant, &tensor, registry).is_ok() {
                entries.push(Entry { quant: Some(quant), values: first.iter().zip(&c).map(|(f, c)| f + c).collect() });
            }
        }
        entries
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space {{ values: {}, entries: {:?} }}", self.values, self.sizes())
    }
}

/// What the entries of a part are made of.
struct Lists<'a> {
    formats: &'a [&'a str],
    granularities: &'a [Option<RawGranularity>],
    timings: &'a [RawTiming],
    ranges: &'a [&'a str],
    conventions: &'a [RawConvention],
    reduces: &'a [RawReduce],
}

const CONVENTIONS: [RawConvention; 5] =
    [RawConvention::HalfRange, RawConvention::PowB1, RawConvention::PowB1m1, RawConvention::Narrow, RawConvention::SignedFull];
const ZEROS: [(bool, RawZeroPoint); 3] = [(true, RawZeroPoint::Integer), (false, RawZeroPoint::Integer), (false, RawZeroPoint::Float)];
const SCALES: [(Option<RawScale>, Option<RawScaleRounding>); 6] = [
    (None, None),
    (Some(RawScale::Float), None),
    (Some(RawScale::Po2), None),
    (Some(RawScale::Po2), Some(RawScaleRounding::Floor)),
    (Some(RawScale::Po2), Some(RawScaleRounding::Ceil)),
    (Some(RawScale::Po2), Some(RawScaleRounding::Round)),
];

fn size(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN)
}
