//! Where plugins are looked for, and that looking for them runs none of their code.

use std::path::{Path, PathBuf};

use super::errors::refused_with;
use super::plugins::{Home, IN_C, LOADABLE, compiled, loadable};
use super::{Ran, apply_args, args, asset, finish};

impl Home {
    /// The program with these arguments and variables of its environment.
    fn within(&self, variables: &[(&str, &Path)], words: &[&str]) -> Ran {
        let mut command = self.command(words);
        command.envs(variables.iter().copied());
        finish(&mut command)
    }

    /// A package whose library cannot be opened: whatever opens it fails.
    fn sealed(&self, name: &str, manifest: &str) -> PathBuf {
        std::fs::write(self.path("sealed"), b"this is no library").unwrap();
        self.package(name, &self.path("sealed"), manifest)
    }
}

/// A manifest that offers one algorithm.
fn offering(id: &str, version: &str, algo: &str) -> String {
    format!(
        "id = \"{id}\"\nversion = \"{version}\"\nabi = {{ major = 1, minor = 0 }}\n\
         [[algo]]\nid = \"{algo}\"\nphase = \"round\"\nsummary = \"of {version}\"\nweight-only = true\n"
    )
}

/// Whoever opens this library leaves a mark; only a run that uses it does.
#[test]
fn a_library_is_opened_by_what_uses_it_and_by_nothing_else() {
    let home = Home::new();
    if !compiled("telling.c", &[], &home.path("telling.so")) {
        return;
    }
    let package = home.package("telling", &home.path("telling.so"), IN_C).display().to_string();
    let (mark, model) = (home.path("mark"), asset("tiny-llama"));
    let marked = |words: &[&str]| {
        home.within(&[("QFW_TEST_MARK", &mark)], words).ok();
        mark.exists()
    };
    let plan = ["plan", &model, "--set", "scheme.weights.format=int4", "--algo"];
    let quiet: [&[&str]; 8] = [
        &["plugin", "info", &package],
        &["plugin", "add", &package],
        &["plugin", "add", &package],
        &["plugin", "info", "org.qfw.in-c", "--json"],
        &["list-plugins"],
        &["list-plugins", "--json", "--kind", "format"],
        &["schema"],
        &[&plan[..], &["rtn"]].concat(),
    ];
    for words in quiet {
        assert!(!marked(words), "{words:?} opens the library");
    }
    assert!(marked(&[&plan[..], &["c.nearest"]].concat()), "a plan that uses it does");
    std::fs::remove_file(&mark).unwrap();
    assert!(!marked(&["plugin", "remove", "org.qfw.in-c"]), "removing does not");
}

/// The user's directory, by either variable; and nothing of it with `--no-dynamic-plugins`.
#[test]
fn the_user_s_directory_is_looked_at() {
    let home = Home::new();
    home.sealed(".local/share/qfw/plugins/one", &offering("org.qfw.one", "0.1.0", "one.algo"));
    home.sealed("data/qfw/plugins/two", &offering("org.qfw.two", "0.1.0", "two.algo"));
    home.sealed("data/qfw/plugins/with blanks", &offering("org.qfw.three", "0.1.0", "three.algo"));
    let data = home.path("data");
    let listed = |variables: &[(&str, &Path)], words: &[&str]| -> Vec<String> {
        let all = home.within(variables, &[&["list-plugins", "--json"], words].concat()).json();
        let ids = all.as_array().unwrap().iter().filter_map(|l| l["id"].as_str());
        ids.filter(|id| id.ends_with(".algo")).map(str::to_owned).collect()
    };
    assert_eq!(listed(&[], &[]), ["one.algo"]);
    assert_eq!(listed(&[("XDG_DATA_HOME", &data)], &[]), ["three.algo", "two.algo"]);
    // A relative one is none, and neither is an empty one.
    assert_eq!(listed(&[("XDG_DATA_HOME", Path::new("data"))], &[]), ["one.algo"]);
    assert_eq!(listed(&[("XDG_DATA_HOME", Path::new(""))], &[]), ["one.algo"]);
    assert_eq!(listed(&[], &["--no-dynamic-plugins"]), [""; 0]);
    let mut run = home.command(&apply_args("tiny-llama", &home.path("out"), "--algo two.algo"));
    let ran = finish(run.env("XDG_DATA_HOME", &data));
    refused_with(&ran, 3, "plugin::not-added", &["plugin `org.qfw.two` lies in", "/qfw/plugins/two'"]);
    let mut run = home.command(&apply_args("tiny-llama", &home.path("out"), "--algo two.algo --no-dynamic-plugins"));
    refused_with(&finish(run.env("XDG_DATA_HOME", &data)), 2, "registry::unknown", &["unknown algorithm `two.algo`"]);
}

