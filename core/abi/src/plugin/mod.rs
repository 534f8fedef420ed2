//! Plugins in safe Rust.
//!
//! A plugin is a `cdylib` that names its algorithms in [`crate::export_plugin!`]. Each is a [`Factory`], which makes [`Algorithm`]s; an
//! algorithm offers one [`Stage`]. The wrapper turns the host's pointers into slices, errors into codes with text, and contains panics.

mod calls;
mod contain;
mod export;
mod format;
mod host;
mod numeric;
pub mod options;
mod output;
mod site;

pub use contain::quiet_panics;
pub use export::{Exported, Functions};
pub use format::{Format, FormatDescriptor, Values};
pub use host::Host;
pub use numeric::{Factor, Numeric};
pub use output::{CodesMut, ConditionOut, RoundOut};
pub use site::{GridKind, Region, Site, Stat, Tiles};

use crate::raw;

/// What kind of failure it is; see the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The options cannot be.
    Options,
    /// The plan asks for what the algorithm cannot do.
    Unsupported,
    /// This site cannot be solved.
    Numeric,
    /// The host asked to stop.
    Cancelled,
    /// Anything else.
    Internal,
}

impl Status {
    fn code(self) -> i32 {
        match self {
            Self::Options => raw::ERR_OPTIONS,
            Self::Unsupported => raw::ERR_UNSUPPORTED,
            Self::Numeric => raw::ERR_NUMERIC,
            Self::Cancelled => raw::ERR_CANCELLED,
            Self::Internal => raw::ERR_INTERNAL,
        }
    }
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind.
    pub status: Status,
    /// One line, lower case, without a full stop.
    pub message: String,
    /// What the user can do, or empty.
    pub hint: String,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), hint: String::new() }
    }

    /// What the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// What a call returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// When an algorithm runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Changes of basis that leave the function unchanged.
    Transform,
    /// Weights move, in high precision.
    Condition,
    /// A branch of low rank beside the codes.
    Split,
    /// Weights become codes.
    Round,
    /// What is not codes adapts.
    Correct,
}

impl Phase {
    fn code(self) -> u32 {
        match self {
            Self::Transform => raw::TRANSFORM,
            Self::Condition => raw::CONDITION,
            Self::Split => raw::SPLIT,
            Self::Round => raw::ROUND,
            Self::Correct => raw::CORRECT,
        }
    }
}

/// What is known of the inputs of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum StatKind {
    /// `XᵀX` over all tokens, f32 `[n, n]`, lower triangle.
    Gram = 0,
    /// That of the stream (rows) with the reference (columns), f32 `[n, n]`.
    CrossGram = 1,
    /// The mean of each channel, f64.
    Mean = 2,
    /// The mean magnitude, f64.
    AbsMean = 3,
    /// The smallest value, f64.
    Least = 4,
    /// The largest value, f64.
    Greatest = 5,
    /// The mean of what readers see, where inputs are rounded, f64.
    RoundedMean = 6,
}

impl StatKind {
    /// All of them, by their numbers in the header.
    pub const ALL: [Self; 7] = [Self::Gram, Self::CrossGram, Self::Mean, Self::AbsMean, Self::Least, Self::Greatest, Self::RoundedMean];
}

/// Whose activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Stream {
    /// Those of the original model.
    Reference = 0,
    /// Those of the model quantized so far.
    Quantized = 1,
    /// The same, rounded as the scheme says.
    Rounded = 2,
}

impl Stream {
    /// All of them, by their numbers in the header.
    pub const ALL: [Self; 3] = [Self::Reference, Self::Quantized, Self::Rounded];

    fn of(code: u32) -> Self {
        Self::ALL.get(code as usize).copied().unwrap_or(Self::Quantized)
    }
}

