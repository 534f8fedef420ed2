//! Room for rounded operands, kept by each thread from call to call: what is read of it was written in the same call.

use std::cell::RefCell;

use super::tile::{Line, words_mut};

thread_local! {
    static WORDS: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `n` words that hold anything, the first at the beginning of a line. `f` must not ask for words again.
pub(super) fn with_words<R>(n: usize, f: impl FnOnce(&mut [u32]) -> R) -> R {
    WORDS.with_borrow_mut(|kept| f(&mut words_mut(grown(kept, n.div_ceil(16)))[..n]))
}

/// Runs `f` on `n` lines that hold anything. `f` must not ask for lines again.
pub(super) fn with_lines<R>(n: usize, f: impl FnOnce(&mut [Line]) -> R) -> R {
    LINES.with_borrow_mut(|kept| f(grown(kept, n)))
}

fn grown(kept: &mut Vec<Line>, n: usize) -> &mut [Line] {
    if kept.len() < n {
        kept.resize(n, Line([0; 16]));
    }
    &mut kept[..n]
}
