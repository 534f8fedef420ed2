//! How far the values of a channel reach, on the side that writes it and on the side that reads it.

use qfw_core::Result;
use qfw_core::algorithm::Producer;

use crate::options::{BiasShrinkage, Options, Scale};

/// Weights under this are taken for it where something is divided by them.
const SMALL: f32 = 1e-9;

/// What the range of some values is made of.
#[derive(Clone, Copy)]
struct Values {
    least: f64,
    greatest: f64,
    /// Sum of magnitudes.
    sum: f64,
    count: usize,
}

impl Values {
    const NONE: Self = Self { least: f64::INFINITY, greatest: f64::NEG_INFINITY, sum: 0.0, count: 0 };

    fn add(&mut self, x: f64) {
        (self.least, self.greatest) = (self.least.min(x), self.greatest.max(x));
        (self.sum, self.count) = (self.sum + x.abs(), self.count + 1);
    }

    fn largest(&self) -> f64 {
        self.least.abs().max(self.greatest.abs())
    }

    fn range(&self, scale: Scale) -> f64 {
        match scale {
            _ if self.count == 0 => 0.0,
            Scale::MaxAbs => self.largest(),
            // Equal values span nothing, but are not nothing.
            Scale::Range if self.greatest == self.least => self.sum / self.count as f64,
            Scale::Range => self.greatest - self.least,
        }
    }
}

/// The range of each column of a row-major matrix of `n` columns.
pub(crate) fn of_columns(weight: &[f32], n: usize, scale: Scale) -> Vec<f64> {
    let mut columns = vec![Values::NONE; n];
    for row in weight.chunks_exact(n) {
        columns.iter_mut().zip(row).for_each(|(c, x)| c.add(f64::from(*x)));
    }
    columns.iter().map(|c| c.range(scale)).collect()
}

/// The rows of a linear that write a region's channels.
pub(crate) struct Source {
    rows: Vec<Values>,
    bias: Option<Bias>,
}

/// Their biases, and how they compare to the weights.
struct Bias {
    values: Vec<f64>,
    /// Median of |b_c/w_ci| over all weights.
    median: f64,
    /// Their mean.
    mean: f64,
}

impl Source {
    pub(crate) fn new(producer: &Producer<'_>, channels: usize) -> Result<Self> {
        Ok(Self::of(producer.weight()?, producer.bias()?.as_deref(), channels))
    }

    fn of(weight: Vec<f32>, bias: Option<&[f32]>, channels: usize) -> Self {
        let cols = (weight.len() / channels.max(1)).max(1);
        let rows = weight.chunks_exact(cols).map(|row| {
            let mut values = Values::NONE;
            row.iter().for_each(|x| values.add(f64::from(*x)));
            values
        });
        let rows = rows.collect();
        Self { rows, bias: bias.map(|bias| Bias::new(bias, weight, cols)) }
    }

