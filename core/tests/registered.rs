//! What a crate registers is found by every program that links it, and by no registry that was built by hand.

#![allow(clippy::unwrap_used, reason = "tests")]

use qfw_core::algorithm::{AlgorithmRecord, Phase};
use qfw_core::checkpoint::ContainerRecord;
use qfw_core::error::Error;
use qfw_core::format::FormatRecord;
use qfw_core::granularity::GranularityRecord;
use qfw_core::model::ArchitectureRecord;
use qfw_core::observer::ObserverRecord;
use qfw_core::registry::Registry;
use qfw_core::{register_algorithm, register_architecture, register_container, register_format, register_granularity, register_observer};

const SOURCE: &str = "third-party";
const VERSION: &str = "1.2.3";
const SUMMARY: &str = "a record of a third party";

const fn algorithm(id: &'static str) -> AlgorithmRecord {
    AlgorithmRecord {
        id,
        aliases: &[],
        phase: Phase::Round,
        summary: SUMMARY,
        version: VERSION,
        source: SOURCE,
        weight_only: true,
        schema: || serde_json::json!({}),
        build: |_| Err(Error::internal("not built here")),
    }
}

// Several at once.
register_algorithm!(algorithm("third.algorithm"), algorithm("third.other"));
register_format!(FormatRecord { id: "third.format", summary: SUMMARY, version: VERSION, source: SOURCE, find: |_| None });
register_granularity!(GranularityRecord {
    id: "third.granularity",
    summary: SUMMARY,
    version: VERSION,
    source: SOURCE,
    tiles: qfw_core::granularity::BUILTIN[0].tiles,
});
register_observer!(ObserverRecord {
    id: "third.observer",
    summary: SUMMARY,
    version: VERSION,
    source: SOURCE,
    schema: qfw_core::observer::BUILTIN[0].schema,
    build: qfw_core::observer::BUILTIN[0].build,
});
register_container!(ContainerRecord {
    id: "third.container",
    summary: SUMMARY,
    version: VERSION,
    source: SOURCE,
    container: qfw_core::checkpoint::BUILTIN[0].container,
});
register_architecture!(ArchitectureRecord {
    id: "third.architecture",
    summary: SUMMARY,
    version: VERSION,
    source: SOURCE,
    architecture: qfw_core::model::BUILTIN[0].architecture,
});

#[test]
fn every_kind_is_found_by_the_linked_registry_alone() {
    let ours = |registry: &Registry| -> Vec<(&'static str, &'static str)> {
        registry.list().into_iter().filter(|l| l.source == SOURCE).map(|l| (l.kind, l.id)).collect()
    };
    let expected = [
        ("algorithm", "third.algorithm"),
        ("algorithm", "third.other"),
        ("architecture", "third.architecture"),
        ("format", "third.format"),
        ("granularity", "third.granularity"),
        ("observer", "third.observer"),
        ("output-format", "third.container"),
    ];
    assert_eq!(ours(&Registry::linked().unwrap()), expected);
    assert_eq!(ours(&Registry::builtin().unwrap()), []);
}

#[test]
fn an_id_that_is_taken_names_both_sources() {
    const TWICE: AlgorithmRecord = AlgorithmRecord { source: "another", ..algorithm("third.algorithm") };
    let e = Registry::linked().unwrap().add_algorithm(&TWICE).unwrap_err();
    assert_eq!(e.code(), "plugin::duplicate");
    assert_eq!(e.to_string(), "algorithm `third.algorithm` is registered twice: by `third-party` and by `another`");
}

#[test]
fn an_id_that_is_nearly_right_is_pointed_out() {
    let e = Registry::linked().unwrap().build_algorithm("third.algoritm", &serde_json::json!({})).map(|_| ()).unwrap_err();
    assert_eq!(e.to_string(), "unknown algorithm `third.algoritm` (did you mean `third.algorithm`?)");
    assert_eq!(e.hint_text(), Some("known algorithms: third.algorithm, third.other"));
}
