//! The program under test: built for release, and run with its data read back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qfw_core::{Error, Result};
use qfw_tests::workspace;
use serde_json::Value;

/// The release build of the program, which lies beside this one.
pub(crate) fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(&cargo).current_dir(workspace::root()).args(["build", "--release", "--quiet", "-p", "qfw"]).status();
    let xtask = std::env::current_exe().map_err(|e| Error::io(Path::new("xtask"), "find", e))?;
    let qfw = xtask.with_file_name(format!("qfw{}", std::env::consts::EXE_SUFFIX));
    match done {
        Ok(status) if status.success() && qfw.exists() => Ok(qfw),
        Ok(status) => Err(Error::input("xtask::build", format!("`cargo build --release` left no `{}`: {status}", qfw.display()))
            .hint("run this task as `cargo xtask …`, which builds for release too")),
        Err(e) => Err(Error::io(Path::new(&cargo), "run", e)),
    }
}

/// CPU seconds of all finished children, and the peak memory of the largest.
#[allow(unsafe_code, reason = "a system call that std does not offer")]
pub(crate) fn children() -> (f64, u64) {
    // SAFETY: `rusage` is plain data for which zeros are valid, and the call writes nothing but it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss as u64 * 1024)
}

/// What a run took.
pub(crate) struct Took {
    /// Of all threads.
    pub(crate) cpu_seconds: f64,
    pub(crate) wall_seconds: f64,
}

/// The whole command `qfw apply` of `model` into `out`, by a `run.toml` beside it and `settings` over that, on `data`.
pub(crate) fn apply(qfw: &Path, model: &Path, data: &Path, recipe: &str, settings: &[String], out: &Path) -> Result<Took> {
    let config = out.with_extension("toml");
    std::fs::write(&config, recipe).map_err(|e| Error::io(&config, "write", e))?;
    let mut command = Command::new(qfw);
    command.arg("apply").arg(model).arg("--config").arg(&config).arg("--data").arg(data).arg("-o").arg(out);
    for setting in settings {
        command.arg("--set").arg(setting);
    }
    let (before, start) = (children().0, Instant::now());
    let output = command.output().map_err(|e| Error::io(qfw, "run", e))?;
    if output.status.success() {
        return Ok(Took { cpu_seconds: children().0 - before, wall_seconds: start.elapsed().as_secs_f64() });
    }
    Err(Error::input("xtask::apply", format!("`qfw apply` failed: {}", output.status))
        .hint(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// What perplexity is measured on.
#[derive(Clone, Debug)]
pub(crate) struct Evaluation {
    /// Data, as for `qfw eval`.
    pub(crate) data: PathBuf,
    /// Tokens per window.
    pub(crate) seq_len: usize,
    /// Windows.
    pub(crate) max_windows: usize,
    /// What operands of products are rounded to.
    pub(crate) products: String,
}

impl Evaluation {
    /// What `qfw eval --json` prints for `model`.
    pub(crate) fn of(&self, qfw: &Path, model: &Path) -> Result<Value> {
        let mut command = Command::new(qfw);
        command.arg("eval").arg(model).arg("--data").arg(&self.data).arg("--json").arg("--products").arg(&self.products);
        command.args(["--seq-len", &self.seq_len.to_string(), "--max-windows", &self.max_windows.to_string()]);
        let output = command.output().map_err(|e| Error::io(qfw, "run", e))?;
        let value: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        if output.status.success() && value["perplexity"].is_number() {
            return Ok(value);
        }
        Err(Error::input("xtask::eval", format!("`qfw eval` of {} failed", model.display()))
            .hint(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Mean of `a − b` over windows and its standard error, in nats per token.
pub(crate) fn paired(a: &[f64], b: &[f64]) -> (f64, f64) {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    /// Differences 0.1, 0.3 and 0.5 have the mean 0.3 and the standard error 0.2/√3.
    #[test]
    fn differences_are_taken_window_by_window() {
        let (mean, error) = super::paired(&[1.1, 2.3, 3.5], &[1.0, 2.0, 3.0]);
        assert!((mean - 0.3).abs() < 1e-12 && (error - 0.2 / 3f64.sqrt()).abs() < 1e-12, "{mean} {error}");
    }
}