/// Entries of the variable may be packages, hold packages, be links, or not be there; each is read in order.
#[test]
fn the_search_path_is_read_in_order() {
    let home = Home::new();
    let first = home.sealed("first", &offering("org.qfw.one", "0.1.0", "one.algo"));
    home.sealed("second/newer", &offering("org.qfw.one", "0.2.0", "one.algo"));
    home.sealed("second/broken", "id = \"org.qfw.broken\"\nverion = \"1\"\n");
    let path = std::env::join_paths([&first, &home.path("second"), &home.path("nowhere")]).unwrap();
    let ran = home.within(&[("QFW_PLUGIN_PATH", Path::new(&path))], &["list-plugins"]).ok();
    assert!(ran.stdout.contains("of 0.1.0") && !ran.stdout.contains("of 0.2.0"), "{}", ran.stdout);
    // What is not listed is told, with the reason.
    for part in ["plugin `org.qfw.one` 0.2.0 in `", "0.1.0 in `", "comes first", "unknown field `verion`"] {
        assert!(ran.stderr.contains(part), "`{part}` is not in {}", ran.stderr);
    }
    // What cannot be looked into is told as well.
    let file = home.path("sealed");
    let ran = home.within(&[("QFW_PLUGIN_PATH", &file)], &["list-plugins"]).ok();
    assert!(ran.stderr.contains("cannot look for plugins in `") && ran.stderr.contains("/sealed`"), "{}", ran.stderr);
    // The same package twice is no news.
    let path = std::env::join_paths([&first, &first]).unwrap();
    assert_eq!(home.within(&[("QFW_PLUGIN_PATH", Path::new(&path))], &["list-plugins"]).ok().stderr, "");
    #[cfg(unix)]
    {
        let link = home.path("link");
        std::os::unix::fs::symlink(&first, &link).unwrap();
        let ran = home.within(&[("QFW_PLUGIN_PATH", &link)], &["plugin", "info", "org.qfw.one"]).ok();
        assert!(ran.stdout.contains("org.qfw.one 0.1.0  (not added)"), "{}", ran.stdout);
        // Added by the link, it is known by the directory behind it.
        home.qfw(&["plugin", "add", &link.display().to_string()]).ok();
        for name in [link.display().to_string(), first.display().to_string(), "org.qfw.one".to_owned()] {
            assert!(home.qfw(&["plugin", "info", &name]).ok().stdout.contains("org.qfw.one 0.1.0  (added)"), "{name}");
        }
    }
}

/// One that was added comes before one that lies about, and a second of its id takes its place when it is added.
#[test]
fn the_version_that_was_added_is_the_one() {
    let home = Home::new();
    let old = home.sealed("old", &offering("org.qfw.one", "0.1.0", "one.algo"));
    let new = home.sealed("new", &offering("org.qfw.one", "0.2.0", "one.algo"));
    home.add(&old);
    let listed = |home: &Home| home.within(&[("QFW_PLUGIN_PATH", &new)], &["list-plugins"]).ok().stdout;
    assert!(listed(&home).contains("of 0.1.0"));
    let said = home.qfw(&["plugin", "add", &new.display().to_string()]).ok().stdout;
    assert!(said.contains("`org.qfw.one` was in `") && said.contains("that is not loaded any more"), "{said}");
    assert!(listed(&home).contains("of 0.2.0"));
    home.qfw(&["plugin", "remove", "org.qfw.one"]).ok();
    refused_with(
        &home.qfw(&["plugin", "remove", "org.qfw.one"]),
        2,
        "plugin::unknown",
        &["no plugin `org.qfw.one` was added", "added: none"],
    );
}

