//! `bias-correction` does what it says: the mean output of a rounded layer is that of the original, inputs rounded or not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::sync::atomic::AtomicBool;

use candle_core::Tensor;
use qfw_core::harness::{Control, Mode};
use qfw_core::model::{Flow, Model, Nothing, Span, Tap};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::{Opened, Session};
use qfw_core::topology::{Port, PortName};
use qfw_core::{Error, Result};

fn registry() -> Registry {
    let mut registry = Registry::builtin().unwrap();
    registry.add_algorithm(&qfw_rtn::RECORD).unwrap();
    registry.add_algorithm(&qfw_bias_correction::RECORD).unwrap();
    registry
}

fn asset(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets").join(path).display().to_string()
}

fn session(model: &str, set: &[(&str, toml::Value)]) -> Result<Session> {
    let mut layers = Layers::new()
        .algo(&["rtn", "bias-correction"])
        .set("model.path", model, "test")
        .set("scheme.weights.format", "int3", "test")
        .set("calibration.source", asset("text/calibration.txt"), "test")
        .set("calibration.samples", 4, "test")
        .set("calibration.seq-len", 64, "test")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "test");
    for (key, value) in set {
        layers = layers.set(key, value.clone(), "test");
    }
    Session::open(layers.finish()?.0, &registry(), true)
}

/// Sums what comes by at one place.
struct Sum {
    port: Port,
    sum: Vec<f64>,
}

impl Tap for Sum {
    fn wants(&self, port: Port) -> bool {
        port == self.port
    }

    fn at(&mut self, _: Port, x: Tensor) -> Result<Tensor> {
        let rows: Vec<Vec<f32>> = x.to_vec2()?;
        self.sum.resize(rows[0].len(), 0.0);
        rows.iter().for_each(|row| self.sum.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x)));
        Ok(x)
    }
}

/// Sums of a place of the first block over all windows, its input from the embedding.
fn sums(model: &Model, windows: &[Vec<u32>], port: PortName) -> Vec<f64> {
    let mut sum = Sum { port: port.into(), sum: Vec::new() };
    let block = model.block(0, &model.load_block(0).unwrap()).unwrap();
    for ids in windows {
        let x = model.edges().unwrap().embed(ids, 0, &mut Nothing).unwrap().x;
        block.run(Span::BLOCK, Flow::new(x), &mut sum).unwrap();
    }
    sum.sum
}

/// `‖a − b‖ / ‖a‖`
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (d / a.iter().map(|a| a * a).sum::<f64>()).sqrt()
}

/// Keys and queries of the first block read the same input in both models: the embedding's norm, the same for both.
#[test]
fn mean_outputs_are_those_of_the_original() {
    let format = |f: &str| toml::Value::Table([("format".to_owned(), f.into())].into_iter().collect());
    let static_tensor = || {
        let fields = [("format", "int8".into()), ("timing", "static".into()), ("granularity", "tensor".into())];
        toml::Value::Table(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    };
    for (name, set) in [
        ("weights", vec![]),
        ("dynamic", vec![("scheme.inputs", format("int4"))]),
        ("static", vec![("scheme.inputs", static_tensor())]),
        ("reference", vec![("harness.propagate", "both".into())]),
    ] {
        for model in ["tiny-llama", "tiny-gpt2"] {
            let dir = tempfile::tempdir().unwrap();
            let out = dir.path().join("out");
            let session = session(&asset(model), &set).unwrap();
            let never = AtomicBool::new(false);
            let summary = session.execute(&registry(), &out, Mode::Fresh, &Control::new(&|_| (), &never)).unwrap();
            let event = format!("{:?}", summary.sites[0].events);
            assert!(event.contains("Corrected { mean_error"), "{name}: {event}");
            let windows = &session.windows.ids.clone();
            let original = Opened::open(Path::new(&asset(model)), &registry()).unwrap().model;
            let corrected = Opened::open(&out, &registry()).unwrap().model;
            let port = PortName::Q;
            let is = distance(&sums(&original, windows, port), &sums(&corrected, windows, port));
            // The models are stored in half precision, and so are their biases: 2⁻¹¹ of each.
            assert!(is < 5e-4, "{name} {model}: {is}");
            // Without the biases it is far off: the test would see them missing.
            let mut bare = session;
            bare.resolved.plan.passes.retain(|p| p.algo != "bias-correction");
            let plain = dir.path().join("plain");
            bare.execute(&registry(), &plain, Mode::Fresh, &Control::new(&|_| (), &never)).unwrap();
            let was = distance(&sums(&original, windows, port), &sums(&Opened::open(&plain, &registry()).unwrap().model, windows, port));
            assert!(was > 0.01, "{name} {model}: {was}");
        }
    }
}

/// Readers of some families would ignore a bias.
#[test]
fn families_without_biases_refuse() {
    let model = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name).display().to_string();
    let ids = tempfile::tempdir().unwrap();
    let ids = {
        let path = ids.keep().join("ids.npy");
        // A `.npy` of 64 zeros, u32.
        let header = format!("{{'descr': '<u4', 'fortran_order': False, 'shape': (64,), }}{}\n", " ".repeat(10));
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend([0; 256]);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let refused = |name: &str| -> Error {
        let set = [("calibration.source", ids.as_str().into()), ("calibration.samples", 2.into()), ("calibration.seq-len", 16.into())];
        session(&model(name), &set).err().unwrap()
    };
    for (name, site) in [("mistral-base", "attn.q"), ("qwen2-base", "attn.o"), ("qwen3-base", "mlp.gate")] {
        let error = refused(name);
        assert_eq!(error.code(), "plan::no-bias", "{error}");
        let family = name.trim_end_matches("-base");
        assert_eq!(error.to_string(), format!("`{site}` of a `{family}` model has no bias, and config.json no key that gives it one"));
        assert!(error.hint_text().unwrap().contains("model.model-type"));
    }
}
