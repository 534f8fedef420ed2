//! Rounded activations, from the scheme to the perplexity of the written model.

use std::path::Path;

use super::{Ran, apply, apply_args, args, asset, perplexity, qfw};

/// The perplexity of a model written with these words, weights rounded to nearest.
#[track_caller]
fn after(model: &str, words: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply(model, &out, &format!("--algo rtn --format qfw {words}"));
    perplexity(&out)
}

/// `inputs = int8`, as `--set` words.
fn set(part: &str, fields: &str) -> String {
    fields.split(' ').map(|f| format!("--set scheme.{part}.{f} ")).collect()
}

#[test]
fn every_preset_runs_and_is_ordered_as_its_bits_are() {
    let dir = tempfile::tempdir().unwrap();
    let float = perplexity(Path::new(&asset("tiny-llama")));
    let of = |preset: &str| {
        let out = dir.path().join(preset);
        let data = asset("text/calibration.txt");
        let more = [&asset("tiny-llama"), "--data", &data, "-o", &out.display().to_string()];
        let words = format!("apply --preset {preset} --format qfw --set calibration.samples=8 --set calibration.seq-len=64");
        qfw(&args(&words, &more)).ok();
        perplexity(&out)
    };
    let names =
        ["fp8", "fp8-block", "fp8-dynamic", "mxfp4", "nvfp4", "w4a16", "w4a16kv8", "w4a4", "w4a4kv4", "w4a8", "w8a8", "w8a8-static"];
    let measured: Vec<(&str, f64)> = names.into_iter().map(|n| (n, of(n))).collect();
    let get = |name: &str| measured.iter().find(|(n, _)| *n == name).unwrap().1;
    for (name, p) in &measured {
        assert!(p.is_finite() && *p > float * 0.99, "{name}: {p}, float {float}");
    }
    for name in ["fp8", "fp8-block", "fp8-dynamic", "w8a8"] {
        assert!(get(name) < float * 1.03, "{name}: {} is far from {float}", get(name));
    }
    // Fewer bits cost more, each of these by far more than the noise between windows, which are the same for all.
    for (better, worse) in [("w8a8", "w4a8"), ("w4a8", "w4a4"), ("w8a8", "nvfp4"), ("nvfp4", "mxfp4"), ("w4a16", "w4a4kv4")] {
        assert!(get(better) < get(worse), "{better} {}, {worse} {}", get(better), get(worse));
    }
    assert!(of("ternary") > get("w4a4kv4"));
}

/// Each part of the scheme reaches the model: two bits there do harm that eight do not.
#[test]
fn every_part_of_the_scheme_matters_and_eight_bits_do_little_harm() {
    for model in ["tiny-llama", "tiny-gpt2"] {
        let weights = "--set scheme.weights.format=int8 --set scheme.weights.granularity=channel";
        let base = after(model, weights);
        for part in ["inputs", "outputs", "queries", "keys", "values", "probs"] {
            let of = |format: &str| after(model, &format!("{weights} {}", set(part, &format!("format={format}"))));
            let (eight, two) = (of("int8"), of("int2"));
            assert!((eight / base - 1.0).abs() < 0.02, "{model} {part}: {eight} against {base}");
            assert!(two > base * 1.002 && two > eight, "{model} {part}: two bits change nothing ({two} against {base})");
        }
    }
}

#[test]
fn static_ranges_come_from_calibration_and_every_granularity_of_inputs_runs() {
    let weights = "--set scheme.weights.format=int8 --set scheme.weights.granularity=channel";
    let of = |fields: &str| after("tiny-llama", &format!("{weights} {}", set("inputs", fields)));
    let token = of("format=int4");
    let tensor = of("format=int4 granularity=tensor");
    let group = of("format=int4 granularity.group=16");
    let fixed = of("format=int4 timing=static");
    let affine = of("format=int4 symmetric=false");
    assert!(group < token && token < tensor, "finer is better: group {group}, token {token}, tensor {tensor}");
    assert!(token < fixed, "one scale for all texts cannot be better than one for each token: {token} {fixed}");
    assert!(affine < tensor, "{affine} {tensor}");
    for fields in [
        "format=int8 timing=static granularity=dimension",
        "format=int8 timing=static reduce=max",
        "format=int8 timing=static reduce=concat range=mse",
        "format=int8 timing=static reduce={ema=0.1}",
        "format=int8 scale=po2 scale-rounding=floor",
        "format=int8 zero-point=float symmetric=false",
        "format=float-ocp-e5m2 timing=cast",
        "format=mxfp8-e4m3",
        "format=nvfp4",
        "format=int16",
    ] {
        let p = of(fields);
        assert!(p.is_finite() && p < fixed.max(tensor) * 1.5, "{fields}: {p}");
    }
}

