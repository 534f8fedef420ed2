//! Plugins that are wrong in one way each: a clear error that names them, exit code 3, and nothing that looks finished.

use std::path::Path;
use std::process::Command;

use super::errors::refused_with;
use super::plugins::{Home, LOADABLE, compiled, library, loadable, target};
use super::{apply_args, finish};

/// What the misbehaving library declares.
pub(super) const MISBEHAVING: &str = include_str!("../../../tests/plugins/misbehaving/plugin.toml");

/// What the broken library of C is said to hold.
pub(super) const BROKEN: &str = "id = \"org.qfw.broken\"\nversion = \"1.0.0\"\nabi = { major = 1, minor = 0 }\n\
    [[algo]]\nid = \"broken\"\nphase = \"round\"\nsummary = \"breaks\"\nweight-only = true\n";

/// Nothing is left that looks like a result.
#[track_caller]
pub(super) fn unfinished(out: &Path) {
    let left: Vec<_> = std::fs::read_dir(out).into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".qfw"), "{left:?}");
}

#[test]
fn what_a_plugin_returns_is_checked_before_it_is_used() {
    let home = Home::new();
    home.add(&home.package("misbehaving", &library("qfw_test_misbehaving"), MISBEHAVING));
    let named = "plugin `org.qfw.misbehaving` 0.1.0: ";
    let contract = "plugin::contract";
    for (algo, code, says) in [
        ("bad.panic", "plugin::panic", "it panicked: a bug in "),
        ("bad.range", contract, "it returned the code 192 at row 0, column 7; codes here are -8 to 7"),
        ("bad.nan-scale", contract, "it returned the scale NaN for tile 0"),
        ("bad.unstored-scale", contract, "`fit` returns scales that hold"),
        ("bad.nan-weight,rtn", contract, "it returned NaN as number 3 of the weight"),
        ("bad.last-nan,rtn", contract, "it returned NaN as number "),
        ("bad.nan-ranged,rtn", contract, " of the weight to fit ranges to"),
        ("bad.fails", "plugin::failed", "the disk is full"),
        ("bad.event", contract, "it reported an event that is none: unknown variant `no-such-event`"),
        ("bad.zero-factor,rtn", "topology::symmetry", "the factor of channel 0 is 0, not finite and positive"),
        ("bad.negative-factor,rtn", "topology::symmetry", "the factor of channel 0 is -1, not finite and positive"),
        ("bad.nan-factor,rtn", "topology::symmetry", "the factor of channel 0 is NaN, not finite and positive"),
    ] {
        let out = home.path(&algo.replace(',', "-"));
        let ran = home.apply(&out, &format!("--algo {algo} --strict"));
        refused_with(&ran, 3, code, &[named, says, "`blocks.0."]);
        unfinished(&out);
    }
    // One that breaks before the run says so itself, though it declares that it reads no activations.
    let out = home.path("needs");
    refused_with(&home.apply(&out, "--algo bad.needs"), 3, "plugin::panic", &[named, "it panicked: a bug before the run"]);
    // The functions that answer with a word or a number can fail as well, and so can making an instance.
    for (algo, says) in [
        ("bad.suits,rtn", "it panicked: a bug in blocks.0."),
        ("bad.after,rtn --format qfw", "it panicked: a bug before the split"),
        ("bad.stage", "it panicked: a bug in its phase"),
    ] {
        refused_with(&home.apply(&out, &format!("--algo {algo}")), 3, "plugin::panic", &[named, says]);
    }
    // Needs that cannot be, and what is not as it says of itself.
    for (algo, says) in [
        ("bad.rescale", "its `rescale` is 1.5, which is no share of a step"),
        ("bad.tiny", "its `rescale` is 0.0000000"),
        ("bad.scratch", "its `scratch-bytes` are 18446744073709551615, more than any machine has"),
        ("bad.branches", "it asks for a branch, which the phase round has none of"),
        ("bad.silent,rtn --format qfw", "it splits, and its needs have no `branch`"),
        ("bad.reads", "it says that it reads no activations, and asks for statistics of them"),
        ("bad.idle", "it says that it reads activations, and asks for no statistics of them"),
    ] {
        let quoted = format!("`{}`: ", algo.split([',', ' ']).next().unwrap());
        refused_with(&home.apply(&out, &format!("--algo {algo}")), 3, contract, &[named, &quoted, says]);
    }
    refused_with(&home.apply(&out, "--algo bad.hungry"), 2, "plan::budget", &["more than the budget of "]);
    // Statistics for options that ask for them are no lie, and without those options none are asked for.
    let sometimes = |out: &str, more: &str| home.apply(&home.path(out), &format!("--algo bad.sometimes {more}")).ok();
    sometimes("seldom", "");
    sometimes("sometimes", "--set pass.0.options.strength=0.25");
    // Ranges may be chosen by another weight than the one that is rounded.
    home.apply(&home.path("ranged"), "--algo bad.ranged,rtn").ok();
    // An instance that cannot be destroyed has done its work; that is told.
    let ran = home.apply(&home.path("dropped"), "--algo bad.drop").ok();
    assert!(ran.stderr.contains("plugin `org.qfw.misbehaving` 0.1.0: it panicked when it was destroyed: a panic at "), "{}", ran.stderr);
    // What a terminal would act upon is spelled out.
    let ran = home.apply(&out, "--algo bad.escapes --strict");
    refused_with(&ran, 3, "plugin::failed", &[named, "\\u001b[2J\\u009b31mall is well", "hint: \\u001b]0;trust me\\u0007"]);
    assert!(!ran.stderr.contains(['\u{1b}', '\u{9b}']), "{}", ran.stderr);
    std::fs::remove_dir_all(&out).unwrap();
    // A schema that nothing would hold options to.
    let says = ["its schema cannot be held to: what it says of `strength` has `multipleOf`", "QFW_CHECKS_OPTIONS"];
    refused_with(&home.apply(&out, "--algo bad.schema"), 3, "plugin::contract", &says);
    assert!(!out.exists());
    // How far a call is, is told.
    let ran = home.apply(&home.path("good"), "--algo bad.nothing").ok();
    assert!(ran.stderr.contains("plugin `org.qfw.misbehaving` 0.1.0 in `blocks.0."), "{}", ran.stderr);
    assert!(ran.stderr.contains("`: 1/2"), "{}", ran.stderr);
    // Options are checked by the schema, and defaults come from there.
    let option = |set: &str| home.apply(&home.path("never"), &format!("--algo bad.nothing --set {set}"));
    for (set, says, hint) in [
        ("pass.0.options.strenght=1", "unknown field `strenght` (did you mean `strength`?)", "its options: strength"),
        ("pass.0.options.strength=2", "option `strength` of `bad.nothing` is 2", "it must be from 0 to 1"),
    ] {
        refused_with(&option(set), 2, "config::invalid", &[says, hint]);
    }
}

