//! What the pages say is checked: links lead somewhere, and examples are accepted by the program they describe.

use std::path::Path;

use qfw_core::plan::layer::Layers;
use qfw_tests::workspace;

/// The project's pages, relative to the root, with their text.
fn pages() -> Vec<(std::path::PathBuf, String)> {
    let root = workspace::root();
    let files = workspace::files(&root).expect("the workspace can be listed");
    let pages = files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "md"));
    pages.map(|path| (path.clone(), std::fs::read_to_string(root.join(&path)).expect("a page is UTF-8"))).collect()
}

/// Contents of the fenced blocks of a language.
fn fenced(text: &str, language: &str) -> Vec<String> {
    let open = format!("```{language}\n");
    text.split(open.as_str()).skip(1).filter_map(|rest| rest.split("\n```").next().map(str::to_owned)).collect()
}

#[test]
fn links_between_pages_lead_somewhere() {
    let root = workspace::root();
    let mut broken = Vec::new();
    for (page, text) in pages() {
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for target in targets.filter(|target| !target.is_empty() && !target.contains("://")) {
            if !root.join(page.parent().unwrap_or(Path::new(""))).join(target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links to nothing:\n  {}", broken.join("\n  "));
}

#[test]
fn the_readme_s_configuration_is_accepted() {
    let readme = std::fs::read_to_string(workspace::root().join("README.md")).expect("the readme can be read");
    let examples = fenced(&readme, "toml");
    assert_eq!(examples.len(), 1, "one whole run.toml is shown");
    let (run, notes) = Layers::new().file("README.md", &examples[0]).finish().expect("the example parses");
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!((run.overrides.len(), run.passes.len()), (1, 1));
}

#[test]
fn the_readme_s_presets_and_settings_are_accepted() {
    let readme = std::fs::read_to_string(workspace::root().join("README.md")).expect("the readme can be read");
    let word_after = |flag: &str| -> Vec<String> {
        let words: Vec<&str> = readme.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == flag).map(|pair| pair[1].to_owned()).collect()
    };
    let (presets, settings) = (word_after("--preset"), word_after("--set"));
    assert!(presets.len() >= 3 && settings.len() >= 2, "the readme shows presets and settings");
    for preset in &presets {
        let layers = Layers::new().preset(preset).set("model.path", "MODEL", "MODEL");
        let layers = settings.iter().fold(layers, |layers, setting| layers.override_set(setting));
        layers.finish().unwrap_or_else(|e| panic!("preset `{preset}` with {settings:?}: {e:?}"));
    }
}

/// The page of what engines load says what the rules say.
#[test]
fn the_page_of_targets_is_made_from_the_rules() {
    let page = std::fs::read_to_string(workspace::root().join("docs/targets.md")).expect("the page is there");
    let rules = qfw_core::target::page().expect("the rules parse");
    assert!(page == rules, "`docs/targets.md` is not what the rules say; `cargo xtask targets` writes it");
}