    /// The range of each row once it and its bias are multiplied by `factors`, the bias divided by what the options say.
    pub(crate) fn ranges(&self, factors: &[f64], o: &Options) -> Vec<f64> {
        let shrinkage = self.bias.as_ref().and_then(|b| Some((b, self.shrinkage(b, factors, o)?)));
        let row = |(c, row): (usize, &Values)| {
            let mut row = *row;
            if let Some((bias, by)) = shrinkage {
                row.add(bias.values[c] / by);
            }
            factors[c] * row.range(o.scale_computation)
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    /// What biases are divided by; `None`: they do not count. The rule of `vaiq` is that of Vitis AI's quantizer.
    fn shrinkage(&self, bias: &Bias, factors: &[f64], o: &Options) -> Option<f64> {
        let (median, mean) = (bias.median, bias.mean);
        let most = |of: &dyn Fn(usize) -> f64| (0..factors.len()).map(|c| factors[c] * of(c)).fold(0.0, f64::max);
        let (b, w) = (most(&|c| bias.values[c].abs()), most(&|c| self.rows[c].largest()));
        match o.bias_shrinkage {
            BiasShrinkage::None => None,
            BiasShrinkage::By(by) => Some(by),
            BiasShrinkage::Vaiq if b < 10.0 && b < 20.0 * w => Some(if median > 100.0 || mean > 1000.0 { 5.0 } else { 2.0 }),
            BiasShrinkage::Vaiq if median > 30.0 || mean > 500.0 => Some(20.0),
            BiasShrinkage::Vaiq if median > 15.0 || mean > 250.0 => Some(10.0),
            BiasShrinkage::Vaiq => Some(5.0),
        }
    }
}

impl Bias {
    fn new(bias: &[f32], weight: Vec<f32>, cols: usize) -> Self {
        let mut ratios = weight;
        for (row, b) in ratios.chunks_exact_mut(cols).zip(bias) {
            row.iter_mut().for_each(|w| *w = b.abs() / w.abs().max(SMALL));
        }
        let mean = ratios.iter().map(|r| f64::from(*r)).sum::<f64>() / ratios.len().max(1) as f64;
        // The lower of the two in the middle.
        let middle = ratios.len().saturating_sub(1) / 2;
        let median = if ratios.is_empty() { 0.0 } else { f64::from(*ratios.select_nth_unstable_by(middle, f32::total_cmp).1) };
        Self { values: bias.iter().map(|b| f64::from(*b)).collect(), median, mean }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(bias_shrinkage: BiasShrinkage, scale_computation: Scale) -> Options {
        Options { bias_shrinkage, scale_computation, ..Options::default() }
    }

    fn source(weight: &[f32], bias: &[f32]) -> Source {
        Source::of(weight.to_vec(), Some(bias), bias.len())
    }

    #[test]
    fn biases_count_as_a_weight_that_is_shrunk() {
        let s = source(&[1.0, -2.0, 0.5, 0.5], &[8.0, 0.0]);
        let ranges = |bias, scale| s.ranges(&[1.0, 2.0], &options(bias, scale));
        // −2 … 8/2 and 0 … ½, the latter doubled.
        assert_eq!(ranges(BiasShrinkage::By(2.0), Scale::Range), [6.0, 1.0]);
        assert_eq!(ranges(BiasShrinkage::By(2.0), Scale::MaxAbs), [4.0, 1.0]);
        // Equal values count with their size.
        assert_eq!(ranges(BiasShrinkage::None, Scale::Range), [3.0, 1.0]);
        // Largest bias 8, largest weight 2, median of 8, 4, 0, 0 small: divided by 2.
        assert_eq!(ranges(BiasShrinkage::Vaiq, Scale::Range), [6.0, 1.0]);
    }

    /// Each branch of the rule, from the numbers in it.
    #[test]
    fn the_rule_of_vitis_has_its_five_branches() {
        let rule = |weight: &[f32], bias: &[f32]| {
            let s = source(weight, bias);
            let ones = vec![1.0; bias.len()];
            s.shrinkage(s.bias.as_ref().unwrap(), &ones, &options(BiasShrinkage::Vaiq, Scale::Range)).unwrap()
        };
        assert_eq!(rule(&[1.0, 1.0, 1.0], &[2.0]), 2.0);
        assert_eq!(rule(&[1.0, 0.001, 0.001], &[2.0]), 5.0);
        assert_eq!(rule(&[1.0, 1.0, 1.0], &[12.0]), 5.0);
        assert_eq!(rule(&[1.0, 1.0, 1.0], &[20.0]), 10.0);
        assert_eq!(rule(&[1.0, 1.0, 1.0], &[40.0]), 20.0);
        // A small bias beside weights that are smaller still.
        assert_eq!(rule(&[0.1, 0.1, 0.1], &[4.0]), 20.0);
    }

    #[test]
    fn columns_are_those_of_the_matrix() {
        let weight = [1.0, -1.0, 0.0, 3.0, -1.0, 0.0];
        assert_eq!(of_columns(&weight, 3, Scale::Range), [2.0, 1.0, 0.0]);
        assert_eq!(of_columns(&weight, 3, Scale::MaxAbs), [3.0, 1.0, 0.0]);
    }
}
