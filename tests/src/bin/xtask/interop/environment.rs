//! Python environments, one an engine: made once, and left to be used again.
//!
//! torch is as large as all engines together, so that it lies in one environment which the others see by a `.pth` file.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::engine::{Engine, TORCH};

/// What a package that is compiled here (llama.cpp) takes with two cores at a low priority, with room.
const LONGEST: Duration = Duration::from_secs(3600);

/// Prints what a package needs, but for the packages that follow it, torch and what only extras need.
const NEEDS: &str = "\
import importlib.metadata as m, re, sys
there = {'torch', 'torchvision', 'torchaudio'} | {name.split('==')[0] for name in sys.argv[2:]}
for need in m.requires(sys.argv[1]) or []:
    if re.match(r'[A-Za-z0-9_.-]+', need)[0] not in there and 'extra ==' not in need:
        print(need)
";

/// The Python of an engine's environment in `root`, which is made if it is not there.
///
/// # Errors
/// With the reason, in a line, if it cannot be made here.
pub(super) fn python(engine: &Engine, root: &Path) -> Result<PathBuf, String> {
    let at = root.join(engine.environment);
    let own: Vec<&str> = engine.packages.iter().copied().chain(engine.on_its_own).collect();
    let all = [if engine.torch { TORCH } else { &[] }, &own].concat().join("\n");
    let (python, installed) = (at.join("bin/python"), at.join("installed.txt"));
    if std::fs::read_to_string(&installed).is_ok_and(|text| text == all) && python.exists() {
        return Ok(python);
    }
    make(&at)?;
    if engine.torch {
        let torch = root.join("torch");
        make(&torch)?;
        install(&torch, TORCH)?;
        let seen = said(Command::new(torch.join("bin/python")).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))?;
        let own = said(Command::new(&python).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]))?;
        std::fs::write(Path::new(&own).join("torch.pth"), format!("{seen}\n")).map_err(|e| e.to_string())?;
    }
    install(&at, engine.packages)?;
    if let Some(package) = engine.on_its_own {
        install(&at, &["--no-deps", package])?;
        let name = package.split("==").next().unwrap_or(package);
        let needs = said(Command::new(&python).args(["-c", NEEDS, name]).args(engine.packages))?;
        install(&at, &needs.lines().collect::<Vec<_>>())?;
    }
    std::fs::write(&installed, all).map_err(|e| e.to_string())?;
    Ok(python)
}

/// An empty environment at `at`, unless one is there.
fn make(at: &Path) -> Result<(), String> {
    if at.join("bin/python").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(at).map_err(|e| e.to_string())?;
    let mut venv = Command::new("python3");
    done(venv.args(["-m", "venv"]).arg(at), at)
}

fn install(at: &Path, packages: &[&str]) -> Result<(), String> {
    let mut pip = Command::new(at.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]).args(packages);
    // GPTQModel for a CPU, and llama.cpp for any CPU, without what it has for images and for downloads.
    pip.env("BUILD_CUDA_EXT", "0").env("CMAKE_ARGS", "-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF");
    done(&mut pip, at)
}

/// Runs a command to its end, with what it prints in a file beside the environment.
fn done(command: &mut Command, at: &Path) -> Result<(), String> {
    let path = at.join("install.log");
    let log = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    let other = log.try_clone().map_err(|e| e.to_string())?;
    let mut child = command.stdin(Stdio::null()).stdout(log).stderr(other).spawn().map_err(|e| e.to_string())?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => break Some(status),
            None if start.elapsed() > LONGEST => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    if status.is_some_and(|s| s.success()) {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let why = text.lines().rev().find(|l| l.contains("ERROR") || l.contains("error")).or_else(|| text.lines().last());
    let ended = status.map_or_else(|| format!("it took longer than {} s", LONGEST.as_secs()), |s| s.to_string());
    Err(why.map_or(ended, |line| line.trim().to_owned()))
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("it failed").to_owned())
}
