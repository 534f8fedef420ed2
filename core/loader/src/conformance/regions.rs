//! The cases of transforms: regions of each kind, with layers that read them.

use std::sync::Arc;

use qfw_core::Result;
use qfw_core::algorithm::{PtqAlgorithm, Reader, RegionContext, Stage};
use qfw_core::numeric::uniform_u64;
use qfw_core::statistic::{Gram, Stat, StatKey, StatKind, Stats, Stream};
use qfw_core::topology::{Allows, Linear, PortName, Region, Role, SiteId, Space, Symmetry, Tie};
use qfw_core::{Error, ErrorKind};
use serde_json::json;

use super::{Outcome, Try, failed};

/// Names of the cases.
pub(super) const CASES: [&str; 4] = ["behind-a-norm", "values", "hidden", "same-twice"];

/// Channels of a head, and heads that read one: as grouped queries have it.
const HEAD: usize = 4;
const REPEAT: usize = 2;

/// A region, a layer that reads it, and its weight.
struct Place {
    region: Region,
    linear: Linear,
    weight: Vec<f32>,
    seed: u64,
}

impl Place {
    fn new(case: &str, seed: u64) -> Self {
        let heads = Tie::PerKvHead { width: HEAD, repeat: REPEAT };
        let (space, diagonal, channels) = match case {
            "values" => (Space::Values, heads, 8 * REPEAT),
            "hidden" => (Space::MlpHidden, Tie::Free, 8),
            _ => (Space::AttnIn, Tie::Free, 8),
        };
        let region = Region {
            id: "blocks.0.tried".to_owned(),
            space,
            block: Some(0),
            width: 8,
            producers: Vec::new(),
            consumers: Vec::new(),
            companions: Vec::new(),
            allows: Allows { diagonal, permutation: Tie::Never, orthogonal: Tie::Never },
        };
        let linear = Linear {
            site: SiteId::in_block(0, Role::AttnQ),
            shape: (12, channels),
            input: PortName::AttnIn.into(),
            output: PortName::Q.into(),
            bias: false,
            module: String::new(),
            transposed: false,
        };
        let uniform = |i: usize| (uniform_u64(&[seed, 5, i as u64]) >> 40) as f32 / (1 << 24) as f32 - 0.5;
        Self { region, linear, weight: (0..12 * channels).map(uniform).collect(), seed }
    }

    /// Every statistic it might ask for.
    fn stats(&self, asked: &[(StatKind, Stream)]) -> Stats {
        let n = self.linear.shape.1;
        let size = |i: usize| 1.0 + (uniform_u64(&[self.seed, 6, i as u64]) % 1000) as f64 / 100.0;
        let mut stats = Stats::default();
        for (kind, stream) in asked {
            let stat = match kind {
                StatKind::Gram => {
                    let lower = (0..n * n).map(|i| if i / n == i % n { size(i / n) as f32 } else { 0.0 }).collect();
                    Stat::Gram(Arc::new(Gram::new(n, lower, 64)))
                }
                StatKind::Least => Stat::Channels((0..n).map(|i| -size(i)).collect()),
                _ => Stat::Channels((0..n).map(size).collect()),
            };
            stats.insert(StatKey { port: self.linear.input, kind: *kind, stream: *stream }, stat);
        }
        stats
    }

    /// The factors that it chooses; `None` where it leaves the region alone.
    fn solve(&self, algorithm: &dyn PtqAlgorithm) -> Result<Option<Vec<f64>>> {
        let Stage::Transform(stage) = algorithm.stage() else { return Err(Error::internal("a transform of another phase")) };
        if !stage.suits(&self.region) {
            return Ok(None);
        }
        let topology = qfw_core::topology::Topology { blocks: 1, linears: vec![self.linear.clone()], ..Default::default() };
        let cx = qfw_core::algorithm::PlanContext { topology: &topology, sites: &[], weights: &[], inputs: &[], stream: Stream::Quantized };
        let needs = algorithm.needs(&cx)?;
        let stats = self.stats(&needs.inputs);
        let readers = [Reader { linear: &self.linear, weight: &self.weight, target: None, input: None, compensates: false }];
        let (region, stream, seed) = (&self.region, Stream::Quantized, self.seed);
        let solved =
            stage.solve(&RegionContext { region, readers: &readers, producers: &[], stats: &stats, replay: None, stream, seed })?;
        let Some(solved) = solved else { return Ok(None) };
        solved.symmetry.validate(region)?;
        let Symmetry::Diagonal(factors) = solved.symmetry else { return Err(Error::internal("a symmetry that is no scaling")) };
        Ok(Some(factors))
    }
}

pub(super) fn run(on: &Try, name: &str) -> Result<Outcome> {
    let algorithm = match on.build(&json!({})) {
        Ok(algorithm) => algorithm,
        Err(e) => return Ok(failed(&e)),
    };
    let place = Place::new(name, on.seed);
    let found = place.solve(&*algorithm);
    Ok(match found {
        Ok(None) => Outcome::Skipped("it leaves such regions alone".to_owned()),
        Ok(Some(factors)) if name == "same-twice" => match place.solve(&*algorithm) {
            Ok(Some(again)) if again.iter().zip(&factors).all(|(a, b)| a.to_bits() == b.to_bits()) => Outcome::Success,
            _ => Outcome::Failed("the same region gives other factors".to_owned()),
        },
        Ok(Some(_)) => Outcome::Success,
        Err(e) if e.kind() == ErrorKind::Numeric => Outcome::Warning(format!("it cannot solve this region: {e}")),
        Err(e) => failed(&e),
    })
}
