//! Walking a graph backwards.
//!
//! candle links every result to its operands, and could walk the graph itself; but it adds each gradient to zeros that it makes for it,
//! on a pool of threads that wait in loops, below the threads that run windows side by side. So what our verbs do is also put down in
//! the order in which it is done, on the thread that does it, and walked from there. A graph with any other operation in it is left to
//! candle.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::super::elementwise::add;
use crate::error::{Error, Result};

/// How the gradient of a result becomes those of its operands.
pub(super) type Backward = Arc<dyn Fn(&Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

struct Entry {
    result: TensorId,
    operands: Vec<TensorId>,
    backward: Backward,
}

thread_local! {
    /// What was done on this thread since [`backward`] began, if it is under way.
    static TAPE: RefCell<Option<Vec<Entry>>> = const { RefCell::new(None) };
}

/// Puts down a step.
pub(super) fn put(result: &Tensor, operands: &[&Tensor], backward: Backward) {
    TAPE.with_borrow_mut(|tape| {
        if let Some(tape) = tape {
            tape.push(Entry { result: result.id(), operands: operands.iter().map(|t| t.id()).collect(), backward });
        }
    });
}

/// Computes a loss, a single number, and walks back from it. What its gradients are for, the steps themselves see to.
///
/// # Errors
/// What `loss` or a step returns.
pub fn backward(loss: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    TAPE.set(Some(Vec::new()));
    let loss = loss();
    let tape = TAPE.take().unwrap_or_default();
    let loss = loss?;
    let known: HashMap<TensorId, usize> = tape.iter().enumerate().map(|(i, e)| (e.result, i)).collect();
    if loss.sorted_nodes().iter().any(|node| !node.is_variable() && !known.contains_key(&node.id())) {
        loss.backward()?;
        return Ok(loss.detach());
    }
    let mut gradients: HashMap<TensorId, Tensor> = HashMap::from([(loss.id(), loss.ones_like()?.detach())]);
    for Entry { result, operands, backward } in tape.into_iter().rev() {
        let Some(gradient) = gradients.remove(&result) else { continue };
        let of_operands = backward(&gradient)?;
        if of_operands.len() != operands.len() {
            return Err(Error::internal("a step has other operands backwards than forwards"));
        }
        for (id, new) in operands.into_iter().zip(of_operands) {
            let Some(new) = new else { continue };
            let sum = match gradients.remove(&id) {
                Some(old) => add(&old, &new)?,
                None => new,
            };
            gradients.insert(id, sum);
        }
    }
    Ok(loss.detach())
}
