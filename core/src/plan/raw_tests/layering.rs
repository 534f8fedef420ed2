//! Which layer wins, and what it leaves of the one below.

use super::super::layer::Layers;
use super::super::raw::*;
use super::with_model;

fn weights(run: &RawRun) -> &RawQuant {
    match &run.scheme.weights {
        Some(RawSpec::Quant(quant)) => quant,
        other => panic!("no table: {other:?}"),
    }
}

fn group(size: u32) -> RawGranularity {
    RawGranularity::Group(RawGroup::Exact(size.try_into().unwrap()))
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let base = Layers::new().set("model.path", "m", "MODEL");
    let seed = |layers: &Layers| layers.clone().finish().unwrap().0.calibration.seed;
    assert_eq!(seed(&base), 0);
    // The calls come in an order that is not that of the layers.
    let file = base.file("run.toml", "schema = 1\ncalibration.seed = 1");
    assert_eq!(seed(&file.clone().preset("w4a16")), 1);
    let set = file.override_set("calibration.seed=3");
    assert_eq!(seed(&set.set("calibration.seed", 2, "--seed")), 3);
}

#[test]
fn a_file_changes_single_fields_of_a_preset() {
    let text = with_model("scheme.weights.format = \"int3\"");
    let run = Layers::new().preset("w4a16").file("run.toml", &text).finish().unwrap().0;
    let auto = RawGranularity::Group(RawGroup::Auto(128.try_into().unwrap()));
    assert_eq!((weights(&run).format.as_str(), weights(&run).granularity.clone()), ("int3", Some(auto)));
    assert_eq!(run.passes[0].options["act-order"].as_str(), Some("static"));
}

#[test]
fn a_choice_is_replaced_by_another_and_merged_with_itself() {
    let base = Layers::new().preset("w4a16").set("model.path", "m", "MODEL");
    let of = |assignment: &str| base.clone().override_set(assignment).finish().unwrap().0;
    assert_eq!(weights(&of("scheme.weights.granularity.group=64")).granularity, Some(group(64)));
    assert_eq!(weights(&of("scheme.weights.group_size=32")).granularity, Some(group(32)));
    assert_eq!(weights(&of("scheme.weights.granularity=per_channel")).granularity, Some(RawGranularity::Channel));
    let block = weights(&of("scheme.weights.granularity.block=[2, 3]")).granularity.clone();
    assert_eq!(block, Some(RawGranularity::Block([2.try_into().unwrap(), 3.try_into().unwrap()])));
    assert_eq!(of("scheme.weights=keep").scheme.weights, Some(RawSpec::Keep));
    let mse = base.clone().override_set("scheme.weights.range.mse.norm=2.0").override_set("scheme.weights.range.mse.grid=50");
    let range = weights(&mse.finish().unwrap().0).range.clone().unwrap();
    assert_eq!((range.id.as_str(), range.options.len()), ("mse", 2));
    let file = with_model("scheme.weights.granularity = { block = [2, 3] }");
    assert_eq!(weights(&base.file("run.toml", &file).finish().unwrap().0).granularity, block);
}

#[test]
fn a_spec_replaces_keep() {
    let text = with_model("scheme.weights = \"keep\"");
    let run = Layers::new().file("run.toml", &text).override_set("scheme.weights.format=int8").finish().unwrap().0;
    assert_eq!(weights(&run).format, "int8");
}

#[test]
fn algo_replaces_passes_and_keeps_their_options() {
    let text = with_model("[[pass]]\nalgo = \"magr\"\n[[pass]]\nalgo = \"gptq\"\noptions = { damp = 0.5 }");
    let (run, notes) = Layers::new().file("run.toml", &text).algo(&["awq", "gptq"]).finish().unwrap();
    assert_eq!(run.passes.iter().map(|p| p.algo.as_str()).collect::<Vec<_>>(), ["awq", "gptq"]);
    assert_eq!(run.passes[1].options["damp"].as_float(), Some(0.5));
    assert_eq!(notes, ["`--algo` drops the pass `magr` in run.toml line 4"]);
}

#[test]
fn a_file_replaces_the_passes_of_a_preset() {
    let text = with_model("[[pass]]\nalgo = \"rtn\"");
    let (run, notes) = Layers::new().preset("w4a16").file("run.toml", &text).finish().unwrap();
    assert_eq!(run.passes.len(), 1);
    assert_eq!(notes, ["run.toml drops the pass `gptq` in preset `w4a16` line 9"]);
}

#[test]
fn overrides_of_a_higher_layer_come_later() {
    let (low, high) = (with_model("[[override]]\nmatch = \"a\""), "schema = 1\n[[override]]\nmatch = \"b\"\nweights = \"keep\"");
    let run = Layers::new().file("low", &low).file("high", high).override_set("override.0.expect=3").finish().unwrap().0;
    assert_eq!(run.overrides.iter().map(|o| (o.selector.as_str(), o.expect)).collect::<Vec<_>>(), [("a", Some(3)), ("b", None)]);
}

#[test]
fn set_reaches_options_by_algorithm_and_by_place() {
    let base = Layers::new().preset("w4a16").set("model.path", "m", "MODEL");
    let run = base.override_set("gptq.act-order=off").override_set("pass.0.options.damp=0.05").finish().unwrap().0;
    assert_eq!(run.passes[0].options["act-order"].as_str(), Some("off"));
    assert_eq!(run.passes[0].options["damp"].as_float(), Some(0.05));
}

#[test]
fn values_are_toml_or_else_text() {
    let base = Layers::new().set("model.path", "m", "MODEL");
    let run = |assignment: &str| base.clone().override_set(assignment).finish().unwrap().0;
    assert_eq!(run("scheme.skip=[]").scheme.skip, Vec::<String>::new());
    assert_eq!(run("output.format=[\"a\", \"b\"]").output.format, ["a", "b"]);
    for (written, read) in [("out/x", "out/x"), ("\"1\"", "1"), ("a = b", "a = b"), ("", ""), ("2020-01-01", "2020-01-01"), ("007", "007")]
    {
        assert_eq!(run(&format!("output.path={written}")).output.path.as_deref(), Some(read));
    }
}
