//! Running every window of a stream through a block.
//!
//! Windows are taken in order by as many workers as the pool has threads; each runs one window with single-threaded kernels. At most
//! one window per thread is in flight, and nothing a window computes depends on the others.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Device;

use super::run::Control;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::model::{Block, Flow, Nothing, Span};
use crate::topology::Port;

/// Calls `f` for `0..n`, in parallel, in order of start. Stops at the first error, or when cancelled.
pub(super) fn for_each_window(n: usize, control: &Control<'_>, f: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let workers = rayon::current_num_threads().min(n).max(1);
    rayon::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|_| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= n || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let result = if control.cancelled() { Err(Error::interrupted()) } else { f(i) };
                    if let Err(e) = result {
                        stop.store(true, Ordering::Relaxed);
                        if let Ok(mut slot) = failed.lock()
                            && slot.as_ref().is_none_or(|(first, _)| i < *first)
                        {
                            *slot = Some((i, e));
                        }
                        return;
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some((_, e))) => Err(e),
        Err(_) => Err(Error::internal("a thread panicked during a sweep")),
    }
}

/// Sweeps stop at the places blocks can stop at; a port between two of them is reached by running to the next.
pub(super) fn stop_after(port: Port) -> Port {
    use crate::topology::PortName as P;
    const STOPS: [P; 8] = [P::BlockIn, P::AttnIn, P::Ctx, P::OOut, P::MlpIn, P::DownIn, P::DownOut, P::BlockOut];
    STOPS.into_iter().find(|s| *s >= port.name).unwrap_or(P::BlockOut).into()
}

/// Replaces every window by its image under the block.
pub(super) fn propagate(block: &dyn Block, stream: &Stream, device: &Device, control: &Control<'_>) -> Result<()> {
    for_each_window(stream.windows(), control, |i| {
        let out = block.run(Span::BLOCK, Flow::new(stream.get(i, device)?), &mut Nothing)?;
        stream.set(i, &out.x)
    })
}
