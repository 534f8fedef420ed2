//! A seeded set of cells in which every pair of axis values that is possible occurs.
//!
//! Greedy: a cell is built around the first pair that is missing, list by list in random order, always with the entry, of some drawn at
//! random, that adds most missing pairs.

use super::space::{Cell, Space};

/// Random numbers that are the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

/// Entries looked at for each list of a cell.
const DRAWN: usize = 64;

/// Which pairs of values are still to come.
struct Missing {
    n: usize,
    pairs: Vec<bool>,
    left: usize,
}

impl Missing {
    /// Every pair that some cell has.
    fn of(space: &Space) -> Self {
        let n = space.values;
        let mut missing = Self { n, pairs: vec![false; n * n], left: 0 };
        let mut used: Vec<Vec<usize>> = Vec::new();
        for list in &space.lists {
            let mut values: Vec<usize> = list.iter().flat_map(|e| e.values.iter().copied()).collect();
            values.sort_unstable();
            values.dedup();
            for entry in list {
                for (i, a) in entry.values.iter().enumerate() {
                    entry.values[i + 1..].iter().for_each(|b| missing.add(*a, *b));
                }
            }
            // Lists do not restrict each other.
            for (a, b) in used.iter().flatten().flat_map(|a| values.iter().map(move |b| (*a, *b))) {
                missing.add(a, b);
            }
            used.push(values);
        }
        missing
    }

    fn at(&self, a: usize, b: usize) -> usize {
        a.min(b) * self.n + a.max(b)
    }

    fn add(&mut self, a: usize, b: usize) {
        let at = self.at(a, b);
        self.left += usize::from(!self.pairs[at]);
        self.pairs[at] = true;
    }

    fn holds(&self, a: usize, b: usize) -> bool {
        self.pairs[self.at(a, b)]
    }

    /// How many missing pairs `values` have among themselves and with `chosen`.
    fn gain(&self, values: &[usize], chosen: &[usize]) -> usize {
        let own = values.iter().enumerate().map(|(i, a)| values[i + 1..].iter().filter(|b| self.holds(*a, **b)).count()).sum::<usize>();
        own + values.iter().map(|a| chosen.iter().filter(|b| self.holds(*a, **b)).count()).sum::<usize>()
    }

    fn remove(&mut self, values: &[usize]) {
        for (i, a) in values.iter().enumerate() {
            for b in &values[i + 1..] {
                let at = self.at(*a, *b);
                self.left -= usize::from(self.pairs[at]);
                self.pairs[at] = false;
            }
        }
    }
}

/// The values of a cell.
fn values(space: &Space, cell: &Cell) -> Vec<usize> {
    cell.choice.iter().zip(&space.lists).flat_map(|(i, list)| list[*i].values.iter().copied()).collect()
}

/// Cells that hold every possible pair, at least `least` of them.
pub fn cover(space: &Space, seed: u64, least: usize) -> Vec<Cell> {
    let mut random = Random(seed);
    let mut missing = Missing::of(space);
    let mut cells = Vec::new();
    while missing.left > 0 {
        let Some(pair) = missing.pairs.iter().position(|p| *p).map(|at| [at / missing.n, at % missing.n]) else { break };
        let cell = around(space, pair, &missing, &mut random);
        missing.remove(&values(space, &cell));
        cells.push(cell);
    }
    while cells.len() < least {
        cells.push(Cell { choice: space.lists.iter().map(|l| random.below(l.len())).collect() });
    }
    cells
}

fn around(space: &Space, pair: [usize; 2], missing: &Missing, random: &mut Random) -> Cell {
    let n = space.lists.len();
    let mut choice = vec![usize::MAX; n];
    let mut chosen = Vec::new();
    // The lists that the pair lies in come first.
    let holds = |list: usize, value: usize| space.lists[list].iter().any(|e| e.values.contains(&value));
    let homes = pair.map(|value| (0..n).find(|l| holds(*l, value)).unwrap_or(0));
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i + 1));
    }
    order.sort_by_key(|l| !homes.contains(l));
    for list in order {
        let asked: Vec<usize> = pair.into_iter().zip(homes).filter(|(_, home)| *home == list).map(|(value, _)| value).collect();
        let fits: Vec<usize> = if asked.is_empty() {
            (0..space.lists[list].len()).collect()
        } else {
            (0..space.lists[list].len()).filter(|e| asked.iter().all(|v| space.lists[list][*e].values.contains(v))).collect()
        };
        let drawn: Vec<usize> = (0..DRAWN.min(fits.len().max(1))).map(|_| fits[random.below(fits.len())]).collect();
        let best = drawn.into_iter().max_by_key(|e| missing.gain(&space.lists[list][*e].values, &chosen)).unwrap_or(0);
        chosen.extend(space.lists[list][best].values.iter().copied());
        choice[list] = best;
    }
    Cell { choice }
}

/// Cells in which every entry of every list occurs: the whole product of each part, parts crossed at random.
pub fn every_entry(space: &Space, seed: u64) -> Vec<Cell> {
    let mut random = Random(seed);
    let most = space.lists.iter().map(Vec::len).max().unwrap_or(0);
    let orders: Vec<Vec<usize>> = space
        .lists
        .iter()
        .map(|list| {
            let mut order: Vec<usize> = (0..list.len()).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, random.below(i + 1));
            }
            order
        })
        .collect();
    (0..most).map(|i| Cell { choice: orders.iter().map(|order| order[i % order.len()]).collect() }).collect()
}

#[cfg(test)]
mod tests {
    use qfw_core::registry::Registry;

    use super::*;

    /// All pairs, counted again from the entries, occur in the cells of any seed; the same seed gives the same cells.
    #[test]
    fn every_possible_pair_occurs() {
        let registry = Registry::builtin().expect("the registry is sound");
        let space = Space::new(&registry);
        for seed in [0, 7] {
            let cells = cover(&space, seed, 300);
            assert!((300..2000).contains(&cells.len()), "{} cells", cells.len());
            assert_eq!(cells, cover(&space, seed, 300));
            let mut missing = Missing::of(&space);
            let possible = missing.left;
            cells.iter().for_each(|c| missing.remove(&values(&space, c)));
            assert_eq!(missing.left, 0, "of {possible} pairs");
        }
        assert_ne!(cover(&space, 0, 300)[..5], cover(&space, 1, 300)[..5]);
        // A value never meets another of its axis.
        for cell in cover(&space, 3, 300) {
            let mut axes: Vec<usize> = values(&space, &cell).into_iter().map(|v| space.axis[v]).collect();
            let all = axes.len();
            axes.dedup();
            assert_eq!(axes.len(), all);
        }
    }

    #[test]
    fn every_entry_occurs() {
        let space = Space::new(&Registry::builtin().expect("the registry is sound"));
        let cells = every_entry(&space, 0);
        for (list, entries) in space.lists.iter().enumerate() {
            let mut seen = vec![false; entries.len()];
            cells.iter().for_each(|c| seen[c.choice[list]] = true);
            assert!(seen.iter().all(|s| *s), "list {list}");
        }
    }
}
