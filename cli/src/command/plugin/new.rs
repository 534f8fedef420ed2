//! `qfw plugin new`: a plugin that builds without a network, passes the kit and quantizes a model as it is.

use std::path::Path;

use qfw_core::registry::Registry;
use qfw_core::{Error, Result};
use qfw_loader::shell_word;

use super::vendor;
use crate::terminal::say;

/// Files of a new plugin: path and text.
type Files = Vec<(String, String)>;

/// Phases that cross the interface of run-time plugins.
const PHASES: [&str; 4] = ["condition", "round", "split", "transform"];

const MANIFEST: &str = "id = \"@ID@\"\nversion = \"0.1.0\"\nlicense = \"MIT OR Apache-2.0\"\nabi = { major = 1, minor = 0 }\n\n\
    [[algo]]\nid = \"@ALGO@\"\nphase = \"@PHASE@\"\nsummary = \"@SUMMARY@\"\nweight-only = @WEIGHTS@\n";

const CARGO: &str = "[package]\nname = \"@NAME@\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[lib]\ncrate-type = [\"cdylib\"]\n\n\
    [dependencies]\nqfw-abi = { path = \"vendor/qfw-abi\" }\n\n\
    # Panics are caught at the border, which aborting would not allow.\n[profile.release]\npanic = \"unwind\"\n\n[workspace]\n";

const RUN: &str = "# qfw apply MODEL --config run.example.toml -o OUT\nschema = 1\n\n[model]\npath = \"MODEL\"\n\n\
    [scheme]\nweights = { format = \"int4\", granularity = { group = 32 } }\n\n[[pass]]\nalgo = \"@ALGO@\"\n@REST@";

const README: &str = "# @NAME@\n\n**What it changes.** @WHAT@\n\n**When to use it.** As the start of a method of your own.\n\n\
    **Reads.** @READS@\n\n**Options.** @OPTIONS@\n\n## Build, check, use\n\n```sh\n@BUILD@\n\
    qfw plugin pack . --library @LIBRARY@\nqfw plugin check .\nqfw plugin add .\nqfw apply MODEL --algo @USE@ \
    --set scheme.weights.format=int4 -o OUT\n```\n\nAfter each build: `qfw plugin pack`, then `qfw plugin add`, which pins the new hash.\n";

/// The file that a build makes of a crate.
fn built(name: &str) -> String {
    format!("target/release/{}{}{}", std::env::consts::DLL_PREFIX, name.replace('-', "_"), std::env::consts::DLL_SUFFIX)
}

fn rust(phase: &str) -> Files {
    let source = match phase {
        "condition" => include_str!("template/rust/condition.txt"),
        "split" => include_str!("template/rust/split.txt"),
        "transform" => include_str!("template/rust/transform.txt"),
        _ => include_str!("template/rust/round.txt"),
    };
    let mut files: Files = vec![
        ("Cargo.toml".to_owned(), CARGO.to_owned()),
        ("src/lib.rs".to_owned(), source.to_owned()),
        ("src/options.rs".to_owned(), include_str!("template/rust/options.txt").to_owned()),
        (".gitignore".to_owned(), "/target\n".to_owned()),
    ];
    files.extend(vendor::CRATE.iter().map(|(path, text)| (format!("vendor/qfw-abi/{path}"), (*text).to_owned())));
    files
}

fn c(phase: &str) -> Files {
    let body = match phase {
        "condition" => include_str!("template/c/condition.txt"),
        "split" => include_str!("template/c/split.txt"),
        "transform" => include_str!("template/c/transform.txt"),
        _ => include_str!("template/c/round.txt"),
    };
    let source = [include_str!("template/c/head.txt"), body, include_str!("template/c/tail.txt")].concat();
    let make = "CFLAGS ?= -O2\n\n@NAME@.so: @NAME@.c vendor/qfw_plugin.h\n\t$(CC) -std=c11 -Wall -Wextra -pedantic $(CFLAGS) \
        -fPIC -shared -fvisibility=hidden -Ivendor -o $@ $< -lm\n";
    vec![
        ("@NAME@.c".to_owned(), source),
        ("Makefile".to_owned(), make.to_owned()),
        (".gitignore".to_owned(), "*.so\n".to_owned()),
        ("vendor/qfw_plugin.h".to_owned(), qfw_abi::HEADER.to_owned()),
    ]
}

