//! The three example files parse to what they say, and so do the presets.

use super::super::layer::Layers;
use super::super::preset::{preset, presets};
use super::super::raw::*;
use super::run;

fn group(size: u32) -> RawGranularity {
    RawGranularity::Group(RawGroup::Exact(size.try_into().unwrap()))
}

fn quant(spec: Option<&RawSpec>) -> &RawQuant {
    match spec {
        Some(RawSpec::Quant(quant)) => quant,
        other => panic!("no table: {other:?}"),
    }
}

#[test]
fn weight_only_gptq() {
    let run = run(include_str!("gptq.toml"));
    let weights = quant(run.scheme.weights.as_ref());
    assert_eq!((weights.format.as_str(), &weights.granularity, weights.symmetric), ("int4", &Some(group(128)), true));
    assert_eq!(
        (weights.convention, weights.timing, weights.range.as_ref().map(|r| r.id.as_str())),
        (RawConvention::HalfRange, RawTiming::Static, Some("mse"))
    );
    assert_eq!((run.calibration.seed, run.calibration.samples.map(usize::from)), (42, Some(128)));
    assert_eq!(run.scheme.skip, ["lm_head"]);
    assert_eq!(run.passes[0].options["act-order"].as_str(), Some("static"));
    assert_eq!(run.output.format, ["compressed-tensors"]);
    assert_eq!(run.harness, RawHarness::default());
}

#[test]
fn two_passes_with_regions() {
    let run = run(include_str!("smoothquant.toml"));
    let inputs = quant(run.scheme.inputs.as_ref());
    assert_eq!((inputs.granularity.clone(), inputs.timing), (Some(RawGranularity::Token), RawTiming::Dynamic));
    assert_eq!(run.passes.iter().map(|p| p.algo.as_str()).collect::<Vec<_>>(), ["smoothquant", "gptq"]);
    assert_eq!(run.passes[0].regions.as_deref(), Some(&["attn.norm".to_owned(), "mlp.norm".to_owned()][..]));
    assert_eq!((run.harness.sequence, run.harness.propagate), (Some(RawSequence::Layer), Some(RawPropagate::Quantized)));
}

#[test]
fn overrides_and_cache() {
    let run = run(include_str!("rotation.toml"));
    assert_eq!(quant(run.scheme.keys.as_ref()).granularity, Some(RawGranularity::Head));
    assert_eq!((run.overrides[0].expect, run.overrides[0].selector.as_str()), (Some(16), r"blocks\.\d+\.mlp\.down"));
    assert_eq!(run.overrides[1].weights, Some(RawSpecChange::Keep));
    assert_eq!((run.harness.budget, run.harness.resume), (ByteSize(12 << 30), true));
    assert_eq!(run.plugins.require["qronos"], ">=0.1");
}

#[test]
fn defaults_depend_on_the_site() {
    let run = run(&super::with_model("[scheme]\nweights.format = \"int4\"\ninputs.format = \"int8\"\nkeys.format = \"int8\""));
    let of = |spec: &Option<RawSpec>| (quant(spec.as_ref()).granularity.clone(), quant(spec.as_ref()).timing);
    assert_eq!(of(&run.scheme.weights), (None, RawTiming::Static));
    assert_eq!(of(&run.scheme.inputs), (None, RawTiming::Dynamic));
    assert_eq!(of(&run.scheme.keys), (None, RawTiming::Dynamic));
    assert_eq!(run.scheme.skip, ["head", "embed"]);
}

#[test]
fn presets_are_complete_runs_but_for_the_model() {
    assert_eq!(
        presets().iter().map(|p| p.name).collect::<Vec<_>>(),
        [
            "fp8",
            "fp8-block",
            "fp8-dynamic",
            "mxfp4",
            "nvfp4",
            "ternary",
            "w2a16",
            "w3a16",
            "w4a16",
            "w4a16kv8",
            "w4a4",
            "w4a4kv4",
            "w4a8",
            "w8a16",
            "w8a8",
            "w8a8-static",
            "zeroquant-mixed",
            "zeroquant-w8a8"
        ]
    );
    for preset in presets() {
        let (run, notes) = Layers::new().preset(preset.name).set("model.path", "m", "MODEL").finish().unwrap();
        assert!(run.scheme.weights.is_some() && run.passes.len() == 1 && notes.is_empty() && !preset.summary().is_empty());
    }
    let error = preset("w4a61").unwrap_err();
    assert_eq!(error.to_string(), "unknown preset `w4a61` (did you mean `w4a16`?)");
    assert_eq!(
        error.hint_text(),
        Some(
            "known presets: fp8, fp8-block, fp8-dynamic, mxfp4, nvfp4, ternary, w2a16, w3a16, w4a16, w4a16kv8, w4a4, w4a4kv4, w4a8, w8a16, w8a8, w8a8-static, zeroquant-mixed, zeroquant-w8a8; `--config FILE` takes one of your own"
        )
    );
}

#[test]
fn aliases_mean_what_they_say() {
    let granularity = |text: &str| {
        let text = super::with_model(&format!("[scheme.weights]\nformat = \"int4\"\n{text}"));
        let (run, notes) = Layers::new().file("run.toml", &text).finish().unwrap();
        (quant(run.scheme.weights.as_ref()).granularity.clone().unwrap(), notes)
    };
    for text in ["group-size = 64", "q_group_size = 64", "granularity = { per_group = 64 }", "granularity = \"per-group\"\ngroup_size = 64"]
    {
        assert_eq!(granularity(text), (group(64), vec![]), "{text}");
    }
    assert_eq!(granularity("granularity = \"per_row\"").0, RawGranularity::Token);
    assert_eq!(granularity("granularity = \"per_channel\"").0, RawGranularity::Channel);
    assert_eq!(granularity("granularity = \"per_tensor\"\ngroup_size = -1").0, RawGranularity::Tensor);
    let note = "`scheme.weights.granularity` in run.toml line 5: a group size of -1 is read as `granularity = \"channel\"`";
    assert_eq!(granularity("w_groupsize = -1"), (RawGranularity::Channel, vec![note.to_owned()]));
    let run = run(&super::with_model("[scheme.weights]\nformat = \"int4\"\nscaling_min_val = 1e-4"));
    assert_eq!(quant(run.scheme.weights.as_ref()).min_threshold, 1e-4);
}
