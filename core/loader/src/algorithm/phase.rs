//! The functions of an instance's phase, all of them there before it is used.

use std::ffi::CStr;

use qfw_abi::raw::{self, Grows};
use qfw_core::algorithm::Phase;
use qfw_core::{Error, Result};

use super::instance::Instance;
use crate::call::Call;
use crate::contract::violation;
use crate::guest::Guest;

type Round = unsafe extern "C" fn(*mut raw::Algo, *const raw::Host, *const raw::Site, *mut raw::RoundOut) -> i32;
type Condition = unsafe extern "C" fn(*mut raw::Algo, *const raw::Host, *const raw::Site, *mut raw::ConditionOut) -> i32;
type Split = unsafe extern "C" fn(*mut raw::Algo, *const raw::Host, *const *const raw::Site, usize, *mut raw::SplitOut) -> i32;
type Suits = unsafe extern "C" fn(*mut raw::Algo, *const raw::Host, *const raw::Region, *mut u32) -> i32;
type Solve = unsafe extern "C" fn(*mut raw::Algo, *const raw::Host, *const raw::Region, *mut raw::TransformOut) -> i32;

/// The functions of a phase.
#[derive(Clone, Copy)]
pub(super) enum PhaseCalls {
    Round(Round),
    Condition(Condition),
    Split { split: Split, after_rounding: bool },
    Transform { suits: Suits, solve: Solve },
}

/// Something that has to be in an extension.
fn present<T>(function: Option<T>, extension: &str, name: &str) -> std::result::Result<T, String> {
    function.ok_or_else(|| format!("its `{extension}` has no `{name}`"))
}

fn need<T: Grows>(instance: &Instance, id: &CStr, why: &str) -> std::result::Result<T, String> {
    instance.extension::<T>(id)?.ok_or_else(|| format!("it has no `{}`, which {why}", id.to_string_lossy()))
}

impl PhaseCalls {
    /// Those of a new instance; `broken` makes an error that names it.
    ///
    /// # Errors
    /// What is missing, and what the plugin tells.
    pub(super) fn of(instance: &Instance, phase: Phase, guest: &Guest, broken: &dyn Fn(String) -> Error) -> Result<Self> {
        const ASKS: &str = "its phase asks for";
        let found = || -> std::result::Result<Self, String> {
            Ok(match phase {
                Phase::Round => Self::Round(present(need::<raw::RoundExt>(instance, c"qfw.round/1", ASKS)?.round, "qfw.round/1", "round")?),
                Phase::Condition => {
                    let table: raw::ConditionExt = need(instance, c"qfw.condition/1", ASKS)?;
                    Self::Condition(present(table.condition, "qfw.condition/1", "condition")?)
                }
                Phase::Split => {
                    let table: raw::SplitExt = need(instance, c"qfw.split/1", ASKS)?;
                    let plan: raw::PlanExt = need(instance, c"qfw.plan/1", "tells the rank of a split's branches")?;
                    present(plan.needs, "qfw.plan/1", "needs")?;
                    Self::Split { split: present(table.split, "qfw.split/1", "split")?, after_rounding: false }
                }
                Phase::Transform => {
                    let table: raw::TransformExt = need(instance, c"qfw.transform/1", ASKS)?;
                    Self::Transform {
                        suits: present(table.suits, "qfw.transform/1", "suits")?,
                        solve: present(table.solve, "qfw.transform/1", "solve")?,
                    }
                }
                Phase::Correct => return Err("the phase `correct` is for linked plugins".to_owned()),
            })
        };
        Ok(match found().map_err(broken)? {
            Self::Split { split, .. } => Self::Split { split, after_rounding: after_rounding(instance, guest, broken)? },
            other => other,
        })
    }
}

/// Whether branches are fitted to what rounding has left.
fn after_rounding(instance: &Instance, guest: &Guest, broken: &dyn Fn(String) -> Error) -> Result<bool> {
    let table = instance.extension::<raw::SplitExt>(c"qfw.split/1").map_err(broken)?;
    let Some(function) = table.and_then(|t| t.after_rounding) else { return Ok(false) };
    let (call, mut answer) = (Call::new(guest, "", Vec::new()), 0);
    // SAFETY: the header's `after_rounding`, with what it asks for.
    #[allow(unsafe_code, reason = "the border")]
    instance.call("", || call.run(|host| unsafe { function(instance.pointer(), host, &mut answer) }))?;
    match answer {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(violation(format!("it answers {other} to `after_rounding`")).within(guest.name())),
    }
}