/// What is known of an algorithm before an instance is made.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Its id, such as `example.nearest`.
    pub id: String,
    /// When it runs.
    pub phase: Phase,
    /// One line.
    pub summary: String,
    /// JSON Schema of its options.
    pub options_schema: String,
    /// Statistics that it needs whatever its options are, on the stream that the run propagates.
    pub needs: Vec<StatKind>,
    /// It reads no activations with its default options; others may ask for them in [`Algorithm::needs`].
    pub weight_only: bool,
    /// [`Factory::create`] checks the options and fills in defaults; else the host does, by the schema.
    pub checks_options: bool,
    /// It rounds, and the error of each column moves those that come after it.
    pub feeds_back: bool,
}

/// Makes instances of one algorithm.
pub trait Factory: Sync {
    /// What is known before. The same each time.
    fn descriptor(&self) -> Descriptor;

    /// An instance with these options, a JSON object.
    ///
    /// # Errors
    /// If the options cannot be.
    fn create(&self, host: &Host<'_>, options: &str, seed: u64) -> Result<Box<dyn Algorithm>>;
}

/// An algorithm with its options. Calls of one instance may run at once.
pub trait Algorithm: Send + Sync {
    /// Its one phase.
    fn stage(&self) -> Stage<'_>;

    /// Its options with defaults filled in, as JSON; empty: as they were given.
    fn options(&self) -> String {
        String::new()
    }

    /// What it needs for the sites of a plan, both as JSON; `None` leaves it at the descriptor's. A split has to say how much it splits off.
    ///
    /// # Errors
    /// If it cannot work on this plan.
    fn needs(&self, _plan: &str) -> Result<Option<String>> {
        Ok(None)
    }
}

/// The phase of an algorithm.
pub enum Stage<'a> {
    /// See [`Phase::Round`].
    Round(&'a dyn Round),
    /// See [`Phase::Condition`].
    Condition(&'a dyn Condition),
    /// See [`Phase::Split`].
    Split(&'a dyn Split),
    /// See [`Phase::Transform`].
    Transform(&'a dyn Transform),
}

/// Weights become codes.
pub trait Round {
    /// Fills in codes, scales and zero points of a site.
    ///
    /// # Errors
    /// What makes the site unsolvable.
    fn round(&self, host: &Host<'_>, site: &Site<'_>, out: &mut RoundOut<'_>) -> Result<()>;
}

/// Weights move, in high precision.
pub trait Condition {
    /// Moves the weight in `out`.
    ///
    /// # Errors
    /// What makes the site unsolvable.
    fn condition(&self, host: &Host<'_>, site: &Site<'_>, out: &mut ConditionOut<'_>) -> Result<()>;
}

/// A branch beside the codes: `W = residual + B·A`.
pub trait Split {
    /// Whether branches are fitted to what rounding has left.
    fn after_rounding(&self) -> bool {
        false
    }

    /// Fills in `a`, `[rank, cols]`, shared by the sites, and `b` of each site, `[rows, rank]`. `stored` is what they will be rounded to:
    /// 0 f32, 1 f16, 2 bf16.
    ///
    /// # Errors
    /// What makes the sites unsolvable.
    fn split(&self, host: &Host<'_>, sites: &[Site<'_>], rank: usize, stored: u32, a: &mut [f32], b: &mut [&mut [f32]]) -> Result<()>;
}

/// Whether a transform works on a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suits {
    /// No.
    Never,
    /// If the user names it.
    IfNamed,
    /// Unless the user names others.
    ByDefault,
}

/// Changes of basis that leave the function unchanged; the host applies them.
pub trait Transform {
    /// Whether it works on a region; statistics and readers are not known yet.
    fn suits(&self, region: &Region<'_>) -> Suits;

    /// `factor`, one for each channel of the region, holds ones; channel `i` becomes `factor[i]` times what it was.
    ///
    /// # Errors
    /// What makes the region unsolvable.
    fn solve(&self, host: &Host<'_>, region: &Region<'_>, factor: &mut [f64]) -> Result<()>;
}
