//! Rotations: fused into the weights or carried out while the model runs, the model stays what it was.

use serde_json::Value;

use super::{apply, args, asset, perplexity, qfw, same_tree, tensors, tree};

/// Fused, online, everywhere, and after canonical forms; nothing is rounded.
#[test]
fn a_rotated_model_computes_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    for (model, canonical) in [("tiny-llama", "fold-norms"), ("tiny-gpt2", "fold-norms,center-residual")] {
        let run = |name: &str, words: &str| {
            let out = dir.path().join(format!("{model}-{name}"));
            apply(model, &out, &format!("--format qfw --set harness.no-quantize=true --set model.dtype=float32 --algo {words}"));
            out
        };
        let kept = perplexity(&run("kept", "rtn"));
        for (name, words) in [
            ("canonical", canonical.to_owned()),
            ("last", canonical.rsplit(',').next().unwrap_or_default().to_owned()),
            ("fused", "quarot".to_owned()),
            ("orthogonal", "spinquant --set spinquant.matrix=orthogonal --set spinquant.seed=3".to_owned()),
            ("online", r#"spinquant --set spinquant.rotations=["r1","r2","r3","r4"] --set spinquant.matrix=hadamard"#.to_owned()),
            ("layerwise", "spinquant --set spinquant.mode=layerwise".to_owned()),
            (
                "wider",
                r#"spinquant --set spinquant.rotations=["r1"] --set spinquant.expand=["mlp.down"] --set spinquant.orphan-sink=true"#
                    .to_owned(),
            ),
            ("stacked", "quarot,smoothquant,weight-equalization".to_owned()),
        ] {
            let out = run(name, &words);
            let rotated = perplexity(&out);
            assert!((rotated / kept - 1.0).abs() < 1e-5, "{model}, {name}: {rotated} for {kept}");
            assert!(tensors(&out) != tensors(&dir.path().join(format!("{model}-kept"))), "{model}, {name}: nothing changed");
        }
    }
    // Token by token with a cache too: keys are kept as they were rotated.
    let text = |name: &str| {
        let model = dir.path().join(format!("tiny-llama-{name}")).display().to_string();
        qfw(&args("generate --prompt Alice --max-new-tokens 24", &[&model])).ok().stdout
    };
    assert_eq!(text("kept"), text("online"));
}

/// Rounded, it is the same file at any number of threads, and a finished run under the same plan is left alone.
#[test]
fn rotations_are_part_of_the_plan() {
    let dir = tempfile::tempdir().unwrap();
    let words = r#"--format qfw --algo quarot,gptq --set quarot.rotations=["r1","r2","r4"] --set scheme.inputs.format=int8 --set scheme.inputs.granularity=token --set scheme.inputs.timing=dynamic"#;
    let [one, three] = ["1", "3"].map(|threads| {
        let out = dir.path().join(threads);
        apply("tiny-llama", &out, &format!("{words} --threads {threads}"));
        out
    });
    same_tree(&tree(&one), &tree(&three), "other threads");
    apply("tiny-llama", &one, &format!("{words} --resume"));
    let record: Value = serde_json::from_slice(&std::fs::read(one.join("qfw.json")).unwrap()).unwrap();
    let steps = record["plan"]["rewrites"].as_array().unwrap();
    assert_eq!(steps[0], "fold-norms");
    let blocks = record["plan"]["blocks"].as_u64().unwrap() as usize;
    assert_eq!(steps.len(), 2 + 2 * blocks, "norms, the residual stream, values and a down projection for each block");
    let config: Value = serde_json::from_slice(&std::fs::read(one.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["tie_word_embeddings"], false);
    assert_eq!(config["quantization_config"]["rotations"].as_array().unwrap().len(), blocks);
    // Another seed is another plan.
    let refused = qfw(&super::apply_args("tiny-llama", &one, &format!("{words} --resume --set quarot.seed=9")));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("rewrites"), "{}", refused.stderr);
}

#[test]
fn what_a_container_cannot_state_is_refused_and_what_it_states_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let words = r#"--algo quarot,rtn --set quarot.rotations=["r1","r2","r4"] --set quarot.online-block=32 --set scheme.weights.granularity.group=32"#;
    let refused = qfw(&super::apply_args("tiny-llama", &dir.path().join("no"), &format!("{words} --format compressed-tensors")));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    for part in [
        "plan::container",
        "`blocks.0.down.in` is rotated while the model runs, which transformers reads over",
        "--format compressed-tensors-online",
    ] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
    let both = dir.path().join("both");
    apply("tiny-llama", &both, &format!("{words} --format qfw,compressed-tensors-online"));
    let [native, online] = ["qfw", "compressed-tensors-online"].map(|f| perplexity(&both.join(f)));
    assert!((native / online - 1.0).abs() < 1e-6, "{native} and {online}");
    let config: Value = serde_json::from_slice(&std::fs::read(both.join("compressed-tensors-online/config.json")).unwrap()).unwrap();
    let group = &config["quantization_config"]["transform_config"]["config_groups"]["down_in"];
    assert_eq!((&group["type"], &group["head_dim"], &group["apply"][0]["location"]), (&"hadamard".into(), &32.into(), &"input".into()));
    let queries = qfw(&super::apply_args(
        "tiny-llama",
        &dir.path().join("q"),
        r#"--algo quarot,rtn --set quarot.rotations=["r3"] --format compressed-tensors-online --set scheme.weights.granularity.group=32"#,
    ));
    assert!(queries.stderr.contains("`blocks.0.q.rope`: loaders rotate the inputs of linear layers only"), "{}", queries.stderr);
}

