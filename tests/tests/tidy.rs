//! The repository's rules as tests: what `docs/ARCHITECTURE.md` says in bold and a machine can see.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use qfw_tests::features::Features;
use qfw_tests::workspace;

/// Longest Rust file allowed; half of it is what we aim at.
const LINES: usize = 600;

/// A file's path relative to the root, and its text.
struct Source {
    path: PathBuf,
    text: String,
}

/// Every text file of the project that `keep` selects by its path (with `/` separators).
fn sources(keep: impl Fn(&str) -> bool) -> Vec<Source> {
    let root = workspace::root();
    let files = workspace::files(&root).expect("the workspace can be listed");
    let chosen = files.into_iter().filter(|path| keep(&path.to_string_lossy()));
    // Files that are not UTF-8 are data.
    chosen.filter_map(|path| std::fs::read_to_string(root.join(&path)).ok().map(|text| Source { path, text })).collect()
}

fn is_core_source(path: &str) -> bool {
    path.starts_with("core/src/") && path.ends_with(".rs")
}

/// Whether a whole file is test code: `tests.rs`, `…_tests.rs`, or below a folder of such a name.
fn is_test_file(path: &Path) -> bool {
    path.iter().any(|part| {
        let name = part.to_string_lossy();
        let stem = name.strip_suffix(".rs").unwrap_or(&name);
        stem == "tests" || stem.ends_with("_tests")
    })
}

/// Numbered lines that ship: without comments, and without items under `#[cfg(test)]`, wherever in the file they are.
///
/// It leans on rustfmt: an item ends at the first line of its own indentation that closes a brace.
fn shipped(text: &str) -> Vec<(usize, &str)> {
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    let mut kept = Vec::new();
    while let Some((number, line)) = lines.next() {
        let code = line.trim_start();
        if code == "#[cfg(test)]" {
            let indent = &line[..line.len() - code.len()];
            let item = lines.by_ref().map(|(_, line)| line).find(|line| !line.trim_start().starts_with("#["));
            if item.is_some_and(|item| !item.ends_with([';', '}'])) {
                let closes = |line: &str| line.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest == "};");
                lines.by_ref().find(|(_, line)| closes(line));
            }
        } else if !code.starts_with("//") {
            kept.push((number, line));
        }
    }
    kept
}

/// Fails with every offence, so that one run shows all.
fn nothing(offences: &[String], rule: &str) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

/// Shipped lines of core that `offends` objects to, as `path:line: text`.
fn offending_core_lines(offends: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources(is_core_source).iter().filter(|source| !is_test_file(&source.path)) {
        let lines = shipped(&source.text).into_iter().filter(|(_, line)| offends(line));
        found.extend(lines.map(|(number, line)| format!("{}:{number}: {}", source.path.display(), line.trim())));
    }
    found
}

/// Folders of `plugins/` that hold a crate.
fn plugins() -> Vec<PathBuf> {
    let folder = workspace::root().join("plugins");
    let entries = std::fs::read_dir(folder).expect("`plugins` can be listed");
    let mut plugins: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|e| e.path())).filter(|path| path.join("Cargo.toml").is_file()).collect();
    plugins.sort();
    assert!(!plugins.is_empty(), "no plugin crate found");
    plugins
}

/// Every dependency of a manifest: to run, to test and to build, on any platform.
fn dependencies(manifest: &toml::Table) -> Vec<(&str, &toml::Value)> {
    let platforms = manifest.get("target").and_then(toml::Value::as_table);
    let tables = platforms.into_iter().flat_map(|t| t.values()).filter_map(toml::Value::as_table).chain([manifest]);
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let lists = tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
    lists.flatten().map(|(key, value)| (key.as_str(), value)).collect()
}

fn folder_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[test]
fn file_names_say_what_is_inside() {
    let vague = |path: &str| {
        ["utils.rs", "util.rs", "common.rs", "types.rs", "helpers.rs", "misc.rs"].contains(&path.rsplit('/').next().unwrap_or(path))
    };
    let found: Vec<String> = sources(vague).iter().map(|source| source.path.display().to_string()).collect();
    nothing(&found, "a file is named after its one idea");
}

#[test]
fn rust_files_stay_short() {
    let files = sources(|path| path.ends_with(".rs"));
    assert!(files.len() > 20, "the scan finds the sources");
    let long = files.iter().map(|source| (source, source.text.lines().count())).filter(|(_, lines)| *lines > LINES);
    let found: Vec<String> = long.map(|(source, lines)| format!("{}: {lines} lines", source.path.display())).collect();
    nothing(&found, "a Rust file has at most 600 lines; split it by idea");
}

#[test]
fn every_plugin_has_a_readme() {
    let bare = plugins().into_iter().filter(|plugin| !plugin.join("README.md").is_file());
    let found: Vec<String> = bare.map(|plugin| folder_name(&plugin)).collect();
    nothing(&found, "a crate under `plugins/` has a README.md");
}