/// What the templates leave open.
fn words(name: &str, phase: &str, lang: &str, library: &str) -> Vec<(&'static str, String)> {
    let rounds = "\n[[pass]]\nalgo = \"rtn\"\n";
    let held = "\n[[pass]]\nalgo = \"rtn\"\n\n[output]\nformat = [\"qfw\"]\n";
    let (what, summary) = match phase {
        "round" => ("Every weight becomes the nearest value of its grid.", "round to nearest"),
        "condition" => ("The largest weights are clipped before rounding.", "clips the largest weights"),
        "split" => ("A branch of low rank takes the largest part of the weight.", "a branch of low rank"),
        _ => ("The range of activations moves into the weights that read them.", "evens out the ranges of channels"),
    };
    let (rest, used) = match phase {
        "round" => ("", name.to_owned()),
        // Few containers hold branches.
        "split" => (held, format!("{name},rtn --format qfw")),
        _ => (rounds, format!("{name},rtn")),
    };
    let weights = phase != "transform";
    let needs = if weights { "0" } else { "QFW_NEED(QFW_STAT_LEAST) | QFW_NEED(QFW_STAT_GREATEST)" };
    let option = match phase {
        "split" => ["rank", "Rank of the branch.", "integer", "1", "1024", "8", "8.0", "usize"],
        "transform" => ["strength", "How much of the range moves: 0 none, 1 all.", "number", "0.0", "1.0", "0.5", "0.5", "f64"],
        _ => {
            ["clip", "Weights beyond this share of the largest one are clipped; 1 clips none.", "number", "0.1", "1.0", "1.0", "1.0", "f64"]
        }
    };
    let named = ["@OPTION@", "@MEANING@", "@TYPE@", "@LEAST@", "@MOST@", "@DEFAULT@", "@FLOAT@", "@RUST@"];
    let words = [
        ("@ID@", format!("com.example.{name}")),
        ("@ALGO@", name.to_owned()),
        ("@NAME@", name.to_owned()),
        ("@PHASE@", phase.to_owned()),
        ("@SUMMARY@", summary.to_owned()),
        ("@CODE@", format!("QFW_{}", phase.to_uppercase())),
        ("@NEEDS@", needs.to_owned()),
        ("@FLAGS@", if weights { "QFW_REENTRANT | QFW_WEIGHT_ONLY" } else { "QFW_REENTRANT" }.to_owned()),
        ("@WEIGHTS@", weights.to_string()),
        ("@READS@", if weights { "The weight. No statistics." } else { "The range of each input channel." }.to_owned()),
        ("@WHAT@", what.to_owned()),
        ("@REST@", rest.to_owned()),
        ("@USE@", used),
        ("@OPTIONS@", if lang == "rust" { format!("`{}`: see `src/options.rs`.", option[0]) } else { "None.".to_owned() }),
        ("@BUILD@", if lang == "rust" { "cargo build --release --offline" } else { "make" }.to_owned()),
        ("@LIBRARY@", library.to_owned()),
    ];
    words.into_iter().chain(named.into_iter().zip(option.map(str::to_owned))).collect()
}

pub(crate) fn run(dir: &Path, phase: &str, lang: &str) -> Result<()> {
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !plain {
        return Err(Error::config("config::invalid", format!("`{name}` is no name for a plugin"))
            .hint("use small letters, digits and `-`, beginning with a letter"));
    }
    // What it would offer is there already: every run that names it would have to be told which of the two.
    if let Ok(linked) = Registry::linked()?.algorithm(&name) {
        let message = format!("`{name}` is an algorithm of this program, by `{}`", linked.source);
        return Err(Error::config("config::exists", message).hint(format!("choose another name, such as `my-{name}`")));
    }
    if !PHASES.contains(&phase) {
        let message = format!("there is no template for the phase `{phase}`");
        return Err(Error::config("config::invalid", message).hint(format!("phases: {}", PHASES.join(", "))));
    }
    let mut files = match lang {
        "rust" => rust(phase),
        "c" => c(phase),
        other => return Err(Error::config("config::invalid", format!("there is no template in `{other}`")).hint("languages: c, rust")),
    };
    if dir.exists() {
        return Err(Error::config("config::exists", format!("`{}` is there already", dir.display())).hint("choose another name"));
    }
    let library = if lang == "rust" { built(&name) } else { format!("{name}.so") };
    let words = words(&name, phase, lang, &library);
    let fill = |text: &str| words.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    for (path, text) in [("plugin.toml", MANIFEST), ("run.example.toml", RUN), ("README.md", README)] {
        files.push((path.to_owned(), text.to_owned()));
    }
    for (path, text) in files {
        let path = dir.join(fill(&path));
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create", e))?;
        }
        std::fs::write(&path, fill(&text)).map_err(|e| Error::io(&path, "write", e))?;
    }
    let build = if lang == "rust" { "cargo build --release --offline" } else { "make" };
    say(&format!("`{}` is a {phase} plugin in {lang}", dir.display()));
    let into = shell_word(dir);
    say(&format!("next: cd {into}; {build}; qfw plugin pack . --library {library}; qfw plugin check .; qfw plugin add ."));
    Ok(())
}
