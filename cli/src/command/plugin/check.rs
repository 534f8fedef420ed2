//! `qfw plugin check`: the conformance kit, each case in a process of its own.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qfw_core::{Error, ErrorKind, Result};
use qfw_loader::conformance::{self, Outcome};
use qfw_loader::{Host, Package, hash_file, shell_word};
use regex::Regex;
use serde_json::json;

use crate::command::say_json;
use crate::dynamic;
use crate::terminal::say;

/// What was asked for.
pub(crate) struct Asked<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) seed: u64,
    pub(crate) case: Option<&'a str>,
    pub(crate) skip: Option<&'a str>,
    pub(crate) in_process: bool,
    pub(crate) json: bool,
}

/// A case that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(120);

pub(crate) fn run(a: &Asked<'_>) -> Result<()> {
    let package = Package::open(a.dir)?;
    // Without a library there is nothing to try.
    package.library()?;
    let all = conformance::cases(a.dir)?;
    let chosen = chosen(&all, a.case, a.skip)?;
    let mut results = Vec::new();
    for case in chosen {
        // The standard error is to show what the plugin itself prints; what it logs is for users of a run.
        let host = || Host { log: |_, _| (), ..dynamic::host() };
        let outcome = if a.in_process { conformance::run(a.dir, case, a.seed, &host())? } else { in_its_own_process(a, case)? };
        if !a.json {
            say(&format!("{case:<44} {outcome}"));
            if !outcome.is_fine() {
                say(&format!("    again: qfw plugin check {} --case {case} --seed {} --in-process", shell_word(a.dir), a.seed));
            }
        }
        results.push((case, outcome));
    }
    let bad = results.iter().filter(|(_, o)| !o.is_fine()).count();
    if a.json {
        let cases: Vec<_> = results.iter().map(|(case, o)| json!({ "case": case, "outcome": o })).collect();
        let hash = package.library().ok().and_then(|l| hash_file(&l).ok());
        say_json(
            &json!({ "plugin": package.manifest.id, "version": package.manifest.version, "blake3": hash, "seed": a.seed, "cases": cases }),
        )?;
    } else if bad == 0 {
        let skipped = results.iter().filter(|(_, o)| matches!(o, Outcome::Skipped(_))).count();
        let skipped = if skipped == 0 { String::new() } else { format!("; {skipped} of them were skipped") };
        say(&format!("all {} cases of `{}` are fine{skipped}", results.len(), package.manifest.id));
    }
    if bad > 0 {
        let message = format!("{bad} of {} cases of plugin `{}` are not fine", results.len(), package.manifest.id);
        return Err(Error::new(ErrorKind::Plugin, "plugin::check", message).hint("repeat one with the line below it"));
    }
    Ok(())
}

/// Cases that match the one pattern and not the other. A case by its whole name is that case alone: so the children of this process name
/// theirs.
fn chosen<'a>(all: &'a [String], case: Option<&str>, skip: Option<&str>) -> Result<Vec<&'a String>> {
    let pattern = |text: &str| {
        Regex::new(text).map_err(|e| {
            Error::config("config::invalid", format!("`{text}` is no pattern of cases"))
                .with_source(e)
                .hint("cases have names such as `ID.round.fuzz`")
        })
    };
    let (wanted, unwanted) = (case.map(pattern).transpose()?, skip.map(pattern).transpose()?);
    let found: Vec<&String> = match all.iter().find(|c| Some(c.as_str()) == case) {
        Some(exact) => vec![exact],
        None => all
            .iter()
            .filter(|c| wanted.as_ref().is_none_or(|w| w.is_match(c)) && unwanted.as_ref().is_none_or(|u| !u.is_match(c)))
            .collect(),
    };
    if found.is_empty() {
        let message = format!("no case has `{}` in its name", case.or(skip).unwrap_or_default());
        return Err(Error::config("registry::unknown", message).hint("leave `--case` and `--skip` out to see them all"));
    }
    Ok(found)
}

/// A file that what a child prints goes to: it never fills up as a pipe does.
fn scratch() -> Result<(File, File)> {
    let file = tempfile::tempfile().map_err(|e| Error::io(&std::env::temp_dir(), "create a file in", e))?;
    let twin = file.try_clone().map_err(|e| Error::io(&std::env::temp_dir(), "use a file in", e))?;
    Ok((file, twin))
}

/// What was printed to a file; bytes that are no text are replaced.
fn printed(mut file: File) -> String {
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of what was printed, for a line about it.
fn tail(text: &str) -> String {
    const LONGEST: usize = 400;
    let text = text.trim();
    let cut = text.char_indices().map(|(i, _)| i).find(|i| text.len() - i <= LONGEST).unwrap_or(0);
    format!("{}{}", if cut > 0 { "…" } else { "" }, &text[cut..])
}

/// The case, run by a child: what it does to its process it does to that one.
fn in_its_own_process(a: &Asked<'_>, case: &str) -> Result<Outcome> {
    let program = std::env::current_exe().map_err(|e| Error::io(Path::new("qfw"), "find", e))?;
    let mut command = Command::new(&program);
    command.args(["plugin", "check"]).arg(a.dir).args(["--case", case, "--seed", &a.seed.to_string(), "--in-process", "--json"]);
    let ((out, stdout), (err, stderr)) = (scratch()?, scratch()?);
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn();
    let mut child = child.map_err(|e| Error::io(&program, "start", e))?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| Error::io(&program, "wait for", e))? {
            Some(status) => break status,
            None if start.elapsed() > LONGEST => {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Outcome::Crashed(format!("it has not ended after {} s", LONGEST.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Ok(judged(&printed(out), &printed(err), &status.to_string()))
}

/// What the output of a child says of its case.
fn judged(out: &str, err: &str, status: &str) -> Outcome {
    let said = if err.trim().is_empty() { String::new() } else { format!("; its last words: {}", tail(err)) };
    match outcome_in(out) {
        None => Outcome::Crashed(format!("the process ended with {status} and without an answer{said}")),
        // A case that is fine prints nothing to the standard error but what the plugin does.
        Some(Outcome::Success) if !err.trim().is_empty() => Outcome::Warning(format!("it prints to the standard error: {}", tail(err))),
        Some(outcome) => outcome,
    }
}

/// The one outcome that a child has written. Anything else on its standard output is a plugin that prints.
fn outcome_in(text: &str) -> Option<Outcome> {
    let start = text.find("{\n")?;
    if !text[..start].trim().is_empty() {
        return Some(Outcome::Failed(format!("it prints to the standard output: {}", tail(&text[..start]))));
    }
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    serde_json::from_value(value["cases"][0]["outcome"].clone()).ok()
}