#[test]
fn a_changed_library_is_refused_until_it_is_added_again() {
    let home = Home::new();
    let package = home.package("loadable", &loadable(), LOADABLE);
    home.add(&package);
    home.apply(&home.path("before"), "--algo gptq --set plugins.prefer.gptq=org.qfw.loadable").ok();
    let mut bytes = std::fs::read(package.join("lib.so")).unwrap();
    bytes.push(0);
    std::fs::write(package.join("lib.so"), bytes).unwrap();
    let out = home.path("out");
    let says = ["the library of plugin `org.qfw.loadable` has changed: its hash is ", "run `qfw plugin add "];
    refused_with(&home.apply(&out, "--algo gptq --set plugins.prefer.gptq=org.qfw.loadable"), 3, "plugin::hash", &says);
    let info = home.qfw(&["plugin", "info", "org.qfw.loadable"]).ok().stdout;
    assert!(info.contains("(its library has changed since it was added)"), "{info}");
    // Its manifest does not know it either.
    let again = home.qfw(&["plugin", "add", &package.display().to_string()]);
    refused_with(&again, 3, "plugin::hash", &["the library of plugin `org.qfw.loadable` has the hash ", "and its manifest says "]);
    assert!(!out.exists());
}

#[test]
fn a_manifest_that_says_something_else_than_its_library_is_refused() {
    let home = Home::new();
    let out = home.path("out");
    let other = LOADABLE.replace("\"rtn\"", "\"other.rtn\"");
    for (n, (from, to, says)) in [
        ("\"org.qfw.loadable\"", "\"org.qfw.else\"", "its library says `org.qfw.loadable` 0.1.0, and its manifest `org.qfw.else` 0.1.0"),
        (
            "version = \"0.1.0\"",
            "version = \"0.2.0\"",
            "its library says `org.qfw.loadable` 0.1.0, and its manifest `org.qfw.loadable` 0.2.0",
        ),
        (
            "id = \"other.rtn\"\nphase = \"round\"",
            "id = \"other.rtn\"\nphase = \"round\"",
            "it declares `rtn`, which its manifest does not name",
        ),
        (
            "id = \"qronos\"\nphase = \"round\"",
            "id = \"qronos\"\nphase = \"condition\"",
            "for the phase round, and its manifest for condition",
        ),
        (
            "[[algo]]\nid = \"smoothquant\"\nphase = \"transform\"\nsummary = \"SmoothQuant\"\n",
            "",
            "it declares 10 algorithms, and its manifest 9",
        ),
        ("summary = \"GPTQ\"", "summary = \"GPTQ\"\nweight-only = true", "its manifest says `weight-only = true` of `gptq`"),
    ]
    .into_iter()
    .enumerate()
    {
        // All but the third keep the ids of the library, and are used by one that nothing else offers.
        let manifest = if n == 2 { other.clone() } else { LOADABLE.replace(from, to) };
        let package = home.package(&format!("package-{n}"), &loadable(), &manifest);
        home.add(&package);
        let id = if n == 1 { "org.qfw.loadable" } else { manifest.split('"').nth(1).unwrap() };
        let ran = home.apply(&out, &format!("--algo gptq --set plugins.prefer.gptq={id}"));
        refused_with(&ran, 3, "plugin::contract", &[&format!("plugin `{id}`"), says]);
        home.qfw(&["plugin", "remove", id]).ok();
    }
    assert!(!out.exists());
}

