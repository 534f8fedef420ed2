//! Sites to try an algorithm on: shapes that break things, with statistics of made-up inputs.

use std::sync::Arc;

use qfw_core::Result;
use qfw_core::algorithm::{Needs, PlanContext, PtqAlgorithm, SiteContext};
use qfw_core::format::Ask;
use qfw_core::numeric::uniform_u64;
use qfw_core::observer::Observer;
use qfw_core::registry::Registry;
use qfw_core::scheme::{Convention, FloatKind, Granularity, ObserverChoice, QuantSpec, Reducer, Timing};
use qfw_core::statistic::{CrossGram, Gram, Stat, StatKey, StatKind, Stats, Stream};
use qfw_core::topology::{Linear, Port, PortName, Role, SiteId, Topology};

/// What is special about a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Plain,
    /// The first input never fires, and its weights are zero.
    ZeroColumn,
    /// The weights of the first row are all the same.
    ConstantRow,
    /// One weight is a thousand times as large as any other.
    Outlier,
    /// Fewer tokens than channels: a Gram matrix that has no inverse.
    RankDeficient,
    /// Every weight is a value of the grid.
    OnGrid,
}

/// A site of no model, with all that an algorithm may ask about it.
pub struct Sample {
    /// The layer.
    pub linear: Linear,
    /// Its weight, row-major `[rows, cols]`.
    pub weight: Vec<f32>,
    /// What it becomes.
    pub spec: QuantSpec,
    observer: Box<dyn Observer>,
    /// What was collected.
    pub stats: Stats,
    seed: u64,
    /// Row-major `[tokens, cols]`.
    pub inputs: Vec<f64>,
}

