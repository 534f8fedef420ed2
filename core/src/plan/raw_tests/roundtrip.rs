//! What is printed reads back as the same run, and the JSON Schema describes what is printed.

use std::num::{NonZeroU32, NonZeroUsize};

use proptest::prelude::*;

use super::super::raw::*;
use super::run;

fn name() -> impl Strategy<Value = String> {
    "[a-z\"\\\\.= \n\u{e9}]{0,6}"
}

fn table() -> impl Strategy<Value = toml::Table> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(toml::Value::Integer),
        any::<bool>().prop_map(toml::Value::Boolean),
        any::<f64>().prop_filter("NaN differs from itself", |x| !x.is_nan()).prop_map(toml::Value::Float),
        name().prop_map(toml::Value::String),
    ];
    let value = leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(toml::Value::Array),
            prop::collection::btree_map(name(), inner, 0..3).prop_map(|m| toml::Value::Table(m.into_iter().collect())),
        ]
    });
    prop::collection::btree_map(name(), value, 0..3).prop_map(|m| m.into_iter().collect())
}

fn granularity() -> impl Strategy<Value = RawGranularity> {
    let size = || any::<NonZeroU32>();
    prop_oneof![
        Just(RawGranularity::Tensor),
        Just(RawGranularity::Channel),
        Just(RawGranularity::Head),
        Just(RawGranularity::Dimension),
        size().prop_map(RawGranularity::GroupOut),
        ("[a-z]{1,4}", table()).prop_map(|(id, options)| RawGranularity::Plugin(RawPluginGranularity { id, options })),
        size().prop_map(|n| RawGranularity::Group(RawGroup::Exact(n))),
        (0u32..16).prop_map(|n| RawGranularity::Group(RawGroup::Auto(NonZeroU32::new(1 << n).unwrap()))),
        [size(), size()].prop_map(RawGranularity::Block),
    ]
}

fn quant() -> impl Strategy<Value = RawQuant> {
    let convention =
        prop::sample::select(vec![RawConvention::PowB1, RawConvention::PowB1m1, RawConvention::Narrow, RawConvention::SignedFull]);
    let range = ("[a-z]{1,4}", table()).prop_map(|(id, options)| RawRange { id, options });
    (name(), granularity(), any::<bool>(), convention, range, any::<bool>(), 0.0..1.0).prop_map(
        |(format, granularity, symmetric, convention, range, fixed, min_threshold)| {
            let timing = if fixed { RawTiming::Static } else { RawTiming::Dynamic };
            let (scale, scale_rounding) = if fixed { (Some(RawScale::Po2), Some(RawScaleRounding::Floor)) } else { (None, None) };
            let reduce = if symmetric { RawReduce::Ema(min_threshold) } else { RawReduce::Concat };
            let zero_point = if fixed { RawZeroPoint::Float } else { RawZeroPoint::Integer };
            let (granularity, range, rescale) = (Some(granularity), Some(range), 1.0 + min_threshold);
            RawQuant {
                format,
                granularity,
                symmetric,
                convention,
                range,
                scale,
                scale_rounding,
                zero_point,
                timing,
                min_threshold,
                rescale,
                reduce,
            }
        },
    )
}

fn change() -> impl Strategy<Value = RawSpecChange> {
    let some = |(format, quant): (Option<String>, Option<RawQuant>)| {
        let quant = quant.as_ref();
        RawSpecChange::Change(RawQuantChange {
            format,
            granularity: quant.and_then(|q| q.granularity.clone()),
            symmetric: quant.map(|q| q.symmetric),
            convention: None,
            range: quant.and_then(|q| q.range.clone()),
            timing: quant.map(|q| q.timing),
            min_threshold: quant.map(|q| q.min_threshold),
            scale: quant.and_then(|q| q.scale),
            scale_rounding: quant.and_then(|q| q.scale_rounding),
            zero_point: quant.map(|q| q.zero_point),
            rescale: quant.map(|q| q.rescale),
            reduce: quant.map(|q| q.reduce),
        })
    };
    prop_oneof![Just(RawSpecChange::Keep), (prop::option::of(name()), prop::option::of(quant())).prop_map(some)]
}

prop_compose! {
    fn any_run()(
        path in name(), kept in any::<bool>(), weights in quant(), inputs in prop::option::of(quant()), skip in prop::collection::vec(name(), 0..3),
        selector in name(), changes in prop::option::of(change()), algo in name(), options in table(),
        regions in prop::option::of(prop::collection::vec(name(), 0..3)), samples in prop::option::of(1usize..99), bytes in any::<u64>(),
        formats in prop::collection::vec(name(), 1..3), seed in 0u64..(1 << 62), require in prop::collection::btree_map(name(), name(), 0..3),
    ) -> RawRun {
        let mut run = run("schema = 1\nmodel.path = \"m\"");
        run.model.path = path;
        run.calibration.samples = samples.and_then(NonZeroUsize::new);
        run.calibration.seed = seed;
        run.scheme.weights = Some(RawSpec::Quant(weights));
        run.scheme.inputs = inputs.map(RawSpec::Quant).or(kept.then_some(RawSpec::Keep));
        run.scheme.skip = skip;
        run.overrides = vec![
            RawOverride {
                selector, expect: samples, allow_empty: kept, weights: changes, inputs: None, outputs: None, queries: None, keys: None,
                values: None, probs: None,
            },
        ];
        run.passes = vec![RawPass { algo, regions, selector: None, skip: vec![], options }];
        run.harness.budget = ByteSize(bytes);
        run.harness.propagate = kept.then_some(RawPropagate::Both);
        run.harness.sequence = kept.then_some(RawSequence::Layer);
        run.output.format = formats;
        run.plugins.require = require;
        run
    }
}

proptest! {
    #[test]
    fn printed_runs_read_back(printed in any_run()) {
        let text = printed.to_toml().unwrap();
        prop_assert_eq!(run(&text), printed, "{}", text);
    }

    #[test]
    fn no_text_panics(text in "[a-z\\[\\]{}=.\"\n 0-9-]{0,60}") {
        let layers = super::super::layer::Layers::new();
        let _ = layers.clone().file("run.toml", &format!("schema = 1\n{text}")).finish();
        let _ = layers.override_set(&text).finish();
    }
}

#[test]
fn defaults_are_written_out() {
    let text = run("schema = 1\nmodel.path = \"m\"").to_toml().unwrap();
    for line in ["source = \"wikitext2\"", "budget = \"8GiB\"", "max-shard = \"5GB\"", "skip = [\"head\", \"embed\"]", "device = \"cpu\""] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

#[test]
fn the_json_schema_names_every_section() {
    let schema = run_schema();
    let sections = ["schema", "model", "calibration", "scheme", "override", "pass", "harness", "eval", "output", "plugins"];
    let listed = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(listed, sections.into_iter().collect());
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["$defs"]["RawSpec"]["anyOf"][0]["const"], "keep");
}