/// Every key of a scheme reaches the tensors of attention too; values stand for all, as they share one mechanism.
#[test]
fn every_key_reaches_attention() {
    let weights = "--set scheme.weights.format=int8 --set scheme.weights.granularity=channel";
    let mut seen = std::collections::BTreeMap::new();
    for fields in [
        "format=int3",
        "format=int4",
        "format=float-e2m1",
        "format=int3 granularity=token",
        "format=int3 granularity=tensor",
        "format=int3 granularity.group=8",
        "format=int3 granularity=dimension",
        "format=int3 symmetric=false",
        "format=int3 symmetric=false zero-point=float",
        "format=int3 scale=po2",
        "format=int3 min-threshold=2.0",
        "format=int3 rescale=0.9",
        "format=int3 timing=static",
        "format=int3 timing=static granularity=head",
        "format=int3 timing=static range=mse",
        "format=int3 timing=static range.percentile.high=99.0",
        "format=int3 timing=static reduce=max",
    ] {
        let p = after("tiny-llama", &format!("{weights} {}", set("values", fields)));
        assert!(p.is_finite(), "{fields}: {p}");
        if let Some(other) = seen.insert(p.to_bits(), fields) {
            panic!("`{fields}` gives the same model as `{other}`");
        }
    }
}

#[track_caller]
fn refused(words: &str, message: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let ran: Ran = qfw(&apply_args("tiny-llama", &dir.path().join("out"), words));
    assert_eq!(ran.code, Some(2), "{words}: {}", ran.stderr);
    for part in message {
        assert!(ran.stderr.contains(part), "{words}: `{part}` is not in\n{}", ran.stderr);
    }
}

#[test]
fn what_means_nothing_is_refused_with_its_place() {
    refused(
        "--algo rtn --format qfw --set scheme.inputs.format=int8 --set scheme.skip=[\"head\",\"embed\",\"attn.k\"]",
        &[
            "`blocks.0.attn.q` and `blocks.0.attn.k` read the same tensor, `blocks.0.attn.in`, but `inputs` of them differ",
            "hint: give them the same scheme",
        ],
    );
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.inputs.granularity=token",
        &["`scheme.inputs` at `blocks.0.attn.in`: granularity `token` cannot be static", "hint: set `timing = \"dynamic\"`"],
    );
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.granularity=head",
        &["granularity `head` is for queries, keys and values", "hint: use token, group or tensor"],
    );
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.granularity=channel",
        &["activations have no granularity `channel`"],
    );
    refused(
        "--algo rtn --set scheme.weights.granularity=token",
        &["weights have no granularity `token`", "hint: use channel, group, block or tensor"],
    );
    refused("--algo rtn --set scheme.weights.timing=dynamic", &["weights cannot be quantized dynamically"]);
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.timing=cast",
        &["`int8` cannot be cast to: its codes need a scale"],
    );
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.range=mse",
        &["dynamic ranges are those of the values themselves, not of observer `mse`"],
    );
    refused("--algo rtn --set scheme.weights.format=fp8 --set scheme.weights.symmetric=false", &["`float-ocp-e4m3` has no zero point"]);
    refused(
        "--algo rtn --set scheme.weights.format=mxfp4 --set scheme.weights.granularity=channel",
        &["`mxfp4` is defined in runs: group 32, not channel", "hint: leave `granularity` out"],
    );
    refused(
        "--algo rtn --set scheme.weights.scale=float --set scheme.weights.scale-rounding=ceil",
        &["`scale-rounding` is for powers of two"],
    );
    refused(
        "--algo rtn --set scheme.inputs.format=int8 --set scheme.inputs.timing=static --set scheme.inputs.reduce={ema=2.0}",
        &["`reduce` has the moving average 2"],
    );
}
