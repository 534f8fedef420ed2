//! What a plugin returns has to satisfy, before anything is done with it.

use qfw_abi::raw;
use qfw_core::algorithm::{Event, SiteContext};
use qfw_core::numeric::Codes;
use qfw_core::scheme::{QParams, Zero};
use qfw_core::{Error, Result};

use crate::call::Call;
use crate::plugin_error;
use crate::tensor::Element;

/// The error of a contract that was broken.
pub(crate) fn violation(message: String) -> Error {
    plugin_error("plugin::contract", message)
}

fn broken<T>(message: String) -> Result<T> {
    Err(violation(message))
}

/// Codes within the grid, scales and zero points as they can be stored.
///
/// # Errors
/// For the first that is not so, with its place.
pub(crate) fn rounded(cx: &SiteContext<'_>, codes: &Codes, params: &QParams) -> Result<()> {
    let (grid, cols) = (&cx.spec.grid, cx.linear.shape.1);
    if !codes.stand_for(grid) {
        let (lo, hi) = grid.limits();
        let (i, code) = codes.iter().enumerate().find(|(_, c)| !grid.holds(*c)).unwrap_or((0, 0));
        return broken(format!("it returned the code {code} at row {}, column {}; codes here are {lo} to {hi}", i / cols, i % cols));
    }
    let rule = cx.scale_rule();
    for (i, (s, z)) in params.scale.iter().zip(&params.zero).enumerate() {
        if !s.is_finite() || *s == 0.0 {
            return broken(format!("it returned the scale {s} for tile {i}"));
        }
        if rule.stored(*s) != *s {
            return broken(format!(
                "it returned the scale {s} for tile {i}, which is stored as {}; `fit` returns scales that hold",
                rule.stored(*s)
            ));
        }
        let (lo, hi) = grid.limits();
        let fits = match grid.zero() {
            Zero::None => *z == 0.0,
            Zero::Fixed(fixed) => *z == fixed as f32,
            Zero::Integer => z.fract() == 0.0 && (lo as f32..=hi as f32).contains(z),
            Zero::Float => z.is_finite(),
        };
        if !fits {
            return broken(format!("it returned the zero point {z} for tile {i}, which is none of `{}`", cx.spec.format));
        }
    }
    Ok(())
}

/// Tile columns of channels.
///
/// # Errors
/// If there are not as many as channels, or one names no tile.
pub(crate) fn group_index(cx: &SiteContext<'_>, index: &[u32]) -> Result<()> {
    let (cols, groups) = (cx.linear.shape.1, cx.layout().grid().1);
    if index.len() != cols {
        return broken(format!("it returned a group index of {} entries for {cols} columns", index.len()));
    }
    match index.iter().enumerate().find(|(_, g)| **g as usize >= groups) {
        Some((i, g)) => broken(format!("it put column {i} into group {g} of {groups}")),
        None => Ok(()),
    }
}

/// The numbers of a tensor that the plugin may return; `None` where it returns none. It has to be of `alloc` in this call, and of that shape.
///
/// # Errors
/// If it is another.
pub(crate) fn allocated<T: Element>(call: &Call<'_>, tensor: *const raw::Tensor, shape: &[usize], what: &str) -> Result<Option<Vec<T>>> {
    if tensor.is_null() {
        return Ok(None);
    }
    let (code, bits) = T::TYPE;
    match call.allocated::<T>(tensor) {
        None => broken(format!("its {what} is no tensor of `alloc` of type ({code}, {bits}), in this call")),
        Some((other, _)) if other != shape => broken(format!("its {what} has the shape {other:?}, and not {shape:?}")),
        Some((_, numbers)) => Ok(Some(numbers)),
    }
}

/// Numbers that are.
///
/// # Errors
/// For the first that is not finite.
pub(crate) fn finite<T: Copy + Into<f64>>(what: &str, numbers: &[T]) -> Result<()> {
    match numbers.iter().position(|x| !(*x).into().is_finite()) {
        Some(i) => broken(format!("it returned {} as number {i} of {what}", numbers[i].into())),
        None => Ok(()),
    }
}

/// Events as they were told.
///
/// # Errors
/// If one is none.
pub(crate) fn events(told: &[String]) -> Result<Vec<Event>> {
    told.iter().map(|text| serde_json::from_str(text).or_else(|e| broken(format!("it reported an event that is none: {e}")))).collect()
}
