//! A third party's algorithm, whole: rounding with little mean error in each row, with an option, registered and run.
//!
//! `w ← w + mean(w₀ − ŵ)` for all weights of a row, rounded, and again.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use qfw_core::Result;
use qfw_core::algorithm::{
    AlgorithmRecord, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext, Stage, built, read_options,
};
use qfw_core::harness::{Control, Mode};
use qfw_core::numeric::{decode, encode};
use qfw_core::plan::layer::Layers;
use qfw_core::registry::Registry;
use qfw_core::session::Session;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of `balanced`; their documentation is the schema's.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Balanced {
    /// How often a row is shifted.
    shifts: usize,
}

impl Default for Balanced {
    fn default() -> Self {
        Self { shifts: 4 }
    }
}

impl PtqAlgorithm for Balanced {
    fn needs(&self, _: &PlanContext<'_>) -> Result<Needs> {
        Ok(Needs::default())
    }

    fn stage(&self) -> Stage<'_> {
        Stage::Round(self)
    }
}

impl Round for Balanced {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let (params, grid, columns) = (cx.fit(cx.weight)?, &cx.spec.grid, cx.linear.shape.1);
        let (mut moved, mut values) = (cx.weight.to_vec(), Vec::new());
        let mut codes = encode(grid, &params, &moved);
        for _ in 0..self.shifts {
            decode(grid, &params, &codes, 0..params.layout.rows, None, &mut values);
            let rows = moved.chunks_exact_mut(columns).zip(cx.weight.chunks_exact(columns)).zip(values.chunks_exact(columns));
            for ((moved, weight), value) in rows {
                let mean = weight.iter().zip(value).map(|(w, v)| w - v).sum::<f32>() / columns as f32;
                moved.iter_mut().for_each(|w| *w += mean);
            }
            codes = encode(grid, &params, &moved);
        }
        Ok(Rounded { codes, params, group_index: None, events: Vec::new() })
    }
}

/// What the registry knows of it. `qfw_core::register_algorithm!(RECORD)` instead of `add_algorithm` puts it into every program it is linked to.
const RECORD: AlgorithmRecord = AlgorithmRecord {
    id: "balanced",
    aliases: &[],
    phase: Phase::Round,
    summary: "round to nearest, rows shifted against their mean error",
    version: env!("CARGO_PKG_VERSION"),
    source: "a third party",
    weight_only: true,
    schema: || schemars::schema_for!(Balanced).to_value(),
    build: |options| built(read_options::<Balanced>("balanced", options, "shifts", &[])?, |options| options),
};

#[allow(clippy::print_stdout, reason = "an example program may print")]
fn main() -> Result<()> {
    let mut registry = Registry::builtin()?;
    registry.add_algorithm(&RECORD)?;
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/assets/tiny-llama");
    let (raw, _notes) = Layers::new()
        .algo(&["balanced"])
        .set("model.path", model.display().to_string(), "example")
        .set("scheme.weights.format", "int4", "example")
        .set("balanced.shifts", 2, "example")
        .set("output.format", toml::Value::Array(vec!["qfw".into()]), "example")
        .finish()?;
    let session = Session::open(raw, &registry, false)?;
    let out = std::env::temp_dir().join(format!("qfw-balanced-{}", std::process::id()));
    let never = AtomicBool::new(false);
    let summary = session.execute(&registry, &out, Mode::Fresh, &Control::new(&|_| (), &never))?;
    println!("{} layers rounded by `{}`", summary.sites.len(), summary.sites.first().map_or("", |s| &s.algo));
    let _ = std::fs::remove_dir_all(&out);
    Ok(())
}
