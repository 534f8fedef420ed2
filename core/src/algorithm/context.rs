//! What an algorithm sees of one site, and what it returns.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::numeric::{Codes, encode};
use crate::observer::{self, Observer, ScaleRule};
use crate::scheme::{QParams, QuantSpec, TileLayout};
use crate::statistic::{Gram, StatKind, Stats, Stream};
use crate::topology::Linear;

/// One site under work.
#[derive(Clone, Copy)]
pub struct SiteContext<'a> {
    /// The layer.
    pub linear: &'a Linear,
    /// Its weight as it stands, row-major `[out, in]`; finite.
    pub weight: &'a [f32],
    /// The weight before any pass moved it, row-major `[out, in]`: what the layer's output is to be like.
    pub original: &'a [f32],
    /// The weight that ranges are fitted to, where a condition chose them and left `weight` as it was; finite.
    pub ranged: Option<&'a [f32]>,
    /// What it is to become.
    pub spec: &'a QuantSpec,
    /// How its input is rounded, if it is.
    pub input: Option<&'a QuantSpec>,
    /// Chooses ranges for `spec`.
    pub observer: &'a dyn Observer,
    /// The statistics declared in [`super::Needs`].
    pub stats: &'a Stats,
    /// The stream to take them from.
    pub stream: Stream,
    /// The run's seed.
    pub seed: u64,
    /// The largest magnitude over the weights that share a factor with this one, for formats whose scales have two levels.
    pub amax: f32,
}

impl<'a> SiteContext<'a> {
    /// The tiles of the weight.
    pub fn layout(&self) -> TileLayout {
        self.spec.granularity.layout(self.linear.shape.0, self.linear.shape.1)
    }

    /// Scales and zero points fitted to `weight`.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn fit(&self, weight: &[f32]) -> Result<QParams> {
        observer::fit(self.observer, &self.scale_rule(), weight, self.layout())
    }

    /// Scales and zero points of the site before anything is rounded: fitted to what a condition chose for that, else to the weight.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn ranges(&self) -> Result<QParams> {
        self.fit(self.ranged.unwrap_or(self.weight))
    }

    /// The same site for what fits ranges to weights that it moves itself: the weight that ranges were chosen by is the weight.
    #[must_use]
    pub fn settled(&self) -> SiteContext<'a> {
        SiteContext { weight: self.ranged.unwrap_or(self.weight), ranged: None, ..*self }
    }

    /// The rule that turns ranges into parameters.
    pub fn scale_rule(&self) -> ScaleRule {
        ScaleRule::of(self.spec, self.amax)
    }

    /// The Gram matrix of the site's input.
    ///
    /// # Errors
    /// If it was not declared.
    pub fn gram(&self) -> Result<&Arc<Gram>> {
        self.stats.gram(self.linear.input, self.stream)
    }

    /// The means of the site's input over all tokens: as it is, and as the site sees it, which differs where inputs are rounded.
    ///
    /// # Errors
    /// If they were not declared.
    pub fn input_means(&self, stream: Stream) -> Result<(&[f64], &[f64])> {
        let (port, of) = (self.linear.input, |kind| self.stats.channels(self.linear.input, kind, stream));
        let plain = of(StatKind::Mean)
            .ok_or_else(|| Error::internal(format!("the mean at `{port}` was used without declaring the need for it")))?;
        Ok((plain, of(StatKind::RoundedMean).unwrap_or(plain)))
    }

    /// Round to nearest: the site's ranges, each element of the weight to its nearest code.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn nearest(&self) -> Result<Rounded> {
        let params = self.ranges()?;
        let codes = encode(&self.spec.grid, &params, self.weight);
        Ok(Rounded { codes, params, group_index: None, events: Vec::new() })
    }
}

/// A weight moved in high precision, or ranges chosen for it.
pub struct Conditioned {
    /// What rounding aims at, row-major `[out, in]`.
    pub weight: Vec<f32>,
    /// What ranges are fitted to, where that is another weight: rounding then measures its error from `weight`, not from this one.
    /// A later condition and a branch see this one alone.
    pub ranged: Option<Vec<f32>>,
    /// What happened on the way.
    pub events: Vec<Event>,
}

