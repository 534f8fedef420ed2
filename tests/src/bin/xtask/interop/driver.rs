//! An engine's process, and its answers (`tests/peers/engines/protocol.py` says what is exchanged).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use qfw_tests::workspace;
use serde_json::Value;

use super::engine::Engine;

/// What became of a job.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    /// Its logits are there.
    Done,
    /// In the engine's words, or in ours where its process ended.
    Refused(String),
    /// There is none yet after so many seconds, which says as much of the machine as of the engine.
    Late(u64),
}

/// Why there is no answer.
enum Silence {
    Late,
    Gone(String),
}

/// A running engine.
pub(super) struct Driver {
    child: Child,
    jobs: ChildStdin,
    lines: Receiver<String>,
    /// Where what it prints goes.
    log: std::path::PathBuf,
    /// What runs, in which versions.
    pub(super) engine: String,
    /// The day on which it was started.
    pub(super) date: String,
}

impl Driver {
    /// Starts the driver of an engine; its first line says what runs.
    ///
    /// # Errors
    /// With the reason, in a line, if it does not start within `limit`.
    pub(super) fn start(engine: &Engine, python: &Path, work: &Path, limit: Duration) -> Result<Self, String> {
        let script = workspace::root().join("tests/peers/engines").join(engine.driver);
        let log = work.join(format!("{}.log", engine.name));
        let file = std::fs::File::create(&log).map_err(|e| e.to_string())?;
        let mut command = Command::new(python);
        command.arg(script).envs(engine.variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let (Some(jobs), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { return Err("it has no pipes".to_owned()) };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(answers).lines() {
                let Ok(line) = line else { return };
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut driver = Self { child, jobs, lines, log, engine: String::new(), date: String::new() };
        let first = driver.line(limit).map_err(|silence| match silence {
            Silence::Late => format!("it has not started after {} s", limit.as_secs()),
            Silence::Gone(why) => why,
        })?;
        let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
        (driver.engine, driver.date) = (text("engine"), text("date"));
        Ok(driver)
    }

    /// Gives it a job and waits for what becomes of it. Nothing in place of the driver means that its process is gone.
    pub(super) fn ask(mut self, job: &Value, limit: Duration) -> (Answer, Option<Self>) {
        if let Err(e) = writeln!(self.jobs, "{job}").and_then(|()| self.jobs.flush()) {
            return (Answer::Refused(format!("its process takes no job: {e}")), None);
        }
        match self.line(limit) {
            Err(Silence::Late) => (Answer::Late(limit.as_secs()), None),
            Err(Silence::Gone(why)) => (Answer::Refused(why), None),
            Ok(answer) if answer["done"] == true => (Answer::Done, Some(self)),
            Ok(answer) => {
                let why = answer["refused"].as_str().unwrap_or("it says nothing").to_owned();
                (Answer::Refused(why), (answer["last"] != true).then_some(self))
            }
        }
    }

    /// The next answer.
    fn line(&mut self, limit: Duration) -> Result<Value, Silence> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => serde_json::from_str(&line).map_err(|e| Silence::Gone(format!("its driver says no JSON: {e}"))),
            Err(RecvTimeoutError::Timeout) => Err(Silence::Late),
            Err(RecvTimeoutError::Disconnected) => {
                let ended = self.child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
                let text = std::fs::read(&self.log).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
                let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or_default().trim();
                Err(Silence::Gone(format!("its process ended ({ended}): {last}")))
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interop::engine::ENGINES;

    /// A shell stands in for a driver: what it answers, how it dies and that it is too slow are three results.
    #[test]
    fn an_engine_that_dies_or_hangs_is_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let run = |script: &str| {
            let fake = dir.path().join("fake.sh");
            std::fs::write(&fake, format!("#!/bin/sh\necho '{{\"engine\":\"e 1\"}}'\nread job\n{script}\n")).unwrap();
            // `sh SCRIPT-OF-THE-ENGINE` would read the Python file, so the program is the stand-in itself.
            let mut permissions = std::fs::metadata(&fake).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
            std::fs::set_permissions(&fake, permissions).unwrap();
            let driver = Driver::start(&ENGINES[0], &fake, dir.path(), Duration::from_secs(20)).unwrap();
            assert_eq!(driver.engine, "e 1");
            let (answer, left) = driver.ask(&serde_json::json!({}), Duration::from_secs(2));
            (answer, left.is_some())
        };
        assert_eq!(run("echo '{\"done\":true}'; read more"), (Answer::Done, true));
        assert_eq!(run("echo '{\"refused\":\"no such type\"}'; read more"), (Answer::Refused("no such type".to_owned()), true));
        let last = run("echo '{\"refused\":\"no\",\"last\":true}'; read more");
        assert_eq!(last, (Answer::Refused("no".to_owned()), false));
        let (died, left) = run("echo 'a bad thing' >&2; exit 7");
        assert_eq!((died, left), (Answer::Refused("its process ended (exit status: 7): a bad thing".to_owned()), false));
        assert_eq!(run("sleep 5"), (Answer::Late(2), false));
    }
}
