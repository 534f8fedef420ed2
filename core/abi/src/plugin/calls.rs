//! The functions behind an instance.

use std::ffi::{CStr, c_char, c_void};
use std::ptr::null;

use super::contain::{caught, contain};
use super::export::absent;
use super::host::{Host, borrow};
use super::output::{ConditionOut, RoundOut, view_mut};
use super::site::{Region, Site, slice};
use super::{Algorithm, Failure, Result, Stage, Status, Suits};
use crate::raw;

/// An algorithm as the host holds it.
#[repr(C)]
pub(super) struct Instance {
    pub(super) raw: raw::Algo,
    pub(super) algorithm: Box<dyn Algorithm>,
    /// The extension of its phase, asked once: the same answer each time, and no code of the algorithm in `extension`.
    pub(super) phase: &'static CStr,
    pub(super) options: String,
}

impl Stage<'_> {
    /// The extension that belongs to it.
    pub(super) fn extension(&self) -> &'static CStr {
        match self {
            Self::Round(_) => c"qfw.round/1",
            Self::Condition(_) => c"qfw.condition/1",
            Self::Split(_) => c"qfw.split/1",
            Self::Transform(_) => c"qfw.transform/1",
        }
    }
}

static PLAN: raw::PlanExt = raw::PlanExt { size: size_of::<raw::PlanExt>() as u32, reserved: 0, needs: Some(needs) };
static ROUND: raw::RoundExt = raw::RoundExt { size: size_of::<raw::RoundExt>() as u32, reserved: 0, round: Some(round) };
static CONDITION: raw::ConditionExt =
    raw::ConditionExt { size: size_of::<raw::ConditionExt>() as u32, reserved: 0, condition: Some(condition) };
static SPLIT: raw::SplitExt =
    raw::SplitExt { size: size_of::<raw::SplitExt>() as u32, reserved: 0, after_rounding: Some(after_rounding), split: Some(split) };
static TRANSFORM: raw::TransformExt =
    raw::TransformExt { size: size_of::<raw::TransformExt>() as u32, reserved: 0, suits: Some(suits), solve: Some(solve) };

fn other_phase() -> Failure {
    Failure::new(Status::Internal, "the algorithm has another phase")
}

#[allow(unsafe_code, reason = "the border: the host calls these with what `create` gave it, as the header says")]
mod functions {
    use super::*;

    /// The instance behind a pointer that `create` gave out.
    unsafe fn instance<'a>(algo: *const raw::Algo) -> Result<&'a Instance> {
        // SAFETY: an `Instance` begins with its `Algo`, and the host passes back what it was given.
        unsafe { algo.cast::<Instance>().as_ref() }.ok_or_else(|| absent("algorithm"))
    }

    unsafe fn of<'a>(algo: *const raw::Algo) -> Result<&'a dyn Algorithm> {
        // SAFETY: as above.
        unsafe { instance(algo) }.map(|i| &*i.algorithm)
    }

    pub(in super::super) unsafe extern "C" fn destroy(algo: *mut raw::Algo, host: *const raw::Host) {
        if !algo.is_null() {
            // SAFETY: from `Box::into_raw` in `create`; the host destroys it once.
            let (instance, host) = unsafe { (Box::from_raw(algo.cast::<Instance>()), Host::new(host)) };
            if let Err(panic) = caught(move || drop(instance))
                && let Some(host) = host
            {
                host.log(1, &format!("it panicked when it was destroyed: {panic}"));
            }
        }
    }

    pub(in super::super) unsafe extern "C" fn extension(algo: *const raw::Algo, id: *const c_char) -> *const c_void {
        // SAFETY: as above.
        let (Ok(instance), false) = (unsafe { instance(algo) }, id.is_null()) else { return null() };
        // SAFETY: the header says that it is a C string.
        let id = unsafe { CStr::from_ptr(id) };
        match id.to_bytes() {
            b"qfw.plan/1" => std::ptr::from_ref(&PLAN).cast(),
            _ if id != instance.phase => null(),
            b"qfw.round/1" => std::ptr::from_ref(&ROUND).cast(),
            b"qfw.condition/1" => std::ptr::from_ref(&CONDITION).cast(),
            b"qfw.split/1" => std::ptr::from_ref(&SPLIT).cast(),
            _ => std::ptr::from_ref(&TRANSFORM).cast(),
        }
    }

