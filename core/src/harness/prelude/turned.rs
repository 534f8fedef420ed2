//! Weights of a block under rotations, and the way from their gradients to those of the rotations.
//!
//! ```text
//! columns   V = W·R      ∂R = Wᵀ·∂V     ∂W = ∂V·Rᵀ
//! rows      V = Rᵀ·W     ∂R = W·∂Vᵀ     ∂W = R·∂V        of each head, where R turns heads
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::numeric::{Onto, Transpose, gemm};
use crate::topology::{Axis, Part, Region, SiteId};

/// Rows of a product one task computes.
const STRIPE: usize = 256;

/// What turns which parameters of the blocks.
pub(super) struct Turned {
    sizes: Vec<usize>,
    changes: BTreeMap<(SiteId, Part), Vec<Change>>,
}

/// One turn of a parameter.
#[derive(Clone)]
struct Change {
    /// The rotation.
    nth: usize,
    axis: Axis,
    range: Option<Range<usize>>,
}

/// A parameter on its way through its turns: `[rows, columns]`.
pub(super) struct Values {
    pub(super) values: Vec<f32>,
    pub(super) columns: usize,
}

impl Turned {
    /// The turns of what lies in blocks, by the regions and sizes of all rotations.
    ///
    /// # Errors
    /// If a region has a part of the columns of a matrix, which none does.
    pub(super) fn new(regions: &[(&Region, usize)]) -> Result<Self> {
        let mut changes: BTreeMap<(SiteId, Part), Vec<Change>> = BTreeMap::new();
        for (nth, (region, _)) in regions.iter().enumerate() {
            for slot in region.producers.iter().chain(&region.consumers).filter(|s| s.site.block.is_some()) {
                if slot.axis == Axis::Columns && slot.range.is_some() {
                    return Err(Error::internal(format!("`{}` has some of the columns of `{}`", region.id, slot.site)));
                }
                let change = Change { nth, axis: slot.axis, range: slot.range.clone() };
                changes.entry((slot.site, slot.part)).or_default().push(change);
            }
        }
        Ok(Self { sizes: regions.iter().map(|(_, size)| *size).collect(), changes })
    }

    /// Whether a parameter is turned.
    pub(super) fn touches(&self, site: SiteId, part: Part) -> bool {
        self.changes.contains_key(&(site, part))
    }

    /// Turns a parameter.
    pub(super) fn forward(&self, (site, part): (SiteId, Part), mut v: Values, rotations: &[Vec<f32>]) -> Values {
        for change in self.changes.get(&(site, part)).into_iter().flatten() {
            self.turn(&mut v.values, v.columns, change, &rotations[change.nth], Transpose::No);
        }
        v
    }

    /// What the gradient of a turned parameter, which was `v` before, says of each rotation that turned it.
    pub(super) fn back(
        &self,
        (site, part): (SiteId, Part),
        v: Values,
        gradient: Vec<f32>,
        rotations: &[Vec<f32>],
    ) -> Vec<(usize, Vec<f32>)> {
        let changes = self.changes.get(&(site, part)).map_or(&[][..], Vec::as_slice);
        let columns = v.columns;
        // The parameter before each of its turns.
        let mut before = vec![v];
        for change in changes.iter().rev().skip(1).rev() {
            let mut next = before.last().map_or_else(Vec::new, |v| v.values.clone());
            self.turn(&mut next, columns, change, &rotations[change.nth], Transpose::No);
            before.push(Values { values: next, columns });
        }
        let mut g = Values { values: gradient, columns };
        let mut found = Vec::new();
        for (i, (change, before)) in changes.iter().zip(&before).enumerate().rev() {
            found.push((change.nth, self.of_rotation(before, &g, change)));
            if i > 0 {
                self.turn(&mut g.values, columns, change, &rotations[change.nth], Transpose::Yes);
            }
        }
        found
    }

    /// The rows, of all, that a change turns.
    fn rows(all: usize, change: &Change) -> Range<usize> {
        change.range.clone().unwrap_or(0..all)
    }