#[test]
fn versions_that_do_not_fit_are_refused_with_both_numbers() {
    let home = Home::new();
    for (abi, says) in [
        ("{ major = 2, minor = 0 }", "is made for version 2.0 of the interface, and this program has 1.0"),
        ("{ major = 1, minor = 9 }", "counts on version 1.9 of the interface, and this program has 1.0"),
    ] {
        let package = home.package("package", &loadable(), &LOADABLE.replace("{ major = 1, minor = 0 }", abi));
        let ran = home.qfw(&["plugin", "add", &package.display().to_string()]);
        refused_with(&ran, 3, "plugin::abi", &["plugin `org.qfw.loadable` ", says]);
    }
    // Not a plugin: a library of the system's own, without the symbol.
    let package = home.package("no-plugin", &library("qfw_test_misbehaving"), LOADABLE);
    home.add(&package);
    let ran = home.apply(&home.path("out"), "--algo gptq --set plugins.prefer.gptq=org.qfw.loadable");
    refused_with(&ran, 3, "plugin::contract", &["its library says `org.qfw.misbehaving`"]);
}

/// The library itself is wrong, whatever its manifest says.
#[test]
fn libraries_are_checked_before_anything_of_them_is_used() {
    let home = Home::new();
    let manifest = BROKEN;
    for (fault, code, says) in [
        ("NEWER_MAJOR", "plugin::abi", "is made for version 2.0 of the interface, and this program has 1.0"),
        ("NEWER_MINOR", "plugin::abi", "counts on version 1.9 of the interface, and this program has 1.0"),
        ("TWICE", "plugin::contract", "it declares 2 algorithms, and its manifest 1"),
        ("NULL_TABLE", "plugin::contract", "its table is missing"),
        ("SMALL_TABLE", "plugin::contract", "its table has 24 bytes, and version 1.0 of the interface wants 64"),
        ("OTHER_ID", "plugin::contract", "its library says `org.qfw.other` 1.0.0, and its manifest `org.qfw.broken` 1.0.0"),
        ("ASKS", "plugin::contract", "has 72 bytes and asks for something at byte 64, which version 1.0 of the interface does not know"),
        ("NO_INSTANCE", "plugin::contract", "its instance is missing"),
        ("NO_FUNCTION", "plugin::contract", "its `qfw.round/1` has no `round`"),
        ("IDLE", "plugin::contract", "its manifest says `weight-only = true` of `broken`, and the library the opposite"),
        ("LIES", "plugin::contract", "it says that `broken` reads no activations, and that it needs statistics of them"),
        ("OVERRUN", "plugin::contract", "it wrote behind the end of its scales"),
        ("OVERRUN_FAILS", "plugin::contract", "it wrote behind the end of its scales"),
        ("OVERRUN_ASKED", "plugin::contract", "it wrote behind the end of the tensor of shape [3, 5] that it had asked for"),
        ("STRANGE_INDEX", "plugin::contract", "its group index is no tensor of `alloc` of type (1, 32), in this call"),
        ("LAST", "plugin::contract", "it returned the scale NaN for tile "),
        ("OTHER_TYPE", "plugin::failed", "it passed a tensor of codes of type (2, 32, 1) to the host; the site's is u8 ["),
        ("OTHER_SHAPE", "plugin::failed", "it passed a tensor of codes of shape ["),
        ("ONE_DIMENSION", "plugin::failed", "it passed a tensor of codes of 1 dimensions to the host"),
        ("OFFSET", "plugin::failed", "it passed a tensor of codes with an offset"),
    ] {
        let built = home.path(&format!("{fault}.so"));
        if !compiled("broken.c", &[&format!("-DFAULT={fault}")], &built) {
            return;
        }
        home.add(&home.package(fault, &built, manifest));
        let out = home.path("out");
        refused_with(&home.apply(&out, "--algo broken --overwrite"), 3, code, &["plugin `org.qfw.broken`", says]);
        unfinished(&out);
    }
    // Larger than this version knows, and without asking for anything: as any other.
    let built = home.path("GROWN.so");
    compiled("broken.c", &["-DFAULT=GROWN"], &built);
    home.add(&home.package("GROWN", &built, manifest));
    home.apply(&home.path("grown"), "--algo broken").ok();
    // The reverse of what LIES does, and a split that does not say how much it splits off.
    for (fault, from, to, algo, says) in [
        ("IDLE", "weight-only = true", "weight-only = false", "broken", "it says that it reads activations, and asks for no statistics"),
        ("NO_PLAN", "\"round\"", "\"split\"", "broken,rtn", "it has no `qfw.plan/1`, which tells the rank of a split's branches"),
    ] {
        let built = home.path(&format!("{fault}.so"));
        compiled("broken.c", &[&format!("-DFAULT={fault}")], &built);
        home.add(&home.package(fault, &built, &manifest.replace(from, to)));
        let out = home.path("out");
        refused_with(&home.apply(&out, &format!("--algo {algo} --overwrite")), 3, "plugin::contract", &["plugin `org.qfw.broken`", says]);
        unfinished(&out);
    }
    // A library of C, but no plugin.
    let empty = home.path("empty.c");
    std::fs::write(&empty, "int something(void) { return 1; }\n").unwrap();
    let built = home.path("empty.so");
    let cc = Command::new("cc").args(["-shared", "-fPIC"]).arg(&empty).arg("-o").arg(&built).status();
    assert!(cc.unwrap().success());
    home.add(&home.package("empty", &built, manifest));
    let out = home.path("out-empty");
    let says = ["plugin `org.qfw.broken`", "there is no symbol `qfw_plugin_entry_v1`", "caused by: "];
    refused_with(&home.apply(&out, "--algo broken"), 3, "plugin::load", &says);
    assert!(!out.exists());
}