    pub(super) unsafe extern "C" fn needs(algo: *mut raw::Algo, host: *const raw::Host, plan: raw::Str) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, plan) = unsafe { (Host::new(host), of(algo), borrow(plan)) };
        contain(host, || {
            let host = host.ok_or_else(|| absent("host"))?;
            if let Some(reply) = algorithm?.needs(plan)? {
                host.reply(&reply);
            }
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn round(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        site: *const raw::Site,
        out: *mut raw::RoundOut,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, site) = unsafe { (Host::new(host), of(algo), Site::new(site)) };
        contain(host, || {
            let (host, site) = (host.ok_or_else(|| absent("host"))?, site.ok_or_else(|| absent("site"))?);
            // SAFETY: as above.
            let mut out = unsafe { RoundOut::new(out, host) }.ok_or_else(|| absent("outputs"))?;
            let Stage::Round(stage) = algorithm?.stage() else { return Err(other_phase()) };
            stage.round(&host, &site, &mut out)
        })
    }

    pub(super) unsafe extern "C" fn condition(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        site: *const raw::Site,
        out: *mut raw::ConditionOut,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, site) = unsafe { (Host::new(host), of(algo), Site::new(site)) };
        contain(host, || {
            let (host, site) = (host.ok_or_else(|| absent("host"))?, site.ok_or_else(|| absent("site"))?);
            // SAFETY: as above.
            let mut out = unsafe { ConditionOut::new(out, host) }.ok_or_else(|| absent("outputs"))?;
            let Stage::Condition(stage) = algorithm?.stage() else { return Err(other_phase()) };
            stage.condition(&host, &site, &mut out)
        })
    }

    pub(super) unsafe extern "C" fn after_rounding(algo: *mut raw::Algo, host: *const raw::Host, answer: *mut u32) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, answer) = unsafe { (Host::new(host), of(algo), answer.as_mut()) };
        contain(host, || {
            let Stage::Split(stage) = algorithm?.stage() else { return Err(other_phase()) };
            *answer.ok_or_else(|| absent("place for an answer"))? = u32::from(stage.after_rounding());
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn split(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        sites: *const *const raw::Site,
        n_sites: usize,
        out: *mut raw::SplitOut,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, sites, out) = unsafe { (Host::new(host), of(algo), slice(sites, n_sites), out.as_ref()) };
        contain(host, || {
            let (host, out) = (host.ok_or_else(|| absent("host"))?, out.ok_or_else(|| absent("outputs"))?);
            // SAFETY: as above.
            let sites: Vec<Site<'_>> = sites.iter().filter_map(|s| unsafe { Site::new(*s) }).collect();
            // SAFETY: outputs of the call's own, each another; one `B` for each site.
            let (a, mut b): (&mut [f32], Vec<&mut [f32]>) =
                unsafe { (view_mut(out.a), slice(out.b, n_sites).iter().map(|t| view_mut(*t)).collect()) };
            let Stage::Split(stage) = algorithm?.stage() else { return Err(other_phase()) };
            stage.split(&host, &sites, out.rank as usize, out.stored, a, &mut b)
        })
    }

    pub(super) unsafe extern "C" fn suits(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        region: *const raw::Region,
        answer: *mut u32,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, region, answer) = unsafe { (Host::new(host), of(algo), Region::new(region), answer.as_mut()) };
        contain(host, || {
            let region = region.ok_or_else(|| absent("region"))?;
            let Stage::Transform(stage) = algorithm?.stage() else { return Err(other_phase()) };
            *answer.ok_or_else(|| absent("place for an answer"))? = match stage.suits(&region) {
                Suits::Never => 0,
                Suits::IfNamed => 1,
                Suits::ByDefault => 2,
            };
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn solve(
        algo: *mut raw::Algo,
        host: *const raw::Host,
        region: *const raw::Region,
        out: *mut raw::TransformOut,
    ) -> i32 {
        // SAFETY: the host's arguments are as the header says.
        let (host, algorithm, region, out) = unsafe { (Host::new(host), of(algo), Region::new(region), out.as_ref()) };
        contain(host, || {
            let (host, region) = (host.ok_or_else(|| absent("host"))?, region.ok_or_else(|| absent("region"))?);
            let out = out.ok_or_else(|| absent("outputs"))?;
            let Stage::Transform(stage) = algorithm?.stage() else { return Err(other_phase()) };
            // SAFETY: an output of the call's own.
            stage.solve(&host, &region, unsafe { view_mut(out.factor) })
        })
    }
}
use functions::{after_rounding, condition, needs, round, solve, split, suits};
pub(super) use functions::{destroy, extension};