/// What merely lies about takes nothing away: neither an algorithm, nor an alias, nor a number format.
#[test]
fn a_name_that_is_taken_is_passed_over_until_the_plugin_is_added() {
    let home = Home::new();
    let formats = IN_C.replace("\"seven\"", "\"int4\"");
    let package = home.sealed("formats", &formats);
    let rtn = apply_args("tiny-llama", &home.path("out"), "--algo rtn");
    let mut run = home.command(&rtn);
    finish(run.env("QFW_PLUGIN_PATH", &package)).ok();
    home.add(&package);
    // Only who uses it is asked, and may choose; who lists sees that it is offered twice.
    let says = [
        "number format `int4` is offered twice: by `qfw-core` and by `org.qfw.in-c`",
        "choose with `--set plugins.prefer.int4=qfw-core` or `--set plugins.prefer.int4=org.qfw.in-c`, or run `qfw plugin remove org.qfw.in-c`",
    ];
    refused_with(&home.apply(&home.path("never"), "--algo rtn"), 3, "plugin::duplicate", &says);
    home.apply(&home.path("other"), "--algo rtn --set scheme.weights.format=int8").ok();
    home.apply(&home.path("linked"), "--algo rtn --set plugins.prefer.int4=qfw-core").ok();
    let ran = home.apply(&home.path("theirs"), "--algo rtn --set plugins.prefer.int4=org.qfw.in-c");
    refused_with(&ran, 3, "plugin::load", &["plugin `org.qfw.in-c`: there is no library that can be loaded"]);
    let ran = home.apply(&home.path("nobody"), "--algo rtn --set plugins.prefer.int4=org.nobody");
    refused_with(&ran, 3, "plugin::required", &["takes `int4` from `org.nobody`", "it is offered by: qfw-core, org.qfw.in-c"]);
    let listed = home.qfw(&["list-plugins", "--json", "--kind", "format"]).json();
    let line = listed.as_array().unwrap().iter().find(|l| l["id"] == "int4").unwrap().clone();
    assert_eq!(line["source"], "qfw-core or org.qfw.in-c");
    home.qfw(&["inspect", &asset("tiny-llama")]).ok();
    home.qfw(&["plugin", "remove", "org.qfw.in-c"]).ok();
    home.apply(&home.path("after"), "--algo rtn").ok();
    // The name of a family is no format's, and the family stays.
    home.add(&home.sealed("family", &IN_C.replace("\"seven\"", "\"intN\"")));
    let ran = home.apply(&home.path("family-out"), "--algo rtn").ok();
    assert!(ran.stderr.contains("plugin `org.qfw.in-c` names a number format `intN`, as a family of formats is named"), "{}", ran.stderr);
}

/// An id that is another's alias is in question; what the alias stands for is not.
#[test]
fn a_plugin_named_like_an_alias_leaves_the_canonical_id_alone() {
    let home = Home::new();
    home.add(&home.sealed("alias", &offering("org.qfw.alias", "0.1.0", "cle").replace("\"round\"", "\"transform\"")));
    let plan = |algo: &str, more: &str| {
        home.qfw(&args(&format!("plan --algo {algo},rtn --set scheme.weights.format=int4 {more}"), &[&asset("tiny-llama")]))
    };
    plan("weight-equalization", "").ok();
    plan("cross-layer-equalization", "").ok();
    let says = [
        "algorithm `cle` is offered twice: by `qfw-weight-equalization` and by `org.qfw.alias`",
        "choose with `--set plugins.prefer.cle=qfw-weight-equalization` or `--set plugins.prefer.cle=org.qfw.alias`, \
         or run `qfw plugin remove org.qfw.alias`",
    ];
    refused_with(&plan("cle", ""), 3, "plugin::duplicate", &says);
    plan("cle", "--set plugins.prefer.cle=qfw-weight-equalization").ok();
}

/// The line of a hint can be pasted, also where the id has dots.
#[test]
fn three_that_offer_the_same_are_all_named() {
    let home = Home::new();
    for name in ["one", "two", "three"] {
        home.add(&home.sealed(name, &offering(&format!("org.{name}.x"), "0.1.0", "vendor.algo")));
    }
    let plan = |more: &[&str]| {
        let words = ["plan", "--algo", "vendor.algo", "--set", "scheme.weights.format=int4"];
        home.qfw(&[&words, more, &[&asset("tiny-llama")]].concat())
    };
    let says = [
        "algorithm `vendor.algo` is offered 3 times: by `org.one.x` and by `org.three.x` and by `org.two.x`",
        "choose with `--set 'plugins.prefer.\"vendor.algo\"=org.one.x'` or `--set 'plugins.prefer.\"vendor.algo\"=org.three.x'` or ",
    ];
    refused_with(&plan(&[]), 3, "plugin::duplicate", &says);
    let chosen = plan(&["--set", "plugins.prefer.\"vendor.algo\"=org.two.x"]);
    refused_with(&chosen, 3, "plugin::load", &["plugin `org.two.x`: there is no library that can be loaded", "caused by: "]);
}

