//! Algorithms in five phases, and what they declare they need.
//!
//! Transform → Condition → Split → Round → Correct. The phase fixes the order and the contract: a [`Transform`] leaves the function of
//! the model unchanged, a [`Condition`] moves weights but keeps them in high precision, a [`Split`] takes a part out exactly, a [`Round`]
//! returns codes, a [`Correct`] changes anything but codes. An algorithm sees roles, weights, statistics and its options; never tensor
//! names, files or other algorithms. It says what it needs before the run ([`Needs`]) and the harness provides it.

mod accumulator;
mod context;
mod learn;
mod model_transform;
mod needs;
mod options;
mod region;
mod replay;
mod rotations;
mod split;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use accumulator::Accumulator;
pub use context::{Conditioned, Corrected, Event, Frozen, Rounded, SiteContext, input_events};
pub use learn::{Batches, BlockContext, Halfway, Learner, Learning, Resumable, RoundBlock, Store, Training, minimize, minimize_stored};
pub use model_transform::{ModelContext, ModelTransform};
pub use needs::{Needs, PlanContext};
pub use options::{Answer, ColumnOrder, Elsewhere, KEYS, built, invalid_option, name_or_switch, read_options, unused_option};
pub use region::{Producer, Reader, RegionContext, Solved};
pub use replay::Replay;
pub use rotations::{LearnRotations, Objective, RotationsContext, Start};
pub use split::{BranchNeed, Branches, Split, SplitContext};

use crate::error::Result;
use crate::topology::{Region, SiteId};

/// When an algorithm runs. The order of the variants is the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Changes of basis that leave the function unchanged.
    Transform,
    /// Weights move, in high precision.
    Condition,
    /// `W = residual + branch`, exactly.
    Split,
    /// Weights become codes.
    Round,
    /// Codes are frozen; the rest may adapt.
    Correct,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Transform => "transform",
            Self::Condition => "condition",
            Self::Split => "split",
            Self::Round => "round",
            Self::Correct => "correct",
        })
    }
}

/// An algorithm with its options.
pub trait PtqAlgorithm: Send + Sync {
    /// What it needs, for the sites and streams of this plan.
    ///
    /// # Errors
    /// If it cannot work on this plan.
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs>;

    /// Its one phase.
    fn stage(&self) -> Stage<'_>;

    /// Whether its options make it read activations, though its record says that it reads weights only.
    fn reads_activations(&self) -> bool {
        false
    }
}

/// The typed view of an algorithm for the harness.
pub enum Stage<'a> {
    /// See [`Phase::Transform`]; of the whole model, before any other.
    ModelTransform(&'a dyn ModelTransform),
    /// See [`Phase::Transform`].
    Transform(&'a dyn Transform),
    /// See [`Phase::Condition`].
    Condition(&'a dyn Condition),
    /// See [`Phase::Split`].
    Split(&'a dyn Split),
    /// See [`Phase::Round`].
    Round(&'a dyn Round),
    /// See [`Phase::Round`]; all sites of a block together, after those that are rounded one by one.
    RoundBlock(&'a dyn RoundBlock),
    /// See [`Phase::Correct`].
    Correct(&'a dyn Correct),
}

impl Stage<'_> {
    /// The phase.
    pub fn phase(&self) -> Phase {
        match self {
            Self::ModelTransform(_) | Self::Transform(_) => Phase::Transform,
            Self::Condition(_) => Phase::Condition,
            Self::Split(_) => Phase::Split,
            Self::Round(_) | Self::RoundBlock(_) => Phase::Round,
            Self::Correct(_) => Phase::Correct,
        }
    }
}

/// Finds function-preserving changes of basis. Core applies them to every producer and consumer.
pub trait Transform: Send + Sync {
    /// Whether it works on a region at all. Those that linears of one block read are asked for.
    fn suits(&self, region: &Region) -> bool;

    /// Whether it works on a region that it suits when nobody says which regions.
    fn by_default(&self, region: &Region) -> bool {
        self.suits(region)
    }

    /// Whether it looks at the linears that write a region; [`RegionContext::producers`] is empty without it.
    fn reads_producers(&self) -> bool {
        false
    }

    /// Whether it also works where nothing that writes the channels can be scaled: on [`crate::topology::Space::Multiplied`] regions, for
    /// which core puts a multiplication into the model that runs with it.
    fn stands_alone(&self) -> bool {
        false
    }

    /// The change for one region, or `None` to leave it.
    ///
    /// # Errors
    /// What makes the region unsolvable.
    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>>;
}

/// Moves a weight in high precision.
pub trait Condition: Send + Sync {
    /// The weight to quantize instead.
    ///
    /// # Errors
    /// What makes the site unsolvable.
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned>;
}

/// Turns a weight into codes.
pub trait Round: Send + Sync {
    /// Codes and parameters for one site. Sites of a parallel group run at once.
    ///
    /// # Errors
    /// What makes the site unsolvable; the harness then applies the run's `on-failure`.
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded>;

    /// Whether the error of each column moves those that are rounded after it, so that the output loses less than the errors of the weights
    /// add up to. A transform that weighs errors may want to know ([`Reader::feeds_back`]).
    fn feeds_back(&self) -> bool {
        false
    }
}

/// Adapts what is not codes.
pub trait Correct: Send + Sync {
    /// A new bias for a site that has become `frozen`; `cx.weight` is what it was.
    ///
    /// # Errors
    /// What makes the site unsolvable.
    fn correct(&self, cx: &SiteContext<'_>, frozen: &Frozen<'_>) -> Result<Corrected>;
}

/// An algorithm, and its options with defaults filled in.
pub type BuiltAlgorithm = (Box<dyn PtqAlgorithm>, Value);

/// The record of an algorithm in the registry: data, so that listing runs no algorithm code.
pub struct AlgorithmRecord {
    /// Its id.
    pub id: &'static str,
    /// Other ids it answers to.
    pub aliases: &'static [&'static str],
    /// When it runs.
    pub phase: Phase,
    /// One line for listings.
    pub summary: &'static str,
    /// Version of the crate it comes from.
    pub version: &'static str,
    /// Crate it comes from.
    pub source: &'static str,
    /// It reads weights only: no forward pass, no calibration, and as a rule no architecture. One that needs to know what the model is made
    /// of refuses unknown ones in [`PtqAlgorithm::needs`].
    pub weight_only: bool,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Builds it from its options; an empty object means the defaults. Also returns the options with defaults filled in.
    pub build: fn(&Value) -> Result<BuiltAlgorithm>,
}

inventory::collect!(AlgorithmRecord);

/// Makes an algorithm that is no constant of this program, such as one of a library that is loaded when it is asked for first.
pub trait Maker: Send + Sync {
    /// Builds it from its options, as [`AlgorithmRecord::build`] does.
    ///
    /// # Errors
    /// If an option is wrong, or there is nothing to build it from.
    fn build(&self, options: &Value) -> Result<BuiltAlgorithm>;

    /// Where it comes from, for the record of a run.
    fn origin(&self) -> String;
}

/// The sites a pass works on, in order.
pub type Sites = Vec<SiteId>;
