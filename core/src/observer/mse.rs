//! The shrunken range with the least error.
//!
//! Three searches are in use, each with its grid of candidates:
//!
//! | `search` | candidates | error | ties |
//! |---|---|---|---|
//! | `range` | `(1 − i/grid)·range`, `i = 0 … ⌊max-shrink·grid⌋ − 1` | `Σ \|x − x̂\|^norm` | the wider |
//! | `wide` | the same with `norm = 2.4, grid = 100, max-shrink = 0.8` | | |
//! | `brevitas` | `i/20·range`, `i = 2 … 20` | `Σ (x − x̂)²` | the narrower |
//!
//! `range` is llm-compressor's with its defaults, `norm = 2.4, grid = 100, max-shrink = 0.2`, less its `patience`: every candidate is
//! tried. `wide` is the one of the GPTQ reference code and of SpinQuant. Both shrink the two ends together. `brevitas` does so for
//! symmetric formats; for affine ones it first narrows the width from above with the low end in place, then moves the low end, `i/20` of
//! what it was, with that width.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::loss::Loss;
use super::minmax::extremes;
use super::{Observer, ObserverRecord, ScaleRule, parse};
use crate::error::{Error, Result};

/// A named grid of candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Search {
    /// Shrunken ranges, by `norm`, `grid` and `max-shrink`.
    Range,
    /// Those of the GPTQ reference code.
    Wide,
    /// Twentieths of the range, squared error.
    Brevitas,
}

/// Options of the observer `mse`, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Options {
    /// The grid of candidates; `range` if left out. The others fix the three numbers below.
    #[schemars(extend("default" = null))]
    search: Option<Search>,
    /// Exponent of the error; 2.4 if left out.
    #[schemars(extend("default" = null))]
    norm: Option<f64>,
    /// Steps of the full range; 100 if left out.
    #[schemars(extend("default" = null))]
    grid: Option<u32>,
    /// Shrinking tried, as a part of the range; 0.2 if left out.
    #[schemars(extend("default" = null))]
    max_shrink: Option<f64>,
}

/// And as resolved.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Mse {
    search: Search,
    norm: f64,
    grid: u32,
    max_shrink: f64,
}

type Range = (f32, f32);

impl Observer for Mse {
    fn range(&self, values: &[f32], rule: &ScaleRule) -> Range {
        let (lo, hi) = extremes(values);
        let mut best = Best { loss: Loss::new(values, rule, self.norm as f32), rule, error: f64::INFINITY, range: (lo, hi) };
        if lo == 0.0 && hi == 0.0 {
            return best.range;
        }
        if self.search != Search::Brevitas {
            for i in 0..self.candidates() {
                let p = 1.0 - i as f32 / self.grid as f32;
                best.offer((p * lo, p * hi));
            }
            return best.range;
        }
        let twentieths = (2..=self.grid).map(|i| i as f32 / self.grid as f32);
        if rule.symmetric() {
            twentieths.for_each(|p| best.offer((p * lo, p * hi)));
            return best.range;
        }
        // Zero is always within an affine range.
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        // Before the difference, for it may overflow.
        twentieths.clone().for_each(|p| best.offer((lo, (p * hi + (1.0 - p) * lo).max(0.0))));
        let width = best.range.1 - lo;
        twentieths.for_each(|p| best.offer((p * lo, (p * lo + width).clamp(0.0, f32::MAX))));
        best.range
    }
}

impl Mse {
    fn candidates(&self) -> u32 {
        // 0.29·100 is a little less than 29.
        ((self.max_shrink * f64::from(self.grid) + 1e-9) as u32).max(1)
    }

    /// # Errors
    /// For numbers out of range, or other than those that a named search has.
    fn resolve(options: &Options) -> Result<Self> {
        let search = options.search.unwrap_or(Search::Range);
        let (norm, grid, max_shrink) = match search {
            Search::Range => (2.4, 100, 0.2),
            Search::Wide => (2.4, 100, 0.8),
            Search::Brevitas => (2.0, 20, 0.9),
        };
        let own = Self { search, norm, grid, max_shrink };
        let asked = Self {
            search,
            norm: options.norm.unwrap_or(norm),
            grid: options.grid.unwrap_or(grid),
            max_shrink: options.max_shrink.unwrap_or(max_shrink),
        };
        asked.check()?;
        let pairs = [
            ("norm", asked.norm, own.norm),
            ("grid", f64::from(asked.grid), f64::from(own.grid)),
            ("max-shrink", asked.max_shrink, own.max_shrink),
        ];
        match pairs.into_iter().find(|(_, asked, own)| search != Search::Range && asked != own) {
            Some((key, asked, own)) => {
                let name = if search == Search::Wide { "wide" } else { "brevitas" };
                let message = format!("observer `mse`: `search = \"{name}\"` has `{key} = {own}`, but `{key} = {asked}` is asked for");
                Err(Error::config("config::invalid", message).hint(format!("leave out `{key}`, or `search`")))
            }
            None => Ok(asked),
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |key: &str, value: f64, range: &str| {
            Err(Error::config("config::invalid", format!("option `{key}` of observer `mse` is {value}"))
                .hint(format!("it must be {range}")))
        };
        if !(self.norm > 0.0 && self.norm <= 8.0) {
            return bad("norm", self.norm, "above 0 and at most 8");
        }
        if self.grid == 0 || self.grid > 10_000 {
            return bad("grid", f64::from(self.grid), "from 1 to 10000");
        }
        if !(0.0..1.0).contains(&self.max_shrink) {
            return bad("max-shrink", self.max_shrink, "at least 0 and below 1");
        }
        Ok(())
    }
}

/// The best range so far; of equals the first.
struct Best<'a> {
    loss: Loss<'a>,
    rule: &'a ScaleRule,
    error: f64,
    range: Range,
}

