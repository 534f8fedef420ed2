//! The host's numerics, `qfw.numeric/1`.

use std::ffi::c_void;
use std::marker::PhantomData;

use super::host::Host;
use super::output::RoundOut;
use super::site::{Site, Stat, slice};
use super::{Failure, Result, Status};
use crate::raw;

/// The host's numerics.
#[derive(Clone, Copy)]
pub struct Numeric<'a> {
    host: Host<'a>,
    table: &'a raw::Numeric,
}

/// The factor of the inverse of a damped Gram matrix.
#[derive(Clone, Copy)]
pub struct Factor<'a> {
    raw: *const raw::Factor,
    _of: PhantomData<&'a raw::Factor>,
}

#[allow(unsafe_code, reason = "the border: a factor is the host's, and stays as it is until the call returns")]
impl<'a> Factor<'a> {
    fn get(&self) -> Option<&'a raw::Factor> {
        // SAFETY: see above.
        unsafe { self.raw.as_ref() }
    }

    /// Upper `U`, row-major `[n, n]`, in the order of [`Factor::order`].
    pub fn u(&self) -> &'a [f32] {
        // SAFETY: see above.
        self.get().map_or(&[], |f| unsafe { slice(f.u, (f.n * f.n) as usize) })
    }

    /// `order[i]` is the column that comes `i`-th; empty: as stored.
    pub fn order(&self) -> &'a [u32] {
        // SAFETY: see above.
        self.get().map_or(&[], |f| unsafe { slice(f.order, f.n as usize) })
    }

    /// Columns that never fired.
    pub fn dead(&self) -> &'a [u32] {
        // SAFETY: see above.
        self.get().map_or(&[], |f| unsafe { slice(f.dead, f.n_dead) })
    }
}

/// A failure that the host has told of itself.
fn told(status: i32) -> Result<()> {
    let status = match status {
        raw::OK => return Ok(()),
        raw::ERR_NUMERIC => Status::Numeric,
        raw::ERR_CANCELLED => Status::Cancelled,
        _ => Status::Internal,
    };
    // An empty message keeps the one that the host has set.
    Err(Failure::new(status, ""))
}

fn lacks(what: &str) -> Failure {
    Failure::new(Status::Unsupported, format!("the host's `qfw.numeric/1` has no `{what}`"))
}

/// Slices that are too short for what they are said to hold.
fn sized(what: &str, got: usize, wanted: usize) -> Result<()> {
    if got >= wanted { Ok(()) } else { Err(Failure::new(Status::Internal, format!("{got} numbers where {what} has {wanted}"))) }
}

#[allow(unsafe_code, reason = "the border: functions of the host, with slices that live through the call and are long enough")]
impl<'a> Numeric<'a> {
    pub(super) fn new(host: Host<'a>, table: &'a raw::Numeric) -> Self {
        Self { host, table }
    }

    /// `C ← A·B`, row-major and dense: `a` is `[m, k]`, `b` is `[k, n]`, `c` is `[m, n]`.
    ///
    /// # Errors
    /// If a slice is too short.
    pub fn gemm(&self, (m, n, k): (usize, usize, usize), c: &mut [f32], a: &[f32], b: &[f32]) -> Result<()> {
        sized("C", c.len(), m * n)?;
        sized("A", a.len(), m * k)?;
        sized("B", b.len(), k * n)?;
        let f = self.table.gemm.ok_or_else(|| lacks("gemm"))?;
        // SAFETY: see above.
        told(unsafe { f(self.host.raw(), m, n, k, 0, c.as_mut_ptr(), n, a.as_ptr(), 0, k, b.as_ptr(), 0, n) })
    }

    /// Scales and zero points of the site's tiles for a weight, as its scheme chooses them.
    ///
    /// # Errors
    /// If the weight is not finite, or the site not to be rounded.
    pub fn fit(&self, site: &Site<'_>, weight: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let tiles = site.tiles().ok_or_else(|| Failure::new(Status::Internal, "the site is not to be rounded"))?;
        sized("the weight", weight.len(), tiles.rows * tiles.cols)?;
        let (mut scale, mut zero) = (vec![0.0; tiles.count()], vec![0.0; tiles.count()]);
        let f = self.table.fit.ok_or_else(|| lacks("fit"))?;
        // SAFETY: see above.
        told(unsafe { f(self.host.raw(), site.raw(), weight.as_ptr(), scale.as_mut_ptr(), zero.as_mut_ptr()) })?;
        Ok((scale, zero))
    }

    fn checked(site: &Site<'_>, weight: &[f32], scale: &[f32], zero: &[f32]) -> Result<()> {
        let tiles = site.tiles().ok_or_else(|| Failure::new(Status::Internal, "the site is not to be rounded"))?;
        sized("the weight", weight.len(), tiles.rows * tiles.cols)?;
        sized("the site", scale.len().min(zero.len()), tiles.count())
    }