    /// `W·R` or `Rᵀ·W`; `back`: `W·Rᵀ` or `R·W`.
    fn turn(&self, v: &mut [f32], columns: usize, change: &Change, r: &[f32], back: Transpose) {
        let n = self.sizes[change.nth];
        let forth = if back == Transpose::No { Transpose::Yes } else { Transpose::No };
        match change.axis {
            Axis::Columns => v.par_chunks_mut(STRIPE * n).for_each(|new| {
                let old = new.to_vec();
                gemm((new.len() / n, n, n), Onto::Replace, new, n, &old, Transpose::No, n, r, back, n);
            }),
            Axis::Rows => {
                let rows = Self::rows(v.len() / columns, change);
                let part = &mut v[rows.start * columns..rows.end * columns];
                part.par_chunks_exact_mut(n * columns).for_each(|head| {
                    let old = head.to_vec();
                    head.par_chunks_mut(STRIPE * columns).enumerate().for_each(|(i, new)| {
                        let (first, m) = (i * STRIPE, new.len() / columns);
                        let from = if forth == Transpose::Yes { &r[first..] } else { &r[first * n..] };
                        gemm((m, columns, n), Onto::Replace, new, columns, from, forth, n, &old, Transpose::No, columns);
                    });
                });
            }
        }
    }

    /// The gradient of the rotation of one turn.
    fn of_rotation(&self, before: &Values, g: &Values, change: &Change) -> Vec<f32> {
        let n = self.sizes[change.nth];
        let mut out = vec![0.0; n * n];
        match change.axis {
            Axis::Columns => {
                let m = before.values.len() / n;
                gemm((n, n, m), Onto::Replace, &mut out, n, &before.values, Transpose::Yes, n, &g.values, Transpose::No, n);
            }
            Axis::Rows => {
                let columns = before.columns;
                let rows = Self::rows(before.values.len() / columns, change);
                let turned = rows.start * columns..rows.end * columns;
                let heads = before.values[turned.clone()].chunks_exact(n * columns).zip(g.values[turned].chunks_exact(n * columns));
                for (w, g) in heads {
                    gemm((n, n, columns), Onto::Add, &mut out, n, w, Transpose::No, columns, g, Transpose::Yes, columns);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Allows, Role, Slot, Space, Tie};

    fn region(id: &str, width: usize, slots: Vec<Slot>) -> Region {
        let allows = Allows { diagonal: Tie::Never, permutation: Tie::Never, orthogonal: Tie::Free };
        let (producers, companions) = (Vec::new(), Vec::new());
        Region { id: id.to_owned(), space: Space::Residual, block: Some(0), width, producers, consumers: slots, companions, allows }
    }

    /// `Σ c∘V` for a parameter turned on its columns by one rotation of all and on a range of rows by one of heads: the gradients are those
    /// of difference quotients.
    #[test]
    fn gradients_of_rotations_are_those_of_difference_quotients() {
        let site = SiteId::in_block(0, Role::AttnO);
        let slot = |axis, range| Slot { site, part: Part::Weight, axis, range };
        let (heads, all) = (region("heads", 2, vec![slot(Axis::Rows, Some(2..6))]), region("all", 6, vec![slot(Axis::Columns, None)]));
        let turned = Turned::new(&[(&heads, 2), (&all, 3)]).unwrap();
        let number = |i: usize| ((i * 37 % 23) as f32 - 11.0) / 8.0;
        let w: Vec<f32> = (0..48).map(number).collect();
        let c: Vec<f32> = (0..48).map(|i| number(i * 3 + 5)).collect();
        let rotations: Vec<Vec<f32>> = vec![(0..4).map(|i| number(i + 50)).collect(), (0..9).map(|i| number(i + 70)).collect()];
        let value = |rotations: &[Vec<f32>]| -> f64 {
            let v = turned.forward((site, Part::Weight), Values { values: w.clone(), columns: 6 }, rotations);
            v.values.iter().zip(&c).map(|(v, c)| f64::from(*v) * f64::from(*c)).sum()
        };
        let found = turned.back((site, Part::Weight), Values { values: w.clone(), columns: 6 }, c.clone(), &rotations);
        assert_eq!(found.iter().map(|(nth, _)| *nth).collect::<Vec<_>>(), [1, 0]);
        for (nth, gradient) in found {
            for (i, g) in gradient.iter().enumerate() {
                // The value is linear in each rotation.
                let at = |by: f32| {
                    let mut moved = rotations.clone();
                    moved[nth][i] += by;
                    value(&moved)
                };
                let quotient = (at(0.5) - at(-0.5)) as f32;
                assert!((g - quotient).abs() < 1e-3 * (1.0 + quotient.abs()), "{nth} {i}: {g} {quotient}");
            }
        }
    }
}
