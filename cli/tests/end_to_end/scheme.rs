//! Every key of a weight's scheme, from the command line to the written model.

use std::collections::BTreeMap;
use std::path::Path;

use super::{apply, args, asset, perplexity, qfw};

/// tiny-llama with weights rounded to nearest by these fields of `scheme.weights`, as `measure` sees it.
#[track_caller]
fn rounded<T>(fields: &str, measure: impl Fn(&Path) -> T) -> T {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let set: String = fields.split(' ').map(|f| format!("--set scheme.weights.{f} ")).collect();
    apply("tiny-llama", &out, &format!("--algo rtn --format qfw {set}"));
    measure(&out)
}

#[track_caller]
fn weights(fields: &str) -> f64 {
    rounded(fields, perplexity)
}

/// Each line differs from the first, and from all others, in the model it gives.
#[test]
fn every_key_of_a_weight_changes_the_model() {
    let lines = [
        "format=int4",
        "format=int3",
        "format=int8",
        "format=int4 granularity=tensor",
        "format=int4 granularity=dimension",
        "format=int4 granularity.group=32",
        "format=int4 granularity.group-out=32",
        "format=int4 granularity.block=[32,32]",
        "format=int4 symmetric=false",
        "format=int4 symmetric=false zero-point=float",
        "format=int4 convention=pow-b1",
        "format=int4 convention=pow-b1m1",
        // Without a smaller range than that of the values the lowest code is never used, and this is the line above.
        "format=int4 convention=pow-b1m1 range=mse",
        "format=int4 convention=narrow range=mse",
        "format=int4 convention=signed-full",
        "format=int4 scale=po2",
        "format=int4 scale=po2 scale-rounding=floor",
        "format=int4 scale=po2 scale-rounding=round",
        "format=int4 range=mse",
        "format=int4 range.mse.search=brevitas",
        "format=int4 range.percentile.high=95.0",
        "format=int4 range=entropy",
        "format=int4 range=hqo",
        "format=uint4 symmetric=false range=hqo zero-point=float",
        "format=uint4 symmetric=false range=hqq zero-point=float",
        "format=int4 rescale=0.8",
        "format=int4 min-threshold=1.0",
        "format=ternary",
        "format=nf4",
        "format=fp4",
        "format=fp8",
        "format=float-e3m2",
        "format=float-e4m3",
        "format=float-ocp-e5m2",
        "format=mxfp4",
        "format=mxfp6-e2m3",
        "format=mxfp6-e3m2",
        "format=mxfp8-e4m3",
        "format=mxint8",
        "format=nvfp4",
    ];
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    for line in lines {
        // Any text tells models apart.
        let p = rounded(line, |model| {
            let data = ["--data", &asset("text/evaluation.txt"), &model.display().to_string()];
            qfw(&args("eval --seq-len 128 --max-windows 2 --json", &data)).json()["perplexity"].as_f64().unwrap()
        });
        assert!(p.is_finite(), "{line}: {p}");
        if let Some(other) = seen.insert(p.to_bits(), line) {
            panic!("`{line}` gives the same model as `{other}`");
        }
    }
}

/// Unsigned symmetric integers are the signed ones shifted; a bias is a factor that a free scale takes up; sixteen bits are as good as none.
#[test]
fn equal_schemes_give_equal_models() {
    assert_eq!(weights("format=int4"), weights("format=uint4"));
    assert_eq!(weights("format=fp8"), weights("format=float-ocp-e4m3"));
    assert_eq!(weights("format=float-fnuz-e4m3"), weights("format=float-e4m3"));
    assert_eq!(weights("format=fp4"), weights("format=float-e2m1"));
    let float = perplexity(std::path::Path::new(&super::asset("tiny-llama")));
    assert!((weights("format=int16") / float - 1.0).abs() < 1e-4);
    assert!((weights("format=uint12 symmetric=false") / float - 1.0).abs() < 1e-3);
}

/// The mean relative error of the weights themselves.
fn error(fields: &str) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let set: String = fields.split(' ').map(|f| format!("--set scheme.weights.{f} ")).collect();
    apply("tiny-llama", &out, &format!("--algo rtn --format qfw {set}"));
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("qfw.json")).unwrap()).unwrap();
    let sites = record["sites"].as_array().unwrap();
    sites.iter().map(|s| s["weight-error"].as_f64().unwrap()).sum::<f64>() / sites.len() as f64
}

/// Each bit more halves the step of an integer (beyond ten, the f16 weights themselves are coarser); finer tiles and more mantissa bits err less.
#[test]
fn more_bits_and_finer_tiles_err_less() {
    let of: Vec<f64> = (3..=10).map(|bits| error(&format!("format=int{bits} granularity.group=32"))).collect();
    assert!(of.windows(2).all(|w| (1.9..2.4).contains(&(w[0] / w[1]))), "{of:?}");
    for (better, worse) in [
        ("format=mxfp6-e2m3", "format=mxfp4"),
        ("format=mxfp8-e4m3", "format=mxfp8-e5m2"),
        ("format=nvfp4", "format=mxfp4"),
        ("format=int4 granularity.group=32", "format=int4 granularity=channel"),
        ("format=int4 granularity=channel", "format=int4 granularity=tensor"),
        ("format=int4", "format=int4 scale=po2"),
        ("format=nf4", "format=int4"),
    ] {
        let (b, w) = (error(better), error(worse));
        assert!(b < w, "{better} {b}, {worse} {w}");
    }
}