impl Best<'_> {
    fn offer(&mut self, range: Range) {
        let (scale, zero) = self.rule.params(range.0, range.1);
        let error = self.loss.below(self.error, scale, zero);
        if error < self.error {
            (self.error, self.range) = (error, range);
        }
    }
}

pub(super) const RECORD: ObserverRecord = ObserverRecord {
    id: "mse",
    summary: "the shrunken range with the least error",
    version: env!("CARGO_PKG_VERSION"),
    source: "qfw-core",
    schema: || schemars::schema_for!(Options).to_value(),
    build: |options: &Value| {
        let mse = Mse::resolve(&parse("mse", "search, norm, grid, max-shrink", options)?)?;
        let resolved = serde_json::to_value(&mse).map_err(|e| Error::internal(e.to_string()))?;
        Ok((Box::new(mse), resolved))
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::observer::tests::{int4, uint4};

    fn built(options: &Value) -> (Box<dyn Observer>, Value) {
        (RECORD.build)(options).unwrap()
    }

    #[test]
    fn never_worse_than_the_full_range_and_better_with_an_outlier() {
        let rule = ScaleRule::of(&int4(), 0.0);
        let mut values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin()).collect();
        values[5] = 1.3;
        let error = |(s, z): (f32, f32)| -> f32 { values.iter().map(|x| (x - rule.grid.nearest(*x, s, z)).abs().powf(2.4)).sum() };
        let (lo, hi) = extremes(&values);
        assert!(error(built(&json!({})).0.fit(&values, &rule)) < error(rule.params(lo, hi)));
    }

    /// Against the definition, candidate by candidate.
    #[test]
    fn each_search_finds_the_best_of_its_candidates() {
        let values: Vec<f32> = (0..200).map(|i| (i as f32 * 0.71).sin() + if i == 7 { 1.5 } else { 0.0 }).collect();
        let (lo, hi) = extremes(&values);
        for (options, norm, factors) in [
            (json!({}), 2.4, (0..20).map(|i| 1.0 - i as f32 / 100.0).collect::<Vec<_>>()),
            (json!({ "search": "wide" }), 2.4, (0..80).map(|i| 1.0 - i as f32 / 100.0).collect()),
            (json!({ "search": "brevitas" }), 2.0, (2..=20).map(|i| i as f32 / 20.0).collect()),
        ] {
            let rule = ScaleRule::of(&int4(), 0.0);
            let error = |p: &f32| -> f64 {
                let (s, z) = rule.params(p * lo, p * hi);
                values.iter().map(|x| f64::from((x - rule.grid.nearest(*x, s, z)).abs()).powf(norm)).sum()
            };
            let best = factors.iter().min_by(|a, b| error(a).total_cmp(&error(b))).unwrap();
            assert_eq!(built(&options).0.range(&values, &rule), (best * lo, best * hi), "{options}");
        }
    }

    /// Two halves at 1 and one value at −8 with sixteen codes: the width that is kept, then the low end.
    #[test]
    fn brevitas_narrows_the_width_and_then_moves_the_low_end() {
        let rule = ScaleRule::of(&uint4(), 0.0);
        let mut values = vec![0.0f32; 30];
        values.extend([1.0, 0.9, 0.8, 0.7, -0.1, -8.0]);
        let (observer, _) = built(&json!({ "search": "brevitas" }));
        let (lo, hi) = observer.range(&values, &rule);
        let error = |(s, z): (f32, f32)| -> f64 { values.iter().map(|x| f64::from(x - rule.grid.nearest(*x, s, z)).powi(2)).sum() };
        assert!(error(rule.params(lo, hi)) <= error(rule.params(-8.0, 1.0)));
        assert!((-8.0..=0.0).contains(&lo) && hi >= 0.0);
    }

    #[test]
    fn named_searches_fix_their_numbers() {
        let (_, resolved) = built(&json!({ "search": "wide" }));
        assert_eq!(resolved, json!({ "search": "wide", "norm": 2.4, "grid": 100, "max-shrink": 0.8 }));
        assert_eq!(built(&resolved).1, resolved, "what was resolved can be read again");
        assert_eq!(built(&json!({ "max-shrink": 0.5 })).1, json!({ "search": "range", "norm": 2.4, "grid": 100, "max-shrink": 0.5 }));
        let refused = |options: Value| (RECORD.build)(&options).err().unwrap().to_string();
        assert!(refused(json!({ "search": "brevitas", "norm": 2.4 })).contains("`search = \"brevitas\"` has `norm = 2`, but `norm = 2.4`"));
        assert!(refused(json!({ "max-shrink": 1.0 })).contains("option `max-shrink` of observer `mse` is 1"));
        assert!(refused(json!({ "shrink": 1.0 })).contains("unknown field `shrink`"));
        assert!(refused(json!({ "search": "golden" })).contains("unknown variant `golden`"));
    }
}