/// Codes of a site.
pub struct Rounded {
    /// The codes.
    pub codes: Codes,
    /// Scales and zero points.
    pub params: QParams,
    /// For each input channel its tile column, where groups do not run in storage order.
    pub group_index: Option<Vec<u32>>,
    /// What happened on the way.
    pub events: Vec<Event>,
}

/// What a site computes with once it is rounded.
#[derive(Clone, Copy)]
pub struct Frozen<'a> {
    /// The values of its codes, row-major `[out, in]`.
    pub weight: &'a [f32],
    /// Its bias `[out]`.
    pub bias: &'a [f32],
}

/// A new bias.
pub struct Corrected {
    /// `[out]`
    pub bias: Vec<f32>,
    /// What happened on the way.
    pub events: Vec<Event>,
}

/// What the state of the inputs alone has to tell of a site.
pub fn input_events(dead: usize, asked: f64, used: f64) -> Vec<Event> {
    let dead = (dead > 0).then_some(Event::DeadColumns { count: dead });
    let damped = (used != asked).then_some(Event::Damped { asked, used });
    dead.into_iter().chain(damped).collect()
}

/// Something worth reporting about a site: failure is data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Input channels that never fired; their weights were set to zero.
    DeadColumns {
        /// How many.
        count: usize,
    },
    /// More damping than asked for was needed.
    Damped {
        /// Asked for, in the unit of the pass: the mean diagonal, or the largest eigenvalue.
        asked: f64,
        /// Used.
        used: f64,
    },
    /// The channels that the site reads were scaled, in what writes them and in all that reads them.
    Scaled {
        /// The pass.
        by: String,
        /// The largest factor over the smallest.
        spread: f64,
        /// The readers' error on the calibration data after rounding to nearest, relative to that without scaling, where it was searched
        /// for.
        error: Option<f64>,
    },
    /// Weights were learned on the calibration data.
    Learned {
        /// The mean squared error of the block's output over all calibration tokens, as it was rounded at first.
        initial: f64,
        /// The same in the end.
        reached: f64,
        /// After how many steps the weights that were kept were found.
        steps: usize,
        /// The error of each step's own batch, before the step; with the first site of the block that learned.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        curve: Vec<f64>,
    },
    /// The largest weights were made smaller before rounding.
    Shrunk {
        /// `Σ max|w|` over the ranges of the layer, relative to what it was.
        magnitude: f64,
        /// `tr(H)² / ‖H‖²`: how many directions the layer's inputs really have, out of its input channels.
        effective_rank: f64,
    },
    /// Weights beyond a searched limit were clipped before rounding.
    Clipped {
        /// How many of the layer's ranges were.
        ranges: usize,
        /// The layer's error on the calibration data after rounding to nearest, relative to that without clipping.
        error: f64,
    },
    /// A branch runs beside the codes.
    Branched {
        /// The norm of what is left for the codes, relative to that of the weight.
        left: f64,
        /// The error after rounding (to nearest, where the branch was taken out before), relative to that without a branch.
        error: f64,
    },
    /// The bias was changed.
    Corrected {
        /// `‖E y − E ŷ‖ / ‖E y‖` over the calibration tokens before that, bias aside.
        mean_error: f64,
    },
    /// A pass other than the rounding one could not work on the site, and left it as it was.
    Skipped {
        /// Why.
        reason: String,
    },
    /// The site was rounded to nearest instead.
    Fallback {
        /// Why.
        reason: String,
    },
}

impl Event {
    /// That `by` scaled channels by `factors`; see [`Event::Scaled`].
    pub fn scaled(by: &str, factors: &[f64], error: Option<f64>) -> Self {
        let (least, most) = factors.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
        Self::Scaled { by: by.to_owned(), spread: most / least, error }
    }
}