/// A number from −1 to 1.
pub(super) fn uniform(key: &[u64]) -> f64 {
    (uniform_u64(key) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// What a weight is to become, and who chooses its ranges.
pub(super) struct Target {
    pub(super) spec: QuantSpec,
    pub(super) observer: Box<dyn Observer>,
}

impl Target {
    pub(super) fn of(registry: &Registry, format: &str, granularity: Granularity) -> Result<Self> {
        let stored = FloatKind::F16;
        let symmetric = !format.starts_with('u');
        let ask = Ask { symmetric, convention: Convention::PowB1, float_zero: false, power_of_two: None, stored };
        let found = registry.format(format)?;
        let meaning = found.resolve(&ask)?;
        let choice = ObserverChoice { id: "minmax".to_owned(), options: serde_json::json!({}) };
        let (observer, options) = registry.build_observer(&choice.id, &choice.options)?;
        let spec = QuantSpec {
            format: format.to_owned(),
            bits: found.bits(),
            grid: meaning.grid,
            granularity,
            symmetric: meaning.symmetric,
            convention: meaning.convention,
            observer: ObserverChoice { options, ..choice },
            timing: Timing::Static,
            reduce: Reducer::Mean,
            rescale: 1.0,
            min_threshold: 0.0,
            scale: meaning.scale,
        };
        Ok(Self { spec, observer })
    }
}

/// The statistics of made-up inputs, row-major `[tokens, n]`, that were asked for at a port.
pub(super) fn collect(stats: &mut Stats, port: Port, inputs: &[f64], n: usize, asked: &[(StatKind, Stream)]) {
    for (kind, stream) in asked {
        if let Some(stat) = statistic(inputs, n, *kind) {
            stats.insert(StatKey { port, kind: *kind, stream: *stream }, stat);
        }
    }
}

fn statistic(inputs: &[f64], n: usize, kind: StatKind) -> Option<Stat> {
    let tokens = inputs.len() / n;
    let product = |lower: bool| {
        let mut sum = vec![0.0f64; n * n];
        for x in inputs.chunks(n) {
            for i in 0..n {
                for j in 0..if lower { i + 1 } else { n } {
                    sum[i * n + j] += x[i] * x[j];
                }
            }
        }
        sum.into_iter().map(|x| x as f32).collect::<Vec<f32>>()
    };
    let channel = |start: f64, f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
        (0..n).map(|c| inputs.chunks(n).fold(start, |all, x| f(all, x[c]))).collect()
    };
    let mean = |f: &dyn Fn(f64) -> f64| channel(0.0, &|all, x| all + f(x) / tokens as f64);
    Some(match kind {
        StatKind::Gram => Stat::Gram(Arc::new(Gram::new(n, product(true), tokens as u64))),
        StatKind::CrossGram => Stat::CrossGram(Arc::new(CrossGram::new(n, product(false), tokens as u64))),
        StatKind::Mean | StatKind::RoundedMean => Stat::Channels(Arc::from(mean(&|x| x))),
        StatKind::AbsMean => Stat::Channels(Arc::from(mean(&f64::abs))),
        StatKind::Least => Stat::Channels(Arc::from(channel(f64::INFINITY, &f64::min))),
        StatKind::Greatest => Stat::Channels(Arc::from(channel(f64::NEG_INFINITY, &f64::max))),
        _ => return None,
    })
}

/// A number that changes with any number of the statistics that were asked for.
pub(super) fn fingerprint(stats: &Stats, port: Port, asked: &[(StatKind, Stream)]) -> u64 {
    // Each step is a bijection of what came before, so that one change cannot cancel itself.
    let mut print = 0u64;
    let mut take = |bits: u64| print = (print ^ bits).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    for (kind, stream) in asked {
        match kind {
            StatKind::Gram => {
                let gram = stats.gram(port, *stream).ok();
                gram.into_iter().flat_map(|g| g.lower.iter()).for_each(|x| take(x.to_bits().into()));
            }
            StatKind::CrossGram => {
                let cross = stats.cross_gram(port, *stream).ok();
                cross.into_iter().flat_map(|c| c.values.iter()).for_each(|x| take(x.to_bits().into()));
            }
            _ => stats.channels(port, *kind, *stream).into_iter().flatten().for_each(|x| take(x.to_bits())),
        }
    }
    print
}

impl Sample {
    /// A site of that shape, in a format of this crate's own.
    ///
    /// # Errors
    /// If there is no such format.
    pub fn new(seed: u64, kind: Kind, shape: (usize, usize), format: &str, granularity: Granularity) -> Result<Self> {
        Self::of_registry(&Registry::builtin()?, seed, kind, shape, format, granularity)
    }

    /// A site of that shape, in a format of that registry.
    ///
    /// # Errors
    /// If there is no such format.
    pub fn of_registry(
        registry: &Registry,
        seed: u64,
        kind: Kind,
        (rows, cols): (usize, usize),
        format: &str,
        granularity: Granularity,
    ) -> Result<Self> {
        let mut weight: Vec<f32> =
            (0..rows * cols).map(|i| (uniform(&[seed, 1, i as u64]) * uniform(&[seed, 2, i as u64])) as f32).collect();
        match kind {
            Kind::Plain | Kind::RankDeficient => {}
            Kind::ZeroColumn => weight.chunks_mut(cols).for_each(|row| row[0] = 0.0),
            Kind::ConstantRow => weight[..cols].fill(0.25),
            Kind::Outlier => weight[rows * cols / 2] = 1000.0,
            Kind::OnGrid => weight.iter_mut().for_each(|w| *w = (*w * 7.0).round() / 8.0),
        }
        if kind == Kind::OnGrid {
            weight.chunks_mut(cols).for_each(|row| row[0] = -1.0);
        }
        let tokens = if kind == Kind::RankDeficient { cols.div_ceil(4) } else { 2 * cols.min(64) + 8 };
        let mut inputs: Vec<f64> = (0..tokens * cols).map(|i| uniform(&[seed, 3, i as u64])).collect();
        if kind == Kind::ZeroColumn && cols > 1 {
            inputs.chunks_mut(cols).for_each(|x| x[0] = 0.0);
        }
        let Target { spec, observer } = Target::of(registry, format, granularity)?;
        let linear = Linear {
            site: SiteId::in_block(0, Role::MlpDown),
            shape: (rows, cols),
            input: PortName::DownIn.into(),
            output: PortName::DownOut.into(),
            bias: false,
            module: String::new(),
            transposed: false,
        };
        Ok(Self { linear, weight, spec, observer, stats: Stats::default(), seed, inputs })
    }

    /// What the algorithm needs, asked as the planner asks; collects it.
    ///
    /// # Errors
    /// If it refuses such a site.
    pub fn collect(&mut self, algorithm: &dyn PtqAlgorithm) -> Result<Needs> {
        let topology = Topology { blocks: 1, linears: vec![self.linear.clone()], ..Topology::default() };
        let cx =
            PlanContext { topology: &topology, sites: &[&self.linear], weights: &[&self.spec], inputs: &[None], stream: Stream::Quantized };
        let needs = algorithm.needs(&cx)?;
        let n = self.linear.shape.1;
        collect(&mut self.stats, self.linear.input, &self.inputs, n, &needs.inputs);
        Ok(needs)
    }

    /// See [`fingerprint`].
    pub(super) fn fingerprint(&self, needs: &Needs) -> u64 {
        fingerprint(&self.stats, self.linear.input, &needs.inputs)
    }

    /// The site as the harness shows it.
    pub fn context<'a>(&'a self, weight: &'a [f32]) -> SiteContext<'a> {
        SiteContext {
            linear: &self.linear,
            weight,
            original: weight,
            ranged: None,
            spec: &self.spec,
            input: None,
            observer: &*self.observer,
            stats: &self.stats,
            stream: Stream::Quantized,
            seed: self.seed,
            amax: weight.iter().fold(0.0, |m, w| m.max(w.abs())),
        }
    }
}
