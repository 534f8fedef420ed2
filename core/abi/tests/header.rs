//! The header, its mirror in Rust and `abi.lock` say the same.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use qfw_abi::layout;

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The compiler, or a line that says why the test says nothing.
fn compiler(name: &'static str) -> Option<&'static str> {
    let there = Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        eprintln!("SKIPPED: there is no `{name}` here");
    }
    there.then_some(name)
}

/// A published line never changes; the lock only grows.
#[test]
#[cfg(target_pointer_width = "64")]
fn the_layout_is_the_locked_one() {
    let locked = std::fs::read_to_string(manifest("abi.lock")).unwrap();
    let locked: Vec<&str> = locked.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    let now = layout::text();
    let now: Vec<&str> = now.lines().collect();
    for line in &locked {
        // The size of a struct may grow, by members at its end.
        let grown = |old: &str, new: &str| {
            let ((a, x), (b, y)) = (old.split_once(' ').unwrap(), new.split_once(' ').unwrap());
            a == b && !a.contains('.') && x.parse::<usize>().unwrap() <= y.parse::<usize>().unwrap()
        };
        assert!(now.iter().any(|l| l == line || grown(line, l)), "`{line}` of abi.lock does not hold any more");
    }
    let unlocked: Vec<&&str> = now.iter().filter(|l| !locked.contains(l)).collect();
    assert!(unlocked.is_empty(), "append to abi.lock: {unlocked:?}");
}

/// What the host takes for the smallest that a struct can be is the size that was published.
#[test]
#[cfg(target_pointer_width = "64")]
fn structs_of_the_first_version_can_be_read_for_ever() {
    let locked = std::fs::read_to_string(manifest("abi.lock")).unwrap();
    let first = layout::first_sizes();
    for (name, size) in &first {
        assert!(locked.lines().any(|l| l == format!("{name} {size}")), "`{name}` was not published with {size} bytes");
    }
    assert_eq!(first.len(), 11, "one for each struct that a plugin gives out");
}

#[test]
fn the_header_compiles_without_a_warning_as_c_and_as_cpp() {
    let flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"];
    for (name, language, standard) in [("cc", "c", "-std=c11"), ("c++", "c++", "-std=c++17")] {
        let Some(compiler) = compiler(name) else { continue };
        let mut command = Command::new(compiler);
        let output = command.args(flags).args([standard, "-x", language]).arg(manifest("include/qfw_plugin.h")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A C compiler lays the structs out as the mirror does.
#[test]
fn c_and_rust_agree_on_every_offset() {
    let Some(cc) = compiler("cc") else { return };
    let mut source = "#include \"qfw_plugin.h\"\n".to_owned();
    for l in layout::layouts() {
        source.push_str(&format!("_Static_assert(sizeof({0}) == {1}, \"{0}\");\n", l.name, l.size));
        for (member, offset) in l.members {
            source.push_str(&format!("_Static_assert(offsetof({0}, {member}) == {offset}, \"{0}.{member}\");\n", l.name));
        }
    }
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("offsets.c");
    std::fs::write(&file, source).unwrap();
    let output = Command::new(cc).args(["-std=c11", "-fsyntax-only", "-I"]).arg(manifest("include")).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
