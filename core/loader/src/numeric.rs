//! `qfw.numeric/1`: the numerics of core for plugins that bring none.

use std::ffi::c_void;
use std::ptr::null;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use qfw_abi::raw;
use qfw_core::algorithm::SiteContext;
use qfw_core::numeric::{
    Codes, ColumnSweep, FactorOptions, Feedback, Onto, SweepParams, Transpose, Units, decode, encode_narrow, encode_wide, inverse_factor,
    uniform_u64,
};
use qfw_core::observer;
use qfw_core::scheme::QParams;
use qfw_core::{ErrorKind, Result};

use crate::call::{Call, LentFactor, call_of, contain};
use crate::passed::{CodesSpan, Passed, Span, missing, plain, site_of};
use crate::plugin_error;

/// The table.
pub(crate) static TABLE: raw::Numeric = raw::Numeric {
    size: size_of::<raw::Numeric>() as u32,
    reserved: 0,
    gemm: Some(gemm),
    fit: Some(fit),
    nearest: Some(nearest),
    expand: Some(expand),
    factor: Some(factor),
    sweep: Some(sweep),
    random: Some(random),
    parallel_for: Some(parallel_for),
};

/// Runs the body of a function; an error goes to the plugin's call, to be told if the plugin gives up.
fn answer(call: Option<&Call<'_>>, body: impl FnOnce(&Call<'_>) -> Result<()>) -> i32 {
    let Some(call) = call else { return raw::ERR_INTERNAL };
    match contain(Err(plugin_error("plugin::numeric", "it asked the host for something that cannot be computed")), || body(call)) {
        Ok(()) => raw::OK,
        Err(e) => {
            call.set_error(e.to_string(), e.hint_text().unwrap_or_default().to_owned());
            if e.kind() == ErrorKind::Numeric { raw::ERR_NUMERIC } else { raw::ERR_INTERNAL }
        }
    }
}

fn params(cx: &SiteContext<'_>, scale: &[f32], zero: &[f32]) -> QParams {
    QParams { layout: cx.layout(), scale: scale.to_vec(), zero: zero.to_vec(), global: cx.scale_rule().global() }
}

/// The functions of the table. What pointers say of themselves is checked: null, alignment, sizes that can be, tensors of the site's type
/// and shape, sites and factors of this call, and that what is written overlaps nothing else. Beyond that, each relies on its caller:
///
/// # Safety
/// `host` is that of a call that has not returned. A pointer that is not null is to as many numbers of its type as the header says, which
/// nobody writes to, or, where the function writes, which nobody else has, until it returns.
#[allow(unsafe_code, reason = "the border: plugins call these as the header says")]
mod functions {
    use super::*;