/// A requirement is met by what may be loaded, not by what lies about.
#[test]
fn a_required_plugin_has_to_be_added() {
    let home = Home::new();
    let package = home.package("loadable", &loadable(), &LOADABLE.replace("\"rtn\"", "\"other.rtn\""));
    let mut run = home.command(&args(
        "plan --algo gptq --set scheme.weights.format=int4 --set calibration.samples=4 --set calibration.seq-len=32 --data",
        &[&asset("text/calibration.txt"), "--set", "plugins.require.\"org.qfw.loadable\"=\">=0.1\"", &asset("tiny-llama")],
    ));
    let says = ["plugin `org.qfw.loadable` is required; it lies in `", "but was not added", "run `qfw plugin add '"];
    refused_with(&finish(run.env("QFW_PLUGIN_PATH", &package)), 3, "plugin::required", &says);
    finish(run.arg("--allow-unpinned").arg("--set").arg("plugins.prefer.gptq=qfw-gptq")).ok();
}

/// What lies where a package should be, and is none; each is an error that says so, and nothing is waited for.
#[test]
#[cfg(unix)]
fn what_is_no_package_is_told() {
    let home = Home::new();
    let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    let add = |dir: &Path| home.qfw(&["plugin", "add", &dir.display().to_string()]);
    let package = home.sealed("one", &offering("org.qfw.one", "0.1.0", "one.algo"));
    std::fs::remove_file(package.join("lib.so")).unwrap();
    pipe(&package.join("lib.so"));
    refused_with(&add(&package), 3, "plugin::missing", &["/lib.so` is no file"]);
    std::fs::remove_file(package.join("plugin.toml")).unwrap();
    let says = ["is no package: there is no file `plugin.toml` in it"];
    refused_with(&add(&package), 3, "plugin::manifest", &says);
    pipe(&package.join("plugin.toml"));
    refused_with(&add(&package), 3, "plugin::manifest", &says);
    let ran = home.within(&[("QFW_PLUGIN_PATH", &package)], &["list-plugins"]).ok();
    assert!(!ran.stdout.contains("one.algo"), "{}", ran.stdout);
    for (id, why) in [("--help", "begins with `-`"), ("a b", "is not made of letters"), ("a..b", "is not made of letters")] {
        let odd = home.sealed("odd", &offering("org.qfw.odd", "0.1.0", id));
        refused_with(&add(&odd), 3, "plugin::manifest", &[&format!("the algorithm id `{id}`"), why]);
    }
}

/// A list that cannot be read is told to everybody, and in the way of nobody who uses no plugins; it is not written over.
#[test]
fn a_list_that_cannot_be_read_leaves_plugins_out() {
    let home = Home::new();
    let package = home.sealed("one", &offering("org.qfw.one", "0.1.0", "one.algo"));
    home.add(&package);
    let list = home.path(".config/qfw/plugins.toml");
    std::fs::write(&list, "garbage = [").unwrap();
    let ran = home.apply(&home.path("rtn"), "--algo rtn").ok();
    for part in ["note: a plugin is left out: `", "plugins.toml` cannot be read: TOML parse error", "repair it, or remove it"] {
        assert!(ran.stderr.contains(part), "`{part}` is not in {}", ran.stderr);
    }
    refused_with(&home.apply(&home.path("one-out"), "--algo one.algo"), 2, "registry::unknown", &["a plugin is left out"]);
    refused_with(&home.qfw(&["plugin", "add", &package.display().to_string()]), 3, "plugin::list", &["cannot be read"]);
    assert_eq!(std::fs::read_to_string(&list).unwrap(), "garbage = [");
}

/// What cannot be written says so, and changes nothing.
#[test]
#[cfg(unix)]
fn a_list_that_cannot_be_written_is_an_error() {
    let home = Home::new();
    let package = home.sealed("one", &offering("org.qfw.one", "0.1.0", "one.algo"));
    // A file where the directory of the list should be: even the system's own user cannot write there.
    std::fs::write(home.path(".config"), b"").unwrap();
    let ran = home.qfw(&["plugin", "add", &package.display().to_string()]);
    refused_with(&ran, 1, "io", &[".config/qfw"]);
    assert!(!home.qfw(&["list-plugins"]).stdout.contains("one.algo"));
}
