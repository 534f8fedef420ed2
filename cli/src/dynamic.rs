//! Run-time plugins: where they are looked for, and what a run may use. The only place that reads the environment for them.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qfw_core::plan::raw::RawPlugins;
use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use qfw_loader::{Catalog, Host, InFlight, Places, Policy};

use crate::arguments::DynamicArgs;
use crate::terminal::{self, CANCELLED, note};

/// Calls of plugins that have not returned.
static IN_FLIGHT: LazyLock<InFlight> = LazyLock::new(InFlight::default);

/// How long a plugin may go on after the run was interrupted.
const GRACE: Duration = Duration::from_secs(10);

/// A directory of the user's: what the variable says if it is absolute, else that below the home directory.
fn user_dir(variable: &str, below_home: &str) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").or_else(|| absolute("USERPROFILE")).map(|home| home.join(below_home)))
}

/// The list of plugins that were added.
///
/// # Errors
/// If there is no home directory to keep it in.
pub(crate) fn list_file() -> Result<PathBuf> {
    user_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("qfw").join("plugins.toml")).ok_or_else(|| {
        Error::config("plugin::home", "there is no home directory to keep the list of plugins in").hint("set `HOME`, or `XDG_CONFIG_HOME`")
    })
}

/// Where plugins are looked for: the list, `QFW_PLUGIN_PATH`, the user's directory, the system's. What is not absolute is skipped, so that
/// nothing is loaded from wherever the program happens to run.
fn places() -> Places {
    let path = std::env::var_os("QFW_PLUGIN_PATH").unwrap_or_default();
    let named = std::env::split_paths(&path).filter(|p| !p.as_os_str().is_empty());
    let (named, skipped): (Vec<PathBuf>, Vec<PathBuf>) = named.partition(|p| p.is_absolute());
    skipped.iter().for_each(|p| note(&format!("note: `{}` in QFW_PLUGIN_PATH is skipped: it is not absolute", p.display())));
    let own = user_dir("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("qfw").join("plugins"));
    let system = if cfg!(unix) { ["/usr/local/lib/qfw/plugins", "/usr/lib/qfw/plugins"].map(PathBuf::from).to_vec() } else { Vec::new() };
    Places { added: list_file().ok(), search: named.into_iter().chain(own).chain(system).collect() }
}

/// The packages there are; what is wrong with others goes to stderr.
pub(crate) fn catalog() -> Catalog {
    let catalog = Catalog::scan(&places());
    for problem in &catalog.problems {
        let cause = std::error::Error::source(problem).map_or_else(String::new, |cause| format!(": {cause}"));
        let hint = problem.hint_text().map_or_else(String::new, |hint| format!("; {hint}"));
        note(&format!("note: a plugin is left out: {problem}{cause}{hint}"));
    }
    catalog
}

fn log(level: u32, line: &str) {
    if level <= 3 {
        note(line);
    }
}

/// What plugins have of this program.
pub(crate) fn host() -> Host {
    Host { cancel: &CANCELLED, in_flight: IN_FLIGHT.clone(), log, progress: terminal::progress }
}

/// Everything that a run may choose from: what is linked, and plugins that were added.
pub(crate) fn registry(raw: &RawPlugins, a: &DynamicArgs) -> Result<Registry> {
    let mut registry = Registry::linked()?;
    let dynamic = raw.allow_dynamic && !a.no_dynamic_plugins;
    let catalog = if dynamic { catalog() } else { Catalog::default() };
    let policy = Policy { prefer: raw.prefer.clone(), require: raw.require.clone(), allow_unpinned: a.allow_unpinned };
    catalog.register(&mut registry, &policy, &host())?;
    Ok(registry)
}

/// The calls of plugins that have not returned, for people.
pub(crate) fn at_work() -> String {
    let calls: Vec<String> = IN_FLIGHT.calls().into_iter().map(|(what, _)| what).collect();
    calls.join(", ")
}

/// The time that `QFW_PLUGIN_GRACE` gives, in seconds.
fn grace() -> Duration {
    let Some(text) = std::env::var_os("QFW_PLUGIN_GRACE") else { return GRACE };
    let seconds = text.to_str().and_then(|s| s.parse::<f64>().ok()).filter(|s| (0.0..=3600.0).contains(s));
    seconds.map_or_else(
        || {
            let (text, taken) = (text.display(), GRACE.as_secs());
            note(&format!("note: QFW_PLUGIN_GRACE is `{text}`, and no number of seconds from 0 to 3600; {taken} are taken"));
            GRACE
        },
        Duration::from_secs_f64,
    )
}

/// Once the program was interrupted: ends it when a plugin does not return, or when one has and there is no run to stop. The journal is
/// replaced whole each time it is written, so it is sound whenever that happens.
pub(crate) fn watch(running: &AtomicBool) {
    let (since, grace) = (Instant::now(), grace());
    while CANCELLED.load(Ordering::Relaxed) {
        let calls = IN_FLIGHT.calls();
        if calls.is_empty() && !running.load(Ordering::Relaxed) {
            terminal::end(130);
        }
        let stuck = calls.into_iter().find(|(_, age)| (*age).min(since.elapsed()) >= grace);
        if let Some((what, _)) = stuck {
            let message = format!("{what} has not returned {} s after it was asked to stop", grace.as_secs_f64());
            let hint = "finished blocks are kept; run the same command with `--resume`, without this plugin's fault";
            terminal::failed("plugin::hangs", &message, &[], Some(hint));
            terminal::end(3);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    /// Whatever the environment says: the system's directories come last, and no entry depends on where the program runs.
    #[test]
    fn plugins_are_looked_for_in_places_that_do_not_move() {
        let places = super::places();
        assert!(places.search.iter().chain(&places.added).all(|p| p.is_absolute()), "{places:?}");
        #[cfg(unix)]
        assert!(places.search.ends_with(&["/usr/local/lib/qfw/plugins".into(), "/usr/lib/qfw/plugins".into()]), "{places:?}");
    }
}
