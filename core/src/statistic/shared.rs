//! A result that layers which share a statistic share too.

use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};

/// A value, or why there is none.
type Outcome<T> = std::result::Result<Arc<T>, Arc<Error>>;

/// What was computed for the options asked first; others are computed each time.
pub(super) struct Shared<K, T>(OnceLock<(K, Outcome<T>)>);

impl<K, T> Default for Shared<K, T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<K: PartialEq + Copy, T> Shared<K, T> {
    pub(super) fn get(&self, options: K, compute: impl Fn() -> Result<T>) -> Result<Arc<T>> {
        let compute = || compute().map(Arc::new).map_err(Arc::new);
        let (known, result) = self.0.get_or_init(|| (options, compute()));
        let result = if *known == options { result.clone() } else { compute() };
        result.map_err(|e| {
            let copy = Error::new(e.kind(), e.code(), e.to_string());
            match e.hint_text() {
                Some(hint) => copy.hint(hint),
                None => copy,
            }
        })
    }
}
