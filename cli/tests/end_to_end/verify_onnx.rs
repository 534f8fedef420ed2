//! `qfw verify` on ONNX models.

use super::apply;
use super::verify::{flip, named, report, verify};

/// A nibble anywhere in the numbers beside an ONNX graph, and a byte of the graph itself.
#[test]
fn one_flipped_nibble_of_an_onnx_model_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let formats = ["onnx", "onnx-qdq", "onnx-qcdq", "onnx-matmulnbits"];
    apply("tiny-llama", &out, &format!("--algo rtn --set scheme.weights.granularity.group=32 --format {}", formats.join(",")));
    for format in formats {
        let part = out.join(format);
        let file = part.join("model.onnx.data");
        let sound = std::fs::read(&file).unwrap();
        let mut found = Vec::new();
        for i in 1..16 {
            // Between tensors there are zeros, which belong to none.
            let at = (sound.len() * i / 16..).find(|at| sound[*at] != 0).unwrap();
            flip(&file, at, 0x10);
            let (code, report) = report(&part, &[]);
            let names = named(&report);
            assert_eq!((code, names.len()), (Some(1), 1), "{format} {at}: {report}");
            found.extend(names);
            std::fs::write(&file, &sound).unwrap();
        }
        assert!(found.iter().filter(|n| n.ends_with("_proj.weight")).count() > 5, "{format}: {found:?}");
        assert_eq!(report(&part, &[]).0, Some(0), "{format}");

        std::fs::write(&file, &sound[..sound.len() / 2]).unwrap();
        let (code, cut) = report(&part, &[]);
        assert_eq!((code, cut["checked"][0]["findings"][0]["code"].as_str()), (Some(1), Some("truncated")), "{format}: {cut}");
        std::fs::write(&file, &sound).unwrap();

        let graph = part.join("model.onnx");
        let text = std::fs::read(&graph).unwrap();
        // What a norm adds before its root: a constant that stands in the graph.
        let at = text.windows(4).position(|w| w == 1e-5f32.to_le_bytes()).unwrap();
        flip(&graph, at, 0x01);
        let (code, changed) = report(&part, &[]);
        assert!(
            code == Some(1) && changed["checked"][0]["findings"].to_string().contains("`model.onnx` is not what the run wrote"),
            "{changed}"
        );
        std::fs::write(&graph, &text[..text.len() / 2]).unwrap();
        let ran = verify(&part, &[]);
        assert!(ran.code != Some(0) && ran.stderr.contains("model.onnx"), "{format}: {}", ran.stderr);
        std::fs::write(&graph, text).unwrap();
    }
}

/// Zero points that are floats: values tell of them, and codes without scales are not recorded.
#[test]
fn float_zero_points_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let words = "--set scheme.weights.format=uint4 --set scheme.weights.symmetric=false --set scheme.weights.zero-point=float";
    apply("tiny-llama", &out, &format!("--algo rtn --set scheme.weights.granularity.group=32 {words} --format qfw,onnx"));
    let (code, found) = report(&out, &[]);
    assert_eq!((code, found["checked"][1]["unchecked"].to_string().as_str()), (Some(0), "[]"), "{found}");
}
