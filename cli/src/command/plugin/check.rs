//! `qfw plugin check`: the conformance kit, each case in a process of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qfw_core::{Error, ErrorKind, Result};
use qfw_loader::conformance::{self, Outcome};
use qfw_loader::{Package, hash_file};
use serde_json::json;

use crate::command::say_json;
use crate::dynamic;
use crate::terminal::say;

/// What was asked for.
pub(crate) struct Asked<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) seed: u64,
    pub(crate) case: Option<&'a str>,
    pub(crate) in_process: bool,
    pub(crate) json: bool,
}

/// A case that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(120);

pub(crate) fn run(a: &Asked<'_>) -> Result<()> {
    let package = Package::open(a.dir)?;
    let all = conformance::cases(a.dir)?;
    let chosen: Vec<&String> = match a.case {
        // A case by its whole name is that case alone: so the children of this process name theirs.
        Some(name) if all.iter().any(|c| c == name) => all.iter().filter(|c| *c == name).collect(),
        Some(part) => all.iter().filter(|c| c.contains(part)).collect(),
        None => all.iter().collect(),
    };
    if chosen.is_empty() {
        let hint = "leave `--case` out to see them all";
        return Err(Error::config("registry::unknown", format!("no case has `{}` in its name", a.case.unwrap_or_default())).hint(hint));
    }
    let mut results = Vec::new();
    for case in chosen {
        let outcome = if a.in_process { conformance::run(a.dir, case, a.seed, &dynamic::host())? } else { in_its_own_process(a, case)? };
        if !a.json {
            say(&format!("{case:<44} {outcome}"));
            if !outcome.is_fine() {
                say(&format!("    again: qfw plugin check {} --case {case} --seed {} --in-process", a.dir.display(), a.seed));
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
        say(&format!("all {} cases of `{}` are fine", results.len(), package.manifest.id));
    }
    if bad > 0 {
        let message = format!("{bad} of {} cases of plugin `{}` are not fine", results.len(), package.manifest.id);
        return Err(Error::new(ErrorKind::Plugin, "plugin::check", message).hint("repeat one with the line below it"));
    }
    Ok(())
}

/// The case, run by a child: what it does to its process it does to that one.
fn in_its_own_process(a: &Asked<'_>, case: &str) -> Result<Outcome> {
    let program = std::env::current_exe().map_err(|e| Error::io(Path::new("qfw"), "find", e))?;
    let mut command = Command::new(&program);
    command.args(["plugin", "check"]).arg(a.dir).args(["--case", case, "--seed", &a.seed.to_string(), "--in-process", "--json"]);
    // What it prints goes to a file, which never fills up as a pipe does.
    let out = tempfile::tempfile().map_err(|e| Error::io(&std::env::temp_dir(), "create a file in", e))?;
    let stdout = out.try_clone().map_err(|e| Error::io(&std::env::temp_dir(), "use a file in", e))?;
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null()).spawn();
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
    Ok(answer(out).unwrap_or_else(|| Outcome::Crashed(format!("the process ended with {status} and without an answer"))))
}

/// The one outcome that a child has written. Anything else on its standard output is a plugin that prints.
fn answer(mut file: std::fs::File) -> Option<Outcome> {
    use std::io::{Read, Seek};
    file.rewind().ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    let start = text.find("{\n")?;
    if !text[..start].trim().is_empty() {
        return Some(Outcome::Failed(format!("it prints to the standard output: {}", text[..start].trim())));
    }
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    serde_json::from_value(value["cases"][0]["outcome"].clone()).ok()
}
