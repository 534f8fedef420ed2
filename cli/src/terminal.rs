//! What a person sees: errors, progress, sizes. Data goes to stdout, everything else to stderr.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qfw_core::Error;
use qfw_core::harness::Progress;

/// Set by Ctrl-C.
pub(crate) static CANCELLED: AtomicBool = AtomicBool::new(false);

/// The first Ctrl-C asks the run to stop in a resumable state; the second ends the program.
pub(crate) fn catch_interrupt() {
    // A handler that cannot be set leaves the default one, which ends the program at once: the journal is safe either way.
    let _ = ctrlc::set_handler(|| {
        if CANCELLED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        note("stopping after the current step; press Ctrl-C again to end at once");
        crate::dynamic::watch();
    });
}

/// A line on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// A line on stdout. A reader that has gone away (`| head`) is no error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(anstream::stdout(), "{text}");
}

/// The message, what caused it, and what can be done.
pub(crate) fn print_error(e: &Error) {
    note(&format!("\u{1b}[1;31merror[qfw::{}]\u{1b}[0m: {e}", e.code()));
    let mut source = std::error::Error::source(e);
    while let Some(cause) = source {
        note(&format!("  caused by: {cause}"));
        source = cause.source();
    }
    if let Some(hint) = e.hint_text() {
        note(&format!("\n\u{1b}[1;36mhint\u{1b}[0m: {hint}"));
    }
}

/// `1.23 GB`
pub(crate) fn size(bytes: u64) -> String {
    let b = bytes as f64;
    match b {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} kB", b / 1e3),
    }
}

/// `1 h 02 min`, `3 min 20 s`, `12 s`
pub(crate) fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        s if s >= 3600 => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
        s if s >= 60 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{seconds:.1} s"),
    }
}

/// The display of the run that is under way.
static CURRENT: Mutex<Option<Arc<RunDisplay>>> = Mutex::new(None);

/// What is told beside the run's own progress: how far a call of a plugin is.
pub(crate) fn progress(p: &Progress) {
    let current = CURRENT.lock().ok().and_then(|current| current.clone());
    if let Some(display) = current {
        display.show(p);
    }
}

/// Progress of a run: a bar on a terminal, a line per block otherwise.
pub(crate) struct RunDisplay {
    bar: Option<ProgressBar>,
    start: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When work on blocks began.
    began: Option<Instant>,
    first: u32,
    done: u32,
    /// Steps of learning rotations that an earlier run took.
    learned: usize,
    /// When there last was a line about a call.
    told: Option<Instant>,
}

/// Lines about calls are no closer than this.
const BETWEEN_CALLS: Duration = Duration::from_secs(5);

impl RunDisplay {
    /// A display, which is the current one from now on.
    pub(crate) fn new(quiet: bool) -> Arc<Self> {
        let show = !quiet && std::io::stderr().is_terminal() && std::env::var_os("QFW_NO_PROGRESS").is_none();
        let bar = show.then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:24} block {pos}/{len}  {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let display = Arc::new(Self { bar, start: Instant::now(), state: Mutex::default() });
        if let Ok(mut current) = CURRENT.lock() {
            *current = Some(Arc::clone(&display));
        }
        display
    }

    /// Time left, from the blocks of this process.
    fn eta(&self, state: &State, total: u32) -> String {
        let here = state.done.saturating_sub(state.first);
        if here == 0 {
            return "ETA unknown".to_owned();
        }
        // What came before the first block says nothing of those that are left.
        let began = state.began.unwrap_or(self.start);
        let per_block = began.elapsed().as_secs_f64() / f64::from(here);
        format!("ETA {}", duration(per_block * f64::from(total - state.done)))
    }

    pub(crate) fn show(&self, p: &Progress) {
        let Ok(mut state) = self.state.lock() else { return };
        match (p, &self.bar) {
            (Progress::Resumed { done, total }, _) => {
                (state.first, state.done) = (*done, *done);
                note(&format!("resuming: {done} of {total} blocks are done"));
            }
            (Progress::RotationsResumed { done, total }, _) => {
                state.learned = *done;
                note(&format!("resuming: {done} of {total} steps of learning rotations are done"));
            }
            (Progress::Rotations { done, total, loss }, bar) => {
                let here = done.saturating_sub(state.learned).max(1);
                let left = duration(self.start.elapsed().as_secs_f64() / here as f64 * total.saturating_sub(*done) as f64);
                match bar {
                    Some(bar) => {
                        bar.set_length(*total as u64);
                        bar.set_position(*done as u64);
                        bar.set_message(format!("rotations  loss {loss:.4}  ETA {left}"));
                    }
                    None if done.is_multiple_of(total.div_ceil(10).max(1)) => {
                        note(&format!("rotations {done}/{total}  loss {loss:.4}  ETA {left}"));
                    }
                    None => {}
                }
            }
            (Progress::Block { .. }, None) => {
                state.began.get_or_insert_with(Instant::now);
            }
            (Progress::Block { total, .. }, Some(bar)) => {
                state.began.get_or_insert_with(Instant::now);
                bar.set_length(u64::from(*total));
                bar.set_position(u64::from(state.done));
            }
            (Progress::Step { name }, Some(bar)) => {
                let total = bar.length().unwrap_or(0) as u32;
                bar.set_message(format!("{name:<10} {}", self.eta(&state, total)));
            }
            (Progress::Call { what, done, total }, Some(bar)) => bar.set_message(format!("{what}  {done}/{total}")),
            (Progress::Call { what, done, total }, None) => {
                let due = state.told.is_none_or(|told| told.elapsed() >= BETWEEN_CALLS);
                if due {
                    state.told = Some(Instant::now());
                    note(&format!("{what}: {done}/{total}"));
                }
            }
            (Progress::BlockDone { done, total, seconds, sites }, bar) => {
                state.done = *done;
                match bar {
                    Some(bar) => bar.set_position(u64::from(*done)),
                    None => {
                        let worst = sites.iter().max_by(|a, b| error_of(a).total_cmp(&error_of(b)));
                        let worst = worst.map_or_else(String::new, |s| format!("  worst {} {:.4}", s.site, error_of(s)));
                        note(&format!("block {done}/{total}  {}  {}{worst}", duration(*seconds), self.eta(&state, *total)));
                    }
                }
            }
            (Progress::Export { format }, bar) => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                note(&format!("writing {format}"));
            }
            _ => {}
        }
    }
}

/// The error a site is judged by: of its output where that was measured, else of its weight.
pub(crate) fn error_of(s: &qfw_core::harness::SiteReport) -> f64 {
    s.output_error.unwrap_or(s.weight_error)
}