    pub(super) unsafe extern "C" fn gemm(
        host: *const raw::Host,
        m: usize,
        n: usize,
        k: usize,
        add: i32,
        c: *mut f32,
        c_stride: usize,
        a: *const f32,
        a_transposed: i32,
        a_stride: usize,
        b: *const f32,
        b_transposed: i32,
        b_stride: usize,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |_| {
            if m == 0 || n == 0 {
                return Ok(());
            }
            let extent = |rows: usize, cols: usize, stride: usize| {
                let needs = rows.checked_sub(1).and_then(|r| r.checked_mul(stride)).and_then(|x| x.checked_add(cols));
                needs.filter(|_| stride >= cols).ok_or_else(|| missing("stride that holds a row"))
            };
            let of = |transposed: i32| if transposed == 0 { Transpose::No } else { Transpose::Yes };
            let (a_rows, a_cols) = if a_transposed == 0 { (m, k) } else { (k, m) };
            let (b_rows, b_cols) = if b_transposed == 0 { (k, n) } else { (n, k) };
            let onto = if add == 0 { Onto::Replace } else { Onto::Add };
            let c = Span::of(c, extent(m, n, c_stride)?, "C")?;
            if k == 0 {
                if add == 0 {
                    // SAFETY: see above.
                    let rows = unsafe { c.write() }.chunks_mut(c_stride);
                    rows.for_each(|row| row.iter_mut().take(n).for_each(|x| *x = 0.0));
                }
                return Ok(());
            }
            let a = Span::of(a, extent(a_rows, a_cols, a_stride)?, "A")?;
            let b = Span::of(b, extent(b_rows, b_cols, b_stride)?, "B")?;
            c.apart_from(&a)?;
            c.apart_from(&b)?;
            // SAFETY: see above.
            let (c, a, b) = unsafe { (c.write(), a.read(), b.read()) };
            qfw_core::numeric::gemm((m, n, k), onto, c, c_stride, a, of(a_transposed), a_stride, b, of(b_transposed), b_stride);
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn fit(
        host: *const raw::Host,
        site: *const raw::Site,
        weight: *const f32,
        scale: *mut f32,
        zero: *mut f32,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |call| {
            // SAFETY: see above.
            let cx = unsafe { site_of(call, site) }?;
            let passed = Passed::of(cx, weight, scale, zero)?;
            passed.scale.apart_from(&passed.zero)?;
            passed.scale.apart_from(&passed.weight)?;
            passed.zero.apart_from(&passed.weight)?;
            // SAFETY: see above.
            let (weight, scale, zero) = unsafe { (passed.weight.read(), passed.scale.write(), passed.zero.write()) };
            let fitted = call.in_parallel(|| observer::fit(cx.observer, &cx.scale_rule(), weight, cx.layout()))??;
            scale.copy_from_slice(&fitted.scale);
            zero.copy_from_slice(&fitted.zero);
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn nearest(
        host: *const raw::Host,
        site: *const raw::Site,
        weight: *const f32,
        scale: *const f32,
        zero: *const f32,
        codes: *const raw::Tensor,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |call| {
            // SAFETY: see above.
            let (cx, passed, codes) = unsafe {
                let cx = site_of(call, site)?;
                (cx, Passed::of(cx, weight, scale, zero)?, CodesSpan::of(codes, cx)?)
            };
            passed.apart_from(&codes)?;
            // SAFETY: see above.
            let (weight, scale, zero) = unsafe { (passed.weight.read(), passed.scale.read(), passed.zero.read()) };
            let (grid, params) = (&cx.spec.grid, params(cx, scale, zero));
            match codes {
                CodesSpan::Narrow(codes) => {
                    // SAFETY: see above.
                    let onto = unsafe { codes.write() };
                    call.in_parallel(|| encode_narrow(grid, &params, weight, onto))
                }
                CodesSpan::Wide(codes) => {
                    // SAFETY: see above.
                    let onto = unsafe { codes.write() };
                    call.in_parallel(|| encode_wide(grid, &params, weight, onto))
                }
            }
        })
    }

    pub(super) unsafe extern "C" fn expand(
        host: *const raw::Host,
        site: *const raw::Site,
        codes: *const raw::Tensor,
        scale: *const f32,
        zero: *const f32,
        weight: *mut f32,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |call| {
            // SAFETY: see above.
            let (cx, passed, codes) = unsafe {
                let cx = site_of(call, site)?;
                (cx, Passed::of(cx, weight, scale, zero)?, CodesSpan::of(codes, cx)?)
            };
            passed.apart_from(&codes)?;
            passed.weight.apart_from(&passed.scale)?;
            passed.weight.apart_from(&passed.zero)?;
            let layout = cx.layout();
            let mut units = Codes::new(&cx.spec.grid, layout.rows * layout.cols);
            // SAFETY: see above.
            unsafe {
                match (&mut units.data, codes) {
                    (Units::Narrow(units), CodesSpan::Narrow(codes)) => units.copy_from_slice(codes.read()),
                    (Units::Wide(units), CodesSpan::Wide(codes)) => units.copy_from_slice(codes.read()),
                    _ => return Err(missing("tensor of codes")),
                }
            }
            if !units.stand_for(&cx.spec.grid) {
                return Err(plugin_error("plugin::contract", "it asked for the value of a code that is none"));
            }
            // SAFETY: see above.
            let (scale, zero, weight) = unsafe { (passed.scale.read(), passed.zero.read(), passed.weight.write()) };
            let (mut values, params) = (Vec::new(), params(cx, scale, zero));
            call.in_parallel(|| decode(&cx.spec.grid, &params, &units, 0..layout.rows, None, &mut values))?;
            weight.copy_from_slice(&values);
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn factor(
        host: *const raw::Host,
        gram: *const raw::Tensor,
        damp: f64,
        by_diagonal: i32,
        out: *mut *const raw::Factor,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |call| {
            // SAFETY: see above.
            if !gram.is_aligned() || out.is_null() || !out.is_aligned() {
                return Err(missing("Gram matrix, or no place for its factor"));
            }
            // SAFETY: see above.
            let dl = unsafe { gram.as_ref() }.map(|t| &t.dl_tensor).ok_or_else(|| missing("Gram matrix"))?;
            let other = |what: String| {
                plugin_error(
                    "plugin::contract",
                    format!("it passed a tensor {what} to the host; a Gram matrix is f32, square and not empty"),
                )
            };
            // SAFETY: see above.
            let [n, columns] = unsafe { plain(dl, (2, 32)) }.map_err(other)?;
            if n == 0 || n != columns {
                return Err(other(format!("of shape [{n}, {columns}]")));
            }
            let len = n.checked_mul(n).ok_or_else(|| missing("matrix of a size that can be"))?;
            let lower = Span::of(dl.data.cast_const().cast::<f32>(), len, "Gram matrix")?;
            if !(0.0..=1.0).contains(&damp) {
                return Err(plugin_error("plugin::contract", format!("it asked for damping of {damp}, which is not from 0 to 1")));
            }
            let options = FactorOptions { damp, by_diagonal: by_diagonal != 0 };
            // One of the sites' own is shared with other sites that read the same input.
            let shared =
                call.sites.iter().flat_map(|s| [s.stream, qfw_core::statistic::Stream::Rounded].map(|k| (s, k))).find_map(|(s, k)| {
                    s.stats.gram(s.linear.input, k).ok().filter(|g| std::ptr::eq(g.lower.as_ptr(), dl.data.cast_const().cast()))
                });
            let of = match shared {
                Some(gram) => gram.inverse_factor(&options)?,
                // SAFETY: see above.
                None => Arc::new(inverse_factor(unsafe { lower.read() }, n, &options)?),
            };
            let raw = raw::Factor {
                size: size_of::<raw::Factor>() as u32,
                reserved: 0,
                n: n as u64,
                u: of.u.as_ptr(),
                order: of.order.as_ref().map_or(null(), Vec::as_ptr),
                dead: of.dead.as_ptr(),
                n_dead: of.dead.len(),
                damp: of.damp,
            };
            let lent = Box::new(LentFactor { raw, of });
            let pointer = std::ptr::from_ref(&lent.raw);
            call.factors.lock().map_err(|_| missing("call that works"))?.push(lent);
            // SAFETY: a place to write to, says the header.
            unsafe { *out = pointer };
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn sweep(
        host: *const raw::Host,
        site: *const raw::Site,
        weight: *const f32,
        factor: *const raw::Factor,
        scale: *const f32,
        zero: *const f32,
        block: usize,
        codes: *const raw::Tensor,
    ) -> i32 {
        // SAFETY: see above.
        answer(unsafe { call_of(host) }, |call| {
            // SAFETY: see above.
            let (cx, passed, codes) = unsafe {
                let cx = site_of(call, site)?;
                (cx, Passed::of(cx, weight, scale, zero)?, CodesSpan::of(codes, cx)?)
            };
            passed.apart_from(&codes)?;
            let found = {
                let all = call.factors.lock().map_err(|_| missing("call that works"))?;
                all.iter().find(|f| std::ptr::eq(&f.raw, factor)).map(|f| Arc::clone(&f.of))
            };
            let factor = found.filter(|f| f.n == cx.layout().cols).ok_or_else(|| missing("factor of this call for the site's columns"))?;
            // SAFETY: see above.
            let (weight, scale, zero) = unsafe { (passed.weight.read(), passed.scale.read(), passed.zero.read()) };
            let params = params(cx, scale, zero);
            let sweep = ColumnSweep {
                grid: &cx.spec.grid,
                params: SweepParams::Fixed(&params),
                feedback: Feedback::Inverse(&factor),
                limit: None,
                block: block.clamp(1, 65536),
            };
            let swept = call.in_parallel(|| sweep.run(weight))?;
            // SAFETY: see above.
            unsafe {
                match (&swept.codes.data, codes) {
                    (Units::Narrow(found), CodesSpan::Narrow(codes)) => codes.write().copy_from_slice(found),
                    (Units::Wide(found), CodesSpan::Wide(codes)) => codes.write().copy_from_slice(found),
                    _ => return Err(missing("tensor of codes")),
                }
            }
            Ok(())
        })
    }

    pub(super) unsafe extern "C" fn random(key: *const u64, words: usize) -> u64 {
        // SAFETY: see above.
        contain(0, || Span::of(key, words, "key").map_or_else(|_| uniform_u64(&[]), |key| uniform_u64(unsafe { key.read() })))
    }

    pub(super) unsafe extern "C" fn parallel_for(host: *const raw::Host, n: usize, state: *mut c_void, body: Option<raw::Body>) -> i32 {
        struct State(*mut c_void);
        // SAFETY: the header says that `body` may be called with it on any thread.
        unsafe impl Sync for State {}
        // SAFETY: see above.
        let (Some(body), Some(call)) = (body, unsafe { call_of(host) }) else { return raw::ERR_INTERNAL };
        let (state, next, failed) = (State(state), AtomicUsize::new(0), AtomicI32::new(raw::OK));
        contain(raw::ERR_INTERNAL, || {
            let (state, next, failed) = (&state, &next, &failed);
            let all = || {
                rayon::scope(|scope| {
                    for _ in 0..rayon::current_num_threads().min(n) {
                        scope.spawn(move |_| {
                            loop {
                                let i = next.fetch_add(1, Ordering::Relaxed);
                                if i >= n || failed.load(Ordering::Relaxed) != raw::OK {
                                    return;
                                }
                                // SAFETY: the plugin's own function with its own state.
                                let status = unsafe { body(state.0, i) };
                                if status != raw::OK {
                                    failed.store(status, Ordering::Relaxed);
                                }
                            }
                        });
                    }
                })
            };
            match call.in_parallel(all) {
                Ok(()) => failed.load(Ordering::Relaxed),
                Err(_) => raw::ERR_INTERNAL,
            }
        })
    }
}
use functions::{expand, factor, fit, gemm, nearest, parallel_for, random, sweep};