#[test]
fn wrong_orders_and_sizes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |words: &str| {
        let data = asset("text/calibration.txt");
        qfw(&args(&format!("plan --format qfw --set scheme.weights.format=int4 {words} --data"), &[&data, &asset("tiny-llama")]))
    };
    let order = dir.path().join("run.toml");
    let passes: String = ["smoothquant", "quarot", "rtn"].map(|a| format!("[[pass]]\nalgo = '{a}'\n")).concat();
    std::fs::write(&order, format!("schema = 1\n{passes}")).unwrap();
    let refused = plan(&format!("--config {}", order.display()));
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("`quarot` (transform of the whole model) cannot follow `smoothquant` (transform)"),
        "{}",
        refused.stderr
    );
    let sorted = plan("--algo smoothquant,quarot,rtn").ok();
    assert!(sorted.stderr.contains("passes sorted by phase: quarot, smoothquant, rtn"), "{}", sorted.stderr);
    assert!(sorted.stderr.contains("norms are folded into the layers that read them"), "{}", sorted.stderr);
    assert!(sorted.stdout.contains("residual rotated by randomized-hadamard of"), "{}", sorted.stdout);
    let refused = plan(r#"--algo quarot,rtn --set quarot.rotations=["r4"] --set quarot.online-block=7"#);
    assert!(refused.stderr.contains("`online-block` is 7, which does not divide"), "{}", refused.stderr);
    let refused = plan(r#"--algo quarot,rtn --set quarot.expand=["mlp.dow"]"#);
    assert!(refused.stderr.contains("`expand` names `mlp.dow`, which is no layer of this model"), "{}", refused.stderr);
    let refused = plan(r#"--algo quarot,rtn --set quarot.expand=["mlp.up"]"#);
    assert!(refused.stderr.contains("`expand` names `blocks.0.mlp.up`, whose input is rotated by what writes it"), "{}", refused.stderr);
    let refused = plan("--algo center-residual,rtn");
    assert!(refused.stderr.contains("the model's norms do not subtract the mean"), "{}", refused.stderr);
    let refused = plan(r#"--algo quarot,rtn --set pass.0.regions=["residual"]"#);
    assert!(refused.stderr.contains("has `regions`, but it does not work on regions"), "{}", refused.stderr);
    let refused = plan("--algo quarot,rtn --set pass.0.match=mlp.down");
    assert!(refused.stderr.contains("`match` and `skip` of pass `quarot` change nothing"), "{}", refused.stderr);
    // What is done to each layer for itself leaves the head alone, which is the embedding here.
    let layerwise = plan("--algo quarot,rtn --set quarot.mode=layerwise --set pass.0.match=mlp.down").ok();
    assert!(!layerwise.stderr.contains("the head gets a tensor of its own"), "{}", layerwise.stderr);
    assert!(layerwise.stdout.contains("down.in rotated online") && !layerwise.stdout.contains("mlp.in rotated"), "{}", layerwise.stdout);
}

/// A configuration that lists what the model has no place or room for is named, and nothing of that size is made.
#[test]
fn rotations_that_do_not_fit_the_model_are_malformed() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    apply("tiny-llama", &out, r#"--format qfw --algo quarot,rtn --set quarot.rotations=["r4"]"#);
    let good = std::fs::read_to_string(out.join("config.json")).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut config: Value = serde_json::from_str(&good).unwrap();
        change(&mut config["quantization_config"]["rotations"][0]);
        std::fs::write(out.join("config.json"), config.to_string()).unwrap();
        let data = asset("text/calibration.txt");
        let run = qfw(&args("eval --data", &[&data, &out.display().to_string()]));
        assert_eq!(run.code, Some(1), "{}", run.stderr);
        assert!(run.stderr.contains("checkpoint::malformed"), "{}", run.stderr);
        run.stderr
    };
    let huge = refused(&|r| r["rotation"]["size"] = (1_u64 << 60).into());
    assert!(huge.contains("which a rotation of 1152921504606846976 does not divide"), "{huge}");
    assert!(refused(&|r| r["rotation"]["size"] = 0.into()).contains("a rotation of 0 does not divide"));
    assert!(refused(&|r| r["place"] = "blocks.0.gate".into()).contains("`blocks.0.gate` is no place of this model"));
    assert!(refused(&|r| r["place"] = "blocks.99.q.rope".into()).contains("`blocks.99.q.rope` is no place of this model"));
    let heads = refused(&|r| r["place"] = "blocks.0.k.rope".into());
    assert!(heads.contains("`blocks.0.k.rope` has heads of"), "{heads}");
    let padded = refused(&|r| r["padded-from"] = 7.into());
    assert!(padded.contains("is to be padded from 7"), "{padded}");
}
