//! What must not happen around a call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qfw_core::{Error, Result};

use super::shapes::{made, plain, sample};
use super::{Kind, Outcome, Try};

/// The host never passes such weights in; what answers anyway has to answer with numbers.
pub(super) fn not_finite(on: &Try) -> Result<Outcome> {
    let (mut sample, algorithm) = (plain(on.seed)?, on.instance()?);
    let mut weight = sample.weight.clone();
    (weight[0], weight[5]) = (f32::NAN, f32::INFINITY);
    Ok(match made(&*algorithm, &mut sample, &weight) {
        Ok(_) => Outcome::Warning("weights that are not finite are rounded to something".to_owned()),
        Err(e) if e.code() == "plugin::panic" => Outcome::Warning(format!("weights that are not finite break it: {e}")),
        Err(_) => Outcome::Success,
    })
}

/// A call ends soon after it is asked to.
pub(super) fn cancelled(on: &Try) -> Result<Outcome> {
    let Some(cancel) = on.cancel() else { return Ok(Outcome::Skipped("sites of linked algorithms are not interrupted".to_owned())) };
    let mut sample = sample(on.seed, Kind::Plain, (512, 512), "int4", 0)?;
    let algorithm = on.instance()?;
    let weight = sample.weight.clone();
    stops(cancel, || made(&*algorithm, &mut sample, &weight).map(|_| ()))
}

/// Whether some work ends soon after it is asked to; how it ends is its own affair, as long as it does not panic.
pub(super) fn stops(cancel: &'static AtomicBool, work: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    const AT_ONCE: Duration = Duration::from_secs(1);
    let asking = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        cancel.store(true, Ordering::Relaxed);
        Instant::now()
    });
    let result = work();
    let ended = Instant::now();
    let asked = asking.join().map_err(|_| Error::internal("a thread panicked"))?;
    cancel.store(false, Ordering::Relaxed);
    let late = ended.saturating_duration_since(asked);
    Ok(match result {
        _ if late > AT_ONCE => Outcome::Failed(format!("it goes on for {:.1} s after it was asked to stop", late.as_secs_f64())),
        Err(e) if e.code() == "plugin::panic" => Outcome::of(&e),
        _ => Outcome::Success,
    })
}

/// Bytes of memory that this process holds; `None` where the system does not say.
fn held() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What a call takes it gives back: after some, more of them need no more memory.
pub(super) fn memory(on: &Try) -> Result<Outcome> {
    let shape = (256, 256);
    keeps("sites", (shape.0 * shape.1 * size_of::<f32>()) as u64, |seed| {
        // An instance for each, so that those are given back too.
        let mut sample = sample(seed, Kind::Plain, shape, "int4", 0)?;
        let weight = sample.weight.clone();
        made(&*on.instance()?, &mut sample, &weight).map(|_| ())
    })
}

/// Whether something that reads so many bytes keeps them when it is done again and again.
pub(super) fn keeps(what: &str, bytes: u64, once: impl Fn(u64) -> Result<()>) -> Result<Outcome> {
    const CALLS: u64 = 64;
    (0..8).try_for_each(&once)?;
    let Some(before) = held() else { return Ok(Outcome::Skipped("this system does not say how much memory a process holds".to_owned())) };
    (8..8 + CALLS).try_for_each(&once)?;
    let grown = held().unwrap_or(0).saturating_sub(before);
    // A copy of each weight that is kept is seen; the allocator's own ups and downs are not.
    if grown > CALLS / 2 * bytes {
        return Ok(Outcome::Warning(format!("after {CALLS} {what} more it holds {:.1} MB more", grown as f64 / 1e6)));
    }
    Ok(Outcome::Success)
}
