//! A sum over indices `0..n` with one fixed association, whatever the order of arrival.
//!
//! The tree is the complete binary tree over indices: node `(level, i)` covers `[i·2^level, (i+1)·2^level)`. A node is the sum of its two
//! children, left plus right. When `n` is not a power of two, the complete subtrees of its binary decomposition are added from the
//! right: `t₁ + (t₂ + (t₃ + …))`. At most one partial sum per level and per hole in the order of arrival is alive.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::error::{Error, Result};

/// A sum in progress.
pub struct TreeSum<T> {
    nodes: Mutex<BTreeMap<(u32, usize), T>>,
    /// `a ← a + b`
    add: fn(&mut T, &T),
}

impl<T> TreeSum<T> {
    /// An empty sum with the given addition.
    pub fn new(add: fn(&mut T, &T)) -> Self {
        Self { nodes: Mutex::new(BTreeMap::new()), add }
    }

    /// Adds the term of `index`, combining it with every neighbour that is there already. `recycle` receives terms no longer needed.
    ///
    /// # Errors
    /// If the index was added before.
    pub fn insert(&self, index: usize, term: T, mut recycle: impl FnMut(T)) -> Result<()> {
        let (mut level, mut i, mut term) = (0, index, term);
        loop {
            let sibling = {
                let mut nodes = self.lock()?;
                match nodes.remove(&(level, i ^ 1)) {
                    Some(sibling) => sibling,
                    None => {
                        return match nodes.insert((level, i), term) {
                            None => Ok(()),
                            Some(_) => Err(Error::internal(format!("window {index} was summed twice"))),
                        };
                    }
                }
            };
            // The addition runs outside the lock: other threads go on with other windows.
            let (mut left, right) = if i & 1 == 0 { (term, sibling) } else { (sibling, term) };
            (self.add)(&mut left, &right);
            recycle(right);
            (term, level, i) = (left, level + 1, i >> 1);
        }
    }

    /// The sum over `0..n`.
    ///
    /// # Errors
    /// If an index is missing.
    pub fn finish(self, n: usize) -> Result<T> {
        let nodes = self.nodes.into_inner().map_err(|_| Error::internal("a thread panicked during a sum"))?;
        let covered: usize = nodes.keys().map(|(level, _)| 1usize << level).sum();
        if covered != n || nodes.len() != n.count_ones() as usize {
            return Err(Error::internal(format!("a sum over {n} windows holds {covered}, in {} parts", nodes.len())));
        }
        // Ascending level is right to left in the decomposition of `n`.
        let mut parts = nodes.into_values();
        let Some(mut right) = parts.next() else { return Err(Error::internal("an empty sum")) };
        for mut left in parts {
            (self.add)(&mut left, &right);
            right = left;
        }
        Ok(right)
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, BTreeMap<(u32, usize), T>>> {
        self.nodes.lock().map_err(|_| Error::internal("a thread panicked during a sum"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(order: &[usize]) -> f32 {
        let tree = TreeSum::new(|a: &mut f32, b: &f32| *a += *b);
        for i in order {
            tree.insert(*i, (*i as f32 * 0.731).sin() * 10f32.powi(*i as i32 % 7), |_| ()).unwrap();
        }
        tree.finish(order.len()).unwrap()
    }

    proptest! {
        #[test]
        fn the_bits_do_not_depend_on_the_order_of_arrival(n in 1usize..70, seed in any::<u64>()) {
            let forward: Vec<usize> = (0..n).collect();
            let mut shuffled = forward.clone();
            shuffled.sort_by_key(|i| (*i as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            prop_assert_eq!(sum(&forward).to_bits(), sum(&shuffled).to_bits());
        }
    }

    #[test]
    fn missing_and_repeated_windows_are_found() {
        let tree = TreeSum::new(|a: &mut f32, b: &f32| *a += *b);
        tree.insert(0, 1.0, |_| ()).unwrap();
        assert!(tree.insert(0, 1.0, |_| ()).is_err());
        let tree = TreeSum::new(|a: &mut f32, b: &f32| *a += *b);
        tree.insert(0, 1.0, |_| ()).unwrap();
        assert!(tree.finish(2).is_err());
    }
}
