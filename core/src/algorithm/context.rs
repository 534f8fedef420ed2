//! What an algorithm sees of one site, and what it returns.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::numeric::{Codes, encode};
use crate::observer::{self, Observer, ScaleRule};
use crate::scheme::{QParams, QuantSpec, TileLayout};
use crate::statistic::{Gram, Stats, Stream};
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

impl SiteContext<'_> {
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

    /// Round to nearest: the parameters fitted to the weight, each element to its nearest code.
    ///
    /// # Errors
    /// If a value is not finite.
    pub fn nearest(&self) -> Result<Rounded> {
        let params = self.fit(self.weight)?;
        let codes = encode(&self.spec.grid, &params, self.weight);
        Ok(Rounded { codes, params, group_index: None, events: Vec::new() })
    }
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
    /// The site was rounded to nearest instead.
    Fallback {
        /// Why.
        reason: String,
    },
}