    /// Every element to its nearest code; writes codes, scales and zero points of `out`.
    ///
    /// # Errors
    /// If a slice is too short.
    pub fn nearest(&self, site: &Site<'_>, weight: &[f32], scale: &[f32], zero: &[f32], out: &mut RoundOut<'_>) -> Result<()> {
        Self::checked(site, weight, scale, zero)?;
        let f = self.table.nearest.ok_or_else(|| lacks("nearest"))?;
        // SAFETY: see above.
        told(unsafe { f(self.host.raw(), site.raw(), weight.as_ptr(), scale.as_ptr(), zero.as_ptr(), out.codes_tensor()) })?;
        store(out, scale, zero)
    }

    /// The factor of a Gram matrix of the site, with damping relative to its mean diagonal.
    ///
    /// # Errors
    /// [`Status::Numeric`] if there is none.
    pub fn factor(&self, gram: &Stat<'a>, damp: f64, by_diagonal: bool) -> Result<Factor<'a>> {
        let f = self.table.factor.ok_or_else(|| lacks("factor"))?;
        let mut raw = std::ptr::null();
        // SAFETY: see above; `raw` is a place to write to.
        told(unsafe { f(self.host.raw(), gram.tensor(), damp, i32::from(by_diagonal), &mut raw) })?;
        Ok(Factor { raw, _of: PhantomData })
    }

    /// Rounds column by column with error feedback; writes codes, scales and zero points of `out`.
    ///
    /// # Errors
    /// If a slice is too short.
    pub fn sweep(
        &self,
        site: &Site<'_>,
        weight: &[f32],
        factor: &Factor<'_>,
        (scale, zero): (&[f32], &[f32]),
        block: usize,
        out: &mut RoundOut<'_>,
    ) -> Result<()> {
        Self::checked(site, weight, scale, zero)?;
        let f = self.table.sweep.ok_or_else(|| lacks("sweep"))?;
        let (w, s, z, codes) = (weight.as_ptr(), scale.as_ptr(), zero.as_ptr(), out.codes_tensor());
        // SAFETY: see above.
        told(unsafe { f(self.host.raw(), site.raw(), w, factor.raw, s, z, block, codes) })?;
        store(out, scale, zero)
    }

    /// 64 uniform bits, a pure function of the key.
    ///
    /// # Errors
    /// If the host does not have it.
    pub fn random(&self, key: &[u64]) -> Result<u64> {
        let f = self.table.random.ok_or_else(|| lacks("random"))?;
        // SAFETY: see above.
        Ok(unsafe { f(key.as_ptr(), key.len()) })
    }

    /// Calls `body` for every number below `n`, on the host's threads, in any order.
    ///
    /// # Errors
    /// That of the first that failed.
    pub fn parallel_for(&self, n: usize, body: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<()> {
        struct State<'b>(&'b (dyn Fn(usize) -> Result<()> + Sync), std::sync::Mutex<Option<Failure>>);
        unsafe extern "C" fn one(state: *mut c_void, i: usize) -> i32 {
            // SAFETY: it is the state below, which outlives the loop.
            let Some(state) = (unsafe { state.cast_const().cast::<State<'_>>().as_ref() }) else { return raw::ERR_INTERNAL };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (state.0)(i)));
            let failure = match result {
                Ok(Ok(())) => return raw::OK,
                Ok(Err(failure)) => failure,
                Err(_) => Failure::new(Status::Internal, "a task of `parallel_for` panicked"),
            };
            let code = failure.status.code();
            if let Ok(mut slot) = state.1.lock() {
                slot.get_or_insert(failure);
            }
            code
        }
        let f = self.table.parallel_for.ok_or_else(|| lacks("parallel_for"))?;
        let state = State(body, std::sync::Mutex::default());
        let pointer = std::ptr::from_ref(&state).cast_mut().cast::<c_void>();
        // SAFETY: the host calls `one` with `state` until it returns, and not after; `State` may be shared between threads.
        let status = unsafe { f(self.host.raw(), n, pointer, Some(one)) };
        match state.1.into_inner().ok().flatten() {
            Some(failure) => Err(failure),
            None => told(status),
        }
    }
}

fn store(out: &mut RoundOut<'_>, scale: &[f32], zero: &[f32]) -> Result<()> {
    let n = out.scale().len();
    sized("the site", scale.len().min(zero.len()), n)?;
    out.scale().copy_from_slice(&scale[..n]);
    out.zero().copy_from_slice(&zero[..n]);
    Ok(())
}