/// Number formats are looked at when the library is opened, whatever of it is used.
#[test]
fn formats_are_checked_before_anything_of_a_library_is_used() {
    let home = Home::new();
    let manifest = "id = \"org.qfw.formats\"\nversion = \"1.0.0\"\nabi = { major = 1, minor = 0 }\n\
        [[format]]\nid = \"four\"\nsummary = \"four values\"\n";
    for (fault, says) in [
        ("FALLING", "format `four`: its levels do not rise, or are not finite"),
        ("OTHER_ID", "it declares the format `five`, which its manifest does not name"),
        ("TOO_MANY", "it declares 4000000000 formats, and its manifest 1"),
        ("NO_GRID", "format `four`: its grid is missing"),
        ("NO_LEVELS", "format `four`: its levels are missing, or lie at an odd address"),
    ] {
        let built = home.path(&format!("{fault}.so"));
        if !compiled("formats.c", &[&format!("-DFAULT={fault}")], &built) {
            return;
        }
        home.add(&home.package(fault, &built, manifest));
        let out = home.path("out");
        let ran = home.apply(&out, "--algo rtn --set scheme.weights.format=four --format qfw");
        refused_with(&ran, 3, "plugin::contract", &["plugin `org.qfw.formats`", says]);
        assert!(!out.exists());
    }
    // Without a fault it is a format like any other; the kit tells one that cannot stand for zero.
    let build = |fault: &str| {
        let built = home.path(&format!("{fault}.so"));
        compiled("formats.c", &[&format!("-DFAULT={fault}")], &built);
        home.package(fault, &built, manifest)
    };
    let good = build("RISING");
    home.add(&good);
    home.apply(&home.path("four"), "--algo rtn --set scheme.weights.format=four --format qfw").ok();
    let said = home.qfw(&["plugin", "check", &good.display().to_string()]).ok().stdout;
    for case in ["four.format.grid", "four.format.fixed-point", "four.format.nearest"] {
        assert!(said.lines().any(|l| l.starts_with(case) && l.ends_with(" success")), "{case}: {said}");
    }
    let said = home.qfw(&["plugin", "check", &build("ONE_SIDE").display().to_string(), "--case", "four.format.grid"]).ok().stdout;
    assert!(said.contains("warning: zero is none of its values"), "{said}");
}

