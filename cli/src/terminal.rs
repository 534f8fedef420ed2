//! What a person sees: errors, progress, sizes. Data goes to stdout, everything else to stderr.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use qfw_core::Error;
use qfw_core::harness::Progress;

/// Set by Ctrl-C.
pub(crate) static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Whether there is work that stops in a resumable state.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// From here on the first Ctrl-C asks the run to stop in a resumable state; the second ends the program.
pub(crate) fn catch_interrupt() {
    RUNNING.store(true, Ordering::Relaxed);
    handle_interrupts();
}

/// From here on Ctrl-C names the plugins that are at work, and gives them time to end. Without any it ends the program, as it does by default.
/// Plans are made of what plugins say, and opening their libraries runs code of theirs, too.
pub(crate) fn handle_interrupts() {
    // A handler that cannot be set leaves the one that is there, or the default one, which ends the program at once: the journal is safe
    // either way.
    let (interrupted, told) = std::sync::mpsc::channel();
    let handled = ctrlc::set_handler(move || {
        let (again, plugins) = (CANCELLED.swap(true, Ordering::Relaxed), crate::dynamic::at_work());
        if !plugins.is_empty() {
            note(&format!("at work: {plugins}"));
        }
        if again || plugins.is_empty() && !RUNNING.load(Ordering::Relaxed) {
            end(130);
        }
        note("stopping after the current step; press Ctrl-C again to end at once");
        let _ = interrupted.send(());
    });
    if handled.is_ok() {
        // Now, as no thread can be started while a library is being opened: the system's loader is locked then.
        std::thread::spawn(move || {
            if told.recv().is_ok() {
                crate::dynamic::watch(&RUNNING);
            }
        });
    }
}

/// Ends the process as it is: exit handlers of a library that is at work must not run.
pub(crate) fn end(code: i32) -> ! {
    #[cfg(unix)]
    #[allow(unsafe_code, reason = "_exit has no safe wrapper")]
    // SAFETY: it takes no pointers and does not return.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}

/// Text with what a terminal would act upon spelled out: control characters, and those that turn the direction of writing. Names,
/// summaries and messages come from checkpoints, manifests and plugins, and may hold anything.
fn visible(text: &str) -> Cow<'_, str> {
    let acts = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || c.is_control() && c != '\n' && c != '\t'
    };
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::new();
    for c in text.chars() {
        if acts(c) {
            // All of them are below U+10000. JSON and TOML read it so, too.
            let _ = write!(plain, "\\u{:04x}", u32::from(c));
        } else {
            plain.push(c);
        }
    }
    Cow::Owned(plain)
}

/// A line on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{}", visible(text));
}

/// A line on stdout. A reader that has gone away (`| head`) is no error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(anstream::stdout(), "{}", visible(text));
}

/// A line on stderr that begins with a word in colour; `style` is that of SGR.
fn marked(style: &str, word: &str, text: &str) {
    let _ = writeln!(anstream::stderr(), "\u{1b}[{style}m{word}\u{1b}[0m: {}", visible(text));
}

/// What went wrong, by its code, and what can be done.
pub(crate) fn failed(code: &str, message: &str, causes: &[String], hint: Option<&str>) {
    marked("1;31", &format!("error[qfw::{code}]"), message);
    causes.iter().for_each(|cause| note(&format!("  caused by: {cause}")));
    if let Some(hint) = hint {
        note("");
        marked("1;36", "hint", hint);
    }
}

/// The message, what caused it, and what can be done.
pub(crate) fn print_error(e: &Error) {
    let causes = std::iter::successors(std::error::Error::source(e), |cause| cause.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    failed(e.code(), &e.to_string(), &causes, e.hint_text());
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
            (Progress::Call { what, done, total }, Some(bar)) => bar.set_message(visible(&format!("{what}  {done}/{total}")).into_owned()),
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

#[cfg(test)]
mod tests {
    use super::visible;

    #[test]
    fn what_a_terminal_would_act_upon_is_spelled_out() {
        assert_eq!(visible("ein Gewicht von 3 µm\n\tüber `a`"), "ein Gewicht von 3 µm\n\tüber `a`");
        assert_eq!(visible("\u{1b}[2Jall gone\r\u{7}"), "\\u001b[2Jall gone\\u000d\\u0007");
        // The one-byte form of ESC [, and a name that reads the other way round.
        assert_eq!(visible("\u{9b}31m \u{202e}os.bil"), "\\u009b31m \\u202eos.bil");
        // What is data stays what it was.
        let json = serde_json::json!(["\u{9b}31m", "\u{202e}"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&visible(&json.to_string())).unwrap(), json);
    }
}
