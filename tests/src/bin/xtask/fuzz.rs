//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/fuzz`, one after the other.
//!
//! Stable Rust is enough: the crates of this workspace are compiled through `tests/fuzz/instrument.sh`, and cargo keeps what such a wrapper
//! makes apart from an ordinary build. What a run finds stays in `fuzz/TARGET` of the target folder, and the next one goes on from there:
//!
//! ```text
//! corpus/      inputs that reached something new
//! findings/    inputs that panicked, overflowed, took too long or held too much
//! log          what libFuzzer said
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use qfw_core::{Error, Result};
use qfw_tests::workspace;

/// Most seconds for one input; they take milliseconds.
const SECONDS: u32 = 10;
/// Most resident memory of a whole run, with the fuzzer's own. What one input may hold is limited inside, in `qfw_fuzz::MEMORY`.
const RESIDENT_MB: u32 = 2048;

/// What to feed, and how often.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Targets; without any, each of `tests/fuzz/corpus`
    targets: Vec<String>,
    /// Executions of each
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Instead of feeding, add what was found since to `tests/fuzz/corpus`: the fewest inputs that cover as much
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let fuzzer = Fuzzer::build()?;
    let known = fuzzer.known()?;
    if let Some(wrong) = args.targets.iter().find(|t| !known.contains(t)) {
        return Err(Error::config("xtask::target", format!("there is no target `{wrong}`")).hint(format!("targets: {}", known.join(", "))));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    let mut failed = Vec::new();
    for name in chosen {
        let ended_well = if args.keep { fuzzer.keep(name)? } else { fuzzer.feed(name, args.executions)? };
        if !ended_well {
            failed.push(name.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::input("xtask::fuzz", format!("findings in {}", failed.join(", ")))
        .hint(format!("see `log` and `findings` of each in `{}`", fuzzer.work.display())))
}

struct Fuzzer {
    program: PathBuf,
    /// Where findings and the growing corpora are.
    work: PathBuf,
    /// The corpora that are kept.
    kept: PathBuf,
}

impl Fuzzer {
    fn build() -> Result<Self> {
        let root = workspace::root();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(&cargo);
        command.current_dir(&root).env("RUSTC_WORKSPACE_WRAPPER", root.join("tests/fuzz/instrument.sh"));
        // The whole workspace is named, so that its dependencies are those of every other build.
        let line = ["build", "--release", "--workspace", "--bin", "qfw-fuzz", "--features", "qfw-fuzz/libfuzzer"];
        let done = command.args(line).status().map_err(|e| Error::io(Path::new(&cargo), "run", e))?;
        if !done.success() {
            return Err(Error::input("xtask::build", format!("the fuzzer was not built: {done}")).hint("it needs a C++ compiler"));
        }
        let xtask = std::env::current_exe().map_err(|e| Error::io(Path::new("xtask"), "find", e))?;
        let folder = xtask.parent().unwrap_or(&root);
        Ok(Self {
            program: folder.join("qfw-fuzz"),
            work: folder.parent().unwrap_or(folder).join("fuzz"),
            kept: root.join("tests/fuzz/corpus"),
        })
    }

    fn known(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.kept).map_err(|e| Error::io(&self.kept, "list", e))?;
        let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// libFuzzer on a target, what it says in its log, with a temporary folder of its own that is gone afterwards.
    fn libfuzzer(&self, name: &str, words: &[String]) -> Result<(bool, String)> {
        let dir = self.work.join(name);
        for folder in ["corpus", "findings", "seeds"] {
            std::fs::create_dir_all(dir.join(folder)).map_err(|e| Error::io(&dir, "create", e))?;
        }
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let stage = tempfile::tempdir_in(&place).map_err(|e| Error::io(&place, "create a folder in", e))?;
        let path = dir.join("log");
        let log = File::create(&path).map_err(|e| Error::io(&path, "create", e))?;
        let mut command = Command::new(&self.program);
        command.env("QFW_FUZZ_TARGET", name).env("QFW_FUZZ_DIR", &dir).env("TMPDIR", stage.path()).env("RAYON_NUM_THREADS", "1");
        let done = command.args(words).current_dir(&dir).stderr(log).status().map_err(|e| Error::io(&self.program, "run", e))?;
        let said = std::fs::read(&path).map_err(|e| Error::io(&path, "read", e))?;
        Ok((done.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Feeds a target, and prints what came of it.
    #[allow(clippy::print_stdout, reason = "the figures of a run are its data")]
    fn feed(&self, name: &str, executions: u64) -> Result<bool> {
        let options = [
            format!("-runs={executions}"),
            format!("-timeout={SECONDS}"),
            format!("-rss_limit_mb={RESIDENT_MB}"),
            "-dict=words.dict".to_owned(),
            "-artifact_prefix=findings/".to_owned(),
            "-print_final_stats=1".to_owned(),
            "corpus".to_owned(),
            "seeds".to_owned(),
            self.kept.join(name).display().to_string(),
        ];
        let start = Instant::now();
        let (ended_well, log) = self.libfuzzer(name, &options)?;
        let stat = |what: &str| -> u64 {
            let line = log.lines().rev().find_map(|l| l.strip_prefix(&format!("stat::{what}:")));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        println!(
            "{name:<14} {:>9} executions  {:>6.0} s  {:>6} new inputs  peak {:>5} MiB  {}",
            stat("number_of_executed_units"),
            start.elapsed().as_secs_f64(),
            stat("new_units_added"),
            stat("peak_rss_mb"),
            if ended_well { "no finding" } else { "FINDING" },
        );
        Ok(ended_well)
    }

    /// Adds the fewest inputs to the corpus that cover what the working corpus does.
    fn keep(&self, name: &str) -> Result<bool> {
        let kept = self.kept.join(name).display().to_string();
        // Counts of executions make most inputs new; the lines that are reached are enough to keep.
        let options = ["-set_cover_merge=1", "-use_counters=0", &kept, "seeds", "corpus"].map(str::to_owned);
        Ok(self.libfuzzer(name, &options)?.0)
    }
}