/// What others could replace is not loaded.
#[test]
#[cfg(unix)]
fn a_package_that_others_may_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let package = home.package("loadable", &loadable(), LOADABLE);
    for (what, mode, who) in
        [("", 0o777, "anybody"), ("", 0o775, "its group"), ("lib.so", 0o664, "its group"), ("plugin.toml", 0o646, "anybody")]
    {
        let path = if what.is_empty() { package.clone() } else { package.join(what) };
        let before = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let ran = home.qfw(&["plugin", "add", &package.display().to_string()]);
        let says = [format!("{who} may write to `{}` of plugin `org.qfw.loadable`", path.canonicalize().unwrap().display())];
        refused_with(&ran, 3, "plugin::permissions", &[&says[0], "chmod go-w '"]);
        std::fs::set_permissions(&path, before).unwrap();
    }
    home.add(&package);
}

/// A plugin that breaks when it is asked what it is.
#[test]
fn a_panic_in_a_description_is_an_error_of_the_plugin() {
    let home = Home::new();
    home.add(&home.package("misbehaving", &library("qfw_test_misbehaving"), MISBEHAVING));
    let out = home.path("out");
    let mut command = home.command(&apply_args("tiny-llama", &out, "--algo bad.nothing"));
    let ran = finish(command.env("QFW_TEST_DESCRIPTOR", "1"));
    let says = ["plugin `org.qfw.misbehaving` 0.1.0: it panicked: a bug in the description of bad.nothing at "];
    refused_with(&ran, 3, "plugin::panic", &says);
    assert!(!out.exists());
}

#[test]
fn no_library_for_this_machine_is_told() {
    let home = Home::new();
    let package = home.package("loadable", &loadable(), LOADABLE);
    let text = std::fs::read_to_string(package.join("plugin.toml")).unwrap();
    std::fs::write(package.join("plugin.toml"), text.replace(&qfw_loader::target(), "pdp11-dec-unix")).unwrap();
    let ran = home.qfw(&["plugin", "add", &package.display().to_string()]);
    let says = format!("plugin `org.qfw.loadable` has no library for {}", qfw_loader::target());
    refused_with(&ran, 3, "plugin::target", &[&says, "it has one for: pdp11-dec-unix"]);
    // One that was never packed.
    std::fs::write(package.join("plugin.toml"), LOADABLE).unwrap();
    for command in ["add", "check"] {
        let ran = home.qfw(&["plugin", command, &package.display().to_string()]);
        refused_with(&ran, 3, "plugin::target", &[&says, "hint: build it, and write the library into its manifest with `qfw plugin pack"]);
    }
    assert!(finish(&mut home.command(&["list-plugins"])).stdout.contains("gptq"));
    assert!(target("a", "b").contains("file = \"a\""));
}