#[test]
fn plugins_depend_on_core_only() {
    let manifest = |path: &Path| -> toml::Table {
        let text = std::fs::read_to_string(path.join("Cargo.toml")).expect("a manifest can be read");
        text.parse().expect("a manifest is TOML")
    };
    let root = manifest(&workspace::root());
    let shared = root.get("workspace").and_then(|w| w.get("dependencies")).and_then(toml::Value::as_table).expect("shared dependencies");
    let ours: BTreeSet<&str> = shared.iter().filter(|(_, value)| value.get("path").is_some()).map(|(name, _)| name.as_str()).collect();
    assert!(ours.contains("qfw-core"), "the shared dependencies name core");

    let mut found = Vec::new();
    for plugin in plugins() {
        let table = manifest(&plugin);
        for (key, value) in dependencies(&table) {
            let name = value.get("package").and_then(toml::Value::as_str).unwrap_or(key);
            let local = ours.contains(name) || value.get("path").is_some();
            if local && name != "qfw-core" {
                found.push(format!("{} depends on {name}", folder_name(&plugin)));
            }
        }
        if table.get("dependencies").and_then(|d| d.get("qfw-core")).is_none() {
            found.push(format!("{} does not depend on qfw-core", folder_name(&plugin)));
        }
    }
    nothing(&found, "of this workspace a plugin depends on qfw-core and nothing else");
}

/// Lines of core that may hold an algorithm's id in quotes: file, what stands on the line, and why it is no algorithm there.
const NOT_AN_ALGORITHM: [(&str, &str, &str); 2] = [
    ("core/src/evaluate/perplexity.rs", "(\"gptq\", Self::Gptq)", "a protocol of perplexity, named after the paper that set it"),
    ("core/src/plan/section.rs", "protocol: \"gptq\"", "that protocol as the default"),
];

#[test]
fn core_knows_no_algorithm() {
    let ids: Vec<String> = plugins().iter().map(|path| folder_name(path)).filter(|name| !name.starts_with("export-")).collect();
    let mut found = offending_core_lines(|line| ids.iter().any(|id| line.contains(&format!("\"{id}\""))));
    for (file, text, why) in NOT_AN_ALGORITHM {
        let before = found.len();
        found.retain(|offence| !(offence.starts_with(&format!("{file}:")) && offence.contains(text)));
        assert!(found.len() < before, "no line of `{file}` holds `{text}` ({why}); drop the exception");
    }
    nothing(&found, "core names no algorithm; what it needs to know of one is declared");
}

#[test]
fn core_is_silent_and_stays_in_its_process() {
    // Paths without a parenthesis, so that importing the name is seen too.
    let loud = [
        "println!",
        "eprintln!",
        "print!(",
        "eprint!(",
        "dbg!(",
        "io::stdout",
        "io::stderr",
        "env::var",
        "env::{",
        "process::exit",
        "process::abort",
        "process::{",
    ];
    let found = offending_core_lines(|line| loud.iter().any(|call| line.contains(call)));
    nothing(&found, "core does not print, exit or read environment variables; the program around it does");
}

#[test]
fn no_file_names_a_machine_path() {
    // Split, so that this file does not find itself.
    let private = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!(":\\Us", "ers\\"),
        concat!(".libr", "ary/"),
    ];
    // A folder of that name inside a longer path or address is no offence.
    let at_the_start = |text: &str, at: usize| {
        let before = text[..at].chars().next_back();
        // A drive's letter does come before its colon.
        text[at..].starts_with(':') || before.is_none_or(|c| !c.is_alphanumeric() && !"_-.}".contains(c))
    };
    let mut found = Vec::new();
    for source in sources(|_| true) {
        for (number, line) in source.text.lines().enumerate() {
            let hit = private.iter().any(|path| line.match_indices(path).any(|(at, _)| at_the_start(line, at)));
            if hit {
                found.push(format!("{}:{}", source.path.display(), number + 1));
            }
        }
    }
    nothing(&found, "a path of somebody's machine has no place in the project");
}

#[test]
fn the_feature_list_holds() {
    let root = workspace::root();
    let problems = Features::read(&root).expect("the list parses").problems(&root);
    nothing(&problems, "`tests/features.toml` claims what is there");
}

#[test]
fn only_shipped_lines_are_scanned() {
    let text = "a\n#[cfg(test)]\n#[path = \"x.rs\"]\nmod x;\nb\n    #[cfg(test)]\n    fn f(\n    ) {\n        }\n    }\n// c\n#[cfg(test)]\nmod y {\n    z\n}\nd\n";
    assert_eq!(shipped(text), [(1, "a"), (5, "b"), (16, "d")]);
}
